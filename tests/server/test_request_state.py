"""What a client carries between a question and its answer is good for one caller, one call, and a while; and runs once.

Through the real server over HTTP. Each test says both that it was refused, and that nothing was sent.
"""

import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from mcp.server.request_state import RequestStateSecurity

from server.approval import STATE_TTL_S, Decision, State
from server.clock import now_ms
from server.connections import connection_named, remove, replan, rotate
from server.identity import create_agent, remove_agent, rotate_agent
from server.rules import set_preset
from tests.agents import decide, execute, record, with_connector
from tests.installed import SECRET, Place, add_org
from tests.probe import PROBE
from tests.raw import Raw, Reply, approving
from tests.serving import NO_TLS, serving
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio

TOOL = "stripe_create_refund"
REFUND = {"charge": "ch_1", "amount": 1200}
REFUSED_AT_THE_DOOR = "Invalid or expired requestState"


@dataclass
class Held:
    """A call that was approved outside the client, and the state with which it may go on."""

    place: Place
    upstream: Upstream
    http: httpx2.AsyncClient
    url: str
    approval: str = ""
    state: str = ""

    def agent(self, name: str = "reconciler", place: Place | None = None) -> Raw:
        return Raw(self.url, (place or self.place).tokens[name], self.http)

    async def again(self, **changed: Any) -> Reply:
        """The call with its state, or with something of it changed; refused or not, it answers."""
        agent = self.agent(changed.pop("name", "reconciler"), changed.pop("place", None))
        given = {"tool": TOOL, "arguments": REFUND, "state": self.state, **changed}
        return await agent.call(**given)

    async def require_refused(self, says: str, **changed: Any) -> None:
        """Refused with these words, whatever the client answers to a question that was not asked; nothing is sent."""
        for answers in (None, approving()):
            reply = await self.again(answers=answers, **changed)
            assert reply.refused, reply.text
            assert says in reply.text, reply.text
        assert self.upstream.requests == []

    async def require_it_still_runs(self) -> None:
        """That it was refused elsewhere has not used it up: its own caller may still send it, once."""
        assert (await self.again()).ran
        assert (await self.again()).ran
        assert len(self.upstream.requests) == 1


@asynccontextmanager
async def held(place: Place, upstream: Upstream, *, decided: bool = True) -> AsyncIterator[Held]:
    async with (
        serving(place.installation) as url,
        httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=30) as http,
    ):
        made = Held(place, upstream, http, url)
        first = await made.agent().call(TOOL, REFUND)
        assert first.asks
        made.state = first.state or ""
        made.approval = place.installation.approvals.list(place.org)[0].id
        if decided:
            decide(place, made.approval, Decision.APPROVE)
        yield made


def write(place: Place, change: Callable[[Any], Any]) -> Any:
    return place.database.of(place.org).write_now(change)


# -- between callers


async def test_it_is_of_no_use_to_another_agent_of_the_same_member(place: Place, upstream: Upstream) -> None:
    place.agent("second")
    async with held(place, upstream) as call:
        await call.require_refused(REFUSED_AT_THE_DOOR, name="second")
        refusals = place.events("call.refused")
        assert [each["agent"] for each in refusals] == ["second", "second"]
        assert {each["reason"] for each in refusals} == {"the request state is not one for this call"}
        assert {each["tool"] for each in refusals} == {TOOL}
        await call.require_it_still_runs()


async def test_it_is_of_no_use_to_a_standalone_agent(place: Place, upstream: Upstream) -> None:
    place.agent("alone", standalone=True)
    place.rule(who="everyone", tools=["stripe.*"], then="confirm")
    async with held(place, upstream) as call:
        await call.require_refused(REFUSED_AT_THE_DOOR, name="alone")
        await call.require_it_still_runs()


