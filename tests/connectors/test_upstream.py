"""A conversation with a wrapped server ends in time and within bounds, whatever the server does."""

import ipaddress
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from connectors.bounded import DEFAULT_LIMITS
from connectors.egress import Egress
from connectors.elicitation import Answer, Ask
from connectors.errors import (
    ConnectorError,
    DefinitionChanged,
    ProtocolRefused,
    ResponseTooLarge,
    Unreachable,
)
from connectors.loading import parse
from connectors.upstream import Returned, Upstream, Wanted, opened
from tests.installed import SECRET
from tests.wrapped import Wrapped, command
from tests.wrapping import connector_text, definition
from vault import Secret

pytestmark = pytest.mark.anyio

SHORT = replace(DEFAULT_LIMITS, total_s=1.0)
LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"),)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["modern", "handshake"])
def wrapped(request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    with Wrapped(SECRET, era=request.param) as running:
        yield running


@asynccontextmanager
async def talking(url: str | None, *, limits: Any = DEFAULT_LIMITS, era: str = "modern") -> AsyncIterator[Upstream]:
    connector = parse(connector_text(None if url else command(era)))
    async with Egress() as egress:
        conversation = opened(
            connector,
            base_url=url or connector.base_url,
            kind=connector.credentials[0],
            secret=Secret({"secret": SECRET}),
            egress=egress,
            private=LOOPBACK if url else (),
            limits=limits,
        )
        async with conversation as upstream:
            yield upstream


async def call(url: str | None, tool: str, arguments: Any = None, limits: Any = DEFAULT_LIMITS, **more: Any) -> Any:
    async with talking(url, limits=limits) as upstream:
        return await upstream.call(tool, arguments or {}, pinned=definition(tool).hash, **more)


async def test_every_page_of_the_list_is_read_and_pinned(wrapped: Wrapped) -> None:
    async with talking(wrapped.url) as upstream:
        found = await upstream.definitions()
        assert upstream.server["name"] == "world"
    assert [each.hash for each in found] == [definition(each.name).hash for each in found]
    assert len(found) > 16
    assert wrapped.world.lists == 3


async def test_a_list_without_end_is_left(wrapped: Wrapped) -> None:
    wrapped.world.endless = True
    with pytest.raises(ProtocolRefused, match="pages"):
        await call(wrapped.url, "echo", {"text": "x"})
    assert wrapped.world.calls == []
    assert wrapped.world.lists == 50


async def test_a_definition_that_repeats_the_secret_is_told_without_it(wrapped: Wrapped) -> None:
    wrapped.world.descriptions["echo"] = f"It has {SECRET}."
    with pytest.raises(DefinitionChanged) as changed:
        await call(wrapped.url, "echo", {"text": "x"})
    assert changed.value.found is not None
    assert changed.value.found["description"] == "It has [removed by Keyleash]."
    assert wrapped.world.calls == []


async def test_a_server_that_hangs_is_left_in_time(wrapped: Wrapped) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not finish") as left:
        await call(wrapped.url, "hang", limits=SHORT)
    assert left.value.maybe_sent
    assert time.monotonic() - began < 8


async def test_a_process_that_hangs_is_killed_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not finish") as left:
        connector = parse(connector_text(["/bin/sleep", "600"]))
        async with (
            Egress() as egress,
            opened(
                connector,
                base_url=connector.base_url,
                kind=connector.credentials[0],
                secret=Secret({"secret": SECRET}),
                egress=egress,
                limits=SHORT,
            ),
        ):
            raise AssertionError("nobody answered")
    assert not left.value.maybe_sent
    assert time.monotonic() - began < 8


async def test_the_time_that_a_person_takes_is_not_the_servers(wrapped: Wrapped) -> None:
    async def slowly(_ask: Ask) -> Answer:
        await anyio.sleep(1.5)
        return Answer("accept", {"colour": "red"})

    limits = replace(DEFAULT_LIMITS, total_s=1.2)
    returned = await call(wrapped.url, "ask", {"text": "x"}, limits, relay=slowly)
    assert isinstance(returned, Returned)
    assert returned.asked == ("accept",)


async def test_a_server_may_ask_only_so_often(wrapped: Wrapped) -> None:
    asked: list[Ask] = []

    async def yes(ask: Ask) -> Answer:
        asked.append(ask)
        return Answer("decline")

    await call(wrapped.url, "ask_twice", {"text": "x"}, relay=yes)
    assert len(asked) == 2
    assert all(SECRET not in ask.message for ask in asked)


async def test_what_a_modern_server_wants_first_is_returned_and_goes_on_from_there() -> None:
    with Wrapped(SECRET) as wrapped:
        first = await call(wrapped.url, "ask", {"text": "x"}, defer=True)
        assert isinstance(first, Wanted)
        assert wrapped.world.calls == []
        second = await call(
            wrapped.url,
            "ask",
            {"text": "x"},
            defer=True,
            answers={"q": Answer("accept", {"colour": "red"})},
            state=first.state,
        )
    assert isinstance(second, Returned)
    assert wrapped.world.states == [None, "0"]
    assert json.loads(second.reply.body)["text"] == "answered: accept {'colour': 'red'}"


async def test_what_runs_before_the_call_can_stop_it(wrapped: Wrapped) -> None:
    def late() -> None:
        raise Unreachable("too late", maybe_sent=False)

    with pytest.raises(Unreachable, match="too late"):
        await call(wrapped.url, "note", {"text": "x"}, before=late)
    assert wrapped.world.calls == []


async def test_a_session_with_an_endless_name_is_not_begun() -> None:
    with Wrapped(SECRET, era="handshake") as wrapped:
        wrapped.refuse = lambda _method, _headers: (
            200,
            {"content-type": "application/json", "mcp-session-id": "x" * 600},
            b"{}",
        )
        with pytest.raises(Unreachable, match="too many characters"):
            await call(wrapped.url, "echo", {"text": "x"})


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"content-type": "text/html"}, b"<p>hello"),
        (200, {"content-type": "application/json"}, b"not json"),
        (200, {"content-type": "application/json"}, b'{"jsonrpc": "2.0", "id": 99, "result": {}}'),
        (200, {"content-type": "text/event-stream"}, b"event: endpoint\ndata: https://evil.example/x\n\n"),
        (202, {}, b""),
        (404, {}, b""),
        (101, {}, b""),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1].get('content-type', '')} {answer[2][:12]!r}",
)
async def test_what_is_no_mcp_was_sent_nothing(wrapped: Wrapped, answer: Any) -> None:
    wrapped.refuse = lambda _method, _headers: answer
    with pytest.raises(ConnectorError) as refused:
        await call(wrapped.url, "note", {"text": "x"}, SHORT)
    assert not getattr(refused.value, "maybe_sent", False)
    assert not getattr(refused.value, "maybe_done", False)
    assert wrapped.world.calls == []
    assert {path for _, path, _ in wrapped.requests} == {"/mcp"}


