"""`keyleash vault backup|restore|accept-rollback`: keep a copy apart, and come back from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, Yes, opened, operators_name, require_operator
from server.cli.output import progress, say, show_fields, show_json, show_text, warn
from server.cli.recovery import LostRoot, PassphraseStdin, bring_root_back, export_recovery
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.audit import Head
    from server.audit.noted import Gap
    from server.backup import Made, Manifest
    from server.comparing import Compared
    from server.replacing import Replaced
    from server.restore import Staged
    from server.settings import Settings
    from vault import RootKey, RootKeyRef

FROZEN = (
    "All agents are stopped. Revoked agents, members and rules may have come back: look at `keyleash agent list`, "
    "`member list`, `policy list` and `connection list` of each org; then `keyleash unfreeze`."
)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; put it on another disk.")],
    json: AsJson = False,
) -> None:
    """Write everything but the root key to one file, while agents go on working."""
    from server.app import release
    from server.backup import make_backup

    with opened(as_operator=True) as installation:
        require_operator(installation, "making a backup")
        made = make_backup(
            installation.database,
            installation.vault,
            installation.settings,
            file.absolute(),
            release=release(),
            by=operators_name(),
            watch=progress,
        )
    if json:
        show_json(_backup_as_json(made))
    else:
        _show_backup(made)
    for name in made.left_out:
        warn(f"{name} in the connectors' folder is not in the backup: it is no plain file of at most 8 MiB.")
    if len(made.manifest.roots) > 1:
        warn(
            "A rotation of the root key is not finished, so this backup needs the root keys of generations "
            f"{' and '.join(str(root.generation) for root in made.manifest.roots)}, and no recovery file holds both. "
            "Finish it (`keyleash vault rotate-root`), then make another backup."
        )
    for report in made.altered:
        warn(
            f"The audit log of {report.org} does not verify: {report.problem} `keyleash vault restore` will refuse "
            "this backup. Keep an earlier one, and run `keyleash audit verify`."
        )
    raise typer.Exit(1 if made.altered else 0)


def restore(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="What `vault backup` wrote; without it only a lost root key comes back."),
    ] = None,
    recovery: Annotated[
        Path | None,
        typer.Option("--recovery", metavar="FILE", help="What `export-recovery` wrote, where the root key is lost."),
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="PLACE", help="Where a recovered key is to live: keychain (default) or file."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="ORG=SEQ:HASH", help="How far an org's log went, as you noted it. Repeatable."),
    ] = None,
    accept_rollback: Annotated[
        bool, typer.Option("--accept-rollback", help="Restore although entries that were recorded would be lost.")
    ] = False,
    passphrase_stdin: PassphraseStdin = False,
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Bring everything back from a backup, on a new machine or over what is here. Stop what serves it first."""
    from server.app import quiet_logs, root_key_spec
    from server.database import DatabaseProblem
    from server.settings import read_settings
    from server.sqlite import INSTEAD

    if recovery is None and (root is not None or passphrase_stdin):
        raise typer.BadParameter("--root and --passphrase-stdin belong to a recovery file: give --recovery as well.")
    given = [_head(text) for text in head or ()]
    settings = read_settings()
    quiet_logs(settings.log_level)
    lost = None
    if recovery is not None:
        lost = LostRoot(recovery, root_key_spec(root or "keychain", settings.home), passphrase_stdin)
    if settings.database_url is not None and (file is not None or lost is None):
        raise DatabaseProblem(f"There is nothing that this could restore. {INSTEAD} Nothing was changed.")
    if file is not None:
        _restore(settings, file.absolute(), lost, given, accept_rollback=accept_rollback, yes=yes, json=json)
    elif lost is not None:
        bring_root_back(settings, lost, yes=yes, json=json)
    else:
        _finish(settings, json=json)


def _finish(settings: "Settings", *, json: bool) -> None:
    """Without a file there is only what was cut off."""
    from server.replacing import finish_cut_off

    if not finish_cut_off(settings):
        raise typer.BadParameter("there is nothing to restore: name a backup, a recovery file (--recovery), or both.")
    if json:
        show_json({"finished": True})
        return
    show_text("The restore that was cut off is finished.")
    say("Next: keyleash doctor")


