"""Rows in PostgreSQL, for several servers at once: each transaction says first whose rows it is for, and sees those.

Changes to one org happen one after another, on however many servers: each takes that org's lock first. What is not
said to be for an org takes the lock of all. Changes that arrive while their org's lock is held share one commit.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import re
import threading
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict

from server.database import NO_TABLES, PATIENCE_S, Database, DatabaseProblem, Rows, tell
from server.settings import SettingsProblem

T = TypeVar("T")
Change = Callable[[Rows], Any]
Statement = tuple[bytes, Sequence[Any]]

CONNECT_S = 5
"""How long a new connection may take."""
LOCK_MS = 10_000
"""How long a change waits for the changes before it."""
READ_MS, WRITE_MS = 15_000, 30_000
"""How long one statement may take at the database."""
GRACE_S = 5.0
"""How much longer an answer is waited for: a database that is gone without a word does not keep its own time."""
WRITERS = 4
"""How many orgs are written at once, each over a connection and on a thread of its own."""
_KEPT = 4
_BATCH = 256

ALL_ORGS = 0x6B65796C65617368
"""The advisory lock that every change shares, and that an operator's change to all orgs has alone."""

_ORG = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_BEGIN_READING: Statement = (b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ())
_BEGIN: Statement = (b"BEGIN ISOLATION LEVEL READ COMMITTED", ())
_SAVEPOINT: Statement = (b"SAVEPOINT one", ())
_RELEASE: Statement = (b"RELEASE one", ())
_COMMIT: Statement = (b"COMMIT", ())
_ROLLBACK: Statement = (b"ROLLBACK", ())
_UNDO: Statement = (b"ROLLBACK TO one", ())


