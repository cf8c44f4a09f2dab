"""Approvals and grants: who may decide, what a decision covers, and that each is used as often as it says."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import mcp_types as t
import pytest

from server.app import running
from server.approval import (
    GRANT_USES,
    ApprovalProblem,
    Approvals,
    Asked,
    Clearance,
    Decision,
    Lost,
    State,
    sweep,
)
from server.approval.fatigue import OF_A_MEMBER, OF_AN_AGENT
from server.approval.record import COLUMNS, LOST_MS, values_of
from server.call import Outcome, Parts, call
from server.clock import now_ms
from server.connections import connection_named, replan, rotate
from server.errors import ApprovalRequired, CallRefused, Denied, NoLongerValid, OutcomeUnknown, Refused
from server.identity import Actor, Member, create_member
from server.policy import Ruling, Verdict
from server.prompt import Prompt
from server.rules import remove as remove_rule
from tests.agents import Nobody, Person, connected, decide, execute, record, with_connector
from tests.installed import SECRET, Place, add_org, make
from tests.upstream import Answer, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

REFUND = {"charge": "ch_1", "amount": 1200}
MESSAGE = {"channel": "C1", "text": "hello"}
Calling = Callable[..., Awaitable[Outcome]]


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
def calling(place: Place, parts: Parts) -> Calling:
    async def run(name: str, arguments: dict[str, Any], person: Any = None, *, agent: str = "reconciler", **more: Any):
        return await call(parts, place.caller(agent), name, arguments, person or Nobody(), **more)

    return run


async def held(calling: Calling, name: str = "stripe_create_refund", arguments: Any = None, **more: Any) -> str:
    """The id of the approval that this call is held for."""
    with pytest.raises(ApprovalRequired) as waiting:
        await calling(name, REFUND if arguments is None else arguments, **more)
    return waiting.value.approval


def state_of(place: Place, approval: str) -> str:
    """The state as the row says, whatever the clock says."""
    return str(place.database.read("SELECT state FROM approval WHERE id = ?", (approval,))[0][0])


def asked(place: Place, arguments: dict[str, Any] | None = None) -> Asked:
    """What the path of a call hands to `claim`."""
    workspace = place.installation.workspaces.of(place.caller())
    bound = workspace.offer.bind("stripe_create_refund", arguments or REFUND)
    return Asked(
        place.caller(),
        bound,
        workspace.connections["stripe"],
        Verdict(Ruling.CONFIRM, "", ()),
        Prompt("", whole=False),
    )


# -- states


async def test_a_record_that_is_not_pending_cannot_be_decided(place: Place, calling: Calling) -> None:
    approval = await held(calling)
    for state in State:
        if state is State.PENDING:
            continue
        execute(place, "UPDATE approval SET state = ? WHERE id = ?", state.value, approval)
        for decision in Decision:
            with pytest.raises(ApprovalProblem, match=f"is {state.value} already"):
                decide(place, approval, decision)
        assert state_of(place, approval) == state.value
    assert record(place, approval).decisions == ()


async def test_only_an_approved_record_can_be_claimed_and_only_once(place: Place, calling: Calling) -> None:
    approval = await held(calling)
    approvals, database = place.installation.approvals, place.database
    clearance = Clearance(approval=record(place, approval))
    for state in State:
        if state is State.APPROVED:
            continue
        execute(place, "UPDATE approval SET state = ? WHERE id = ?", state.value, approval)
        with pytest.raises(Lost):
            database.write_now(lambda rows: approvals.claim(rows, asked(place), clearance))
        assert state_of(place, approval) == state.value
    execute(place, "UPDATE approval SET state = 'approved' WHERE id = ?", approval)
    database.write_now(lambda rows: approvals.claim(rows, asked(place), clearance))
    assert state_of(place, approval) == "executing"
    with pytest.raises(Lost):
        database.write_now(lambda rows: approvals.claim(rows, asked(place), clearance))


async def test_only_an_executing_record_comes_to_an_end_and_only_a_live_one_is_retired(
    place: Place, calling: Calling
) -> None:
    approval = await held(calling)
    approvals, database = place.installation.approvals, place.database
    found = record(place, approval)
    for state in State:
        execute(place, "UPDATE approval SET state = ? WHERE id = ?", state.value, approval)
        await approvals.retire(found, "a reason")
        assert state_of(place, approval) == ("cancelled" if state in (State.APPROVED, State.PENDING) else state.value)
        execute(place, "UPDATE approval SET state = ? WHERE id = ?", state.value, approval)
        database.write_now(lambda rows: approvals.finish(rows, found, State.SUCCEEDED, {"text": "x"}))
        assert state_of(place, approval) == ("succeeded" if state is State.EXECUTING else state.value)
    assert len(place.events("approval.stale")) == 2


@pytest.mark.parametrize("elsewhere", [Decision.DENY, Decision.APPROVE])
async def test_an_answer_of_the_client_moves_a_pending_record_only(
    place: Place, calling: Calling, upstream: Upstream, elsewhere: Decision
) -> None:
    """The record is decided elsewhere while the form is open: that decision stands."""

    class Slow(Person):
        async def ask(self, question: Any) -> Decision | None:
            decide(place, question.approval, elsewhere)
            return Decision.APPROVE if elsewhere is Decision.DENY else Decision.DENY

    if elsewhere is Decision.DENY:
        with pytest.raises(Denied):
            await calling("stripe_create_refund", REFUND, Slow())
    else:
        assert (await calling("stripe_create_refund", REFUND, Slow())).ok
    assert len(upstream.requests) == (elsewhere is Decision.APPROVE)
    assert [event["channel"] for event in place.events("approval.decided")] == ["command line"]


async def test_two_deciders_at_once_make_one_decision(place: Place, calling: Calling) -> None:
    """Both have read the record while it was pending."""
    approval = await held(calling)
    seen = record(place, approval)
    approvals, database = place.installation.approvals, place.database
    bob = place.member("bob", ("approver",))
    database.write_now(lambda rows: approvals.decide(rows, seen, Decision.DENY, place.actor()))
    with pytest.raises(ApprovalProblem, match="is denied already"):
        database.write_now(lambda rows: approvals.decide(rows, seen, Decision.APPROVE, place.actor(bob)))
    assert state_of(place, approval) == "denied"
    assert len(place.events("approval.decided")) == 1


async def test_a_denied_call_may_be_asked_for_again_and_is_a_new_record(place: Place, calling: Calling) -> None:
    first = await held(calling)
    decide(place, first, Decision.DENY)
    with pytest.raises(Denied):
        await calling("stripe_create_refund", REFUND, pointer=first)
    assert await held(calling) != first


# -- who may decide


ROLES: list[tuple[tuple[str, ...], bool]] = [
    (("owner",), True),
    (("admin",), True),
    (("approver",), True),
    (("auditor",), False),
    (("member",), False),
    (("member", "approver"), True),
    ((), False),
]


@pytest.mark.parametrize(("roles", "eligible"), ROLES, ids=str)
@pytest.mark.parametrize("ruling", ["confirm", "approve"])
@pytest.mark.parametrize("decision", [Decision.APPROVE, Decision.DENY])
async def test_a_role_decides_or_does_not(
    place: Place, calling: Calling, ruling: str, roles: tuple[str, ...], eligible: bool, decision: Decision
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then=ruling)
    approval = await held(calling)
    bob = place.member("bob", roles)
    if eligible:
        assert decide(place, approval, decision, bob) is (
            State.APPROVED if decision is Decision.APPROVE else State.DENIED
        )
    else:
        with pytest.raises(ApprovalProblem, match="bob"):
            decide(place, approval, decision, bob)
        assert state_of(place, approval) == "pending"


async def test_a_confirm_is_for_the_member_it_was_asked_for_whatever_their_roles(
    place: Place, calling: Calling
) -> None:
    from server.identity import create_agent

    bob, carol = place.member("bob"), place.member("carol")
    place.database.write_now(lambda rows: create_agent(rows, place.org, name="bobs", member=bob, by="alice"))
    approval = await held(calling, agent="bobs")
    with pytest.raises(ApprovalProblem, match="carol cannot decide"):
        decide(place, approval, Decision.APPROVE, carol)
    assert decide(place, approval, Decision.APPROVE, bob) is State.APPROVED


async def test_who_is_not_known_as_themselves_confirms_and_never_approves(place: Place, calling: Calling) -> None:
    bob = place.member("bob", ("approver", "admin", "owner"))
    by_word = Actor(bob, "operator's word")
    confirmed = await held(calling)
    assert decide(place, confirmed, Decision.APPROVE, by_word) is State.APPROVED
    assert place.events("approval.decided")[-1]["known_by"] == "operator's word"
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    approval = await held(calling, arguments={"charge": "ch_2"})
    for decision in Decision:
        with pytest.raises(ApprovalProblem, match="does not count"):
            decide(place, approval, decision, by_word)
    assert state_of(place, approval) == "pending"
    assert decide(place, approval, Decision.APPROVE, bob) is State.APPROVED


async def test_two_must_agree_and_one_person_counts_once(place: Place, calling: Calling, upstream: Upstream) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    bob, carol = place.member("bob", ("approver",)), place.member("carol", ("admin",))
    approval = await held(calling)
    assert decide(place, approval, Decision.APPROVE, bob) is State.PENDING
    with pytest.raises(ApprovalProblem, match="counts once"):
        decide(place, approval, Decision.APPROVE, bob)
    with pytest.raises(ApprovalRequired):
        await calling("stripe_create_refund", REFUND)
    assert upstream.requests == []
    assert decide(place, approval, Decision.APPROVE, carol) is State.APPROVED
    assert (await calling("stripe_create_refund", REFUND)).ok
    assert [made["by"] for made in record(place, approval).decisions] == ["bob", "carol"]
    assert [event["state"] for event in place.events("approval.decided")] == ["pending", "approved"]
    assert len(upstream.requests) == 1


async def test_one_denial_ends_what_needs_two(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=3)
    bob, carol = place.member("bob", ("approver",)), place.member("carol", ("admin",))
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE, bob)
    assert decide(place, approval, Decision.DENY, carol) is State.DENIED
    with pytest.raises(ApprovalProblem):
        decide(place, approval, Decision.APPROVE)


async def test_a_second_person_is_another_than_who_asked_and_may_be_anyone_to_deny(
    place: Place, calling: Calling
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", second_person=True)
    first, second = await held(calling), await held(calling, arguments={"charge": "ch_2"})
    with pytest.raises(ApprovalProblem, match="second person"):
        decide(place, first, Decision.APPROVE)
    with pytest.raises(ApprovalProblem, match="second person"):
        decide(place, first, Decision.APPROVE_HOUR)
    assert decide(place, second, Decision.DENY) is State.DENIED
    assert decide(place, first, Decision.APPROVE, place.member("bob", ("approver",))) is State.APPROVED


async def test_a_group_is_its_members_and_no_role_stands_in_for_it(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="group:finance")
    place.database.write_now(
        lambda rows: create_member(
            rows, place.org, name="fay", roles=("member",), os_user=None, by="alice", groups=("finance",)
        )
    )
    approval = await held(calling)
    for outsider in (place.owner, place.member("bob", ("approver", "admin"))):
        with pytest.raises(ApprovalProblem, match="group:finance"):
            decide(place, approval, Decision.APPROVE, outsider)
    fay = place.installation.directory.member(place.org, "fay")
    assert decide(place, approval, Decision.APPROVE, fay) is State.APPROVED


async def test_of_several_circles_each_approver_has_to_be_in_every_one(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="group:finance")
    place.rule(who="everyone", tools=["stripe.*"], effects=["spend"], then="approve", approvers="approver", count=2)
    approval = await held(calling)
    fay, bob = member_of(place, "fay", "finance"), place.member("bob", ("approver",))
    both = [member_of(place, name, "finance") for name in ("gus", "hal")]
    execute(place, "UPDATE member SET roles = ? WHERE name IN ('gus', 'hal')", json.dumps(["approver"]))
    for outsider in (fay, bob):
        with pytest.raises(ApprovalProblem, match="is not"):
            decide(place, approval, Decision.APPROVE, outsider)
    gus, hal = (place.installation.directory.member(place.org, each.name) for each in both)
    assert decide(place, approval, Decision.APPROVE, gus) is State.PENDING
    assert decide(place, approval, Decision.APPROVE, hal) is State.APPROVED


LOSES: dict[str, str] = {
    "the role": "UPDATE member SET roles = '[]' WHERE name = 'bob'",
    "the group": "UPDATE member SET groups = '[]' WHERE name = 'bob'",
    "their place": "DELETE FROM member WHERE name = 'bob'",
    "their name to somebody else": "UPDATE member SET id = 'mem_another' WHERE name = 'bob'",
}


@pytest.mark.parametrize("sql", LOSES.values(), ids=LOSES)
async def test_who_has_lost_between_two_decisions_what_let_them_approve_does_not_count(
    place: Place, calling: Calling, upstream: Upstream, sql: str
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2, approvers="group:finance")
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="approver")
    for name in ("bob", "carol", "dan"):
        member_of(place, name, "finance")
    execute(place, "UPDATE member SET roles = ? WHERE name <> 'alice'", json.dumps(["approver"]))
    bob, carol, dan = (place.installation.directory.member(place.org, name) for name in ("bob", "carol", "dan"))
    approval = await held(calling)
    assert decide(place, approval, Decision.APPROVE, bob) is State.PENDING
    execute(place, sql)
    assert decide(place, approval, Decision.APPROVE, carol) is State.PENDING
    with pytest.raises(ApprovalRequired):
        await calling("stripe_create_refund", REFUND)
    assert upstream.requests == []
    assert decide(place, approval, Decision.APPROVE, dan) is State.APPROVED


async def test_one_person_counts_once_whatever_they_are_called_by_then(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    bob = place.member("bob", ("approver",))
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE, bob)
    execute(place, "UPDATE member SET name = 'robert' WHERE name = 'bob'")
    renamed = place.installation.directory.member(place.org, "robert")
    with pytest.raises(ApprovalProblem, match="counts once"):
        decide(place, approval, Decision.APPROVE, renamed)
    assert state_of(place, approval) == "pending"


async def test_another_person_of_the_same_name_is_another_person(place: Place, calling: Calling) -> None:
    """Who was removed does not count any more; who was given their name since does."""
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE, place.member("bob", ("approver",)))
    execute(place, "DELETE FROM member WHERE name = 'bob'")
    assert decide(place, approval, Decision.APPROVE, place.member("bob", ("approver",))) is State.PENDING
    assert decide(place, approval, Decision.APPROVE, place.member("carol", ("approver",))) is State.APPROVED
    ids = [made["by_id"] for made in record(place, approval).decisions]
    assert len(set(ids)) == 3


async def test_who_asked_through_another_of_their_agents_asked_all_the_same(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", second_person=True)
    place.agent("second")
    approval = await held(calling, agent="second")
    with pytest.raises(ApprovalProblem, match="second person"):
        decide(place, approval, Decision.APPROVE)
    assert state_of(place, approval) == "pending"


async def test_a_named_role_is_that_role(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="admin")
    approval = await held(calling)
    for outsider in (place.owner, place.member("bob", ("approver",))):
        with pytest.raises(ApprovalProblem, match="is not admin"):
            decide(place, approval, Decision.APPROVE, outsider)
    assert decide(place, approval, Decision.APPROVE, place.member("ada", ("admin",))) is State.APPROVED


# -- time


async def test_what_has_expired_can_neither_be_decided_nor_used(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    pending, approved = await held(calling), await held(calling, arguments={"charge": "ch_2"})
    decide(place, approved, Decision.APPROVE)
    execute(place, "UPDATE approval SET expires_at = ?", now_ms() - 1)
    assert {each.state for each in place.installation.approvals.list(place.org)} == {State.EXPIRED}
    assert place.installation.approvals.list(place.org, state=State.PENDING) == []
    with pytest.raises(ApprovalProblem, match="is expired already"):
        decide(place, pending, Decision.APPROVE)
    for approval, arguments in ((pending, REFUND), (approved, {"charge": "ch_2"})):
        with pytest.raises(NoLongerValid, match="expired"):
            await calling("stripe_create_refund", arguments, pointer=approval)
        assert await held(calling, arguments=arguments) != approval
    assert upstream.requests == []
    assert {event["approval"] for event in place.events("approval.expired")} == {pending, approved}


async def test_a_claim_looks_at_the_clock_itself(place: Place, calling: Calling) -> None:
    """The record was approved and in time when the call came, and is not when it is about to be sent."""
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE)
    execute(place, "UPDATE approval SET expires_at = ?", now_ms() - 1)
    approvals = place.installation.approvals
    with pytest.raises(NoLongerValid, match="expired"):
        place.database.write_now(
            lambda rows: approvals.claim(rows, asked(place), Clearance(approval=record(place, approval)))
        )
    assert state_of(place, approval) == "approved"


async def test_what_has_expired_stays_so_when_the_clock_is_set_back(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    """An hour later the agent is told that it has expired; then the clock goes back to where it was in time."""
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE)
    execute(place, "UPDATE approval SET expires_at = ?", now_ms() - 1)
    with pytest.raises(NoLongerValid, match="expired"):
        await calling("stripe_create_refund", REFUND, pointer=approval)
    execute(place, "UPDATE approval SET expires_at = ?", now_ms() + 60_000)
    with pytest.raises(NoLongerValid, match="expired"):
        await calling("stripe_create_refund", REFUND, pointer=approval)
    assert await held(calling) != approval
    assert state_of(place, approval) == "expired"
    assert upstream.requests == []


async def test_a_record_that_the_clock_was_set_back_behind_can_neither_be_decided_nor_used(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    """Seen from a clock that was set back by two minutes, it was written in two minutes; one by a second is no sign."""
    pending, approved = await held(calling), await held(calling, arguments={"charge": "ch_2"})
    decide(place, approved, Decision.APPROVE)
    execute(place, "UPDATE approval SET changed_at = changed_at + 1000, expires_at = expires_at + 1000")
    assert record(place, pending).state is State.PENDING
    execute(place, "UPDATE approval SET changed_at = changed_at + 120000, expires_at = expires_at + 120000")
    with pytest.raises(ApprovalProblem, match="is expired already"):
        decide(place, pending, Decision.APPROVE)
    approvals, found = place.installation.approvals, record(place, approved)
    with pytest.raises(NoLongerValid, match="expired"):
        place.database.write_now(
            lambda rows: approvals.claim(rows, asked(place, {"charge": "ch_2"}), Clearance(approval=found))
        )
    for approval, arguments in ((pending, REFUND), (approved, {"charge": "ch_2"})):
        with pytest.raises(NoLongerValid, match="expired"):
            await calling("stripe_create_refund", arguments, pointer=approval)
        assert await held(calling, arguments=arguments) != approval
    assert upstream.requests == []


TOO_LATE: dict[str, str] = {
    "after its expiry": "UPDATE approval SET expires_at = 1",
    "from a clock that was set back": "UPDATE approval SET changed_at = changed_at + 120000",
}


@pytest.mark.parametrize("sql", TOO_LATE.values(), ids=TOO_LATE)
async def test_an_answer_that_comes_too_late_is_no_answer(
    place: Place, calling: Calling, upstream: Upstream, sql: str
) -> None:
    class Late(Person):
        async def ask(self, question: Any) -> Decision | None:
            execute(place, sql)
            return Decision.APPROVE

    with pytest.raises(NoLongerValid, match="expired"):
        await calling("stripe_create_refund", REFUND, Late())
    assert upstream.requests == []
    assert place.events("approval.decided") == []


async def test_a_call_lost_on_its_way_is_unknown_and_never_sent_again_by_itself(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    approval = await held(calling, "chat_post_message", MESSAGE)
    decide(place, approval, Decision.APPROVE)
    execute(place, "UPDATE approval SET state = 'executing', changed_at = ?", now_ms() - LOST_MS - 1)
    assert record(place, approval).state is State.EXECUTING
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            await calling("chat_post_message", MESSAGE, pointer=approval)
    with pytest.raises(ApprovalProblem):
        decide(place, approval, Decision.APPROVE)
    again = await held(calling, "chat_post_message", MESSAGE)
    assert again != approval
    assert state_of(place, approval) == "unknown"
    prompt = place.installation.approvals.prompt(record(place, again))
    assert "whether it was done, nobody knows" in prompt, "whoever decides on the repetition is told of the first"
    assert [event["approval"] for event in place.events("approval.unknown")] == [approval]
    assert upstream.requests == []


async def test_a_call_on_its_way_is_not_taken_for_lost(place: Place, calling: Calling) -> None:
    """An upstream has half a minute to answer; four times that is no sign of a loss."""
    approval = await held(calling)
    execute(place, "UPDATE approval SET state = 'executing', changed_at = ?", now_ms() - 120_000)
    place.database.write_now(lambda rows: sweep(rows, place.org, now_ms()))
    assert state_of(place, approval) == "executing"


# -- how many wait


async def test_an_agent_can_make_so_many_calls_wait_and_no_more(place: Place, calling: Calling) -> None:
    first = [await held(calling, arguments={"charge": f"ch_{each}"}) for each in range(OF_AN_AGENT.waiting)]
    with pytest.raises(Refused):
        await calling("stripe_create_refund", {"charge": "one_more"})
    assert await held(calling, arguments={"charge": "ch_0"}) == first[0], "the same call joins its own record"
    place.agent("second")
    await held(calling, arguments={"charge": "one_more"}, agent="second")
    decide(place, first[0], Decision.DENY)
    await held(calling, arguments={"charge": "one_more"})
    with pytest.raises(Refused):
        await calling("stripe_create_refund", {"charge": "yet_another"})
    execute(place, "UPDATE approval SET expires_at = 1 WHERE id = ?", first[1])
    await held(calling, arguments={"charge": "yet_another"})
    reason = f"{OF_AN_AGENT.waiting} calls of this agent already wait for a person"
    assert [event["reason"] for event in place.events("call.refused")] == [reason] * 2


async def test_a_member_can_be_asked_by_all_their_agents_together_so_often_and_no_more(
    place: Place, calling: Calling
) -> None:
    given = record(place, await held(calling))
    names = COLUMNS.split(", ")
    place.agent("second")
    execute(place, "DELETE FROM approval")

    def written(number: int, **more: Any) -> None:
        """A record of an earlier call, as its row stands."""
        values = dict(zip(names, values_of(given), strict=True))
        values |= {"id": f"apr_{number}", "call_hash": str(number), **more}
        marks = ", ".join("?" * len(names))
        execute(place, f"INSERT INTO approval ({COLUMNS}) VALUES ({marks})", *values.values())

    for state, bound, word in (
        ("pending", OF_A_MEMBER.waiting, "already wait"),
        ("denied", OF_A_MEMBER.denials, "pauses for a while"),
        ("expired", OF_A_MEMBER.unagreed, "not agreed to"),
        ("cancelled", OF_A_MEMBER.unagreed, "not agreed to"),
    ):
        for number in range(bound):
            written(number, state=state, agent=f"agt_{number}")
        with pytest.raises(Refused):
            await calling("stripe_create_refund", REFUND, agent="second")
        assert word in place.events("call.refused")[-1]["reason"]
        assert "the member" in place.events("call.refused")[-1]["reason"]
        execute(place, "DELETE FROM approval WHERE id = 'apr_0'")
        await held(calling, agent="second")
        execute(place, "DELETE FROM approval")


async def test_what_was_asked_and_not_agreed_to_is_bounded_for_an_agent_and_what_was_agreed_to_is_not(
    place: Place, calling: Calling
) -> None:
    first = await held(calling)
    names = COLUMNS.split(", ")
    given = record(place, first)
    execute(place, "DELETE FROM approval")
    for number in range(OF_AN_AGENT.unagreed + 200):
        agreed = number >= OF_AN_AGENT.unagreed
        values = dict(zip(names, values_of(given), strict=True))
        values |= {"id": f"apr_{number}", "call_hash": str(number), "state": "succeeded" if agreed else "expired"}
        execute(place, f"INSERT INTO approval ({COLUMNS}) VALUES ({', '.join('?' * len(names))})", *values.values())
    with pytest.raises(Refused):
        await calling("stripe_create_refund", REFUND)
    assert "not agreed to" in place.events("call.refused")[-1]["reason"]
    execute(place, "UPDATE approval SET created_at = created_at - 3600001 WHERE id = 'apr_0'")
    await held(calling)


class Counted(Approvals):
    """The gate, which counts who has come to it."""

    came = 0

    async def clear(self, *more: Any) -> Clearance:
        self.came += 1
        return await super().clear(*more)

    async def all_joined(self, many: int) -> None:
        """So many calls have come, and each has joined its record: what is written comes after what they wrote."""
        while self.came < many:
            await anyio.lowlevel.checkpoint()
        await self._database.write(lambda rows: None)


@pytest.fixture
def patient(tmp_path: Path, upstream: Upstream) -> Iterator[tuple[Place, Counted]]:
    """A place that holds a call as long as it takes."""
    place = make(tmp_path / "patient")
    place.connect(upstream.url)
    place.agent()
    gate = Counted(place.database, place.installation.vault, hold_seconds=40)
    place.installation = replace(place.installation, approvals=gate)
    yield place, gate
    place.installation.close()


async def test_identical_calls_at_once_put_one_question_and_send_once(
    patient: tuple[Place, Counted], upstream: Upstream
) -> None:
    place, gate = patient

    class Waiting(Person):
        async def ask(self, question: Any) -> Decision | None:
            self.questions.append(question)
            await gate.all_joined(6)
            return Decision.APPROVE

    people = [Waiting() for _ in range(6)]
    outcomes: list[Outcome] = []
    async with running(place.installation) as parts, anyio.create_task_group() as group:

        async def agent(person: Waiting) -> None:
            outcomes.append(await call(parts, place.caller(), "stripe_create_refund", REFUND, person))

        for person in people:
            group.start_soon(agent, person)
    assert sum(len(person.questions) for person in people) == 1
    assert len(place.installation.approvals.list(place.org)) == 1
    assert len(upstream.requests) == 1
    assert {outcome.text for outcome in outcomes} == {outcomes[0].text}
    assert len(outcomes) == len(people)


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_identical_calls_of_one_client_put_one_question(
    patient: tuple[Place, Counted], upstream: Upstream, era: str
) -> None:
    place, gate = patient
    questions: list[t.ElicitRequestParams] = []

    async def answer(_context: Any, params: t.ElicitRequestParams) -> t.ElicitResult:
        questions.append(params)
        await gate.all_joined(4)
        return t.ElicitResult(action="accept", content={"decision": "approve"})

    results: list[t.CallToolResult] = []
    async with connected(place, "memory", era, answer) as client, anyio.create_task_group() as group:

        async def agent() -> None:
            results.append(await client.call_tool("stripe_create_refund", REFUND))

        for _ in range(4):
            group.start_soon(agent)
    assert len(questions) == 1
    assert [result.is_error for result in results] == [False] * 4
    assert len(upstream.requests) == 1


# -- other orgs, other agents


async def test_another_orgs_record_is_as_if_there_were_none(
    place: Place, parts: Parts, calling: Calling, upstream: Upstream
) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    approval = await held(calling)
    decide(place, approval, Decision.APPROVE)
    approvals = place.installation.approvals
    assert approvals.find(other.org, approval) is None
    assert approvals.list(other.org) == []
    said: list[str] = []
    for pointer in (approval, "apr_aaaaaaaaaaaaaaaa"):
        with pytest.raises(NoLongerValid) as refused:
            await call(parts, other.caller(), "stripe_create_refund", REFUND, Nobody(), pointer=pointer)
        said.append(str(refused.value).replace(pointer, "…"))
    assert said[0] == said[1]
    assert upstream.requests == []
    assert state_of(place, approval) == "approved"


async def test_equal_calls_of_two_orgs_have_different_hashes(place: Place) -> None:
    other = add_org(place.installation, "globex")
    approvals = place.installation.approvals
    assert approvals.call_hash(place.org, asked(place).call) != approvals.call_hash(other.org, asked(place).call)
    assert approvals.call_hash(place.org, asked(place).call) == approvals.call_hash(place.org, asked(place).call)


# -- grants


@pytest.fixture
async def chat(place: Place, calling: Calling, upstream: Upstream) -> Place:
    """The place with Slack connected as `chat`, and a running grant to write to the channel C1."""
    place.connect(upstream.url, connector="slack", name="chat")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1", "channel": "C1"})
    assert (await calling("chat_post_message", MESSAGE, Person(Decision.APPROVE_HOUR))).ok
    upstream.requests.clear()
    assert len(place.installation.approvals.grants(place.org)) == 1
    return place


async def test_thirty_calls_at_once_use_no_more_than_is_left(chat: Place, calling: Calling, upstream: Upstream) -> None:
    execute(chat, "UPDATE call_grant SET uses_left = 5")
    done: list[Outcome] = []
    refused: list[CallRefused] = []

    async def agent(number: int) -> None:
        try:
            done.append(await calling("chat_post_message", {**MESSAGE, "text": f"number {number}"}))
        except CallRefused as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(agent, number)
    assert len(done) == len(upstream.requests) == 5
    assert len(refused) == 25
    assert execute(chat, "UPDATE call_grant SET uses_left = 0 WHERE uses_left = 0") == 1


async def test_a_grant_counts_down_and_ends(chat: Place, calling: Calling, upstream: Upstream) -> None:
    grants = chat.installation.approvals.grants
    assert grants(chat.org)[0]["uses_left"] == GRANT_USES
    assert (await calling("chat_post_message", {**MESSAGE, "text": "again"})).ok
    assert grants(chat.org)[0]["uses_left"] == GRANT_USES - 1
    attempt = chat.events("call.attempt")[-1]
    assert attempt["grant"] == grants(chat.org)[0]["id"]
    execute(chat, "UPDATE call_grant SET uses_left = 0")
    assert grants(chat.org) == []
    await held(calling, "chat_post_message", {**MESSAGE, "text": "once more"})
    assert len(upstream.requests) == 1


def _revoked(chat: Place) -> None:
    approvals = chat.installation.approvals
    grant = approvals.grants(chat.org)[0]["id"]
    chat.database.write_now(lambda rows: approvals.revoke(rows, chat.org, grant, by="alice"))


def _rotated(chat: Place) -> None:
    connection = connection_named(chat.database, chat.org, "chat")
    planned = replan(
        connection, chat.installation.catalogue.connectors["slack"], kind=None, base_url=None, private=None
    )
    chat.database.write_now(
        lambda rows: rotate(
            rows,
            chat.installation.vault,
            connection,
            planned,
            fields={"secret": SECRET},
            account="another",
            verified=False,
            by="alice",
        )
    )


def _stricter(**rule: Any) -> Callable[[Place], None]:
    def change(chat: Place) -> None:
        chat.rule(who="everyone", tools=["chat.post_message"], **rule)

    return change


def _moved(sql: str, *parameters: Any) -> Callable[[Place], None]:
    def change(chat: Place) -> None:
        assert execute(chat, sql, *parameters) == 1

    return change


ENDS: dict[str, Callable[[Place], None]] = {
    "expiry": _moved("UPDATE call_grant SET expires_at = 1"),
    "revocation": _revoked,
    "a rotated credential": _rotated,
    "another definition": _moved("UPDATE call_grant SET definition = 'another'"),
    "another agent": _moved("UPDATE call_grant SET agent = 'agt_another'"),
    "another tool": _moved("UPDATE call_grant SET tool = 'chat_update_message'"),
    "another org": _moved("UPDATE call_grant SET org = 'org_another'"),
    "no uses": _moved("UPDATE call_grant SET uses_left = 0"),
    "a rule that asks for an approver": _stricter(then="approve"),
    "a rule that asks for two": _stricter(then="approve", count=2),
}


@pytest.mark.parametrize("ended", ENDS.values(), ids=ENDS)
async def test_a_grant_that_has_ended_or_is_another_is_of_no_use(
    chat: Place, calling: Calling, upstream: Upstream, ended: Callable[[Place], None]
) -> None:
    ended(chat)
    await held(calling, "chat_post_message", {**MESSAGE, "text": "again"})
    assert upstream.requests == []


OTHERS: list[dict[str, Any]] = [
    {"channel": "C2"},
    {"channel": "c1"},
    {"channel": "C1 "},
    {"channel": "C\u200b1"},
]


@pytest.mark.parametrize("other", OTHERS, ids=ascii)
async def test_a_grant_is_for_what_it_keeps_and_nothing_near_it(
    chat: Place, calling: Calling, upstream: Upstream, other: dict[str, Any]
) -> None:
    await held(calling, "chat_post_message", {**MESSAGE, **other})
    chat.agent("second")
    await held(calling, "chat_post_message", {**MESSAGE, "text": "x"}, agent="second")
    assert upstream.requests == []


async def test_a_grant_is_checked_again_in_the_transaction_that_uses_it(chat: Place) -> None:
    """It was there when the call came; it has ended when the call is about to be sent."""
    approvals, database = chat.installation.approvals, chat.database
    clearance = Clearance(grant=approvals.grants(chat.org)[0]["id"])
    for sql in (
        "UPDATE call_grant SET revoked_at = 1",
        "UPDATE call_grant SET revoked_at = NULL, expires_at = 1",
        f"UPDATE call_grant SET expires_at = {now_ms() + 60_000}, uses_left = 0",
    ):
        execute(chat, sql)
        with pytest.raises(Lost):
            database.write_now(lambda rows: approvals.claim(rows, asked(chat), clearance))


async def test_an_hour_given_under_a_milder_rule_does_not_cover_a_stricter_one(
    chat: Place, calling: Calling, upstream: Upstream
) -> None:
    """The grant was given by one approver; now the rule wants two, or others: it is not enough any more."""
    fay = member_of(chat, "fay", "finance")
    first = chat.rule(who="everyone", tools=["chat.post_message"], then="approve")
    approval = await held(calling, "chat_post_message", {"channel": "C9", "text": "one"})
    decide(chat, approval, Decision.APPROVE_HOUR)
    assert (await calling("chat_post_message", {"channel": "C9", "text": "one"})).ok
    assert (await calling("chat_post_message", {"channel": "C9", "text": "two"})).ok
    for stricter in ({"count": 2}, {"approvers": "group:finance"}, {"second_person": True}):
        rule = chat.rule(who="everyone", tools=["chat.post_message"], then="approve", **stricter)
        upstream.requests.clear()
        await held(calling, "chat_post_message", {"channel": "C9", "text": f"with {stricter}"})
        assert upstream.requests == []
        take_away(chat, rule)
    assert (await calling("chat_post_message", {"channel": "C9", "text": "three"})).ok
    take_away(chat, first)
    assert fay.groups == ("finance",)


async def test_an_hour_takes_as_many_people_as_the_call_itself(
    chat: Place, calling: Calling, upstream: Upstream
) -> None:
    """Where two must agree, one of them alone cannot turn the other's word on one call into an hour of them."""
    chat.rule(who="everyone", tools=["chat.post_message"], then="approve", count=2)
    bob, carol = chat.member("bob", ("approver",)), chat.member("carol", ("admin",))
    before = len(chat.installation.approvals.grants(chat.org))
    for number, (one, two) in enumerate(
        [(Decision.APPROVE, Decision.APPROVE_HOUR), (Decision.APPROVE_HOUR, Decision.APPROVE)]
    ):
        approval = await held(calling, "chat_post_message", {"channel": "C9", "text": str(number)})
        assert decide(chat, approval, one, bob) is State.PENDING
        if two is Decision.APPROVE_HOUR:
            with pytest.raises(ApprovalProblem, match="this call only"):
                decide(chat, approval, two, carol)
        assert decide(chat, approval, Decision.APPROVE, carol) is State.APPROVED
        assert len(chat.installation.approvals.grants(chat.org)) == before
    approval = await held(calling, "chat_post_message", {"channel": "C9", "text": "both"})
    decide(chat, approval, Decision.APPROVE_HOUR, bob)
    assert decide(chat, approval, Decision.APPROVE_HOUR, carol) is State.APPROVED
    assert len(chat.installation.approvals.grants(chat.org)) == before + 1


