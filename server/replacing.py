"""Put a backup in the place of what is here: killed at any point, the home is the one installation or the other.

Everything that a restore changes in the database is changed in the staged copy first (`prepare`), which then replaces
the database in one step: a transaction of SQLite where there is a database, so that whoever has it open is served the
one or the other, a rename where there is none. What can only come after that (connector files, noted heads) is done
from tables in the database itself (`finish`), so that running the restore again finishes it, with or without the file.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from server.audit import AuditError, Event, Head, append
from server.audit.noted import NotedHeads, gap_fields, heads
from server.audit.reading import select
from server.backup import OWN_TABLES, BackupProblem, is_file_name
from server.comparing import Compared
from server.copies import beside, copy_as_is, copy_database, editing, synced
from server.database import SCHEMA, Database, DatabaseProblem, Rows
from server.duty import unfinished_restore
from server.locks import exclusive
from server.recovery import keep
from server.restore import FOUND, Opened, Staged, clear
from server.rollback import set_right
from server.settings import Settings
from server.signing import begin_anew
from server.sqlite import SqliteDatabase
from vault import RootKey, RootKeyRef
from vault.newfile import give_name, sync_folder, unfinished, write_new

PAGES = 8
"""Pages in one step of the replacement: fewer than any database of ours has, so that the first is never the last."""
PATIENCE_S, BUSY_S = 30.0, 10.0


@dataclass(frozen=True)
class Replaced:
    """What a restore came to."""

    frozen: bool
    kept: Path | None
    """where the database that was there before is"""
    needs_consent: Mapping[str, Sequence[str]]
    """org → the connections that a person has to connect again"""
    ended: int
    """approvals and grants that were ended"""
    files: tuple[str, ...]
    """connector files that were put back"""
    differing: tuple[str, ...]
    """connector files that are in the way of the backup's, and other ones"""


def replace_with(
    opened: Opened, compared: Compared, settings: Settings, *, place: RootKeyRef | None, by: str
) -> Replaced:
    """Carry out a restore that was agreed to. Raises BackupProblem, DatabaseProblem, AuditError or VaultError.

    `place` is where a root key out of a recovery file goes. What is raised was raised before the database was
    replaced, unless it says otherwise.
    """
    staged = opened.staged
    root = opened.root if opened.to_keep is None or place is None else keep(opened.to_keep, staged.generation, place)
    kept = _keep_present(settings)
    frozen = not compared.certain
    needs_consent, ended = prepare(opened, compared, root, kept=kept, frozen=frozen, by=by)
    _swap(staged.path, settings, compared)
    files, differing = finish(settings)
    return Replaced(frozen, kept, needs_consent, ended, files, differing)


def finish_cut_off(settings: Settings) -> bool:
    """Finish a restore that was cut off after the database was replaced; False where there is none."""
    if not settings.database.exists():
        return False
    with exclusive(settings.serving_lock), contextlib.closing(SqliteDatabase(settings.database)) as here:
        if not unfinished_restore(here):
            return False
        finish(settings)
        return True


def was_restored(staged: Staged, settings: Settings) -> bool:
    """Whether what is here is this very backup, restored, and nothing has happened since."""
    if not settings.database.exists():
        return False
    here = SqliteDatabase(settings.database)
    try:
        if not unfinished_restore(here) and NotedHeads(settings.noted_heads).missing(here):
            return False
        orgs = [str(org) for (org,) in here.read("SELECT id FROM org")]
        last = [next(select(here, org, newest_first=True, limit=1), None) for org in orgs]
    except (AuditError, DatabaseProblem):
        return False
    finally:
        here.close()
    ours = (Event.VAULT_RESTORED, staged.sha256)
    return bool(orgs) and all(
        one is not None and (one.body.get("event"), one.body.get("backup")) == ours for one in last
    )


# -- before


def _keep_present(settings: Settings) -> Path | None:
    """A copy of the database that is here; of one that SQLite cannot read, its files as found."""
    if not settings.database.exists():
        return None
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    kept = settings.backups / f"keyleash-before-restore-{stamp}.db"
    half = unfinished(kept)
    try:
        settings.backups.mkdir(mode=0o700, exist_ok=True)
        try:
            copy_database(settings.database, half)
        except sqlite3.Error:
            half.unlink(missing_ok=True)
            kept = kept.with_name(f"keyleash-damaged-{stamp}.db")
            found = settings.restoring / FOUND
            found = found if found.exists() else settings.database
            copy_as_is(found, half)
            for source, target in zip(beside(found), beside(kept), strict=True):
                if source.exists():
                    copy_as_is(source, target)
        give_name(half, kept)
    except OSError as error:
        raise BackupProblem(
            f"The database that is here could not be kept at {kept}: {error.strerror}. Make room. Nothing was changed."
        ) from None
    finally:
        for file in (half, *beside(half)):
            file.unlink(missing_ok=True)
    return kept