def _restore(
    settings: "Settings",
    file: Path,
    lost: LostRoot | None,
    given: "list[tuple[str, Head]]",
    *,
    accept_rollback: bool,
    yes: bool,
    json: bool,
) -> None:
    from functools import partial

    from server.app import find_root
    from server.comparing import compared as compare
    from server.replacing import finish, replace_with, was_restored
    from server.restore import opened as open_backup
    from server.restore import staged as stage

    with stage(settings, file, watch=progress) as found:
        if was_restored(found, settings):
            finish(settings)
            if lost is None:
                _say_done_before(found, json=json)
            else:
                bring_root_back(settings, lost, yes=yes, json=json)
            return
        recovered = None if lost is None else lost.open(found.generation)
        ready = open_backup(found, find=partial(find_root, settings.home), recovered=recovered, watch=progress)
        compared = compare(found, settings, given)
        _refuse_rollback(found, compared, accepted=accept_rollback)
        _agree(found, compared, settings, yes=yes)
        place = None if lost is None else lost.place
        done = replace_with(ready, compared, settings, place=place, by=operators_name())
    if json:
        show_json(_restored_as_json(found, compared, done))
    else:
        _show_restored(found, compared, done, place)
        if place is None:
            _say_where_the_key_is(ready.root, settings)


def accept_rollback(yes: Yes = False, json: AsJson = False) -> None:
    """Go on from an older database that was put back by hand: all agents are frozen, approvals and grants end."""
    from server.audit.noted import NotedHeads, rolled_back
    from server.database import DatabaseProblem
    from server.duty import require_finished
    from server.rollback import accept_rollback as accept

    with opened(as_operator=True) as installation:
        require_operator(installation, "accepting an older database")
        require_finished(installation.database)
        missing = NotedHeads(installation.settings.noted_heads).missing(installation.database)
        if not missing:
            raise DatabaseProblem("There is nothing to accept: this database is not behind what was noted outside it.")
        warn(rolled_back(missing))
        require_yes("What was recorded since is not in this database. Go on from it?", yes=yes)
        settings = installation.settings
    accepted, needs_consent = accept(settings, by=operators_name())
    if json:
        show_json({"behind": [_gap_as_json(gap) for gap in accepted], "frozen": True, "needs_consent": needs_consent})
        return
    show_text("Accepted. Approvals that waited and grants that ran have ended.")
    _say_consent(needs_consent)
    warn(FROZEN)


COMMANDS = {
    "backup": backup,
    "export-recovery": export_recovery,
    "restore": restore,
    "accept-rollback": accept_rollback,
}
"""The commands of this file, as `keyleash vault` names them."""


# -- backup


def _backup_as_json(made: "Made") -> dict[str, Any]:
    manifest = made.manifest
    return {
        "file": str(made.path),
        "sha256": made.sha256,
        "bytes": made.size,
        "made_at": manifest.made_at,
        "schema": manifest.schema,
        "release": manifest.release,
        "heads": {_called(manifest, org): {"org": org, **head._asdict()} for org, head in manifest.heads.items()},
        "connector_files": list(made.files),
        "left_out": list(made.left_out),
        "altered": [report.org for report in made.altered],
        "needs_root_keys": [vars(root) for root in manifest.roots],
    }


def _called(manifest: "Manifest", org: str) -> str:
    """An org as `--head` takes it: by its name, or by its id where one that was removed had that name too."""
    name = manifest.names[org]
    return name if list(manifest.names.values()).count(name) == 1 else org


def _show_backup(made: "Made") -> None:
    manifest = made.manifest
    show_fields(
        {
            "backup": made.path,
            "sha256": made.sha256,
            "bytes": made.size,
            "schema": manifest.schema,
            "connector files": list(made.files),
            "logs go up to": [f"{_called(manifest, org)}={head}" for org, head in manifest.heads.items()],
        }
    )
    for root in manifest.roots:
        say(
            f"Not in it: the root key that opens it (generation {root.generation}, {root.provider}, {root.location}). "
            "Keep that apart: keyleash vault export-recovery FILE"
        )
    say(
        "Nor what credentials that are references point at. What is removed later stays in this file: delete it when "
        "that must be gone."
    )


# -- restore


