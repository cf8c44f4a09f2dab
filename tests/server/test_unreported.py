"""A call that may be on the bill, and of which nobody knows what it took, is counted as that, and never as nothing."""

from collections.abc import AsyncIterator

import pytest

from connectors.bounded import DEFAULT_LIMITS
from server.app import running
from server.budgets import create
from server.call import Outcome, Parts, call
from server.errors import Unrecorded
from server.recounting import counted, differences
from server.spending import all_standings
from server.totals import Usage, usage_by
from server.usage import MOST_COST, MOST_TOKENS, MOST_UNITS
from tests.agents import Nobody, with_connector
from tests.installed import SECRET, Place
from tests.metering import entry
from tests.upstream import Answer, Upstream
from tests.wrapped import Wrapped
from tests.wrapping import connector_text, tool_block

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

SAID = b'"usage": {"tokens": {"input": 7, "output": 2}, "cost": 0.5, "unit": "usd"}'
MANY = b'"vectors": [' + b"0," * DEFAULT_LIMITS.max_values + b"0]"
DEEP = b'"deep": ' + b"[" * DEFAULT_LIMITS.max_depth + b"]" * DEFAULT_LIMITS.max_depth


@pytest.fixture
async def parts(metered: Place) -> AsyncIterator[Parts]:
    async with running(metered.installation) as opened:
        yield opened


async def ask(parts: Parts, place: Place) -> Outcome:
    return await call(parts, place.caller(), "metered_ask", {"text": "hi"}, Nobody())


def whole(place: Place) -> Usage:
    (one,) = usage_by(place.database, place.org, "org", since="2000-01-01")
    return one


def agrees(place: Place) -> None:
    assert differences(place.database, place.org, since="2000-01-01") == ("2000-01-01", [])


@pytest.mark.parametrize(
    "answer",
    [
        Answer({}),
        Answer({"usage": None}),
        Answer({"usage": {"other": 9}}),
        Answer(b"no JSON"),
        Answer(b"{" + b" " * DEFAULT_LIMITS.max_body + SAID + b"}"),
        Answer(b"{" + MANY + b"}"),
        Answer(b'{"inner": {' + SAID + b"}, " + MANY + b"}"),
        Answer(b'{"inner": "{\\"usage\\": {}", ' + MANY + b"}"),
        Answer(b"{" + MANY + b', "usage": {"tokens": '),
        Answer({"error": {}}, status=500),
        Answer({"error": {}}, status=408),
        Answer(hang_up=True),
        Answer({"usage": {"tokens": {"input": -1, "output": 2}}}),
        Answer({"usage": {"tokens": {"input": 1.5, "output": 2}}}),
        Answer({"usage": {"tokens": {"input": 10**30, "output": 2}}}),
        Answer({"usage": {"tokens": {"input": MOST_TOKENS + 1, "output": 2}}}),
        Answer({"usage": {"tokens": {"input": "7", "output": 2}}}),
        Answer({"usage": {"tokens": {"output": 2}, "cost": 1}}),
        Answer({"usage": {"tokens": {"output": 2}, "cost": -1, "unit": "USD"}}),
        Answer({"usage": {"tokens": {"output": 2}, "cost": MOST_COST + 1, "unit": "USD"}}),
        Answer({"usage": {"tokens": {"output": 2}, "cost": 1, "unit": "US$"}}),
    ],
    ids=lambda answer: str(answer.content)[:40] + str(answer.status),
)
async def test_where_a_report_is_not_there_whole_the_row_says_so(
    metered: Place, parts: Parts, upstream: Upstream, answer: Answer
) -> None:
    upstream.answer = lambda request: answer
    await ask(parts, metered)
    one, (body,) = whole(metered), metered.events("call.outcome")
    assert (one.calls, one.unreported, body["unreported"]) == (1, 1, True)
    assert (one.tokens_in, one.cost) == (0, {})
    agrees(metered)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"{" + SAID + b"}"),
        Answer({"usage": {"tokens": {"input": 7, "output": 2}}}),
        Answer({"usage": {"cost": 0, "unit": "EUR"}}),
        Answer({"error": {"message": "no"}}, status=404),
        Answer({"error": {"message": "slow down"}}, status=429),
        Answer({"error": {"message": "no"}}, status=401),
    ],
    ids=lambda answer: str(answer.content)[:40] + str(answer.status),
)
async def test_what_was_reported_and_what_is_on_no_bill_is_not_unreported(
    metered: Place, parts: Parts, upstream: Upstream, answer: Answer
) -> None:
    upstream.answer = lambda request: answer
    await ask(parts, metered)
    (attempt,), (outcome,) = metered.events("call.attempt"), metered.events("call.outcome")
    assert (whole(metered).unreported, "unreported" in outcome, attempt["report_awaited"]) == (0, False, True)
    agrees(metered)


@pytest.mark.parametrize(("said", "counted"), [({"input": 7}, (7, 0)), ({"output": 2}, (0, 2))])
async def test_half_a_report_counts_as_far_as_it_goes_and_the_row_says_that_there_may_be_more(
    metered: Place, parts: Parts, upstream: Upstream, said: dict[str, int], counted: tuple[int, int]
) -> None:
    upstream.answer = lambda request: Answer({"usage": {"tokens": said}})
    assert (await ask(parts, metered)).ok
    one, (body,) = whole(metered), metered.events("call.outcome")
    assert (one.reported, one.unreported, body["unreported"]) == (1, 1, True)
    assert (one.tokens_in, one.tokens_out) == counted
    agrees(metered)


