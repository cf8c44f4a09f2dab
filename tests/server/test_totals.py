"""A total is right, or says that it is more than is counted: no provider's word breaks it."""

import csv
import io
import json
from collections.abc import Iterator
from itertools import chain

import anyio
import pytest

from server.app import running
from server.audit import Entry
from server.call import call
from server.clock import now_ms
from server.recounting import counted, differences
from server.totals import Usage, usage_by
from server.usage import BOUND, COUNTED, MOST_COST, MOST_TOKENS, day_of
from tests.agents import Nobody, execute
from tests.commandline import CommandLine, Ran
from tests.installed import Place
from tests.metering import entry
from tests.upstream import Answer, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

MOST = {
    "tokens": {"input": MOST_TOKENS, "output": MOST_TOKENS, "cached": MOST_TOKENS},
    "cost": MOST_COST,
    "unit": "USD",
}
FULL = frozenset({"tokens_in", "tokens_out", "tokens_cached", "milliseconds", "bytes", "USD"})


async def ask(place: Place) -> None:
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok


def by(place: Place, key: str) -> list[Usage]:
    return usage_by(place.database, place.org, key, since="2000-01-01")


def nearly_full(place: Place) -> None:
    """As after so many answers that one more is too many: all of today, and of two days before."""
    numbers = ("milliseconds", "bytes", "tokens_in", "tokens_out", "tokens_cached")
    execute(place, f"UPDATE usage_day SET {', '.join(f'{name} = {BOUND}' for name in numbers)}")
    execute(place, f"UPDATE usage_cost SET billionths = {BOUND}")
    names = "agent_id, agent, member_id, member, connection, account, ownership, tool"
    for day in ("2000-01-01", "2000-01-02"):
        execute(
            place,
            f"INSERT INTO usage_day (org, day, line, {names}, calls, {', '.join(numbers)}, reported) "
            f"SELECT org, '{day}', line, {names}, calls, {', '.join(numbers)}, reported FROM usage_day "
            "WHERE day > '2001'",
        )
        execute(place, f"INSERT INTO usage_cost SELECT org, '{day}', line, unit, billionths FROM usage_cost LIMIT 1")
    execute(place, f"UPDATE usage_day SET {', '.join(f'{name} = {BOUND} - 1' for name in numbers)} WHERE day > '2001'")
    execute(place, f"UPDATE usage_cost SET billionths = {BOUND} - 1 WHERE day > '2001'")


async def test_what_is_more_than_a_column_holds_is_recorded_and_read_all_the_same(
    metered: Place, upstream: Upstream
) -> None:
    upstream.answer = lambda request: Answer({"usage": MOST})
    await ask(metered)
    nearly_full(metered)
    for _ in range(3):
        await ask(metered)
    (one,) = by(metered, "org")
    assert (one.calls, one.succeeded, one.reported) == (6, 4, 6), "calls are counted as ever"
    assert (one.tokens_in, one.bytes, one.cost) == (3 * BOUND, 3 * BOUND, {"USD": 3 * BOUND})
    assert one.at_bound == FULL
    assert [(day.tokens_out, day.at_bound) for day in by(metered, "day")] == [(BOUND, FULL)] * 3
    assert [day.key for day in by(metered, "day")][:2] == [("2000-01-01",), ("2000-01-02",)], "not by their calls"
    assert [entry["outcome"] for entry in metered.events("call.outcome")] == ["succeeded"] * 4


