"""Budgets: people are told near the end of one, and beyond it calls wait for a person; none comes past by racing."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest

from server.app import open_installation, running
from server.approval import Decision
from server.approval.outbox import Happening
from server.budgets import LARGEST, MOST, Budget, BudgetProblem, budgets_in, change, create, money, remove, window
from server.call import Outcome, Parts, call
from server.errors import ApprovalRequired, CallRefused, NoLongerValid, structured
from server.identity import remove_agent
from server.policy import Ruling
from server.spending import Standing, all_standings
from tests.agents import Nobody, Person, decide, execute
from tests.installed import SECRET, Place, add_org, make
from tests.telling import Clock, Receiver, a_server, delivered, hooked, outbox
from tests.upstream import Answer, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

Calling = Callable[..., Awaitable[Outcome]]
READ = "stripe_list_charges"
REFUND = "stripe_create_refund"
HOUR = 3_600_000


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
def calling(place: Place, parts: Parts) -> Calling:
    async def run(tool: str = READ, agent: str = "reconciler", person: Any = None, **arguments: Any) -> Outcome:
        return await call(parts, place.caller(agent), tool, arguments, person or Nobody())

    return run


def budget(place: Place, most: int, measure: str = "calls", **more: Any) -> Budget:
    given = {"per": "month", "by": "alice", **more}
    return place.database.write_now(lambda rows: create(rows, place.org, measure=measure, most=most, **given))


def stands(place: Place) -> list[Standing]:
    return all_standings(place.database, place.org)


def used(place: Place) -> list[int]:
    return [one.used for one in stands(place)]


async def test_beyond_a_budget_a_call_waits_for_a_person_and_nothing_is_sent(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    made = budget(place, 2)
    for _ in range(2):
        assert (await calling()).ok
    with pytest.raises(ApprovalRequired) as held:
        await calling()
    assert len(upstream.requests) == 2
    assert "the budget of 2 calls a month of the whole organisation is used up until" in str(held.value)
    told = structured(held.value)
    assert told is not None and told["approval"]["over_budget"] is True
    record = place.installation.approvals.find(place.org, held.value.approval)
    assert record is not None
    assert (record.ruling, record.needed, made.id in record.rules) == ("approve", 1, True)
    assert "Careful: the budget of 2 calls a month" in place.installation.approvals.prompt(record)
    decide(place, record.id, Decision.APPROVE)
    assert (await calling()).ok, "somebody has agreed to exactly this call"
    assert (len(upstream.requests), used(place)) == (3, [3])
    with pytest.raises(ApprovalRequired):
        await calling(limit=7)
    assert len(upstream.requests) == 3


async def test_an_upstream_sees_no_call_too_many_from_50_callers_on_two_servers(
    place: Place, upstream: Upstream
) -> None:
    budget(place, 20, agent="reconciler")
    came: list[str] = []

    async def one(parts: Parts, number: int) -> None:
        try:
            came.append("ok" if (await call(parts, place.caller(), READ, {"limit": number}, Nobody())).ok else "failed")
        except Exception as error:  # whatever it is, it is looked at below
            came.append(type(error).__name__)

    with contextlib.closing(open_installation(place.installation.settings)) as second:
        async with (
            running(place.installation) as here,
            running(second) as there,
            anyio.create_task_group() as group,
        ):
            for number in range(50):
                group.start_soon(one, here if number % 2 else there, number + 1)
    assert len(upstream.requests) == 20
    assert used(place) == [20]
    assert came.count("ok") == 20
    assert set(came) == {"ok", "ApprovalRequired", "Refused"}, "too many questions at once are not put to people"


async def test_only_the_calls_that_a_budget_names_count_and_wait(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.agent("other")
    place.connect(upstream.url, name="second")
    budget(place, 1, agent="reconciler", connection="stripe")
    assert (await calling()).ok
    with pytest.raises(ApprovalRequired):
        await calling()
    assert (await calling(agent="other")).ok
    assert (await calling("second_list_charges")).ok
    assert used(place) == [1]


async def test_an_agent_of_the_same_name_takes_its_budget_over(place: Place, calling: Calling) -> None:
    budget(place, 1, agent="reconciler")
    assert (await calling()).ok
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
    place.agent()
    with pytest.raises(ApprovalRequired):
        await calling()


async def test_a_standalone_agent_is_held_as_well(place: Place, calling: Calling, upstream: Upstream) -> None:
    place.agent("robot", standalone=True)
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    budget(place, 1)
    assert (await calling(agent="robot")).ok
    with pytest.raises(ApprovalRequired) as held:
        await calling(agent="robot")
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling(agent="robot")).ok
    assert len(upstream.requests) == 2


async def test_the_clients_word_is_not_enough_beyond_a_budget(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    budget(place, 1)
    assert (await calling()).ok
    person = Person(Decision.APPROVE)
    with pytest.raises(ApprovalRequired):
        await calling(REFUND, person=person, charge="ch_1")
    assert person.questions == []
    assert len(upstream.requests) == 1


async def test_what_the_client_agreed_to_before_is_not_enough_once_it_is_used_up(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling(REFUND, charge="ch_1")
    budget(place, 1)
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling()).ok
    with pytest.raises(NoLongerValid):
        await calling(REFUND, charge="ch_1")
    assert len(upstream.requests) == 1


async def test_nor_where_it_is_used_up_between_the_look_and_the_attempt(
    place: Place, parts: Parts, calling: Calling, upstream: Upstream
) -> None:
    budget(place, 1)
    with pytest.raises(ApprovalRequired) as held:
        await calling(REFUND, charge="ch_1")
    decide(place, held.value.approval, Decision.APPROVE)
    came: list[Exception] = []

    async def one() -> None:
        try:
            await calling(REFUND, charge="ch_1")
        except CallRefused as refusal:
            came.append(refusal)

    async with anyio.create_task_group() as group:
        with place.in_the_way(lambda rows: rows.execute("UPDATE budget SET used = 1 WHERE org = ?", (place.org,))):
            group.start_soon(one)
            await anyio.wait_all_tasks_blocked()
    assert [type(refusal) for refusal in came] == [NoLongerValid]
    assert upstream.requests == []


async def test_no_grant_reaches_beyond_a_budget(place: Place, calling: Calling, upstream: Upstream) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    place.rule(who="everyone", tools=["chat.*"], then="approve")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1"})
    message = {"channel": "C0123456789", "text": "a"}
    with pytest.raises(ApprovalRequired) as held:
        await calling("chat_post_message", **message)
    decide(place, held.value.approval, Decision.APPROVE_HOUR)
    assert (await calling("chat_post_message", **message)).ok
    assert (await calling("chat_post_message", **{**message, "text": "b"})).ok, "the grant covers it"
    budget(place, 1, connection="chat")
    assert (await calling("chat_post_message", **{**message, "text": "c"})).ok
    sent = len(upstream.requests)
    with pytest.raises(ApprovalRequired) as over:
        await calling("chat_post_message", **{**message, "text": "d"})
    assert "used up" in str(over.value)
    assert len(upstream.requests) == sent


async def test_a_grant_that_meets_a_budget_on_its_way_is_held(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    """Many at once: each sees a budget that is not used up, and one of them takes the last of it."""
    place.connect(upstream.url, connector="slack", name="chat")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1"})
    message = {"channel": "C0123456789", "text": "a"}
    with pytest.raises(ApprovalRequired) as held:
        await calling("chat_post_message", **message)
    decide(place, held.value.approval, Decision.APPROVE_HOUR)
    assert (await calling("chat_post_message", **message)).ok
    budget(place, 3, connection="chat")
    came: list[str] = []

    async def one(text: str) -> None:
        try:
            came.append(str((await calling("chat_post_message", **{**message, "text": text})).ok))
        except Exception as error:  # whatever it is, it is looked at below
            came.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(one, f"b{number}")
    assert sorted(came) == ["ApprovalRequired"] * 5 + ["True"] * 3
    assert len(upstream.requests) == 4


async def test_a_denial_stays_a_denial_and_an_approval_needs_what_its_rule_says(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    budget(place, 1)
    assert (await calling()).ok
    with pytest.raises(ApprovalRequired) as held:
        await calling(REFUND, charge="ch_1")
    record = place.installation.approvals.find(place.org, held.value.approval)
    assert record is not None
    assert record.needed == 2


async def test_tokens_count_when_the_answer_says_them(place: Place, upstream: Upstream) -> None:
    place.connect(upstream.url, connector="openai")
    upstream.answer = lambda request: Answer({"usage": {"input_tokens": 30, "output_tokens": 5}})
    budget(place, 40, "tokens", connection="openai")
    budget(place, 1, "cost", unit="USD")
    async with running(place.installation) as parts:
        for _ in range(2):  # the second one goes beyond: that is known afterwards
            assert (await call(parts, place.caller(), "openai_create_response", ASKED, Nobody())).ok
        with pytest.raises(ApprovalRequired) as held:
            await call(parts, place.caller(), "openai_create_response", ASKED, Nobody())
    assert "40 tokens a month by connection openai is used up" in str(held.value)
    assert used(place) == [70, 0]
    assert len(upstream.requests) == 2


async def test_a_cost_counts_in_the_unit_that_the_budget_is_in(metered: Place, upstream: Upstream) -> None:
    budget(metered, 10**9, "cost", unit="USD")
    answers = iter([(1, "EUR"), (0.4, "USD"), (0.7, "usd")])

    def said(_request: Any) -> Answer:
        cost, unit = next(answers)
        return Answer({"usage": {"cost": cost, "unit": unit}})

    upstream.answer = said
    async with running(metered.installation) as parts:
        for _ in range(3):
            assert (await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())).ok
        with pytest.raises(ApprovalRequired, match="USD"):
            await call(parts, metered.caller(), "metered_ask", {"text": "hi"}, Nobody())
    assert used(metered) == [1_100_000_000]
    assert len(upstream.requests) == 3


ASKED = {"model": "m", "input": "hello"}


async def test_people_are_told_once_near_the_end_and_once_at_it(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    hooked(place, upstream.url)
    hooked(place, upstream.url, "deaf", events=(Happening.OPENED,))
    hooked(place, upstream.url, "quiet", rulings=(Ruling.CONFIRM,))
    made = budget(place, 5, warn=60)
    for _ in range(2):
        await calling()
    assert outbox(place) == []
    for _ in range(2):
        await calling()
    told = {(name, event) for name, event, *_ in outbox(place)}
    assert told == {("chat", "budget.warned"), ("quiet", "budget.warned")}
    await calling()
    told = {(name, event) for name, event, *_ in outbox(place)} - told
    assert told == {("chat", "budget.reached"), ("quiet", "budget.reached")}
    assert len(outbox(place)) == 4
    warned, reached = place.events("budget.warned", "budget.reached")
    assert (warned["budget"], warned["used"], warned["most"]) == (made.id, 3, 5)
    assert (reached["used"], reached["measure"], reached["per"]) == (5, "calls", "month")
    attempts = place.events("call.attempt")
    assert [attempts[2]["seq"] - warned["seq"], attempts[4]["seq"] - reached["seq"]] == [1, 1], "in one transaction"


async def test_a_webhook_is_told_in_words_and_without_a_secret(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with Receiver() as receiver:
        hooked(place, receiver.hook)
        budget(place, 1, agent="reconciler")
        await calling()
        async with a_server(place, Clock()) as delivery:
            await delivered(delivery)
        (told,) = receiver.requests
    body = json.loads(told.body)
    assert (body["event"], body["approval"], body["link"]) == ("budget.reached", None, None)
    budgeted = body["budget"]
    assert (budgeted["measure"], budgeted["agent"], budgeted["connection"]) == ("calls", "reconciler", None)
    assert "the budget of 1 calls a month of agent reconciler is used up: further calls wait" in body["text"]
    assert SECRET not in told.body.decode()


async def test_a_window_that_has_ended_counts_no_more(place: Place, calling: Calling, upstream: Upstream) -> None:
    budget(place, 1, per="hour")
    assert (await calling()).ok
    with pytest.raises(ApprovalRequired):
        await calling()
    place.database.write_now(lambda rows: rows.execute("UPDATE budget SET window_at = window_at - ?", (HOUR,)))
    assert (await calling(limit=2)).ok
    assert used(place) == [1]
    assert len(upstream.requests) == 2


async def test_a_replica_whose_clock_is_ahead_opens_no_window_twice(place: Place, calling: Calling) -> None:
    """It has begun the next one: what is counted meanwhile by others counts there. One that lies further is a slip."""
    budget(place, 2, per="hour")
    assert (await calling()).ok
    place.database.write_now(lambda rows: rows.execute("UPDATE budget SET window_at = window_at + ?", (HOUR,)))
    assert (await calling()).ok
    with pytest.raises(ApprovalRequired):
        await calling()
    assert used(place) == [2]
    place.database.write_now(lambda rows: rows.execute("UPDATE budget SET window_at = window_at + ?", (HOUR,)))
    assert used(place) == [0]


async def test_what_cannot_be_recorded_uses_up_nothing(place: Place, calling: Calling) -> None:
    budget(place, 5)
    place.refuse_entries("call.attempt")
    with pytest.raises(Exception, match="could not be recorded"):
        await calling()
    assert used(place) == [0]


async def test_a_refused_and_a_held_call_use_up_nothing(place: Place, calling: Calling) -> None:
    budget(place, 5)
    with pytest.raises(ApprovalRequired):
        await calling(REFUND, charge="ch_1")
    with pytest.raises(Exception, match="limit"):
        await calling(limit="x")
    assert used(place) == [0]


async def test_a_changed_budget_counts_at_the_next_call_and_a_removed_one_holds_nothing(
    place: Place, calling: Calling
) -> None:
    made = budget(place, 1)
    budget(place, 9, agent="another")
    assert (await calling()).ok
    for most, warn in ((0, None), (None, 101)):
        with pytest.raises(BudgetProblem):
            place.database.write_now(partial(change, org=place.org, budget=made.id, most=most, warn=warn, by="alice"))
    place.database.write_now(lambda rows: change(rows, place.org, made.id, most=2, warn=50, by="alice"))
    assert [(one.budget.most, one.budget.warn) for one in stands(place)] == [(2, 50), (9, 80)]
    assert (await calling()).ok
    assert [entry["most"] for entry in place.events("budget.reached")] == [1, 2], "people are told anew"
    with pytest.raises(ApprovalRequired):
        await calling()
    place.database.write_now(lambda rows: remove(rows, place.org, made.id, by="alice"))
    assert [one.budget.most for one in stands(place)] == [9]
    assert (await calling()).ok
    assert [one.most for one in place.installation.workspaces.of(place.caller()).budgets] == [9]
    created, _, changed, removed = place.events("budget.created", "budget.changed", "budget.removed")
    assert (created["most"], changed["before"], changed["most"]) == (1, {"most": 1, "warn": 80}, 2)
    assert (removed["budget"], removed["by"]) == (made.id, "alice")


async def test_what_is_told_after_an_answer_is_about_the_budget_as_it_is_by_then(
    place: Place, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="openai")
    made = budget(place, 40, "tokens")

    def meanwhile(_request: Any) -> Answer:
        place.database.write_now(lambda rows: change(rows, place.org, made.id, most=1000, warn=None, by="alice"))
        return Answer({"usage": {"input_tokens": 30, "output_tokens": 15}})

    upstream.answer = meanwhile
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "openai_create_response", ASKED, Nobody())).ok
        assert place.events("budget.warned", "budget.reached") == [], "45 of 1000"
        upstream.answer = lambda request: Answer({"usage": {"input_tokens": 955, "output_tokens": 0}})
        assert (await call(parts, place.caller(), "openai_create_response", ASKED, Nobody())).ok
    (reached,) = place.events("budget.warned", "budget.reached")
    assert (reached["event"], reached["used"], reached["most"]) == ("budget.reached", 1000, 1000)


async def test_what_is_kept_for_replay_is_what_the_rules_said(place: Place, calling: Calling) -> None:
    budget(place, 1)
    assert (await calling()).ok
    with pytest.raises(ApprovalRequired) as held:
        await calling(limit=3)
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling(limit=3)).ok
    kept = place.database.read("SELECT ruling FROM recorded_call ORDER BY id")
    assert kept == [("allow",), ("allow",)]


async def test_no_budget_is_another_orgs(place: Place, calling: Calling) -> None:
    other = add_org(place.installation, "globex")
    theirs = budget(other, 1)
    for _ in range(2):
        assert (await calling()).ok
    for wrong in (
        lambda rows: remove(rows, place.org, theirs.id, by="x"),
        lambda rows: change(rows, place.org, theirs.id, most=9, warn=None, by="x"),
    ):
        with pytest.raises(BudgetProblem, match="There is no budget"):
            place.database.write_now(wrong)
    assert used(other) == [0]


@pytest.mark.parametrize(
    "given",
    [
        {"most": 0},
        {"most": -1},
        {"most": LARGEST + 1},
        {"warn": 0},
        {"warn": 101},
        {"per": "week"},
        {"measure": "bytes"},
        {"measure": "cost"},
        {"measure": "cost", "unit": "usd"},
        {"measure": "cost", "unit": "A" * 13},
        {"measure": "cost", "unit": "USD1"},
        {"measure": "calls", "unit": "USD"},
    ],
)
def test_what_can_be_no_budget_is_refused(tmp_path: Any, given: dict[str, Any]) -> None:
    place = make(tmp_path / "home")
    with pytest.raises(BudgetProblem):
        budget(place, **{"most": 1, **given})
    assert stands(place) == []
    assert place.events("budget.created") == []
    place.installation.close()


def test_the_same_budget_twice_and_one_too_many_are_refused(tmp_path: Any) -> None:
    place = make(tmp_path / "home")
    first = budget(place, LARGEST, warn=100)
    with pytest.raises(BudgetProblem, match=first.id):
        budget(place, 2, warn=50, by="bob")
    budget(place, LARGEST, "cost", unit="A" * 12, warn=1)
    for number in range(MOST - 2):
        budget(place, 1, "cost", unit="U", agent=f"a{number}")
    with pytest.raises(BudgetProblem, match="no org has more"):
        budget(place, 1, agent="one_more")
    execute(place, "UPDATE budget SET created_at = created_at + 1000000 WHERE id = ?", first.id)
    assert place.database.query(lambda rows: budgets_in(rows, place.org))[-1].id == first.id, "the newest is last"
    place.installation.close()


@pytest.mark.parametrize(
    ("per", "at", "begin", "end"),
    [
        ("hour", "2026-12-31T23:59:59.999", "2026-12-31T23:00", "2027-01-01T00:00"),
        ("day", "2026-12-31T23:59:59.999", "2026-12-31T00:00", "2027-01-01T00:00"),
        ("month", "2026-12-31T23:59:59.999", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("month", "2028-02-29T00:00:00.000", "2028-02-01T00:00", "2028-03-01T00:00"),
        ("hour", "2026-12-31T23:00:00.000", "2026-12-31T23:00", "2027-01-01T00:00"),
    ],
)
def test_windows_are_those_of_the_calendar_in_utc(per: str, at: str, begin: str, end: str) -> None:
    def ms(text: str) -> int:
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)

    assert window(per, ms(at)) == (ms(begin), ms(end))


def test_money_is_written_without_an_exponent() -> None:
    assert [money(number) for number in (0, 1, 10**9, 1_250_000_000)] == ["0", "0.000000001", "1", "1.25"]
