"""`keyleash audit key|checkpoint|prune|verifier`: what an auditor takes along, and what is let go of with proof."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.acting import AsJson, AsMember, OrgName, Yes, opened, operators_name, require_operator
from server.cli.logs import Log, log_of
from server.cli.moments import duration, moment
from server.cli.output import progress, say, show_json, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.audit.checkpoints import Signer
    from server.audit.note import Checkpoint, VerifierKey
    from server.audit.proof import Proofs

Checkpoints = Annotated[
    list[Path] | None,
    typer.Option("--checkpoint", metavar="FILE", help="Checkpoints that were kept elsewhere. Repeatable; each counts."),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="VERIFIERKEY", help="The log's public key, as it was handed to you (`audit key`)."),
]


def proofs(checkpoints: list[Path] | None, key: str | None) -> "Proofs":
    """What a log is to be held to. A key that is none is misuse; a file that is none ends with exit code 3."""
    from server.audit.note import NoteProblem, VerifierKey, notes_in
    from server.audit.proof import Proofs
    from server.cli.output import complain

    try:
        pinned = None if key is None else VerifierKey.parse(key)
    except NoteProblem as problem:
        raise typer.BadParameter(f"--key: {problem}") from None
    found: list[Checkpoint] = []
    for path in checkpoints or ():
        try:
            found += notes_in(path)
        except (OSError, NoteProblem) as problem:
            why = problem.strerror if isinstance(problem, OSError) else problem
            complain(f"{path} cannot be used: {why} Nothing was verified.")
            raise typer.Exit(3) from None
    return Proofs(tuple(found), pinned)


def key(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Print the public key that this log is signed with, for an auditor to pin."""
    with log_of(org, as_member) as log:
        found, checked = _key_of(log)
    if not checked:
        warn(
            "this was not checked against the root key: it is what the database says, and whoever can write to that "
            "can have put a key of their own there. Hand on one that was printed while the root key was at hand."
        )
    if json:
        show_json({"org": log.org, "key": str(found), "checked": checked})
        return
    show_text(str(found))
    say("Hand it on by another way than the checkpoints and exports that it is to verify: `audit verify --key`.")


def _key_of(log: Log) -> "tuple[VerifierKey, bool]":
    """The key, and whether it is the one that the root key gives; else it is what the database says."""
    from server.audit.note import NoteProblem
    from server.audit.proof import key_in

    if not log.removed and log.installation.vault.sealed is None:
        return _signer(log).verifier, True  # which is also held to the one in the database
    found = key_in(log.database, log.org)
    if found is None:
        raise NoteProblem("This log was never signed, so it has no key. The root key is needed to make one.")
    return found, False


def _signer(log: Log) -> "Signer":
    from server.cli.acting import require_open
    from server.signing import signer_of

    require_open(log.installation)
    return signer_of(log.installation.database, log.installation.vault, log.org)


def checkpoint(
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to add it, outside of Keyleash; - is standard output."
        ),
    ],
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Sign how far the record goes now, the whole of it computed anew. Keep it where nobody here can change it."""
    from server.audit import Event

    if json and output == "-":
        raise typer.BadParameter("--json and --output - would both write to standard output.")
    path = None if output == "-" else Path(output)
    if path is not None:
        _require_fit(path)
    with log_of(org, as_member) as log:
        if not log.removed:
            signer = _signer(log)
            log.record(Event.AUDIT_CHECKPOINTED)
            note = _made(log, signer)
        else:
            note = _last(log)
        found, _ = _key_of(log)
        note.require(found)
    if path is None:
        sys.stdout.write(str(note))
        return
    _add(path, note)
    if json:
        show_json({"file": str(path), "size": note.size, "head": note.head and note.head.hash, "key": str(found)})
        return
    show_text(f"Wrote the checkpoint of size {note.size} to {path}.")
    say(f"It is signed by {found}")


def _made(log: Log, signer: "Signer") -> "Checkpoint":
    from server.audit.noted import NotedHeads

    settings = log.installation.settings
    return NotedHeads(settings.noted_heads).checkpoint(log.installation.database, log.org, signer)[0]


def _last(log: Log) -> "Checkpoint":
    """The one with which an org was removed."""
    from server.audit.note import NoteProblem, read_note

    found = log.database.read("SELECT last FROM audit_key WHERE org = ? AND last IS NOT NULL", (log.org,))
    if not found:
        raise NoteProblem("This org was removed without a last checkpoint, and its key is gone: no other can be made.")
    return read_note(str(found[0][0]).encode())


def _require_fit(path: Path) -> None:
    """A checkpoint is added to a file that holds nothing else, so that none that was kept is lost."""
    from server.audit.note import NoteProblem, notes_in

    require_not_ours(str(path))
    if not path.exists():
        return
    try:
        if path.stat().st_size:
            notes_in(path)
    except (OSError, NoteProblem):
        raise typer.BadParameter(
            f"{path} is there and holds something else than checkpoints, or more than can be looked through. Name "
            "another."
        ) from None


def _add(path: Path, note: "Checkpoint") -> None:
    from server.audit import ExportFailed

    try:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as file:  # noqa: PTH123
            file.write(f"{note}\n".encode() if path.stat().st_size else str(note).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ExportFailed(f"{path} could not be written: {error.strerror}. Name another place.") from None


def prune(
    before: Annotated[
        str | None, typer.Option("--before", metavar="TIME", help="What is older than that: 2026-11-23, or 400d.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DAYS", help="How much is kept: 400d. At least 30 days are.")
    ] = None,
    yes: Yes = False,
    org: OrgName = None,
    json: AsJson = False,
) -> None:
    """Remove the oldest entries, for good; a signed stub in their place lets the rest be verified. The operator's."""
    from server.clock import iso, now_ms
    from server.pruning import plan, prune

    if (before is None) == (keep is None):
        raise typer.BadParameter("give one of --before TIME and --keep DAYS.")
    until = moment(before) if before is not None else now_ms() - duration(str(keep))
    with opened(as_operator=True) as installation:
        require_operator(installation, "pruning a log")
        found = installation.directory.org(org)
        database, settings = installation.database, installation.settings
        planned = plan(database, installation.vault, settings, installation.approvals, found.id, before=until)
        require_yes(
            f"Remove the entries {planned.first} to {planned.last} of {found.name} from before {iso(until)} for good? "
            "Export them first, if they are to be kept.",
            yes=yes,
        )
        with progress("Pruning", planned.last - planned.first + 1) as done:
            stubs = prune(database, planned, by=operators_name(), progress=done)
    if json:
        show_json({"first": planned.first, "last": planned.last, "stubs": [str(stub) for stub in stubs]})
        return
    show_text(f"Removed the entries {planned.first} to {planned.last}. What is left verifies: keyleash audit verify")


def verifier() -> None:
    """Print a program that verifies an export by itself, for who has no Keyleash: `… > verify.py`."""
    from server.audit import standalone

    sys.stdout.write(Path(standalone.__file__).read_text("utf-8"))


def require_not_ours(output: str) -> None:
    """What is written replaces or adds to the file that it names: never one of Keyleash's own, a key or the log."""
    from server.settings import read_settings

    home = read_settings().home.resolve()
    kept = (home / name for name in ("keys", "data", "backups", "checkpoints", "streams"))
    if output != "-" and any(Path(output).resolve().is_relative_to(folder) for folder in kept):
        raise typer.BadParameter(f"{output} is in Keyleash's own folder. Name a file elsewhere.")


COMMANDS = {"key": key, "checkpoint": checkpoint, "prune": prune, "verifier": verifier}
"""The commands of this file, as `keyleash audit` names them."""
