"""What an entry of a call holds, in every state that a call can come to."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from server.app import running
from server.approval import Decision
from server.approval.record import LOST_MS
from server.approval.tending import tend
from server.audit import Event, append
from server.audit.entry import RESERVED
from server.call import Outcome, Parts, call
from server.clock import now_ms
from server.errors import ApprovalRequired, BadArguments, Denied, NoSuchTool, Refused
from server.identity import Caller
from server.rotation import rotate_org
from tests.agents import Nobody, decide, execute
from tests.commandline import CommandLine
from tests.installed import Place
from tests.upstream import Answer, Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

WHO = {"agent", "agent_id", "member", "member_id", "client", "client_version", "transport", "address"}
WHAT = {"connection", "account", "ownership", "credential_version", "source", "tool", "definition", "effect"}
WHAT |= {"verdict", "rules"}
WHERE = {"host", "method"}
AGREED = {"approver", "channel", "known_by"}
EMAIL = "kestrel@over.the.pier"
CUSTOMERS = ("stripe_list_customers", {"email": EMAIL, "limit": 3})
REFUND = ("stripe_create_refund", {"charge": "ch_1", "amount": 1200})


@pytest.fixture
async def parts(place: Place, upstream: Upstream) -> AsyncIterator[Parts]:
    upstream.answer = lambda request: Answer({"data": [], "id": "re_1"}, headers={"Request-Id": "req_9"})
    async with running(place.installation) as opened:
        yield opened


def caller(place: Place, name: str = "reconciler") -> Caller:
    return replace(place.caller(name), client="probe", client_version="2.1", transport="http", address="10.1.2.3")


async def made(parts: Parts, place: Place, name: str, arguments: dict[str, Any]) -> Outcome:
    return await call(parts, caller(place), name, arguments, Nobody())


def only(place: Place, event: str) -> dict[str, Any]:
    (entry,) = place.events(event)
    assert set(entry) >= WHO, WHO - set(entry)
    assert (entry["client"], entry["client_version"], entry["transport"], entry["address"]) == (
        *("probe", "2.1", "http", "10.1.2.3"),
    )
    return entry


def hashed(entry: dict[str, Any]) -> None:
    """Every argument by its name with a keyed hash; in the open only what the definition lets be read."""
    assert set(entry["arguments"]) == {"email", "limit"}
    assert all(value.startswith("h1:") for value in entry["arguments"].values())
    assert entry["plain"] == {"limit": 3}
    assert EMAIL not in str(entry)


async def test_an_attempt_and_its_outcome(place: Place, parts: Parts, upstream: Upstream) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    await made(parts, place, *CUSTOMERS)
    attempt, outcome = only(place, "call.attempt"), only(place, "call.outcome")
    assert set(attempt) == WHO | WHAT | WHERE | {"arguments", "plain", *RESERVED}
    assert set(outcome) == WHO | WHAT | WHERE | {
        *("attempt", "outcome", "status", "bytes", "milliseconds", "request_id"),
        *RESERVED,
    }
    hashed(attempt)
    assert (outcome["attempt"], outcome["status"], outcome["request_id"]) == (attempt["seq"], 200, "req_9")
    assert (outcome["method"], outcome["host"]) == (attempt["method"], attempt["host"]) == ("GET", upstream.url)
    assert outcome["bytes"] > 0
    assert {name: attempt[name] for name in WHAT} == {name: outcome[name] for name in WHAT}
    assert {name: attempt[name] for name in WHO | WHAT} == known(place)


def known(place: Place) -> dict[str, Any]:
    """Who and what a call of `CUSTOMERS` is, from where each is kept."""
    who = caller(place)
    workspace = place.installation.workspaces.of(who)
    connection, tool = workspace.connections["stripe"], workspace.offer.bind(*CUSTOMERS).tool
    (rule,) = (rule.id for rule in workspace.rules if rule.tools == ("stripe.*",))
    return {
        **{"agent": "reconciler", "agent_id": who.agent, "member": who.member_name, "member_id": who.member},
        **{"client": "probe", "client_version": "2.1", "transport": "http", "address": "10.1.2.3"},
        **{"connection": "stripe", "account": connection.account, "ownership": connection.ownership},
        **{"credential_version": connection.credential_version, "source": connection.source},
        **{"tool": "stripe_list_customers", "definition": tool.definition_hash, "effect": "sensitive"},
        **{"verdict": "allow", "rules": [rule]},
    }


async def test_a_failure_says_what_the_upstream_said_of_itself(place: Place, parts: Parts, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer(
        {"error": {"message": "no", "code": "charge_already_refunded"}}, status=402, headers={"Request-Id": "req_7"}
    )
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    assert not (await made(parts, place, *REFUND)).ok
    outcome = only(place, "call.outcome")
    assert (outcome["outcome"], outcome["error"], outcome["status"]) == ("failed", "upstream", 402)
    assert (outcome["code"], outcome["request_id"]) == ("charge_already_refunded", "req_7")
    assert outcome["bytes"] > 0


async def test_a_refusal_by_a_rule(place: Place, parts: Parts, upstream: Upstream) -> None:
    rule = place.rule(
        who="everyone",
        tools=["stripe.list_customers"],
        then="deny",
        when=[{"argument": "limit", "op": "max", "value": 5}],
    )
    with pytest.raises(Refused):
        await made(parts, place, *CUSTOMERS)
    entry = only(place, "call.refused")
    assert set(entry) == WHO | WHAT | {"arguments", "plain", "reason", "outcome", *RESERVED}
    hashed(entry)
    assert (entry["verdict"], entry["rules"], entry["outcome"]) == ("deny", [rule], "refused")
    assert upstream.requests == []


async def test_a_refusal_of_what_is_not_in_form_names_no_argument(place: Place, parts: Parts) -> None:
    with pytest.raises(BadArguments):
        await made(parts, place, "stripe_list_customers", {"email": EMAIL, "kestrel": 1})
    entry = only(place, "call.refused")
    assert set(entry) == WHO | {"tool", "reason", "outcome", *RESERVED}
    assert "arguments" not in entry
    assert EMAIL not in str(entry)


async def test_a_tool_that_is_hidden_and_one_that_there_is_not(place: Place, parts: Parts) -> None:
    place.agent("robot", standalone=True)
    for name in ("stripe_list_customers", "nothing_at_all"):
        with pytest.raises(NoSuchTool):
            await call(parts, caller(place, "robot"), name, {"email": EMAIL}, Nobody())
    hidden, missing = place.events("call.refused")
    assert {"connection", "effect", "verdict", "rules"} <= set(hidden)
    assert (hidden["connection"], hidden["verdict"], hidden["reason"][:6]) == ("stripe", "deny", "hidden")
    assert not {"connection", "effect", "verdict", "rules"} & set(missing)
    assert EMAIL not in str([hidden, missing])


async def test_a_refusal_is_on_record_where_its_arguments_cannot_be_hashed(place: Place, parts: Parts) -> None:
    rotate_org(place.database, place.installation.vault, place.org, by="alice")
    assert execute(place, "DELETE FROM vault_derived WHERE purpose = 'audit-values'") == 1
    place.rule(
        who="everyone",
        tools=["stripe.list_customers"],
        then="deny",
        when=[{"argument": "limit", "op": "max", "value": 5}],
    )
    with pytest.raises(Refused):
        await made(parts, place, *CUSTOMERS)
    entry = only(place, "call.refused")
    assert set(entry) >= WHAT
    assert not {"arguments", "plain"} & set(entry)


async def test_held_decided_carried_out_and_told_again(place: Place, parts: Parts) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await made(parts, place, *CUSTOMERS)
    entry = only(place, "call.held")
    assert set(entry) == WHO | WHAT | {"arguments", "plain", "approval", "reason", "outcome", *RESERVED}
    hashed(entry)
    assert (entry["approval"], entry["outcome"], entry["verdict"]) == (held.value.approval, "held", "confirm")
    decide(place, held.value.approval, Decision.APPROVE)
    pointer = held.value.approval
    for _ in range(2):
        assert (await call(parts, caller(place), *CUSTOMERS, Nobody(), pointer=pointer)).ok
    replayed = only(place, "call.replayed")
    hashed(only(place, "call.attempt"))
    hashed(replayed)
    for one in (only(place, "call.attempt"), only(place, "call.outcome"), replayed):
        assert set(one) >= WHO | WHAT | AGREED | {"approval"}
        assert (one["approval"], one["approver"]) == (held.value.approval, "alice")
        assert (one["channel"], one["known_by"]) == ("command line", "os user")


async def test_denied(place: Place, parts: Parts) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await made(parts, place, *CUSTOMERS)
    decide(place, held.value.approval, Decision.DENY)
    with pytest.raises(Denied):
        await call(parts, caller(place), *CUSTOMERS, Nobody(), pointer=held.value.approval)
    entry = only(place, "call.refused")
    hashed(entry)
    assert (entry["outcome"], entry["approval"]) == ("denied", held.value.approval)


async def test_under_a_grant_it_says_who_gave_it_and_how_they_were_known(place: Place, parts: Parts) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await made(parts, place, *CUSTOMERS)
    decide(place, held.value.approval, Decision.APPROVE_HOUR)
    (given,) = place.events("grant.created")
    for _ in range(2):  # the first is the call that was decided on
        await made(parts, place, *CUSTOMERS)
    attempt, outcome = place.events("call.attempt", "call.outcome")[-2:]
    for entry in (attempt, outcome):
        assert set(entry) >= WHO | WHAT | AGREED | {"grant"}
        assert (entry["grant"], entry["approver"], entry["known_by"]) == (given["grant"], "alice", "os user")
        assert "approval" not in entry
    assert (given["channel"], given["known_by"]) == ("command line", "os user")


async def test_under_work_prepared_ahead_too(place: Place, parts: Parts, owner: CommandLine) -> None:
    words = (
        "--where",
        "amount max 5000",
        "--tool",
        REFUND[0],
        "--runner",
        "agent:reconciler",
        "--uses",
        "3",
        "--expires",
        "8h",
        "--yes",
        "--json",
    )
    work = owner("grant", "create", "refunds", *words).json
    await made(parts, place, *REFUND)
    for event in ("call.attempt", "call.outcome"):
        entry = only(place, event)
        assert (entry["grant"], entry["work"], entry["approver"]) == (work["grant"], "refunds", "alice")
        assert set(entry) >= AGREED


async def test_unknown_keeps_all_that_the_attempt_said(place: Place, parts: Parts) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    await made(parts, place, *REFUND)
    written = only(place, "call.attempt")
    fields = {name: value for name, value in written.items() if name not in RESERVED}
    lost = place.database.write_now(
        lambda rows: append(rows, place.org, Event.CALL_ATTEMPT, at_ms=now_ms() - LOST_MS - 1, **fields)
    )
    await tend(place.database, place.installation.approvals, place.org)
    entry = only(place, "call.unknown")
    assert set(entry) >= WHO | WHAT | WHERE | {"attempt", "attempted_at", "outcome"}
    assert (entry["attempt"], entry["outcome"]) == (lost.seq, "unknown")
    assert {name: entry[name] for name in WHO | WHAT | WHERE} == {name: written[name] for name in WHO | WHAT | WHERE}
