"""Too many tools to list: three that find, describe and call them, over the wire in both eras; the leash sees through.

Whatever is done through the three looks to rules, people and the record as if the tool's own name had been called.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import mcp_types as t
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.subscriptions import ToolsListChanged
from mcp.shared.exceptions import MCPError

from connectors.catalogue import OWN_NAMES, Catalogue, shipped_folder
from server.app import open_installation, protocol_server, running
from server.approval import Decision, State
from server.call import call
from server.connections import ConnectionProblem, plan
from server.errors import NoSuchTool
from server.folding import folded
from server.identity import Narrowing, create_agent
from server.listing import PAGE
from tests import postgres
from tests.agents import ERAS, Nobody, answering, connected, decide, with_connector
from tests.bench.wire import message
from tests.definitions import input_of
from tests.installed import SECRET, Place, add_org
from tests.serving import NO_TLS, serving
from tests.upstream import Upstream
from tests.warehouse import all_names, limited, warehouse

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
CALL_REFUND = {"name": "stripe_create_refund", "arguments": REFUND}
NOTE = {"shelf": "s1", "text": "hello"}
THREE = ["call_tool", "describe_tool", "read_more", "search_tools"]
"""Three, and the one that stands in every list."""


@pytest.fixture
def place(place: Place, upstream: Upstream) -> Iterator[Place]:
    """The place, with hundreds of tools and the limit that stands where nothing is set."""
    with_connector(place, "warehouse", warehouse(300))
    place.connect(upstream.url, connector="warehouse")
    yield place


@pytest.fixture(params=["memory", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def narrowed(place: Place, name: str, **narrowing: tuple[str, ...]) -> None:
    place.tokens[name] = place.database.write_now(
        lambda rows: create_agent(
            rows, place.org, name=name, member=place.owner, by="alice", narrowing=Narrowing(**narrowing)
        )
    )


def text_of(result: t.CallToolResult) -> str:
    assert isinstance(result.content[0], t.TextContent)
    return result.content[0].text


async def search(client: Client, query: str, **more: Any) -> dict[str, Any]:
    result = await client.call_tool("search_tools", {"query": query, **more})
    assert not result.is_error, text_of(result)
    assert result.structured_content == json.loads(text_of(result))
    return result.structured_content


def names(found: dict[str, Any]) -> list[str]:
    return [tool["name"] for tool in found["tools"]]


def nothing_names_the_three(place: Place) -> None:
    """Neither the record nor an approval knows of the way by which a call came."""
    told = json.dumps(place.events()) + repr(place.installation.approvals.list(place.org))
    assert not [name for name in OWN_NAMES if name in told]


# --- the list


async def test_three_tools_stand_in_place_of_hundreds(place: Place, transport: str, era: str) -> None:
    async with connected(place, transport, era) as client:
        listed = await client.list_tools()
    assert [tool.name for tool in listed.tools] == THREE
    assert listed.next_cursor is None
    hints = {tool.name: tool.annotations for tool in listed.tools}
    assert all(hint is not None for hint in hints.values())
    for name in ("search_tools", "describe_tool", "read_more"):
        assert hints[name] == t.ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        )
    assert hints["call_tool"] == t.ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True
    )


@pytest.mark.parametrize("version", ["2026-07-28", "2025-06-18"])
async def test_the_list_stays_under_six_kilobytes_on_the_wire(place: Place, upstream: Upstream, version: str) -> None:
    for number in range(60):  # with the longest names that connections may have
        place.connect(upstream.url, connector="warehouse", name=f"warehouse_{number:02}_{'x' * 18}")
    assert len(all_names(place)) > 18_000
    token = place.tokens["reconciler"]
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        headers = {
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "MCP-Protocol-Version": version,
            "Mcp-Method": "tools/list",
        }
        if version != "2026-07-28":
            opening = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "initialize",
                "params": {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
            }
            opened = await client.post(url, json=opening, headers=headers)
            headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
            ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
            await client.post(url, json=ready, headers=headers)
        reply = await client.post(url, content=message("tools/list"), headers=headers)
    assert reply.status_code == 200
    assert all(f'"{name}"' in reply.text for name in THREE)
    assert len(reply.content) < 6_000


async def test_the_search_says_which_connections_there_are_for_this_caller(place: Place) -> None:
    narrowed(place, "clerk", tools=("warehouse.*",))
    for agent, said, unsaid in (("reconciler", ["stripe", "warehouse"], []), ("clerk", ["warehouse"], ["stripe"])):
        async with connected(place, "memory", "auto", agent=agent) as client:
            (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "search_tools"]
        assert tool.description is not None
        assert all(name in tool.description for name in said)
        assert not [name for name in unsaid if name in tool.description.lower()]


async def test_a_caller_with_few_tools_is_listed_them_beside_one_with_many(place: Place, era: str) -> None:
    narrowed(place, "cashier", tools=("stripe.*",))
    async with connected(place, "memory", era, agent="cashier") as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
    assert "stripe_create_refund" in listed
    assert OWN_NAMES & set(listed) == {"read_more"}


@pytest.mark.parametrize(("limit", "is_folded"), [(0, True), (14, True), (15, False), (10_000, False)])
async def test_the_operator_sets_the_limit(place: Place, era: str, limit: int, is_folded: bool) -> None:
    narrowed(place, "cashier", tools=("stripe.*",))
    async with connected(limited(place, limit), "memory", era, agent="cashier") as client:
        listed = [tool.name for tool in (await client.list_tools()).tools]
    assert (listed == THREE) is is_folded
    assert is_folded or len(listed) == 15 + len(["read_more"])


async def test_a_kept_list_of_either_kind_goes_on_working(place: Place, transport: str, era: str) -> None:
    """The three answer where all are listed, and a tool's own name where three are."""
    async with connected(place, transport, era) as client:
        assert not (await client.call_tool("stripe_list_charges", {"limit": 1})).is_error
    async with connected(limited(place, 10_000), transport, era) as client:
        assert "stripe_create_refund" in names(await search(client, "refund a charge"))
        assert not (await client.call_tool("call_tool", {"name": "stripe_list_charges"})).is_error


