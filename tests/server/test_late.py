"""A request whose body takes its time acts as the caller of when it has come, and as none who was let in before."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest

from server.app import http_door, running
from server.approval import Decision, State
from server.call import Outcome, Parts, call
from server.errors import ApprovalRequired, Refused
from server.http import AGENT_PATH, Door
from server.identity import HTTP, Change, change_member, remove_agent, rotate_agent, set_frozen
from server.rules import remove as remove_rule
from tests.agents import Nobody, decide, execute, record
from tests.commandline import CommandLine
from tests.installed import Place
from tests.raw import Raw, Reply, approving, reply_of
from tests.serving import NO_TLS
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
WAIT_S = 20
STOPS: dict[str, Callable[[Place], object]] = {
    "removed": lambda place: _change_agent(place, remove_agent),
    "rotated": lambda place: _change_agent(place, rotate_agent),
    "frozen": lambda place: place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="x")),
    "expired": lambda place: execute(place, "UPDATE agent SET expires_at = 1"),
}
WHOLE, REST, BEGINNING = 0, 1, 2
"""What of the body is late."""
in_pieces = pytest.mark.parametrize("pieces", [WHOLE, REST, BEGINNING], ids=["whole", "rest", "beginning"])
stopped = pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)


def _change_agent(place: Place, change: Any) -> None:
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.database.write_now(lambda rows: change(rows, place.org, agent, by="x"))


@pytest.fixture
async def parts(place: Place, upstream: Upstream) -> AsyncIterator[Parts]:
    upstream.answer = lambda request: Answer({"id": "re_THE_OUTCOME"})
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
async def door(place: Place, parts: Parts) -> AsyncIterator[Door]:
    made = http_door(place.installation, parts, host="127.0.0.1")
    over, up = anyio.Event(), anyio.Event()

    async def receive() -> dict[str, Any]:
        if up.is_set():
            await over.wait()
        up.set()
        return {"type": "lifespan"}

    async def send(_message: dict[str, Any]) -> None:
        pass

    async with anyio.create_task_group() as group:
        group.start_soon(made, {"type": "lifespan"}, receive, send)
        await up.wait()
        yield made
        over.set()


class Late:
    """A request to the door: its headers have been read when the body is asked for, and that comes when we say."""

    def __init__(self, place: Place, method: str, body: dict[str, Any], name: str | None, *, pieces: int) -> None:
        given = {
            "Host": "127.0.0.1",
            **Raw("", place.tokens["reconciler"], httpx2.AsyncClient(verify=NO_TLS)).headers(method, name),
        }
        headers = [(key.lower().encode(), value.encode()) for key, value in given.items()]
        self.scope: dict[str, Any] = {
            **{"type": "http", "method": "POST", "path": AGENT_PATH, "query_string": b"", "headers": headers},
            **{"client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http", "root_path": ""},
        }
        text = json.dumps(body).encode()
        self._pieces = [text[:9], text[9:]] if pieces else [text]
        self._waits_at = 2 if pieces == BEGINNING else 1
        self.asked, self.go = anyio.Event(), anyio.Event()
        self.status, self.said = 0, b""

    async def receive(self) -> dict[str, Any]:
        if not self._pieces:
            await anyio.sleep_forever()
        if len(self._pieces) == self._waits_at:
            self.asked.set()
            await self.go.wait()
        return {"type": "http.request", "body": self._pieces.pop(0), "more_body": bool(self._pieces)}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        self.said += message.get("body", b"")


@asynccontextmanager
async def late(
    place: Place, door: Door, method: str, params: dict[str, Any], name: str | None = None, *, pieces: int = 0
) -> AsyncIterator[list[Reply]]:
    """The body comes after the block; its answer is then in the list."""
    meta = Raw("", "", httpx2.AsyncClient(verify=NO_TLS)).meta()
    request = Late(
        place,
        method,
        {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}},
        name,
        pieces=pieces,
    )
    answers: list[Reply] = []
    with anyio.fail_after(WAIT_S):
        async with anyio.create_task_group() as group:
            group.start_soon(door, request.scope, request.receive, request.send)
            await request.asked.wait()
            yield answers
            request.go.set()
    answers.append(reply_of(request.status, request.said.decode(), {}))


async def _at_once(place: Place, door: Door, *what: Any) -> Reply:
    async with late(place, door, *what) as answers:
        pass
    return answers[0]


def tool(arguments: dict[str, Any], **more: Any) -> tuple[str, dict[str, Any], str]:
    name = "stripe_create_refund"
    return "tools/call", {"name": name, "arguments": arguments, **more}, name


# -- over HTTP


@in_pieces
@stopped
async def test_a_call_opens_no_prompt_for_who_was_stopped_before_its_body_came(
    place: Place, door: Door, stop: Callable[[Place], object], pieces: int
) -> None:
    async with late(place, door, *tool(REFUND), pieces=pieces) as answers:
        stop(place)
    assert answers[0].refused
    assert place.events("approval.opened", "call.held", "call.attempt") == []


@in_pieces
@stopped
async def test_tools_are_not_listed_for_who_was_stopped(
    place: Place, door: Door, stop: Callable[[Place], object], pieces: int
) -> None:
    async with late(place, door, "tools/list", {}) as answers:
        pass
    assert answers[0].result["tools"]
    async with late(place, door, "tools/list", {}, pieces=pieces) as answers:
        stop(place)
    assert answers[0].result["tools"] == []


@stopped
async def test_no_stream_of_changes_is_opened_for_who_was_stopped(
    place: Place, door: Door, stop: Callable[[Place], object]
) -> None:
    notes = {"notifications": {"toolsListChanged": True}}
    async with late(place, door, "subscriptions/listen", notes) as answers:
        stop(place)
    assert answers[0].message["error"]["message"].startswith(("Your organisation's rules", "All agents of"))


@stopped
async def test_a_stored_outcome_is_not_told_to_who_was_stopped(
    place: Place, door: Door, upstream: Upstream, stop: Callable[[Place], object]
) -> None:
    asked = await _at_once(place, door, *tool(REFUND))
    assert asked.asks
    again = {"requestState": asked.state}
    done = await _at_once(place, door, *tool(REFUND, inputResponses=approving(), **again))
    assert "THE_OUTCOME" in done.text
    assert "THE_OUTCOME" in (await _at_once(place, door, *tool(REFUND, **again))).text
    async with late(place, door, *tool(REFUND, **again)) as answers:
        stop(place)
    assert answers[0].refused
    assert "THE_OUTCOME" not in answers[0].text
    assert len(place.events("call.replayed")) == 1
    assert len(upstream.requests) == 1


async def test_who_left_a_group_before_the_body_came_runs_nothing_of_its_work(
    place: Place, door: Door, owner: CommandLine, upstream: Upstream
) -> None:
    _work_of_a_group(place, owner)
    async with late(place, door, *tool(REFUND)) as answers:
        pass
    assert answers[0].ran
    async with late(place, door, *tool({**REFUND, "amount": 1})) as answers:
        _leave(place)
    assert answers[0].asks
    assert len(upstream.requests) == 1


# -- on the path of a call, whatever the door saw


@stopped
async def test_who_waits_for_an_identical_call_hears_nothing_of_it_once_stopped(
    parts: Parts, place: Place, upstream: Upstream, stop: Callable[[Place], object]
) -> None:
    heard = await _while_one_runs(parts, place, upstream, lambda: stop(place))
    assert isinstance(heard["second"], Refused)
    assert place.events("call.replayed") == []
    assert len(upstream.requests) == 1


async def test_a_rule_that_changes_something_else_meanwhile_keeps_the_outcome_from_nobody(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    def elsewhere() -> None:
        rule = place.rule(who="everyone", tools=["stripe.create_customer"], then="deny")
        place.database.write_now(lambda rows: remove_rule(rows, place.org, rule, by="x"))

    heard = await _while_one_runs(parts, place, upstream, elsewhere)
    assert isinstance(heard["second"], Outcome)
    assert len(place.events("call.replayed")) == 1
    assert len(upstream.requests) == 1


async def test_a_rule_that_denies_the_call_meanwhile_keeps_the_outcome_from_the_agent(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    deny = lambda: place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")  # noqa: E731
    heard = await _while_one_runs(parts, place, upstream, deny)
    assert isinstance(heard["second"], Exception)
    assert place.events("call.replayed") == []


@stopped
async def test_a_person_is_not_asked_for_a_caller_who_was_stopped_a_moment_ago(
    parts: Parts, place: Place, stop: Callable[[Place], object]
) -> None:
    before = place.installation.directory.by_token(place.tokens["reconciler"], transport=HTTP)
    assert before is not None
    stop(place)
    with pytest.raises(Refused):
        await call(parts, before, "stripe_create_refund", REFUND, Nobody())
    assert place.events("approval.opened") == []


async def test_a_caller_whose_rules_changed_a_moment_ago_is_asked_for_by_those_of_now(
    parts: Parts, place: Place
) -> None:
    before = place.caller()
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, before, "stripe_create_refund", REFUND, Nobody())
    assert record(place, held.value.approval).ruling == "approve"


async def test_work_of_a_group_is_not_taken_by_a_caller_of_before(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    _work_of_a_group(place, owner)
    before = place.caller()
    _leave(place)
    with pytest.raises(ApprovalRequired):
        await call(parts, before, "stripe_create_refund", REFUND, Nobody())
    with pytest.raises(ApprovalRequired):
        await call(parts, replace(place.caller(), groups=("finance",)), "stripe_create_refund", REFUND, Nobody())
    assert upstream.requests == []


async def _held(parts: Parts, place: Place) -> str:
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    return held.value.approval


async def _while_one_runs(
    parts: Parts, place: Place, upstream: Upstream, change: Callable[[], object]
) -> dict[str, object]:
    """What two identical calls come to, where something changes while one is sent and the other waits for it."""
    import threading

    arrived, go = threading.Event(), threading.Event()

    def answer(_request: Received) -> Answer:
        arrived.set()
        assert go.wait(WAIT_S)
        return Answer({"id": "re_1"})

    upstream.answer = answer
    approval = await _held(parts, place)
    decide(place, approval, Decision.APPROVE)
    heard: dict[str, object] = {}

    async def one(name: str) -> None:
        caller = replace(place.caller(), transport=HTTP)
        try:
            heard[name] = await call(parts, caller, "stripe_create_refund", REFUND, Nobody(), pointer=approval)
        except Exception as error:
            heard[name] = error

    async with anyio.create_task_group() as group:
        group.start_soon(one, "first")
        assert await anyio.to_thread.run_sync(arrived.wait, WAIT_S)
        assert record(place, approval).state is State.EXECUTING
        group.start_soon(one, "second")
        await _until_it_waits(parts, place)
        change()
        go.set()
    return heard


async def _until_it_waits(parts: Parts, place: Place) -> None:
    """Until the second call has gone as far as it can."""
    while parts.under_way[place.caller().agent] < 2:
        await anyio.lowlevel.checkpoint()
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def _work_of_a_group(place: Place, owner: CommandLine) -> None:
    execute(place, "UPDATE member SET groups = ? WHERE name = 'alice'", json.dumps(["finance"]))
    ran = owner(
        *("grant", "create", "w", "--tool", "stripe_create_refund", "--runner", "group:finance"),
        *("--where", "amount max 5000", "--uses", "9", "--yes", "--json"),
    )
    assert ran.code == 0, ran.err


def _leave(place: Place) -> None:
    change = Change(taken_groups=("finance",))
    place.database.write_now(lambda rows: change_member(rows, place.org, place.owner.id, change, by="x", by_owner=True))
