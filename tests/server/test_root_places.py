"""Where root keys are kept, over a life of moves, restores and drops: the key in use is never taken for another one."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from server.app import open_installation
from server.database import Rows
from server.rotation import RotationProblem, rotate_root
from server.sqlite import SqliteDatabase
from tests.commandline import ROOT, CommandLine
from tests.installed import Place
from tests.server.rotating import everything
from vault import VaultError, root_key_spec
from vault.rotation import begin_root

T = TypeVar("T")
PASSPHRASE = b"six words drawn by chance alone"


def roots(place: Place) -> list[tuple[int, str, bool]]:
    rows = place.database.read("SELECT id, location, retired_at IS NOT NULL FROM vault_root ORDER BY id")
    return [(generation, Path(location).name, bool(retired)) for generation, location, retired in rows]


@pytest.mark.parametrize("again", [("rewrap", "--to", "file"), ("rotate-root",)], ids=lambda given: given[0])
def test_a_move_to_where_the_key_is_changes_nothing_however_often_it_is_tried(
    owner: CommandLine, place: Place, again: tuple[str, ...]
) -> None:
    before = everything(place.installation)
    refused = owner("vault", "rewrap", "--to", "file", "--yes")
    assert refused.code == 1
    assert "Name another place" in refused.err
    assert roots(place) == [(1, "root.key", False)]  # nothing is left that a later run would finish
    ran = owner("vault", *again, "--yes")
    assert ran.code == (0 if again == ("rotate-root",) else 1)
    owner("vault", "drop-root", "1", "--yes")
    assert everything(open_installation(place.installation.settings)) == before


def test_a_move_back_to_a_place_that_still_keeps_an_earlier_key_does_not_take_that_key(
    owner: CommandLine, place: Place
) -> None:
    assert owner("vault", "rotate-root", "--yes").code == 0
    for _ in range(2):
        refused = owner("vault", "rewrap", "--to", "file", "--yes")
        assert (refused.code, "already" in refused.err) == (1, True)
    assert roots(place) == [(1, "root.key", True), (2, "root-2.key", False)]


def test_a_place_where_no_key_can_be_made_leaves_no_move_behind(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    (tmp_path / "wide.key").write_text("not a key", encoding="utf-8")
    (tmp_path / "wide.key").chmod(0o644)
    assert owner("vault", "rewrap", "--to", f"file:{tmp_path / 'wide.key'}", "--yes").code == 1
    assert roots(place) == [(1, "root.key", False)]
    assert owner("vault", "status", "--json").json["unfinished"] is None


def test_a_begun_move_does_not_adopt_the_root_key_of_an_earlier_generation(owner: CommandLine, place: Place) -> None:
    """As an earlier release left it: begun for the very place that the key in use is in."""
    location = str(place.home / "keys" / "root.key")
    place.database.write_now(lambda rows: begin_root(rows, provider="file", location=location))
    refused = owner("vault", "rotate-root", "--yes")
    assert refused.code == 1
    assert "it is the root key of generation 1" in refused.err
    assert place.database.read("SELECT root FROM vault_org_key") == [(1,)]
    assert owner("vault", "rewrap", "--to", f"file:{place.home / 'keys' / 'other.key'}", "--yes").code == 0


def test_a_begun_move_whose_key_is_gone_is_not_finished_with_another_one(owner: CommandLine, place: Place) -> None:
    database, vault = place.database, place.installation.vault
    second = root_key_spec(f"file:{place.home / 'keys' / 'root-2.key'}", place.home)
    rotate_root(database, vault, second, by="test")
    database.write_now(lambda rows: rows.execute("UPDATE vault_root SET retired_at = NULL"))
    (place.home / "keys" / "root-2.key").unlink()
    place.installation.vault.forget()
    with pytest.raises(VaultError, match="There is no root key at"):
        rotate_root(database, vault, second, by="t")
    assert not (place.home / "keys" / "root-2.key").exists()


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_dropping_a_root_key_spares_the_recovered_one_that_a_restore_put_in_its_place(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    assert owner("vault", "rotate-root", "--yes").code == 0
    before = everything(open_installation(place.installation.settings))
    assert owner("vault", "backup", str(tmp_path / "b.db")).code == 0
    recovery = str(tmp_path / "b.recovery")
    assert owner("vault", "export-recovery", recovery, "--passphrase-stdin", stdin=PASSPHRASE).code == 0
    place.installation.close()
    place.home.rename(tmp_path / "lost")
    arguments = ("--recovery", recovery, "--root", "file", "--passphrase-stdin", "--yes")
    ran = owner("vault", "restore", str(tmp_path / "b.db"), *arguments, stdin=PASSPHRASE)
    assert ran.code == 0, ran.err
    assert roots(place) == [(1, "root.key", True), (2, "root.key", False)]
    dropped = owner("vault", "drop-root", "1", "--yes", "--json")
    assert (dropped.code, dropped.json["destroyed"]) == (0, False)
    assert "Another root key is kept there" in dropped.json["why_not"]
    assert everything(open_installation(place.installation.settings)) == before


def test_dropping_a_generation_spares_a_key_that_a_later_generation_is_too(owner: CommandLine, place: Place) -> None:
    """As an earlier release left it, where a move to the very place of the key in use was finished."""
    before = everything(place.installation)
    columns = "provider, location, check_blob, installation_key, created_at"

    def again(rows: Rows) -> None:
        rows.execute(f"INSERT INTO vault_root (id, {columns}) SELECT 2, {columns} FROM vault_root")
        rows.execute("UPDATE vault_org_key SET root = 2")
        rows.execute("UPDATE vault_root SET retired_at = 1 WHERE id = 1")

    place.database.write_now(again)
    dropped = owner("vault", "drop-root", "1", "--yes", "--json")
    assert (dropped.code, dropped.json["destroyed"]) == (0, False)
    assert "the root key of generation 2 as well" in dropped.json["why_not"]
    assert everything(open_installation(place.installation.settings)) == before


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_in_a_home_that_was_moved_the_next_root_key_is_made_there_and_the_one_before_is_destroyed_there(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    place.installation.close()
    place.home.rename(tmp_path / "moved")
    moved = CommandLine(tmp_path / "moved", owner.person, owner.environ)
    done = moved("vault", "rotate-root", "--yes", "--json")
    assert done.json["location"] == str(tmp_path / "moved" / "keys" / "root-2.key")
    assert not place.home.exists()
    assert moved("vault", "drop-root", "1", "--yes", "--json").json["destroyed"] is True
    assert [path.name for path in (tmp_path / "moved" / "keys").iterdir()] == ["root-2.key"]


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_an_org_key_is_not_moved_under_a_generation_that_a_restore_has_taken_away(
    owner: CommandLine, place: Place
) -> None:
    database, vault = place.database, place.installation.vault

    class Replaced(SqliteDatabase):
        """A database that is replaced by an older one as soon as the rotation has made its key ready."""

        def query(self, read: Callable[[Rows], T]) -> T:
            found = super().query(read)
            if self.read("SELECT 1 FROM vault_root WHERE id = 2 AND check_blob IS NOT NULL"):
                self.write_now(lambda rows: rows.execute("DELETE FROM vault_root WHERE id = 2"))
            return found

    second = root_key_spec(f"file:{place.home / 'keys' / 'root-2.key'}", place.home)
    with pytest.raises((RotationProblem, VaultError), match="replaced"):
        rotate_root(Replaced(database.path), vault, second, by="test")
    assert database.read("SELECT root FROM vault_org_key") == [(1,)]
    assert database.read("SELECT id, retired_at FROM vault_root") == [(1, None)]


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_backup_and_doctor_say_what_a_rotation_that_was_left_half_way_needs(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    assert "no recovery file holds both" not in owner("vault", "backup", str(tmp_path / "whole.db")).err
    database, vault = place.database, place.installation.vault
    rotate_root(database, vault, root_key_spec(f"file:{place.home / 'keys' / 'root-2.key'}", place.home), by="test")
    database.write_now(lambda rows: rows.execute("UPDATE vault_root SET retired_at = NULL"))
    ran = owner("vault", "backup", str(tmp_path / "half.db"))
    assert ran.code == 0
    assert "generations 1 and 2, and no recovery file holds both" in ran.err


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_doctor_names_the_missing_root_key_and_not_the_secret_that_is_under_it(
    owner: CommandLine, place: Place
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.server.rotating", "rotate", str(place.home), "root", "UPDATE vault_org_key"],
        cwd=ROOT,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (place.home / "keys" / "root.key").unlink()
    found = [one["message"] for one in owner("doctor", "--json").json if one["check"] == "credentials"]
    assert "There is no root key at" in found[0]
    assert "Give it again" not in found[0]


@pytest.mark.parametrize("generation", ["0", "-1", "99999999999999999999999"])
def test_a_generation_that_cannot_be_is_misuse(owner: CommandLine, generation: str) -> None:
    ran = owner("vault", "drop-root", "--yes", "--", generation)
    assert ran.code == 2
    assert "went wrong inside" not in ran.err


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_backup_that_does_not_say_its_schema_is_damaged(owner: CommandLine, place: Place, tmp_path: Path) -> None:
    assert owner("vault", "backup", str(tmp_path / "b.db")).code == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "b.db")) as db, db:
        db.execute("DELETE FROM alembic_version")
    ran = owner("vault", "restore", str(tmp_path / "b.db"), "--yes")
    assert (ran.code, "its schema is not said" in ran.err) == (1, True)


def test_what_the_root_key_before_wrapped_is_not_kept(owner: CommandLine, place: Place) -> None:
    assert owner("vault", "rotate-root", "--yes").code == 0
    kept = place.database.read("SELECT id FROM vault_root WHERE installation_key IS NOT NULL")
    assert kept == [(2,)]


def copy_of(place: Place, owner: CommandLine, tmp_path: Path) -> CommandLine:
    """Another home, restored from a backup of this one: it begins with the root key in the first one's folder."""
    copy = CommandLine(tmp_path / "copy", owner.person, owner.environ)
    assert owner("vault", "backup", str(tmp_path / "copy.db")).code == 0
    ran = copy("vault", "restore", str(tmp_path / "copy.db"), "--yes")
    assert ran.code == 0, ran.err
    assert "outside of this home" in ran.err
    assert copy("vault", "status", "--json").json["location"] == str(place.home / "keys" / "root.key")
    return copy


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_what_is_done_in_a_restored_copy_leaves_the_first_installation_its_key(
    owner: CommandLine, place: Place, tmp_path: Path
) -> None:
    before = everything(place.installation)
    copy = copy_of(place, owner, tmp_path)
    assert copy("vault", "rotate-root", "--yes").code == 0
    assert copy("vault", "status", "--json").json["location"] == str(tmp_path / "copy" / "keys" / "root-2.key")
    assert sorted(path.name for path in (place.home / "keys").iterdir()) == ["root.key"]
    dropped = copy("vault", "drop-root", "1", "--yes", "--json").json
    assert (dropped["destroyed"], "outside of KEYLEASH_HOME" in dropped["why_not"]) == (False, True)
    assert everything(open_installation(place.installation.settings)) == before
