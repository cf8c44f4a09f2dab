"""A connection gets no more calls at once, and in a minute, than it takes; none while its provider wants a pause."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest

from connectors.definition import Pace
from server.app import open_installation, running
from server.approval import Decision
from server.call import Parts, call
from server.errors import ApprovalRequired, AtLimit, structured
from server.pacing import LONGEST_PAUSE_S, MINUTE_MS, Turns, pace_of, set_pace
from tests.agents import Nobody, decide, execute
from tests.installed import SECRET, Place
from tests.upstream import Answer, Upstream
from tests.wrapped import Wrapped
from tests.wrapping import wrapping

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

READ = "stripe_list_charges"


def limit(place: Place, name: str = "stripe", **pace: int) -> None:
    place.database.write_now(lambda rows: set_pace(rows, place.org, name, Pace(**pace), by="alice"))


def waiting(place: Place, seconds: float) -> Place:
    """The same place, whose calls wait so long for their turn."""
    settings = replace(place.installation.settings, wait_seconds=seconds)
    return replace(place, installation=replace(place.installation, settings=settings))


def at_the_beginning_of_a_minute(place: Place, used: int, name: str = "stripe") -> None:
    """As many calls were made in a minute that goes on for the whole test."""
    from server.clock import now_ms

    begin = now_ms() // MINUTE_MS * MINUTE_MS + MINUTE_MS  # the next one: a replica whose clock is ahead has begun it
    place.database.write_now(
        lambda rows: rows.execute("INSERT INTO connection_pace VALUES (?, ?, ?, ?)", (place.org, name, begin, used))
    )


async def made(parts: Parts, place: Place, tool: str = READ, **arguments: Any) -> bool:
    return (await call(parts, place.caller(), tool, arguments, Nobody())).ok


class Crowd:
    """An upstream's answer that says how many calls were there at once, and lets them go together."""

    def __init__(self) -> None:
        self.at_once = self.most = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, _request: Any) -> Answer:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.go.wait(20)
        with self._lock:
            self.at_once -= 1
        return Answer({"data": []})