class PostgresDatabase(Database):
    """A PostgreSQL database, as one role; `of` gives the same for the rows of one org."""

    files = False

    def __init__(self, url: str) -> None:
        self._server = Server(url)
        self._org: str | None = None
        self.name = self._server.name

    def of(self, org: str) -> "PostgresDatabase":
        if not _ORG.fullmatch(org):
            raise DatabaseProblem("That is no org's id. Nothing was read or changed.")
        if self._org not in (None, org):
            raise DatabaseProblem("What is for one org is not for another. Nothing was read or changed.")
        scoped = object.__new__(PostgresDatabase)
        scoped._server, scoped._org, scoped.name = self._server, org, self.name
        return scoped

    def orgs(self) -> list[str]:
        return [str(org) for (org,) in self.read("SELECT id FROM keyleash_orgs() AS known(id) ORDER BY id")]

    def tables(self) -> set[str]:
        found = self.read(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
        )
        return {str(name) for (name,) in found}

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self.query(lambda rows: cast("list[tuple[Any, ...]]", rows.execute(sql, parameters).fetchall()))

    def query(self, read: Callable[[Rows], T]) -> T:
        with self._server.said(), self._server.readers.line() as line:
            return read(_Queries(line, self._scope))

    def snapshot(self, read: Callable[[Rows], T]) -> T:
        with self._server.said(), self._server.readers.line() as line:
            rows = _Transaction(line, [_BEGIN_READING, *self._scope])
            try:
                found = read(rows)
            except BaseException:
                rows.roll_back()
                raise
            rows.commit()
            return found

    async def write(self, change: Callable[[Rows], T]) -> T:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        queues = self._server.queues
        queue = queues.get(self._org)
        if queue is None:
            queue = queues[self._org] = []
            queue.append((change, done))
            self._server.flushing[self._org] = loop.create_task(self._flush(queue))
        else:
            queue.append((change, done))
        return await done  # cancelled, it only stops waiting: the change stays queued

    def write_now(self, change: Callable[[Rows], T]) -> T:
        ((result, error),) = self._committed([change])
        if error is not None:
            raise error
        return cast("T", result)

    def erase(self, tables: Sequence[str], *, patience_s: float = PATIENCE_S) -> bool:
        """True, for there is nothing to wait for; the space is given back at once where the role owns the tables.

        What PostgreSQL keeps besides is not in a client's hands: its log, replicas, rows that a reader still sees.
        """
        with self._server.said(), self._server.writers.line() as line:
            rows = _Queries(line, ())
            owned = "SELECT 1 FROM pg_class WHERE oid = ?::regclass AND pg_has_role(current_user, relowner, 'USAGE')"
            for table in tables:
                if rows.execute(owned, (table,)).fetchone():
                    rows.execute(f"VACUUM {table}")
        return True

    def faults(self) -> list[str]:
        from server.wall import faults

        return faults(self)

    def serves_as_owner(self) -> str | None:
        from server.wall import owned

        if not owned(self):
            return None
        return (
            f"KEYLEASH_DATABASE names {self.role}, which row-level security does not hold. Name the role that owns "
            f"nothing: {as_role(self._server.url, 'keyleash_app')}"
        )

    def close(self) -> None:
        self._server.close()

    @property
    def role(self) -> str:
        """The role that it is opened as."""
        return self._server.role

    @property
    def _scope(self) -> list[Statement]:
        return [] if self._org is None else [(b"SELECT set_config('keyleash.org', $1, true)", (self._org,))]

    @property
    def _begin(self) -> list[Statement]:
        """The org is set and its lock taken in one statement; what follows it sees all that was committed before."""
        if self._org is None:
            return [_BEGIN, (f"SELECT pg_advisory_xact_lock({ALL_ORGS})".encode(), ())]
        said = (
            f"SELECT set_config('keyleash.org', $1, true), pg_advisory_xact_lock_shared({ALL_ORGS}), "
            "pg_advisory_xact_lock($2)"
        )
        return [_BEGIN, (said.encode(), (self._org, lock_of(self._org)))]

    async def _flush(self, queue: list[tuple[Change, asyncio.Future[Any]]]) -> None:
        """Commit what is queued for this org, batch after batch, until nothing is."""
        loop = asyncio.get_running_loop()
        try:
            while queue:
                batch = queue[:_BATCH]
                del queue[:_BATCH]
                try:
                    changes = [change for change, _ in batch]
                    outcomes = await loop.run_in_executor(self._server.threads, self._committed, changes)
                except BaseException as error:
                    outcomes = [(None, self._server.problem(error))] * len(batch)
                    _tell(batch, outcomes)
                    if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                        raise
                else:
                    _tell(batch, outcomes)
        finally:
            self._server.queues.pop(self._org, None)
            self._server.flushing.pop(self._org, None)

    def _committed(self, changes: Sequence[Change]) -> list[tuple[Any, Exception | None]]:
        """Run the changes in one transaction, each in a savepoint where there are several. Raises DatabaseProblem."""
        with self._server.said(), self._server.writers.line() as line:
            rows = _Transaction(line, self._begin)
            outcomes: list[tuple[Any, Exception | None]] = []
            try:
                for change in changes:
                    outcomes.append(self._applied(rows, change, alone=len(changes) == 1))
                if len(changes) > 1 or outcomes[0][1] is None:
                    rows.commit()
            except BaseException:
                rows.roll_back()
                raise
            return outcomes

    def _applied(self, rows: "_Transaction", change: Change, *, alone: bool) -> tuple[Any, Exception | None]:
        try:
            if alone:
                return change(rows), None
            rows.later(_SAVEPOINT)
            result = change(rows)
            rows.keep()
        except Exception as error:
            if rows.line.lost or isinstance(error, _UNDOES_ALL):
                raise
            if alone:
                rows.roll_back()
            else:
                rows.undo()
            if isinstance(error, psycopg.Error | StopIteration):  # a future cannot carry a StopIteration
                error = self._server.problem(error)
            return None, error
        return result, None


def _tell(batch: Sequence[tuple[Change, asyncio.Future[Any]]], outcomes: Sequence[tuple[Any, Any]]) -> None:
    for (_, done), (result, error) in zip(batch, outcomes, strict=True):
        tell(done, result, error)


