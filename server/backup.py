"""One file that brings an installation back, consistent while others write: everything but the root key.

It is an SQLite database: the installation's own, and three tables more. `backup_manifest` (`body`) is a JSON object:
when, by whom and by which release it was made, its schema, the generations of the root key that open it and where they
are kept, and how far each org's log goes. `backup_file` (`name`, `content`) holds the connector files of the data
folder. `backup_seal` (`mac`) says that nothing in it was changed: HMAC-SHA256, under a key that only the root key
gives, of `contents`. So whoever gets hold of a backup can read what is not sealed in it, and cannot have an altered one
restored.
"""

import contextlib
import hashlib
import hmac
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from server.audit import AuditError, Event, Head, Report, Status, append, verify_database
from server.audit.noted import NotedHeads, heads
from server.clock import iso, now_ms
from server.copies import (
    Reader,
    Watch,
    beside,
    copy_database,
    editing,
    fingerprint,
    integrity,
    still,
    synced,
    unwatched,
)
from server.database import Database, DatabaseProblem, Rows
from server.duty import note
from server.locks import shared
from server.settings import Settings
from server.sqlite import file_of
from vault import Vault
from vault.newfile import give_name, unfinished

FORMAT = "keyleash-backup"
VERSION = 1
PURPOSE = "backup-seal"
"""What the key of the seal is derived for."""
OWN_TABLES = ("backup_manifest", "backup_file", "backup_seal")
LARGEST_FILE = 8 * 1024 * 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class BackupProblem(Exception):
    """A backup cannot be made, read or restored; the message says how to mend it."""


@dataclass(frozen=True)
class Root:
    """A generation of the root key that a backup needs, and where it was kept."""

    generation: int
    provider: str
    location: str
    made_at: str


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself."""

    made_at: str
    by: str
    release: str
    schema: str
    roots: tuple[Root, ...]
    heads: Mapping[str, Head]
    names: Mapping[str, str]
    """org → its name"""


@dataclass(frozen=True)
class Made:
    """A backup that was written."""

    path: Path
    sha256: str
    size: int
    manifest: Manifest
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    """files of the connectors' folder that it does not hold"""
    altered: tuple[Report, ...]
    """logs in which something was changed: it would not be restored"""


def make_backup(
    database: Database,
    vault: Vault,
    settings: Settings,
    target: Path,
    *,
    release: str,
    by: str,
    watch: Watch = unwatched,
) -> Made:
    """Write a backup to a new file of mode 0600. Raises BackupProblem or DatabaseProblem; then there is no file.

    It is on record in every org's log before anything is copied, so that the copy holds its own entry: a copy that may
    be somewhere is never missing from the record, and a backup that is restored at once is behind nothing.
    """
    file_of(database)  # which is refused before anything is on record
    with shared(settings.serving_lock):
        _require_new(target)
        database.write_now(lambda rows: _record(rows, target, by=by, release=release))
        try:
            made = _written(database, vault, settings, target, release=release, by=by, watch=watch)
        except BaseException as error:
            why = type(error).__name__
            with contextlib.suppress(AuditError, DatabaseProblem):  # what went wrong first is what is told
                database.write_now(lambda rows: _record(rows, target, by=by, release=release, failed=why))
            raise
        note(NotedHeads(settings.noted_heads), database)
    return made


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise BackupProblem(f"There is a file {target} already; it was not touched. Name another.")
    if not target.parent.is_dir():
        raise BackupProblem(f"There is no folder {target.parent}. Make it first, or name another place.")


def _record(rows: Rows, target: Path, *, by: str, release: str, failed: str | None = None) -> None:
    for (org,) in rows.execute("SELECT id FROM org ORDER BY id").fetchall():
        last = rows.execute(
            "SELECT seq, hash FROM audit_entry WHERE org = ? ORDER BY seq DESC LIMIT 1", (org,)
        ).fetchone()
        append(
            rows,
            org,
            Event.VAULT_BACKED_UP,
            file=target.name,
            covers=None if last is None or failed else str(Head(*last)),
            release=release,
            outcome="failed" if failed else None,
            reason=failed,
            by=by,
        )


def _written(
    database: Database, vault: Vault, settings: Settings, target: Path, *, release: str, by: str, watch: Watch
) -> Made:
    half = unfinished(target)
    try:
        copy_database(file_of(database), half, watch=watch)
        files, left_out = _connector_files(settings.connectors)
        with editing(half) as copy:
            manifest = _manifest(copy, vault, release=release, by=by)
            _add(copy, manifest, files)
            copy.execute("INSERT INTO backup_seal (mac) VALUES (?)", (seal(copy, vault, contents(copy, watch=watch)),))
        altered = _examined(half, watch=watch)
        sha256, size = fingerprint(half)
        synced(half)
        give_name(half, target)
    except OSError as error:
        raise BackupProblem(f"{target} could not be written: {error.strerror or error}. Name another place.") from None
    except sqlite3.Error as error:
        raise BackupProblem(f"{target} could not be written: {error}. Make room, or name another place.") from None
    finally:
        for file in (half, *beside(half)):
            file.unlink(missing_ok=True)
    return Made(target, sha256, size, manifest, tuple(files), left_out, altered)


def contents(db: sqlite3.Connection, *, watch: Watch = unwatched) -> str:
    """SHA-256, in hex, of everything in the database but the seal itself: the schema and every value of every row.

    Of each, a line of Python's `ascii`: a text as bytearray, a blob as bytes. Tables by name, rows as they were added.
    """
    found = hashlib.sha256(b"keyleash/backup/contents/v1\n")
    objects = db.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_master "
        "WHERE substr(name, 1, 7) != 'sqlite_' AND name != 'backup_seal' ORDER BY type, name"
    ).fetchall()
    tables = [str(name) for kind, name, *_ in objects if kind == "table"]
    with watch("Sealing", None) as done:
        for count, line in enumerate(_lines(db, objects, tables)):
            found.update(line)
            if count % 10_000 == 0:
                done(count)
    return found.hexdigest()