async def until(reached: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not reached():  # noqa: ASYNC110 - a thread of the upstream has no event of ours
            await anyio.sleep(0.01)


async def test_no_more_calls_are_under_way_than_a_connection_takes(place: Place, upstream: Upstream) -> None:
    limit(place, concurrent=3)
    crowd = upstream.answer = Crowd()
    came: list[bool] = []

    async def one() -> None:
        came.append(await made(parts, place))

    async with running(waiting(place, 30).installation) as parts, anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(one)
        await until(lambda: crowd.at_once == 3)
        await anyio.sleep(0.05)  # whoever comes past the limit does so now
        assert len(upstream.requests) == 3
        crowd.go.set()
    assert came == [True] * 10
    assert crowd.most == 3
    assert parts.pace._taken == {}, "nothing is left of a connection that nobody uses"


async def test_a_call_that_waits_too_long_for_others_is_refused_and_nothing_is_sent(
    place: Place, upstream: Upstream
) -> None:
    limit(place, concurrent=1)
    crowd = upstream.answer = Crowd()
    async with running(waiting(place, 0.05).installation) as parts, anyio.create_task_group() as group:
        group.start_soon(made, parts, place)
        await until(lambda: crowd.at_once == 1)
        with pytest.raises(AtLimit) as refused:
            await made(parts, place)
        crowd.go.set()
    assert len(upstream.requests) == 1
    assert structured(refused.value) == {"retry_after": 1}
    assert "Nothing was sent" in str(refused.value)
    (entry,) = place.events("call.refused")
    assert (entry["connection"], entry["outcome"]) == ("stripe", "refused")
    assert "at its limit" in entry["reason"]


async def test_other_connections_do_not_wait(place: Place, upstream: Upstream) -> None:
    place.connect(upstream.url, name="second")
    limit(place, concurrent=1)
    crowd = Crowd()
    upstream.answer = lambda request: crowd(request) if "limit=1" in request.target else Answer({"data": []})
    async with running(waiting(place, 0.05).installation) as parts, anyio.create_task_group() as group:
        group.start_soon(lambda: made(parts, place, limit=1))
        await until(lambda: crowd.at_once == 1)
        assert await made(parts, place, "second_list_charges", limit=2)
        crowd.go.set()


async def test_an_approval_outlives_a_call_that_found_no_turn(place: Place, upstream: Upstream) -> None:
    limit(place, per_minute=1)
    at_the_beginning_of_a_minute(place, used=1)
    async with running(waiting(place, 0).installation) as parts:
        with pytest.raises(ApprovalRequired) as held:
            await made(parts, place, "stripe_create_refund", charge="ch_1")
        decide(place, held.value.approval, Decision.APPROVE)
        with pytest.raises(AtLimit):
            await made(parts, place, "stripe_create_refund", charge="ch_1")
        assert upstream.requests == []
        limit(place)
        assert await made(parts, place, "stripe_create_refund", charge="ch_1")
    assert len(upstream.requests) == 1


async def test_two_servers_together_send_no_more_in_a_minute_than_it_takes(place: Place, upstream: Upstream) -> None:
    limit(place, per_minute=12)
    at_the_beginning_of_a_minute(place, used=0)
    came: list[str] = []

    async def one(parts: Parts, number: int) -> None:
        try:
            came.append(str((await call(parts, place.caller(), READ, {"limit": number}, Nobody())).ok))
        except AtLimit as refused:
            came.append(f"after {refused.retry_after > 0}")

    with contextlib.closing(open_installation(place.installation.settings)) as second:
        other = replace(place, installation=second)
        async with (
            running(waiting(place, 0).installation) as here,
            running(waiting(other, 0).installation) as there,
            anyio.create_task_group() as group,
        ):
            for number in range(50):
                group.start_soon(one, here if number % 2 else there, number + 1)
    assert len(upstream.requests) == 12
    assert sorted(came) == ["True"] * 12 + ["after True"] * 38
    assert place.database.read("SELECT used FROM connection_pace") == [(12,)]
    assert len(place.events("call.attempt")) == 12


async def test_a_call_waits_for_the_next_minute_where_that_is_near(place: Place, upstream: Upstream) -> None:
    limit(place, per_minute=1)
    async with running(waiting(place, 300).installation) as parts:
        at_the_beginning_of_a_minute(place, used=1)
        with anyio.move_on_after(0.3) as gone:
            await made(parts, place)
        assert gone.cancelled_caught, "it waits, and a client that goes away takes it along"
        assert upstream.requests == []
        assert place.events("call.attempt") == []
        place.database.write_now(lambda rows: rows.execute("UPDATE connection_pace SET window_at = 0"))
        assert await made(parts, place)


async def test_a_minute_that_a_wrong_clock_has_begun_far_ahead_holds_nothing_up(
    place: Place, upstream: Upstream
) -> None:
    limit(place, per_minute=1)
    at_the_beginning_of_a_minute(place, used=1)
    execute(place, f"UPDATE connection_pace SET window_at = window_at + {10 * MINUTE_MS}")
    async with running(waiting(place, 0).installation) as parts:
        assert await made(parts, place)
        execute(place, f"UPDATE connection_pace SET window_at = window_at + {MINUTE_MS}")  # it may be over just now
        with pytest.raises(AtLimit):
            await made(parts, place)
    assert len(upstream.requests) == 1


async def test_a_limit_that_is_changed_while_calls_are_under_way_counts_for_the_next() -> None:
    turns, one, two = Turns(0.05), Pace(concurrent=1), Pace(concurrent=2)
    took: list[str] = []

    async def first() -> None:
        await turns.in_turn("c", "stripe", two, partial(second, "two at once"))
        with pytest.raises(AtLimit):
            await turns.in_turn("c", "stripe", one, partial(second, "one at once"))

    async def second(what: str) -> None:
        took.append(what)

    await turns.in_turn("c", "stripe", one, first)
    assert took == ["two at once"]


async def test_a_provider_that_asks_for_a_pause_gets_it(place: Place, upstream: Upstream) -> None:
    place.connect(upstream.url, name="second")
    upstream.answer = lambda request: Answer({"error": {"message": "slow down"}}, 429, {"Retry-After": "30"})
    async with running(waiting(place, 1).installation) as parts:
        assert not await made(parts, place)
        with pytest.raises(AtLimit) as refused:
            await made(parts, place)
        assert len(upstream.requests) == 1
        assert 15 <= refused.value.retry_after <= 30
        upstream.answer = lambda request: Answer({"data": []})
        assert await made(parts, place, "second_list_charges"), "another account pauses by itself"
    async with running(place.installation) as parts:
        assert await made(parts, place), "each server process knows of a pause by itself"


async def test_a_wrapped_server_that_asks_for_a_pause_gets_it(place: Place) -> None:
    with Wrapped(SECRET) as wrapped:
        wrapping(place, url=wrapped.url)
        wrapped.refuse = lambda _method, _headers: (429, {"Retry-After": "30"}, b"")
        async with running(waiting(place, 1).installation) as parts:
            assert not await made(parts, place, "world_echo", text="x")
            seen = len(wrapped.requests)
            with pytest.raises(AtLimit):
                await made(parts, place, "world_echo", text="x")
            assert len(wrapped.requests) == seen


async def test_a_short_pause_is_waited_for(place: Place, upstream: Upstream) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    place.rule(who="everyone", tools=["chat.*"], then="allow")
    message = {"channel": "C0123456789", "text": "a"}
    answers = iter([Answer({"ok": False}, 429, {"Retry-After": "1"}), Answer({"ok": True, "ts": "1"})])
    upstream.answer = lambda request: next(answers)
    async with running(waiting(place, 20).installation) as parts:
        began = anyio.current_time()
        assert not await made(parts, place, "chat_post_message", **message)
        assert await made(parts, place, "chat_post_message", **message)
        assert anyio.current_time() - began >= 0.99
    assert len(upstream.requests) == 2


async def test_without_a_limit_nothing_is_counted(place: Place) -> None:
    async with running(place.installation) as parts:
        assert await made(parts, place)
    assert place.database.read("SELECT * FROM connection_pace") == []


async def test_what_a_file_says_holds_where_nobody_says_otherwise(place: Place, upstream: Upstream) -> None:
    assert place.installation.catalogue.connectors["pagerduty"].limits == Pace(per_minute=960)
    place.connect(upstream.url, connector="pagerduty", name="pager")
    upstream.secret = None
    at_the_beginning_of_a_minute(place, used=960, name="pager")
    async with running(waiting(place, 0).installation) as parts:
        with pytest.raises(AtLimit):
            await made(parts, place, "pager_list_incidents")
        limit(place, "pager", per_minute=961)
        assert await made(parts, place, "pager_list_incidents")
    assert len(upstream.requests) == 1
    (entry,) = place.events("connection.changed")
    assert entry["limits"] == {"concurrent": None, "per_minute": 961}


def test_of_a_managed_account_the_stricter_limit_counts() -> None:
    file, own = Pace(concurrent=5, per_minute=100), Pace(concurrent=9, per_minute=50)
    assert pace_of(file, None, managed=False) == file
    assert pace_of(file, own, managed=False) == own
    assert pace_of(file, own, managed=True) == Pace(concurrent=5, per_minute=50)
    assert pace_of(file, Pace(concurrent=9), managed=False) == Pace(concurrent=9, per_minute=100)


def test_no_provider_can_ask_for_a_pause_without_end() -> None:
    now = [100.0]
    turns = Turns(1.0, clock=lambda: now[0])
    turns.pause("c", 1e9)
    assert turns.paused_s("c") == LONGEST_PAUSE_S
    turns.pause("c", 5)
    assert turns.paused_s("c") == LONGEST_PAUSE_S, "a later word shortens none"
    now[0] += LONGEST_PAUSE_S
    assert turns.paused_s("c") == 0
    turns.pause("c", None)
    assert turns.paused_s("c") == 0


@pytest.mark.parametrize("pace", [Pace(), Pace(concurrent=4)])
async def test_of_the_calls_with_one_word_one_is_made_at_a_time_whatever_the_connection_takes(pace: Pace) -> None:
    turns = Turns(5.0)
    under_way: list[int] = []
    most: list[int] = []

    async def carry_out() -> None:
        under_way.append(1)
        most.append(len(under_way))
        await anyio.sleep(0.02)
        under_way.pop()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(partial(turns.in_turn, "con_1", "world", pace, carry_out, alone="org agent con_1"))
    assert (most, turns._taken) == ([1, 1, 1], {})