_UNDOES_ALL = (errors.LockNotAvailable, errors.DeadlockDetected, errors.QueryCanceled)


@lru_cache(maxsize=4096)
def lock_of(org: str) -> int:
    """The advisory lock of an org. Should two orgs ever share one, they wait for each other and nothing worse."""
    return int.from_bytes(hashlib.sha256(b"keyleash/lock\n" + org.encode()).digest()[:8], "big", signed=True)


@lru_cache(maxsize=1024)
def translated(sql: str) -> bytes:
    """The same statement with PostgreSQL's placeholders: `?` outside of quotes becomes $1, $2, …"""
    count = 0

    def numbered(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] != "?":
            return found[0]
        count += 1
        return f"${count}"

    return re.sub(r"'[^']*'|\"[^\"]*\"|\?", numbered, sql).encode()


# -- one connection


class Connection(psycopg.Connection[Any]):
    """It gives up on a database that does not answer: one that is gone without a word does not keep its own time."""

    answer_s: float | None = WRITE_MS / 1000 + GRACE_S

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.answer_s if timeout is None else timeout)


class _Line:
    """A connection for as long as it is held. Where it turns out to be lost before it was of use, it is made anew."""

    def __init__(self, connect: Callable[[], Connection], connection: Connection | None) -> None:
        self._connect = connect
        self._kept = connection is not None
        self.connection = connection or connect()

    @property
    def lost(self) -> bool:
        return self.connection.closed or self.connection.pgconn.status != pq.ConnStatus.OK

    @property
    def reusable(self) -> bool:
        idle = pq.TransactionStatus.IDLE
        return not self.lost and self.connection.pgconn.transaction_status == idle

    def run(self, statements: Sequence["_Sent"], *, again: bool) -> None:
        """Send these in one round trip.

        `again`: should the connection be one that was kept, and lost meanwhile, all are sent once more over a new one.
        """
        try:
            self._send(statements)
        except psycopg.Error:
            if not (again and self._kept and self.lost):
                raise
            self.connection.close()
            self.connection, self._kept = self._connect(), False
            self._send(statements)

    def _send(self, statements: Sequence["_Sent"]) -> None:
        connection = self.connection
        try:
            if len(statements) == 1:
                statements[0].cursor = connection.execute(*statements[0].statement)
                return
            try:
                with connection.pipeline():
                    for one in statements:
                        one.cursor = connection.execute(*one.statement)
            except psycopg.Error:
                # It takes what came after the failed one for prepared, and PostgreSQL has never seen that.
                connection._prepared.clear()  # pyright: ignore[reportPrivateUsage]
                raise
        except errors._WaitTimeout:  # pyright: ignore[reportPrivateUsage] - the one exception of its own `wait`
            connection.close()
            raise psycopg.OperationalError("it does not answer") from None


class _Sent:
    """A statement and, once it was sent, what came of it."""

    __slots__ = ("cursor", "statement")

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.cursor: Any = None


class _Queries:
    """Rows for single queries: each is a transaction of its own, which says first whose rows it is for."""

    def __init__(self, line: _Line, scope: Sequence[Statement]) -> None:
        self._line, self._scope = line, scope

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        sent = [_Sent(one) for one in (*self._scope, (translated(sql), parameters))]
        self._line.run(sent, again=True)
        return sent[-1].cursor