async def test_a_connection_that_folds_the_list_is_a_change_of_the_list(place: Place, upstream: Upstream) -> None:
    limited(place, len(all_names(place)))
    async with (
        connected(place, "memory", "auto") as client,
        client.listen(tools_list_changed=True) as changes,
    ):
        assert len((await client.list_tools(cache_mode="bypass")).tools) == PAGE + len(["read_more"])
        place.connect(upstream.url, name="stripe_eu")
        event = await anext(aiter(changes))
        assert isinstance(event, ToolsListChanged)
        assert [tool.name for tool in (await client.list_tools()).tools] == THREE


async def test_clients_of_the_handshake_are_told_of_it_on_their_pipe(place: Place, upstream: Upstream) -> None:
    told = anyio.Event()

    async def hear(message: object) -> None:
        if isinstance(message, t.ToolListChangedNotification):
            told.set()

    environment = {"KEYLEASH_HOME": str(place.home), "KEYLEASH_LIST_LIMIT": str(len(all_names(place)))}
    server = StdioServerParameters(
        command=sys.executable,
        args=["-c", "from server.cli import main; main()", "serve", "--agent", "reconciler"],
        env={**os.environ, **postgres.environment(place.home), **environment},
    )
    async with Client(server, mode="legacy", message_handler=hear) as client:
        assert len((await client.list_tools()).tools) == PAGE + len(["read_more"])
        place.connect(upstream.url, name="stripe_eu")
        with anyio.fail_after(30):
            await told.wait()
        assert [tool.name for tool in (await client.list_tools()).tools] == THREE


# --- find, describe, call


async def test_an_agent_finds_reads_about_and_calls_a_tool(
    place: Place, transport: str, era: str, upstream: Upstream
) -> None:
    async with connected(place, transport, era) as client:
        await client.list_tools()  # so that the client checks what comes back against the schemas
        found = await search(client, "what did customers pay yesterday")
        assert "stripe_list_charges" in names(found)
        described = (await client.call_tool("describe_tool", {"name": "stripe_list_charges"})).structured_content
        assert described is not None
        assert "created_gte" in described["inputSchema"]["properties"]
        result = await client.call_tool("call_tool", {"name": "stripe_list_charges", "arguments": {"limit": 2}})
    assert not result.is_error
    (sent,) = upstream.requests
    assert sent.target == "/v1/charges?limit=2"
    assert SECRET not in result.model_dump_json()
    (attempt,) = place.events("call.attempt")
    assert attempt["tool"] == "stripe_list_charges"
    assert attempt["transport"] == transport
    nothing_names_the_three(place)