async def test_money_is_granted_for_an_hour_by_nobody_at_a_client_and_by_nobody_without_bounds(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    """`create_refund` names no argument to keep: there is nothing that an hour could be bounded by."""
    approval = await held(calling)
    with pytest.raises(ApprovalProblem, match="by itself only"):
        decide(place, approval, Decision.APPROVE_HOUR)
    assert state_of(place, approval) == "pending"
    assert place.installation.approvals.grants(place.org) == []


SPENDING = """
id: bank
title: Bank
base_url: https://bank.example
credentials:
  token: {label: token, help: Any., scheme: bearer}
verify:
  call: GET /me
tools:
  pay:
    title: Pay
    description: Pay someone.
    call: POST /payments
    effect: spend
    ask: Pay {amount} to {to}
    grant: [to, amount]
    arguments:
      to: {type: string, required: true, description: Who.}
      amount: {type: integer, required: true, description: How much.}
"""


async def test_an_hour_of_spending_is_given_by_a_person_who_is_signed_in(tmp_path: Path, upstream: Upstream) -> None:
    place = with_connector(make(tmp_path / "bank"), "bank", SPENDING)
    place.connect(upstream.url, connector="bank")
    place.agent()
    payment = {"to": "bob", "amount": 5}
    async with running(place.installation) as parts:

        async def pay() -> Outcome:
            return await call(parts, place.caller(), "bank_pay", payment, Nobody())

        asking = Person(Decision.APPROVE_HOUR)
        with pytest.raises((ApprovalProblem, ApprovalRequired)):
            await call(parts, place.caller(), "bank_pay", payment, asking)
        assert list(asking.questions[0].choices) == ["approve", "deny"]
        assert place.installation.approvals.grants(place.org) == []
        approval = place.installation.approvals.list(place.org, state=State.PENDING)[0].id
        with pytest.raises(ApprovalProblem, match="by itself only"):
            decide(place, approval, Decision.APPROVE_HOUR, Actor(place.owner, "operator's word"))
        assert upstream.requests == []
        decide(place, approval, Decision.APPROVE_HOUR)
        assert (await pay()).ok
        assert (await pay()).ok
    assert json.loads(upstream.requests[-1].body) == payment
    assert len(upstream.requests) == 2
    place.installation.close()


async def test_an_hour_does_not_lift_what_another_rule_says_to_another_amount(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Bob was paid for an hour; a payment above the threshold is the second person's all the same, or nobody's."""
    text = SPENDING.replace("grant: [to, amount]", "grant: [to]")
    place = with_connector(make(tmp_path / "bank"), "bank", text)
    place.connect(upstream.url, connector="bank")
    place.agent()
    place.rule(who="everyone", tools=["bank.pay"], then="confirm")
    place.rule(
        who="everyone",
        tools=["bank.pay"],
        when=[{"argument": "amount", "op": "min", "value": 100}],
        then="approve",
        second_person=True,
    )
    place.rule(
        who="everyone", tools=["bank.pay"], when=[{"argument": "amount", "op": "min", "value": 500}], then="deny"
    )
    async with running(place.installation) as parts:

        async def pay(amount: int) -> Outcome:
            return await call(parts, place.caller(), "bank_pay", {"to": "bob", "amount": amount}, Nobody())

        with pytest.raises(ApprovalRequired) as waiting:
            await pay(5)
        decide(place, waiting.value.approval, Decision.APPROVE_HOUR)
        for amount in (5, 99):
            assert (await pay(amount)).ok
        with pytest.raises(ApprovalRequired):
            await pay(100)
        with pytest.raises(Refused):
            await pay(500)
    assert [json.loads(request.body)["amount"] for request in upstream.requests] == [5, 99]
    place.installation.close()


async def test_a_grant_that_has_expired_stays_so_and_one_from_the_future_is_none(
    chat: Place, calling: Calling, upstream: Upstream
) -> None:
    created = chat.database.read("SELECT created_at FROM call_grant")[0][0]
    execute(chat, "UPDATE call_grant SET created_at = created_at + 120000")
    await held(calling, "chat_post_message", {**MESSAGE, "text": "set back"})
    execute(chat, "UPDATE call_grant SET created_at = ?, revoked_at = NULL, expires_at = ?", created, now_ms() - 1)
    chat.database.write_now(lambda rows: sweep(rows, chat.org, now_ms()))
    assert len(chat.events("grant.expired")) == 2
    execute(chat, "UPDATE call_grant SET expires_at = ?", now_ms() + 60_000)
    await held(calling, "chat_post_message", {**MESSAGE, "text": "expired"})
    assert chat.installation.approvals.grants(chat.org) == []
    assert upstream.requests == []


async def test_a_grant_of_another_org_cannot_be_revoked(chat: Place) -> None:
    other = add_org(chat.installation, "globex")
    approvals: Approvals = chat.installation.approvals
    grant = approvals.grants(chat.org)[0]["id"]
    with pytest.raises(ApprovalProblem, match="no running grant"):
        chat.database.write_now(lambda rows: approvals.revoke(rows, other.org, grant, by="mallory"))
    assert approvals.grants(other.org) == []
    assert len(approvals.grants(chat.org)) == 1


def member_of(place: Place, name: str, group: str) -> Member:
    place.database.write_now(
        lambda rows: create_member(
            rows, place.org, name=name, roles=("member",), os_user=None, by="alice", groups=(group,)
        )
    )
    return place.installation.directory.member(place.org, name)


def take_away(place: Place, rule: str) -> None:
    place.database.write_now(lambda rows: remove_rule(rows, place.org, rule, by="alice"))


async def test_what_waits_for_a_decision_ends_when_the_connection_gets_a_new_secret(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    approval = await held(calling)
    installation = place.installation
    connection = connection_named(installation.database, place.org, "stripe")
    planned = replan(
        connection, installation.catalogue.connector("stripe"), kind=None, base_url=None, private=connection.private
    )
    place.database.write_now(
        lambda rows: rotate(
            rows,
            installation.vault,
            connection,
            planned,
            fields={"secret": f"{SECRET}_new"},
            account=None,
            verified=False,
            by="alice",
        )
    )
    assert state_of(place, approval) == "cancelled"
    assert upstream.requests == []


async def test_a_call_that_waits_is_not_hidden_behind_hundreds_of_newer_ones(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
    first = record(place, held.value.approval)
    bob = place.member("bob")
    for number in range(300):
        newer = replace(
            first,
            id=f"apr_{number:016}",
            agent=f"agt_{number}",
            member=bob.id,
            call_hash=str(number),
            created_at=first.created_at + number + 1,
        )
        columns, holes = f"{COLUMNS}, sealed_call, sealed_prompt", ", ".join("?" * (len(values_of(newer)) + 2))
        execute(place, f"INSERT INTO approval ({columns}) VALUES ({holes})", *values_of(newer), b"", b"")
    waiting = place.installation.approvals.list(place.org, state=State.PENDING)
    assert (len(waiting), waiting[0].id) == (301, first.id)
    own = place.installation.approvals.list(place.org, state=State.PENDING, member=place.owner.id)
    assert [each.id for each in own] == [first.id]
    assert place.owner.id not in {each.member for each in place.installation.approvals.list(place.org)}
    assert [each.id for each in place.installation.approvals.list(place.org, member=place.owner.id)] == [first.id]
