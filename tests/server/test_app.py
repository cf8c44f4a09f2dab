"""Opening an installation: the right key opens it, wherever its home is now; another leaves it sealed, and says why."""

from pathlib import Path

import pytest

from server.app import open_installation
from server.settings import Settings, SettingsProblem, read_settings
from tests.installed import Place, make


def test_a_home_that_was_moved_as_a_whole_still_opens(place: Place, tmp_path: Path) -> None:
    place.installation.close()
    place.home.rename(tmp_path / "elsewhere")
    assert open_installation(Settings(home=tmp_path / "elsewhere")).vault.sealed is None


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


def test_a_rule_that_cannot_be_read_stops_every_call_and_is_not_skipped(place: Place) -> None:
    from server.policy import RuleError

    place.rule(who="everyone", tools=["stripe.*"], then="deny")
    place.installation.database.write_now(
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


def test_the_default_home_is_the_platforms_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KEYLEASH_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert read_settings().home == tmp_path / "keyleash"
