"""The path of a call: what is sent, what is not, and what is on record either way."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import Decision, State
from server.call import Outcome, Parts, call
from server.database import Rows
from server.errors import (
    ApprovalRequired,
    BadArguments,
    Busy,
    Denied,
    NoLongerValid,
    NoSuchTool,
    Question,
    Refused,
    Unrecorded,
    VaultSealed,
)
from server.identity import Narrowing, narrow_agent, remove_agent, remove_member, rotate_agent, set_frozen
from server.rules import add as add_rule
from server.rules import remove as remove_rule
from tests.agents import Nobody
from tests.agents import Person as Client
from tests.installed import SECRET, Place, add_org, make
from tests.upstream import Answer, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

REFUND = {"charge": "ch_1", "amount": 1200}
Calling = Callable[..., Awaitable[Outcome]]


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
def calling(place: Place, parts: Parts) -> Calling:
    async def run(name: str, arguments: dict[str, Any], person: Any = None, **more: Any) -> Outcome:
        return await call(parts, place.caller(), name, arguments, person or Nobody(), **more)

    return run


async def test_a_read_runs_and_the_agent_never_sees_the_key(place: Place, calling: Calling, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer({"data": [{"id": "ch_1", "amount": 5}], "has_more": False})
    outcome = await calling("stripe_list_charges", {"limit": 3})
    assert outcome.ok
    assert outcome.structured is not None
    assert outcome.structured["charges"][0]["id"] == "ch_1"
    assert SECRET not in outcome.text
    assert [request.target for request in upstream.requests] == ["/v1/charges?limit=3"]
    assert upstream.requests[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_attempt_and_outcome_are_on_record_with_hashed_arguments(place: Place, calling: Calling) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    await calling("stripe_create_refund", {**REFUND, "reason": "duplicate"})
    attempt, outcome = place.events("call.attempt", "call.outcome")
    assert outcome["attempt"] == attempt["seq"]
    assert outcome["outcome"] == "succeeded"
    assert attempt["arguments"]["charge"].startswith("h1:")
    assert "ch_1" not in str(attempt["arguments"])
    assert attempt["agent"] == "reconciler"
    assert attempt["member"] == "alice"
    assert attempt["ownership"] == "own"
    assert outcome["status"] == 200


async def test_nothing_is_sent_where_no_rule_allows_it(tmp_path: Path, upstream: Upstream) -> None:
    place = make(tmp_path / "headless")
    place.connect(upstream.url)
    place.agent("robot", standalone=True)
    async with running(place.installation) as parts:
        with pytest.raises(NoSuchTool):
            await call(parts, place.caller("robot"), "stripe_list_charges", {}, Nobody())
    assert upstream.requests == []
    assert [entry["outcome"] for entry in place.events("call.refused")] == ["refused"]


async def test_an_unknown_tool_and_a_tool_of_another_org_look_the_same(
    place: Place, calling: Calling, parts: Parts, upstream: Upstream
) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url, name="theirs")
    with pytest.raises(NoSuchTool) as unknown:
        await calling("nothing_list_charges", {})
    with pytest.raises(NoSuchTool) as foreign:
        await calling("theirs_list_charges", {})
    assert str(unknown.value).replace("nothing", "theirs") == str(foreign.value)
    assert upstream.requests == []


async def test_an_unknown_argument_is_refused_with_the_names_there_are(calling: Calling, upstream: Upstream) -> None:
    with pytest.raises(BadArguments, match="charge"):
        await calling("stripe_create_refund", {"chargee": "ch_1"})
    assert upstream.requests == []


async def test_a_confirmed_call_is_sent_once_and_shows_what_it_sends(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    client = Client(Decision.APPROVE)
    outcome = await calling("stripe_create_refund", REFUND, client)
    assert outcome.ok
    assert [request.method for request in upstream.requests] == ["POST"]
    text = client.questions[0].text
    assert '"ch_1"' in text
    assert "1200" in text
    assert f"POST {upstream.url}/v1/refunds" in text
    assert SECRET not in text
    assert place.events("approval.decided")[0]["known_by"] == "the client's word"


async def test_a_denial_sends_nothing_and_is_final(place: Place, calling: Calling, upstream: Upstream) -> None:
    with pytest.raises(Denied) as denied:
        await calling("stripe_create_refund", REFUND, Client(Decision.DENY))
    with pytest.raises(Denied):
        await calling("stripe_create_refund", REFUND, Client(), pointer=denied.value.approval)
    assert upstream.requests == []


async def test_an_answer_that_decides_nothing_leaves_the_record_for_someone_else(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    client = Client(None)
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND, client)
    with pytest.raises(ApprovalRequired) as again:
        await calling("stripe_create_refund", REFUND, client)
    assert len(client.questions) == 1, "a client that declined is not asked again for that record"
    assert again.value.approval == held.value.approval
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling("stripe_create_refund", REFUND, client)).ok
    assert len(upstream.requests) == 1


async def test_an_approval_given_elsewhere_runs_the_repeated_call_once(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    assert upstream.requests == []
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling("stripe_create_refund", REFUND)).ok
    with pytest.raises(ApprovalRequired) as next_one:
        await calling("stripe_create_refund", REFUND)
    assert next_one.value.approval != held.value.approval
    assert "has already done exactly this" in prompt(place, next_one.value.approval)
    assert len(upstream.requests) == 1


async def test_a_call_is_held_until_it_is_decided_elsewhere(tmp_path: Path, upstream: Upstream) -> None:
    place = make(tmp_path / "held", hold_seconds=20)
    place.connect(upstream.url)
    place.agent()
    async with running(place.installation) as parts, anyio.create_task_group() as group:
        results: list[Outcome] = []

        async def agent() -> None:
            results.append(await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody()))

        group.start_soon(agent)
        while not place.installation.approvals.list(place.org, state=State.PENDING):
            await anyio.lowlevel.checkpoint()
        assert upstream.requests == []
        record = place.installation.approvals.list(place.org)[0]
        decide(place, record.id, Decision.APPROVE)
    assert results[0].ok
    assert len(upstream.requests) == 1


async def test_eight_replays_of_one_approval_send_once(place: Place, calling: Calling, upstream: Upstream) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    outcomes: list[Outcome] = []

    async def replay() -> None:
        outcomes.append(await calling("stripe_create_refund", REFUND, pointer=held.value.approval))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(replay)
    assert len(upstream.requests) == 1
    assert len(outcomes) == 8
    assert len({outcome.text for outcome in outcomes}) == 1


async def test_another_agents_approval_is_of_no_use(
    place: Place, parts: Parts, calling: Calling, upstream: Upstream
) -> None:
    place.agent("mallory")
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    with pytest.raises(NoLongerValid):
        await call(
            parts, place.caller("mallory"), "stripe_create_refund", REFUND, Nobody(), pointer=held.value.approval
        )
    with pytest.raises(ApprovalRequired):
        await call(parts, place.caller("mallory"), "stripe_create_refund", REFUND, Nobody())
    assert upstream.requests == []


async def test_an_approval_is_not_for_other_arguments(place: Place, calling: Calling, upstream: Upstream) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    with pytest.raises(NoLongerValid):
        await calling("stripe_create_refund", {**REFUND, "amount": 9_999_999}, pointer=held.value.approval)
    assert upstream.requests == []


async def test_a_rule_made_stricter_while_a_call_was_held_wins(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")
    with pytest.raises(NoSuchTool):
        await calling("stripe_create_refund", REFUND)
    assert upstream.requests == []


async def test_an_approval_does_not_outlive_the_credential_it_was_given_for(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    place.database.write_now(
        lambda rows: rows.execute("UPDATE connection SET credential_version = 7 WHERE org = ?", (place.org,))
    )
    with pytest.raises(NoLongerValid):
        await calling("stripe_create_refund", REFUND, pointer=held.value.approval)
    assert upstream.requests == []


async def test_a_removed_agent_and_a_frozen_org_stop_a_held_call(
    place: Place, parts: Parts, calling: Calling, upstream: Upstream
) -> None:
    caller = place.caller()
    client = Client(Decision.APPROVE)

    async def approve_late(question: Question) -> Decision:
        place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))
        return Decision.APPROVE

    client.ask = approve_late  # type: ignore[method-assign]
    with pytest.raises(Refused, match="rules"):
        await call(parts, caller, "stripe_create_refund", REFUND, client)
    place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=False, by="alice"))
    agent = place.installation.directory.agent(place.org, "reconciler")

    async def approve_removed(question: Question) -> Decision:
        place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
        return Decision.APPROVE

    client.ask = approve_removed  # type: ignore[method-assign]
    with pytest.raises((Refused, NoLongerValid)):
        await call(parts, caller, "stripe_create_refund", {**REFUND, "amount": 1}, client)
    assert upstream.requests == []


async def test_a_rejected_credential_is_said_in_our_words(calling: Calling, place: Place, upstream: Upstream) -> None:
    upstream.secret = "another"
    outcome = await calling("stripe_list_charges", {})
    assert not outcome.ok
    assert "no such key" not in outcome.text
    assert place.events("call.outcome")[0]["error"] == "credential rejected"


async def test_a_write_without_an_answer_is_unknown_and_not_sent_again(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="github", name="code")
    place.rule(who="everyone", tools=["code.create_issue"], then="confirm")
    upstream.answer = lambda request: Answer(hang_up=True)
    arguments = {"owner": "acme", "repo": "shop", "title": "Broken"}
    outcome = await calling("code_create_issue", arguments, Client(Decision.APPROVE))
    assert not outcome.ok
    assert len(upstream.requests) == 1
    assert place.events("call.outcome")[0]["outcome"] == "unknown"
    assert place.installation.approvals.list(place.org)[0].state is State.UNKNOWN


async def test_a_sealed_vault_refuses_every_call(tmp_path: Path, upstream: Upstream) -> None:
    from server.app import open_installation

    place = make(tmp_path / "home")
    place.connect(upstream.url)
    place.agent()
    (place.home / "keys" / "root.key").unlink()
    installation = open_installation(place.installation.settings)
    async with running(installation) as parts:
        with pytest.raises(VaultSealed):
            await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert upstream.requests == []


async def test_an_attempt_that_cannot_be_recorded_is_not_sent(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.refuse_entries()
    with pytest.raises(Unrecorded):
        await calling("stripe_list_charges", {})
    assert upstream.requests == []


async def test_a_result_whose_outcome_cannot_be_recorded_is_withheld(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.refuse_entries("call.outcome")
    upstream.answer = lambda request: Answer({"data": [{"id": "ch_secret_result"}]})
    with pytest.raises(Unrecorded) as withheld:
        await calling("stripe_list_charges", {})
    assert "ch_secret_result" not in str(withheld.value)
    assert place.events("call.refused") == [], "it was sent: to call it refused would be false"
    assert len(upstream.requests) == 1


async def test_a_client_that_hangs_up_does_not_cut_a_write_in_half(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    import threading

    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    gate = threading.Event()
    upstream.answer = lambda request: Answer({"id": "re_1"}, wait=gate)
    with anyio.CancelScope() as client:
        async with anyio.create_task_group() as group:
            group.start_soon(call, parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
            while not upstream.requests:
                await anyio.lowlevel.checkpoint()
            client.cancel()
            gate.set()
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["succeeded"]


async def test_an_hour_covers_the_same_target_and_nothing_else(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1"})
    message = {"channel": "C1", "text": "hello"}
    client = Client(Decision.APPROVE_HOUR)
    assert (await calling("chat_post_message", message, client)).ok
    assert (await calling("chat_post_message", {**message, "text": "again"}, client)).ok
    with pytest.raises(ApprovalRequired):
        await calling("chat_post_message", {**message, "channel": "C2"})
    grant = place.installation.approvals.grants(place.org)[0]
    assert grant["uses_left"] == grant["uses"] - 1
    assert grant["bounds"] == {"channel": "C1"}
    place.database.write_now(lambda rows: place.installation.approvals.revoke(rows, place.org, grant["id"], by="alice"))
    with pytest.raises(ApprovalRequired):
        await calling("chat_post_message", {**message, "text": "once more"})
    assert len(upstream.requests) == 2


async def test_money_is_never_offered_for_an_hour(calling: Calling) -> None:
    client = Client(Decision.DENY)
    with pytest.raises(Denied):
        await calling("stripe_create_refund", REFUND, client)
    assert list(client.questions[0].choices) == ["approve", "deny"]


async def test_what_needs_an_approver_is_never_asked_at_the_client(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="approver", second_person=True)
    client = Client(Decision.APPROVE)
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND, client)
    assert client.questions == []
    from server.approval import ApprovalProblem

    with pytest.raises(ApprovalProblem):
        decide(place, held.value.approval, Decision.APPROVE)  # the owner asked for it, through the agent
    bob = place.member("bob", ("approver",))
    decide(place, held.value.approval, Decision.APPROVE, bob)
    assert (await calling("stripe_create_refund", REFUND, client)).ok
    assert len(upstream.requests) == 1


def decide(place: Place, approval: str, decision: Decision, member: Any = None) -> None:
    approvals = place.installation.approvals
    record = approvals.find(place.org, approval)
    assert record is not None
    place.database.write_now(lambda rows: approvals.decide(rows, record, decision, place.actor(member)))


def prompt(place: Place, approval: str) -> str:
    record = place.installation.approvals.find(place.org, approval)
    assert record is not None
    return place.installation.approvals.prompt(record)


@pytest.mark.parametrize(
    ("status", "outcome"), [(500, "unknown"), (503, "unknown"), (402, "failed"), (429, "failed"), (303, "unknown")]
)
async def test_a_write_that_an_upstream_fails_at_is_unknown_and_one_it_refuses_has_failed(
    place: Place, calling: Calling, upstream: Upstream, status: int, outcome: str
) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    upstream.answer = lambda request: Answer({"error": {"message": "no", "code": "x"}}, status=status)
    result = await calling("stripe_create_refund", REFUND)
    assert not result.ok
    assert ("not known whether" in result.text) == (outcome == "unknown")
    assert place.events("call.outcome")[0]["outcome"] == outcome
    read = await calling("stripe_list_charges", {})
    assert "not known whether" not in read.text
    assert place.events("call.outcome")[-1]["outcome"] == "failed"


@pytest.mark.parametrize("change", ["freeze", "deny", "remove", "narrow", "rotate", "expire", "member"])
async def test_what_changes_while_the_attempt_waits_to_be_written_still_counts(
    place: Place, parts: Parts, upstream: Upstream, change: str
) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.member("carol", ("owner",))

    def changed(rows: Rows) -> None:
        match change:
            case "narrow":
                leash = Narrowing(connections=("github",))
                narrow_agent(rows, place.org, agent, narrowing=leash, expires_at=None, by="alice")
            case "rotate":
                rotate_agent(rows, place.org, agent, by="alice")
            case "expire":
                rows.execute("UPDATE agent SET expires_at = 1 WHERE org = ?", (place.org,))
            case "member":
                remove_member(rows, place.org, place.owner, by="alice")
            case "freeze":
                set_frozen(rows, place.org, frozen=True, by="alice")
            case "deny":
                add_rule(rows, place.org, {"who": "everyone", "tools": ["*"], "then": "deny"}, by="alice")
            case _:
                remove_agent(rows, place.org, agent, by="alice")

    with pytest.raises(NoSuchTool if change in ("deny", "narrow") else Refused):
        async with collapse(), anyio.create_task_group() as group:
            with place.in_the_way(changed):
                caller = replace(place.caller(), transport="http")
                group.start_soon(call, parts, caller, "stripe_create_refund", REFUND, Nobody())
                await anyio.wait_all_tasks_blocked()
    assert upstream.requests == []
    assert place.events("call.attempt") == []


@asynccontextmanager
async def collapse() -> AsyncIterator[None]:
    """Raise the one exception of a group by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def test_an_agent_has_so_many_calls_under_way_and_no_more(place: Place, parts: Parts, upstream: Upstream) -> None:
    parts.under_way[place.caller().agent] = 100
    with pytest.raises(Busy):
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert upstream.requests == []
    assert place.events("call.refused")[0]["reason"] == "too many calls at once"
    parts.under_way[place.caller().agent] = 99
    assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
    assert parts.under_way[place.caller().agent] == 99