async def test_what_never_left_is_not_unreported(metered: Place, parts: Parts, upstream: Upstream) -> None:
    upstream.stop_listening()
    assert not (await ask(parts, metered)).ok
    assert (whole(metered).calls, whole(metered).unreported) == (1, 0)
    agrees(metered)


@pytest.mark.parametrize("much", [MANY, DEEP], ids=["many", "deep"])
@pytest.mark.parametrize("turned", [False, True])
async def test_an_answer_that_came_whole_and_is_too_large_to_be_shown_counts_all_the_same(
    metered: Place, parts: Parts, upstream: Upstream, much: bytes, turned: bool
) -> None:
    """A vector for each of many texts has more numbers than are taken in, and costs money."""
    now = {"per": "month", "by": "alice"}
    metered.database.write_now(lambda rows: create(rows, metered.org, measure="tokens", most=100, **now))
    metered.database.write_now(lambda rows: create(rows, metered.org, measure="cost", unit="USD", most=10**10, **now))
    members = [much, SAID, b'"id": "usage"'][:: -1 if turned else 1]
    upstream.answer = lambda request: Answer(b"{" + b", ".join(members) + b"}")
    told = await ask(parts, metered)
    assert (told.ok, told.structured) == (False, None)
    one = whole(metered)
    assert (one.reported, one.unreported, one.tokens_in, one.tokens_out, one.cost) == (1, 0, 7, 2, {"USD": 5 * 10**8})
    assert [standing.used for standing in all_standings(metered.database, metered.org)] == [9, 5 * 10**8]
    agrees(metered)


async def test_a_secret_in_an_answer_that_is_too_large_is_in_no_row(
    metered: Place, parts: Parts, upstream: Upstream
) -> None:
    said = f'"usage": {{"cost": 1, "unit": "{SECRET}", "{SECRET}": 5, "tokens": {{"input": 1}}, "other": "{SECRET}"}}'
    upstream.answer = lambda request: Answer(b"{" + MANY + b", " + said.encode() + b"}")
    told = await ask(parts, metered)
    assert SECRET not in str(told)
    for table in ("usage_day", "usage_cost", "usage_quota", "audit_entry"):
        assert SECRET not in str(metered.database.read(f"SELECT * FROM {table}"))
    assert (whole(metered).tokens_in, whole(metered).unreported) == (1, 1)


async def test_a_call_whose_outcome_cannot_be_recorded_is_unreported(
    metered: Place, parts: Parts, upstream: Upstream
) -> None:
    upstream.answer = lambda request: Answer(b"{" + SAID + b"}")
    metered.refuse_entries("call.outcome")
    with pytest.raises(Unrecorded):
        await ask(parts, metered)
    one = whole(metered)
    assert (one.calls, one.unknown, one.unreported, one.tokens_in) == (1, 1, 1, 0)
    agrees(metered)


async def test_a_tool_that_is_not_known_to_report_has_nothing_unreported(place: Place, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer(hang_up=True)
    async with running(place.installation) as parts:
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert whole(place).unreported == 0
    (attempt,), (outcome,) = place.events("call.attempt"), place.events("call.outcome")
    assert ("report_awaited" in attempt, "unreported" in outcome) == (False, False)
    agrees(place)


async def test_an_upstream_that_makes_up_units_makes_no_rows_without_end(
    metered: Place, parts: Parts, upstream: Upstream
) -> None:
    units = iter([*(f"U{chr(65 + number)}" for number in range(MOST_UNITS + 3)), "UA"])
    upstream.answer = lambda request: Answer({"usage": {"cost": 1, "unit": next(units)}})
    for _ in range(MOST_UNITS + 4):
        await ask(parts, metered)
    one = whole(metered)
    assert (len(one.cost), one.cost["UA"], one.unreported) == (MOST_UNITS, 2 * 10**9, 3)
    agrees(metered)


async def test_what_a_wrapped_server_reports_counts(place: Place) -> None:
    with Wrapped(SECRET) as server:
        tools = {"echo": {**tool_block("echo"), "output": {"usage": "{tokens_in: length(text)}"}}}
        with_connector(place, "world", connector_text(tools=tools))
        place.connect(server.url, connector="world", secret=SECRET)
        async with running(place.installation) as parts:
            for _ in range(2):
                assert (await call(parts, place.caller(), "world_echo", {"text": "hello"}, Nobody())).ok
            assert (await call(parts, place.caller(), "world_echo", {"text": ""}, Nobody())).ok
    one = whole(place)
    assert (one.tokens_in, one.reported, one.unreported) == (10, 3, 0)
    agrees(place)


def test_an_attempt_that_says_nothing_of_a_report_is_none_of_those_that_wait_for_one() -> None:
    """As those are which were written by an earlier release."""
    ends = {"attempt": 1, "outcome": "succeeded", "usage": {"tokens_in": 3}}
    log = [entry(1, "call.attempt"), entry(2, "call.outcome", **ends)]
    (tally,) = counted(log).values()
    assert (tally.counts["calls"], tally.counts["tokens_in"], tally.counts["unreported"]) == (1, 3, 0)
    (tally,) = counted([entry(1, "call.attempt", report_awaited=True), log[1]]).values()
    assert tally.counts["unreported"] == 0
    (tally,) = counted([entry(1, "call.attempt", report_awaited=True)]).values()
    assert tally.counts["unreported"] == 1
