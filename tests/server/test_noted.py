"""What was noted outside the database finds an older one that was put back, and is not moved back by it."""

import contextlib
import json
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from server.audit import Event, Head, append
from server.audit.noted import Gap, NotedHeads, NotedProblem, gaps, heads
from server.copies import copy_database
from server.database import DatabaseProblem
from server.duty import RolledBack, on_duty, require_current
from server.locks import exclusive, shared
from tests.commandline import MAIN, CommandLine
from tests.installed import Place, add_org

PATIENCE_S = 30.0


def happen(place: Place, times: int = 1, org: str | None = None) -> None:
    for _ in range(times):
        place.database.write_now(lambda rows: append(rows, org or place.org, Event.AUDIT_LISTED, by="x"))


def noted_of(place: Place) -> NotedHeads:
    return NotedHeads(place.installation.settings.noted_heads)


def put_back(place: Place, copy: Path) -> None:
    """Put an older database in the place of the present one, as somebody does who copies files."""
    place.database.close()
    for suffix in ("-wal", "-shm"):
        place.installation.settings.database.with_name(f"keyleash.db{suffix}").unlink(missing_ok=True)
    place.installation.settings.database.write_bytes(copy.read_bytes())


@pytest.fixture
def older(place: Place, tmp_path: Path) -> Path:
    """A copy of the database, after which three more entries were recorded and noted."""
    copy_database(place.installation.settings.database, tmp_path / "older.db")
    happen(place, 3)
    noted_of(place).note(place.database)
    return tmp_path / "older.db"


# -- noting


def test_every_log_is_noted_in_a_private_file(place: Place) -> None:
    other = add_org(place.installation, "globex")
    noted_of(place).note(place.database)
    path = place.installation.settings.noted_heads
    assert set(json.loads(path.read_text())["heads"]) == {place.org, other.org}
    assert noted_of(place).read() == heads(place.database)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_log_whose_org_is_gone_is_noted_too(place: Place) -> None:
    place.database.write_now(lambda rows: append(rows, "org_gone", Event.ORG_REMOVED))
    assert place.database.orgs() == sorted([place.org, "org_gone"])


def test_noting_moves_with_the_log_and_writes_nothing_while_it_stands(place: Place) -> None:
    noted = noted_of(place)
    noted.note(place.database)
    first = noted.path.stat()
    noted.note(place.database)
    assert noted.path.stat().st_mtime_ns == first.st_mtime_ns
    assert noted.path.stat().st_ino == first.st_ino
    happen(place)
    noted.note(place.database)
    assert noted.read() == heads(place.database)


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_an_older_database_is_found_and_moves_nothing_back(place: Place, older: Path) -> None:
    noted = noted_of(place)
    before = noted.path.read_bytes()
    put_back(place, older)
    (gap,) = noted.missing(place.database)
    assert (gap.org, gap.lost, gap.forked) == (place.org, 3, False)
    with pytest.raises(NotedProblem, match="3 entries behind"):
        noted.note(place.database)
    assert noted.path.read_bytes() == before


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_an_older_database_that_grew_longer_than_the_newer_one_was_is_found(place: Place, older: Path) -> None:
    noted = noted_of(place)
    before = noted.path.read_bytes()
    put_back(place, older)
    happen(place, 10)
    (gap,) = noted.missing(place.database)
    assert (gap.forked, gap.lost) == (True, None)
    with pytest.raises(NotedProblem, match="another log than the one that was noted"):
        noted.note(place.database)
    assert noted.path.read_bytes() == before


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_log_that_is_gone_altogether_is_found(place: Place) -> None:
    place.database.write_now(lambda rows: append(rows, "org_gone", Event.ORG_CREATED))
    noted_of(place).note(place.database)
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as db, db:
        db.execute("DROP TRIGGER audit_entry_no_delete")
        db.execute("DELETE FROM audit_entry WHERE org = 'org_gone'")
    assert [(gap.org, gap.lost) for gap in noted_of(place).missing(place.database)] == [("org_gone", 1)]


def test_settling_takes_the_database_as_it_is(place: Place, older: Path) -> None:
    put_back(place, older)
    noted_of(place).settle(place.database)
    assert noted_of(place).missing(place.database) == []


def test_many_processes_note_and_none_moves_another_back(place: Place) -> None:
    """Each looks at the database and at the file under one lock, so that the last word is the newest."""
    database, noted = place.database, noted_of(place)
    problems: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                happen(place)
                noted.note(database)
                behind = gaps(database, noted.read().items())
                assert behind == []
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert noted.read() == heads(database)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"format": "keyleash-heads", "version": 2, "heads": {}}',
        b'{"format": "other", "version": 1, "heads": {}}',
        b'{"format": "keyleash-heads", "version": 1}',
        b'{"format": "keyleash-heads", "version": 1, "heads": {"org_a": {"seq": 0, "hash": "00"}}}',
        b'{"format": "keyleash-heads", "version": 1, "heads": {"org_a": 7}}',
        b'{"format": "keyleash-heads", "version": 1, "heads": []}',
    ],
)
def test_a_file_that_is_not_ours_tells_nothing_and_is_said(place: Place, content: bytes) -> None:
    path = place.installation.settings.noted_heads
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    for use in (noted_of(place).read, lambda: noted_of(place).note(place.database)):
        with pytest.raises(NotedProblem, match=r"heads\.json cannot be read.*remove that file"):
            use()
    assert path.read_bytes() == content


def test_a_disk_that_takes_nothing_is_said(place: Place) -> None:
    (place.home / "checkpoints").write_text("in the way")
    with pytest.raises(NotedProblem, match="cannot be written"):
        noted_of(place).note(place.database)