async def test_a_grants_last_use_goes_to_one_call_and_the_others_are_asked_about(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="slack", name="chat")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1"})
    assert (await calling("chat_post_message", {"channel": "C1", "text": "a"}, Client(Decision.APPROVE_HOUR))).ok
    place.database.write_now(lambda rows: rows.execute("UPDATE call_grant SET uses_left = 1"))
    ends: list[str] = []

    async def post(text: str) -> None:
        try:
            await calling("chat_post_message", {"channel": "C1", "text": text})
            ends.append("sent")
        except ApprovalRequired:
            ends.append("held")

    async with anyio.create_task_group() as group:
        for text in ("b", "c", "d"):
            group.start_soon(post, text)
    assert sorted(ends) == ["held", "held", "sent"]
    assert len(upstream.requests) == 2


async def test_an_agent_that_is_denied_again_and_again_pauses(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    """What was agreed to in between, here after the ninth, does not start the count anew."""
    for amount in range(1, 11):
        with pytest.raises(Denied):
            await calling("stripe_create_refund", {**REFUND, "amount": amount}, Client(Decision.DENY))
        if amount == 9:
            assert (await calling("stripe_create_refund", {**REFUND, "amount": 99}, Client(Decision.APPROVE))).ok
    upstream.requests.clear()
    client = Client(Decision.APPROVE)
    with pytest.raises(Refused):
        await calling("stripe_create_refund", {**REFUND, "amount": 11}, client)
    assert client.questions == []
    assert "pauses" in place.events("call.refused")[-1]["reason"]
    place.database.write_now(lambda rows: rows.execute("UPDATE approval SET changed_at = changed_at - 16 * 60 * 1000"))
    assert (await calling("stripe_create_refund", {**REFUND, "amount": 11}, client)).ok
    assert len(upstream.requests) == 1


async def test_a_rule_that_denies_ends_what_was_approved_for_good(
    place: Place, calling: Calling, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    rule = place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")
    with pytest.raises(NoSuchTool):
        await calling("stripe_create_refund", REFUND)
    place.database.write_now(lambda rows: remove_rule(rows, place.org, rule, by="alice"))
    with pytest.raises(ApprovalRequired):
        await calling("stripe_create_refund", REFUND)
    assert upstream.requests == []


async def test_an_outcome_told_again_is_on_record(place: Place, calling: Calling, upstream: Upstream) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    decide(place, held.value.approval, Decision.APPROVE)
    first = await calling("stripe_create_refund", REFUND)
    again = await calling("stripe_create_refund", REFUND, pointer=held.value.approval)
    assert again == first
    assert [entry["approval"] for entry in place.events("call.replayed")] == [held.value.approval]
    assert len(upstream.requests) == 1


async def test_what_ends_with_an_agent_is_on_record(place: Place, calling: Calling) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("stripe_create_refund", REFUND)
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
    assert [entry["approval"] for entry in place.events("approval.cancelled")] == [held.value.approval]
