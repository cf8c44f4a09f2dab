"""What is PostgreSQL's own: several writers, connections that are lost, and a database that is gone."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from psycopg import OperationalError

from server.app import open_installation, running
from server.approval import Decision, State
from server.audit import Event, append, select, verify_database
from server.call import call
from server.database import DatabaseProblem
from server.duty import RolledBack, on_duty
from server.errors import ApprovalRequired
from server.postgres import Connection, PostgresDatabase, as_role, has_password, lock_of, parsed, shown, translated
from server.settings import Settings, SettingsProblem
from server.sqlite import SqliteDatabase
from server.sqlite import migrate as migrate_file
from tests import postgres
from tests.agents import Nobody, decide
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.upstream import Upstream
from tests.written import written

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database_kind() -> str:
    return "postgres"


@pytest.fixture
def serving(place: Place) -> Iterator[PostgresDatabase]:
    database = place.installation.database
    assert isinstance(database, PostgresDatabase)
    yield database.of(place.org)
    database.close()


def note(place: Place, text: str) -> Any:
    return lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by=text)


def noted(place: Place) -> list[str]:
    return [entry["by"] for entry in place.events("audit.listed")]


# -- what is the same on both


def test_both_kinds_have_the_same_tables_columns_and_uniqueness(tmp_path: Path, place: Place) -> None:
    migrate_file(tmp_path / "file.db")
    with contextlib.closing(SqliteDatabase(tmp_path / "file.db")) as file:
        ours = {
            table: file.read('SELECT name, "notnull" FROM pragma_table_info(?) ORDER BY name', (table,))
            for table in file.tables()
        }
        unique = {
            (
                table,
                tuple(name for (name,) in file.read("SELECT name FROM pragma_index_info(?) ORDER BY seqno", (index,))),
            )
            for table in file.tables()
            for index, is_unique in file.read('SELECT name, "unique" FROM pragma_index_list(?)', (table,))
            if is_unique
        }
        unique |= {
            (
                table,
                tuple(
                    name
                    for (name,) in file.read("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,))
                ),
            )
            for table in file.tables()
        }
    theirs = place.database
    assert theirs.tables() == set(ours)
    columns = theirs.read(
        "SELECT table_name, column_name, is_nullable = 'NO' FROM information_schema.columns "
        "WHERE table_schema = current_schema() ORDER BY column_name"
    )
    for table, found in ours.items():
        assert [(name, bool(needed)) for name, needed in found] == [
            (name, needed) for where, name, needed in columns if where == table
        ]
    indexes = theirs.read(
        "SELECT t.relname, ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY k(n, o) "
        "JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.n ORDER BY k.o) "
        "FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid "
        "WHERE i.indisunique AND t.relnamespace = current_schema()::regnamespace"
    )
    assert {(table, tuple(names)) for table, names in indexes} == unique


def test_text_is_compared_and_sorted_by_bytes(place: Place) -> None:
    other = place.database.read(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() "
        "AND data_type = 'character varying' AND collation_name IS DISTINCT FROM 'C'"
    )
    assert other == []


def test_values_come_back_as_from_sqlite(serving: PostgresDatabase) -> None:
    values = (b"\x00\xff", "ü?'%s$1", 2**62, None, -1)
    ((blob, text, big, nothing, small),) = serving.read(
        "SELECT CAST(? AS bytea), CAST(? AS text), CAST(? AS bigint), ?, CAST(? AS integer)", values
    )
    assert (blob, text, big, nothing, small) == values
    assert [type(value) for value in (blob, text, big, small)] == [bytes, str, int, int]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("SELECT 1", b"SELECT 1"),
        ("a = ? AND b IN (?, ?)", b"a = $1 AND b IN ($2, $3)"),
        ("a = '?' AND b = ?", b"a = '?' AND b = $1"),
        ("a = 'it''s ?' AND \"?\" = ?", b"a = 'it''s ?' AND \"?\" = $1"),
        ("a LIKE '%owner%' AND b = ?", b"a LIKE '%owner%' AND b = $1"),
    ],
)
def test_a_question_mark_is_a_value_outside_of_quotes_only(ours: str, theirs: bytes) -> None:
    assert translated(ours) == theirs


# -- one change after another


async def test_changes_that_arrive_together_share_a_commit_and_one_that_raises_undoes_itself_alone(
    place: Place, serving: PostgresDatabase
) -> None:
    def fail(rows: Any) -> None:
        note(place, "lost")(rows)
        raise KeyError("mine")

    def misspelt(rows: Any) -> None:
        note(place, "lost as well")(rows)
        rows.execute("SELECT no_such_column FROM org")

    def idle(_rows: Any) -> None:
        raise KeyError("before anything")

    commits: list[bytes] = []

    class Counted(Connection):
        def execute(self, query: Any, *values: Any, **more: Any) -> Any:
            commits.extend([query] * (query == b"COMMIT"))
            return super().execute(query, *values, **more)

    serving._server.connections = Counted
    changes = [note(place, "first"), fail, note(place, "second"), misspelt, idle, note(place, "third")]
    with place.in_the_way(note(place, "before")):
        waiting = [asyncio.ensure_future(serving.write(change)) for change in changes]
        await asyncio.sleep(0)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result).__name__ for result in results] == [
        "Entry",
        "KeyError",
        "Entry",
        "DatabaseProblem",
        "KeyError",
        "Entry",
    ]
    assert noted(place) == ["before", "first", "second", "third"]
    assert len(commits) <= 2, "they were committed one by one"


async def test_an_org_that_is_held_up_keeps_no_other_waiting(place: Place, serving: PostgresDatabase) -> None:
    other = add_org(place.installation, "globex")
    with place.in_the_way(note(place, "slow")):
        mine = asyncio.ensure_future(serving.write(note(place, "mine")))
        await asyncio.wait_for(place.installation.database.of(other.org).write(note(other, "theirs")), 20)
        assert not mine.done()
        assert (noted(place), noted(other)) == ([], ["theirs"])
    await mine
    assert noted(place) == ["slow", "mine"]


async def test_a_change_to_all_orgs_waits_for_each_and_holds_up_each(place: Place, serving: PostgresDatabase) -> None:
    order: list[str] = []

    def turn(whose: str) -> Any:
        return lambda rows: rows.execute("SELECT 1") and order.append(whose)

    with place.in_the_way(lambda rows: order.append("one org")):
        everything = threading.Thread(target=lambda: place.database.write_now(turn("all orgs")))
        everything.start()
        assert postgres.waited(lambda: waiting_for_locks(place) == 1)
        later = asyncio.ensure_future(serving.write(turn("later")))
        await asyncio.to_thread(postgres.waited, lambda: waiting_for_locks(place) == 2)
        assert order == []
    await asyncio.to_thread(everything.join)
    await later
    assert order == ["one org", "all orgs", "later"]


def waiting_for_locks(place: Place) -> int:
    return int(
        place.database.read(
            "SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )[0][0]
    )


WRITER = """
import sys
from dataclasses import replace
from server.audit import Event, append
from server.postgres import PostgresDatabase
url, org, name, count = sys.argv[1:]
database = PostgresDatabase(url).of(org)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(count)):
    database.write_now(lambda rows: append(rows, org, Event.AUDIT_LISTED, by=name))
