"""A server without a leash: `mcp` as its examples show it, the key in an environment variable, one long-lived client.

With `httpx2` it is the yardstick, what people write; with `egress` it is the floor: our own way out and nothing else.
Both are set up as well as their documentation allows, so that no ratio rests on a beginner's mistake.
"""

import asyncio
import contextlib
import ipaddress
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import mcp_types as t
import uvicorn
from mcp.server import Server
from mcp.shared.exceptions import MCPError

from connectors.egress import Egress
from connectors.request import Prepared
from tests.bench.wire import HOST, TOOL

Charges = Callable[[int], Awaitable[Any]]

# The fields that the shipped connector selects: all servers give the client the same result.
_KEPT = (
    *("id", "amount", "amount_refunded", "currency", "created", "status", "paid", "refunded", "disputed", "customer"),
    *("payment_intent", "balance_transaction", "description", "failure_code", "metadata"),
)
_SCHEMA = {"type": "object", "properties": {"limit": {"type": "integer"}}, "additionalProperties": False}


@contextlib.asynccontextmanager
async def by_httpx2(base: str) -> AsyncIterator[Charges]:
    """The library's client, with room for all callers in its pool: its own default keeps 20 connections."""
    async with httpx2.AsyncClient(
        base_url=base,
        headers={"Authorization": f"Bearer {os.environ['STRIPE_KEY']}"},
        limits=httpx2.Limits(max_connections=100, max_keepalive_connections=100),
        timeout=30,
    ) as client:

        async def charges(limit: int) -> Any:
            response = await client.get("/v1/charges", params={"limit": limit})
            response.raise_for_status()
            return response.json()

        yield charges


@contextlib.asynccontextmanager
async def by_egress(base: str) -> AsyncIterator[Charges]:
    """Keyleash's transport by itself."""
    here = (ipaddress.ip_network(f"{HOST}/32"),)

    def attach(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        headers["Authorization"] = f"Bearer {os.environ['STRIPE_KEY']}"
        return ()

    async with Egress() as egress:

        async def charges(limit: int) -> Any:
            url = f"{base}/v1/charges?limit={limit}"
            reply = await egress.send(Prepared("GET", url, base, "", ()), attach=attach, private=here)
            if reply.status != 200:
                raise RuntimeError(f"the upstream answered {reply.status}")
            return json.loads(reply.body)

        yield charges


CLIENTS: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Charges]]] = {
    "httpx2": by_httpx2,
    "egress": by_egress,
}


def build(charges: Charges) -> Server[Any]:
    """The server, with its one tool."""

    async def list_tools(_ctx: Any, _params: Any) -> t.ListToolsResult:
        return t.ListToolsResult(tools=[t.Tool(name=TOOL, description="List charges", input_schema=_SCHEMA)])

    async def call_tool(_ctx: Any, params: t.CallToolRequestParams) -> t.CallToolResult:
        if params.name != TOOL:
            raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name}")
        page = await charges((params.arguments or {})["limit"])
        found = [{name: charge.get(name) for name in _KEPT} for charge in page["data"]]
        result = {"charges": found, "has_more": page["has_more"], "last_id": found[-1]["id"]}
        text = json.dumps(result, separators=(",", ":"))
        return t.CallToolResult(content=[t.TextContent(type="text", text=text)], structured_content=result)

    return Server("bare", on_list_tools=list_tools, on_call_tool=call_tool, get_tool_input_schema=lambda _name: None)


async def serve(client: str, base: str, port: str) -> None:
    """Serve at /mcp, with JSON answers, until stopped."""
    async with CLIENTS[client](base) as charges:
        app = build(charges).streamable_http_app(json_response=True, stateless_http=True)
        config = uvicorn.Config(app, host=HOST, port=int(port), log_level="warning", access_log=False)
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    import uvloop

    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        uvloop.run(serve(*sys.argv[1:]))