class _Transaction:
    """Rows of one transaction. What begins it goes out with its first statement, and what only writes with the next."""

    def __init__(self, line: _Line, begin: Sequence[Statement]) -> None:
        self.line = line
        self._waiting = [_Sent(one) for one in begin]
        self._used = self._begun = False

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        sent = _Sent((translated(sql), parameters))
        self._waiting.append(sent)
        self._used = True
        if only_writes(sql):
            return _Later(self, sent)
        self.flush()
        return sent.cursor

    def flush(self) -> None:
        """Send what waits."""
        begun, self._begun = self._begun, True
        self._run(again=not begun)

    def later(self, statement: Statement) -> None:
        """Send this with the next statement."""
        self._waiting.append(_Sent(statement))

    def keep(self) -> None:
        """End a savepoint. What was to be written since is sent first, so that its error is its own."""
        if self._waiting and self._waiting[-1].statement is _SAVEPOINT:
            self._waiting.pop()
            return
        if self._waiting:
            self.flush()
        self.later(_RELEASE)

    def undo(self) -> None:
        """Take back everything since the last savepoint."""
        for place, one in enumerate(self._waiting):
            if one.statement is _SAVEPOINT:
                del self._waiting[place:]
                return
        self._waiting = [_Sent(_UNDO), _Sent(_RELEASE)]

    def commit(self) -> None:
        if not self._used:
            return
        last = _Sent(_COMMIT)
        self._waiting.append(last)
        self._run(again=False)  # it may have been committed
        if last.cursor.statusmessage != "COMMIT":
            raise psycopg.InternalError("it was not committed")

    def roll_back(self) -> None:
        """Whatever state it is in; a connection that is lost has rolled it back itself."""
        self._waiting = []
        if self._begun and not self.line.lost:
            self._waiting = [_Sent(_ROLLBACK)]
            with contextlib.suppress(psycopg.Error):
                self._run(again=False)

    def _run(self, *, again: bool) -> None:
        waiting, self._waiting = self._waiting, []
        self._begun = True
        if waiting:
            self.line.run(waiting, again=again)


class _Later:
    """What comes of a statement that waits to be sent with the next: asked for it, it is sent at once."""

    def __init__(self, rows: _Transaction, sent: _Sent) -> None:
        self._rows, self._sent = rows, sent

    def __getattr__(self, name: str) -> Any:
        if self._sent.cursor is None:
            self._rows.flush()
        return getattr(self._sent.cursor, name)

    def __iter__(self) -> Any:
        return iter(self.fetchall())


@lru_cache(maxsize=1024)
def only_writes(sql: str) -> bool:
    """Whether a statement gives no rows, so that whoever sends it need not wait for it."""
    words = sql.upper().split()
    return words[:1] in (["INSERT"], ["UPDATE"], ["DELETE"]) and "RETURNING" not in words


