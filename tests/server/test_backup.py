"""A backup is one whole, private, sealed file, taken while others write; it says what it covers and holds no key."""

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from server.audit import Event, Head, Status, append, head, verify_database
from server.audit.noted import NotedHeads, heads
from server.backup import BackupProblem, Made, contents, make_backup, read_manifest, seal
from server.call import call
from server.copies import Reader, editing, still
from server.database import SCHEMA, DatabaseProblem
from server.locks import exclusive
from server.sqlite import SqliteDatabase
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, add_org
from tests.leaks import leak
from tests.upstream import Upstream

pytestmark = pytest.mark.sqlite_only("it is about SQLite's file")


def backed_up(place: Place, target: Path) -> Made:
    installation = place.installation
    return make_backup(
        installation.database, installation.vault, installation.settings, target, release="1", by="operator"
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere" / "backup.db"


@contextlib.contextmanager
def reading(made: Made) -> Iterator[tuple[sqlite3.Connection, Reader]]:
    with still(made.path) as db:
        yield db, Reader(db)


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- the file


def test_a_backup_is_one_private_file_with_nothing_beside_it(place: Place, target: Path) -> None:
    made = backed_up(place, target)
    assert everything_in(target.parent) == ["backup.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert made.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert made.size == target.stat().st_size
    with contextlib.closing(sqlite3.connect(target)) as db:  # and reading it makes none
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert everything_in(target.parent) == ["backup.db"]


def test_what_is_there_is_not_written_over(place: Place, target: Path) -> None:
    target.write_text("mine")
    entries = len(place.events())
    with pytest.raises(BackupProblem, match="it was not touched"):
        backed_up(place, target)
    assert target.read_text() == "mine"
    assert len(place.events()) == entries
    with pytest.raises(BackupProblem, match="no folder"):
        backed_up(place, target.parent / "none" / "backup.db")


def test_what_appears_meanwhile_is_not_written_over_either(
    place: Place, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(half: Path, path: Path) -> None:
        Path(path).write_text("mine")
        link(half, path)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(BackupProblem, match="could not be written"):
        backed_up(place, target)
    assert everything_in(target.parent) == ["backup.db"]
    assert target.read_text() == "mine"


def test_a_disk_that_is_full_leaves_nothing_and_is_on_record(place: Place, target: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The database itself may still grow by its entries.
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(BackupProblem, match="could not be written"):
            backed_up(place, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert everything_in(target.parent) == []
    first, second = place.events("vault.backed_up")
    assert "outcome" not in first
    assert (second["outcome"], second["reason"]) == ("failed", "BackupProblem")


def test_a_backup_that_was_killed_leaves_no_file_of_its_name(place: Place, target: Path, keyleash: CommandLine) -> None:
    """It kills itself when the file would get its name."""
    place.installation.close()
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from server.app import open_installation\n"
        "from server.backup import make_backup\n"
        "from server.settings import Settings\n"
        "os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "here = open_installation(Settings(home=Path(sys.argv[1])))\n"
        "make_backup(here.database, here.vault, here.settings, Path(sys.argv[2]), release='1', by='x')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(place.home), str(target)], env=keyleash.environment, check=False
    )
    assert ran.returncode == -9
    assert not target.exists()
    (left,) = target.parent.iterdir()
    assert left.name.endswith(".unfinished")
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    backed_up(place, target)


# -- what is in it


def test_it_says_what_it_is_and_what_opens_it(place: Place, target: Path) -> None:
    other = add_org(place.installation, "globex")
    made = backed_up(place, target)
    with reading(made) as (db, reader):
        manifest = read_manifest(db)
        assert manifest == made.manifest
        ends = heads(reader)
    assert (made.manifest.schema, made.manifest.release, made.manifest.by) == (SCHEMA, "1", "operator")
    assert made.manifest.heads == ends
    assert made.manifest.names == {place.org: "acme", other.org: "globex"}
    (root,) = made.manifest.roots
    assert (root.generation, root.provider) == (1, "file")
    assert root.location == str(place.home / "keys" / "root.key")


def test_it_holds_the_operators_own_connectors_and_says_what_it_leaves_out(place: Place, target: Path) -> None:
    folder = place.installation.settings.connectors
    (folder / "folder").mkdir(parents=True)
    (folder / "mine.yaml").write_text("id: mine")
    (folder / ".hidden.yaml").write_text("id: hidden")
    (folder / "with space.yaml").write_text("id: space")
    with (folder / "large.yaml").open("wb") as file:
        file.truncate(8 * 1024 * 1024 + 1)
    made = backed_up(place, target)
    assert made.files == ("mine.yaml",)
    assert made.left_out == (".hidden.yaml", "folder", "large.yaml", "with space.yaml")
    with reading(made) as (db, _):
        assert db.execute("SELECT name, content FROM backup_file").fetchall() == [("mine.yaml", b"id: mine")]


def test_neither_the_secret_nor_the_root_key_is_in_it(place: Place, target: Path) -> None:
    made = backed_up(place, target)
    key = (place.home / "keys" / "root.key").read_text().strip().removeprefix("keyleash-root-key:v1:")
    for canary in (SECRET, key):
        assert leak(made.path.read_bytes(), canary, layers=2) is None
        assert leak(repr(made), canary) is None


def test_it_is_on_record_before_it_is_taken_and_holds_its_own_entry(place: Place, target: Path) -> None:
    add_org(place.installation, "globex")
    before = head(place.database, place.org)
    made = backed_up(place, target)
    (entry,) = place.events("vault.backed_up")
    assert (entry["file"], entry["by"], entry["covers"]) == ("backup.db", "operator", str(before))
    assert "elsewhere" not in json.dumps(entry)
    with reading(made) as (_, reader):
        events = reader.read("SELECT org, event FROM audit_entry ORDER BY org, seq")
    last = dict(events)
    assert set(last.values()) == {"vault.backed_up"}
    assert len(last) == 2
    assert heads(place.database) == made.manifest.heads, "the backup is behind from its first moment"


def test_the_heads_are_noted_after_a_backup(place: Place, target: Path) -> None:
    made = backed_up(place, target)
    assert NotedHeads(place.installation.settings.noted_heads).read() == made.manifest.heads


def test_a_database_behind_what_was_noted_can_still_be_backed_up(
    place: Place, target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = place.installation.settings.noted_heads
    path.parent.mkdir(mode=0o700)
    path.write_text(
        json.dumps(
            {"format": "keyleash-heads", "version": 1, "heads": {place.org: {"seq": 99, "hash": "0" * 64, "at": ""}}}
        )
    )
    before = path.read_bytes()
    backed_up(place, target)
    assert "could not be noted" in caplog.text
    assert path.read_bytes() == before


def test_a_log_that_does_not_verify_is_reported_at_once(place: Place, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as db, db:
        db.execute("DROP TRIGGER audit_entry_no_update")
        db.execute("UPDATE audit_entry SET body = replace(body, 'alice', 'mallory') WHERE seq = 2")
    made = backed_up(place, target)
    (report,) = made.altered
    assert (report.org, report.status, report.first_bad) == (place.org, Status.ALTERED, 2)
    assert target.exists()


def test_a_restore_at_work_keeps_a_backup_from_beginning(place: Place, target: Path) -> None:
    entries = len(place.events())
    with (
        exclusive(place.installation.settings.serving_lock),
        pytest.raises(DatabaseProblem, match="restore is at work"),
    ):
        backed_up(place, target)
    assert not target.exists()
    assert len(place.events()) == entries


def test_a_restore_waits_for_a_backup(place: Place, target: Path) -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def watch(title: str, _total: int | None) -> Iterator[object]:
        with pytest.raises(DatabaseProblem), exclusive(place.installation.settings.serving_lock):
            raise AssertionError("a restore began under a backup")
        seen.append(title)
        yield lambda _done: None

    here = place.installation
    make_backup(here.database, here.vault, here.settings, target, release="1", by="x", watch=watch)  # type: ignore[arg-type]
    assert seen == ["Copying", "Sealing", "Verifying the log"]


# -- the seal


def test_the_seal_is_over_every_value_and_every_type(place: Place, target: Path) -> None:
    made = backed_up(place, target)
    with reading(made) as (db, _):
        before = contents(db)
    changes = [
        'UPDATE member SET roles = \'["owner", "admin"]\'',
        "UPDATE agent SET expires_at = 0",
        "UPDATE org SET preset = CAST(preset AS BLOB)",
        "UPDATE backup_manifest SET body = replace(body, 'operator', 'somebody')",
        "INSERT INTO backup_file VALUES ('new.yaml', x'00')",
        "DELETE FROM rule WHERE 0; DELETE FROM agent",
        "CREATE TRIGGER more AFTER INSERT ON org BEGIN DELETE FROM rule; END",
        "CREATE VIEW more AS SELECT 1",
        "DROP TRIGGER audit_entry_no_update",
    ]
    for change in changes:
        copy = target.with_name("copy.db")
        copy.write_bytes(target.read_bytes())
        with contextlib.closing(sqlite3.connect(copy)) as db:
            db.executescript(change)
        with still(copy) as db:
            assert contents(db) != before, change


def test_the_seal_stands_on_the_root_key(place: Place, target: Path, tmp_path: Path) -> None:
    from tests.installed import make

    made = backed_up(place, target)
    other = make(tmp_path / "other")
    with reading(made) as (db, _):
        digest = contents(db)
        (mac,) = db.execute("SELECT mac FROM backup_seal").fetchone()
        assert seal(db, place.installation.vault, digest) == mac
    assert other.database.query(lambda rows: seal(rows, other.installation.vault, digest)) != mac
    other.installation.close()


def test_a_text_that_is_none_is_sealed_as_well(place: Place, target: Path) -> None:
    made = backed_up(place, target)
    with editing(made.path) as db:
        before = contents(db)
        db.execute("UPDATE org SET name = CAST(x'ff41' AS TEXT)")
        assert contents(db) != before


# -- while others work


@pytest.mark.anyio
async def test_a_backup_taken_while_calls_run_verifies_and_loses_none_of_what_came_before(
    place: Place, target: Path, upstream: Upstream
) -> None:
    from server.app import running

    made: list[Made] = []
    answered = 0

    async with running(place.installation) as parts:
        caller = place.caller()
        done = anyio.Event()

        async def calls() -> None:
            nonlocal answered
            while not done.is_set():
                await call(parts, caller, "stripe_list_charges", {"limit": 1}, _Nobody())
                answered += 1

        async def back_up() -> None:
            while not answered:
                await anyio.lowlevel.checkpoint()
            for number in range(3):
                path = target.with_name(f"{number}.db")
                made.append(await anyio.to_thread.run_sync(backed_up, place, path))
            done.set()

        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(calls)
            group.start_soon(back_up)
    sizes = []
    for one in made:
        assert one.altered == ()
        with reading(one) as (db, reader):
            report = verify_database(reader, place.org)
            assert report.status is Status.INTACT
            assert report.head == one.manifest.heads[place.org]
            assert contents(db)
        sizes.append(report.entries)
    assert sizes == sorted(set(sizes))


def test_a_copy_is_of_the_moment_at_which_it_began(place: Place, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written between its steps neither gets into it nor makes it begin again."""
    import server.copies

    monkeypatch.setattr(server.copies, "PAGES", 4)
    database = place.database
    began, steps = heads(database), 0

    @contextlib.contextmanager
    def watch(_title: str, _total: int | None) -> Iterator[object]:
        def done(_pages: int) -> None:
            nonlocal steps
            steps += 1
            database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="x"))

        yield done

    server.copies.copy_database(database.path, target, watch=watch)  # type: ignore[arg-type]
    with still(target) as db:
        assert heads(Reader(db)) == began
    assert steps == -(-target.stat().st_size // 4096 // 4)
    assert heads(database)[place.org].seq == began[place.org].seq + steps


def test_writers_of_other_processes_and_threads_are_not_held_up(place: Place, target: Path) -> None:
    database = place.database
    done = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not done.is_set():
            database.write_now(lambda rows: append(rows, place.org, Event.AUDIT_LISTED, by="x"))
            written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            one = backed_up(place, target.with_name(f"{number}.db"))
            assert one.altered == ()
    finally:
        done.set()
        writer.join()
    assert written > 0
    assert verify_database(database, place.org).status is Status.INTACT


class _Nobody:
    can_be_asked = False
    answers_later = False
    outside = None
    pointer = None

    async def ask(self, _question: object) -> None:
        raise AssertionError("nobody is asked")


# -- the command


def test_the_command_says_what_to_note_and_what_is_not_in_it(owner: CommandLine, place: Place, target: Path) -> None:
    ran = owner("vault", "backup", str(target))
    assert ran.code == 0, ran.err
    end = head(place.database, place.org)
    assert str(end) in ran.out
    assert hashlib.sha256(target.read_bytes()).hexdigest() in ran.out
    assert "Not in it: the root key" in ran.err
    assert "export-recovery" in ran.err
    assert "removed later stays in this file" in ran.err


def test_the_command_speaks_json(owner: CommandLine, place: Place, target: Path) -> None:
    said = owner("vault", "backup", str(target), "--json").json
    assert said["file"] == str(target)
    end = said["heads"]["acme"]
    assert Head(end["seq"], end["hash"]) == head(SqliteDatabase(place.installation.settings.database), place.org)
    assert end["org"] == place.org
    assert [root["location"] for root in said["needs_root_keys"]] == [str(place.home / "keys" / "root.key")]
    assert (said["altered"], said["left_out"]) == ([], [])


def test_the_command_fails_where_the_backup_could_not_be_restored(
    owner: CommandLine, place: Place, target: Path
) -> None:
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as db, db:
        db.execute("DROP TRIGGER audit_entry_no_update")
        db.execute("UPDATE audit_entry SET body = replace(body, 'alice', 'mallory') WHERE seq = 2")
    ran = owner("vault", "backup", str(target))
    assert ran.code == 1
    assert "restore` will refuse" in ran.err
    assert target.exists()


def test_only_the_operator_makes_a_backup(owner: CommandLine, place: Place, target: Path) -> None:
    (place.home / "keys" / "root.key").unlink()
    ran = owner("vault", "backup", str(target))
    assert ran.code == 1
    assert "Only the operator" in ran.err
    assert not target.exists()


@pytest.mark.parametrize("name", ["backup.db", "none/backup.db"])
def test_a_name_that_cannot_be_used_is_said(owner: CommandLine, target: Path, name: str) -> None:
    target.write_text("mine")
    ran = owner("vault", "backup", str(target.parent / name))
    assert ran.code == 1
    assert "ame another" in ran.err
    assert "Traceback" not in ran.err


def test_the_head_of_an_org_is_not_mixed_up_with_that_of_a_removed_one_of_the_same_name(
    place: Place, owner: CommandLine, target: Path
) -> None:
    for _ in range(3):
        assert owner("org", "create", "beta").code == 0
        assert owner("org", "remove", "beta", "--yes").code == 0
    assert owner("org", "create", "beta").code == 0
    (beta,) = [org.id for org in place.installation.directory.orgs() if org.name == "beta"]
    shown = owner("vault", "backup", str(target), "--json").json["heads"]
    assert len(shown) == 5  # and each as `--head` takes it
    assert {name for name in shown if not name.startswith("org_")} == {"acme"}
    assert shown[beta] == {"org": beta, **heads(place.database)[beta]._asdict()}
    assert f"{beta}=" in owner("vault", "backup", str(target.with_name("second.db"))).out