async def test_a_server_that_goes_away_in_mid_call_leaves_it_open_what_came_of_it() -> None:
    returned: list[Any] = []
    with pytest.raises(Unreachable) as gone:
        async with talking(None) as upstream:
            about = await upstream.call("about", {}, pinned=definition("about").hash)
            me = json.loads(about.reply.body)["me"]
            async with anyio.create_task_group() as group:

                async def ask() -> None:
                    with pytest.raises(Unreachable) as inner:
                        await upstream.call("hang", {}, pinned=definition("hang").hash)
                    returned.append(inner.value)

                group.start_soon(ask)
                await anyio.sleep(0.5)
                os.kill(me, signal.SIGKILL)
            raise returned[0]
    assert gone.value.maybe_sent
    assert "ended before it answered" in str(gone.value)


async def test_a_program_that_writes_without_end_is_stopped() -> None:
    connector = parse(connector_text(["/usr/bin/yes"]))
    with pytest.raises((Unreachable, ResponseTooLarge)):
        async with (
            Egress() as egress,
            opened(
                connector,
                base_url=connector.base_url,
                kind=connector.credentials[0],
                secret=Secret({"secret": SECRET}),
                egress=egress,
            ),
        ):
            raise AssertionError("nobody answered")


async def test_nothing_is_dialled_that_is_not_public_unless_the_operator_says_so(wrapped: Wrapped) -> None:
    connector = parse(connector_text())
    with pytest.raises(Unreachable, match="not public"):
        async with (
            Egress() as egress,
            opened(
                connector,
                base_url=wrapped.url,
                kind=connector.credentials[0],
                secret=Secret({"secret": SECRET}),
                egress=egress,
            ),
        ):
            raise AssertionError("it was reached")
    assert wrapped.requests == []
