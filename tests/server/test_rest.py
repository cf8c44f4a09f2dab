"""What is left of a long answer is read on by the agent that asked, for a while, and nothing is sent a second time."""

import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from connectors.portions import MAX_TEXT
from server.app import running
from server.call import Outcome, call
from server.connections import connection_named, remove
from server.errors import BadArguments, Busy, CallRefused
from server.identity import Caller
from server.parts import MOST_AT_ONCE
from server.rest import EACH_AGENT, KEPT_S, MOST_BYTES, Rests
from server.retelling import read_more
from tests.agents import ERAS, Nobody, answering, connected
from tests.installed import Place, add_org, files_holding
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio
MARK = "canary4Hq9"
CHARGES = [{"id": f"ch_{number:05}", "description": f"{MARK} {'é' * 60}"} for number in range(1_000)]


@pytest.fixture
def place(place: Place, upstream: Upstream) -> Place:
    upstream.answer = lambda _: Answer({"object": "list", "data": CHARGES, "has_more": True})
    return place


def handle(told: dict[str, Any]) -> str:
    found = re.search(r"call read_more with answer (ans_\w+-\d+)\.", told["note_on_length"])
    assert found, told["note_on_length"]
    return found[1]


def ids(told: dict[str, Any] | None, name: str = "charges") -> list[str]:
    assert told is not None
    return [each["id"] for each in told[name]]


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["memory", "http"])
async def test_an_agent_reads_a_long_answer_to_its_end(
    place: Place, upstream: Upstream, transport: str, era: str
) -> None:
    seen: list[str] = []
    async with connected(place, transport, era) as client:
        assert "read_more" in [tool.name for tool in (await client.list_tools()).tools]
        told = (await client.call_tool("stripe_list_charges", {"limit": 100})).structured_content
        assert told is not None
        assert told["has_more"] is True
        seen += ids(told)
        while "read_more" in told["note_on_length"]:
            result = await client.call_tool("read_more", {"answer": handle(told)})
            assert not result.is_error
            (block,) = result.content
            assert json.loads(block.text) == result.structured_content  # pyright: ignore[reportAttributeAccessIssue]
            assert len(block.text.encode()) <= MAX_TEXT  # pyright: ignore[reportAttributeAccessIssue]
            told = result.structured_content
            assert told is not None
            seen += ids(told)
        assert "This is the end of it." in told["note_on_length"]
    assert seen == [charge["id"] for charge in CHARGES]
    assert len(upstream.requests) == 1
    read_on = place.events("call.replayed")
    assert {(each["tool"], each["outcome"]) for each in read_on} == {("stripe_list_charges", "continued")}
    assert 3 <= len(read_on) <= 8
    assert len(place.events("call.attempt")) == 1


async def test_the_rest_of_a_writes_answer_is_read_without_writing_again(place: Place, upstream: Upstream) -> None:
    upstream.answer = lambda _: Answer({"id": "cus_1", "name": "Ann", "metadata": {"note": MARK * 20_000}})
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, "memory", "auto", answer) as client:
        told = (await client.call_tool("stripe_create_customer", {"name": "Ann"})).structured_content
        assert told is not None
        text = told["json"]
        while "read_more" in told["note_on_length"]:
            told = (await client.call_tool("read_more", {"answer": handle(told)})).structured_content
            assert told is not None
            text += told["json"]
    assert json.loads(text)["metadata"] == {"note": MARK * 20_000}
    assert [request.method for request in upstream.requests] == ["POST"]
    assert len(asked) == 1


async def first(parts: Any, place: Place, agent: str = "reconciler") -> str:
    outcome = await call(parts, place.caller(agent), "stripe_list_charges", {}, Nobody())
    assert outcome.structured is not None
    return handle(outcome.structured)


async def test_nobody_else_reads_it(place: Place, upstream: Upstream) -> None:
    place.agent("other")
    globex = add_org(place.installation, "globex")
    globex.connect(upstream.url)
    globex.agent()
    async with running(place.installation) as parts:
        where = await first(parts, place)
        for stranger in (place.caller("other"), globex.caller()):
            with pytest.raises(BadArguments, match="no such answer") as refused:
                await read_more(parts, stranger, where)
            assert MARK not in str(refused.value)
            with pytest.raises(BadArguments) as fiction:
                await read_more(parts, stranger, f"ans_{'a' * 16}-10")
            assert str(fiction.value) == str(refused.value)
        assert isinstance(await read_more(parts, place.caller(), where), Outcome)
    assert globex.events("call.replayed") == []


async def test_others_are_served_while_a_long_answer_is_taken_apart(place: Place) -> None:
    threads: list[str] = []

    class Watched(Rests):
        def keep(self, *arguments: Any) -> Any:
            threads.append(threading.current_thread().name)
            return super().keep(*arguments)

        def find(self, caller: Caller, place: str) -> Any:
            handle, start, kept = super().find(caller, place)

            def told(*arguments: Any) -> Any:
                threads.append(threading.current_thread().name)
                return kept.told(*arguments)

            facts = {name: getattr(kept, name) for name in ("name", "arguments", "connection", "definition")}
            return handle, start, SimpleNamespace(told=told, **facts)

    async with running(place.installation) as parts:
        watched = replace(parts, rests=Watched())
        await read_more(watched, place.caller(), await first(watched, place))
    assert len(threads) == 2
    assert threading.current_thread().name not in threads


async def test_who_reads_on_has_a_call_under_way(place: Place) -> None:
    async with running(place.installation) as parts:
        where = await first(parts, place)
        parts.under_way[place.caller().agent] = MOST_AT_ONCE
        with pytest.raises(Busy):
            await read_more(parts, place.caller(), where)
        assert parts.under_way[place.caller().agent] == MOST_AT_ONCE