async def test_it_is_of_no_use_in_another_org(place: Place, upstream: Upstream) -> None:
    """Not even for the same tool, the same arguments, and an agent of the same name."""
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent("reconciler")
    async with held(place, upstream) as call:
        await call.require_refused(REFUSED_AT_THE_DOOR, place=other)
        assert other.installation.approvals.list(other.org) == []
        await call.require_it_still_runs()


async def test_it_ends_with_the_token_it_was_given_to(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        agent = place.installation.directory.agent(place.org, "reconciler")
        place.tokens["reconciler"] = write(place, lambda rows: rotate_agent(rows, place.org, agent, by="alice"))
        await call.require_refused(REFUSED_AT_THE_DOOR)


async def test_it_does_not_outlive_its_agent_in_another_of_that_name(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        agent = place.installation.directory.agent(place.org, "reconciler")
        write(place, lambda rows: remove_agent(rows, place.org, agent, by="alice"))
        place.tokens["reconciler"] = write(
            place, lambda rows: create_agent(rows, place.org, name="reconciler", member=place.owner, by="alice")
        )
        await call.require_refused(REFUSED_AT_THE_DOOR)


# -- between tools and arguments


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (TOOL, {"charge": "ch_1", "amount": 1201}),
        (TOOL, {"charge": "ch_1", "amount": 1200.0}),
        (TOOL, {"charge": "ch_2", "amount": 1200}),
        (TOOL, {"charge": "ch_1"}),
        (TOOL, {**REFUND, "reason": "duplicate"}),
        (TOOL, {}),
        ("stripe_cancel_subscription", REFUND),
        ("stripe_list_charges", {}),
        ("call_tool", {"name": TOOL, "arguments": REFUND}),
        ("second_create_refund", REFUND),
    ],
    ids=str,
)
async def test_it_is_of_no_use_for_another_call(
    place: Place, upstream: Upstream, tool: str, arguments: dict[str, Any]
) -> None:
    place.connect(upstream.url, name="second")
    async with held(place, upstream) as call:
        await call.require_refused(REFUSED_AT_THE_DOOR, tool=tool, arguments=arguments)
        await call.require_it_still_runs()