async def test_what_is_found_is_small_and_says_what_would_happen(place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.cancel_subscription"], then="approve")
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "max", "value": 100}],
        then="allow",
    )
    async with connected(place, "memory", "auto") as client:
        asks = {
            name: tool
            for query in ("list charges", "cancel a subscription", "refund a charge", "create customer")
            for tool in (await search(client, query, limit=20))["tools"]
            if (name := tool["name"])
        }
        many = await search(client, "shelf", limit=20)
    assert asks["stripe_list_charges"]["asks_a_person"] == "no"
    assert asks["stripe_create_customer"]["asks_a_person"] == "yes"
    assert asks["stripe_cancel_subscription"]["asks_a_person"] == "yes"
    assert asks["stripe_create_refund"]["asks_a_person"] == "depends on the arguments"
    assert asks["stripe_create_refund"]["effect"] == "spend"
    assert asks["stripe_create_refund"]["title"] == "Refund a charge"
    assert asks["stripe_create_refund"]["description"].startswith("Give money back")
    assert {tool["description"] for tool in many["tools"]} == {"What stands on a shelf, and since when"}
    assert len(many["tools"]) == 20
    assert many["found"] == 301
    assert max(len(json.dumps(tool)) for tool in [*many["tools"], *asks.values()]) < 400


async def test_five_are_found_where_nothing_is_said(place: Place) -> None:
    async with connected(place, "memory", "auto") as client:
        assert len((await search(client, "shelf"))["tools"]) == 5
        assert len((await search(client, "shelf", limit=1))["tools"]) == 1


async def test_a_tool_is_described_as_it_would_be_listed(place: Place, era: str) -> None:
    async with connected(limited(place, 10_000), "memory", era) as client:
        cursor, listed = None, {}
        while True:
            some = await client.list_tools(cursor=cursor)
            listed |= {tool.name: tool.model_dump(by_alias=True, mode="json", exclude_none=True) for tool in some.tools}
            cursor = some.next_cursor
            if cursor is None:
                break
        for name in ("stripe_create_refund", "warehouse_pin_note"):
            described = (await client.call_tool("describe_tool", {"name": name})).structured_content
            assert described is not None
            assert described.items() >= listed[name].items()
            assert set(described) - set(listed[name]) == {"effect", "asks_a_person"}


async def test_the_same_tool_of_another_connection_is_named_beside_it(place: Place, upstream: Upstream) -> None:
    place.connect(upstream.url, name="stripe_eu")
    async with connected(place, "memory", "auto") as client:
        (first, *_) = (await search(client, "refund a charge"))["tools"]
        assert first["name"] == "stripe_create_refund"
        assert first["same_elsewhere"] == ["stripe_eu_create_refund"]
        for number in range(8):
            place.connect(upstream.url, name=f"stripe_{number}")
        (first, *_) = (await search(client, "refund a charge"))["tools"]
        assert len(first["same_elsewhere"]) == 5


async def test_a_description_without_an_end_is_cut_where_it_is_found_and_whole_where_it_is_read(place: Place) -> None:
    endless = "Stock of a shelf and more of it " * 40
    with_connector(
        place, "laden", warehouse(0).replace("warehouse", "laden").replace("Pin a note to a shelf. ", endless)
    )
    place.connect("https://laden.example", connector="laden")
    async with connected(place, "memory", "auto") as client:
        (found,) = (await search(client, "laden"))["tools"]
        described = (await client.call_tool("describe_tool", {"name": "laden_pin_note"})).structured_content
    assert found["description"].endswith("…")
    assert len(found["description"]) < 170
    assert described is not None
    assert endless.strip() in described["description"]


async def test_where_nothing_fits_the_agent_is_told_what_there_is(place: Place) -> None:
    narrowed(place, "clerk", tools=("warehouse.*",))
    async with connected(place, "memory", "auto", agent="clerk") as client:
        found = await search(client, "xyzzy")
    assert found["tools"] == []
    assert "warehouse" in found["hint"]
    assert "stripe" not in found["hint"].lower()


async def test_unicode_comes_back_as_it_is(place: Place) -> None:
    with_connector(place, "laden", warehouse(0).replace('"id": "warehouse"', '"id": "laden"').replace("Pin", "Grüße"))
    place.connect("https://laden.example", connector="laden")
    async with connected(place, "http", "auto") as client:
        found = await search(client, "grüße")
    assert names(found) == ["laden_pin_note"]


# --- people


