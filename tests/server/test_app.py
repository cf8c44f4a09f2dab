"""Opening an installation: the right key opens it, wherever its home is now; another leaves it sealed, and says why."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from server.app import find_root, open_installation, own_root_place, root_place
from server.credential import resolver_of
from server.settings import Settings, SettingsProblem, read_settings
from tests.installed import Place, make
from vault import RootKeyProblem


def test_a_home_that_was_moved_as_a_whole_still_opens(place: Place, tmp_path: Path) -> None:
    place.installation.close()
    place.home.rename(tmp_path / "elsewhere")
    assert open_installation(replace(place.installation.settings, home=tmp_path / "elsewhere")).vault.sealed is None


def test_another_key_than_its_own_is_found_at_start(place: Place, tmp_path: Path) -> None:
    other = make(tmp_path / "other")
    (place.home / "keys" / "root.key").write_bytes((other.home / "keys" / "root.key").read_bytes())
    sealed = open_installation(place.installation.settings).vault.sealed
    assert sealed is not None
    assert "another" in sealed or "not the" in sealed or "wrong" in sealed.lower()


def test_a_key_that_others_can_read_leaves_it_sealed(place: Place) -> None:
    (place.home / "keys" / "root.key").chmod(0o644)
    sealed = open_installation(place.installation.settings).vault.sealed
    assert sealed is not None
    assert "chmod" in sealed


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside of the block we may not enter this folder."""
    folder.chmod(0)
    us = os.geteuid()
    if us == 0:  # whom no mode holds
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(us)
        folder.chmod(0o700)


def test_a_key_in_a_folder_that_we_may_not_enter_is_a_reason_and_no_crash(tmp_path: Path) -> None:
    home, theirs = tmp_path / "home", tmp_path / "theirs" / "keys"
    theirs.mkdir(parents=True)
    key = theirs / "root.key"
    root_place(home, "file", str(key)).create()
    with locked(theirs.parent):
        assert root_place(home, "file", str(key)).location == str(key)
        with pytest.raises(RootKeyProblem, match=r"cannot be read: Permission denied\. Run Keyleash as the user"):
            find_root(home, "file", str(key))
        # Whether that is another installation's home cannot be seen: a new key is not put there.
        assert own_root_place(home, "file", str(key)).location == str(home / "keys" / "root.key")


def test_where_a_key_cannot_be_looked_for_the_vault_is_sealed_and_says_why(place: Place) -> None:
    long = f"/{'k' * 300}/root.key"
    place.database.write_now(lambda rows: rows.execute("UPDATE vault_root SET location = ?", (long,)))
    (place.home / "keys" / "root.key").rename(place.home / "keys" / "elsewhere.key")
    sealed = open_installation(place.installation.settings).vault.sealed
    assert sealed is not None
    assert f"The root key at {long} cannot be read" in sealed


def test_a_rule_that_cannot_be_read_stops_every_call_and_is_not_skipped(place: Place) -> None:
    from server.policy import RuleError

    place.rule(who="everyone", tools=["stripe.*"], then="deny")
    place.database.write_now(
        lambda rows: rows.execute('UPDATE rule SET body = \'{"who": "nobody we know"}\' WHERE org = ?', (place.org,))
    )
    with pytest.raises(RuleError):
        place.installation.workspaces.of(place.caller())


@pytest.mark.parametrize("value", ["-1", "51", "nan", "soon", "inf"])
def test_a_hold_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KEYLEASH_HOLD_SECONDS", value)
    with pytest.raises(SettingsProblem, match="KEYLEASH_HOLD_SECONDS"):
        read_settings()


@pytest.mark.parametrize("value", ["-1", "10001", "2.5", "nan", "many", "inf", ""])
def test_a_limit_of_the_list_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KEYLEASH_LIST_LIMIT", value)
    with pytest.raises(SettingsProblem, match="KEYLEASH_LIST_LIMIT"):
        read_settings()


def test_sixty_tools_are_listed_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYLEASH_LIST_LIMIT", raising=False)
    assert read_settings().list_limit == Settings(home=Path()).list_limit == 60
    monkeypatch.setenv("KEYLEASH_LIST_LIMIT", "0")
    assert read_settings().list_limit == 0


@pytest.mark.parametrize("value", ["0", "0.9", "31", "nan", "soon", "inf"])
def test_a_time_for_references_that_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KEYLEASH_REFERENCE_SECONDS", value)
    with pytest.raises(SettingsProblem, match="KEYLEASH_REFERENCE_SECONDS"):
        read_settings()


def test_references_are_resolved_as_the_operator_has_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ("REFERENCE_SECONDS", "OP_TOKEN_FILE", "KV_ADDR", "KV_TOKEN_FILE", "KV_CA_FILE")
    for name in names:
        monkeypatch.delenv(f"KEYLEASH_{name}", raising=False)
    monkeypatch.setenv("KEYLEASH_HOME", str(tmp_path))
    unset = resolver_of(read_settings())
    assert (unset.home, unset.seconds, unset.op_token_file, unset.kv_address) == (tmp_path, 10, None, "")
    for name, value in zip(names, ("2.5", "/t/op", "https://kv.example:8200", "/t/kv", "/t/ca"), strict=True):
        monkeypatch.setenv(f"KEYLEASH_{name}", value)
    given = resolver_of(read_settings())
    assert (given.seconds, given.kv_address) == (2.5, "https://kv.example:8200")
    assert (given.op_token_file, given.kv_token_file, given.kv_ca_file) == (Path("/t/op"), Path("/t/kv"), Path("/t/ca"))


def test_the_default_home_is_the_platforms_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KEYLEASH_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_settings().home == tmp_path / "keyleash"
