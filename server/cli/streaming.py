"""`keyleash audit stream`, `hash` and `events`: hand the record on, find a value in it, and what its events mean."""

import math
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.acting import AsJson, AsMember, OrgName, at_desk
from server.cli.audit import require_format
from server.cli.logs import log_of
from server.cli.moments import duration
from server.cli.output import say, show_json, show_table, warn
from server.cli.proving import require_not_ours
from server.cli.selecting import following

if TYPE_CHECKING:
    from server.audit import Filters
    from server.audit.collector import Hidden
    from server.audit.streaming import Place, Position, Receiver
    from server.settings import Settings


@following
def stream(
    filters: "Filters",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Append to this file; - is standard output."),
    ] = None,
    syslog: Annotated[
        bool, typer.Option("--syslog", help="Send to the receiver that KEYLEASH_SYSLOG names, as RFC 5424.")
    ] = False,
    otlp: Annotated[
        bool, typer.Option("--otlp", help="Send to the receiver that KEYLEASH_OTLP_LOGS names, by OTLP over HTTP.")
    ] = False,
    header_stdin: Annotated[
        str | None,
        typer.Option("--header-stdin", metavar="NAME", help="A header of --otlp whose secret is on standard input."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="jsonl (unless said otherwise), csv, ocsf, cef, syslog or otlp.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Which stream: each keeps its own place in the log.")
    ] = "default",
    only_new: Annotated[
        bool, typer.Option("--only-new", help="A stream that begins: not with the first entry, but with the next.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End when all that there is has been handed on.")] = False,
    patience: Annotated[
        str | None,
        typer.Option(
            "--patience",
            metavar="TIME",
            help="With --once: end with an error when it came no further for so long, such as 10m; 1m unless said.",
        ),
    ] = None,
    org: OrgName = None,
    as_member: AsMember = None,
) -> None:
    """Hand on the record as it is written: every entry at least once, from where this stream stopped."""
    from server.audit import AuditError, Event, Head, head
    from server.audit.streaming import Place, Position, Stream, beginning
    from server.settings import read_settings

    patience_s = _patience(patience, once=once)
    settings = read_settings()
    planned = _planned(output, format, settings, header_stdin, syslog=syslog, otlp=otlp)
    with log_of(org, as_member) as log, _alone(settings, log.org, name) as file:
        place = Place(file)
        known = place.read()
        start: Head = (only_new and head(log.database, log.org)) or beginning(log.org)
        begun = Position(log.org, planned.to, planned.form, dict(filters), start.seq, start.hash)
        position = begun if known is None else _resumed(known, begun, place, name)
        told = {"format": planned.form, "to": planned.to, "stream": name, "after": position.seq}
        with closing(planned.opens(log.org)) as receiver:
            log.record(Event.AUDIT_STREAMED, **told, selection=dict(filters) or None)
            handing = Stream(log.database, place, position, receiver, warn, _wait)
            try:
                handing.begin()
                handing.follow(once=once, patience_s=patience_s, **filters)
            except BrokenPipeError:
                raise AuditError("Whoever read standard output is gone. Start the stream again to go on.") from None
            finally:
                last = handing.position
                say(f"Handed on {handing.sent} entries, up to entry {last.seq}.")
            if handing.refused:
                raise AuditError(f"{planned.to} has rejected {handing.refused} entries for good, as was said above.")


