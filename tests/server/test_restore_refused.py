"""What is no backup, was altered, or comes from another release is refused; what is here and broken is replaced."""

import contextlib
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from server.audit import Event, append
from server.audit.noted import NotedHeads
from server.copies import copy_database
from server.database import SCHEMA
from server.sqlite import SqliteDatabase
from tests.commandline import CommandLine
from tests.installed import Place
from tests.server.restoring import (
    Backup,
    dump_of,
    everything_in,
    happen,
    rows_of,
)
from vault import root_key_spec

pytestmark = pytest.mark.sqlite_only("it is about SQLite's file")

# -- what is no backup, or was altered


def edited(backup: Backup, *sql: str) -> Path:
    with contextlib.closing(sqlite3.connect(backup.file, isolation_level=None)) as db:
        for statement in sql:
            db.execute(statement)
    return backup.file


ALTERED = {
    "a member more": 'UPDATE member SET roles = \'["owner", "approver"]\'',
    "an agent's token": "UPDATE agent SET token_hash = 'f'",
    "a rule less": "UPDATE org SET preset = 'solo'",
    "a connector file": "INSERT INTO backup_file VALUES ('evil.yaml', x'00')",
    "another time": "UPDATE backup_manifest SET body = replace(body, '202', '203')",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON audit_entry BEGIN DELETE FROM agent; END",
    "the seal itself": "UPDATE backup_seal SET mac = iif(mac LIKE '0%', '1', '0') || substr(mac, 2)",
    "an empty seal": "UPDATE backup_seal SET mac = ''",
    "a seal that is none": "UPDATE backup_seal SET mac = x'ff'",
}


@pytest.mark.parametrize("what", ALTERED)
def test_a_backup_that_was_altered_is_refused(backup: Backup, what: str) -> None:
    edited(backup, ALTERED[what])
    before = everything_in(backup.place.home)
    for ran in (backup.here("--accept-rollback"), backup.elsewhere()("vault", "restore", str(backup.file))):
        assert ran.code == 1
        assert "altered" in ran.err
        assert "Traceback" not in ran.err
    assert rows_of(backup.live) == dump_of(before, backup.folder)
    assert not backup.homes[0].exists()