async def test_the_same_call_in_another_order_is_the_same_call(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        assert (await call.again(arguments={"amount": 1200, "charge": "ch_1"})).ran
        assert [request.body for request in upstream.requests] == [b"charge=ch_1&amount=1200"]


async def test_a_pointer_to_a_record_of_another_call_is_refused_behind_the_door_as_well(
    place: Place, upstream: Upstream
) -> None:
    """The seal would have to be ours, and wrong: the record is asked all the same."""
    async with held(place, upstream) as call:
        agent = call.agent()
        other = await agent.call(TOOL, {"charge": "ch_other"})
        record_of_other = place.installation.approvals.list(place.org, state=State.PENDING)[0].id
        assert other.asks
        forged = minted(place, call.state, lambda claims: claims["s"].update(approval=record_of_other))
        await call.require_refused("belongs to another call", state=forged)
        assert record(place, record_of_other).state is State.PENDING


# -- after a change


async def test_a_rule_that_denies_ends_it_and_does_not_give_it_back(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")
        await call.require_refused("Unknown tool")  # what nobody may call looks as if it were not there
        execute(place, "DELETE FROM rule WHERE org = ?", place.org)
        execute(place, "UPDATE org SET revision = revision + 1 WHERE id = ?", place.org)
        await call.require_refused("cannot be used: cancelled")


async def test_a_rule_that_has_become_stricter_ends_it(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
        reply = await call.again()
        assert reply.refused
        assert "stricter" in reply.text
        await call.require_refused("cannot be used: cancelled")


async def test_a_stricter_preset_ends_it(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        write(place, lambda rows: set_preset(rows, place.org, "strict", by="alice"))
        reply = await call.again()
        assert reply.refused
        assert "stricter" in reply.text
        assert upstream.requests == []


async def test_a_rotated_credential_ends_it(place: Place, upstream: Upstream) -> None:
    await ended_by_a_credential(place, upstream, base_url=None)


async def test_a_connection_that_was_pointed_elsewhere_ends_it(place: Place, upstream: Upstream) -> None:
    with Upstream(SECRET) as elsewhere:
        await ended_by_a_credential(place, upstream, base_url=elsewhere.url)
        assert elsewhere.requests == []


async def ended_by_a_credential(place: Place, upstream: Upstream, base_url: str | None) -> None:
    async with held(place, upstream) as call:
        connection = connection_named(place.database.of(place.org), place.org, "stripe")
        connector = place.installation.catalogue.connectors["stripe"]
        private = ("127.0.0.1/32",)
        planned = replan(connection, connector, kind=None, base_url=base_url, private=private)
        given: dict[str, Any] = {"account": "acct_test", "verified": False, "by": "alice"}
        vault = place.installation.vault
        write(place, lambda rows: rotate(rows, vault, connection, planned, fields={"secret": SECRET}, **given))
        await call.require_refused("cannot be used: ")
        assert record(place, call.approval).state is State.CANCELLED


async def test_a_removed_connection_ends_it_even_if_another_takes_its_name(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        connection = connection_named(place.database.of(place.org), place.org, "stripe")
        write(place, lambda rows: remove(rows, place.installation.vault, connection, by="alice"))
        await call.require_refused("Unknown tool")
        place.connect(upstream.url)
        await call.require_refused("cannot be used")


async def test_a_changed_definition_ends_it(place: Place, upstream: Upstream) -> None:
    """Over a restart: the seal is still ours, and the tool is another."""
    with_connector(place, "probe", PROBE)
    place.rule(who="everyone", tools=["probe.*"], then="confirm")
    place.connect(upstream.url, connector="probe")
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        raw = Raw(url, place.tokens["reconciler"], http)
        first = await raw.call("probe_query", {"words": "x"})
        decide(place, place.installation.approvals.list(place.org)[0].id, Decision.APPROVE)
    with_connector(place, "probe", PROBE.replace("GET /search", "GET /elsewhere"))
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        raw = Raw(url, place.tokens["reconciler"], http)
        for answers in (None, approving()):
            reply = await raw.call("probe_query", {"words": "x"}, state=first.state, answers=answers)
            assert reply.refused
            assert "cannot be used" in reply.text
    assert upstream.requests == []


async def test_a_freeze_holds_it_up(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        execute(place, "UPDATE org SET frozen_at = ? WHERE id = ?", now_ms(), place.org)
        for answers in (None, approving()):
            assert (await call.again(answers=answers)).status == 403
        assert upstream.requests == []
        execute(place, "UPDATE org SET frozen_at = NULL WHERE id = ?", place.org)
        await call.require_it_still_runs()


# -- time


def minted(place: Place, state: str, change: Callable[[dict[str, Any]], object]) -> str:
    """The state with other claims, under our own seal: what a server whose clock goes otherwise would have given."""
    vault = place.installation.vault
    key = place.database.query(lambda rows: vault.derive(rows, "", "request-state"))
    codec = RequestStateSecurity(keys=[key], ttl=STATE_TTL_S).codec
    claims = json.loads(codec.unseal(state))
    claims["s"] = json.loads(claims["s"])
    change(claims)
    claims["s"] = json.dumps(claims["s"])
    return codec.seal(json.dumps(claims).encode())


async def test_it_ends_with_its_own_time(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        late = minted(
            place, call.state, lambda claims: claims.update(iat=time.time() - STATE_TTL_S - 1, exp=time.time() - 1)
        )
        await call.require_refused(REFUSED_AT_THE_DOOR, state=late)
        await call.require_it_still_runs()


async def test_it_outlives_every_record(place: Place, upstream: Upstream) -> None:
    """So that who comes late is told that it has expired, and not that it is unknown."""
    async with held(place, upstream) as call:
        execute(place, "UPDATE approval SET expires_at = ? WHERE id = ?", now_ms() - 1, call.approval)
        await call.require_refused("cannot be used: expired")


async def test_a_state_from_the_future_is_refused_after_the_clock_was_set_back(
    place: Place, upstream: Upstream
) -> None:
    async with held(place, upstream) as call:
        ahead = time.time() + 600
        early = minted(place, call.state, lambda claims: claims.update(iat=ahead, exp=ahead + STATE_TTL_S))
        await call.require_refused(REFUSED_AT_THE_DOOR, state=early)
        await call.require_it_still_runs()


async def test_a_decision_from_the_future_is_of_no_use_after_the_clock_was_set_back(
    place: Place, upstream: Upstream
) -> None:
    """Its hour has not begun: by this clock it would never be over. With a state, and without one."""
    async with held(place, upstream) as call:
        ahead = now_ms() + 10 * 60_000
        execute(place, "UPDATE approval SET changed_at = ?, expires_at = ? WHERE id = ?", ahead, ahead, call.approval)
        for state in (None, call.state):
            reply = await call.again(state=state)
            assert reply.refused or reply.asks
            assert upstream.requests == []
        assert record(place, call.approval).state is State.EXPIRED
        assert [each["approval"] for each in place.events("approval.expired")] == [call.approval]


async def test_a_grant_from_the_future_is_of_no_use_after_the_clock_was_set_back(
    place: Place, upstream: Upstream
) -> None:
    place.connect(upstream.url, connector="slack")
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as http:
        raw = Raw(url, place.tokens["reconciler"], http)
        message = {"channel": "C1", "text": "one"}
        first = await raw.call("slack_post_message", message)
        decide(place, place.installation.approvals.list(place.org)[0].id, Decision.APPROVE_HOUR)
        await raw.call("slack_post_message", message, state=first.state)
        await raw.call("slack_post_message", {"channel": "C1", "text": "two"})
        assert len(upstream.requests) == 2
        ahead = now_ms() + 10 * 60_000
        execute(place, "UPDATE call_grant SET created_at = ?, expires_at = ?", ahead, ahead + 3_600_000)
        assert (await raw.call("slack_post_message", {"channel": "C1", "text": "three"})).asks
        assert len(upstream.requests) == 2


# -- forged


async def test_no_change_of_a_single_character_passes(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        for at in range(0, len(call.state), max(1, len(call.state) // 40)):
            other = "A" if call.state[at] != "A" else "B"
            reply = await call.again(state=f"{call.state[:at]}{other}{call.state[at + 1 :]}", answers=approving())
            assert REFUSED_AT_THE_DOOR in reply.text
        assert upstream.requests == []
        await call.require_it_still_runs()


async def test_a_seal_of_another_key_is_refused(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream) as call:
        theirs = RequestStateSecurity(keys=[hashlib.sha256(b"mine").digest()], ttl=STATE_TTL_S).codec
        claims = {"v": 1, "iat": time.time(), "exp": time.time() + 60, "m": "tools/call", "t": TOOL}
        claims["s"] = json.dumps({"approval": call.approval})
        await call.require_refused(REFUSED_AT_THE_DOOR, state=theirs.seal(json.dumps(claims).encode()))


# -- once


async def test_one_state_runs_its_call_once_and_then_tells_what_came_of_it(place: Place, upstream: Upstream) -> None:
    async with held(place, upstream, decided=False) as call:
        told = [await call.again(answers=approving()) for _ in range(5)]
        told += [await call.again() for _ in range(5)]
        told += [await call.again(answers=approving("deny"))]
        assert all(reply.ran for reply in told)
        assert len({json.dumps(reply.result["structuredContent"]) for reply in told}) == 1
        assert len(upstream.requests) == 1
        assert len(place.events("call.attempt")) == 1
        assert len(place.events("call.replayed")) == 10
        assert record(place, call.approval).state is State.SUCCEEDED
