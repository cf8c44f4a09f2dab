"""The root key is exported only by the operator, under a passphrase that is never shown, and on record."""

import json
import stat
import sys
from pathlib import Path

import pytest

from tests.commandline import CommandLine
from tests.installed import Place
from tests.leaks import leak, leaking_files
from vault.rotation import begin_root

PASSPHRASE = "correct horse battery"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept" / "recovery.json"


def export(line: CommandLine, target: Path, *more: str, stdin: bytes = PASSPHRASE.encode()):
    return line("vault", "export-recovery", str(target), "--passphrase-stdin", *more, stdin=stdin)


def test_the_passphrase_is_asked_for_twice_and_never_shown(owner: CommandLine, place: Place, target: Path) -> None:
    with owner.at_terminal("vault", "export-recovery", str(target)) as terminal:
        terminal.until("at least 12 characters: ")
        terminal.type(f"{PASSPHRASE}\n")
        terminal.until("The same again: ")
        terminal.type(f"{PASSPHRASE}\n")
        assert terminal.end() == 0, terminal.shown
    assert leak(terminal.shown, PASSPHRASE) is None
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    (place.home / "keys" / "root.key").unlink()
    with owner.at_terminal("vault", "restore", "--recovery", str(target), "--root", "file") as terminal:
        terminal.until("Passphrase of recovery.json: ")
        terminal.type(f"{PASSPHRASE}\n")
        assert terminal.end() == 0, terminal.shown
    assert leak(terminal.shown, PASSPHRASE) is None
    assert owner("vault", "status", "--json").json["sealed"] is False


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [("too short", None, "at least 12 characters:"), (PASSPHRASE, "correct horse batterx", "not the same")],
)
def test_a_passphrase_that_will_not_do_writes_nothing(
    owner: CommandLine, place: Place, target: Path, first: str, second: str | None, said: str
) -> None:
    with owner.at_terminal("vault", "export-recovery", str(target)) as terminal:
        terminal.until("characters: ")
        terminal.type(f"{first}\n")
        if second is not None:
            terminal.until("again: ")
            terminal.type(f"{second}\n")
        assert terminal.end() == 1
    assert said in terminal.shown
    assert not target.exists()
    assert place.events("vault.root_exported") == []


def test_without_a_terminal_it_says_how_to_give_a_passphrase(owner: CommandLine, target: Path) -> None:
    ran = owner.alone("vault", "export-recovery", str(target))
    assert ran.code == 1
    assert "--passphrase-stdin" in ran.err
    assert not target.exists()


@pytest.mark.parametrize("stdin", [b"", b"\n", b"short", b"\xff" * 20, b"x" * 5000, b"\r\n"])
def test_standard_input_without_a_passphrase_writes_nothing(
    owner: CommandLine, place: Place, target: Path, stdin: bytes
) -> None:
    ran = export(owner, target, stdin=stdin)
    assert ran.code == 1
    assert "passphrase" in ran.err
    assert "Traceback" not in ran.err
    assert not target.exists()
    assert place.events("vault.root_exported") == []


@pytest.mark.parametrize("given", [["--passphrase", PASSPHRASE], [f"--passphrase-stdin={PASSPHRASE}"], [PASSPHRASE]])
def test_there_is_no_way_to_give_a_passphrase_as_an_argument(
    owner: CommandLine, target: Path, given: list[str]
) -> None:
    for command in (["export-recovery", str(target)], ["restore", str(target), "--recovery", str(target)]):
        assert owner("vault", *command, *given).code == 2
    assert not target.exists()


def test_it_is_on_record_in_every_log_before_it_is_written(owner: CommandLine, place: Place, target: Path) -> None:
    assert export(owner, target).code == 0
    (entry,) = place.events("vault.root_exported")
    assert (entry["generation"], entry["file"]) == (1, "recovery.json")
    assert entry["by"].startswith("the operator (system user ")
    assert "kept" not in json.dumps(entry)


@pytest.mark.skipif(sys.platform == "win32", reason="modes protect nothing there")
def test_what_cannot_be_written_is_said_before_a_passphrase_is_asked_for(
    owner: CommandLine, place: Place, target: Path
) -> None:
    target.write_text("mine")
    for path, said in ((target, "not touched"), (target.parent / "none" / "r", "no folder")):
        with owner.at_terminal("vault", "export-recovery", str(path)) as terminal:
            assert terminal.end() == 1
        assert said in terminal.shown
        assert "assphrase" not in terminal.shown
    assert target.read_text() == "mine"
    assert place.events("vault.root_exported") == []


def test_only_the_operator_exports_the_key(owner: CommandLine, place: Place, target: Path) -> None:
    (place.home / "keys" / "root.key").unlink()
    ran = export(owner, target)
    assert ran.code == 1
    assert "Only the operator" in ran.err
    assert not target.exists()


def test_while_a_rotation_is_unfinished_one_key_would_not_do(owner: CommandLine, place: Place, target: Path) -> None:
    place.database.write_now(
        lambda rows: begin_root(rows, provider="file", location=str(place.home / "keys" / "root-2.key"))
    )
    ran = export(owner, target)
    assert ran.code == 1
    assert "keyleash vault rotate-root" in ran.err
    assert not target.exists()


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_the_key_is_shown_nowhere_and_stands_in_no_other_file(owner: CommandLine, place: Place, target: Path) -> None:
    ran = export(owner, target, "--json")
    assert ran.code == 0
    assert set(ran.json) == {"file", "generation", "fits", "made_at"}
    key = (place.home / "keys" / "root.key").read_text().strip().removeprefix("keyleash-root-key:v1:")
    for canary in (key, PASSPHRASE):
        assert leak(ran.out + ran.err, canary) is None
        assert leaking_files(target.parent, canary) == []
        assert leaking_files(place.home / "data", canary) == []


def test_after_a_rotation_the_older_file_is_said_to_be_for_another_generation(
    owner: CommandLine, place: Place, target: Path
) -> None:
    assert export(owner, target).code == 0
    assert owner("vault", "rotate-root", "--yes").code == 0
    for key in (place.home / "keys").iterdir():
        key.unlink()
    ran = owner(
        *("vault", "restore", "--recovery", str(target), "--root", "file", "--passphrase-stdin"),
        stdin=PASSPHRASE.encode(),
    )
    assert ran.code == 1
    assert "for another root key" in ran.err
    assert "generation 1" in ran.err
    assert "generation 2" in ran.err
    assert list((place.home / "keys").iterdir()) == []
