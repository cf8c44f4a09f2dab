"""Bring an installation back from a backup: everything is checked before anything is changed.

The backup is copied into `KEYLEASH_HOME/restoring` and examined there: `staged` says whether it is one, whole, and of a
schema that this release knows; `opened` whether the root key is at hand and nothing was altered. `server.comparing`
asks whether a log is known to have gone further, and `server.replacing` puts it in the place of what is there.
"""

import contextlib
import hashlib
import hmac
import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.audit import Status
from server.backup import BackupProblem, Manifest, contents, read_manifest, seal, verified
from server.copies import Watch, beside, copy_as_is, integrity, looks_whole, reading, unwatched
from server.database import SCHEMA
from server.locks import exclusive
from server.recovery import Generation, newest_generation
from server.settings import Settings
from server.sqlite import migrate
from vault import CannotOpen, RootKey, Secret, Vault, VaultError
from vault.newfile import UNFINISHED, create_private
from vault.recovery import root_of

NEEDED_TABLES = {"alembic_version", "org", "audit_entry", "vault_root", "vault_org_key"}
BLOCK = 1 << 20
FOUND = "found.db"

Find = Callable[[str, str], RootKey]
"""Loads the root key of a provider and location, wherever the home is now. Raises RootKeyProblem."""


@dataclass(frozen=True)
class Staged:
    """A backup in our own folder: whole, and at this release's schema. Nothing vouches for its content yet."""

    path: Path
    sha256: str
    schema: str
    """as it was in the file; the staged copy is at this release's"""
    manifest: Manifest | None
    digest: str
    mac: str | None
    generation: Generation
    own: bool
    """from this home's own `backups`, so that it is trusted as the database is"""


@dataclass(frozen=True)
class Opened:
    """A staged backup that the root key opens, and whose seal and logs are whole."""

    staged: Staged
    vault: Vault
    root: RootKey
    to_keep: Secret | None
    """the root key out of a recovery file, while no place here keeps it"""


@contextmanager
def staged(settings: Settings, file: Path, *, watch: Watch = unwatched) -> Generator[Staged]:
    """Have the installation alone, and the backup beside it, examined. Raises BackupProblem or DatabaseProblem.

    At the end nothing of that is left, in a home that was not there no folder either.
    """
    with contextlib.ExitStack() as after:
        try:
            for folder in (settings.home, settings.database.parent):
                _make_folder(folder, after)
            after.callback(_forget_lock, settings)
            after.enter_context(exclusive(settings.serving_lock))
            clear(settings.restoring)
            noted = settings.noted_heads.parent
            kept = (settings.backups, settings.connectors, settings.home / "keys", noted, *noted.glob("*/"))
            for folder in kept:
                sweep(folder)
            settings.restoring.mkdir(mode=0o700)
            _set_aside(settings)
        except OSError as error:
            raise BackupProblem(
                f"{settings.home} cannot be used: {error.strerror or error}. Set KEYLEASH_HOME to a folder of yours."
            ) from None
        after.callback(clear, settings.restoring)
        copy = settings.restoring / "backup.db"
        sha256 = _copy_in(file, copy)
        own = file.resolve().parent == settings.backups.resolve()
        yield _examined(copy, sha256, own=own, watch=watch)


def _set_aside(settings: Settings) -> None:
    """A damaged database, as it was found: SQLite plays its journal into it as soon as it is asked what is in it."""
    if settings.database.exists() and not looks_whole(settings.database):
        for source, target in zip(
            (settings.database, *beside(settings.database)),
            (settings.restoring / FOUND, *beside(settings.restoring / FOUND)),
            strict=True,
        ):
            if source.exists():
                copy_as_is(source, target)


def clear(folder: Path) -> None:
    """Remove a folder of ours, and the files in it."""
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def sweep(folder: Path) -> None:
    """Remove what a restore that was killed had begun to write there."""
    for path in folder.glob(UNFINISHED):
        path.unlink()


def opened(staged: Staged, *, find: Find, recovered: Secret | None, watch: Watch = unwatched) -> Opened:
    """Open the backup with the root key from its own place, or with one out of a recovery file.

    Raises VaultError where the key is missing or another one, BackupProblem where something in it was altered.
    """
    with reading(staged.path) as db:
        root = _root(staged, find) if recovered is None else _recovered(recovered)
        vault = Vault(root, find=find)
        try:
            vault.check_root(db)
            for key in db.execute("SELECT org, version, wrapped, root FROM vault_org_key"):
                vault.keyring.of_row(db, *key)
            mac = seal(db, vault, staged.digest)
        except CannotOpen:
            raise BackupProblem("This backup was altered: a key in it does not open. Use another one.") from None
        _require_seal(staged, mac)
        _require_whole_logs(db, watch)
    return Opened(staged, vault, root, recovered)


# -- examining