def prepare(
    opened: Opened, compared: Compared, root: RootKey, *, kept: Path | None, frozen: bool, by: str
) -> tuple[dict[str, list[str]], int]:
    """Make of the staged copy what is to be there after the restore. Returns what needs consent, and what was ended."""
    staged = opened.staged
    needs_consent: dict[str, list[str]] = {}
    ended = 0
    with editing(staged.path) as rows:
        rows.execute(
            "UPDATE vault_root SET provider = ?, location = ? WHERE id = ?",
            (root.provider, root.location, staged.generation.id),
        )
        for org, name, revision in rows.execute("SELECT id, name, revision FROM org ORDER BY id").fetchall():
            covers = _head(rows, org)
            if staged.schema < SCHEMA:
                append(rows, org, Event.INSTALLATION_UPGRADED, schema_before=staged.schema, schema_after=SCHEMA, by=by)
            needs_consent[name], more = set_right(rows, org, frozen=frozen, by=by)
            ended += more
            beyond = max(int(revision), compared.revisions.get(org, 0)) + 2
            rows.execute("UPDATE org SET revision = ? WHERE id = ?", (beyond, org))
            gap = next(((place, gap) for place, gap in compared.behind if gap.org == org), None)
            restored = append(
                rows,
                org,
                Event.VAULT_RESTORED,
                backup=staged.sha256,
                backup_at=staged.manifest.made_at if staged.manifest else None,
                covers=covers,
                behind=None if gap is None else gap_fields(*gap),
                compared=list(compared.told),
                accepted_rollback=True if compared.rolls_back else None,
                frozen=frozen or None,
                needs_consent=needs_consent[name] or None,
                kept=kept.name if kept else None,
                by=by,
                known_by="the root key",
            )
            if gap is not None:
                begin_anew(rows, org, restored.seq)
    synced(staged.path)
    return {org: names for org, names in needs_consent.items() if names}, ended


def _head(rows: Rows, org: str) -> str | None:
    row = rows.execute("SELECT seq, hash FROM audit_entry WHERE org = ? ORDER BY seq DESC LIMIT 1", (org,)).fetchone()
    return None if row is None else str(Head(*row))


# -- the one step


def _swap(staged: Path, settings: Settings, compared: Compared) -> None:
    live = settings.database
    if not live.exists():
        for file in beside(live):  # of a database that is gone: SQLite would play it into the new one
            file.unlink(missing_ok=True)
        try:
            give_name(staged, live)
        except FileExistsError:
            raise BackupProblem(f"Another command has just made {live}. Look at it, then try again.") from None
        return
    try:
        _copy_into(staged, live, compared)
    except _Unusable:
        pass
    else:
        return
    # Whoever has the damaged file open keeps that one; the new one must not meet its journal.
    for file in beside(live):
        file.unlink(missing_ok=True)
    sync_folder(live.parent)
    staged.replace(live)
    sync_folder(live.parent)


_UNUSABLE = ("not a database", "malformed", "readonly")
"""What SQLite says of a file that it cannot write this into; the last one where its pages have another size."""


class _Unusable(Exception):
    """SQLite cannot write into the database that is here."""


def _copy_into(staged: Path, live: Path, compared: Compared) -> None:
    """Replace the content of a database that others may have open, in one transaction that waits for writers."""
    deadline = time.monotonic() + PATIENCE_S
    watched = SqliteDatabase(live)
    checked = False

    def between(_status: int, _left: int, total: int) -> None:
        nonlocal checked
        if not total:  # another process is writing
            if time.monotonic() > deadline:
                raise DatabaseProblem(f"{live}: another process has locked it. Nothing was changed. Try again.")
            return
        if not checked:  # from here on nobody else writes
            checked = True
            if compared.unreadable is None:
                _require_same(watched, compared)

    try:
        with (
            contextlib.closing(sqlite3.connect(staged, isolation_level=None)) as origin,
            contextlib.closing(sqlite3.connect(live, isolation_level=None, timeout=BUSY_S)) as target,
        ):
            target.execute("PRAGMA journal_mode=WAL")
            target.execute("PRAGMA synchronous=FULL")
            origin.backup(target, pages=PAGES, progress=between, sleep=0.05)
            with contextlib.suppress(sqlite3.Error):  # it is replaced; the journal is emptied now, or by the next
                target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        if os.access(live, os.W_OK) and any(words in str(error) for words in _UNUSABLE):
            raise _Unusable from None
        raise DatabaseProblem(f"{live}: {error}. Nothing was replaced. Mend that, then try again.") from None
    finally:
        watched.close()


def _require_same(here: Database, compared: Compared) -> None:
    """What was recorded since the comparison would be lost unseen."""
    now = {str(org): int(revision) for org, revision in here.read("SELECT id, revision FROM org")}
    if (heads(here), now) != (compared.heads, compared.revisions):
        raise BackupProblem("The installation was changed meanwhile. Nothing was replaced; try again.")


# -- after


def finish(settings: Settings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Do what could only be done after the database was replaced; may be done again at any time.

    Returns the connector files that were put back, and those that others are in the way of.
    """
    database = SqliteDatabase(settings.database)
    try:
        files: list[tuple[str, bytes]] = []
        if database.read("SELECT 1 FROM sqlite_master WHERE name = 'backup_file'"):
            files = [
                (str(name), bytes(content)) for name, content in database.read("SELECT name, content FROM backup_file")
            ]
        put_back, differing = _put_back(files, settings.connectors)
        NotedHeads(settings.noted_heads).settle(database)
        clear(settings.restoring)
        database.write_now(_forget)
    except OSError as error:
        raise BackupProblem(
            f"The database was restored, and then: {error.strerror}. Mend that, then `keyleash vault restore` "
            "without anything more finishes the rest."
        ) from None
    finally:
        database.close()
    return put_back, differing


def _put_back(files: Sequence[tuple[str, bytes]], folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    put_back: list[str] = []
    differing: list[str] = []
    for name, content in files:
        path = folder / name
        if not is_file_name(name):
            differing.append(name)
        elif not path.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
            write_new(path, content)
            put_back.append(name)
        elif path.read_bytes() != content:
            differing.append(name)
    return tuple(put_back), tuple(differing)


def _forget(rows: Rows) -> None:
    for table in OWN_TABLES:
        rows.execute(f"DROP TABLE IF EXISTS {table}")
