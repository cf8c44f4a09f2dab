"""A conversation with a wrapped server ends in time and within bounds, whatever the server does."""

import ipaddress
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from connectors.auth import attaching
from connectors.bounded import DEFAULT_LIMITS
from connectors.conversation import MOST_REQUESTS, Line, over_http
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
from connectors.process import started
from connectors.upstream import Returned, Upstream, Wanted, opened
from tests.installed import SECRET
from tests.upstream import Answer as Canned
from tests.upstream import Received
from tests.upstream import Upstream as CannedServer
from tests.wrapped import FORM, Wrapped, command
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
async def talking(
    url: str | None = None, *, limits: Any = DEFAULT_LIMITS, started: Any = None, private: Any = LOOPBACK
) -> AsyncIterator[Upstream]:
    connector = parse(connector_text(None if url else started or command()))
    async with Egress() as egress:
        conversation = opened(
            connector,
            base_url=url or connector.base_url,
            kind=connector.credentials[0],
            secret=Secret({"secret": SECRET}),
            egress=egress,
            private=private,
            limits=limits,
        )
        async with conversation as upstream:
            yield upstream


async def begun(url: str | None = None, **more: Any) -> None:
    """A conversation that must not come about."""
    async with talking(url, **more):
        raise AssertionError("somebody answered")


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


async def test_too_many_values_are_noticed_before_they_are_parsed(wrapped: Wrapped) -> None:
    with pytest.raises(ResponseTooLarge, match=r"127\.0\.0\.1:\d+ sent more than 50000 values\. Ask for less\.$"):
        await call(wrapped.url, "many")


async def test_a_tool_that_is_listed_twice_is_not_called_even_where_one_of_them_is_as_pinned(wrapped: Wrapped) -> None:
    wrapped.world.twice = ["echo"]
    with pytest.raises(DefinitionChanged):
        await call(wrapped.url, "echo", {"text": "x"})
    assert wrapped.world.calls == []


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


async def test_no_span_of_the_sdk_holds_the_secret_and_no_trace_of_ours_leaves(
    wrapped: Wrapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("mcp.shared._otel._tracer", tracers.get_tracer("test"))
    with pytest.raises(ProtocolRefused):
        await call(wrapped.url, "refuse", {"text": "-32602"})
    spans = [
        span for span in exporter.get_finished_spans() if span.kind is SpanKind.CLIENT
    ]  # the server's are here too
    assert any("refuse" in span.name for span in spans)
    assert all(SECRET not in span.to_json() for span in spans)
    assert wrapped.world.traced == []


async def test_a_server_that_hangs_is_left_in_time(wrapped: Wrapped) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not finish") as left:
        await call(wrapped.url, "hang", limits=replace(DEFAULT_LIMITS, total_s=3.0))  # it has to get there before
    assert left.value.maybe_sent
    assert time.monotonic() - began < 25


async def test_a_process_that_hangs_is_killed_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="did not finish") as left:
        await begun(started=["/bin/sleep", "600"], limits=SHORT)
    assert not left.value.maybe_sent
    assert time.monotonic() - began < 25


async def test_the_time_that_a_person_takes_is_not_the_servers(wrapped: Wrapped) -> None:
    async def slowly(_ask: Ask) -> Answer:
        await anyio.sleep(3.5)
        return Answer("accept", {"colour": "red"})

    limits = replace(DEFAULT_LIMITS, total_s=3.0)
    returned = await call(wrapped.url, "ask", {"text": "x"}, limits, relay=slowly)
    assert isinstance(returned, Returned)
    assert returned.asked == ("accept",)


async def test_a_server_hears_that_forms_can_be_put_to_a_person_and_nothing_else_can(wrapped: Wrapped) -> None:
    await call(wrapped.url, "echo", {"text": "x"})
    assert wrapped.world.client is not None
    assert wrapped.world.client.model_dump(by_alias=True, exclude_none=True) == {"elicitation": {"form": {}}}


async def test_once_the_persons_time_is_over_nothing_more_is_put_to_them(wrapped: Wrapped) -> None:
    asked: list[Ask] = []

    async def too_slowly(ask: Ask) -> Answer:
        asked.append(ask)
        await anyio.sleep(30)
        return Answer("accept", {"colour": "red"})

    async with talking(wrapped.url) as upstream:
        upstream._patience = 0.2
        pinned = definition("ask_twice").hash
        returned = await upstream.call("ask_twice", {"text": "x"}, pinned=pinned, relay=too_slowly)
    assert isinstance(returned, Returned)
    assert (len(asked), returned.asked) == (1, ("cancel", "not put"))


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