@pytest.mark.parametrize("left", ["backup_seal", "backup_seal, backup_manifest", "all"])
def test_a_backup_whose_seal_was_taken_off_is_refused(backup: Backup, left: str) -> None:
    tables = ("backup_seal", "backup_manifest", "backup_file") if left == "all" else left.split(", ")
    edited(backup, "DELETE FROM agent", *(f"DROP TABLE {table}" for table in tables))
    ran = backup.elsewhere()("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "no seal" in ran.err
    assert "KEYLEASH_HOME/backups" in ran.err
    assert not backup.homes[0].exists()


def test_a_sealed_backup_whose_log_was_altered_before_is_refused(
    place: Place, owner: CommandLine, tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as db, db:
        db.execute("DROP TRIGGER audit_entry_no_update")
        db.execute("UPDATE audit_entry SET body = replace(body, 'alice', 'mallory') WHERE seq = 2")
    file = tmp_path / "b.db"
    assert owner("vault", "backup", str(file)).code == 1
    place.installation.close()
    ran = owner("vault", "restore", str(file), "--yes", "--accept-rollback")
    assert ran.code == 1
    assert "does not verify: Entry 2 was changed" in ran.err


def test_an_org_whose_whole_log_is_gone_is_refused(backup: Backup) -> None:
    kept = backup.place.home / "backups" / "kept.db"
    kept.parent.mkdir(mode=0o700)
    copy_database(backup.live, kept)
    with contextlib.closing(sqlite3.connect(kept)) as db, db:
        db.execute("DROP TRIGGER audit_entry_no_delete")
        db.execute("DELETE FROM audit_entry")
    backup.place.installation.close()
    ran = backup.line("vault", "restore", str(kept), "--yes", "--accept-rollback")
    assert ran.code == 1
    assert "does not verify: There are no entries" in ran.err


def broken_page(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for page in range(4, 30):
        raw[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(raw)


def other_database(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE notes (text)")


NO_BACKUP: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty file": (lambda path: path.write_bytes(b""), "none of its tables"),
    "a text": (lambda path: path.write_text("hello\n" * 500), "no SQLite database"),
    "another database": (other_database, "none of its tables"),
    "a cut file": (lambda path: path.write_bytes(path.read_bytes()[:50_000]), "damaged"),
    "broken pages": (broken_page, "damaged"),
    "a recovery file": (lambda path: path.write_text('{"format": "keyleash-recovery"}'), "no SQLite database"),
    "no file": (lambda path: path.unlink(), "There is no file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "There is no file"),
}


@pytest.mark.parametrize("what", NO_BACKUP)
def test_what_is_no_backup_is_said_and_changes_nothing(backup: Backup, what: str) -> None:
    change, mend = NO_BACKUP[what]
    change(backup.file)
    before = everything_in(backup.place.home)
    new = backup.elsewhere()
    for ran in (backup.here("--accept-rollback"), new("vault", "restore", str(backup.file))):
        assert (ran.code, ran.out) == (1, "")
        assert mend in ran.err
        assert "Traceback" not in ran.err
    assert rows_of(backup.live) == dump_of(before, backup.folder)
    assert not new.home.exists()


def test_a_backup_with_a_damaged_index_is_refused_though_every_row_is_as_it_was(backup: Backup) -> None:
    """The seal is over rows; that SQLite would find other ones by an index is for its own check."""
    with contextlib.closing(sqlite3.connect(backup.file)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_org_2'").fetchone()
    raw = bytearray(backup.file.read_bytes())
    end = page * 4096
    at = raw.rindex(b"acme", end - 4096, end)
    raw[at : at + 4] = b"acne"
    backup.file.write_bytes(raw)
    ran = backup.elsewhere()("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "The backup is damaged: " in ran.err
    assert not backup.homes[0].exists()


def test_a_database_in_use_is_no_backup(backup: Backup) -> None:
    happen(backup.place)
    ran = backup.elsewhere()("vault", "restore", str(backup.live))
    assert ran.code == 1
    assert "in use" in ran.err


def test_a_newer_schema_is_refused(backup: Backup) -> None:
    edited(backup, "UPDATE alembic_version SET version_num = '9999'")
    ran = backup.elsewhere()("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "newer than this release knows" in ran.err
    assert not backup.homes[0].exists()


def test_a_manifest_of_another_release_is_refused(backup: Backup) -> None:
    edited(backup, "UPDATE backup_manifest SET body = replace(body, '\"version\": 1', '\"version\": 2')")
    ran = backup.elsewhere()("vault", "restore", str(backup.file))
    assert ran.code == 1
    assert "another release" in ran.err


# -- copies that `upgrade` and a restore keep, and older schemas


def older_installation(home: Path) -> Path:
    """A database of the first release's schema, with an org and its log, under the root key in this home."""
    path = home / "data" / "keyleash.db"
    config = Config()
    config.set_main_option("script_location", "server/migrations")
    config.attributes["path"] = path
    path.parent.mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    command.upgrade(config, "0001")
    root = root_key_spec("file", home).create()
    from vault.generations import INSTALLATION_KEY, ROOT_CHECK
    from vault.orgkeys import org_context

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(
            "INSERT INTO vault_root VALUES (1, 'file', ?, ?, ?, 0)",
            (root.location, root.wrap(b"c" * 32, context=ROOT_CHECK), root.wrap(b"i" * 32, context=INSTALLATION_KEY)),
        )
        db.execute("INSERT INTO org VALUES ('org_old', 'acme', 'default', 4, NULL, 0)")
        db.execute(
            "INSERT INTO vault_org_key VALUES ('org_old', 1, ?, 0)",
            (root.wrap(b"o" * 32, context=org_context("org_old", 1)),),
        )
        append(db, "org_old", Event.ORG_CREATED, name="acme")
    return path


def test_a_copy_of_an_older_schema_comes_back_at_this_releases(keyleash: CommandLine) -> None:
    live = older_installation(keyleash.home)
    (keyleash.home / "backups").mkdir(mode=0o700)
    copy_database(live, keyleash.home / "backups" / "keyleash-0001.db")
    assert keyleash("upgrade").code == 0
    ran = keyleash(
        "vault", "restore", str(keyleash.home / "backups" / "keyleash-0001.db"), "--yes", "--accept-rollback"
    )
    assert ran.code == 0, ran.err
    assert keyleash("vault", "status", "--json").json["sealed"] is False
    with contextlib.closing(SqliteDatabase(live)) as database:
        assert database.read("SELECT version_num FROM alembic_version") == [(SCHEMA,)]
        events = [event for (event,) in database.read("SELECT event FROM audit_entry ORDER BY seq")]
    assert events == ["org.created", "installation.upgraded", "org.frozen", "vault.restored"]


def test_a_backup_of_an_older_schema_keeps_its_seal_through_the_migration(
    keyleash: CommandLine, tmp_path: Path
) -> None:
    from server.backup import PURPOSE, _add, contents
    from server.backup import Manifest as Said
    from server.copies import editing
    from vault import Vault

    live = older_installation(keyleash.home)
    file = tmp_path / "b.db"
    copy_database(live, file)
    vault = Vault(root_key_spec("file", keyleash.home).load())
    with editing(file) as db:
        _add(db, Said("2026-11-23T09:14:48.123Z", "x", "0", "0001", (), {}, {}), {})
        import hashlib
        import hmac

        key = vault.derive(db, "", PURPOSE)
        mac = hmac.new(key, contents(db).encode(), hashlib.sha256).hexdigest()
        db.execute("INSERT INTO backup_seal VALUES (?)", (mac,))
    keyleash.home.joinpath("data").rename(tmp_path / "gone")
    assert keyleash("vault", "restore", str(file)).code == 0
    assert keyleash("audit", "verify", "--as", "nobody").code == 3  # there is no member; the log itself is read
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE org SET preset = 'solo'")
    shutil.rmtree(keyleash.home / "data")
    ran = keyleash("vault", "restore", str(file), "--accept-rollback")
    assert ran.code == 1
    assert "altered" in ran.err


def test_a_migration_that_fails_changes_nothing(backup: Backup) -> None:
    edited(backup, "UPDATE alembic_version SET version_num = '0000'")
    before = everything_in(backup.place.home)
    ran = backup.here("--accept-rollback")
    assert ran.code == 1
    assert "could not be brought to" in ran.err
    assert "Traceback" not in ran.err
    assert rows_of(backup.live) == dump_of(before, backup.folder)


# -- a database that is here and broken


def journal_of(backup: Backup) -> bytes:
    """A journal with changes of the database that is here, as a process that was killed leaves it."""
    happen(backup.place, 2)
    journal = backup.live.with_name("keyleash.db-wal").read_bytes()
    assert len(journal) > 4096
    return journal


def test_the_journal_of_a_database_that_is_gone_is_not_played_into_the_new_one(backup: Backup) -> None:
    journal = journal_of(backup)
    backup.place.installation.close()
    backup.live.unlink()
    backup.live.with_name("keyleash.db-wal").write_bytes(journal)
    shutil.rmtree(backup.place.home / "checkpoints")
    ran = backup.line("vault", "restore", str(backup.file))
    assert ran.code == 0, ran.err
    assert [entry["event"] for entry in backup.now().events()][-3:] == [
        "vault.backed_up",
        "org.frozen",
        "vault.restored",
    ]
    assert backup.line("audit", "verify").code == 0


@pytest.mark.parametrize("damage", ["a text", "broken pages", "an empty file"])
def test_a_damaged_database_is_kept_and_replaced(backup: Backup, damage: str) -> None:
    journal = journal_of(backup)
    backup.place.installation.close()
    for name in ("keyleash.db-wal", "keyleash.db-shm"):
        backup.live.with_name(name).unlink(missing_ok=True)
    if damage == "broken pages":
        broken_page(backup.live)
    else:
        NO_BACKUP[damage][0](backup.live)
    backup.live.with_name("keyleash.db-wal").write_bytes(journal)
    broken = backup.live.read_bytes()
    ran = backup.here("--json")
    assert ran.code == 0, ran.err
    assert "could not be compared" in ran.err
    kept = Path(ran.json["kept"])
    if damage != "an empty file":
        assert kept.read_bytes() == broken
        assert kept.with_name(f"{kept.name}-wal").read_bytes() == journal
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    after = backup.now()
    assert after.events()[-1]["event"] == "vault.restored"
    assert backup.line("audit", "verify").code == 0
    assert backup.line("vault", "status", "--json").json["sealed"] is False


def test_a_damaged_database_is_no_way_around_the_noted_heads(backup: Backup) -> None:
    happen(backup.place, 2)
    NotedHeads(backup.place.installation.settings.noted_heads).note(backup.place.database)
    backup.place.installation.close()
    backup.live.write_text("broken" * 1000)
    ran = backup.here()
    assert ran.code == 1
    assert "2 entries behind" in ran.err


def test_noted_heads_that_cannot_be_read_stop_a_restore(backup: Backup) -> None:
    backup.place.installation.settings.noted_heads.write_text("broken")
    ran = backup.here("--accept-rollback")
    assert ran.code == 1
    assert "remove that file" in ran.err
    assert all(entry["event"] != "vault.restored" for entry in backup.now().events())


def test_a_database_that_cannot_be_read_just_now_is_not_taken_for_a_damaged_one(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.sqlite

    monkeypatch.setattr(server.sqlite, "_BUSY_MS", 10)
    backup.place.installation.close()
    with contextlib.closing(sqlite3.connect(backup.live, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        ran = backup.here("--accept-rollback")
        other.execute("ROLLBACK")
    assert ran.code == 1
    assert "another process has locked it" in ran.err
    assert "could not be compared" not in ran.err
    assert not (backup.place.home / "backups").exists()


def test_a_database_that_another_process_writes_for_long_is_not_replaced(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.replacing

    monkeypatch.setattr(server.replacing, "PATIENCE_S", 0.0)
    monkeypatch.setattr(server.replacing, "BUSY_S", 0.01)
    backup.place.installation.close()
    with contextlib.closing(sqlite3.connect(backup.live, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ran = backup.here()
        other.execute("ROLLBACK")
    assert ran.code == 1
    assert "locked" in ran.err
    assert all(entry["event"] != "vault.restored" for entry in backup.now().events())
    monkeypatch.undo()
    assert backup.here().code == 0