"""


def test_two_servers_write_one_chain(place: Place) -> None:
    url = place.installation.settings.database_url
    assert url is not None
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, place.org, name, "60"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    with place.in_the_way(lambda rows: None):  # both wait for their turn before either has written
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert postgres.waited(lambda: waiting_for_locks(place) == 2)
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    entries = list(select(place.database.of(place.org), place.org))
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert verify_database(place.database.of(place.org), place.org).status.value == "intact"
    names = noted(place)
    assert (names.count("one"), names.count("two")) == (60, 60)
    assert names != sorted(names), "they took turns"


async def test_one_approval_is_carried_out_once_by_two_servers(place: Place, upstream: Upstream) -> None:
    refund = {"charge": "ch_1", "amount": 100}
    second = open_installation(place.installation.settings)
    async with running(place.installation) as here, running(second) as there:
        with pytest.raises(ApprovalRequired) as held:
            await call(here, place.caller(), "stripe_create_refund", refund, Nobody())
        decide(place, held.value.approval, Decision.APPROVE)
        calls = [call(parts, place.caller(), "stripe_create_refund", refund, Nobody()) for parts in (here, there) * 4]
        await asyncio.gather(*calls, return_exceptions=True)
    second.close()
    assert len(upstream.requests) == 1
    record = place.installation.approvals.find(place.org, held.value.approval)
    assert record is not None
    assert record.state is State.SUCCEEDED
    assert len(place.events("call.attempt")) == 1


# -- connections that are lost


def end_connections(place: Place) -> None:
    """As when PostgreSQL is started again: every connection of the test's database ends."""
    with postgres.server().superuser() as db:
        db.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = %s AND pid <> pg_backend_pid()",
            (postgres.name_of(place.home),),
        )