def test_gaps_are_said_in_words() -> None:
    head = Head(7, "a" * 64)
    assert "1 entry behind (known up to 7, the same up to 6)" in str(Gap("o", head, 6, forked=False))
    assert "4 entries behind (known up to 7, the same up to 3, and goes on otherwise)" in str(
        Gap("o", head, 3, forked=True)
    )
    assert "entry 7 differs" in str(Gap("o", head, None, forked=True))


# -- on duty


def test_a_server_notes_the_heads_at_its_start_and_at_its_end(place: Place) -> None:
    settings, database = place.installation.settings, place.database
    with on_duty(database, settings):
        assert noted_of(place).read() == heads(database)
        happen(place)
        assert noted_of(place).read() != heads(database)
    assert noted_of(place).read() == heads(database)


def test_a_server_notes_the_heads_from_time_to_time(place: Place) -> None:
    settings, database = place.installation.settings, place.database
    with on_duty(database, settings, every_s=0.001):
        happen(place)
        wanted, deadline = heads(database), time.monotonic() + PATIENCE_S
        while noted_of(place).read() != wanted:
            assert time.monotonic() < deadline, "nothing was noted while the server ran"


def test_what_cannot_be_noted_stops_no_server(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    settings, database = place.installation.settings, place.database
    with on_duty(database, settings):
        settings.noted_heads.write_text("broken")
        happen(place)
    assert "could not be noted" in caplog.text


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_nothing_is_served_from_an_older_database(place: Place, older: Path) -> None:
    put_back(place, older)
    served = []
    with (
        pytest.raises(RolledBack, match=r"older database was put back.*3 entries behind.*vault accept-rollback"),
        on_duty(place.database, place.installation.settings),
    ):
        served.append(True)
    assert served == []
    with exclusive(place.installation.settings.serving_lock):  # and nothing is held
        pass


def test_nothing_is_served_where_nothing_tells(place: Place) -> None:
    settings = place.installation.settings
    settings.noted_heads.parent.mkdir(mode=0o700)
    settings.noted_heads.write_text("broken")
    with pytest.raises(NotedProblem), on_duty(place.database, settings):
        raise AssertionError("it was served")


def test_nothing_is_served_while_a_restore_is_unfinished(place: Place) -> None:
    place.database.write_now(lambda rows: rows.execute("CREATE TABLE backup_manifest (body TEXT)"))
    with pytest.raises(RolledBack, match=r"cut off.*vault restore"):
        require_current(place.database, place.installation.settings)


def test_while_a_server_runs_nothing_is_restored(place: Place) -> None:
    settings = place.installation.settings
    with on_duty(place.database, settings):
        with pytest.raises(DatabaseProblem, match="being served"), exclusive(settings.serving_lock):
            raise AssertionError("a restore began under a server")
        with on_duty(place.database, settings):
            pass


# -- locks


def test_any_number_serve_and_only_one_restores(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with shared(lock), shared(lock), pytest.raises(DatabaseProblem, match="being served"), exclusive(lock):
        raise AssertionError("it was had alone")
    with exclusive(lock), pytest.raises(DatabaseProblem, match="restore is at work"), shared(lock):
        raise AssertionError("it was shared")
    with exclusive(lock), pytest.raises(DatabaseProblem), exclusive(lock):
        raise AssertionError("two had it alone")
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_what_serves_is_named_by_its_process(place: Place, keyleash: CommandLine) -> None:
    code = (
        "import sys; from pathlib import Path; from server.locks import shared\n"
        "with shared(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    lock = place.installation.settings.serving_lock
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=keyleash.environment,
        text=True,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "held\n"
        with pytest.raises(DatabaseProblem) as refused, exclusive(lock):
            raise AssertionError("it was had alone")
        server.kill()
    if Path("/proc/locks").exists():
        assert f"process {server.pid}" in str(refused.value)
    with exclusive(lock):  # a killed server holds nothing
        pass


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_server_that_is_told_to_stop_notes_what_was_recorded_until_then(
    place: Place, owner: CommandLine, told: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Where the tests themselves run in the background, a shell may have made them deaf to Ctrl-C.
    main = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {MAIN}"
    command = [sys.executable, "-c", main, "serve", "--http", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=owner.environment) as server:
        try:
            _until_it_listens(port)
            happen(place, 3)
            server.send_signal(told)
            assert server.wait(timeout=PATIENCE_S) == 0
        finally:
            server.kill()
    assert noted_of(place).read() == heads(place.database)


def _until_it_listens(port: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
    raise AssertionError("the server did not start")


# -- the commands


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_no_installation_is_made_where_another_one_is_noted_and_gone(place: Place, owner: CommandLine) -> None:
    noted_of(place).note(place.database)
    place.installation.close()
    shutil.rmtree(place.home / "data")
    shutil.rmtree(place.home / "keys")
    refused = owner("init", "--org", "acme", "--root", "file")
    assert (refused.code, "remove that file first" in refused.err) == (1, True)
    assert sorted(path.name for path in place.home.iterdir()) == ["checkpoints"]
    noted_of(place).path.unlink()
    assert owner("init", "--org", "acme", "--root", "file").code == 0


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_doctor_and_serve_say_how_to_mend_an_older_database(place: Place, owner: CommandLine, older: Path) -> None:
    put_back(place, older)
    ran = owner("doctor", "--json")
    found: dict[str, Any] = {one["check"]: one for one in ran.json}
    assert (ran.code, found["ends of logs"]["status"]) == (1, "fail")
    assert "keyleash vault accept-rollback" in found["ends of logs"]["message"]
    for command in (["--http", "127.0.0.1:0"], ["--agent", "reconciler"]):
        served = owner.alone("serve", *command)
        assert served.code == 1
        assert "older database was put back" in served.err
        assert "Traceback" not in served.err
        assert served.out == ""