async def test_a_person_is_asked_about_the_tool_itself_and_it_is_sent_once(
    place: Place, transport: str, era: str, upstream: Upstream
) -> None:
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("call_tool", CALL_REFUND)
    assert not result.is_error
    (question,) = asked
    assert "stripe_create_refund" in question.message
    assert "ch_1" in question.message
    assert "call_tool" not in question.message
    assert len(upstream.requests) == 1
    (outcome,) = place.events("call.outcome")
    assert outcome["tool"] == "stripe_create_refund"
    assert outcome["approver"] == "alice"
    nothing_names_the_three(place)


@pytest.mark.parametrize(("action", "content"), [("decline", None), ("cancel", None), ("accept", {"decision": "yes"})])
async def test_an_answer_that_does_not_approve_sends_nothing_and_stays_decidable(
    place: Place, transport: str, era: str, upstream: Upstream, action: str, content: dict[str, Any] | None
) -> None:
    answer, asked = answering(action, content)
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("call_tool", CALL_REFUND)
        again = await client.call_tool("stripe_create_refund", REFUND)
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["approval"]["status"] == "pending"
    assert again.structured_content == result.structured_content  # the same call, by whichever way
    assert len(asked) == 1
    assert upstream.requests == []


@pytest.mark.parametrize("first", ["call_tool", "stripe_create_refund"])
async def test_a_held_call_decided_elsewhere_runs_once_by_whichever_way_it_comes_back(
    place: Place, transport: str, era: str, upstream: Upstream, first: str
) -> None:
    ways: dict[str, dict[str, Any]] = {"call_tool": CALL_REFUND, "stripe_create_refund": REFUND}
    (second,) = ways.keys() - {first}
    async with connected(place, transport, era) as client:
        held = await client.call_tool(first, ways[first])
        assert held.is_error
        assert held.structured_content is not None
        assert "call_tool" not in text_of(held)
        decide(place, held.structured_content["approval"]["id"], Decision.APPROVE)
        assert not (await client.call_tool(second, ways[second])).is_error
    assert len(upstream.requests) == 1
    nothing_names_the_three(place)


async def test_an_hour_given_through_call_tool_covers_the_tool_by_its_own_name(
    place: Place, era: str, upstream: Upstream
) -> None:
    answer, asked = answering("accept", {"decision": "approve_for_one_hour"})
    async with connected(place, "memory", era, answer) as client:
        through = await client.call_tool("call_tool", {"name": "warehouse_pin_note", "arguments": NOTE})
        by_name = await client.call_tool("warehouse_pin_note", {**NOTE, "text": "again"})
        other = await client.call_tool("call_tool", {"name": "warehouse_pin_note", "arguments": {**NOTE, "shelf": "2"}})
    assert [result.is_error for result in (through, by_name, other)] == [False] * 3
    assert len(asked) == 2  # not for the second: the same shelf
    assert len(upstream.requests) == 3


async def test_a_pointer_is_bound_to_the_tool_and_the_arguments_inside(place: Place, upstream: Upstream) -> None:
    place.agent("mallory")
    accept = {"approval": t.ElicitResult(action="accept", content={"decision": "approve"})}
    others: list[tuple[str, dict[str, Any]]] = [
        ("call_tool", {**CALL_REFUND, "arguments": {**REFUND, "amount": 9_999_999}}),
        ("call_tool", {"name": "stripe_cancel_subscription", "arguments": {"subscription": "sub_1"}}),
        ("call_tool", {"name": "warehouse_pin_note", "arguments": NOTE}),
        ("stripe_create_refund", REFUND),
        ("search_tools", {"query": "refund"}),
    ]
    async with connected(place, "http", "auto", answering("decline")[0]) as client:
        first = await client.session.call_tool("call_tool", CALL_REFUND, allow_input_required=True)
        assert isinstance(first, t.InputRequiredResult)
        state = first.request_state
        for name, arguments in others:
            with pytest.raises(MCPError):
                await client.session.call_tool(
                    name, arguments, input_responses=accept, request_state=state, allow_input_required=True
                )
        mallory = connected(place, "http", "auto", answering("decline")[0], agent="mallory")
        async with mallory as thief:
            with pytest.raises(MCPError):
                await thief.session.call_tool(
                    "call_tool", CALL_REFUND, input_responses=accept, request_state=state, allow_input_required=True
                )
        assert upstream.requests == []
        assert [record.state for record in place.installation.approvals.list(place.org)] == [State.PENDING]
        for _ in range(3):  # and for the call that it was given for, it is worth one
            result = await client.session.call_tool(
                "call_tool", CALL_REFUND, input_responses=accept, request_state=state, allow_input_required=True
            )
            assert isinstance(result, t.CallToolResult)
            assert not result.is_error
    assert len(upstream.requests) == 1