async def test_what_a_server_says_unasked_may_break_off() -> None:
    with Wrapped(SECRET, era="handshake") as wrapped:
        broken = (200, {"content-type": "text/event-stream", "content-encoding": "gzip"}, b"not gzip at all")
        wrapped.refuse = lambda method, _headers: broken if method == "GET" else None
        async with talking(wrapped.url) as upstream:
            with anyio.fail_after(20):
                while [method for method, _, _ in wrapped.requests].count("GET") < 2:
                    await upstream.call("echo", {"text": "x"}, pinned=definition("echo").hash)
            assert upstream.alive


def test_a_further_call_counts_anew_and_forgets_no_secret() -> None:
    line = Line("World", sent=True, status=500, retry_after=1.0, bytes_in=9, noise=9)
    line.requests["POST"] = 9
    line.keep([SECRET])
    line.another()
    assert line.secrets() == (SECRET,)
    assert (line.alive, replace(line, _secrets=[])) == (True, Line("World"))
    line.keep([f"{SECRET}{number}" for number in range(60)])
    assert not line.alive, "so many cannot be looked for in every answer"


async def test_each_call_in_a_conversation_has_its_time_and_its_requests_of_its_own(wrapped: Wrapped) -> None:
    async with talking(wrapped.url) as upstream:
        for _ in range(4):
            await upstream.call("echo", {"text": "x"}, pinned=definition("echo").hash)
            upstream._left -= DEFAULT_LIMITS.total_s * 0.9  # as if it had taken that long
            upstream._line.requests["POST"] = MOST_REQUESTS["POST"]
    assert len(wrapped.world.calls) == 4


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


async def test_a_server_that_has_its_stream_opened_again_and_again_is_left() -> None:
    with Wrapped(SECRET) as wrapped:
        again = b"id: 1\nretry: 0\ndata: \n\n"
        wrapped.refuse = lambda _method, _headers: (200, {"content-type": "text/event-stream"}, again)
        with pytest.raises(ConnectorError):
            await begun(wrapped.url, limits=replace(DEFAULT_LIMITS, total_s=5.0))
        assert [method for method, _, _ in wrapped.requests].count("GET") <= MOST_REQUESTS["GET"]


async def test_what_is_left_of_a_secret_at_the_edge_of_what_is_kept_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    escaped = "".join(f"\\u{ord(char):04x}" for char in SECRET)
    noisy = f"import sys; sys.stderr.write({escaped!r} * 2_000)"
    with caplog.at_level("WARNING"), pytest.raises(Unreachable):
        await begun(started=[sys.executable, "-c", noisy])
    (said,) = [record.getMessage() for record in caplog.records if "said last" in record.getMessage()]
    assert "\\u00" not in said
    assert "removed by Keyleash" in said


async def test_a_program_that_writes_without_end_is_stopped() -> None:
    with pytest.raises(Unreachable, match=r"other things than MCP|more than 10 MiB"):
        await begun(started=["/usr/bin/yes"])


async def test_a_line_without_end_is_not_taken_in() -> None:
    with pytest.raises(Unreachable, match="more than 10 MiB"):
        await begun(started=["/usr/bin/head", "-c", "12000000", "/dev/zero"])


async def test_lines_without_content_cost_next_to_nothing() -> None:
    with anyio.fail_after(30), pytest.raises(Unreachable, match="more than 10 MiB"):
        await begun(started=["/usr/bin/yes", " "])


async def test_a_program_that_sends_messages_without_end_is_stopped() -> None:
    with pytest.raises(Unreachable, match="sends messages without end"):
        await begun(started=["/usr/bin/yes", '{"jsonrpc":"2.0","method":"n"}'])


async def test_nothing_is_left_of_a_folder_that_is_deeper_than_anybody_can_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    digs = "import os\nfor _ in range(3000): os.mkdir('a'); os.chdir('a')\nprint(flush=True)"
    async with started([sys.executable, "-I", "-S", "-c", digs], {}, name="It", limits=DEFAULT_LIMITS) as process:
        async for _ in process.lines():  # until it has ended
            pass
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - it is a moment


