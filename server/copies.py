"""Database files as files: copied whole while others write, read without a byte being changed, brought to the disk."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from server.sqlite import LOGS
from vault.newfile import create_private

PAGES = 512
"""Pages in one step of a copy."""

Watch = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a long step is: its title and its length, and then how much is done."""


@contextmanager
def unwatched(_title: str, _total: int | None) -> Generator[Callable[[int], None]]:
    """Show nothing."""
    yield lambda _done: None


def copy_database(source: Path, target: Path, *, watch: Watch = unwatched) -> None:
    """A consistent copy of a database that others may be using, in a new file of mode 0600 with nothing beside it.

    A copy that was cut off stands there like a whole one: name it `unfinished`. Raises OSError and sqlite3.Error.
    """
    os.close(create_private(target))
    with (
        contextlib.closing(sqlite3.connect(source, isolation_level=None, timeout=30)) as origin,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        # One snapshot for all steps: without it every writer would make the copy begin again.
        origin.execute("BEGIN")
        origin.execute("SELECT 1 FROM sqlite_master").fetchone()
        (pages,) = origin.execute("PRAGMA page_count").fetchone()
        with watch("Copying", pages) as done:
            origin.backup(copy, pages=PAGES, progress=lambda _status, left, total: done(total - left))
        origin.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode=DELETE")
    synced(target)


def copy_as_is(source: Path, target: Path) -> None:
    """A file's bytes in a new file of mode 0600. Only where this process has no database open on it. Raises OSError."""
    with source.open("rb") as taken, os.fdopen(create_private(target), "wb") as given:
        shutil.copyfileobj(taken, given)
        given.flush()
        os.fsync(given.fileno())


def looks_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file by itself, its journal aside. Changes nothing."""
    try:
        with still(path) as db:
            return str(db.execute("PRAGMA quick_check(1)").fetchone()[0]) == "ok"
    except sqlite3.Error:
        return False


@contextmanager
def editing(path: Path) -> Generator[sqlite3.Connection]:
    """A database file that nobody else uses, changed in one transaction, with nothing beside it after."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA journal_mode=MEMORY")
        db.execute("PRAGMA secure_delete=ON")
        db.execute("BEGIN IMMEDIATE")
        yield db
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def still(path: Path) -> Generator[sqlite3.Connection]:
    """A database file that nobody writes, to be read. Not a byte of it, or beside it, is changed."""
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    ) as db:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA cell_size_check=ON")
        yield db


class Reader:
    """The reading half of `Database`, over one connection."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def read(self, sql: str, params: Sequence[Any] = (), /) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        return self._db.execute(sql, params).fetchall()

    def of(self, org: str) -> "Reader":
        """The same: a file keeps no orgs apart."""
        del org
        return self

    def orgs(self) -> list[str]:
        """The orgs that have a log."""
        return [str(org) for (org,) in self.read(LOGS)]


def integrity(db: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong with the file; None where all is well."""
    try:
        found = str(db.execute("PRAGMA integrity_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        return str(error)
    return None if found == "ok" else found


def fingerprint(path: Path) -> tuple[str, int]:
    """A file's SHA-256 in hex, and its length in bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def synced(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def beside(path: Path) -> tuple[Path, ...]:
    """What SQLite may keep beside a database file."""
    return tuple(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm", "-journal"))


@contextmanager
def reading(path: Path) -> Generator[sqlite3.Connection]:
    """A database file of whose content nothing is known yet: what it might bring along is not run."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA trusted_schema=OFF")
        db.execute("PRAGMA query_only=ON")
        yield db