async def test_a_rule_about_the_tool_holds_through_call_tool(place: Place, era: str, upstream: Upstream) -> None:
    rule = place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "min", "value": 1000}],
        then="deny",
    )
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, "memory", era, answer) as client:
        denied = await client.call_tool("call_tool", CALL_REFUND)
        passed = await client.call_tool("call_tool", {**CALL_REFUND, "arguments": {**REFUND, "amount": 5}})
    assert denied.is_error
    assert "rules do not allow" in text_of(denied)
    assert not passed.is_error
    assert len(asked) == len(upstream.requests) == 1
    (refused,) = place.events("call.refused")
    assert refused["tool"] == "stripe_create_refund"
    assert rule in json.dumps(refused) or rule in refused["reason"]


# --- what is hidden


HIDDEN = "stripe_create_refund"
ABSENT = "stripe_make_coffee"


def hide(place: Place, how: str) -> str:
    """Keep the tool from an agent, and return that agent."""
    if how == "a rule":
        place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")
        return "reconciler"
    if how == "a narrowing of tools":
        narrowed(place, "narrow", tools=("warehouse.*", "stripe.list_*"))
    elif how == "a narrowing of effects":
        narrowed(place, "narrow", effects=("read",))
    else:
        place.agent("narrow", standalone=True)
        agent = place.installation.directory.agent(place.org, "narrow")
        place.rule(who=f"agent:{agent.id}", tools=["warehouse.*"], then="allow")
    return "narrow"


WAYS_TO_HIDE = ["a rule", "a narrowing of tools", "a narrowing of effects", "no rule"]


@pytest.mark.parametrize("how", WAYS_TO_HIDE)
async def test_a_hidden_tool_is_to_its_agent_as_one_that_does_not_exist(
    place: Place, transport: str, era: str, upstream: Upstream, how: str
) -> None:
    agent = hide(place, how)
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, transport, era, answer, agent=agent) as client:
        for query in (HIDDEN, "refund a charge", "create refund"):
            told = json.dumps(await search(client, query, limit=20))
            assert HIDDEN not in told
        for tool, arguments in (
            ("describe_tool", {}),
            ("call_tool", {"arguments": REFUND}),
            ("call_tool", {"arguments": {"chrage": "ch_1"}}),
            ("call_tool", {}),
        ):
            hidden = await client.call_tool(tool, {"name": HIDDEN, **arguments})
            absent = await client.call_tool(tool, {"name": ABSENT, **arguments})
            assert hidden.is_error
            assert absent.is_error
            assert text_of(hidden).replace(HIDDEN, ABSENT) == text_of(absent)
            assert hidden.structured_content == absent.structured_content
        for arguments in (REFUND, {"chrage": "ch_1"}, {"charge": "ch_1", "amount": "much"}, {}, None):
            hidden, absent = [await refusal(client, name, arguments) for name in (HIDDEN, ABSENT)]
            assert hidden.error.message == f"Unknown tool: {HIDDEN}"
            assert hidden.error.message.replace(HIDDEN, ABSENT) == absent.error.message
            assert (hidden.error.code, hidden.error.data) == (absent.error.code, absent.error.data)
    assert upstream.requests == []
    assert asked == []
    # The record knows better than the agent.
    refused = place.events("call.refused")
    assert {entry["tool"] for entry in refused} == {HIDDEN, ABSENT}
    assert len(refused) == 16
    assert {entry["reason"] == "unknown tool" for entry in refused if entry["tool"] == ABSENT} == {True}
    assert {entry["reason"].split(":")[0] for entry in refused if entry["tool"] == HIDDEN} == {"hidden"}
    assert place.installation.approvals.list(place.org) == []


async def refusal(client: Client, tool: str, arguments: dict[str, Any] | None) -> MCPError:
    with pytest.raises(MCPError) as refused:
        await client.session.call_tool(tool, arguments)
    return refused.value