async def test_a_connection_that_was_lost_while_nobody_used_it_is_made_anew(
    place: Place, serving: PostgresDatabase
) -> None:
    for _ in range(2):
        await serving.write(note(place, "before"))
        assert serving.read("SELECT 1") == [(1,)]
        end_connections(place)
        assert serving.read("SELECT 1") == [(1,)]
        await serving.write(note(place, "after"))
        end_connections(place)
        assert serving.snapshot(lambda rows: rows.execute("SELECT COUNT(*) FROM org").fetchone()) == (1,)
    assert noted(place) == ["before", "after"] * 2, "and nothing was written twice"


async def test_a_connection_that_is_lost_within_a_change_is_not_tried_again(
    place: Place, serving: PostgresDatabase
) -> None:
    tried = 0

    def change(rows: Any) -> None:
        nonlocal tried
        tried += 1
        note(place, "half")(rows)
        end_connections(place)
        note(place, "other half")(rows)

    for write in (serving.write, lambda change: asyncio.to_thread(serving.write_now, change)):
        with pytest.raises(DatabaseProblem, match="connection was lost"):
            await write(change)
    assert tried == 2
    assert noted(place) == []


async def test_a_commit_whose_answer_is_lost_is_not_said_to_be_kept(place: Place, upstream: Upstream) -> None:
    """The attempt of a call: it may stand in the log, and nothing is sent."""
    from server.errors import Unrecorded

    database = place.installation.database
    assert isinstance(database, PostgresDatabase)
    place.rule(who="everyone", tools=["*"], then="allow")

    class Deaf(Connection):
        def execute(self, query: Any, *values: Any, **more: Any) -> Any:
            found = super().execute(query, *values, **more)
            if query == b"COMMIT":
                self.pgconn.finish()
                raise OperationalError("server closed the connection unexpectedly")
            return found

    async with running(place.installation) as parts:
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
        upstream.requests.clear()
        database.close()
        database._server.connections = Deaf
        with pytest.raises(Unrecorded) as told:
            await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
        database._server.connections = Connection
    assert upstream.requests == []
    assert "sent" in str(told.value)


@pytest.fixture
def own_server() -> Iterator[postgres.Server]:
    server = postgres.Server()
    yield server
    server.remove()


def test_a_database_that_is_gone_is_said_in_words_and_comes_back(own_server: postgres.Server) -> None:
    name = own_server.new_database()
    database = PostgresDatabase(own_server.url(name, postgres.APP))
    assert database.read("SELECT 1") == [(1,)]
    own_server.stop("immediate")
    for act in (lambda: database.read("SELECT 1"), lambda: database.write_now(lambda rows: rows.execute("SELECT 1"))):
        began = time.monotonic()
        with pytest.raises(DatabaseProblem, match="cannot be reached"):
            act()
        assert time.monotonic() - began < 15
    own_server.start()
    assert database.read("SELECT 1") == [(1,)]
    database.close()