def _copy_in(file: Path, copy: Path) -> str:
    """Copy the backup, which may lie on a disk that cannot be written; its SHA-256."""
    found = hashlib.sha256()
    if not file.is_file():
        raise BackupProblem(
            f"There is no file {file}. Name one that `keyleash vault backup` wrote. Nothing was changed."
        )
    try:
        if beside(file)[0].exists() and beside(file)[0].stat().st_size:
            raise BackupProblem(
                f"{file} is a database in use: part of it is in {beside(file)[0].name}. Name a file that `keyleash "
                "vault backup` wrote."
            )
        with file.open("rb") as source, os.fdopen(create_private(copy), "wb") as target:
            while block := source.read(BLOCK):
                found.update(block)
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
    except OSError as error:
        raise BackupProblem(f"{file} cannot be copied to {copy}: {error.strerror}. Nothing was changed.") from None
    return found.hexdigest()


def _examined(copy: Path, sha256: str, *, own: bool, watch: Watch) -> Staged:
    try:
        with reading(copy) as db:
            _require_backup(db)
            (schema,) = db.execute("SELECT MAX(version_num) FROM alembic_version").fetchone()
            if not isinstance(schema, str):
                raise _damaged("its schema is not said")
            if schema > SCHEMA:
                raise BackupProblem(
                    f"The backup is at schema {schema}, which is newer than this release knows ({SCHEMA}). Install "
                    "the newer release of Keyleash, and restore with that."
                )
            manifest = read_manifest(db)
            digest, mac = contents(db, watch=watch), _mac(db)
    except sqlite3.Error as error:
        raise _damaged(str(error)) from None
    if schema < SCHEMA:
        _migrate(copy, schema)
    try:
        with reading(copy) as db:
            generation = newest_generation(db)
    except sqlite3.Error as error:
        raise _damaged(str(error)) from None
    if generation is None:
        raise BackupProblem("The backup has no root key, so nothing in it can be opened. Use another one.")
    return Staged(copy, sha256, schema, manifest, digest, mac, generation, own)


def _require_backup(db: sqlite3.Connection) -> None:
    try:
        tables = {str(name) for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.DatabaseError:
        raise BackupProblem(
            "This is not a backup of Keyleash: it is no SQLite database, or its beginning is damaged."
        ) from None
    if not tables >= NEEDED_TABLES:
        raise BackupProblem("This is a database, and no backup of Keyleash: it has none of its tables.")
    wrong = integrity(db)
    if wrong is not None:
        raise _damaged(wrong)


def _damaged(wrong: str) -> BackupProblem:
    return BackupProblem(f"The backup is damaged: {wrong.splitlines()[0][:200]}. Use another one. Nothing was changed.")


def _mac(db: sqlite3.Connection) -> str | None:
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'backup_seal'").fetchone():
        return None
    row = db.execute("SELECT mac FROM backup_seal").fetchone()
    return str(row[0]) if row else None


def _migrate(copy: Path, schema: str) -> None:
    try:
        migrate(copy)
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=DELETE")
    except Exception as error:  # alembic and SQLAlchemy raise what they like
        raise BackupProblem(
            f"The backup is at schema {schema} and could not be brought to {SCHEMA} ({type(error).__name__}). Restore "
            "it with the release that made it, then run `keyleash upgrade`. Nothing was changed."
        ) from None


# -- opening


def _root(staged: Staged, find: Find) -> RootKey:
    wanted = staged.generation
    try:
        return find(wanted.provider, wanted.location)
    except VaultError as problem:
        raise BackupProblem(
            f"The root key that opens this backup is not here. It is generation {wanted.id}, and was kept in "
            f"{wanted.provider} ({wanted.location}). Put it there, or give its recovery file with `--recovery FILE`. "
            f"({problem})"
        ) from None


def _recovered(recovered: Secret) -> RootKey:
    root = root_of(recovered)
    if root is None:
        raise BackupProblem("The recovery file holds no root key. Use another copy of it.")
    return root


def _require_seal(staged: Staged, mac: str) -> None:
    if staged.mac is not None and hmac.compare_digest(staged.mac, mac):
        return
    if staged.mac is None and staged.manifest is None and staged.own:
        return
    if staged.mac is None:
        raise BackupProblem(
            "This backup has no seal, so nothing says that it was not altered: `keyleash vault backup` did not make "
            "it. A copy that `keyleash upgrade` or a restore kept is taken from KEYLEASH_HOME/backups only: if you "
            "know where this file has been, put it there."
        )
    raise BackupProblem(
        "This backup was altered after it was made: its seal does not fit. Use another copy. Nothing was changed."
    )


def _require_whole_logs(db: sqlite3.Connection, watch: Watch) -> None:
    for report in verified(db, watch=watch):
        if report.status is not Status.INTACT:
            raise BackupProblem(
                f"The audit log of {report.org} in this backup does not verify: {report.problem} It was altered before "
                "the backup was made. Use an earlier backup. Nothing was changed."
            )


# -- folders


def _make_folder(folder: Path, after: contextlib.ExitStack) -> None:
    for place in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        place.mkdir(mode=0o700)
        after.callback(_remove_empty, place)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _forget_lock(settings: Settings) -> None:
    if not settings.database.exists():
        settings.serving_lock.unlink(missing_ok=True)
