"""Rows are durable when the writer is told so; a bad write spoils no other; an unknown schema is refused."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import server.tables
import vault.tables
from server.database import SCHEMA, DatabaseProblem, require_schema
from server.sqlite import SqliteDatabase, backup, migrate

pytestmark = pytest.mark.sqlite_only("it is about SQLite's file")

assert server.tables, vault.tables


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "keyleash.db"
    migrate(path)
    return path


def add(rows: Any, name: str) -> None:
    rows.execute(
        "INSERT INTO org (id, name, preset, revision, created_at) VALUES (?, ?, 'default', 1, 0)", (name, name)
    )


@pytest.mark.anyio
async def test_writes_that_come_together_share_a_commit_and_a_bad_one_spoils_no_other(path: Path) -> None:
    database = SqliteDatabase(path)
    problems: list[Exception] = []

    async def write(name: str) -> None:
        try:
            await database.write(lambda rows: add(rows, name))
        except DatabaseProblem as problem:
            problems.append(problem)

    async with anyio.create_task_group() as group:
        for name in ["a", "b", "a", "c"]:
            group.start_soon(write, name)
    assert [row[0] for row in database.read("SELECT id FROM org ORDER BY id")] == ["a", "b", "c"]
    assert len(problems) == 1
    database.close()


@pytest.mark.anyio
async def test_a_commit_that_fails_fails_every_writer_and_leaves_nothing(path: Path) -> None:
    database = SqliteDatabase(path)
    await database.write(lambda rows: add(rows, "before"))
    writer = database._writer
    assert writer is not None

    def refuse(action: int, *_: Any) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION and _[0] == "COMMIT" else sqlite3.SQLITE_OK

    writer.set_authorizer(refuse)
    problems = []
    for name in ["x", "y"]:
        with pytest.raises(DatabaseProblem) as problem:
            await database.write(lambda rows, name=name: add(rows, name))
        problems.append(problem)
    writer.set_authorizer(None)
    await database.write(lambda rows: add(rows, "after"))
    assert [row[0] for row in database.read("SELECT id FROM org ORDER BY id")] == ["after", "before"]
    database.close()


class Panic(BaseException):
    """What a library written in Rust raises where it gives up."""


@pytest.mark.anyio
@pytest.mark.parametrize("raised", [Panic, StopIteration, KeyError])
async def test_whatever_a_change_raises_no_writer_waits_for_ever(path: Path, raised: type[BaseException]) -> None:
    database = SqliteDatabase(path)

    def bad(rows: Any) -> None:
        add(rows, "bad")
        raise raised

    with anyio.fail_after(20):
        with pytest.raises((DatabaseProblem, KeyError)):
            await database.write(bad)
        await database.write(lambda rows: add(rows, "good"))
    assert database.read("SELECT id FROM org") == [("good",)]
    database.close()


@pytest.mark.anyio
async def test_another_process_that_writes_is_waited_for(path: Path) -> None:
    database = SqliteDatabase(path)
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as group:
        group.start_soon(database.write, lambda rows: add(rows, "mine"))
        await anyio.wait_all_tasks_blocked()
        assert database.read("SELECT COUNT(*) FROM org") == [(0,)]
        other.execute("COMMIT")
    assert database.read("SELECT COUNT(*) FROM org") == [(1,)]
    other.close()
    database.close()


def test_a_database_is_for_its_owner_only_and_never_half_synchronous(path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0
    database = SqliteDatabase(path)
    assert database.read("PRAGMA synchronous") == [(2,)]
    assert database.read("PRAGMA journal_mode") == [("wal",)]
    assert database.read("PRAGMA secure_delete") == [(1,)]
    database.close()


def test_the_log_can_be_added_to_and_nothing_else(path: Path) -> None:
    database = SqliteDatabase(path)
    row = ("o", 1, 0, "e", "{}", "0", "0")
    sql = "INSERT INTO audit_entry (org, seq, at, event, body, previous, hash) VALUES (?, ?, ?, ?, ?, ?, ?)"
    database.write_now(lambda rows: rows.execute(sql, row))
    for change in ("UPDATE audit_entry SET body = 'x'", "DELETE FROM audit_entry"):
        with pytest.raises(DatabaseProblem, match="append-only"):
            database.write_now(lambda rows, change=change: rows.execute(change))
    assert database.read("SELECT body FROM audit_entry") == [("{}",)]
    database.close()


def test_the_tables_and_the_migrations_agree(path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []
    engine.dispose()


def test_a_migration_leaves_no_second_copy_of_a_wrapped_key_that_it_moves(tmp_path: Path) -> None:
    path, key = tmp_path / "keyleash.db", os.urandom(113)
    config = Config()
    config.set_main_option("script_location", "server/migrations")
    config.attributes["path"] = path
    command.upgrade(config, "0001")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("INSERT INTO vault_root VALUES (1, 'file', '/x', ?, ?, 0)", (key, os.urandom(113)))
    migrate(path)
    assert path.read_bytes().count(key) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["keyleash.db"]


def test_this_release_was_written_for_the_newest_migration() -> None:
    assert ScriptDirectory("server/migrations").get_current_head() == SCHEMA


@pytest.mark.parametrize(("found", "mend"), [("0000", "keyleash upgrade"), ("9999", "newer release")])
def test_a_schema_that_is_not_known_is_refused_with_what_to_do(path: Path, found: str, mend: str) -> None:
    database = SqliteDatabase(path)
    database.write_now(lambda rows: rows.execute("UPDATE alembic_version SET version_num = ?", (found,)))
    with pytest.raises(DatabaseProblem, match=mend):
        require_schema(database)
    database.close()


def test_where_there_is_no_database_it_says_init(tmp_path: Path) -> None:
    with pytest.raises(DatabaseProblem, match="keyleash init"):
        require_schema(SqliteDatabase(tmp_path / "nothing.db"))
    assert not (tmp_path / "nothing.db").exists()


def test_a_backup_is_whole_private_and_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    database = SqliteDatabase(path)
    database.write_now(lambda rows: add(rows, "kept"))
    backup(path, tmp_path / "backups" / "copy.db")
    copy = SqliteDatabase(tmp_path / "backups" / "copy.db")
    assert copy.read("SELECT id FROM org") == [("kept",)]
    assert (tmp_path / "backups" / "copy.db").stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        backup(path, tmp_path / "backups" / "copy.db")
    copy.close()
    database.close()


def test_a_database_that_cannot_be_opened_is_let_go_of_at_once(path: Path) -> None:
    """A connection left open would hold its files until the error is collected, and end its journal at that time."""
    path.write_text("broken" * 1000)
    path.with_name(f"{path.name}-wal").write_text("an old journal")
    with pytest.raises(DatabaseProblem, match="damaged") as kept:
        SqliteDatabase(path).read("SELECT 1")
    held = [link.resolve() for link in Path("/proc/self/fd").iterdir()] if Path("/proc/self/fd").exists() else []
    assert [name for name in held if name.parent == path.parent] == []
    assert kept.value