async def test_a_program_that_writes_what_is_too_deep_is_not_read(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.write_text('{"jsonrpc": "2.0", "method": "x", "params": ' + '{"x": ' * 70 + "1" + "}" * 71 + "\n")
    with pytest.raises(Unreachable, match="nested more than 64 deep"):
        await begun(started=["/bin/sh", "-c", f"cat {deep}; sleep 600"])


async def test_the_sdk_can_reach_the_servers_endpoint_and_no_other_place(wrapped: Wrapped) -> None:
    connector = parse(connector_text())
    line = Line("World")
    async with Egress() as egress:
        attach = attaching(connector.credentials[0], Secret({"secret": SECRET}))
        client, url = over_http(
            line, egress, connector, wrapped.url, attach=attach, private=LOOPBACK, limits=DEFAULT_LIMITS
        )
        async with client:
            for other in (url + "/more", url.replace("/mcp", "/"), url + "?x=1"):
                assert (await client.post(other, json={})).status_code == 502
    assert isinstance(line.problem, Unreachable)
    assert wrapped.requests == []


async def test_nothing_is_dialled_that_is_not_public_unless_the_operator_says_so(wrapped: Wrapped) -> None:
    with pytest.raises(Unreachable, match="not public"):
        await begun(wrapped.url, private=())
    assert wrapped.requests == []


def asking_and_breaking_off(answered: int) -> Any:
    """A server that asks in mid-call, answers the answer by this status, and breaks off."""
    question = {"message": "Which?", "requestedSchema": FORM}
    asks = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": question}
    stream = f"id: 1\nretry: 200\nevent: message\ndata: {json.dumps(asks)}\n\n".encode()
    info = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
    echo = definition("ask").raw

    def answer(request: Received) -> Canned:
        message = json.loads(request.body) if request.method == "POST" else {}
        says: dict[str, Any] = {"initialize": info, "tools/list": {"tools": [dict(echo)]}}
        method = message.get("method", "")
        if method in says:
            return Canned({"jsonrpc": "2.0", "id": message["id"], "result": says[method]})
        if method == "tools/call":
            return Canned(stream, headers={"Content-Type": "text/event-stream"})
        if request.method == "GET":
            return Canned(b"", 405)
        if method == "server/discover":
            error = {"code": -32601, "message": "Method not found"}
            return Canned({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return Canned(b"", 202 if method else answered)

    return answer


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
async def test_a_call_that_has_arrived_did_whatever_becomes_of_the_messages_after_it(status: int) -> None:
    async def relay(_ask: Ask) -> Answer:
        return Answer("accept", {"colour": "red"})

    with CannedServer() as server:
        server.answer = asking_and_breaking_off(status)
        with pytest.raises(Unreachable) as failed:
            await call(f"{server.url}/mcp", "ask", {"text": "x"}, relay=relay)
    assert failed.value.maybe_sent
    assert any(b'"tools/call"' in request.body for request in server.requests)
    assert any(b'"accept"' in request.body for request in server.requests)


class OnceOnly:
    """An egress that the first message leaves by, and no other."""

    def __init__(self) -> None:
        self.sent = 0

    async def stream(self, *_: Any, **__: Any) -> Any:
        self.sent += 1
        if self.sent > 1:
            raise Unreachable("It could not be reached. Nothing was sent.", maybe_sent=False)
        return self

    status, bytes_in = 200, 0
    headers: Mapping[str, str] = {}

    def secrets(self) -> tuple[str, ...]:
        return ()

    async def whole(self) -> bytes:
        return b""


async def test_that_a_later_message_did_not_leave_says_nothing_of_the_call() -> None:
    line, connector = Line("World"), parse(connector_text())
    egress: Any = OnceOnly()
    client, url = over_http(
        line, egress, connector, "https://x.example/mcp", attach=lambda *_: (), private=(), limits=SHORT
    )
    line.sent = True
    async with client:
        for message in ({"method": "tools/call"}, {"result": {"action": "accept"}}):
            await client.post(url, json=message)
    assert line.problem is not None
    told = line.unsent(line.problem)
    assert isinstance(told, Unreachable)
    assert told.maybe_sent
    assert "Nothing" not in str(told)


async def test_that_the_call_itself_did_not_leave_is_told() -> None:
    line, connector = Line("World"), parse(connector_text())
    egress: Any = OnceOnly()
    client, url = over_http(
        line, egress, connector, "https://x.example/mcp", attach=lambda *_: (), private=(), limits=SHORT
    )
    async with client:
        await client.post(url, json={"method": "tools/list"})
        line.sent = True
        await client.post(url, json={"method": "tools/call"})
    assert line.problem is not None
    told = line.unsent(line.problem)
    assert isinstance(told, Unreachable)
    assert not told.maybe_sent