async def test_a_tool_that_other_arguments_could_call_is_refused_with_its_reason(place: Place, era: str) -> None:
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "min", "value": 1000}],
        then="deny",
    )
    async with connected(place, "memory", era) as client:
        direct = await client.session.call_tool(HIDDEN, REFUND)
        mended = await client.session.call_tool(HIDDEN, {"chrage": "ch_1"})
    assert direct.is_error
    assert "rules do not allow" in text_of(direct)
    assert "Did you mean charge" in text_of(mended)


async def test_what_waits_for_a_person_ends_once_its_tool_is_hidden(place: Place, upstream: Upstream) -> None:
    """Whatever arguments the tool is called with then: none of them can bring it back."""
    async with connected(place, "memory", "auto") as client:
        held = await client.session.call_tool(HIDDEN, REFUND, allow_input_required=True)
        assert not isinstance(held, MCPError)
        (waiting,) = place.installation.approvals.list(place.org)
        decide(place, waiting.id, Decision.APPROVE)
        hide(place, "a rule")
        await refusal(client, HIDDEN, {"chrage": "other arguments, and wrong ones"})
    (ended,) = place.installation.approvals.list(place.org)
    assert ended.state is State.CANCELLED
    assert upstream.requests == []


@pytest.mark.parametrize("keys", [0, 300, 2000])
async def test_how_long_a_refusal_takes_does_not_tell_hidden_from_missing(place: Place, keys: int) -> None:
    """Looking for names that are like a missing one, or checking the arguments of a hidden one, takes far longer."""
    hide(place, "a rule")
    long = {"charge": "ch_1", "metadata": {f"k{n}": ["x"] * 20 for n in range(keys)}}
    taken: dict[str, list[float]] = {HIDDEN: [], ABSENT: []}
    async with running(place.installation) as parts:
        for _ in range(40):  # the least of so many is what it takes, whatever else runs
            for name, times in taken.items():
                began = time.process_time()
                with pytest.raises(NoSuchTool):
                    await call(parts, place.caller(), name, long, Nobody())
                times.append(time.process_time() - began)
    hidden, absent = min(taken[HIDDEN]), min(taken[ABSENT])
    assert 0.5 < hidden / absent < 2, (hidden, absent)


