"""What every room needs of a database: rows that are durable when you are told so, and an org's kept to that org.

SQLite (`server/sqlite.py`) is the default; PostgreSQL (`server/postgres.py`) is for several servers at once, and keeps
orgs apart itself. The same SQL runs on both: `?` for values, which are always bound, and nothing that only one knows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio

    from server.settings import Settings

T = TypeVar("T")

SCHEMA = "0014"
"""The migration this code was written for; a test holds it to the newest one in `migrations/versions`."""

PATIENCE_S = 2.0
"""How long an erasure waits for readers, where the caller does not say."""

NO_TABLES = "this holds no Keyleash tables. Run `keyleash init`, or `keyleash upgrade`."


class Rows(Protocol):
    """What a room sees of a transaction; rows come back as tuples."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any: ...


class DatabaseProblem(Exception):
    """The database cannot be used; the message says what to do."""


class Database(ABC):
    """Everything that an installation keeps. Changes to one org's rows happen one after another, in every process."""

    name: str
    """Which one, in words for a person; without a password."""

    files: bool = True
    """Whether `erase` can tell what is left in the database's files."""

    @abstractmethod
    def of(self, org: str) -> "Database":
        """The same database, for the rows of one org and no other's: where a second wall keeps orgs apart, it is told.

        What is asked without it is the operator's, and may concern every org.
        """

    @abstractmethod
    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query at once, outside any transaction. Raises DatabaseProblem."""

    @abstractmethod
    def query(self, read: Callable[[Rows], T]) -> T:
        """Hand out rows for one query; several would each see another state. Raises DatabaseProblem."""

    @abstractmethod
    def snapshot(self, read: Callable[[Rows], T]) -> T:
        """Run several queries over one unchanging state. Raises DatabaseProblem."""

    @abstractmethod
    async def write(self, change: Callable[[Rows], T]) -> T:
        """Run `change` in a transaction; returns once its rows are durable.

        `change` may run beside others in one commit, inside a savepoint of its own: what it raises undoes only its own
        rows and is raised here. A commit that fails undoes all and raises DatabaseProblem in each. It may run on
        another thread.
        """

    @abstractmethod
    def write_now(self, change: Callable[[Rows], T]) -> T:
        """Like `write`, for code without an event loop: one transaction of its own."""

    @abstractmethod
    def erase(self, tables: Sequence[str], *, patience_s: float = PATIENCE_S) -> bool:
        """Whether nothing of what was deleted from `tables` before now is left in the database's files.

        False while some process reads an older state, which stands in the write-ahead log: nothing was lost, ask again
        later. Where `files` is False it is True, and says only that nothing more can be done. Raises DatabaseProblem.
        """

    @abstractmethod
    def orgs(self) -> list[str]:
        """The id of every org that is here or was removed, and nothing else about them."""

    @abstractmethod
    def tables(self) -> set[str]:
        """The name of every table."""

    def faults(self) -> list[str]:
        """Why orgs are not kept apart as they should be, where the database is to do that; one sentence each."""
        return []

    def serves_as_owner(self) -> str | None:
        """What to name instead, where it is opened as its owner, whom nothing would keep to one org."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close every connection of this process."""


def tell(done: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    """Tell whoever waits for a change what came of it, where they still wait."""
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def open_database(settings: "Settings", *, as_operator: bool = False) -> Database:
    """The database that the settings name; on PostgreSQL as the role that serves, or as its owner. Raises
    DatabaseProblem."""
    if settings.database_url is None:
        from server.sqlite import SqliteDatabase

        return SqliteDatabase(settings.database)
    from server.postgres import PostgresDatabase

    return PostgresDatabase(settings.owner_url if as_operator else settings.database_url)


def schema_of(database: Database) -> str | None:
    """The migration that the database stands at, or None where it has no tables yet."""
    try:
        rows = database.read("SELECT version_num FROM alembic_version")
    except DatabaseProblem as problem:
        if "no Keyleash tables" in str(problem):
            return None
        raise
    return str(rows[0][0]) if rows else None


def require_schema(database: Database) -> None:
    """Refuse a database that this release does not know."""
    found = schema_of(database)
    if found == SCHEMA:
        return
    if found is None:
        raise DatabaseProblem(f"{database.name} is a database, and none of Keyleash's. Move it away first.")
    if found < SCHEMA:
        raise DatabaseProblem(
            f"The database is at schema {found}, this release needs {SCHEMA}. "
            "Run `keyleash upgrade` (it makes a backup)."
        )
    raise DatabaseProblem(
        f"The database is at schema {found}, which is newer than this release knows ({SCHEMA}). "
        "Install the newer release of Keyleash, or restore the backup that `keyleash upgrade` made."
    )


def run_migrations(**where: Any) -> None:
    """Bring the database that `path` or `connection` names to this release's schema."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes.update(where)
    command.upgrade(config, "head")
