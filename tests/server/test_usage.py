"""Usage is what the log says, in the same transaction; names stay; nothing is made up."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import ApprovalProblem, Decision
from server.audit import select
from server.call import Outcome, Parts, call
from server.errors import ApprovalRequired, CallRefused, NoSuchTool, Unrecorded
from server.identity import remove_agent, remove_member, remove_org
from server.recounting import differences
from server.totals import Usage, quotas, usage_by
from server.usage import COUNTED, MOST_QUOTAS, MOST_TOKENS, day_of, reported
from tests.agents import Nobody, decide
from tests.installed import SECRET, Place, add_org, files_holding
from tests.upstream import Answer, Received, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

Calling = Callable[..., Awaitable[Outcome]]
ASKED = {"model": "m", "input": "hello"}


def day_in(place: Place, later: int = 0) -> str:
    """The day on which its one call began, or so many days later: by now it may be another."""
    (entry,) = select(place.database.of(place.org), place.org, event="call.attempt")
    return day_of(entry.at + later * 86_400_000)


def whole(place: Place, by: str = "org", **more: Any) -> list[Usage]:
    return usage_by(place.database, place.org, by, since="2000-01-01", **more)


def agrees(place: Place) -> None:
    """The rows are what the log gives."""
    assert differences(place.database, place.org, since="2000-01-01") == ("2000-01-01", [])


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
def calling(place: Place, parts: Parts) -> Calling:
    async def run(name: str, arguments: dict[str, Any], agent: str = "reconciler") -> Outcome:
        return await call(parts, place.caller(agent), name, arguments, Nobody())

    return run


async def test_a_call_is_counted_with_what_it_took(place: Place, calling: Calling, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer({"data": [], "has_more": False})
    assert (await calling("stripe_list_charges", {})).ok
    (one,) = whole(place, "agent")
    (body,) = place.events("call.outcome")
    assert one.key == (place.caller().agent, "reconciler")
    assert (one.calls, one.succeeded, one.failed, one.unknown, one.held, one.refused) == (1, 1, 0, 0, 0, 0)
    assert (one.milliseconds, one.bytes) == (body["milliseconds"], body["bytes"])
    assert (one.reported, one.tokens_in, one.cost) == (0, 0, {}), "nothing was reported, and nothing is made up"
    assert [row.key for row in whole(place, "connection")] == [("stripe", "acct_test", "own")]
    assert [row.key for row in whole(place, "tool")] == [("stripe_list_charges", "own")]
    assert [row.key for row in whole(place, "member")] == [(place.owner.id, "alice")]
    assert [row.key for row in whole(place, "day")] == [(day_in(place),)]
    assert [row.key for row in whole(place)] == [()]
    agrees(place)


async def test_refused_held_failed_and_approved_calls_are_told_apart(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.rule(who="everyone", tools=["stripe.get_balance"], then="deny")
    with pytest.raises(NoSuchTool):
        await calling("stripe_get_balance", {})
    with pytest.raises(NoSuchTool):
        await calling("no_such_tool", {})
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", {"charge": "ch_1"})
    assert upstream.requests == []
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling("stripe_create_refund", {"charge": "ch_1"})).ok
    upstream.answer = lambda request: Answer({"error": {"message": "no"}}, 404)
    assert not (await calling("stripe_list_charges", {})).ok
    (one,) = whole(place)
    assert (one.calls, one.approved, one.succeeded, one.failed, one.refused, one.held) == (2, 1, 1, 1, 2, 1)
    assert one.unknown == 0
    agrees(place)


async def test_names_that_an_agent_makes_up_make_no_rows(place: Place, calling: Calling) -> None:
    for number in range(20):
        with pytest.raises(NoSuchTool):
            await calling(f"no_such_tool_{number}\x00\ud800=1", {})
    (one,) = whole(place, "tool")
    assert (one.key, one.refused) == (("", ""), 20)
    agrees(place)


@pytest.mark.parametrize(
    ("tool", "arguments", "answer", "tokens"),
    [
        (
            "openai_create_response",
            ASKED,
            {"usage": {"input_tokens": 30, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 20}}},
            (30, 4, 20),
        ),
        (
            "anthropic_create_message",
            {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]},
            {"usage": {"input_tokens": 10, "cache_read_input_tokens": 20, "output_tokens": 4}},
            (30, 4, 20),
        ),
        (
            "google_gemini_generate_content",
            {"model": "models/m", "contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
            {"usageMetadata": {"promptTokenCount": 30, "candidatesTokenCount": 3, "thoughtsTokenCount": 1}},
            (30, 4, 0),
        ),
    ],
)
async def test_what_model_providers_report_is_counted_in_one_way(
    place: Place,
    upstream: Upstream,
    tool: str,
    arguments: dict[str, Any],
    answer: dict[str, Any],
    tokens: tuple[int, int, int],
) -> None:
    connector = tool.rsplit("_", 2)[0]
    place.connect(upstream.url, connector=connector)
    upstream.secret = None
    upstream.answer = lambda request: Answer(answer)
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), tool, arguments, Nobody())).ok
    (one,) = whole(place, "connection")
    assert (one.reported, one.tokens_in, one.tokens_out, one.tokens_cached) == (1, *tokens)
    assert one.cost == {}, "these providers state none"
    agrees(place)


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({}, (0, 1, 0, 0)),
        ({"totalTokenCount": 9}, (0, 1, 0, 0)),
        ({"promptTokenCount": 0}, (1, 0, 0, 0)),
        ({"promptTokenCount": 7}, (1, 0, 7, 0)),
        ({"thoughtsTokenCount": 5}, (1, 1, 0, 5)),
    ],
)
async def test_a_report_that_says_nothing_is_none_though_its_parts_are_added_up(
    place: Place, upstream: Upstream, said: dict[str, Any], counted: tuple[int, ...]
) -> None:
    place.connect(upstream.url, connector="google_gemini")
    upstream.secret = None
    upstream.answer = lambda request: Answer({"usageMetadata": said})
    given = {"model": "models/m", "contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "google_gemini_generate_content", given, Nobody())).ok
    (one,) = whole(place, "connection")
    assert (one.reported, one.unreported, one.tokens_in, one.tokens_out) == counted
    agrees(place)


async def test_stated_cost_and_quota_are_the_providers(metered: Place, upstream: Upstream) -> None:
    said = {"tokens": {"input": 7, "output": 2}, "cost": 0.00125, "unit": "usd", "other": 9}
    headers = {"X-Left": "41", "X-Bucket": "core", "X-Bucket-Left": "7"}
    upstream.answer = lambda request: Answer({"usage": said}, headers=headers)
    async with running(metered.installation) as parts:
        for _ in range(2):
            assert (await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok
    (one,) = whole(metered, "connection")
    assert (one.cost, one.tokens_in, one.tokens_cached, one.reported) == ({"USD": 2_500_000}, 14, 0, 2)
    assert {left.name: left.left for left in quotas(metered.database, metered.org)} == {
        "requests": 41,
        "bucket core": 7,
    }
    agrees(metered)


async def test_what_makes_no_sense_is_not_counted(metered: Place, upstream: Upstream) -> None:
    answers = iter(
        [
            {"tokens": {"input": -1, "output": 2.5, "cached": 10**30}, "cost": 1, "unit": ""},
            {"tokens": {"input": "7", "output": True, "cached": [1]}, "cost": "1", "unit": "USD"},
            {"tokens": "x", "cost": -1, "unit": "USD"},
            {"cost": 10**9, "unit": "USD"},
            {"cost": 1, "unit": "=cmd"},
            {"cost": 1},
            "nothing",
        ]
    )
    headers = {"X-Left": "-1", "X-Bucket": "=a b", "X-Bucket-Left": "7"}
    upstream.answer = lambda request: Answer({"usage": next(answers)}, headers=headers)
    async with running(metered.installation) as parts:
        for _ in range(7):
            assert (await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok
    (one,) = whole(metered, "connection")
    assert (one.calls, one.reported, one.tokens_in, one.tokens_out, one.tokens_cached, one.cost) == (7, 0, 0, 0, 0, {})
    assert quotas(metered.database, metered.org) == []
    agrees(metered)


async def test_an_upstream_that_makes_up_quotas_makes_no_rows_without_end(metered: Place, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer(
        {}, headers={"X-Bucket": f"b{len(upstream.requests)}", "X-Bucket-Left": "7"}
    )
    async with running(metered.installation) as parts:
        for _ in range(MOST_QUOTAS + 8):
            assert (await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok
    assert len(quotas(metered.database, metered.org)) == MOST_QUOTAS


async def test_a_secret_that_an_answer_repeats_is_in_no_row(metered: Place, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer(
        {"usage": {"cost": 1, "unit": SECRET, SECRET: 5}}, headers={"X-Bucket": SECRET, "X-Bucket-Left": "7"}
    )
    async with running(metered.installation) as parts:
        assert (await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok
    for table in ("usage_day", "usage_cost", "usage_quota", "audit_entry"):
        assert SECRET not in str(metered.database.read(f"SELECT * FROM {table}"))
    assert whole(metered, "connection")[0].calls == 1
    metered.installation.close()
    assert files_holding(metered.home, SECRET.encode()) == []


async def test_names_stay_when_what_they_name_is_gone(place: Place, calling: Calling) -> None:
    bob = place.member("bob")
    place.owner, owner = bob, place.owner
    place.agent("bobs")
    place.owner = owner
    await calling("stripe_list_charges", {}, "bobs")
    agent = place.installation.directory.agent(place.org, "bobs")
    place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="test"))
    place.database.write_now(lambda rows: remove_member(rows, place.org, bob, by="test"))
    assert [one.key for one in whole(place, "agent")] == [(agent.id, "bobs")]
    assert [one.key for one in whole(place, "member")] == [(bob.id, "bob")]
    assert whole(place, "agent", member=place.owner.id) == []
    agrees(place)


async def test_nothing_is_left_of_an_org_that_is_removed_while_its_call_is_under_way(
    metered: Place, upstream: Upstream
) -> None:
    org = metered.installation.directory.org("acme")

    def removed(request: Received) -> Answer:
        metered.database.write_now(lambda rows: remove_org(rows, org, by="test"))
        return Answer({"usage": {"cost": 1, "unit": "USD"}}, headers={"X-Left": "3"})

    upstream.answer = removed
    caller = metered.caller()
    async with running(metered.installation) as parts:
        assert (await call(parts, caller, "metered_ask", {"text": "hi"}, Nobody())).ok
        with pytest.raises(CallRefused):
            await call(parts, caller, "metered_ask", {"text": "hi"}, Nobody())
    assert len(metered.events("call.refused")) == 1
    for table in ("usage_day", "usage_cost", "usage_quota"):
        assert metered.database.read(f"SELECT * FROM {table}") == []


async def test_where_an_outcome_cannot_be_recorded_nothing_of_it_is_counted(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.refuse_entries("call.outcome")
    with pytest.raises(Unrecorded):
        await calling("stripe_list_charges", {})
    (one,) = whole(place)
    assert (one.calls, one.succeeded, one.failed, one.unknown, one.bytes) == (1, 0, 0, 1, 0)
    agrees(place)


async def test_where_usage_cannot_be_written_nothing_is_sent(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.database.write_now(lambda rows: rows.execute("DROP TABLE usage_day"))
    with pytest.raises(Unrecorded):
        await calling("stripe_list_charges", {})
    assert upstream.requests == []
    assert place.events("call.attempt") == []


async def test_where_usage_cannot_be_added_to_the_result_is_withheld(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    def break_it(request: Received) -> Answer:
        place.database.write_now(lambda rows: rows.execute("DROP TABLE usage_day"))
        return Answer({"data": [{"id": "ch_secret_result"}]})

    upstream.answer = break_it
    with pytest.raises(Unrecorded) as withheld:
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert withheld.value.sent
    assert "ch_secret_result" not in str(withheld.value)
    assert place.events("call.outcome") == []


async def test_after_a_random_run_the_rows_are_what_the_log_gives(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    pace = random.Random(6)
    place.agent("other")
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    upstream.answer = lambda request: Answer({"data": []}, pace.choice([200, 200, 404, 503]))
    came: Counter[str] = Counter()

    async def one() -> None:
        tool, arguments = pace.choice(
            [
                ("stripe_list_charges", {"limit": pace.randint(1, 100)}),
                ("stripe_list_charges", {"limit": "x"}),
                ("stripe_create_refund", {"charge": f"ch_{pace.randint(1, 3)}"}),
                ("stripe_nothing", {}),
            ]
        )
        try:
            came["ok" if (await calling(tool, arguments, pace.choice(["reconciler", "other"]))).ok else "failed"] += 1
        except CallRefused as refusal:
            came[type(refusal).__name__] += 1
            if isinstance(refusal, ApprovalRequired):
                with suppress(ApprovalProblem):  # several calls share one
                    decide(place, refusal.approval, Decision.APPROVE)

    for _ in range(6):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
    # One of each for certain, whatever the order was in which the others ran.
    for status, refund in ((200, "ch_good"), (503, "ch_lost")):
        upstream.answer = lambda request, given=status: Answer({"data": []}, given)
        with pytest.raises(ApprovalRequired) as held:
            await calling("stripe_create_refund", {"charge": refund})
        decide(place, held.value.approval, Decision.APPROVE)
        came["ApprovalRequired"] += 1
        came["ok" if (await calling("stripe_create_refund", {"charge": refund})).ok else "failed"] += 1
    (total,) = whole(place)
    assert total.calls + len(place.events("call.replayed")) == came["ok"] + came["failed"]
    assert total.refused == came.total() - came["ok"] - came["failed"] - came["ApprovalRequired"]
    assert total.held == came["ApprovalRequired"]
    assert min(total.succeeded, total.failed, total.unknown, total.approved, total.refused, total.held) > 0
    agrees(place)


async def test_a_recount_finds_every_number_that_was_changed(place: Place, calling: Calling) -> None:
    await calling("stripe_list_charges", {})
    for name in COUNTED:
        place.database.write_now(lambda rows, n=name: rows.execute(f"UPDATE usage_day SET {n} = {n} + 1"))
        (found,) = differences(place.database, place.org, since=day_in(place))[1]
        assert found.kept.counts[name] == found.counted.counts[name] + 1
        place.database.write_now(lambda rows, n=name: rows.execute(f"UPDATE usage_day SET {n} = {n} - 1"))
    agrees(place)
    place.database.write_now(lambda rows: rows.execute("UPDATE usage_day SET agent = 'mallory'"))
    assert len(differences(place.database, place.org, since=day_in(place))[1]) == 2, (
        "one too many, and one that is missing"
    )
    place.database.write_now(lambda rows: rows.execute("DELETE FROM usage_day"))
    (found,) = differences(place.database, place.org, since=day_in(place))[1]
    assert (found.kept.shown(), found.counted.counts["calls"]) == ({}, 1)


async def test_days_are_chosen_by_their_beginning_and_end(place: Place, calling: Calling) -> None:
    await calling("stripe_list_charges", {})
    assert usage_by(place.database, place.org, "day", since=day_in(place), until=day_in(place, 1)) != []
    assert usage_by(place.database, place.org, "day", since=day_in(place, 1)) == []
    assert usage_by(place.database, place.org, "day", since="2000-01-01", until=day_in(place)) == []
    assert usage_by(place.database, place.org, "org", since="2000-01-01", until=day_in(place)) == []


async def test_an_org_sees_its_own_usage_alone(place: Place, calling: Calling, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    await calling("stripe_list_charges", {})
    assert whole(other) == []
    assert len(whole(place)) == 1


def test_the_columns_are_the_fields_of_what_is_read() -> None:
    assert tuple(one.name for one in fields(Usage))[1:-2] == COUNTED


def test_a_number_of_tokens_is_whole_and_within_reason() -> None:
    assert reported({"tokens_in": MOST_TOKENS}).tokens_in == MOST_TOKENS
    assert reported({"tokens_in": MOST_TOKENS + 1}) == reported(None) == reported("x")
    assert reported({"tokens_in": 3.0}).tokens_in == 3
    assert reported({"cost": 0, "cost_unit": "USD"}).unit == "USD"
    for told in ({"cost": "1", "cost_unit": "USD"}, {"cost": None, "cost_unit": "USD"}, {"cost": 1, "cost_unit": 7}):
        assert reported(told) == reported(None), told