async def test_a_tool_of_another_org_is_not_found(place: Place, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    other.connect(upstream.url, name="theirs")
    async with connected(place, "memory", "auto") as client:
        assert "theirs" not in json.dumps(await search(client, "theirs_create_refund", limit=20))
        result = await client.call_tool("describe_tool", {"name": "theirs_create_refund"})
    assert result.is_error


async def test_two_agents_of_one_org_find_what_each_may_use(place: Place) -> None:
    narrowed(place, "reader", effects=("read",))
    async with (
        connected(place, "memory", "auto") as all_of_it,
        connected(place, "memory", "auto", agent="reader") as reading,
    ):
        assert "stripe_create_refund" in names(await search(all_of_it, "refund"))
        assert "stripe_create_refund" not in names(await search(reading, "refund"))
        assert "stripe_list_refunds" in names(await search(reading, "refund"))
        assert "stripe_create_refund" in names(await search(all_of_it, "refund"))


async def test_a_rule_that_hides_a_tool_acts_on_the_next_search(place: Place) -> None:
    async with connected(place, "http", "auto") as client:
        assert HIDDEN in names(await search(client, "refund a charge"))
        hide(place, "a rule")
        assert HIDDEN not in names(await search(client, "refund a charge"))


async def test_a_broken_definition_is_not_found_and_hides_no_other(place: Place) -> None:
    async with running(place.installation) as parts:
        (broken,) = [tool for tool in parts.workspaces.of(place.caller()).offer.tools if tool.name == HIDDEN]
        server = protocol_server(place.installation, parts, lambda _ctx: place.caller())
        with input_of(broken.tool, {"type": "string"}):
            async with Client(server) as client:
                found = await search(client, "refund a charge")
                described = await client.call_tool("describe_tool", {"name": HIDDEN})
    assert HIDDEN not in names(found)
    assert "stripe_list_refunds" in names(found)
    assert described.is_error


# --- what does not fit


@pytest.mark.parametrize(
    ("tool", "arguments", "says"),
    [
        ("search_tools", {}, "query"),
        ("search_tools", {"query": ""}, "query"),
        ("search_tools", {"query": "  "}, "query"),
        ("search_tools", {"query": 5}, "query"),
        ("search_tools", {"query": "x" * 501}, "500"),
        ("search_tools", {"query": "x", "limit": 0}, "1 to 20"),
        ("search_tools", {"query": "x", "limit": 21}, "1 to 20"),
        ("search_tools", {"query": "x", "limit": 2.5}, "1 to 20"),
        ("search_tools", {"query": "x", "limit": True}, "1 to 20"),
        ("search_tools", {"query": "x", "limit": "5"}, "1 to 20"),
        ("search_tools", {"query": "x", "q": "y"}, "Allowed arguments: query, limit"),
        ("describe_tool", {}, "name"),
        ("describe_tool", {"name": "x" * 65}, "64"),
        ("describe_tool", {"name": "stripe_list_charges", "more": 1}, "Allowed arguments: name"),
        ("call_tool", {}, "name"),
        ("call_tool", {"name": ["stripe_list_charges"]}, "name"),
        ("call_tool", {"name": "stripe_list_charges", "arguments": "{}"}, "object"),
        ("call_tool", {"name": "stripe_list_charges", "arguments": None}, "object"),
        ("call_tool", {"name": "stripe_list_charges", "limit": 1}, "Allowed arguments: name, arguments"),
        ("call_tool", {"name": "call_tool", "arguments": CALL_REFUND}, "directly"),
        ("call_tool", {"name": "search_tools", "arguments": {"query": "x"}}, "directly"),
        ("call_tool", {"name": "stripe_list_charges", "arguments": {"limt": 3}}, "limit"),
    ],
)
async def test_what_does_not_fit_is_answered_with_how_to_mend_it(
    place: Place, era: str, upstream: Upstream, tool: str, arguments: dict[str, Any], says: str
) -> None:
    async with connected(place, "memory", era) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert says in text_of(result)
    assert len(text_of(result)) < 500
    assert upstream.requests == []
    nothing_names_the_three(place)


async def test_a_whole_number_may_come_as_a_float(place: Place) -> None:
    async with connected(place, "memory", "auto") as client:
        assert len((await search(client, "shelf", limit=2.0))["tools"]) == 2


async def test_a_sealed_server_says_so_and_finds_nothing(place: Place, era: str, upstream: Upstream) -> None:
    (place.home / "keys" / "root.key").unlink()
    sealed = open_installation(place.installation.settings)
    async with running(sealed) as parts:
        server = protocol_server(sealed, parts, lambda _ctx: place.caller())
        async with Client(server, mode=era) as client:
            assert (await client.list_tools()).tools == []
            for tool, arguments in (
                ("search_tools", {"query": "refund"}),
                ("describe_tool", {"name": HIDDEN}),
                ("call_tool", CALL_REFUND),
            ):
                result = await client.call_tool(tool, arguments)
                assert result.is_error
                assert "sealed" in text_of(result)
    assert upstream.requests == []


# --- names


@pytest.mark.parametrize("own", sorted(OWN_NAMES))
async def test_a_connection_whose_tool_would_take_one_of_the_three_names_is_refused(
    place: Place, upstream: Upstream, own: str
) -> None:
    connection, _, tool = own.partition("_")
    text = warehouse(0).replace('"id": "warehouse"', '"id": "thief"').replace('"pin_note"', f'"{tool}"')
    with_connector(place, "thief", text)
    with pytest.raises(ConnectionProblem, match=f"{own}.*--name"):
        plan(
            place.installation.catalogue,
            [],
            connector="thief",
            name=connection,
            kind=None,
            base_url=None,
            private=(),
        )
    # One that was made before its file changed is not offered the name either, and loses no other tool.
    offer = place.installation.catalogue.offer({connection: "thief", "stripe": "stripe"})
    assert own not in [offered.name for offered in offer.tools]
    assert "stripe_create_refund" in [offered.name for offered in offer.tools]
    assert own in offer.problems[0]


def test_the_three_have_the_names_that_are_kept_for_them() -> None:
    assert {tool["name"] for tool in folded([])} == OWN_NAMES
    assert [tool["name"] for tool in folded([])] == sorted(OWN_NAMES)


def test_the_folded_list_is_in_order_and_small_with_any_number_of_connections() -> None:
    offer = Catalogue.load(shipped_folder()).offer({f"{'s' * 26}_{number:04}": "slack" for number in range(500)})
    wire = json.dumps({"tools": folded(offer.tools)})
    assert len(wire) < 5_500
    assert "and 4" in wire
    assert wire.count("Slack") < 30
