"""What was removed is gone from every file; where it cannot go yet, that is known, and it goes later by itself."""

import os
import random
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import SQLModel

import server.tables
import vault.tables
from server.app import open_installation, running
from server.connections import Connection, ConnectionProblem, connection_named, connections_of, open_credential, remove
from server.erasure import SEALED, _done, attempt, pending, request, retrying
from server.sqlite import SqliteDatabase, backup
from tests.commandline import CommandLine
from tests.installed import Place, add_org, make
from tests.processes import holding, killed_before
from tests.remnants import remnants, sealed_of
from vault import Vault

pytestmark = pytest.mark.sqlite_only("it is about SQLite's file")

assert server.tables, vault.tables

AT_ONCE = 0.0
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where hundreds of databases are made: their many commits would keep a disk busy for minutes."""


def stripe(place: Place, name: str = "stripe") -> Connection:
    return connection_named(place.database, place.org, name)


def removed(place: Place, name: str = "stripe") -> list[bytes]:
    """Remove a connection; returns what was sealed for it."""
    installation = place.installation
    connection = stripe(place, name)
    sealed = sealed_of(installation.database, place.org, connection.id)
    assert remnants(place.home, sealed) != []
    installation.database.write_now(lambda rows: remove(rows, installation.vault, connection, by="alice"))
    return sealed


# -- the finder


@given(
    blob=st.binary(min_size=97, max_size=97),
    start=st.integers(8, 81),
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
)
def test_the_finder_finds_any_sixteen_bytes_in_a_row_wherever_they_lie(
    blob: bytes, start: int, before: bytes, after: bytes
) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        (Path(folder) / "file").write_bytes(before + blob[start : start + 16] + after)
        assert len(remnants(Path(folder), [blob])) == 1
        (Path(folder) / "file").write_bytes(b"\xff" * 100)
        assert remnants(Path(folder), [b"\x00" * 97]) == []


# -- what is left in a file


class History:
    """Connections of three orgs that come, get new versions and go, in a database of their own."""

    def __init__(self, place: Place, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.alive: list[str] = []
        self.gone: list[bytes] = []
        self.made = 0

    @property
    def vault(self) -> Vault:
        return self.place.installation.vault

    def put(self, rows: Any) -> None:
        again = self.alive and self.chance.random() < 0.4
        connection = self.chance.choice(self.alive) if again else f"con_{self.made:016d}"
        if not again:
            self.made += 1
            self.alive.append(connection)
        secret = "x" * self.chance.randrange(8, 1400)
        fields = {"secret": secret, **({"user": "someone"} if self.chance.random() < 0.2 else {})}
        self.vault.put(
            rows, org=self.place.org, connection=connection, fields=fields, origin="https://api.test", scheme="bearer"
        )

    def drop(self, rows: Any) -> None:
        for connection in self.chance.sample(self.alive, min(len(self.alive), self.chance.randint(1, 4))):
            for table, column in (("vault_field", "sealed"), ("vault_credential", "data_key")):
                found = rows.execute(f"SELECT {column} FROM {table} WHERE connection = ?", (connection,)).fetchall()
                self.gone += [blob for (blob,) in found]
            self.vault.remove(rows, org=self.place.org, connection=connection)
            request(rows, self.place.org, connection, "connection", connection)
            self.alive.remove(connection)

    def run(self) -> None:
        database = self.place.database
        database.write_now(lambda rows: [self.put(rows) for _ in range(self.chance.randint(60, 110))])
        for _ in range(4):
            database.write_now(self.some)
        database.write_now(self.drop)

    def some(self, rows: Any) -> None:
        for _ in range(10):
            if self.chance.random() < 0.65:
                self.drop(rows)
            else:
                for _ in range(self.chance.randint(1, 4)):
                    self.put(rows)


@pytest.mark.slow
@settings(
    max_examples=200 if os.environ.get("KEYLEASH_PROOFS") else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**64))
def test_no_piece_of_what_was_removed_is_left_whatever_happened_before(seed: int) -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = make(Path(folder) / "home")
        history = History(place, random.Random(seed))
        history.run()
        database = place.database
        kept = database.read("SELECT * FROM vault_field ORDER BY rowid")
        assert attempt(database) == []
        assert remnants(place.home, history.gone) == []
        assert database.read("SELECT * FROM vault_field ORDER BY rowid") == kept
        place.installation.close()


def test_every_table_of_the_vault_is_written_anew() -> None:
    tables = {name for name in SQLModel.metadata.tables if name.startswith("vault_")}
    assert set(SEALED) == tables


def test_a_removed_connection_leaves_nothing_and_is_on_record(place: Place) -> None:
    sealed = removed(place)
    (waiting,) = pending(place.database)
    assert (waiting.org, waiting.what, waiting.name) == (place.org, "connection", "stripe")
    assert place.events("erasure.completed") == []
    assert attempt(place.database) == []
    assert remnants(place.home, sealed) == []
    (entry,) = place.events("erasure.completed")
    assert (entry["connection"], entry["erased"], entry["id"]) == ("stripe", "connection", waiting.id)
    assert place.events()[-2]["event"] == "connection.removed"


def test_who_removes_it_second_is_told_and_changes_nothing(place: Place) -> None:
    installation = place.installation
    connection = stripe(place)
    removed(place)
    before = place.events()
    with pytest.raises(ConnectionProblem, match="meanwhile"):
        installation.database.write_now(lambda rows: remove(rows, installation.vault, connection, by="bob"))
    assert place.events() == before
    assert len(pending(installation.database)) == 1


def test_what_stays_opens_as_before(place: Place) -> None:
    installation = place.installation
    kept = place.connect("http://127.0.0.1:9", name="kept", secret="rk_test_of_another")
    removed(place)
    assert attempt(installation.database) == []
    fresh = open_installation(installation.settings)
    secret = fresh.database.query(lambda rows: open_credential(rows, fresh.vault, kept))
    assert secret.reveal("secret") == "rk_test_of_another"
    fresh.close()


# -- other processes


def test_while_another_process_reads_an_older_state_it_is_pending_and_later_gone(place: Place) -> None:
    database = place.database
    with holding(database.path) as let_go:
        sealed = removed(place)
        (waiting,) = attempt(database, patience_s=AT_ONCE)
        assert waiting.name == "stripe"
        assert pending(database) == [waiting]
        assert remnants(place.home, sealed) != []
        assert place.events("erasure.completed") == []
        let_go()
        assert attempt(database, patience_s=AT_ONCE) == []
        assert remnants(place.home, sealed) == []
    assert len(place.events("erasure.completed")) == 1


def test_trying_in_vain_writes_nothing(place: Place) -> None:
    """Or each try would make the log longer that the reader keeps from being cut."""
    database = place.database
    log = database.path.with_name(database.path.name + "-wal")
    with holding(database.path):
        removed(place)
        attempt(database, patience_s=AT_ONCE)
        before = log.stat().st_size
        for _ in range(3):
            assert len(attempt(database, patience_s=AT_ONCE)) == 1
        assert log.stat().st_size == before


def test_a_process_that_has_the_database_open_and_reads_nothing_holds_nothing_up(place: Place) -> None:
    with holding(place.database.path) as let_go:
        let_go()
        sealed = removed(place)
        assert attempt(place.database, patience_s=AT_ONCE) == []
        assert remnants(place.home, sealed) == []


def test_a_process_that_is_writing_is_waited_for_within_bounds(place: Place) -> None:
    database = place.database
    sealed = removed(place)
    with holding(database.path, "BEGIN IMMEDIATE") as let_go:
        assert not database.erase(SEALED, patience_s=AT_ONCE)
        let_go()
        assert database.erase(SEALED, patience_s=AT_ONCE)
    assert remnants(place.home, sealed) == []


def test_waiting_lets_others_write(place: Place) -> None:
    """A checkpoint that waits for a reader would hold the write lock all the while."""
    database = place.database
    removed(place)
    with holding(database.path) as let_go:
        trying = threading.Thread(target=attempt, args=(database,), kwargs={"patience_s": 30})
        trying.start()
        for number in range(20):
            database.write_now(lambda rows, number=number: request(rows, place.org, str(number), "key", "some"))
        assert trying.is_alive()
        let_go()
        trying.join(30)
    assert place.events("erasure.completed"), "and whatever else was on the list when it began to wait"


def test_a_reader_that_begins_meanwhile_leaves_it_pending(place: Place) -> None:
    """Between writing anew and the last look at the log; the first look has found nobody."""
    database = place.database
    sealed = removed(place)
    opened: list[Any] = []

    class Met(SqliteDatabase):
        def _connect(self) -> Any:
            connection = super()._connect()

            def meet(statement: str) -> None:
                if statement == "COMMIT" and not opened:
                    opened.append(holding(database.path))
                    opened.append(opened[0].__enter__())

            connection.set_trace_callback(meet)
            return connection

    assert not Met(database.path).erase(SEALED, patience_s=AT_ONCE)
    opened[1]()
    assert database.erase(SEALED, patience_s=AT_ONCE)
    assert remnants(place.home, sealed) == []
    opened[0].__exit__(None, None, None)


def test_whoever_tries_at_the_same_time_it_is_recorded_once(place: Place) -> None:
    for name in ("one", "two", "three"):
        place.connect("http://127.0.0.1:9", name=name)
    sealed = [blob for name in ("stripe", "one", "two", "three") for blob in removed(place, name)]
    others = [SqliteDatabase(place.database.path) for _ in range(4)]
    trying = [threading.Thread(target=attempt, args=(each,)) for each in others]
    for each in trying:
        each.start()
    for each in trying:
        each.join(60)
    assert attempt(place.database) == []
    assert remnants(place.home, sealed) == []
    done = [entry["connection"] for entry in place.events("erasure.completed")]
    assert sorted(done) == ["one", "stripe", "three", "two"]
    for each in others:
        each.close()


def test_what_is_asked_again_meanwhile_stays_on_the_list(place: Place) -> None:
    database = place.database
    database.write_now(lambda rows: request(rows, place.org, "key_1", "key", "of acme"))
    database.write_now(lambda rows: rows.execute("UPDATE erasure SET requested_at = requested_at + 60000"))
    (first,) = pending(database)  # and then the clock was put back
    database.write_now(lambda rows: request(rows, place.org, "key_1", "key", "of acme"))
    database.write_now(lambda rows: _done(rows, first))
    (second,) = pending(database)
    assert second.requested_at > first.requested_at
    assert place.events("erasure.completed") == []
    assert attempt(database) == []


def test_a_damaged_log_keeps_its_own_on_the_list_and_holds_up_no_other(place: Place) -> None:
    database = place.database
    other = add_org(place.installation, "globex")
    other.connect("http://127.0.0.1:9")
    removed(place)
    removed(other)
    database.write_now(lambda rows: rows.execute("DROP TRIGGER audit_entry_no_update"))
    database.write_now(
        lambda rows: rows.execute(
            "UPDATE audit_entry SET hash = 'none' WHERE org = ? AND event = 'connection.removed'", (place.org,)
        )
    )
    assert [one.org for one in attempt(database)] == [place.org]
    assert len(other.events("erasure.completed")) == 1
    assert place.events("erasure.completed") == []


def test_a_database_that_refuses_leaves_everything_pending(place: Place) -> None:
    database = place.database
    removed(place)
    database.write_now(lambda rows: rows.execute("ALTER TABLE vault_derived RENAME TO elsewhere"))
    before = database.read("SELECT * FROM vault_field ORDER BY rowid")
    assert [one.name for one in attempt(database)] == ["stripe"]
    assert database.read("SELECT * FROM vault_field ORDER BY rowid") == before
    assert place.events("erasure.completed") == []


# -- at the command line


def test_who_removes_a_connection_hears_that_its_secret_is_gone(place: Place, owner: CommandLine) -> None:
    sealed = sealed_of(place.database, place.org, stripe(place).id)
    ran = owner.alone("connection", "remove", "stripe", "--yes")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Removed stripe. Its secret is gone from the database's files.\n"
    assert remnants(place.home, sealed) == []


def test_who_removes_a_connection_hears_that_its_secret_waits_for_a_reader(place: Place, owner: CommandLine) -> None:
    connection = stripe(place)
    sealed = sealed_of(place.database, place.org, connection.id)
    place.connect("http://127.0.0.1:9", name="another")
    with holding(place.database.path) as let_go:
        ran = owner("connection", "remove", "stripe", "--yes", "--json")
        assert (ran.code, ran.json) == (0, {"name": "stripe", "id": connection.id, "erased": False})
        second = owner("connection", "remove", "another", "--yes")
        assert second.code == 0
        assert "gone from the database's files when the process that is reading the database lets go" in second.out
        assert "keyleash vault status" in second.out
        checked = [one for one in owner("doctor", "--json").json if one["check"] == "erasures"]
        assert [one["status"] for one in checked] == ["warn", "warn"]
        assert "acme: the connection stripe was removed at" in checked[0]["message"]
        assert str(place.database.path) in checked[0]["message"]
        assert owner("doctor").code == 0
        let_go()
    place.connect("http://127.0.0.1:9", name="third")
    assert owner("connection", "remove", "third", "--yes", "--json").json["erased"] is True
    assert remnants(place.home, sealed) == []
    checked = [one for one in owner("doctor", "--json").json if one["check"] == "erasures"]
    assert [one["status"] for one in checked] == ["ok"]


def test_copies_that_still_hold_it_are_named(place: Place, owner: CommandLine) -> None:
    folder = place.installation.settings.backups
    backup(place.database.path, folder / "keyleash-0001.db")
    sealed = sealed_of(place.database, place.org, stripe(place).id)
    ran = owner("connection", "remove", "stripe", "--yes")
    assert ran.code == 0
    assert str(folder) in ran.err
    assert [found.split(":")[0] for found in remnants(place.home, sealed)] == [str(folder / "keyleash-0001.db")]


# -- killed in the middle


def take_away(path: Path, org: str, name: str) -> None:
    """What `connection remove` does."""
    database = SqliteDatabase(path)
    for connection in connections_of(database, org):
        if connection.name == name:
            database.write_now(lambda rows, one=connection: remove(rows, Vault(None), one, by="somebody"))
    attempt(database)
    database.close()


@pytest.mark.slow
def test_killed_at_any_statement_it_is_whole_or_removed_and_gone_when_run_again() -> None:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = make(Path(folder) / "home")
        database, vault = place.database, place.installation.vault
        kept = place.connect("http://127.0.0.1:9", name="kept")
        seen: set[tuple[int, int, bool]] = set()
        statement, killed = 0, True
        while killed:
            statement += 1
            victim = place.connect("http://127.0.0.1:9", name="victim")
            sealed = sealed_of(database, place.org, victim.id)
            database.close()
            killed = killed_before(statement, take_away, database.path, place.org, "victim")
            left = connections_of(database, place.org)
            rows = database.read("SELECT 1 FROM vault_field WHERE connection = ?", (victim.id,))
            seen.add((len(left), len(rows), bool(pending(database))))
            for connection in left:
                database.query(lambda rows, one=connection: open_credential(rows, vault, one)).wipe()
            take_away(database.path, place.org, "victim")
            assert remnants(place.home, sealed) == [], statement
            assert pending(database) == []
            assert connections_of(database, place.org) == [kept]
        # Whole; removed and on the list; removed, gone and off the list. Nothing in between was ever seen.
        assert seen == {(2, 1, False), (1, 0, True), (1, 0, False)}
        assert len(place.events("connection.removed")) == len(place.events("erasure.completed")) == statement
        assert statement > 50
        database.close()


# -- while a server runs


@pytest.fixture
def held_up(place: Place) -> Iterator[tuple[list[bytes], Any]]:
    """What was sealed for a connection that was removed while another process reads; and how that lets go."""
    with holding(place.database.path) as let_go:
        sealed = removed(place)
        assert attempt(place.database, patience_s=AT_ONCE) != []
        yield sealed, let_go


async def until_gone(place: Place) -> None:
    with anyio.fail_after(30):
        while pending(place.database):  # noqa: ASYNC110 - other threads and processes give no event
            await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_a_server_tries_again_until_it_is_gone(place: Place, held_up: tuple[list[bytes], Any]) -> None:
    sealed, let_go = held_up
    async with retrying(place.database, every_s=0.01):
        await anyio.sleep(0.1)
        assert len(pending(place.database)) == 1
        let_go()
        await until_gone(place)
    assert remnants(place.home, sealed) == []
    assert len(place.events("erasure.completed")) == 1


@pytest.mark.anyio
async def test_a_server_that_starts_erases_what_was_left(place: Place) -> None:
    sealed = removed(place)
    async with running(place.installation):
        await until_gone(place)
    assert remnants(place.home, sealed) == []


@pytest.mark.anyio
async def test_trying_again_outlives_a_database_that_cannot_be_read(place: Place) -> None:
    database = place.database
    away = database.path.with_name("away.db")
    sealed = removed(place)
    database.close()
    for suffix in ("", "-wal", "-shm"):
        if (file := database.path.with_name(database.path.name + suffix)).exists():
            file.rename(away.with_name(away.name + suffix))
    async with retrying(database, every_s=0.01):
        await anyio.sleep(0.05)
        for suffix in ("-wal", "-shm", ""):
            if (file := away.with_name(away.name + suffix)).exists():
                file.rename(database.path.with_name(database.path.name + suffix))
        await until_gone(place)
    assert remnants(place.home, sealed) == []