class _Pool:
    """Connections that are kept for the next who needs one. Nobody waits here for another to give one back."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self.idle: list[Connection] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def line(self) -> Generator[_Line]:
        with self._lock:
            kept = self.idle.pop() if self.idle else None
        line = _Line(self._connect, kept)
        try:
            yield line
        finally:
            with self._lock:
                keep = line.reusable and len(self.idle) < _KEPT
                if keep:
                    self.idle.append(line.connection)
            if not keep:
                line.connection.close()

    def close(self) -> None:
        with self._lock:
            _close(self.idle)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
    connections.clear()


# -- the server that the connections lead to


class Server:
    """Where a URL leads: its connections, and the changes that wait for theirs."""

    def __init__(self, url: str) -> None:
        self.connections = Connection
        self._given = parsed(url)
        self.url = url
        self.role = str(self._given.get("user", ""))
        self.name = shown(url)
        self.readers = _Pool(lambda: self._connected(READ_MS, read_only=True))
        self.writers = _Pool(lambda: self._connected(WRITE_MS, read_only=False))
        self.queues: dict[str | None, list[tuple[Change, asyncio.Future[Any]]]] = {}
        self.flushing: dict[str | None, asyncio.Task[None]] = {}
        self._threads: ThreadPoolExecutor | None = None
        weakref.finalize(self, _close, self.readers.idle)
        weakref.finalize(self, _close, self.writers.idle)

    def __repr__(self) -> str:
        return f"Server({self.name!r})"  # and never what it was given, which may hold a password

    @property
    def threads(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="postgres")
        return self._threads

    @contextlib.contextmanager
    def said(self) -> Generator[None]:
        """What PostgreSQL or its driver raises becomes a DatabaseProblem."""
        try:
            yield
        except psycopg.Error as error:
            raise self.problem(error) from None

    def problem(self, error: BaseException) -> DatabaseProblem:
        if isinstance(error, DatabaseProblem):
            return error
        if not isinstance(error, psycopg.Error):
            return DatabaseProblem(f"{self.name}: a change failed ({type(error).__name__}); nothing of it was kept.")
        said = next((words for kinds, words in _WORDS if isinstance(error, kinds)), None)
        if said is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            said = "the connection was lost. Whether what was being committed was kept is not known. Is it running?"
        said = said or f"{error.diag.message_primary or type(error).__name__}."
        return DatabaseProblem(f"{self.name}: {said}")

    def close(self) -> None:
        self.readers.close()
        self.writers.close()
        if self._threads is not None:
            self._threads.shutdown(wait=True)
            self._threads = None

    def connect(self, **options: Any) -> Connection:
        """A new connection. Raises DatabaseProblem, which says why there is none, without a password."""
        given: dict[str, Any] = {"autocommit": True, "cursor_factory": psycopg.RawCursor, "client_encoding": "UTF8"}
        try:
            return self.connections.connect(**{**given, **self._given, **options})
        except psycopg.Error as error:
            raise DatabaseProblem(f"{self.name} cannot be reached: {self._without_password(error)}") from None

    def _connected(self, statement_ms: int, *, read_only: bool) -> Connection:
        connection = self.connect(
            options=" ".join(
                f"-c {name}={value}"
                for name, value in {
                    "statement_timeout": statement_ms,
                    "lock_timeout": LOCK_MS,
                    "idle_in_transaction_session_timeout": 2 * WRITE_MS,
                    "synchronous_commit": "on",
                    "default_transaction_read_only": "on" if read_only else "off",
                }.items()
            )
        )
        connection.answer_s = statement_ms / 1000 + GRACE_S
        return connection

    def _without_password(self, error: psycopg.Error) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = (lines[-1] if lines else type(error).__name__).removeprefix("- ")
        password = str(self._given.get("password", ""))
        if password and password in text:
            text = type(error).__name__
        return f"{text.rstrip('.')}. Look at its URL, at the roles' passwords, and whether PostgreSQL runs."


_WORDS: tuple[tuple[Any, str], ...] = (
    (errors.UndefinedTable, NO_TABLES),
    (
        (errors.UndefinedFunction, errors.InvalidSchemaName),
        "this is not as `keyleash upgrade` leaves it. Run that as the operator.",
    ),
    (
        errors.InsufficientPrivilege,
        "PostgreSQL does not let this role do that. It is the operator's: set KEYLEASH_DATABASE_OWNER for it.",
    ),
    (errors.LockNotAvailable, "another process has locked it. Try again when that has ended."),
    (errors.QueryCanceled, "it took too long, and was given up. Nothing of it was kept. Try again."),
    (
        (errors.DeadlockDetected, errors.SerializationFailure),
        "another change was in the way. Nothing of this one was kept. Try again.",
    ),
    (errors.DiskFull, "the disk that holds it is full. Free some space."),
    (errors.ReadOnlySqlTransaction, "it can only be read. Is it a standby?"),
    (errors.TooManyConnections, "it has no connection left for us. Raise max_connections, or run fewer servers."),
    (psycopg.DataError, "a value does not fit where it was to be kept. Nothing of it was kept."),
)


def parsed(url: str) -> dict[str, Any]:
    """What to connect by. Raises SettingsProblem, which never quotes the URL: it may hold a password."""
    try:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError
        given = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
        if not given.get("dbname") or not given.get("user"):
            raise ValueError
        if not all(port.isdecimal() for port in str(given.get("port", "5432")).split(",")):
            raise ValueError
    except (psycopg.Error, ValueError):
        raise SettingsProblem(
            "The database's URL is not understood. Give postgresql://ROLE@HOST:PORT/DATABASE; a password is best kept "
            "in ~/.pgpass."
        ) from None
    given.setdefault("connect_timeout", CONNECT_S)
    given.setdefault("tcp_user_timeout", 10_000)
    for name, value in {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}.items():
        given.setdefault(name, value)
    given.setdefault("application_name", "keyleash")
    if not _local(str(given.get("host", ""))) and "sslmode" not in given and not os.environ.get("PGSSLMODE"):
        # libpq's own default would go on in clear text where the server, or whoever is in between, says so.
        given["sslmode"] = "verify-full"
        given.setdefault("sslrootcert", "system")
    return given


def _local(host: str) -> bool:
    def one(name: str) -> bool:
        if not name or name.startswith(("/", "@")) or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    return all(one(name) for name in host.split(","))


def shown(url: str) -> str:
    """The URL in words, without a password: `database keyleash on db.example.org, as keyleash_app`."""
    given = parsed(url)
    port = f":{given['port']}" if given.get("port") else ""
    return f"PostgreSQL database {given['dbname']} on {given.get('host') or 'this machine'}{port}, as {given['user']}"


def as_role(url: str, role: str) -> str:
    """The same database for another role: the URL without a password, or the name of a file that is one's own."""
    parts = urlsplit(url)
    kept = [each for each in parts.query.split("&") if each.startswith(_NO_ONES_OWN)]
    return urlunsplit(
        (parts.scheme, f"{quote(role, safe='')}@{parts.netloc.rpartition('@')[2]}", parts.path, "&".join(kept), "")
    )