def test_a_database_that_does_not_answer_is_given_up_on(serving: PostgresDatabase, place: Place) -> None:
    """Stopped and not ended: its connections stand, and nothing comes back over them."""
    ((backend,),) = serving.read("SELECT pg_backend_pid()")

    patience_s = 30.0

    class Hasty(Connection):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)

        @property
        def answer_s(self) -> float:
            return patience_s

        @answer_s.setter
        def answer_s(self, _seconds: float) -> None:
            return

    serving.close()
    serving._server.connections = Hasty
    ((backend,),) = serving.read("SELECT pg_backend_pid()")
    os.kill(backend, signal.SIGSTOP)
    patience_s = 0.3
    try:
        with pytest.raises(DatabaseProblem, match="connection was lost"):
            serving.query(lambda rows: rows.execute("SELECT 1").fetchall())
    finally:
        os.kill(backend, signal.SIGCONT)
        patience_s = 30.0
    assert serving.read("SELECT 1") == [(1,)]


def test_an_address_where_nobody_listens_is_said_in_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        database = PostgresDatabase(f"postgresql://role:hunter2-canary@127.0.0.1:{port}/keyleash")
        with pytest.raises(DatabaseProblem, match="cannot be reached") as problem:
            database.read("SELECT 1")
    assert "hunter2" not in str(problem.value) + repr(vars(database)) + database.name + repr(problem.value)


# -- the URL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keyleash",
        "mysql://a:hunter2@b/c",
        "postgresql://hunter2",
        "postgresql://a:hunter2@b:port/c",
        "postgresql://a:hunter2@b/c?nonsense=1",
    ],
)
def test_a_url_that_is_not_understood_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsProblem, match="not understood") as problem:
        PostgresDatabase(url)
    assert "hunter2" not in str(problem.value)


@pytest.mark.parametrize(
    ("url", "shown_as"),
    [
        ("postgresql://keyleash_owner@db.example:5433/k", "postgresql://app@db.example:5433/k"),
        (
            "postgresql://o:hunter2@db/k?sslmode=require&sslrootcert=ca",
            "postgresql://app@db/k?sslmode=require&sslrootcert=ca",
        ),
        (
            "postgresql://o@/k?host=/run/pg&password=hunter2&user=o&sslpassword=hunter2",
            "postgresql://app@/k?host=/run/pg",
        ),
    ],
)
def test_a_url_is_named_for_another_role_without_anything_of_the_first_ones(url: str, shown_as: str) -> None:
    assert as_role(url, "app") == shown_as
    assert parsed(as_role(url, "app"))["user"] == "app"


def test_a_password_is_in_no_settings_that_are_shown() -> None:
    url = "postgresql://app:hunter2@db.example.org/keyleash"
    settings = Settings(home=Path("/nowhere"), database_url=url, database_owner=url)
    assert "hunter2" not in repr(settings)
    assert shown(url) == "PostgreSQL database keyleash on db.example.org, as app"
    assert (has_password(url), has_password("postgresql://app@db.example.org/keyleash")) == (True, False)
    assert has_password("postgresql://app@db.example.org/keyleash?password=hunter2")


def test_a_connection_over_a_network_is_encrypted_and_its_server_known_unless_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    far = parsed("postgresql://app@db.example.org/keyleash")
    assert (far["sslmode"], far["sslrootcert"]) == ("verify-full", "system")
    assert parsed("postgresql://app@db.example.org/keyleash?sslmode=disable")["sslmode"] == "disable"
    for near in ("localhost", "127.0.0.1", "[::1]"):
        assert "sslmode" not in parsed(f"postgresql://app@{near}/keyleash")
    assert "sslmode" not in parsed("postgresql://app@/keyleash?host=/run/postgresql")


def test_locks_of_orgs_differ() -> None:
    assert len({lock_of(f"org_{number}") for number in range(1000)}) == 1000


# -- commands


def test_an_installation_is_made_on_postgresql_and_not_twice(keyleash: CommandLine, tmp_path: Path) -> None:
    ran = keyleash("init", "--org", "acme", "--root", "file")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "home" / "data" / "keyleash.db").exists()
    assert keyleash("org", "list", "--json").json[0]["name"] == "acme"
    assert keyleash("doctor").code == 0, keyleash("doctor").err
    again = keyleash("init", "--org", "other", "--root", "file")
    assert (again.code, "already" in again.err) == (1, True)
    shown = keyleash("database", "status", "--json").json
    assert (shown["kind"], shown["role"], shown["faults"]) == ("postgresql", "keyleash_app", [])


