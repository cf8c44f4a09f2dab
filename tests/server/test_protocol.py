"""The real server, driven by the SDK's client: both eras, over memory, stdio and HTTP."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import mcp_types as t
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from server.app import protocol_server, running
from server.approval import Decision, State
from tests import postgres
from tests.agents import Answering, answering
from tests.definitions import input_of
from tests.installed import SECRET, Place
from tests.serving import NO_TLS, serving
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
ERAS = ["auto", "legacy"]
TRANSPORTS = ["memory", "stdio", "http"]


@asynccontextmanager
async def connected(
    place: Place, transport: str, era: str, answer: Answering | None = None, *, agent: str = "reconciler"
) -> AsyncIterator[Client]:
    """A client of this era over this transport, as `agent`."""
    if transport == "memory":
        async with running(place.installation) as parts:
            server = protocol_server(
                place.installation, parts, lambda _ctx: replace(place.caller(agent), transport="memory")
            )
            async with Client(server, mode=era, elicitation_callback=answer) as client:
                yield client
    elif transport == "stdio":
        command = "from server.cli import main; main()"
        env = {**os.environ, "KEYLEASH_HOME": str(place.home), "KEYLEASH_HOLD_SECONDS": "0"}
        env |= postgres.environment(place.home)
        parameters = StdioServerParameters(
            command=sys.executable, args=["-c", command, "serve", "--agent", agent], env=env
        )
        async with Client(parameters, mode=era, elicitation_callback=answer) as client:
            yield client
    else:
        token = place.tokens[agent]
        async with serving(place.installation) as url:
            http = httpx2.AsyncClient(verify=NO_TLS, headers={"Authorization": f"Bearer {token}"}, timeout=30)
            async with (
                http,
                Client(streamable_http_client(url, http_client=http), mode=era, elicitation_callback=answer) as client,
            ):
                yield client


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def text_of(result: t.CallToolResult) -> str:
    assert isinstance(result.content[0], t.TextContent)
    return result.content[0].text


async def test_an_agent_lists_and_reads(place: Place, transport: str, era: str, upstream: Upstream) -> None:
    upstream.answer = lambda request: Answer({"data": [{"id": "ch_1"}], "has_more": False})
    async with connected(place, transport, era) as client:
        tools = (await client.list_tools()).tools
        result = await client.call_tool("stripe_list_charges", {"limit": 1})
    names = [tool.name for tool in tools]
    assert names == sorted(names)
    assert "stripe_create_refund" in names
    assert all(tool.annotations is not None for tool in tools)
    assert not result.is_error
    assert result.structured_content == json.loads(text_of(result))
    assert SECRET not in result.model_dump_json()


async def test_an_accepted_answer_sends_once(place: Place, transport: str, era: str, upstream: Upstream) -> None:
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("stripe_create_refund", REFUND)
    assert not result.is_error
    assert len(asked) == 1
    assert "ch_1" in asked[0].message
    assert len(upstream.requests) == 1
    entry = place.events("call.outcome")[0]
    assert entry["transport"] == transport
    assert entry["approver"] == "alice"


NO_APPROVALS: list[tuple[str, dict[str, Any] | None]] = [
    ("decline", None),
    ("cancel", None),
    ("accept", {}),
    ("accept", {"decision": "yes"}),
    ("accept", {"decision": "approve_for_one_hour"}),
    ("accept", {"decision": "approve", "more": "x"}),
]


@pytest.mark.parametrize(
    ("transport", "action", "content"),
    # Over stdio the first and the last: the others run the same code, and each would cost a process.
    [(transport, *answer) for transport in TRANSPORTS for answer in NO_APPROVALS[:: 5 if transport == "stdio" else 1]],
)
async def test_an_answer_that_does_not_approve_sends_nothing_and_stays_decidable(
    place: Place, transport: str, era: str, upstream: Upstream, action: str, content: dict[str, Any] | None
) -> None:
    answer, asked = answering(action, content)
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("stripe_create_refund", REFUND)
        again = await client.call_tool("stripe_create_refund", REFUND)
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["approval"]["status"] == "pending"
    assert again.structured_content == result.structured_content
    assert len(asked) == 1
    assert upstream.requests == []
    pending = place.installation.approvals.list(place.org, state=State.PENDING)
    assert [record.id for record in pending] == [result.structured_content["approval"]["id"]]


async def test_a_denial_in_the_client_is_final(place: Place, transport: str, era: str, upstream: Upstream) -> None:
    answer, _ = answering("accept", {"decision": "deny"})
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("stripe_create_refund", REFUND)
    assert result.is_error
    assert "decided against" in text_of(result)
    assert upstream.requests == []


async def test_a_client_that_cannot_ask_is_told_to_wait_and_no_command(
    place: Place, transport: str, era: str, upstream: Upstream
) -> None:
    async with connected(place, transport, era) as client:
        result = await client.call_tool("stripe_create_refund", REFUND)
        assert result.is_error
        assert result.structured_content is not None
        approval = result.structured_content["approval"]
        assert set(approval) == {"id", "status", "expires_at"}
        assert "keyleash" not in text_of(result).lower()
        assert upstream.requests == []
        decide(place, approval["id"])
        assert not (await client.call_tool("stripe_create_refund", REFUND)).is_error
    assert len(upstream.requests) == 1


async def test_a_standalone_agent_is_never_asked(place: Place, transport: str, era: str, upstream: Upstream) -> None:
    place.agent("robot", standalone=True)
    robot = place.installation.directory.agent(place.org, "robot")
    place.rule(who=f"agent:{robot.id}", tools=["stripe.*"], then="confirm")
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, transport, era, answer, agent="robot") as client:
        result = await client.call_tool("stripe_create_refund", REFUND)
    assert result.is_error
    assert asked == []
    assert upstream.requests == []


async def test_unknown_tools_and_bad_arguments_are_told_apart(place: Place, era: str, upstream: Upstream) -> None:
    async with connected(place, "memory", era) as client:
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("stripe_make_coffee", {})
        bad = await client.call_tool("stripe_list_charges", {"limt": 3})
    assert unknown.value.code == t.INVALID_PARAMS
    assert bad.is_error
    assert "limit" in text_of(bad)
    assert upstream.requests == []


async def test_eight_replays_of_one_accepted_answer_send_once(place: Place, upstream: Upstream) -> None:
    """A client repeats the same state and the same accept; only the record decides what runs."""
    async with connected(place, "http", "auto", answering("decline")[0]) as client:
        first = await client.session.call_tool("stripe_create_refund", REFUND, allow_input_required=True)
        assert isinstance(first, t.InputRequiredResult)
        accept = {"approval": t.ElicitResult(action="accept", content={"decision": "approve"})}
        results: list[Any] = []

        async def replay() -> None:
            results.append(
                await client.session.call_tool(
                    "stripe_create_refund",
                    REFUND,
                    input_responses=accept,
                    request_state=first.request_state,
                    allow_input_required=True,
                )
            )

        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(replay)
    assert len(upstream.requests) == 1
    assert [result.is_error for result in results] == [False] * 8


async def test_a_pointer_is_bound_to_agent_tool_and_arguments(place: Place, upstream: Upstream) -> None:
    place.agent("mallory")
    accept = {"approval": t.ElicitResult(action="accept", content={"decision": "approve"})}
    async with connected(place, "http", "auto", answering("decline")[0]) as client:
        first = await client.session.call_tool("stripe_create_refund", REFUND, allow_input_required=True)
        assert isinstance(first, t.InputRequiredResult)
        state = first.request_state
        for name, arguments in [
            ("stripe_create_refund", {**REFUND, "amount": 9_999_999}),
            ("stripe_cancel_subscription", {"subscription": "sub_1"}),
        ]:
            with pytest.raises(MCPError):
                await client.session.call_tool(
                    name, arguments, input_responses=accept, request_state=state, allow_input_required=True
                )
    async with connected(place, "http", "auto", answering("decline")[0], agent="mallory") as client:
        with pytest.raises(MCPError):
            await client.session.call_tool(
                "stripe_create_refund", REFUND, input_responses=accept, request_state=state, allow_input_required=True
            )
    assert upstream.requests == []
    assert place.installation.approvals.list(place.org)[0].state is State.PENDING


async def test_no_verb_of_rules_approvals_or_vault_is_offered(place: Place, era: str) -> None:
    place.rule(who="everyone", tools=["*"], then="allow")
    async with connected(place, "memory", era) as client:
        tools = (await client.list_tools()).tools
        capabilities = client.server_capabilities
    assert {tool.name.split("_")[0] for tool in tools if tool.name != "read_more"} == {"stripe"}
    assert capabilities.resources is None
    assert capabilities.prompts is None


async def test_a_bug_in_a_handler_shows_a_number_and_nothing_else(
    place: Place, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(place.installation) as parts:

        def identify(_ctx: object) -> Any:
            raise RuntimeError(f"the key is {SECRET}")

        server = protocol_server(place.installation, parts, identify)
        async with Client(server, mode=era) as client:
            with pytest.raises(MCPError) as masked:
                await client.call_tool("stripe_list_charges", {})
    assert SECRET not in str(masked.value)
    number = masked.value.message.split()[2].rstrip(":")
    assert number in caplog.text
    assert SECRET not in caplog.text


async def test_one_broken_definition_hides_no_other(place: Place, era: str) -> None:
    async with running(place.installation) as parts:
        workspace = parts.workspaces.of(place.caller())
        broken = workspace.offer.tools[0]
        server = protocol_server(place.installation, parts, lambda _ctx: place.caller())
        with input_of(broken.tool, {"type": "string"}):
            async with Client(server, mode=era) as client:
                names = [tool.name for tool in (await client.list_tools()).tools]
    assert broken.name not in names
    assert len(names) == len(workspace.offer.tools) - 1 + len(["read_more"])


async def test_a_sealed_server_answers_lists_nothing_and_says_why(place: Place, era: str, upstream: Upstream) -> None:
    from server.app import open_installation

    (place.home / "keys" / "root.key").unlink()
    sealed = open_installation(place.installation.settings)
    async with running(sealed) as parts:
        server = protocol_server(sealed, parts, lambda _ctx: place.caller())
        async with Client(server, mode=era) as client:
            assert (await client.list_tools()).tools == []
            assert "sealed" in (client.instructions or "")
            result = await client.call_tool("stripe_list_charges", {})
    assert result.is_error
    assert "sealed" in text_of(result)
    assert upstream.requests == []


def decide(place: Place, approval: str) -> None:
    approvals = place.installation.approvals
    record = approvals.find(place.org, approval)
    assert record is not None
    place.database.write_now(lambda rows: approvals.decide(rows, record, Decision.APPROVE, place.actor()))