_NO_ONES_OWN = ("host=", "hostaddr=", "port=", "dbname=", "sslmode=", "sslrootcert=", "options=")


def has_password(url: str) -> bool:
    """Whether a URL holds a password, which every process of the machine can read in an argument."""
    try:
        return urlsplit(url).password is not None or bool(parsed(url).get("password"))
    except ValueError:
        return True


# -- the schema


Step = Callable[["Session", Sequence[Any]], None]
"""What is done with every table while nobody else sees any of it yet."""


class Session:
    """The one transaction in which a schema is made: as the owner, seen by nobody else until it is committed."""

    def __init__(self, connection: psycopg.Connection[Any], name: str) -> None:
        self._connection = connection
        self.name = name

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        """As the rows of any other transaction."""
        return psycopg.RawCursor(self._connection).execute(translated(sql), parameters)

    def read(self, sql: str, params: Sequence[Any] = (), /) -> list[tuple[Any, ...]]:
        """The rows of one query."""
        return cast("list[tuple[Any, ...]]", self.execute(sql, params).fetchall())

    def insert(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add rows to a table."""
        names = ", ".join(f'"{column}"' for column in columns)
        statement = f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"
        psycopg.RawCursor(self._connection).executemany(translated(statement), rows)


def _nothing(_session: Session, _tables: Sequence[Any]) -> None:
    return


def migrate(owner_url: str, role: str, *, fill: Step = _nothing, check: Step = _nothing) -> None:
    """Bring the database to this release's schema, as its owner, and put up the wall for the role that serves.

    All in one transaction, which waits for every change of a server: what fails leaves it as it was. The tables are
    filled before the wall is up, and checked after. Raises DatabaseProblem.
    """
    from server.database import run_migrations
    from server.wall import put_up

    with _session(owner_url) as (server, session, sqlalchemy):
        session.execute(f"SELECT pg_advisory_xact_lock({ALL_ORGS})")
        _require_fit(session, server, role)
        run_migrations(connection=sqlalchemy)
        tables = _tables()
        fill(session, tables)
        ((schema,),) = session.read("SELECT current_schema()")
        known = [(table.name, tuple(table.columns.keys())) for table in tables]
        put_up(session, [*known, ("alembic_version", ())], role=role, schema=str(schema))
        check(session, tables)


class Target:
    """A database that an installation is carried to, as its owner."""

    def __init__(self, owner_url: str, role: str) -> None:
        self._url, self._role = owner_url, role
        self.name = shown(owner_url)

    def occupied(self) -> bool:
        """Whether there is something of Keyleash's in it. Raises DatabaseProblem where it cannot be reached."""
        with contextlib.closing(PostgresDatabase(self._url)) as database:
            return "alembic_version" in database.tables()

    def made(self, fill: Step, check: Step) -> None:
        """Make every table in it, fill them and check them, or leave nothing."""
        migrate(self._url, self._role, fill=fill, check=check)

    def looked_at(self, check: Step) -> None:
        """Check what is there already."""
        with _session(self._url) as (_, session, _):
            check(session, _tables())


def _tables() -> Sequence[Any]:
    """Every table, those that others refer to first."""
    from sqlmodel import SQLModel

    import server.tables
    import vault.tables

    assert server.tables, vault.tables  # noqa: S101 - imported for the tables that they declare
    return SQLModel.metadata.sorted_tables


@contextlib.contextmanager
def _session(owner_url: str) -> Generator[tuple[Server, Session, Any]]:
    """One transaction as the owner, committed at the end of the block; with SQLAlchemy's view of it."""
    from sqlalchemy import create_engine

    server = Server(owner_url)
    connection = server.connect(options=f"-c lock_timeout={LOCK_MS}", autocommit=False, cursor_factory=psycopg.Cursor)
    connection.answer_s = None
    engine = create_engine("postgresql+psycopg://", creator=lambda: connection)
    try:
        with engine.begin() as sqlalchemy:
            yield server, Session(connection, server.name), sqlalchemy
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        raise (server.problem(cause) if isinstance(cause, psycopg.Error) else error) from None
    finally:
        engine.dispose()
        connection.close()


def make(owner_url: str, role: str) -> None:
    """As `migrate`, in a database that holds nothing of Keyleash's yet. Raises DatabaseProblem where it does."""
    with contextlib.closing(PostgresDatabase(owner_url)) as database:
        if "alembic_version" in database.tables():
            raise DatabaseProblem(
                f"There is an installation in {database.name} already; nothing was changed. `keyleash org create NAME` "
                "makes another org in it."
            )
    migrate(owner_url, role)


def wipe(owner_url: str) -> None:
    """Take back what `make` made, with everything in it."""
    reached = Server(owner_url)
    with reached.said(), contextlib.closing(reached.connect()) as connection, connection.transaction():
        connection.execute("SELECT set_config('client_min_messages', 'warning', true)")
        for table in (*(table.name for table in reversed(_tables())), "alembic_version"):
            connection.execute(f'DROP TABLE IF EXISTS "{table}" CASCADE'.encode())
        connection.execute("DROP FUNCTION IF EXISTS keyleash_orgs(), audit_entry_stays(), audit_entry_pruned() CASCADE")


def _require_fit(session: Session, server: Server, role: str) -> None:
    encoding, version, schema = session.execute(
        "SELECT current_setting('server_encoding'), current_setting('server_version_num')::int, current_schema()"
    ).fetchone()
    if encoding != "UTF8":
        raise DatabaseProblem(f"{server.name} keeps text as {encoding}. Make it with `ENCODING 'UTF8'`.")
    if version < OLDEST * 10_000:
        raise DatabaseProblem(f"{server.name} is PostgreSQL {version // 10_000}. Keyleash needs {OLDEST} or newer.")
    if schema is None:
        raise DatabaseProblem(f"{server.name} has no schema that its owner may use: look at its search_path.")
    known = session.read("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = ?", (role,))
    if known == [(True,)]:
        raise DatabaseProblem(
            f"{role} is a superuser or has BYPASSRLS, so no policy holds it. Give another to servers."
        )
    if not known:
        raise DatabaseProblem(
            f"There is no role {role} in PostgreSQL. Make it first (docs/operating.md), or name the one that serves."
        )
    if role == server.role:
        raise DatabaseProblem(
            f"{role} would be both the owner and the role that serves, whom no policy holds then. Give each its own."
        )


OLDEST = 15
"""The first PostgreSQL in which not everybody may create tables in the schema `public`."""