def _lines(db: sqlite3.Connection, objects: Sequence[Any], tables: Sequence[str]) -> Iterator[bytes]:
    for row in objects:
        yield f"{row!a}\n".encode()
    kept = db.text_factory
    db.text_factory = bytearray  # a text that is none in UTF-8 is read as well, and is not taken for a blob
    try:
        for table in tables:
            yield f"{table!a}\n".encode()
            name = table.replace('"', '""')
            for row in db.execute(f'SELECT * FROM "{name}" ORDER BY rowid'):
                yield f"{row!a}\n".encode()
    finally:
        db.text_factory = kept


def seal(db: Rows, vault: Vault, digest: str) -> str:
    """The seal of what has this digest, in hex. Raises VaultError where the root key does not open this database."""
    return hmac.new(vault.derive(db, "", PURPOSE), digest.encode(), hashlib.sha256).hexdigest()


def read_manifest(db: sqlite3.Connection) -> Manifest | None:
    """What the backup says of itself; None for a database that is no backup of `make_backup`. Raises BackupProblem."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'backup_manifest'").fetchone():
        return None
    try:
        body = cast("dict[str, Any]", json.loads(db.execute("SELECT body FROM backup_manifest").fetchone()[0]))
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            raise BackupProblem("This backup was made by another release of Keyleash. Restore it with that one.")
        ends = cast("dict[str, dict[str, Any]]", body["heads"])
        return Manifest(
            **{name: str(body[name]) for name in ("made_at", "by", "release", "schema")},
            roots=tuple(Root(**root) for root in body["roots"]),
            heads={org: Head.parse(f"{end['seq']}:{end['hash']}") for org, end in ends.items()},
            names={org: str(end["name"]) for org, end in ends.items()},
        )
    except (TypeError, ValueError, KeyError, AttributeError, sqlite3.Error):
        raise BackupProblem(
            "This backup was altered: what it says of itself cannot be read. Use another one."
        ) from None


def verified(db: sqlite3.Connection, *, watch: Watch = unwatched) -> list[Report]:
    """The log of each org that has one, or should have one, verified."""
    reader = Reader(db)
    wanted = sorted({*reader.orgs(), *(str(org) for (org,) in reader.read("SELECT id FROM org"))})
    found: list[Report] = []
    for org in wanted:
        (total,) = db.execute("SELECT MAX(seq) FROM audit_entry WHERE org = ?", (org,)).fetchone()
        with watch("Verifying the log", total if isinstance(total, int) else None) as done:
            found.append(verify_database(reader, org, progress=done))
    return found


def _manifest(copy: sqlite3.Connection, vault: Vault, *, release: str, by: str) -> Manifest:
    roots = vault.status(copy).roots
    reader = Reader(copy)
    names = dict(reader.read("SELECT id, name FROM removed_org UNION ALL SELECT id, name FROM org"))
    ends = heads(reader)
    return Manifest(
        made_at=iso(now_ms()),
        by=by,
        release=release,
        schema=str(copy.execute("SELECT version_num FROM alembic_version").fetchone()[0]),
        roots=tuple(
            Root(root.generation, root.provider, root.location, iso(root.since))
            for root in roots
            if root.ready and root.retired_at is None
        ),
        heads=ends,
        names={org: names.get(org, org) for org in ends},
    )


def _add(copy: sqlite3.Connection, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    for table in OWN_TABLES:
        copy.execute(f"DROP TABLE IF EXISTS {table}")
    copy.execute("CREATE TABLE backup_manifest (body TEXT NOT NULL)")
    copy.execute("CREATE TABLE backup_file (name TEXT NOT NULL PRIMARY KEY, content BLOB NOT NULL)")
    copy.execute("CREATE TABLE backup_seal (mac TEXT NOT NULL)")
    ends = {org: {"name": manifest.names[org], "seq": end.seq, "hash": end.hash} for org, end in manifest.heads.items()}
    said = {**asdict(manifest), "format": FORMAT, "version": VERSION, "heads": ends}
    del said["names"]
    copy.execute("INSERT INTO backup_manifest (body) VALUES (?)", (json.dumps(said),))
    copy.executemany("INSERT INTO backup_file (name, content) VALUES (?, ?)", list(files.items()))


def _connector_files(folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The operator's own connector files, and the names of what else is there and is not taken along."""
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and _FILE_NAME.fullmatch(path.name) and path.stat().st_size <= LARGEST_FILE:
            files[path.name] = path.read_bytes()
        else:
            left_out.append(path.name)
    return files, tuple(left_out)


def is_file_name(name: object) -> bool:
    """Whether this can be the name of a connector file: nothing that leads out of its folder, or hides in it."""
    return isinstance(name, str) and _FILE_NAME.fullmatch(name) is not None


def _examined(half: Path, *, watch: Watch) -> tuple[Report, ...]:
    """Read the written file again. Raises BackupProblem where it is not whole; altered logs are returned."""
    with still(half) as copy:
        wrong = integrity(copy)
        if wrong is not None:
            raise BackupProblem(f"The copy is damaged ({wrong}), and so is the database. Run `keyleash doctor`.")
        return tuple(report for report in verified(copy, watch=watch) if report.status is not Status.INTACT)