async def test_it_is_read_only_while_the_call_could_be_made(place: Place, upstream: Upstream) -> None:
    async with running(place.installation) as parts:
        where = await first(parts, place)
        place.rule(who="everyone", tools=["stripe.list_charges"], then="deny")
        with pytest.raises(CallRefused) as refused:
            await read_more(parts, place.caller(), where)
        assert MARK not in str(refused.value)
    assert place.events("call.replayed") == []
    assert [each["tool"] for each in place.events("call.refused")] == ["stripe_list_charges"]
    assert len(upstream.requests) == 1


async def test_it_is_not_read_through_another_connection_of_the_same_name(place: Place, upstream: Upstream) -> None:
    async with running(place.installation) as parts:
        where = await first(parts, place)
        old = connection_named(place.database, place.org, "stripe")
        place.database.write_now(lambda rows: remove(rows, place.installation.vault, old, by="test"))
        place.connect(upstream.url)
        with pytest.raises(BadArguments, match="has changed since"):
            await read_more(parts, place.caller(), where)
    assert place.events("call.replayed") == []


@pytest.mark.parametrize("change", [lambda where: where[:-1] + "x", lambda where: where.partition("-")[0]])
async def test_a_place_of_another_form_is_none(place: Place, change: Callable[[str], str]) -> None:
    async with running(place.installation) as parts:
        where = await first(parts, place)
        for wrong in (change(where), f"{where}9999", f"{where.partition('-')[0]}--1", f"{where}{'9' * 5000}", ""):
            with pytest.raises(BadArguments):
                await read_more(parts, place.caller(), wrong)


async def test_nothing_of_it_is_written_down(place: Place) -> None:
    async with running(place.installation) as parts:
        where = await first(parts, place)
        await read_more(parts, place.caller(), where)
        assert MARK not in repr(parts)
        assert MARK not in repr(parts.rests.find(place.caller(), where))
    assert files_holding(place.home, MARK.encode()) == []


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(rests: Rests, place: Place, whole: Any, agent: str = "reconciler") -> str:
    offer = place.installation.workspaces.of(place.caller(agent)).offer
    of = offer.bind("stripe_list_charges", {})
    return handle(rests.keep(place.caller(agent), of, "con_1", whole).structured)


def test_what_is_kept_shows_neither_the_arguments_nor_the_answer(place: Place) -> None:
    offer, rests = place.installation.workspaces.of(place.caller()).offer, Rests(Clock())
    of = offer.bind("stripe_list_charges", {"customer": f"cus_{MARK}"})
    where = handle(rests.keep(place.caller(), of, "con_1", {"data": CHARGES}).structured)
    _, _, one = rests.find(place.caller(), where)
    assert MARK in str(one.arguments)
    assert MARK not in repr(one)
    assert "packed" not in repr(one)


def test_it_is_kept_for_a_while(place: Place) -> None:
    clock = Clock()
    rests = Rests(clock)
    where = kept(rests, place, {"data": CHARGES})
    clock.now = KEPT_S - 1
    assert rests.find(place.caller(), where)
    clock.now = KEPT_S
    with pytest.raises(BadArguments, match="no longer kept"):
        rests.find(place.caller(), where)


def test_an_agent_keeps_its_last_few_and_takes_nobody_elses_room(place: Place) -> None:
    place.agent("other")
    rests = Rests(Clock())
    theirs = kept(rests, place, {"data": CHARGES}, "other")
    mine = [kept(rests, place, {"data": CHARGES}) for _ in range(EACH_AGENT + 2)]
    for gone in mine[:2]:
        with pytest.raises(BadArguments):
            rests.find(place.caller(), gone)
    for there in mine[2:]:
        assert rests.find(place.caller(), there)
    assert rests.find(place.caller("other"), theirs)


def test_who_keeps_most_makes_room(place: Place) -> None:
    place.agent("other")
    place.agent("third")
    rests = Rests(Clock())
    theirs = kept(rests, place, {"data": CHARGES}, "other")
    noise = random.Random(1).randbytes(MOST_BYTES // EACH_AGENT * 3 // 4).hex()
    mine = [kept(rests, place, {"text": noise}) for _ in range(EACH_AGENT)]
    third = kept(rests, place, {"text": noise[: MOST_BYTES // EACH_AGENT]}, "third")
    assert rests.find(place.caller("other"), theirs)
    assert rests.find(place.caller("third"), third)
    assert rests.find(place.caller(), mine[-1])
    with pytest.raises(BadArguments):
        rests.find(place.caller(), mine[0])


def test_all_together_are_bounded_and_what_is_too_long_is_cut_as_before(place: Place) -> None:
    rests = Rests(Clock())
    noise = random.Random(1).randbytes(MOST_BYTES // EACH_AGENT // 2 + 1).hex()
    told = rests.keep(
        place.caller(),
        place.installation.workspaces.of(place.caller()).offer.bind("stripe_list_charges", {}),
        "con_1",
        {"text": noise * 2},
    )
    assert "Ask for less" in told.structured["note_on_length"]
    names = ["reconciler", *(f"agent{number}" for number in range(8))]
    for name in names[1:]:
        place.agent(name)
    places = {name: kept(rests, place, {"text": noise}, name) for name in names}
    gone = 0
    for name, where in places.items():
        try:
            rests.find(place.caller(name), where)
        except BadArguments:
            gone += 1
    assert 0 < gone < len(names)
    assert rests.find(place.caller(names[-1]), places[names[-1]])
