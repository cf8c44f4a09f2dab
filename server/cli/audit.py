"""`keyleash audit …`: read, export and verify the record. Each of these is an entry of it too."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, OrgName
from server.cli.logs import log_of
from server.cli.output import moment, progress, say, show_json, show_table, show_text, warn
from server.cli.proving import Checkpoints, Key, proofs, require_not_ours
from server.cli.selecting import selecting

if TYPE_CHECKING:
    from server.audit import Filters, Head, Report
    from server.audit.proof import Proofs

app = typer.Typer(no_args_is_help=True, help="The record of everything that was asked, decided and done.")

FormatName = Annotated[
    str, typer.Option("--format", help="jsonl (lossless, can be verified), csv, ocsf, cef, syslog or otlp.")
]


@app.command("list")
@selecting
def list_entries(
    filters: "Filters",
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most; the newest.")] = 50,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """List the newest entries, oldest of them first."""
    from server.audit import Event, select

    with log_of(org, as_member) as log:
        filters["limit"] = limit
        log.record(Event.AUDIT_LISTED, selection=dict(filters))
        found = list(select(log.database, log.org, newest_first=True, **filters))
    found.reverse()
    if json:
        show_json([{**entry.body, "previous": entry.previous, "hash": entry.hash} for entry in found])
        return
    show_table(
        ("#", "AT", "EVENT", "BY", "WHAT", "OUTCOME"),
        (_row(entry.seq, entry.event, entry.body) for entry in found),
        empty="No entry matches.",
        prose=("BY", "OUTCOME"),
        under=("BY", "WHAT", "OUTCOME"),
    )


@app.command("export")
@selecting
def export(
    filters: "Filters",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is standard output.")
    ],
    format: FormatName = "jsonl",
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Write the record to a file. Without filters, the JSONL form can be verified anywhere."""
    from server.audit import Event, export_file, export_lines, head

    require_format(format)
    if json and output == "-":
        raise typer.BadParameter("--json and --output - would both write to standard output.")
    require_not_ours(output)
    with log_of(org, as_member) as log:
        log.record(Event.AUDIT_EXPORTED, format=format, selection=dict(filters))
        if output == "-":
            for line in export_lines(log.database, log.org, format=format, **filters):
                sys.stdout.buffer.write(line.encode())  # whatever this terminal's encoding is
            sys.stdout.buffer.flush()
            return
        last = head(log.database, log.org)
        with progress("Exporting", last.seq if last else None) as done:
            written = export_file(log.database, log.org, Path(output), format=format, progress=done, **filters)
    if json:
        end = written.head._asdict() if written.head else None
        show_json({"file": str(written.path), "format": format, "entries": written.entries, "head": end})
        return
    show_text(f"Wrote {written.entries} entries to {written.path}.")
    if written.head is not None and not any(value is not None for value in filters.values()):
        say(
            f"Note this elsewhere, to find later whether the log was cut off or written anew: "
            f"{written.head.seq}:{written.head.hash}"
        )


def require_format(name: str) -> None:
    """Refuse a format that there is not."""
    from server.audit import FORMATS

    if name not in FORMATS:
        raise typer.BadParameter(f"there is no format {name!r}. There are {', '.join(FORMATS)}.")


