"""A server looks by itself whether wrapped servers still say what was reviewed: in its turn, and one of many."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from connectors.errors import Unreachable
from server.app import running
from server.clock import now_ms
from server.connections import Connection, connection_named, remove
from server.held import held_of
from server.identity import set_frozen
from server.looking import Looking, looking
from server.settings import SettingsProblem, read_settings
from tests.agents import execute, with_connector
from tests.installed import SECRET, Place, add_org, files_holding
from tests.keeping import command, connector_text
from tests.wrapped import Wrapped
from tests.wrapping import connector_text as world_text
from tests.wrapping import wrapping

pytestmark = pytest.mark.anyio

HOUR_S = 3600.0


@pytest.fixture
def wrapped() -> Iterator[Wrapped]:
    with Wrapped(SECRET) as running_server:
        yield running_server


@asynccontextmanager
async def looks(place: Place, every_s: float = HOUR_S) -> AsyncIterator[Looking]:
    """With the server's own turned off."""
    async with running(place.installation) as parts:
        yield Looking(parts, place.installation.catalogue.connectors, every_s)


def an_hour_later(place: Place) -> int:
    return execute(place, "UPDATE definition_look SET looked_at = looked_at - ?", int(HOUR_S * 1000))


@pytest.mark.both_databases
async def test_what_has_changed_is_held_and_on_record_without_a_call(place: Place, wrapped: Wrapped) -> None:
    wrapping(place, url=wrapped.url)
    async with looks(place) as own:
        await own.go()
        assert wrapped.requests == [], "it was looked at when it was connected"
        wrapped.world.descriptions["echo"] = "Another."
        await own.go()
        assert wrapped.requests == [], "not before its time"
        assert an_hour_later(place) == 1
        await own.go()
        assert [each.tool for each in held_of(place.database, place.org)] == ["echo"]
        (entry,) = place.events("tool.held")
        assert (entry["tool"], entry["outcome"], entry.get("by")) == ("world_echo", "changed", None)
        assert "world_echo" in place.installation.workspaces.of(place.caller()).held
        seen = len(wrapped.requests)
        await own.go()
        assert len(wrapped.requests) == seen, "the next one is in an hour"
        wrapped.world.descriptions.clear()
        an_hour_later(place)
        await own.go()
        assert held_of(place.database, place.org) == []
    assert [body["tool"] for body in place.events("tool.returned")] == ["world_echo"]
    assert wrapped.world.calls == []
    assert place.events("call.attempt") == []


async def test_a_server_that_is_started_is_looked_at_too_and_ended(place: Place) -> None:
    text = connector_text(command(), keep=None)
    with_connector(place, "state", text)
    place.connect(None, connector="state", secret=SECRET)
    recall = place.installation.catalogue.connectors["state"].tools["recall"]
    with_connector(place, "state", text.replace(recall.pinned, "a" * 64))
    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        await own.go()
    assert [each.tool for each in held_of(place.database, place.org)] == ["recall"]


@pytest.mark.both_databases
async def test_of_several_servers_one_looks(place: Place, wrapped: Wrapped) -> None:
    wrapping(place, url=wrapped.url)
    async with looks(place) as one:
        await one.go()
        an_hour_later(place)
        others = [Looking(one.parts, one.connectors, HOUR_S) for _ in range(3)]
        await asyncio.gather(*(each.go() for each in (one, *others)))
    assert wrapped.world.lists == 3, "one look, of three pages"


@pytest.mark.parametrize("why", ["not reviewed", "needs consent", "frozen", "not an mcp server"])
async def test_nothing_is_asked_that_is_not_to_be(place: Place, wrapped: Wrapped, why: str) -> None:
    text = world_text(reviewed=why != "not reviewed")
    with_connector(place, "world", text)
    place.connect(wrapped.url, connector="world", secret=SECRET)
    async with looks(place) as own:
        await own.go()
        execute(place, "DELETE FROM definition_look")
        rows = [(place.org, each.id) for each in own.parts.workspaces.of(place.caller()).connections.values()]
        for org, connection in rows:
            execute(place, "INSERT INTO definition_look VALUES (?, ?, 0)", org, connection)
        if why == "needs consent":
            execute(place, "UPDATE connection SET needs_consent_at = 1")
        if why == "frozen":
            place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))
        if why == "not an mcp server":
            execute(place, "UPDATE connection SET connector = 'stripe' WHERE name = 'world'")
        await own.go()
    assert wrapped.requests == []


async def test_a_server_that_cannot_be_asked_is_in_the_log_alone_and_is_asked_in_its_turn(
    place: Place, wrapped: Wrapped, caplog: pytest.LogCaptureFixture
) -> None:
    wrapping(place, url=wrapped.url)
    other = add_org(place.installation, "globex")
    other.connect(wrapped.url, connector="world", secret="another-key-entirely")
    wrapped.world.descriptions["echo"] = "Another."
    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        await own.go()
        seen = len(wrapped.requests)
        await own.go()
        assert len(wrapped.requests) == seen
    assert other.events("tool.held") == []
    assert "what the server of world says could not be looked at: Credential rejected" in caplog.text
    assert [each.tool for each in held_of(place.database, place.org)] == ["echo"], "and the others are looked at"
    assert not any(SECRET in record.getMessage() for record in caplog.records if record.thread != wrapped.thread.ident)
    assert files_holding(place.home, SECRET.encode()) == []