def hash_value(
    argument: Annotated[
        list[str],
        typer.Option("--argument", "-a", metavar="NAME", help="Of which argument, as the tool names it. Repeatable."),
    ],
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="[VALUE]", help="What to look for. Left out, you are asked for it, unseen; - is standard input."
        ),
    ] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Show the keyed hashes under which a value stands in the record, for `audit list --argument NAME=HASH`.

    Text and JSON (5000, true, ["a"]) have different hashes: where the value reads as both, both are shown.
    """
    from server.audit import AUDIT_VALUES, Event, append, hashes_of

    with at_desk(org, as_member, "read the audit log") as desk:
        given = _given(value)
        desk.have_keys_at_hand()
        key = desk.database.query(lambda rows: desk.installation.vault.derive(rows, desk.org.id, AUDIT_VALUES))
        desk.database.write_now(
            lambda rows: append(
                rows, desk.org.id, Event.AUDIT_HASHED, named=argument, by=desk.by, known_by=desk.actor.known_by
            )
        )
        found = hashes_of(key, argument, given)
    if json:
        show_json([each._asdict() for each in found])
        return
    show_table(("ARGUMENT", "TAKEN FOR", "HASH"), found, empty="")


def events(json: AsJson = False) -> None:
    """List every event that can be on record, and what it means."""
    from server.audit import MEANINGS, Event

    found = [(event.value, MEANINGS[event].text) for event in Event]
    if json:
        show_json([{"event": event, "meaning": meaning} for event, meaning in found])
        return
    show_table(("EVENT", "MEANING"), found, empty="", prose=("MEANING",))


COMMANDS: dict[str, Callable[..., None]] = {"stream": stream, "hash": hash_value, "events": events}


@dataclass(frozen=True)
class Planned:
    """The format, and where it goes: as noted, and what opens it. `opens` is given who hears what the receiver says."""

    form: str
    to: str
    opens: "Callable[[str], Receiver]"


def _planned(
    output: str | None, format: str | None, settings: "Settings", header: str | None, *, syslog: bool, otlp: bool
) -> Planned:
    """What was asked for. Raises BadParameter."""
    if [output is not None, syslog, otlp].count(True) != 1:
        raise typer.BadParameter("name one place: --output FILE, --output -, --syslog or --otlp.")
    if header is not None and not otlp:
        raise typer.BadParameter("--header-stdin goes with --otlp.")
    if syslog:
        return _to_syslog(format or "syslog", settings)
    if otlp:
        return _to_otlp(format or "otlp", settings, header)
    return _to_file(str(output), format or "jsonl")


def _patience(given: str | None, *, once: bool) -> float:
    """Seconds. Raises BadParameter."""
    if given is not None and not once:
        raise typer.BadParameter("--patience goes with --once: without it, a stream goes on trying.")
    return duration(given or "1m") / 1000 if once else math.inf


def _to_file(output: str, form: str) -> Planned:
    require_format(form)
    require_not_ours(output)
    to = output if output == "-" else str(Path(output).absolute())

    def opens(org: str) -> "Receiver":
        from server.audit import FORMATS
        from server.audit.receivers import AppendedFile, Pipe

        return Pipe(sys.stdout.buffer, FORMATS[form], org) if to == "-" else AppendedFile(Path(to), FORMATS[form], org)

    return Planned(form, to, opens)


def _to_syslog(form: str, settings: "Settings") -> Planned:
    from server.audit.syslog import MESSAGES
    from server.audit.wire import Target, Wire

    if form not in MESSAGES:
        raise typer.BadParameter("a syslog receiver takes --format syslog or cef.")
    if settings.syslog is None:
        raise typer.BadParameter("KEYLEASH_SYSLOG does not say where the receiver is: udp, tcp or tls://HOST:PORT.")
    kind, host, port = settings.syslog
    return Planned(
        form, f"{kind}://{host}:{port}", lambda _: Wire(Target(kind, host, port), settings.syslog_ca_file, form)
    )


def _to_otlp(form: str, settings: "Settings", header: str | None) -> Planned:
    from server.destinations import is_header

    url = settings.otlp_logs
    if form != "otlp":
        raise typer.BadParameter("an OpenTelemetry receiver takes --format otlp only.")
    if url is None:
        raise typer.BadParameter("KEYLEASH_OTLP_LOGS does not say where the receiver is: https://HOST:PORT/v1/logs.")
    if header is not None and not is_header(header):
        raise typer.BadParameter("--header-stdin takes the name of a header; its secret stands on standard input.")

    def opens(_: str) -> "Receiver":
        from server.audit.collector import Collector

        return Collector(url, _hidden(settings, header), warn, settings.otlp_ca_file)

    return Planned(form, url, opens)


def _hidden(settings: "Settings", header: str | None) -> "dict[str, Hidden]":
    """Each header with how its secret is had. Raises ConnectionProblem or CannotResolve."""
    from functools import partial

    from server.cli.credential import from_stdin
    from server.credential import resolver_of
    from vault import Secret, to_reference

    resolver = resolver_of(settings)
    found: dict[str, Hidden] = {
        name: partial(resolver.resolve, to_reference(reference)) for name, reference in settings.otlp_headers
    }
    if header is not None:
        given = from_stdin("--header-stdin")
        found[header.lower()] = lambda: Secret({"secret": given.reveal()})
    return found


def _resumed(known: "Position", begun: "Position", place: "Place", name: str) -> "Position":
    """Where the stream stopped, if it is the same one. Raises BadParameter."""
    if (known.org, known.to, known.form, known.selection) == (begun.org, begun.to, begun.form, begun.selection):
        return known
    raise typer.BadParameter(
        f"the stream {name} goes to {known.to} as {known.form}, with the filters {known.selection or 'none'}. For "
        f"another one give another --name; to change this one, remove {place.path}, and it begins anew."
    )


@contextmanager
def _alone(settings: "Settings", org: str, name: str) -> "Generator[Path]":
    """The file that keeps the stream's place, for one process at a time."""
    import re

    from server.audit import AuditError
    from server.locks import alone

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise typer.BadParameter(f"--name {name!r}: letters, digits, - and _, 64 at most.")
    folder = settings.streams / org
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AuditError(f"{folder} cannot be made: {error.strerror}. Look at its owner and disk.") from None
    with alone(folder / f"{name}.lock") as first:
        if not first:
            raise AuditError(f"The stream {name} is running already. For a second one give another --name.")
        yield folder / f"{name}.json"


def _wait(seconds: float) -> None:
    """Or a little longer, so that many that wait for one receiver do not all come back at once."""
    import random
    import time

    time.sleep(seconds * random.uniform(1, 1.25))  # noqa: S311 - nothing is guarded by it


def _given(value: str | None) -> str:
    """The value, as text. Raises NoTerminal."""
    from server.cli.terminal import ask_hidden

    if value is None:
        return ask_hidden("The value: ", otherwise="Give it on standard input, with - in its place.")
    if value != "-":
        warn("what stands in a command line is kept in the shell's history. Leave the value out to be asked for it.")
        return value
    return sys.stdin.buffer.read(MAX_VALUE).decode("utf-8", "surrogateescape").removesuffix("\n")


MAX_VALUE = 16 * 1024 * 1024