@app.command("verify")
def verify(
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Verify this JSONL export; needs nothing else.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="SEQ:HASH", help="An end of the log that you noted elsewhere. Repeatable."),
    ] = None,
    checkpoint: Checkpoints = None,
    key: Key = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Find what was changed in the record. Exit code: 0 intact, 1 altered, 3 cannot be verified."""
    known = [_head(text) for text in head or ()]
    if len({one.seq for one in known}) != len(set(known)):
        raise typer.BadParameter("two heads have one number and different hashes: only one of them can be true.")
    held_to = proofs(checkpoint, key)
    try:
        if export:
            report = _verified_export(export, known, held_to, org)
        else:
            report = _verified_database(known, held_to, org, as_member)
    except _cannot() as problem:
        from server.cli.output import complain

        complain(f"{problem} Nothing was verified.")
        raise typer.Exit(3) from None  # 1 would say: altered
    if json:
        show_json(report.as_dict())
    else:
        _show(report)
    raise typer.Exit(report.exit_code)


def _cannot() -> tuple[type[Exception], ...]:
    from server.cli.problems import PROBLEMS

    return PROBLEMS


def _verified_export(export: Path, known: "list[Head]", held_to: "Proofs", org: str | None) -> "Report":
    """Offline: no home, no database, no key."""
    from server.audit import verify_export

    if org is not None and not org.startswith("org_"):
        raise typer.BadParameter("an export knows its org by id only: give --org as org_…, or leave it out.")
    with progress("Verifying", None) as done:
        return verify_export(export, org=org, known=known, proofs=held_to, progress=done)


def _verified_database(known: "list[Head]", held_to: "Proofs", org: str | None, as_member: str | None) -> "Report":
    from server.audit import AuditError, Event, head, verify_database
    from server.database import DatabaseProblem

    with log_of(org, as_member) as log:
        last = None
        try:
            last = head(log.database, log.org)
        except AuditError as problem:
            warn(str(problem))
        with progress("Verifying", last.seq if last else None) as done:
            report = verify_database(log.database, log.org, known=known, proofs=held_to, progress=done)
        try:
            log.record(
                Event.AUDIT_VERIFIED,
                outcome=report.status.value,
                entries=report.entries,
                first_bad=report.first_bad,
            )
        except (AuditError, DatabaseProblem) as problem:
            warn(f"This verification could not be recorded: {problem}")
    return report


def _show(report: "Report") -> None:
    from server.audit import Status

    if report.status is Status.INTACT:
        end = f", up to {report.head.seq}:{report.head.hash}" if report.head else ""
        gone = f", after {report.pruned} that were pruned" if report.pruned else ""
        show_text(f"Intact: {report.entries} entries{gone}{end}.{_agreeing(report)}")
    elif report.status is Status.ALTERED:
        line = f" (line {report.line})" if report.line else ""
        show_text(f"Altered. First bad entry: {report.first_bad}{line}. {report.problem}")
        say(f"Entries before it that are good: {report.entries}.")
    else:
        show_text(f"Cannot be verified. {report.problem}")
    for limit in report.cannot_exclude:
        say(f"This does not exclude {limit}.")
    if report.unknown:
        first = ", ".join(map(str, report.unknown_at))
        say(f"{report.unknown} calls have no outcome: cut off, or still running (entries {first}).")


def _agreeing(report: "Report") -> str:
    if not report.checkpoints:
        return ""
    one = len(report.checkpoints) == 1
    return f" {'The checkpoint agrees' if one else 'All checkpoints agree'}, up to entry {max(report.checkpoints)}."


def _head(text: str) -> "Head":
    from server.audit import Head

    match = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not SEQ:HASH, as `audit export` and `audit verify` print it.")
    return Head(int(match[1]), match[2])


def _row(seq: int, event: str, body: dict[str, Any]) -> tuple[object, ...]:
    # Who did it: a decision is its approver's, a command its person's; only what is left is an agent's own.
    who = body.get("approver") if event == "approval.decided" else body.get("by") or body.get("agent")
    if body.get("unattended"):
        who = f"{who} (unattended)"
    # Of a budget of an agent, the budget; the org is every entry's.
    subject = event.partition(".")[0].replace("org", "name")
    names = ("tool", subject, "connection", "approval", "grant", "rule", "name", "file", "format")
    what = next((body[name] for name in names if isinstance(body.get(name), str)), "")
    at = body.get("at")
    return (seq, moment(at) if isinstance(at, str) else at, event, who, what, _came_to(body))


def _came_to(body: dict[str, Any]) -> str:
    """The outcome, and in a word or a sentence why where it is not what was wanted."""
    said = (body.get("outcome") or body.get("decision"), body.get("reason") or body.get("error"))
    return ": ".join(str(part) for part in said if part)
