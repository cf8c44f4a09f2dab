"""A modern answer over HTTP is the one that the SDK would have spelt, though it does not go through the SDK."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from server.protocol import _PLACED, SPLICED, _splicing  # pyright: ignore[reportPrivateUsage]
from tests.installed import Place
from tests.raw import Raw, Reply
from tests.serving import NO_TLS, serving
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio

ODD = ['"quoted"', "\\", "日本 🎌", "\u2028", "a\nb\tc\x7f", "</script>", "{}", ""]


@asynccontextmanager
async def modern(place: Place) -> AsyncIterator[Raw]:
    async with serving(place.installation) as url, httpx2.AsyncClient(verify=NO_TLS, timeout=30) as http:
        yield Raw(url, place.tokens["reconciler"], http)


async def answered(place: Place, upstream: Upstream, texts: list[str]) -> Reply:
    charges = [{"id": f"ch_{number}", "description": text} for number, text in enumerate(texts)]
    upstream.answer = lambda _request: Answer({"object": "list", "data": charges, "has_more": False})
    async with modern(place) as agent:
        return await agent.call("stripe_list_charges", {"limit": 5})


async def test_the_text_is_the_content_and_both_are_whole(place: Place, upstream: Upstream) -> None:
    reply = await answered(place, upstream, ODD)
    assert reply.status == 200
    assert int(reply.headers["content-length"]) == len(reply.text.encode())
    assert reply.message["id"] == 1
    result = reply.result
    assert set(result) == {"_meta", "content", "isError", "resultType", "structuredContent"}
    assert [charge["description"] for charge in result["structuredContent"]["charges"]] == ODD
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    assert (result["isError"], result["resultType"]) == (False, "complete")
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "keyleash"


async def test_both_eras_are_told_the_same(place: Place, upstream: Upstream) -> None:
    new = (await answered(place, upstream, ODD)).result
    async with serving(place.installation) as url:
        token = place.tokens["reconciler"]
        http = httpx2.AsyncClient(verify=NO_TLS, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        async with http, Client(streamable_http_client(url, http_client=http), mode="legacy") as client:
            old = await client.call_tool("stripe_list_charges", {"limit": 5})
    assert old.structured_content == new["structuredContent"]
    assert [block.model_dump(exclude_none=True) for block in old.content] == new["content"]


async def test_half_a_character_that_an_upstream_sends_breaks_no_answer(place: Place, upstream: Upstream) -> None:
    reply = await answered(place, upstream, ["\ud83c"])
    assert reply.status == 200
    assert reply.result["structuredContent"]["charges"][0]["description"] == "?"


async def test_what_stands_for_a_result_never_leaves(place: Place, upstream: Upstream) -> None:
    async with modern(place) as agent:
        upstream.answer = lambda _request: Answer({"error": {"message": "no"}}, 404)
        replies = [
            await agent.call("stripe_get_charge", {"charge": "ch_1"}),
            await agent.call("stripe_get_charge", {"nonsense": 1}),
            await agent.call("stripe_nothing", {}),
            await agent.request("tools/list"),
        ]
    mark = _PLACED.decode().split('"')[1]
    assert not [reply for reply in replies if mark in reply.text]
    assert [reply.refused for reply in replies] == [True, True, True, False]


async def test_an_error_is_sent_as_it_is_though_a_result_was_ready() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    send_through = _splicing({SPLICED: b'{"secret":"of another"}'}, send)
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"Internal server error"}}'
    await send_through({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
    await send_through({"type": "http.response.body", "body": body})
    assert [message.get("body") for message in sent] == [None, body]
    assert sent[0]["headers"] == [(b"content-length", str(len(body)).encode())]
