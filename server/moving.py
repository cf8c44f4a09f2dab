"""Carry an SQLite installation over to PostgreSQL: all of it, read back row by row, or none of it.

Everything on the other side happens in one transaction, so that whatever ends it early leaves nothing there. The file
here is only read; at the end it is marked, so that no server starts on it by mistake.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from server.audit import AuditError, Event, Status, append, verify_database
from server.audit.noted import NotedHeads
from server.clock import iso, now_ms
from server.copies import Watch, unwatched
from server.database import Database, DatabaseProblem, Rows, require_schema
from server.duty import require_current
from server.locks import exclusive
from server.settings import Settings
from server.sqlite import MOVED, SqliteDatabase
from vault import Vault

if TYPE_CHECKING:
    from server.postgres import Session

PAGE = 1000
"""Rows that are carried or compared at once."""


@dataclass(frozen=True)
class Table:
    """One table as it was carried over and read back. `sha256` is of its rows, in the order of their keys."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Moved:
    """What a move came to. `resumed`: all of it was there already, from a move that was cut off at its very end."""

    to: str
    tables: tuple[Table, ...]
    logs: int
    opened: int
    resumed: bool


def move(settings: Settings, vault: Vault, *, to: str, role: str, by: str, watch: Watch = unwatched) -> Moved:
    """Carry the installation over to the database that `to` names as its owner. Raises DatabaseProblem or AuditError.

    It is on record in every org's log before anything is copied, so that both sides hold the same log.
    """
    from server.postgres import Target, as_role, has_password, shown

    if settings.database_url is not None:
        raise DatabaseProblem("This installation is on PostgreSQL already: unset KEYLEASH_DATABASE to move a file.")
    if has_password(to):
        raise DatabaseProblem(
            "The URL holds a password, which every process of this machine can read in an argument. Put it into "
            "~/.pgpass or PGPASSWORD, and leave it out of the URL. Nothing was changed."
        )
    with exclusive(settings.serving_lock), contextlib.closing(SqliteDatabase(settings.database)) as here:
        require_schema(here)
        require_current(here, settings)
        _require_whole(here, watch)
        target = Target(to, role)
        there_before = target.occupied()
        if not there_before:
            here.write_now(lambda rows: _record(rows, target.name, by=by))
        try:
            done = _carried(here, vault, target, watch, resumed=there_before)
        except BaseException as error:
            if not there_before:
                with contextlib.suppress(AuditError, DatabaseProblem):  # what went wrong first is what is told
                    why = type(error).__name__
                    here.write_now(lambda rows: _record(rows, target.name, by=by, failed=why))
            raise
        serves = as_role(to, role)
        here.write_now(lambda rows: _mark(rows, f"{serves} ({shown(serves)})"))
        NotedHeads(settings.noted_heads).note(here)
    return done


def go_back(settings: Settings) -> None:
    """Take the mark off again: the file is what serves, without anything that was recorded on PostgreSQL since."""
    with exclusive(settings.serving_lock), contextlib.closing(SqliteDatabase(settings.database)) as here:
        if MOVED not in here.tables():
            raise DatabaseProblem(f"{here.name} was not moved. Nothing was changed.")
        here.write_now(lambda rows: rows.execute(f"DROP TABLE {MOVED}"))


def _carried(here: SqliteDatabase, vault: Vault, target: Any, watch: Watch, *, resumed: bool) -> Moved:
    found: list[Table] = []
    counted = [0, 0]

    def fill(session: "Session", tables: Sequence[Any]) -> None:
        for table in tables:
            _copy(here, session, table, watch)

    def check(session: "Session", tables: Sequence[Any]) -> None:
        found.extend(_compared(here, session, table, watch) for table in tables)
        counted[0] = _verified(session, watch)
        counted[1] = _opened(session, vault)

    if resumed:
        target.looked_at(check)
    else:
        target.made(fill, check)
    return Moved(target.name, tuple(found), counted[0], counted[1], resumed)