async def test_just_below_the_bound_nothing_is_said_of_it(metered: Place, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer({"usage": {"tokens": {"input": 1}, "cost": 1e-9, "unit": "USD"}})
    await ask(metered)
    execute(metered, f"UPDATE usage_day SET tokens_in = {BOUND} - 2")
    execute(metered, f"UPDATE usage_cost SET billionths = {BOUND} - 2")
    await ask(metered)
    (one,) = by(metered, "org")
    assert (one.tokens_in, one.cost, one.at_bound) == (BOUND - 1, {"USD": BOUND - 1}, frozenset())
    await ask(metered)
    (one,) = by(metered, "org")
    assert (one.tokens_in, one.cost, one.at_bound) == (BOUND, {"USD": BOUND}, {"tokens_in", "USD"})


async def test_every_way_to_look_at_it_holds_and_says_so(
    metered: Place, upstream: Upstream, metered_owner: CommandLine
) -> None:
    upstream.answer = lambda request: Answer({"usage": MOST})
    await ask(metered)
    nearly_full(metered)
    await ask(metered)

    async def run(*words: str) -> Ran:
        return await anyio.to_thread.run_sync(lambda: metered_owner("usage", "--since", "2000-01-01", *words))

    (row,) = (await run("--json")).json["rows"]
    assert (row["tokens_in"], row["at_bound"]) == (3 * BOUND, sorted(FULL))
    ran = await run()
    assert f">={3 * BOUND}" in ran.out
    assert "After >= stands the most that is counted" in ran.err
    heads, cells = csv.reader(io.StringIO((await run("--csv")).out))
    assert cells[heads.index("at_bound")] == "; ".join(sorted(FULL))
    for measure, number in (("tokens", 2 * BOUND), ("time", BOUND), ("bytes", BOUND)):
        ran = await run("--chart", measure)
        assert (ran.code, f">={3 * number}" in ran.out) == (0, True)
        assert "After >=" in ran.err
    found = json.loads((await run("--recount", "--json")).out)["differences"]
    assert len(found) == 3, "nobody forged the log"


@pytest.mark.parametrize("by_what", ["org", "member", "agent", "connection", "tool", "day"])
async def test_no_half_is_lost_of_any_number(metered: Place, upstream: Upstream, by_what: str) -> None:
    await ask(metered)
    numbers = {name: 10**9 * (7 + at) + at for at, name in enumerate(COUNTED)}
    execute(metered, "UPDATE usage_day SET " + ", ".join(f"{name} = {number}" for name, number in numbers.items()))
    (one,) = by(metered, by_what)
    assert {name: getattr(one, name) for name in COUNTED} == numbers
    for alone in ("calls", "refused", "held"):
        counts = ", ".join(f"{name} = {int(name == alone)}" for name in ("calls", "refused", "held"))
        execute(metered, f"UPDATE usage_day SET {counts}")
        assert [getattr(one, alone) for one in by(metered, by_what)] == [1], "nothing else, and shown all the same"


def log(times: int) -> Iterator[Entry]:
    """So many answers that report as much as is believed."""
    usage = dict.fromkeys(("tokens_in", "tokens_out", "tokens_cached"), MOST_TOKENS)
    ends = {"outcome": "succeeded", "usage": {**usage, "cost": MOST_COST, "cost_unit": "USD"}, "bytes": BOUND - 1}
    return chain.from_iterable(
        (entry(number, "call.attempt"), entry(number + 1, "call.outcome", attempt=number, **ends))
        for number in range(1, 2 * times, 2)
    )


def test_a_recount_stops_where_the_rows_do() -> None:
    times = BOUND // (MOST_COST * 10**9) + 2
    (tally,) = counted(log(times)).values()
    assert tally.counts["calls"] == tally.counts["succeeded"] == times
    assert (tally.cost["USD"], tally.counts["bytes"]) == (BOUND, BOUND)
    assert tally.counts["tokens_in"] == times * MOST_TOKENS
    (tally,) = counted(log(1)).values()
    assert (tally.cost["USD"], tally.counts["bytes"]) == (MOST_COST * 10**9, BOUND - 1)


async def test_what_was_counted_too_far_by_an_earlier_release_is_read_and_mended(
    metered: Place, upstream: Upstream
) -> None:
    """SQLite makes a float of what is more than it holds; PostgreSQL refuses."""
    upstream.answer = lambda request: Answer({"usage": MOST})
    await ask(metered)
    too_much = "9.3e18" if metered.installation.settings.database_url is None else str(2**63 - 1)
    execute(metered, f"UPDATE usage_day SET tokens_in = {too_much}")
    execute(metered, f"UPDATE usage_cost SET billionths = {too_much}")
    (one,) = by(metered, "org")
    assert one.tokens_in > BOUND
    assert {"tokens_in", "USD"} <= one.at_bound
    await ask(metered)
    (one,) = by(metered, "org")
    assert (one.tokens_in, one.cost["USD"]) == (BOUND, BOUND)
    assert differences(metered.database, metered.org, since=day_of(now_ms()))[1] != []
