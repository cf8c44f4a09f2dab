"""Wrapped servers at the command line: connected, tried and tested, one that is started and one that is reached."""

import json
from pathlib import Path

import pytest

from tests.commandline import CommandLine
from tests.installed import Place
from tests.wrapped import TOOLS, Wrapped, command
from tests.wrapping import connector_text

CANARY = "world_canary_nobody_may_read_this_77"


def write(place: Place, text: str) -> Path:
    folder = place.installation.settings.connectors
    folder.mkdir(exist_ok=True, mode=0o700)
    (folder / "world.yaml").write_text(text, encoding="utf-8")
    return folder / "world.yaml"


def test_a_started_server_is_connected_tried_and_its_reads_are_run(place: Place, owner: CommandLine) -> None:
    file = write(place, connector_text(command()))
    checked = owner("connector", "check", str(file))
    assert f"World, {len(TOOLS)} tools" in checked.out
    ran = owner("connect", "world", "--secret-stdin", stdin=f"{CANARY}\n".encode())
    assert ran.code == 0, ran.err
    (shown,) = [one for one in owner("connection", "list", "--json").json if one["name"] == "world"]
    assert shown["base_url"].startswith("stdio:[")
    assert shown["verified_at"] is not None
    assert owner("connection", "test", "world").code == 0
    tried = {one["tool"]: one for one in owner("connector", "test", "world", "--json").json["tried"]}
    assert tried["world_structured"]["ok"]
    assert not tried["world_deep"]["ok"]
    assert "world_hang" not in tried, "it writes"
    assert CANARY not in json.dumps(tried)


def test_a_server_that_is_reached_is_tried_by_its_list(place: Place, owner: CommandLine) -> None:
    write(place, connector_text())
    with Wrapped(CANARY) as wrapped:
        where = ("--base-url", wrapped.url, "--allow-private", "127.0.0.1/32", "--secret-stdin")
        wrong = owner("connect", "world", *where, stdin=b"another-key-entirely\n")
        assert wrong.code == 1
        assert "Credential rejected" in wrong.err
        right = owner("connect", "world", *where, stdin=f"{CANARY}\n".encode())
        assert right.code == 0, right.err
        assert wrapped.world.calls == []
        assert wrapped.world.lists > 0


def test_a_server_that_needs_nothing_is_asked_for_nothing(place: Place, owner: CommandLine) -> None:
    write(place, connector_text(command(), signed=False))
    refused = owner("connect", "world", "--secret-stdin", stdin=b"some-secret-or-other\n")
    assert refused.code == 1
    assert "needs no credential" in refused.err
    ran = owner("connect", "world")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("more", [("--base-url", "https://x.example"), ("--allow-private", "127.0.0.1/32")])
def test_a_started_server_has_no_address_to_give(place: Place, owner: CommandLine, more: tuple[str, ...]) -> None:
    write(place, connector_text(command(), signed=False))
    ran = owner("connect", "world", *more)
    assert ran.code == 1
    assert "there is no address to give" in ran.err


def test_only_the_operator_connects_a_server_that_is_started(place: Place, owner: CommandLine, tmp_path: Path) -> None:
    witness = tmp_path / "started"
    write(place, connector_text(["/usr/bin/touch", str(witness)], signed=False))
    key = place.home / "keys" / "root.key"
    key.rename(key.with_suffix(".away"))
    ran = owner("connect", "world")
    assert ran.code == 1
    assert "connecting a server that is started as a process" in ran.err
    assert not witness.exists()
    assert "Traceback" not in ran.err


def test_what_cannot_be_started_is_said_and_nothing_is_stored(place: Place, owner: CommandLine) -> None:
    write(place, connector_text(["/nowhere/at/all"], signed=False))
    ran = owner("connect", "world")
    assert ran.code == 1
    assert "there is no such program" in ran.err
    assert "Nothing was stored" in ran.err
    assert [one["name"] for one in owner("connection", "list", "--json").json] == ["stripe"]


def test_a_file_is_checked_by_line(place: Place, owner: CommandLine) -> None:
    file = write(place, connector_text().replace("upstream: echo", "upstream: 'not a name'"))
    ran = owner("connector", "check", str(file), "--json")
    assert ran.code == 1
    assert ran.json["line"] > 1
    assert "upstream name" in ran.json["message"]