def _require_whole(here: Database, watch: Watch) -> None:
    """Refuse to carry over a log that is not what was written: the move would only hide when that happened."""
    with watch("Verifying the logs here", None):
        for org in here.orgs():
            report = verify_database(here, org)
            if report.status is not Status.INTACT:
                raise DatabaseProblem(
                    f"The log of {org} is not whole: {report.problem}. Nothing was moved. Look at `keyleash audit "
                    "verify` first."
                )


def _record(rows: Rows, to: str, *, by: str, failed: str | None = None) -> None:
    for (org,) in rows.execute("SELECT id FROM org ORDER BY id").fetchall():
        append(rows, org, Event.DATABASE_MOVED, to=to, failed=failed, by=by, known_by="the root key")


def _mark(rows: Rows, to: str) -> None:
    rows.execute(f"CREATE TABLE {MOVED} (name TEXT NOT NULL, at TEXT NOT NULL)")
    rows.execute(f"INSERT INTO {MOVED} (name, at) VALUES (?, ?)", (to, iso(now_ms())))


def _copy(here: SqliteDatabase, session: "Session", table: Any, watch: Watch) -> None:
    names = [column.name for column in table.columns]
    ((total,),) = here.read(f"SELECT COUNT(*) FROM {table.name}")
    done = 0
    with watch(f"Copying {table.name}", total) as report:
        for page in _pages(here.read, table):
            session.insert(table.name, names, [_typed(table, row) for row in page])
            done += len(page)
            report(done)


def _typed(table: Any, row: Sequence[Any]) -> list[Any]:
    """SQLite keeps a yes as 1; PostgreSQL takes it as a boolean only."""
    return [
        bool(value) if value is not None and column.type.python_type is bool else value
        for column, value in zip(table.columns, row, strict=True)
    ]


def _compared(here: SqliteDatabase, session: "Session", table: Any, watch: Watch) -> Table:
    """Read every row of both back. Raises DatabaseProblem at the first that differs."""
    digest, count = hashlib.sha256(), 0
    rows = ((row for page in _pages(read, table) for row in page) for read in (here.read, session.read))
    with watch(f"Comparing {table.name}", None) as report:
        for ours, theirs in zip_longest(*rows):
            if ours is None or theirs is None or list(ours) != list(theirs):
                raise DatabaseProblem(
                    f"Row {count + 1} of {table.name} is not the same in {session.name} as here. Nothing was moved: if "
                    "there is another installation in it, give an empty database; if it is what an earlier move left, "
                    "before `--undo`: drop the database and create it again."
                )
            digest.update(repr([_plain(value) for value in ours]).encode("utf-8", "surrogatepass") + b"\n")
            count += 1
            report(count)
    return Table(table.name, count, digest.hexdigest())


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _pages(read: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]], table: Any) -> Iterator[list[tuple[Any, ...]]]:
    """A table in pages, in the order of its key: by bytes, on both sides."""
    names = [column.name for column in table.columns]
    key = [column.name for column in table.primary_key.columns]
    quoted = ", ".join(f'"{name}"' for name in names)
    order = ", ".join(f'"{name}"' for name in key)
    places = [names.index(name) for name in key]
    after, values = "", ()
    while True:
        page = read(f"SELECT {quoted} FROM {table.name} {after} ORDER BY {order} LIMIT {PAGE}", values)
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = f"WHERE ({order}) > ({', '.join('?' * len(key))})"
        values = tuple(page[-1][place] for place in places)


def _verified(session: "Session", watch: Watch) -> int:
    orgs = [str(org) for (org,) in session.read("SELECT DISTINCT org FROM audit_entry ORDER BY org", ())]
    with watch("Verifying the logs there", len(orgs)) as report:
        for done, org in enumerate(orgs, 1):
            found = verify_database(session, org)
            if found.status is not Status.INTACT:
                raise DatabaseProblem(f"The log of {org} does not verify in {session.name}: {found.problem}.")
            report(done)
    return len(orgs)


def _opened(session: "Session", vault: Vault) -> int:
    """Derive with every org's key, as it was copied: what is sealed for it opens there. Raises VaultError."""
    orgs = [str(org) for (org,) in session.read("SELECT id FROM org ORDER BY id", ())]
    for org in orgs:
        vault.fetch(vault.wanted(session, org))
        vault.derive(session, org, "audit-values")
    return len(orgs)