async def test_nothing_is_held_of_a_connection_that_was_removed_meanwhile(place: Place, wrapped: Wrapped) -> None:
    wrapping(place, url=wrapped.url)
    connection = connection_named(place.database, place.org, "world")
    vault = place.installation.vault
    wrapped.world.descriptions["echo"] = "Another."

    def removed() -> None:
        wrapped.world.after_list = lambda: None
        place.database.write_now(lambda rows: remove(rows, vault, connection, by="alice"))

    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        wrapped.world.after_list = removed
        await own.go()
    assert place.events("tool.held") == []
    assert place.database.read("SELECT * FROM definition_look") == []
    assert place.database.read("SELECT * FROM held_definition") == []


async def test_a_server_looks_by_itself_or_never(place: Place, wrapped: Wrapped) -> None:
    wrapping(place, url=wrapped.url)
    for every_s, asked in ((0.0, False), (HOUR_S, True)):
        async with looks(place, every_s) as own:
            await Looking(own.parts, own.connectors, HOUR_S).go()
            an_hour_later(place)
            async with looking(own, glance_s=0.01):
                with anyio.move_on_after(20 if asked else 0.3):
                    while not wrapped.world.lists:  # noqa: ASYNC110 - the server is in another thread
                        await anyio.sleep(0.01)
        assert bool(wrapped.requests) is asked


def test_one_of_the_time_to_come_holds_nothing_up(place: Place, wrapped: Wrapped) -> None:
    from server.looking import claim

    wrapping(place, url=wrapped.url)
    connection = connection_named(place.database, place.org, "world")
    execute(place, "INSERT INTO definition_look VALUES (?, ?, ?)", place.org, connection.id, now_ms() + 10**9)
    assert place.database.write_now(lambda rows: claim(rows, connection, 1000))
    assert not place.database.write_now(lambda rows: claim(rows, connection, 1000))


@pytest.mark.parametrize("given", ["299", "604801", "x", "-1", "1.5", ""])
def test_a_setting_that_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("KEYLEASH_LOOK_SECONDS", given)
    with pytest.raises(SettingsProblem, match="KEYLEASH_LOOK_SECONDS"):
        read_settings()
    for good in ("0", "300", "604800"):
        monkeypatch.setenv("KEYLEASH_LOOK_SECONDS", good)
        assert read_settings().look_seconds == float(good)


async def test_a_freeze_counts_for_the_looks_that_were_due_before_it(place: Place, wrapped: Wrapped) -> None:
    """The looks are made one after the other, which takes as long as the servers do."""
    wrapping(place, url=wrapped.url)
    place.connect(wrapped.url, connector="world", name="world_two", secret=SECRET)

    def freeze() -> None:
        wrapped.world.after_list = lambda: None
        place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))

    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        wrapped.world.after_list = freeze
        await own.go()
    assert wrapped.world.lists == 3, "the look that was under way is made, and no other is begun"


async def test_a_look_that_fails_inside_stands_in_no_others_way(
    place: Place, wrapped: Wrapped, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrapping(place, url=wrapped.url)
    place.connect(wrapped.url, connector="world", name="world_two", secret=SECRET)
    asked: list[str] = []

    async def broken(_egress: object, connection: Connection, *_: object, **__: object) -> None:
        asked.append(connection.name)
        raise RecursionError(SECRET)

    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        monkeypatch.setattr("server.looking.verify", broken)
        await own.go()
    assert sorted(asked) == ["world", "world_two"]
    assert SECRET not in caplog.text


async def test_others_are_served_while_it_is_looked_what_is_due(place: Place) -> None:
    for number in range(20):
        add_org(place.installation, f"org{number}")
    turns = 0

    async def serve() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with looks(place) as own:
        task = asyncio.create_task(serve())
        await asyncio.sleep(0)
        before = turns
        await own.go()
        task.cancel()
    assert turns - before >= 20


async def test_an_org_whose_servers_take_long_holds_up_no_others_look(
    place: Place, wrapped: Wrapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapping(place, url=wrapped.url)
    for number in range(4):
        place.connect(wrapped.url, connector="world", name=f"world_{number}", secret=SECRET)
    other = add_org(place.installation, "globex")
    other.connect(wrapped.url, connector="world", secret=SECRET)
    asked: list[str] = []

    async def slowly(_egress: object, connection: Connection, *_: object, **__: object) -> None:
        asked.append(connection.org)
        await asyncio.sleep(0 if asked.count(place.org) % 2 else 1.1)
        raise Unreachable("It hangs.")

    async with looks(place) as own:
        await own.go()
        an_hour_later(place)
        monkeypatch.setattr("server.looking.verify", slowly)
        monkeypatch.setattr("server.looking.ORG_S", 1.0)
        await own.go()
        assert (asked.count(place.org), asked.count(other.org)) == (2, 1)
        await own.go()
        await own.go()
        assert (asked.count(place.org), asked.count(other.org)) == (5, 1), "and the rest have their turn"
