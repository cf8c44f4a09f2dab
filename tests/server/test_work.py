"""Approved work: prepared ahead, decided once by whoever the rules ask for, and never wider than these are."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import ApprovalProblem, Asked, Clearance, Decision, Lost, State
from server.approval.work import Plan, covered
from server.call import Outcome, Parts, call
from server.cli.acting import Desk
from server.clock import now_ms
from server.connections import connection_named, replan, rotate
from server.errors import ApprovalRequired, Refused
from server.identity import Actor, create_agent, remove_agent, remove_member, system_user
from server.policy import Condition, Ruling, Verdict
from server.prompt import Prompt
from server.rules import remove as remove_rule
from tests.agents import Nobody, decide, execute, record
from tests.commandline import CommandLine
from tests.installed import SECRET, Place, add_org
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
CREATE = (
    *("grant", "create", "monday refunds", "--tool", "stripe_create_refund", "--runner", "agent:reconciler"),
    *("--where", "amount max 5000", "--where", "charge in ch_1,ch_2", "--uses", "3", "--expires", "8h"),
)


@pytest.fixture
async def parts(place: Place, upstream: Upstream) -> AsyncIterator[Parts]:
    upstream.answer = lambda request: Answer({"id": "re_1", "ok": True, "ts": "1"})
    async with running(place.installation) as opened:
        yield opened


async def refund(parts: Parts, place: Place, agent: str = "reconciler", **more: Any) -> Outcome:
    return await call(parts, place.caller(agent), "stripe_create_refund", {**REFUND, **more}, Nobody())


async def asked_for(parts: Parts, place: Place, agent: str = "reconciler", **more: Any) -> None:
    """The call is no part of the work: a person is asked as always, and nothing is sent."""
    before = len(place.events("call.attempt"))
    with pytest.raises(ApprovalRequired):
        await refund(parts, place, agent, **more)
    assert len(place.events("call.attempt")) == before


def create(line: CommandLine, *more: str) -> dict[str, Any]:
    ran = line(*CREATE, *more, "--json")
    assert ran.code == 0, ran.err
    return dict(ran.json)


# -- what it covers


async def test_its_calls_run_without_asking_are_counted_and_stand_together_in_the_log(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    made = create(owner, "--yes")
    assert made["status"] == "running"
    for amount in (5000, 1, 4999.5):
        arguments = {"amount": amount} if amount != 4999.5 else {"charge": "ch_2", "amount": 7}
        assert (await refund(parts, place, **arguments)).ok
    await asked_for(parts, place, amount=2)
    assert len(upstream.requests) == 3
    attempts = place.events("call.attempt")
    assert {(one["grant"], one["work"]) for one in attempts} == {(made["grant"], "monday refunds")}
    shown = owner("grant", "show", made["grant"], "--json").json
    assert (shown["status"], shown["uses_left"], shown["uses"]) == ("used up", 0, 3)
    assert [one["outcome"] for one in shown["calls"]] == ["succeeded"] * 3
    assert [one["attempt"] for one in shown["calls"]] == [one["seq"] for one in attempts]
    by_id = owner("audit", "list", "--grant", made["grant"], "--event", "call.outcome", "--json").json
    by_name = owner("audit", "list", "--grant", "monday refunds", "--event", "call.outcome", "--json").json
    assert len(by_id) == len(by_name) == 3
    (created,) = place.events("grant.created")
    assert (created["work"], created["approver"], created["uses"]) == ("monday refunds", "alice", 3)


OUTSIDE: list[dict[str, Any]] = [
    {"amount": 5001},
    {"charge": "ch_3"},
    {"charge": "CH_1"},
    {"charge": "ch_1 "},
]


@pytest.mark.parametrize("outside", OUTSIDE, ids=ascii)
async def test_what_is_outside_its_bounds_is_asked_for(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream, outside: dict[str, Any]
) -> None:
    made = create(owner, "--yes")
    await asked_for(parts, place, **outside)
    assert upstream.requests == []
    assert owner("grant", "show", made["grant"], "--json").json["uses_left"] == 3


async def test_an_argument_that_is_absent_is_outside(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    create(owner, "--yes")
    with pytest.raises(ApprovalRequired):
        await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
    assert upstream.requests == []


async def test_another_agent_and_another_org_run_nothing_of_it(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    create(owner, "--yes")
    place.agent("second")
    await asked_for(parts, place, "second")
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    with pytest.raises(ApprovalRequired):
        await refund(parts, other)
    assert upstream.requests == []


async def test_a_group_runs_it_while_its_people_are_in_the_group(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    execute(place, "UPDATE member SET groups = ? WHERE name = 'alice'", json.dumps(["finance"]))
    ran = owner(*CREATE, "--runner", "group:finance", "--yes", "--json")
    assert ran.json["status"] == "running", ran.err
    assert (await refund(parts, place)).ok
    place.agent("robot", standalone=True)
    place.rule(who=f"agent:{place.caller('robot').agent}", tools=["stripe.create_refund"], then="confirm")
    await asked_for(parts, place, "robot")
    execute(place, "UPDATE member SET groups = '[]' WHERE name = 'alice'")
    await asked_for(parts, place, amount=7)
    assert len(upstream.requests) == 1


async def test_who_left_the_group_takes_no_use_of_its_work_though_it_was_theirs_when_the_call_came(
    place: Place, owner: CommandLine
) -> None:
    execute(place, "UPDATE member SET groups = ? WHERE name = 'alice'", json.dumps(["finance"]))
    made = owner(*CREATE, "--runner", "group:finance", "--yes", "--json").json
    workspace = place.installation.workspaces.of(place.caller())
    bound = workspace.offer.bind("stripe_create_refund", REFUND)
    asked = Asked(
        place.caller(), bound, workspace.connections["stripe"], Verdict(Ruling.CONFIRM, ""), Prompt("", whole=False)
    )
    clearance, approvals = Clearance(grant=made["grant"], work="monday refunds"), place.installation.approvals
    execute(place, "UPDATE member SET groups = '[]' WHERE name = 'alice'")
    with pytest.raises(Lost):
        place.database.write_now(lambda rows: approvals.claim(rows, asked, clearance))
    assert place.database.read("SELECT uses_left FROM work") == [(3,)]


async def test_the_only_one_of_a_group_confirms_no_work_for_all_who_may_join_it(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    mallory, bob = place.member("mallory", os_user="mallory"), place.member("bob")
    execute(place, "UPDATE member SET groups = ? WHERE name = 'mallory'", json.dumps(["finance"]))
    for member in (mallory, bob):
        name = f"of-{member.name}"
        place.database.write_now(
            lambda rows, name=name, member=member: create_agent(rows, place.org, name=name, member=member, by="x")
        )
    made = create(owner, "--runner", "group:finance")
    with pytest.raises(ApprovalProblem, match="approver, admin or owner"):
        decide(place, made["approval"], Decision.APPROVE, mallory)
    execute(place, "UPDATE member SET groups = ? WHERE name = 'bob'", json.dumps(["finance"]))
    await asked_for(parts, place, "of-bob")
    assert decide(place, made["approval"], Decision.APPROVE, place.owner) is State.APPROVED
    assert (await refund(parts, place, "of-bob")).ok
    assert len(upstream.requests) == 1


async def test_an_argument_is_left_to_the_agent_unless_it_is_bounded_whole(place: Place, owner: CommandLine) -> None:
    lines = {}
    for where in ("metadata.order equals x", "metadata present true", "metadata present false", "email equals a@b.c"):
        ran = owner(
            *("grant", "create", where.replace(" ", "-"), "--tool", "stripe_create_customer"),
            *("--runner", "agent:reconciler", "--where", where, "--uses", "3", "--json"),
        )
        assert ran.code == 0, ran.err
        prompt = owner("approvals", "show", ran.json["approval"], "--json").json["prompt"]
        (left,) = [line for line in prompt.splitlines() if "Left to the agent" in line]
        lines[where] = {"metadata", "email"} & set(left.partition(": ")[2].split(", "))
    assert lines == {
        "metadata.order equals x": {"metadata", "email"},
        "metadata present true": {"metadata", "email"},
        "metadata present false": {"email"},
        "email equals a@b.c": {"metadata"},
    }


def _rule(**body: Any) -> Callable[[Place], None]:
    return lambda place: (place.rule(who="everyone", tools=["stripe.create_refund"], **body), None)[1]


STRICTER: dict[str, Callable[[Place], None]] = {
    "an approver": _rule(then="approve"),
    "an approver, for this amount": _rule(then="approve", when=[{"argument": "amount", "op": "min", "value": 1200}]),
    "two approvers": _rule(then="approve", count=2),
}


@pytest.mark.parametrize("stricter", STRICTER.values(), ids=STRICTER)
async def test_what_the_rules_have_become_stricter_about_it_does_not_cover(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream, stricter: Callable[[Place], None]
) -> None:
    create(owner, "--yes")
    stricter(place)
    await asked_for(parts, place)
    assert upstream.requests == []


async def test_what_a_rule_denies_stays_denied_and_the_rest_of_the_work_runs(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "min", "value": 2000}],
        then="deny",
    )
    place.rule(who="everyone", tools=["stripe.create_refund"], then="confirm")
    create(owner, "--yes")
    with pytest.raises(Refused):
        await refund(parts, place, amount=2000)
    assert upstream.requests == []
    assert (await refund(parts, place, amount=1999)).ok


async def test_work_decided_for_the_strictest_call_covers_what_that_rule_asks_for_and_no_more(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    """Above 2,000 the rule wants an approver; one has agreed to the work: both sides of 2,000 run."""
    big = place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "min", "value": 2000}],
        then="approve",
    )
    made = create(owner, "--yes")
    assert record(place, made["approval"]).ruling is Ruling.APPROVE
    assert (await refund(parts, place, amount=2000)).ok
    assert (await refund(parts, place, amount=10)).ok
    place.database.write_now(lambda rows: remove_rule(rows, place.org, big, by="alice"))
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", approvers="group:finance")
    await asked_for(parts, place, amount=11)
    assert len(upstream.requests) == 2


# -- who decides


async def test_it_waits_for_the_people_that_the_rules_ask_for_and_is_shown_to_them_whole(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2, second_person=True)
    made = create(owner, "--yes", "--for-why", "the shop was down")
    assert made["status"] == "pending"
    await asked_for(parts, place)
    shown = owner("approvals", "show", made["approval"], "--json").json
    for part in (
        *("monday refunds", "up to 3 calls", "agent reconciler, for alice", "the shop was down", "MOVES MONEY"),
        *("amount at most 5000", 'charge is one of "ch_1", "ch_2"', "alice (os user)", "POST", "acct_test"),
        "Left to the agent: ",
    ):
        assert part in shown["prompt"], part
    assert shown["status"] == "pending"
    assert made["approval"] in [one["id"] for one in owner("approvals", "list", "--json").json]
    approval = made["approval"]
    with pytest.raises(ApprovalProblem, match="second person"):
        decide(place, approval, Decision.APPROVE)
    bob, carol = place.member("bob", ("approver",)), place.member("carol", ("admin",))
    assert decide(place, approval, Decision.APPROVE, bob) is State.PENDING
    with pytest.raises(ApprovalProblem, match="counts once"):
        decide(place, approval, Decision.APPROVE, bob)
    await asked_for(parts, place)
    with pytest.raises(ApprovalProblem, match="by itself only"):
        decide(place, approval, Decision.APPROVE_HOUR, carol)
    assert decide(place, approval, Decision.APPROVE, carol) is State.APPROVED
    execute(place, "DELETE FROM approval WHERE state = 'pending'")
    assert (await refund(parts, place)).ok
    assert len(upstream.requests) == 1


async def test_who_asked_is_also_who_runs_it_and_whoever_joins_the_runners_later(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", second_person=True)
    execute(place, "UPDATE member SET groups = ? WHERE name = 'alice'", json.dumps(["finance"]))
    bob = place.member("bob", ("approver",))
    ran = owner(*CREATE, "--runner", "group:finance", "--json")
    execute(place, "UPDATE member SET groups = ? WHERE name = 'bob'", json.dumps(["finance"]))
    bob = place.installation.directory.member(place.org, "bob")
    with pytest.raises(ApprovalProblem, match="second person"):
        decide(place, ran.json["approval"], Decision.APPROVE, bob)
    execute(place, "UPDATE member SET groups = '[]' WHERE name = 'bob'")
    bob = place.installation.directory.member(place.org, "bob")
    decide(place, ran.json["approval"], Decision.APPROVE, bob)
    assert (await refund(parts, place)).ok
    execute(place, "UPDATE member SET groups = ? WHERE name = 'bob'", json.dumps(["finance"]))
    execute(place, "UPDATE agent SET member = ?", bob.id)
    await asked_for(parts, place, amount=3)
    assert len(upstream.requests) == 1


async def test_an_approver_who_becomes_a_runner_before_the_last_has_decided_does_not_count(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2, second_person=True)
    execute(place, "UPDATE member SET groups = ? WHERE name = 'alice'", json.dumps(["finance"]))
    approval = owner(*CREATE, "--runner", "group:finance", "--json").json["approval"]
    bob, carol, dan = (place.member(name, ("approver",)) for name in ("bob", "carol", "dan"))
    assert decide(place, approval, Decision.APPROVE, bob) is State.PENDING
    execute(place, "UPDATE member SET groups = ? WHERE name = 'bob'", json.dumps(["finance"]))
    assert decide(place, approval, Decision.APPROVE, carol) is State.PENDING
    await asked_for(parts, place)
    assert decide(place, approval, Decision.APPROVE, dan) is State.APPROVED
    assert upstream.requests == []


async def test_a_denial_is_final_and_nothing_of_it_ever_runs(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    made = create(owner)
    assert made["status"] == "pending", "nobody could be asked here"
    decide(place, made["approval"], Decision.DENY)
    with pytest.raises(ApprovalProblem):
        decide(place, made["approval"], Decision.APPROVE)
    await asked_for(parts, place)
    assert owner("grant", "list", "--all", "--json").json == []
    assert upstream.requests == []


async def test_the_operators_word_prepares_work_and_agrees_to_none(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    made = create(owner, "--yes", "--as", "alice")
    assert made["status"] == "pending"
    with pytest.raises(ApprovalProblem, match="does not count"):
        decide(place, made["approval"], Decision.APPROVE, Actor(place.owner, "operator's word"))
    assert decide(place, made["approval"], Decision.APPROVE) is State.APPROVED


async def test_a_member_prepares_work_for_their_own_agents_only(
    parts: Parts, place: Place, keyleash: CommandLine
) -> None:
    place.member("bob", ("member",), os_user=system_user())
    refused = keyleash(*CREATE, "--yes")
    assert refused.code == 1
    assert "prepare work for others" in refused.err
    execute(place, "UPDATE agent SET member = (SELECT id FROM member WHERE name = 'bob')")
    assert create(keyleash, "--yes")["status"] == "running", "a confirm is for the member that it is asked for"
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    assert create(keyleash, "--yes")["status"] == "pending"


async def test_an_auditor_prepares_nothing(place: Place, keyleash: CommandLine) -> None:
    place.member("eve", ("auditor",), os_user=system_user())
    assert keyleash(*CREATE, "--yes").code == 1
    assert place.database.read("SELECT COUNT(*) FROM work") == [(0,)]


# -- what cannot be prepared


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no bounds on money": (("--tool", "stripe_create_refund"), "only within bounds"),
    "an argument that the tool has not": (("--tool", "stripe_create_refund", "--where", "amuont max 5"), "no argument"),
    "no such tool": (("--tool", "stripe_mint_money"), "no tool"),
    "too many uses": (("--tool", "stripe_create_refund", "--where", "amount max 5", "--uses", "1001"), "1000 uses"),
    "too long": (("--tool", "stripe_create_refund", "--where", "amount max 5", "--expires", "31d"), "30 days"),
    "what is allowed anyway": (("--tool", "stripe_list_charges"), "nothing to prepare"),
    "no such operator": (("--tool", "stripe_create_refund", "--where", "amount about 5"), "operator"),
    "a runner without an agent": (
        ("--tool", "stripe_create_refund", "--where", "amount max 5", "--runner", "group:nobody"),
        "nobody to run it",
    ),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_mean_anything_or_has_no_measure_is_refused(
    place: Place, owner: CommandLine, given: tuple[str, ...], said: str
) -> None:
    ran = owner("grant", "create", "work", "--runner", "agent:reconciler", "--uses", "3", "--yes", *given)
    assert ran.code != 0
    assert said in ran.err, ran.err
    assert place.database.read("SELECT COUNT(*) FROM work") == [(0,)]


async def test_what_the_rules_deny_whatever_is_approved_is_not_prepared(place: Place, owner: CommandLine) -> None:
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "charge", "op": "prefix", "value": "ch_"}],
        then="deny",
    )
    ran = owner(*CREATE, "--yes")
    assert ran.code == 1
    assert "rules deny" in ran.err


async def test_work_on_rules_that_change_meanwhile_is_not_written(place: Place, owner: CommandLine) -> None:
    """What it takes was found under the rules of a moment ago."""
    from server.cli.grants import plan_of, prepared, runners_of

    desk = Desk(place.installation, place.installation.directory.org(None), place.actor())
    runners, caller = runners_of(desk, "agent:reconciler"), place.caller()
    plan = plan_of(
        *(desk, caller, runners, "w"), tools=["stripe_create_refund"], where=["amount max 5"], uses=1, expires="1h"
    )
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    with pytest.raises(ApprovalProblem, match="changed just now"):
        prepared(desk, caller, runners, plan)
    assert place.database.read("SELECT COUNT(*) FROM work") == [(0,)]


# -- how it ends


def _rotated(place: Place) -> None:
    connection = connection_named(place.database, place.org, "stripe")
    connector = place.installation.catalogue.connectors["stripe"]
    planned = replan(connection, connector, kind=None, base_url=None, private=None)
    place.database.write_now(
        lambda rows: rotate(
            rows,
            place.installation.vault,
            connection,
            planned,
            fields={"secret": SECRET},
            account="another",
            verified=False,
            by="alice",
        )
    )


def _revoked(place: Place) -> None:
    approvals = place.installation.approvals
    grant = approvals.grants(place.org)[0]["id"]
    place.database.write_now(lambda rows: approvals.revoke(rows, place.org, grant, by="alice"))


def _moved(sql: str) -> Callable[[Place], None]:
    return lambda place: (execute(place, sql), None)[1]


ENDS: dict[str, Callable[[Place], None]] = {
    "a rotated credential": _rotated,
    "revocation": _revoked,
    "expiry": _moved("UPDATE work SET expires_at = 1"),
    "no uses": _moved("UPDATE work SET uses_left = 0"),
    "another definition": _moved("UPDATE work_tool SET definition = 'another'"),
    "another connection": _moved("UPDATE work_tool SET connection = 'con_another'"),
    "another tool": _moved("UPDATE work_tool SET tool = 'stripe_get_balance'"),
    "another org": _moved("UPDATE work SET org = 'org_another'"),
    "a record that is not approved": _moved("UPDATE approval SET state = 'cancelled'"),
    "the clock set back behind it": _moved("UPDATE work SET started_at = started_at + 600000"),
}


@pytest.mark.parametrize("ended", ENDS.values(), ids=ENDS)
async def test_work_that_has_ended_or_is_another_is_of_no_use(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream, ended: Callable[[Place], None]
) -> None:
    create(owner, "--yes")
    ended(place)
    await asked_for(parts, place)
    assert upstream.requests == []


async def test_work_is_checked_again_in_the_transaction_that_uses_it(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    """It was there when the call came; it has ended when the call is about to be sent."""
    made = create(owner, "--yes")
    approvals, database = place.installation.approvals, place.database
    workspace = place.installation.workspaces.of(place.caller())
    bound = workspace.offer.bind("stripe_create_refund", REFUND)
    asked = Asked(
        place.caller(), bound, workspace.connections["stripe"], Verdict(Ruling.CONFIRM, ""), Prompt("", whole=False)
    )
    clearance = Clearance(grant=made["grant"], work="monday refunds")
    for sql, back in (
        ("UPDATE work SET revoked_at = 1", "UPDATE work SET revoked_at = NULL"),
        ("UPDATE work SET expires_at = 1", f"UPDATE work SET expires_at = {now_ms() + 60_000}"),
        ("UPDATE work SET started_at = NULL", "UPDATE work SET started_at = 1"),
        ("UPDATE work_tool SET definition = 'x'", f"UPDATE work_tool SET definition = '{bound.tool.definition_hash}'"),
        ("UPDATE connection SET credential_version = 99", "UPDATE connection SET credential_version = 1"),
        ("UPDATE work SET runner = 'group:x'", f"UPDATE work SET runner = 'agent:{place.caller().agent}'"),
        ("UPDATE work SET uses_left = 0", "UPDATE work SET uses_left = 1"),
    ):
        execute(place, sql)
        with pytest.raises(Lost):
            database.write_now(lambda rows: approvals.claim(rows, asked, clearance))
        execute(place, back)
    database.write_now(lambda rows: approvals.claim(rows, asked, clearance))
    assert database.read("SELECT uses_left FROM work") == [(0,)]


async def test_thirty_calls_at_once_use_no_more_than_it_has(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    create(owner, "--yes")
    done: list[Outcome] = []

    async def agent(amount: int) -> None:
        try:
            done.append(await refund(parts, place, amount=amount))
        except (ApprovalRequired, Refused):
            return

    async with anyio.create_task_group() as group:
        for amount in range(1, 31):
            group.start_soon(agent, amount)
    assert len(done) == len(upstream.requests) == 3


async def test_work_ends_with_its_agent_and_waiting_work_too(place: Place, owner: CommandLine) -> None:
    running_work, waiting = create(owner, "--yes"), create(owner)
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
    assert place.installation.approvals.grants(place.org) == []
    assert record(place, waiting["approval"]).state is State.CANCELLED
    assert {event["grant"] for event in place.events("grant.revoked")} == {running_work["grant"], waiting["grant"]}


async def test_it_is_listed_shown_to_whom_it_concerns_and_revoked(
    parts: Parts, place: Place, owner: CommandLine, keyleash: CommandLine
) -> None:
    made = create(owner, "--yes")
    (listed,) = owner("grant", "list", "--json").json
    assert (listed["id"], listed["name"], listed["status"]) == (made["grant"], "monday refunds", "running")
    assert listed["where"] == ["amount at most 5000", 'charge is one of "ch_1", "ch_2"']
    assert "monday refunds" in owner("grant", "list").out
    execute(place, "UPDATE member SET os_user = NULL")
    place.member("bob", ("member",), os_user=system_user())
    assert keyleash("grant", "list", "--json").json == []
    assert keyleash("grant", "show", made["grant"]).code == 1
    assert keyleash("grant", "revoke", made["grant"]).code == 1
    execute(place, "UPDATE member SET os_user = NULL")
    execute(place, "UPDATE member SET os_user = ? WHERE name = 'alice'", system_user())
    assert owner("grant", "revoke", made["grant"]).code == 0
    assert owner("grant", "list", "--json").json == []
    assert owner("grant", "list", "--all", "--json").json[0]["status"] == "revoked"
    assert record(place, made["approval"]).state is State.CANCELLED
    await asked_for(parts, place)


async def test_at_the_terminal_it_is_shown_whole_and_agreed_to_with_a_word(place: Place, owner: CommandLine) -> None:
    with owner.at_terminal(*CREATE) as terminal:
        shown = terminal.until("Approve this work? [y/N]")
        assert "amount at most 5000" in shown
        terminal.type("y\n")
        assert terminal.end() == 0
    (found,) = place.installation.approvals.grants(place.org)
    assert found["decided_by"] == "alice"
    assert "unattended" not in place.events("approval.decided")[-1]


async def test_whoever_watches_sees_waiting_work_whole_and_decides_on_all_of_it_with_one_key(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    made = create(owner)
    with owner.at_terminal("approvals", "watch") as terminal:
        shown = terminal.until("[a] approve all of it  [d] deny  [s] skip  [q] leave")
        for part in ("monday refunds", "amount at most 5000", "agent reconciler, for alice"):
            assert part in shown
        while "Approved apr_" not in terminal.shown:
            terminal.type("a")
            terminal.glance(0.2)
        assert terminal.leave() == 0
    assert [grant["id"] for grant in place.installation.approvals.grants(place.org)] == [made["grant"]]
    assert (await refund(parts, place)).ok


# -- its measure


def preparing(place: Place) -> Callable[[Any], str]:
    """Prepare some work, each time in the transaction that is handed in."""
    workspace = place.installation.workspaces.of(place.caller())
    tools, bounds = covered(workspace, ["stripe_create_refund"]), (Condition("amount", "max", 5),)
    plan = Plan("w", tools, bounds, "agent:x", "agent x", 1, now_ms() + 60_000)
    approvals, verdict = place.installation.approvals, Verdict(Ruling.CONFIRM, "")
    return lambda rows: approvals.prepare(rows, place.org, plan, place.actor(), verdict=verdict, prompt="p")


async def test_a_member_can_make_so_much_work_wait_and_no_more(place: Place) -> None:
    for _ in range(20):
        place.database.write_now(preparing(place))
    with pytest.raises(ApprovalProblem, match="waits for a decision"):
        place.database.write_now(preparing(place))


async def test_what_becomes_of_prepared_work_does_not_count_as_what_agents_ask(parts: Parts, place: Place) -> None:
    for _ in range(2):
        for _ in range(20):
            place.database.write_now(preparing(place))
        execute(place, "UPDATE approval SET state = 'denied'")
    await asked_for(parts, place)


async def test_who_gets_a_members_name_later_inherits_no_work(place: Place, owner: CommandLine) -> None:
    """`member:NAME` is kept by id."""
    made = owner(*CREATE, "--runner", "member:alice", "--yes", "--json").json
    rows = place.database.read("SELECT runner FROM work WHERE id = ?", (made["grant"],))
    assert rows == [(f"member:{place.owner.id}",)]


async def test_who_gets_a_members_name_later_sees_and_ends_nothing_that_they_had(
    parts: Parts, place: Place, owner: CommandLine, keyleash: CommandLine
) -> None:
    """Grants are whose they are by id: those of an agent that is gone, and work that somebody of the same name made."""
    bob = place.member("bob", ("member", "approver"))
    execute(place, "UPDATE agent SET member = ? WHERE org = ?", bob.id, place.org)
    made = owner(*CREATE, "--yes", "--as", "bob", "--json")
    decide(place, made.json["approval"], Decision.APPROVE)
    place.database.write_now(lambda rows: remove_member(rows, place.org, bob, by="alice"))
    place.member("bob")
    seen = owner("grant", "list", "--as", "bob", "--json")
    assert (seen.code, seen.json) == (0, [])
    assert len(owner("grant", "list", "--json").json) == 1
    assert owner("grant", "revoke", made.json["grant"], "--as", "bob").code == 1
    assert len(owner("grant", "list", "--json").json) == 1
