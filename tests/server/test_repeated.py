"""Calls that are sent more than once, or late: no later failure says of an earlier sending that it did not happen."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from connectors.bounded import DEFAULT_LIMITS
from server.app import running
from server.approval import Decision, State
from server.approval.record import CLOCKS_APART_MS, LOST_MS
from server.call import Outcome, Parts, call
from server.clock import now_ms, running_s
from server.errors import ApprovalRequired
from server.sending import SENT_WITHIN_S
from server.settings import SettingsProblem, read_settings
from tests.agents import Nobody, decide, execute, record
from tests.installed import SECRET, Place
from tests.places import Places
from tests.upstream import Answer, Received, Upstream
from vault import to_reference
from vault.references import GRACE_S

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
HANGS_UP = Answer(hang_up=True)
SHUT = {
    "asks for fewer calls": Answer({"error": {"message": "slow down"}}, status=429),
    "refuses the credential": Answer({"error": {}}, status=401),
    "forbids it": Answer({"error": {}}, status=403),
    "is still at it": Answer({"error": {"code": "idempotency_key_in_use"}}, status=409),
}
DECLINED = Answer({"error": {"code": "card_declined", "message": "declined"}}, status=402)


@pytest.fixture
async def parts(place: Place, upstream: Upstream) -> AsyncIterator[Parts]:
    upstream.answer = lambda request: Answer({"id": "re_1"})
    async with running(place.installation) as opened:
        yield opened


async def refund(parts: Parts, place: Place, name: str = "stripe_create_refund") -> Outcome:
    return await call(parts, place.caller(), name, REFUND, Nobody())


async def approved(parts: Parts, place: Place, name: str = "stripe_create_refund") -> str:
    with pytest.raises(ApprovalRequired) as held:
        await refund(parts, place, name)
    decide(place, held.value.approval, Decision.APPROVE)
    return held.value.approval


async def lost(parts: Parts, place: Place, name: str = "stripe_create_refund") -> str:
    """Claimed longer ago than a call can take, by a process that has died since: it may have taken effect."""
    approval = await approved(parts, place, name)
    claimed = now_ms() - LOST_MS - 1
    execute(place, "UPDATE approval SET state = 'executing', changed_at = ? WHERE id = ?", claimed, approval)
    return approval


def answer_in_turn(upstream: Upstream, *answers: Answer) -> None:
    """Each once, the last one from then on."""
    left = list(answers)
    upstream.answer = lambda request: left.pop(0) if len(left) > 1 else left[0]


async def assert_nobody_knows(parts: Parts, place: Place, approval: str, outcome: Outcome) -> None:
    """On record, to the agent, and to the person who is asked about the next one."""
    assert not outcome.ok
    assert "It is not known whether the call took effect" in outcome.text
    assert "othing was sent" not in outcome.text
    assert record(place, approval).state is State.UNKNOWN
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["unknown"]
    with pytest.raises(ApprovalRequired) as held:
        await refund(parts, place)
    prompt = place.installation.approvals.prompt(record(place, held.value.approval))
    assert "Careful" in prompt
    assert "nobody knows" in prompt


# -- a lost call that is sent once more


@pytest.mark.parametrize("answer", SHUT.values(), ids=SHUT)
async def test_a_lost_call_stays_unknown_where_at_its_second_sending_the_upstream(
    parts: Parts, place: Place, upstream: Upstream, answer: Answer
) -> None:
    approval = await lost(parts, place)
    upstream.answer = lambda request: answer
    outcome = await refund(parts, place)
    assert [request.headers["idempotency-key"] for request in upstream.requests] == [approval]
    await assert_nobody_knows(parts, place, approval, outcome)


async def test_a_lost_call_stays_unknown_where_it_cannot_be_sent_again(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await lost(parts, place)
    upstream.stop_listening()
    outcome = await refund(parts, place)
    assert "this time it could not be sent" in outcome.text
    await assert_nobody_knows(parts, place, approval, outcome)


@pytest.mark.parametrize("why", ["it does not open", "it is gone from where it stays"])
async def test_a_lost_call_stays_unknown_where_there_is_no_credential_to_send_it_with(
    parts: Parts, place: Place, places: Places, upstream: Upstream, why: str
) -> None:
    parts = replace(parts, references=places.resolver(home=place.home))
    if why == "it does not open":
        approval = await lost(parts, place)
        execute(place, "UPDATE vault_field SET field = 'another'")
        outcome = await refund(parts, place)
    else:
        place.connect(upstream.url, name="kept", secret=to_reference(places.keep("env", SECRET)))
        approval = await lost(parts, place, "kept_create_refund")
        places.lose("env")
        outcome = await refund(parts, place, "kept_create_refund")
    assert "this time it could not be sent. It is not known whether the call took effect" in outcome.text
    assert "An admin has to" in outcome.text
    assert "othing was sent" not in outcome.text
    assert record(place, approval).state is State.UNKNOWN
    assert upstream.requests == []


async def test_what_the_upstream_repeats_of_a_lost_call_under_its_key_is_what_came_of_it(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await lost(parts, place)
    upstream.answer = lambda request: DECLINED
    outcome = await refund(parts, place)
    assert "not known" not in outcome.text
    assert record(place, approval).state is State.FAILED


# -- tries that egress makes by itself


@pytest.mark.parametrize("answer", SHUT.values(), ids=SHUT)
async def test_a_call_whose_first_try_had_no_answer_is_unknown_where_at_the_second_the_upstream(
    parts: Parts, place: Place, upstream: Upstream, answer: Answer
) -> None:
    approval = await approved(parts, place)
    answer_in_turn(upstream, HANGS_UP, answer)
    outcome = await refund(parts, place)
    assert [request.headers["idempotency-key"] for request in upstream.requests] == [approval] * 2
    await assert_nobody_knows(parts, place, approval, outcome)


async def test_a_call_whose_first_try_had_no_answer_is_unknown_where_the_second_finds_nobody(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    def last_words(request: Received) -> Answer:
        upstream.stop_listening()
        return HANGS_UP

    approval = await approved(parts, place)
    upstream.answer = last_words
    outcome = await refund(parts, place)
    assert len(upstream.requests) == 1
    await assert_nobody_knows(parts, place, approval, outcome)


@pytest.mark.parametrize(
    ("first", "second"),
    [(HANGS_UP, DECLINED), (Answer(status=429, headers={"Retry-After": "0"}), SHUT["refuses the credential"])],
    ids=["a refusal under the key", "two that were turned away"],
)
async def test_a_call_of_which_each_try_came_to_a_definite_end_has_failed(
    parts: Parts, place: Place, upstream: Upstream, first: Answer, second: Answer
) -> None:
    approval = await approved(parts, place)
    answer_in_turn(upstream, first, second)
    outcome = await refund(parts, place)
    assert len(upstream.requests) == 2
    assert "not known" not in outcome.text
    assert record(place, approval).state is State.FAILED


async def test_a_read_that_was_tried_twice_has_plainly_failed(parts: Parts, place: Place, upstream: Upstream) -> None:
    answer_in_turn(upstream, HANGS_UP, SHUT["refuses the credential"])
    outcome = await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert len(upstream.requests) == 2
    assert "not known" not in outcome.text
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["failed"]


async def test_one_refund_is_made_where_the_answer_to_the_first_try_is_lost_and_the_agent_insists(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    """An upstream that honours keys. The agent cannot have a second refund by a call that looks like the first one."""
    carried_out: set[str] = set()
    turns = [HANGS_UP, SHUT["asks for fewer calls"]]

    def answer(request: Received) -> Answer:
        turn = turns.pop(0) if turns else Answer({"id": "re_1"})
        if turn.status != 429:
            carried_out.add(request.headers["idempotency-key"])
        return turn

    approval = await approved(parts, place)
    upstream.answer = answer
    await assert_nobody_knows(parts, place, approval, await refund(parts, place))
    assert carried_out == {approval}


# -- a process that stood still


class Clock:
    """Stands, and at each look after the first does what the test says and moves on."""

    def __init__(self, *steps: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.now, self.steps, self.meanwhile = 1000.0, [0.0, *steps], meanwhile

    def __call__(self) -> float:
        step = self.steps.pop(0)
        if step:
            self.meanwhile()
        self.now += step
        return self.now


async def test_a_call_is_not_sent_by_a_process_that_stood_still_and_says_so(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await approved(parts, place)
    outcome = await refund(replace(parts, clock=Clock(SENT_WITHIN_S + 0.1)), place)
    assert not outcome.ok
    assert "Nothing was sent" in outcome.text
    assert record(place, approval).state is State.FAILED
    (entry,) = place.events("call.outcome")
    assert (entry["outcome"], entry["error"]) == ("failed", "too late")
    assert upstream.requests == []


async def test_a_call_that_is_late_but_not_too_late_is_sent(parts: Parts, place: Place, upstream: Upstream) -> None:
    await approved(parts, place)
    assert (await refund(replace(parts, clock=Clock(SENT_WITHIN_S)), place)).ok
    assert len(upstream.requests) == 1


async def test_what_a_person_has_settled_meanwhile_as_not_done_is_not_done_after(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await approved(parts, place)

    def settled() -> None:
        execute(place, "UPDATE approval SET changed_at = ? WHERE id = ?", now_ms() - LOST_MS - 1, approval)
        place.database.write_now(
            lambda rows: place.installation.approvals.unknown.resolve(
                rows, place.org, approval, happened=False, actor=place.actor()
            )
        )

    await refund(replace(parts, clock=Clock(LOST_MS / 1000, meanwhile=settled)), place)
    assert upstream.requests == []
    assert (record(place, approval).state, record(place, approval).happened) == (State.UNKNOWN, False)


async def test_what_another_process_sends_again_meanwhile_is_its_own_to_end(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await approved(parts, place)

    def taken() -> None:
        execute(place, "UPDATE approval SET changed_at = ?, resent_at = ? WHERE id = ?", now_ms(), now_ms(), approval)

    await refund(replace(parts, clock=Clock(LOST_MS / 1000, meanwhile=taken)), place)
    assert upstream.requests == []
    assert record(place, approval).state is State.EXECUTING
    found, finish = record(place, approval), place.installation.approvals.finish
    place.database.write_now(lambda rows: finish(rows, found, State.SUCCEEDED, {"text": "x"}, again=True))
    assert record(place, approval).state is State.SUCCEEDED


async def test_a_lost_call_that_is_too_late_at_its_second_sending_stays_unknown(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await lost(parts, place)
    outcome = await refund(replace(parts, clock=Clock(SENT_WITHIN_S + 0.1)), place)
    assert upstream.requests == []
    await assert_nobody_knows(parts, place, approval, outcome)


async def test_a_second_try_that_is_too_late_is_not_made_and_the_first_stays_unknown(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await approved(parts, place)
    answer_in_turn(upstream, HANGS_UP, Answer({"id": "re_1"}))
    outcome = await refund(replace(parts, clock=Clock(0, SENT_WITHIN_S + 0.1)), place)
    assert len(upstream.requests) == 1
    await assert_nobody_knows(parts, place, approval, outcome)


def test_a_call_is_over_before_another_process_takes_it_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even by a clock that is as far from this one's as clocks may be; and no wait for a secret is cut short by it."""
    assert SENT_WITHIN_S + DEFAULT_LIMITS.total_s + CLOCKS_APART_MS / 1000 <= LOST_MS / 1000
    longest = 30
    monkeypatch.setenv("KEYLEASH_REFERENCE_SECONDS", str(longest + 1))
    with pytest.raises(SettingsProblem):
        read_settings()
    assert 2 * longest + GRACE_S < SENT_WITHIN_S


def test_the_clock_of_a_server_goes_on_while_the_machine_is_suspended(place: Place) -> None:
    asked: Any = getattr(time, "CLOCK_BOOTTIME", None)
    if asked is None:
        pytest.skip("this system counts no suspension")
    before = time.clock_gettime(asked)
    assert before <= running_s() <= time.clock_gettime(asked)


async def test_a_server_takes_that_clock(parts: Parts) -> None:
    assert parts.clock is running_s
