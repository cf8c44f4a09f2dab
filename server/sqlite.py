"""Rows that are durable when you are told so, in an SQLite file that several processes share.

Writes are grouped: each waits for its own rows, and all that arrive while the disk is busy share the next commit.
"""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from server.database import NO_TABLES, PATIENCE_S, Database, DatabaseProblem, Rows, run_migrations, tell

T = TypeVar("T")

_BUSY_MS = 10_000
_BATCH = 256
_GLANCE_MS = 50


class SqliteDatabase(Database):
    """An SQLite database in WAL mode. `synchronous=FULL`: what is committed survives a power cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self._local = threading.local()
        self._writer: sqlite3.Connection | None = None
        self._file: _Identity | None = None  # the one file that this process writes to, for as long as it lives
        self._log: _Identity | None = None  # and its write-ahead log, for as long as the writer is open
        self._queue: list[tuple[Callable[[Rows], Any], asyncio.Future[Any]]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._opened: list[sqlite3.Connection] = []
        weakref.finalize(self, _close, self._opened)

    def of(self, org: str) -> Database:
        """The same: SQLite keeps no orgs apart, and every query does that itself."""
        del org
        return self

    def orgs(self) -> list[str]:
        return [str(org) for (org,) in self.read(_ORGS)]

    def tables(self) -> set[str]:
        return {str(name) for (name,) in self.read("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._reader().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None

    def query(self, read: Callable[[Rows], T]) -> T:
        try:
            return read(self._reader())
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None

    def snapshot(self, read: Callable[[Rows], T]) -> T:
        reader = self._reader()
        try:
            reader.execute("BEGIN")
            try:
                return read(reader)
            finally:
                reader.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None

    async def write(self, change: Callable[[Rows], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._queue.append((change, done))
        if self._flushing is None:
            self._flushing = loop.create_task(self._flush())
        return await done  # cancelled, it only stops waiting: the change stays queued

    def write_now(self, change: Callable[[Rows], T]) -> T:
        connection = self._connect()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = change(connection)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None
        finally:
            connection.close()

    def erase(self, tables: Sequence[str], *, patience_s: float = PATIENCE_S) -> bool:
        """As `Database.erase` says.

        What is left is written anew, through this process's memory, so `tables` are to be small; whoever else has the
        database open goes on, and writers wait meanwhile.
        """
        connection = self._connect()
        try:
            if not _emptied_log(connection, patience_s):
                return False
            connection.execute("PRAGMA foreign_keys=OFF")
            _write_anew(connection, tables)
            return _emptied_log(connection, patience_s)
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None
        finally:
            connection.close()

    def close(self) -> None:
        _close(self._opened)
        self._writer = None
        self._local = threading.local()

    def _apply(self, writer: sqlite3.Connection, change: Callable[[Rows], Any]) -> tuple[Any, Exception | None]:
        """Run one change in a savepoint; a database error of its own stays its own."""
        writer.execute("SAVEPOINT one")
        try:
            result = change(writer)
        except Exception as error:
            if not writer.in_transaction:  # the disk is full, or gone: SQLite has undone the whole batch
                raise
            writer.execute("ROLLBACK TO one")
            writer.execute("RELEASE one")
            if isinstance(error, sqlite3.Error | StopIteration):  # a future cannot carry a StopIteration
                error = _problem(self.path, error)
            return None, error
        writer.execute("RELEASE one")
        return result, None

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = self._connect()
            reader.execute("PRAGMA query_only=ON")
            self._opened.append(reader)
        return reader

    def _connect(self) -> sqlite3.Connection:
        try:
            if not self.path.exists():
                raise DatabaseProblem(f"There is no database at {self.path}. Run `keyleash init` first.")
            # Asked, and never opened here: closing any descriptor of the file would drop SQLite's locks on it.
            if not os.access(self.path, os.R_OK | os.W_OK):
                raise PermissionError
        except OSError:
            raise DatabaseProblem(
                f"{self.path} cannot be opened. Only the system user that ran `keyleash init` can use it; look at its "
                "owner and mode."
            ) from None
        try:
            connection = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA foreign_keys=ON")
                connection.execute("PRAGMA secure_delete=ON")
                connection.execute("PRAGMA temp_store=MEMORY")
            except sqlite3.Error:
                connection.close()  # now, and not when the error that holds it is collected
                raise
        except sqlite3.Error as error:
            raise _problem(self.path, error) from None
        return connection

    async def _flush(self) -> None:
        """Commit what is queued, batch after batch, until nothing is.

        Statements run on the loop's thread: each would otherwise fight it for the interpreter lock. Only waiting for
        another process's lock, and the commit's flush to disk, happen on a thread.
        """
        try:
            while self._queue:
                batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
                try:
                    await self._commit(batch)
                except BaseException as error:
                    problem = _problem(self.path, error)
                    for _, done in batch:
                        tell(done, None, problem)
                    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                        raise
        finally:
            self._flushing = None

    async def _commit(self, batch: list[tuple[Callable[[Rows], Any], asyncio.Future[Any]]]) -> None:
        writer = self._writer or self._open_writer()
        await _begin(writer)
        outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]] = []
        try:
            for change, done in batch:
                outcomes.append((done, *self._apply(writer, change)))
            await asyncio.to_thread(writer.execute, "COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise
        self._require_in_place()
        for done, result, error in outcomes:
            tell(done, result, error)

    def _open_writer(self) -> sqlite3.Connection:
        writer = self._connect()
        self._opened.append(writer)
        self._file = self._file or _identity(self.path)
        self._writer, self._log = writer, None
        return writer

    def _require_in_place(self) -> None:
        """Refuse what was committed to a file that nobody will find: SQLite goes on with one that was moved or removed.

        A file in its place may be an older one: only a start looks at that. Raises DatabaseProblem.
        """
        log = _identity(self.path.with_name(f"{self.path.name}-wal"))
        self._log = self._log or log
        if _identity(self.path) == self._file is not None and log == self._log is not None:
            return
        raise DatabaseProblem(
            f"{self.path}: this was moved, removed or replaced while the server was running. Stop the server, put the "
            "file back or restore a backup (`keyleash vault restore FILE`), and start it again."
        )


_Identity = tuple[int, int]


def _identity(path: Path) -> _Identity | None:
    """Which file is at a path; None where none is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(connections: list[sqlite3.Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
    connections.clear()


async def _begin(writer: sqlite3.Connection) -> None:
    writer.execute("PRAGMA busy_timeout=0")
    try:
        writer.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        writer.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        await asyncio.to_thread(writer.execute, "BEGIN IMMEDIATE")


def _emptied_log(connection: sqlite3.Connection, patience_s: float) -> bool:
    """Move the write-ahead log into the database file and cut it to nothing; False while a reader still needs it."""
    connection.execute(f"PRAGMA busy_timeout={_GLANCE_MS}")  # a checkpoint that waits keeps every writer waiting too
    until = time.monotonic() + patience_s
    while True:
        (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(_GLANCE_MS / 1000)


def _write_anew(connection: sqlite3.Connection, tables: Sequence[str]) -> None:
    """Put every row of these tables into pages that were overwritten with zeros before.

    A deleted row is overwritten where it stands (`secure_delete`), but not the copies that were left in the unused part
    of a page when SQLite moved rows between pages (found after 15 of 300 random histories of a hundred removals). A
    DELETE without WHERE frees whole pages, and `secure_delete` zeroes those; that takes foreign keys off, or SQLite
    deletes row by row.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in tables:
            connection.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM main.{table} ORDER BY rowid")
            connection.execute(f"DELETE FROM main.{table}")
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM temp.kept ORDER BY rowid")
            connection.execute("DROP TABLE temp.kept")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # where the disk is full SQLite has undone it already
            connection.execute("ROLLBACK")
        raise


def _problem(path: Path, error: BaseException) -> DatabaseProblem:
    text = str(error)
    if isinstance(error, DatabaseProblem):
        return error
    if not isinstance(error, sqlite3.Error):
        return DatabaseProblem(f"{path}: a change failed ({type(error).__name__}); nothing of it was kept.")
    said = next((words for part, words in _WORDS if part in text), f"{text}.")
    return DatabaseProblem(f"{path}: {said}")


LOGS = """
WITH RECURSIVE log(org) AS (
    SELECT MIN(org) FROM audit_entry
    UNION ALL SELECT (SELECT MIN(org) FROM audit_entry WHERE org > log.org) FROM log WHERE log.org IS NOT NULL
)
SELECT org FROM log WHERE org IS NOT NULL"""
"""The orgs that have a log, found without reading it all."""

_ORGS = f"{LOGS} UNION SELECT id FROM org UNION SELECT id FROM removed_org ORDER BY 1"

_WORDS = (
    ("no such table", NO_TABLES),
    ("not a database", "this is damaged, or no database. Bring a backup back: `keyleash vault restore FILE`."),
    ("malformed", "this is damaged. Bring a backup back: `keyleash vault restore FILE`."),
    ("locked", "another process has locked it. Try again when that has ended."),
    ("readonly", "it cannot be written. Check its owner and its mode."),
    ("full", "the disk that holds it is full. Free some space."),
)


def file_of(database: Database) -> Path:
    """The file that a copy is made of. Raises DatabaseProblem where there is none."""
    if isinstance(database, SqliteDatabase):
        return database.path
    raise DatabaseProblem(f"{database.name} is no file of ours to copy. {INSTEAD} Nothing was written.")


INSTEAD = (
    "On PostgreSQL a backup is `pg_dump --enable-row-security`, run as the database's owner, with the root key beside "
    "it (`keyleash vault export-recovery FILE`); `pg_restore` brings it back."
)


MOVED = "moved_to"
"""A table that says that the installation is in another database now."""


def moved_to(database: Database) -> str | None:
    """Where the installation is now, and since when, in words; None where it is still here."""
    if not isinstance(database, SqliteDatabase) or MOVED not in database.tables():
        return None
    return "; ".join(f"{name}, on {at}" for name, at in database.read(f"SELECT name, at FROM {MOVED}"))


def require_here(database: Database) -> None:
    """Refuse a file whose installation was moved to another database. Raises DatabaseProblem."""
    moved = moved_to(database)
    if moved is not None:
        raise DatabaseProblem(
            f"This installation was moved: {moved}. Set KEYLEASH_DATABASE to that. To go back to {database.name} as it "
            "was then, without what was recorded since: `keyleash database migrate --undo`."
        )


def migrate(path: Path) -> None:
    """Bring the database at `path` to this release's schema, creating it where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    run_migrations(path=path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


def backup(source: Path, target: Path) -> None:
    """Write a consistent copy of the database, 0600, while others may be using it."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with (
        contextlib.closing(sqlite3.connect(source)) as origin,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        origin.backup(copy)