def _head(text: str) -> "tuple[str, Head]":
    from server.audit import Head

    org, equals, noted = text.partition("=")
    try:
        head = Head.parse(noted)
    except ValueError:
        head = None
    if not (org and equals and head):
        raise typer.BadParameter(f"{text!r} is not ORG=SEQ:HASH: `keyleash vault backup` shows them for each org.")
    return org, head


def _refuse_rollback(found: "Staged", compared: "Compared", *, accepted: bool) -> None:
    from server.backup import BackupProblem

    if not compared.rolls_back:
        return
    names = {**compared.names, **_names(found)}
    said = "; ".join(f"{names.get(gap.org, gap.org)} is {gap}, by {place}" for place, gap in compared.behind)
    if accepted:
        warn(f"This goes back: {said}.")
        return
    raise BackupProblem(
        f"This backup is behind what was recorded: {said}. Agents, members and approvals that were revoked or used "
        "since would come back. Use a newer backup; or, if what is missing may be lost, add `--accept-rollback`. "
        "Nothing was changed."
    )


def _agree(found: "Staged", compared: "Compared", settings: "Settings", *, yes: bool) -> None:
    made = found.manifest.made_at if found.manifest else "an unknown time"
    if compared.unreadable is not None:
        warn(f"What is here now could not be compared with the backup: {compared.unreadable}")
    if settings.database.exists():
        require_yes(f"Replace the installation in {settings.home} by the backup of {made}?", yes=yes)


def _restored_as_json(found: "Staged", compared: "Compared", done: "Replaced") -> dict[str, Any]:
    return {
        "sha256": found.sha256,
        "backup_at": found.manifest.made_at if found.manifest else None,
        "schema_before": found.schema,
        "behind": [{"known_from": place, **_gap_as_json(gap)} for place, gap in compared.behind],
        "compared": list(compared.told),
        "not_compared": list(compared.untold),
        "frozen": done.frozen,
        "ended": done.ended,
        "needs_consent": {org: list(names) for org, names in done.needs_consent.items()},
        "connector_files": list(done.files),
        "differing_files": list(done.differing),
        "kept": str(done.kept) if done.kept else None,
    }


def _gap_as_json(gap: "Gap") -> dict[str, Any]:
    return {"org": gap.org, "known": str(gap.known), "lost": gap.lost, "forked": gap.forked}


def _show_restored(found: "Staged", compared: "Compared", done: "Replaced", place: "RootKeyRef | None") -> None:
    made = found.manifest.made_at if found.manifest else "an unknown time"
    show_text(f"Restored the backup of {made} (sha256 {found.sha256}).")
    if done.kept is not None:
        say(f"What was here before is kept at {done.kept}. It is not part of a later backup; delete it when you can.")
    if place is not None:
        say(f"The root key is now in: {place.provider}, {place.location}.")
    if done.files:
        say(f"Put back: {', '.join(done.files)}.")
    for name in done.differing:
        warn(f"{name} was left as it is in the connectors' folder; the backup has another one.")
    if done.ended:
        say(f"{done.ended} approvals and grants have ended: they may have been used since the backup.")
    _say_consent(done.needs_consent)
    if compared.untold:
        warn(
            f"Nothing outside the backup says how far the log of {', '.join(compared.untold)} went: entries after the "
            "backup are lost without a trace. (`--head` takes what you noted elsewhere.)"
        )
    if done.frozen:
        warn(FROZEN)
    say("Next: keyleash doctor")


def _say_where_the_key_is(root: "RootKey", settings: "Settings") -> None:
    if root.provider == "file" and not Path(root.location).resolve().is_relative_to(settings.home.resolve()):
        say(
            f"Its root key is {root.location}, outside of this home: another installation may use it too. "
            "`keyleash vault rotate-root` makes this one a key of its own."
        )


def _say_consent(needs_consent: Any) -> None:
    for org, names in needs_consent.items():
        warn(f"{org}: {', '.join(names)} must be connected again: a token that is used once was used since.")


def _say_done_before(found: "Staged", *, json: bool) -> None:
    if json:
        show_json({"sha256": found.sha256, "restored_before": True})
    else:
        show_text("This backup was restored already, and nothing has happened since. Nothing is left to do.")


def _names(found: "Staged") -> dict[str, str]:
    return dict(found.manifest.names) if found.manifest else {}