def test_what_the_readme_says_makes_the_roles_and_the_database(tmp_path: Path) -> None:
    statements = written().split("```sql\n")[1].split("```")[0]
    bare = postgres.Server(roles="")
    person = tmp_path / "person"
    person.mkdir()
    try:
        with bare.superuser() as db:
            for statement in statements.strip().splitlines():
                db.execute(statement.encode())
        owner, app = (bare.url("keyleash", role) for role in (postgres.OWNER, postgres.APP))
        line = CommandLine(tmp_path / "home", person, {"KEYLEASH_DATABASE": app, "KEYLEASH_DATABASE_OWNER": owner})
        assert line("init", "--org", "acme", "--root", "file").code == 0
        assert line("database", "status", "--json").json["faults"] == []
        assert line("doctor").code == 0
    finally:
        bare.remove()


def test_an_init_that_fails_leaves_no_table(keyleash: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("something else")
    ran = keyleash("init", "--org", "acme", "--root", f"file:{tmp_path / 'there'}")
    assert ran.code == 1
    with postgres.server().superuser(postgres.name_of(tmp_path / "home")) as db:
        assert db.execute("SELECT COUNT(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace").fetchone() == (
            0,
        )
        assert db.execute("SELECT COUNT(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").fetchone() == (0,)
    assert keyleash("init", "--org", "acme", "--root", "file").code == 0


def test_what_is_the_operators_says_that_it_takes_the_owner(owner: CommandLine, place: Place) -> None:
    url = place.installation.settings.database_url
    assert url is not None
    served = CommandLine(owner.home, owner.person, {"KEYLEASH_DATABASE": url, "KEYLEASH_DATABASE_OWNER": ""})
    for command in (("org", "create", "more"), ("vault", "rotate-root", "--yes"), ("vault", "status")):
        ran = served(*command)
        assert (ran.code, "KEYLEASH_DATABASE_OWNER" in ran.err, "Traceback" in ran.err) == (1, True, False)
    for command in (("org", "list"), ("connection", "list"), ("approvals", "list"), ("audit", "verify"), ("doctor",)):
        assert served(*command).code == 0, command
    only = CommandLine(owner.home, owner.person, {"KEYLEASH_DATABASE": ""})
    ran = only("org", "list")
    assert (ran.code, "KEYLEASH_DATABASE is not" in ran.err) == (1, True)


# -- a further server


def further(owner: CommandLine, place: Place, tmp_path: Path) -> tuple[CommandLine, Path]:
    """Another machine: an empty home with the same database, and no way to the first one's files; and its key."""
    settings, key = place.installation.settings, tmp_path / "carried" / "root.key"
    assert settings.database_url is not None
    assert settings.database_owner is not None
    environ = {"KEYLEASH_DATABASE": settings.database_url, "KEYLEASH_DATABASE_OWNER": settings.database_owner}
    (place.home / "keys").rename(key.parent)
    return CommandLine(tmp_path / "second", owner.person, {**owner.environ, **environ}), key


def root_row(place: Place) -> list[tuple[Any, ...]]:
    return place.database.read("SELECT provider, location FROM vault_root")


def test_a_further_server_starts_with_an_empty_home_and_makes_the_folders_that_it_needs(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    second, _ = further(owner, place, tmp_path)
    settings = replace(place.installation.settings, home=second.home)
    with on_duty(place.installation.database, settings):
        assert [(second.home / name).stat().st_mode & 0o777 for name in ("", "data")] == [0o700, 0o700]
    with (
        pytest.raises(DatabaseProblem),
        on_duty(place.database, replace(settings, home=tmp_path / "3", database_url=None)),
    ):
        raise AssertionError("a folder was made for a file that nobody has begun")


def test_a_further_server_opens_the_vault_once_the_key_file_is_copied_and_doctor_says_how(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    def root_key(line: CommandLine) -> dict[str, Any]:
        return next(one for one in line("doctor", "--json").json if one["check"] == "root key")

    second, key = further(owner, place, tmp_path)
    assert root_key(second)["status"] == "fail"
    copied = second.home / "keys" / "root.key"
    assert f"copy that file from one that has it to {copied} (mode 0600" in root_key(second)["message"]
    copied.parent.mkdir(mode=0o700, parents=True)
    copied.write_bytes(key.read_bytes())
    copied.chmod(0o600)
    assert root_key(second)["status"] == "ok"
    assert second("vault", "status", "--json").json["sealed"] is False


def test_a_root_key_is_recovered_for_this_server_alone_unless_somebody_agrees_for_all(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    recovery, passphrase = str(tmp_path / "recovery.json"), b"six words drawn by chance alone"
    assert owner("vault", "export-recovery", recovery, "--passphrase-stdin", stdin=passphrase).code == 0
    second, _ = further(owner, place, tmp_path)
    before = root_row(place)
    command = ("vault", "restore", "--recovery", recovery, "--passphrase-stdin", "--root")
    other = tmp_path / "other.key"
    refused = second.alone(*command, f"file:{other}", stdin=passphrase)
    assert refused.code == 1
    assert "this changes where they look for the root key" in refused.err
    assert not other.exists()
    ran = second.alone(*command, "file", stdin=passphrase)
    assert ran.code == 0, ran.err
    assert root_row(place) == before
    assert second("vault", "status", "--json").json["sealed"] is False
    assert len(place.events("vault.root_recovered")) == 1
    assert second.alone(*command, f"file:{other}", "--yes", stdin=passphrase).code == 0
    assert root_row(place) == [("file", str(other))]


def test_a_backup_is_pg_dumps_and_nothing_is_half_done(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    for command in (("vault", "backup", str(tmp_path / "b.db")), ("vault", "restore", str(tmp_path / "b.db"), "--yes")):
        ran = owner(*command)
        assert (ran.code, "pg_dump --enable-row-security" in ran.err) == (1, True)
    assert not (tmp_path / "b.db").exists()
    assert place.events("vault.backed_up") == []


def test_what_pg_dump_keeps_is_brought_back_by_pg_restore(place: Place, tmp_path: Path) -> None:
    assert place.installation.settings.database_owner is not None
    dump = tmp_path / "dump"
    postgres.run("pg_dump", "--enable-row-security", "-Fc", "-f", str(dump), place.installation.settings.database_owner)
    name = postgres.server().new_database()
    owner, app = (postgres.server().url(name, role) for role in (postgres.OWNER, postgres.APP))
    postgres.run("pg_restore", "--no-owner", "-d", owner, str(dump))
    again = open_installation(replace(place.installation.settings, database_url=app, database_owner=owner))
    brought = Place(again, place.org, place.owner, place.tokens)
    assert brought.events() == place.events()
    assert again.database.faults() == []
    assert brought.caller().agent_name == "reconciler"
    again.close()
    brought.database.close()
    postgres.server().drop(name)


def test_a_database_that_was_rolled_back_is_not_served(place: Place) -> None:
    database, settings = place.installation.database, place.installation.settings
    with on_duty(database, settings):
        place.database.of(place.org).write_now(note(place, "later"))
    place.unlock_the_log()
    place.database.write_now(lambda rows: rows.execute("DELETE FROM audit_entry WHERE event = 'audit.listed'"))
    with pytest.raises(RolledBack, match="1 entry behind"), on_duty(database, settings):
        raise AssertionError("it was served")


async def test_a_removed_secret_is_deleted_and_what_is_excluded_is_on_record(place: Place, owner: CommandLine) -> None:
    assert owner("connection", "remove", "stripe", "--yes").code == 0
    assert place.database.read("SELECT COUNT(*) FROM vault_field") == [(0,)]
    (entry,) = place.events("erasure.completed")
    assert "PostgreSQL" in entry["excluded"]
