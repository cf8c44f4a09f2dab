"""A credential is nowhere but in the request: not in what comes back, what is logged, traced, stored or exported."""

import asyncio
import base64
import contextlib
import html
import json
import logging
import os
import pprint
import socketserver
import sqlite3
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

import anyio
import pytest
import rich.traceback
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from connectors.auth import attaching
from connectors.egress import Egress, Limits, Reply
from connectors.request import prepare
from server.app import running
from server.approval import Decision
from server.audit import FORMATS, export_lines
from server.call import Parts, call
from server.connections import open_credential, replan, rotate, store, verify
from server.credential import resolved
from server.errors import CallRefused
from tests import postgres
from tests.agents import ERAS, Nobody, Person, answering, connected, execute, reopened, with_connector
from tests.installed import SECRET, Place
from tests.leaks import WINDOW, leak, leaking_files
from tests.places import KV_PATH, KV_TOKEN, OP_ITEM, OP_TOKEN, SOURCES, Places
from tests.upstream import Answer, Received, Upstream
from vault import CannotResolve, Secret, to_reference

pytestmark = pytest.mark.anyio

PLAIN = SECRET.removeprefix("rk_test_canary_")
AWKWARD = "p&9<\"Zt/\\+%=;'~Vx4{w}Qe|7^K#h5"  # every character that some escape treats in its own way
TESTS = Path(__file__).parents[1]
CANARIES = {"plain": PLAIN, "awkward": AWKWARD}

MIRROR = """
id: mirror
title: Mirror
base_url: https://mirror.example
credentials:
  token: {label: token, help: Any., scheme: bearer}
  key: {label: key, help: Any., scheme: header, name: X-Api-Key}
  parameter: {label: parameter, help: Any., scheme: query, name: api_key}
  pair:
    label: name and password
    help: Any.
    scheme: basic
    fields:
      user: {label: name, secret: false}
      password: {label: password}
verify:
  call: GET /whoami
  account: name
errors:
  message: error.message
  code: error.code
  request_id_header: Request-Id
tools:
  look:
    title: Look
    description: Look at anything.
    call: GET /look
    effect: read
    arguments:
      what: {type: string, description: What.}
  tell:
    title: Tell
    description: Tell something.
    call: POST /tell
    effect: write
    ask: Tell {what}
    grant: [what]
    arguments:
      what: {type: string, required: true, description: What.}
"""


def shifted(offset: int, encode: Callable[[bytes], bytes]) -> Callable[[str], str]:
    return lambda secret: encode(b"\xfb\xef\xbe"[:offset] + secret.encode() + b":\xff").decode()


ECHOES: dict[str, Callable[[str], str]] = {
    "raw": str,
    "in a sentence": lambda secret: f"Invalid key provided: {secret}. See the dashboard.",
    **{f"base64 at offset {offset}": shifted(offset, base64.b64encode) for offset in range(3)},
    **{f"base64url at offset {offset}": shifted(offset, base64.urlsafe_b64encode) for offset in range(3)},
    "url": lambda secret: quote(secret, safe=""),
    "url, form": quote_plus,
    "url, every character": lambda secret: "".join(f"%{ord(char):02x}" for char in secret),
    "url, twice": lambda secret: quote("".join(f"%{ord(char):02X}" for char in secret)),
    "json": lambda secret: json.dumps(secret)[1:-1],
    "json, every character": lambda secret: "".join(f"\\u{ord(char):04x}" for char in secret),
    "html": html.escape,
    "html, decimal": lambda secret: "".join(f"&#{ord(char)};" for char in secret),
    "html, hexadecimal": lambda secret: "".join(f"&#x{ord(char):X};" for char in secret),
    "hex": lambda secret: secret.encode().hex(),
    "HEX": lambda secret: secret.encode().hex().upper(),
    "reversed": lambda secret: secret[::-1],
    "url in html in json": lambda secret: json.dumps(html.escape(quote(secret, safe=""))),
}

SHAPES: dict[str, Callable[[str], Answer]] = {
    "a value": lambda echo: Answer({"data": [{"note": echo}]}),
    "a key": lambda echo: Answer({"data": {echo: {echo: 1}}}),
    "json in json in json": lambda echo: Answer({"data": json.dumps({"inner": json.dumps({"note": echo})})}),
    "text": lambda echo: Answer(echo.encode(), headers={"Content-Type": "text/plain"}),
    "a content type": lambda echo: Answer(b"text", headers={"Content-Type": f"text/x; y={echo}"}),
    "half of json": lambda echo: Answer(json.dumps({"note": echo}).encode()[:-1]),
    "headers": lambda echo: Answer({"x": 1}, headers={"Request-Id": echo, "Content-Type": f"text/x; y={echo}"}),
    "an error": lambda echo: Answer({"error": {"message": echo, "code": echo}}, 400, {"Request-Id": echo}),
    "a failure": lambda echo: Answer({"error": {"message": f"{echo} {echo}"}}, 500, {"Request-Id": echo}),
    "a rate limit": lambda echo: Answer({"error": {"message": echo}}, 429, {"Retry-After": echo}),
    "a rejection": lambda echo: Answer({"error": {"message": echo, "code": echo}}, 401),
    "a redirect": lambda echo: Answer({"to": echo}, 302, {"Location": f"https://elsewhere.example/{echo}"}),
}


# -- the finder


@pytest.mark.parametrize("canary", CANARIES.values(), ids=CANARIES)
@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_the_finder_finds_every_echo_and_every_part_of_one(echo: Callable[[str], str], canary: str) -> None:
    text = echo(canary)
    assert leak(f'{{"a": "{text}"}}', canary)
    assert leak(f"...{text}...".encode(), canary)
    assert leak(text, "another secret, which is not in it", canary)
    many = "".join(str(number) for number in range(1000, 1100))
    assert all(leak("." * before + canary[:WINDOW], many, canary) for before in range(5))
    assert leak(text, many) is None
    assert leak(json.dumps({"inner": json.dumps({text: 1})}), canary)
    assert leak(json.dumps(echo("[removed]" + canary[3:-3])), canary)
    assert leak(echo("nothing of it"), canary) is None


# -- what watches


class Ears(logging.Handler):
    """Every record of every logger, as text: message, arguments, attributes, and tracebacks with their locals."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.heard: list[str] = []
        self.names: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.names.add(record.name)
        self.heard.append(f"{record.getMessage()} {vars(record)!r}")
        if record.exc_info and record.exc_info[1]:
            self.heard.append("".join(rendered(record.exc_info[1])))

    @property
    def text(self) -> str:
        return "\n".join(self.heard)


@pytest.fixture
def ears() -> Iterator[Ears]:
    """Every logger at DEBUG for one test: those there are and those to come."""
    handler = Ears()
    root = logging.getLogger()
    known = [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    before = [(each, each.level, each.disabled) for each in known]
    for each in known:
        each.disabled = False
        each.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    for each, level, disabled in before:
        each.setLevel(level)
        each.disabled = disabled


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)  # once for the process: OpenTelemetry knows no way back
    yield kept
    kept.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], str]:
    """The spans of this test so far, as an exporter would write them."""
    exporter.clear()
    return lambda: "\n".join(span.to_json() for span in exporter.get_finished_spans())


def rendered(error: BaseException) -> Iterator[str]:
    """An exception with its chain as three tools show it, each with the locals of the frames; not those of tests."""
    trace_of = error.__traceback__
    while trace_of and Path(trace_of.tb_frame.f_code.co_filename).is_relative_to(TESTS):
        trace_of = trace_of.tb_next
    yield from traceback.TracebackException(type(error), error, trace_of, capture_locals=True).format()
    taken = rich.traceback.Traceback.extract(type(error), error, trace_of, show_locals=True, locals_max_string=None)
    for stack in taken.stacks:
        yield stack.exc_value
        yield "\n".join(f"{name} = {node}" for frame in stack.frames for name, node in (frame.locals or {}).items())
    yield from frames(error, trace_of)


def frames(error: BaseException, trace_of: TracebackType | None) -> Iterator[str]:
    """Every local of every frame of the whole chain, suppressed causes included, and what is inside of each."""
    seen: list[object] = []

    def fresh(value: object) -> bool:
        new = not any(value is each for each in seen)
        seen.append(value)
        return new

    todo = [(error, trace_of)]
    while todo:
        current, trace_of = todo.pop()
        yield f"{current!r} {current} {vars(current)!r}"
        others = [current.__cause__, current.__context__]
        others += current.exceptions if isinstance(current, BaseExceptionGroup) else ()
        todo += [(other, other.__traceback__) for other in others if other is not None and fresh(other)]
        for frame, line in traceback.walk_tb(trace_of):
            for name, value in frame.f_locals.items():
                if fresh(value):
                    yield f"{frame.f_code.co_qualname}:{line} {name} = {shown(value)}"


def shown(value: object) -> str:
    """An object as anybody prints one."""
    inside = vars(value) if hasattr(value, "__dict__") and not isinstance(value, type) else None
    ways = {repr(value), str(value), f"{value}", pprint.pformat(value, depth=3), repr(inside)}
    return " ".join(ways)


def stored(place: Place) -> Iterator[str]:
    """All that the installation tells people: the log in every format, approvals, prompts, outcomes, grants."""
    for name in FORMATS:
        yield "".join(export_lines(place.database, place.org, format=name))
    approvals = place.installation.approvals
    for record in approvals.list(place.org):
        yield f"{record!r} {approvals.prompt(record)} {approvals.details(record)} {approvals.outcome(record)}"
    yield repr(approvals.grants(place.org))


def leaks(texts: Iterable[str], *secrets: str) -> list[str]:
    """What large texts show of the secrets: as it is, or behind one layer of escapes."""
    looked = list(texts)
    assert looked, "nothing was looked at"
    return [f"{found} in {text[:2000]}" for text in looked if (found := leak(text, *secrets, layers=2))]


def assert_nowhere(secret: str, place: Place, *more: str, **seen: str) -> None:
    """The secret, and what more there is of the kind, is in nothing of what was seen, told or stored."""
    for name, text in seen.items():
        assert text, f"nothing was looked at: {name} is empty"
        assert not leaks([text], secret, *more), name
    assert not leaks(stored(place), secret, *more)
    assert leaking_files(place.home, secret, *more) == []


# -- places and parts


@pytest.fixture
def mirror(place: Place) -> Place:
    """The place with the connector `mirror`, unconnected, and leave to call all of it."""
    with_connector(place, "mirror", MIRROR)
    place.rule(who="everyone", tools=["*"], effects=["read"], then="allow")
    return place


def connect(place: Place, url: str, secret: str | Secret, *, kind: str = "token", name: str = "mirror") -> None:
    from server.connections import plan, store

    planned = plan(
        place.installation.catalogue,
        [],
        connector="mirror",
        name=name,
        kind=kind,
        base_url=url,
        private=("127.0.0.1/32",),
    )
    fields: Any = secret
    if isinstance(secret, str):
        fields = {"user": "agnes", "password": secret} if kind == "pair" else {"secret": secret}
    place.database.write_now(
        lambda rows: store(
            rows,
            place.installation.vault,
            place.org,
            planned,
            fields=fields,
            account="acct",
            verified=True,
            by="alice",
        )
    )


class Hasty(Egress):
    """The door out, with little patience for an answer that does not come."""

    patience_s = 30.0

    async def send(self, prepared: Any, **more: Any) -> Reply:
        return await super().send(prepared, **more, limits=Limits(connect_s=self.patience_s, total_s=self.patience_s))


@asynccontextmanager
async def hasty(place: Place, way: str = "", **changed: Any) -> AsyncIterator[Parts]:
    async with Hasty() as egress:
        if way == "timeout":
            egress.patience_s = 1.0
        yield replace(place.installation.parts(egress), **changed)


async def heard(parts: Parts, place: Place, name: str, arguments: dict[str, Any], person: Any = None) -> str:
    """All that comes out of a call: what the client hears, or what is raised, with everything it holds."""
    try:
        outcome = await call(parts, place.caller(), name, arguments, person or Nobody())
    except (CallRefused, MCPError) as error:
        assert not leaks(rendered(error), PLAIN)
        assert not leaks(rendered(error), AWKWARD)
        return f"{error!r} {vars(error)}"
    return f"{outcome.text} {json.dumps(outcome.structured)}"


# -- upstreams that echo


@pytest.mark.parametrize("canary", CANARIES.values(), ids=CANARIES)
async def test_an_upstream_that_echoes_the_credential_tells_nobody(mirror: Place, canary: str, ears: Ears) -> None:
    with Upstream() as upstream:
        connect(mirror, upstream.url, canary)
        async with running(mirror.installation) as parts:
            for echo, disguise in ECHOES.items():
                for shape, answer in SHAPES.items():
                    upstream.answer = partial(_always, answer(disguise(canary)))
                    said = await heard(parts, mirror, "mirror_look", {"what": "it"})
                    assert leak(said, canary) is None, f"{echo} in {shape}: {leak(said, canary)} in {said}"
        assert len(upstream.requests) == len(ECHOES) * len(SHAPES)
        assert {request.headers["authorization"] for request in upstream.requests} == {f"Bearer {canary}"}
    assert_nowhere(canary, mirror, logs=ears.text)


def _always(answer: Answer, _: Received) -> Answer:
    return answer


@pytest.mark.parametrize("kind", ["token", "key", "parameter", "pair"])
async def test_a_mirror_of_the_whole_request_shows_no_scheme_of_authentication(
    mirror: Place, kind: str, ears: Ears, spans: Callable[[], str]
) -> None:
    def reflect(request: Received) -> Answer:
        whole = {"headers": request.headers, "target": request.target, "body": request.body.decode()}
        return Answer({"seen": whole, "url": f"http://{request.headers['host']}{request.target}", "text": str(whole)})

    with Upstream() as upstream:
        upstream.answer = reflect
        connect(mirror, upstream.url, PLAIN, kind=kind)
        for transport in ("memory", "http"):
            answer, asked = answering("accept", {"decision": "approve"})
            async with connected(mirror, transport, "auto", answer) as client:
                results = [
                    await client.call_tool("mirror_look", {"what": "it"}),
                    await client.call_tool("mirror_tell", {"what": f"it {transport}"}),
                ]
            assert not any(result.is_error for result in results)
            said = "\n".join(result.model_dump_json() for result in [*results, *asked])
            assert "[removed by Keyleash]" in said
            assert_nowhere(PLAIN, mirror, said=said, logs=ears.text, spans=spans())
        sent = "\n".join(f"{request.target} {request.headers}" for request in upstream.requests)
    assert leak(sent, PLAIN), "the credential was sent"


# -- ways in which a call can go


WAYS: dict[str, Callable[[threading.Event], Answer]] = {
    "success": lambda _: Answer({"you": PLAIN}),
    "error": lambda _: Answer({"error": {"message": f"bad key {PLAIN}"}}, 500, {"Request-Id": PLAIN, "X-Key": PLAIN}),
    "hung up": lambda _: Answer(hang_up=True),
    "timeout": lambda gate: Answer({"you": PLAIN}, wait=gate),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tool", ["mirror_look", "mirror_tell"])
async def test_however_a_call_ends_the_credential_is_in_no_log_and_no_traceback(
    mirror: Place, ears: Ears, way: str, tool: str
) -> None:
    asyncio.get_running_loop().set_debug(True)
    gate = threading.Event()
    with Upstream() as upstream:
        upstream.answer = lambda _: WAYS[way](gate)
        connect(mirror, upstream.url, PLAIN)
        async with hasty(mirror, way) as parts:
            said = await heard(parts, mirror, tool, {"what": "it"}, Person(Decision.APPROVE))
        gate.set()
        assert upstream.requests
    assert_nowhere(PLAIN, mirror, said=said, logs=ears.text)
    assert "asyncio" in ears.names


async def test_a_call_that_does_not_fit_its_tool_opens_no_credential(
    mirror: Place, ears: Ears, spans: Callable[[], str], upstream: Upstream
) -> None:
    connect(mirror, upstream.url, PLAIN)
    for era in ERAS:
        async with connected(mirror, "http", era) as client:
            results = [
                await client.call_tool("mirror_look", {"what": 5}),
                await client.call_tool("mirror_look", {"who": "it"}),
                await client.call_tool("mirror_tell", {"what": "it"}),
            ]
            with pytest.raises(MCPError) as unknown:
                await client.call_tool("mirror_lok", {})
        assert all(result.is_error for result in results)
        said = "\n".join(result.model_dump_json() for result in results) + repr(unknown.value)
        assert_nowhere(PLAIN, mirror, said=said, logs=ears.text, spans=spans())
    assert upstream.requests == []


@pytest.mark.parametrize("era", ERAS)
async def test_a_cancelled_call_leaves_no_trace_of_the_credential(
    mirror: Place, ears: Ears, spans: Callable[[], str], era: str
) -> None:
    gate = threading.Event()
    with Upstream() as upstream:
        upstream.answer = lambda _: Answer({"you": PLAIN}, wait=gate)
        connect(mirror, upstream.url, PLAIN)
        async with connected(mirror, "http", era) as client:
            with anyio.CancelScope() as leaving:
                async with anyio.create_task_group() as group:
                    group.start_soon(client.call_tool, "mirror_look", {"what": "it"})
                    while not upstream.requests:
                        await anyio.lowlevel.checkpoint()
                    leaving.cancel()
            gate.set()
            with anyio.fail_after(20):
                while not mirror.events("call.outcome"):
                    await anyio.lowlevel.checkpoint()
        assert leaving.cancelled_caught
    assert_nowhere(PLAIN, mirror, logs=ears.text, spans=spans())


async def test_a_cancelled_request_carries_no_frame_that_held_the_credential(mirror: Place) -> None:
    gate = threading.Event()
    caught: list[BaseException] = []
    with Upstream() as upstream:
        upstream.answer = lambda _: Answer(wait=gate)
        connect(mirror, upstream.url, PLAIN)
        async with running(mirror.installation) as parts:

            async def send() -> None:
                try:
                    await send_look(mirror, parts.egress)
                except BaseException as error:
                    caught.append(error)
                    raise

            async with anyio.create_task_group() as group:
                group.start_soon(send)
                while not upstream.requests:
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        gate.set()
    assert len(caught) == 1
    assert not leaks(rendered(caught[0]), PLAIN)


async def send_look(place: Place, egress: Egress, *, kind: str | None = None) -> Reply:
    """What `call` does between attempt and outcome, so that what egress raises is seen before `call` deals with it."""
    workspace = place.installation.workspaces.of(place.caller())
    bound = workspace.offer.bind("mirror_look", {"what": "it"})
    connection = workspace.connections["mirror"]
    secret = place.database.snapshot(lambda rows: open_credential(rows, place.installation.vault, connection))
    return await egress.send(
        prepare(bound, base_url=connection.base_url),
        attach=attaching(bound.connector.kind(kind or connection.kind), secret),
        private=connection.networks,
    )


GARBLED: dict[str, Callable[[bytes], bytes]] = {
    "no answer": lambda _: b"",
    "a garbled status line": lambda given: b"HTTP/9 " + given + b"\r\n\r\n",
    "a reason": lambda given: b"HTTP/1.1 500 " + given + b"\r\nContent-Length: 2\r\n\r\n{}",
    "a garbled header": lambda given: b"HTTP/1.1 200 OK\r\n" + given + b"\r\n\r\n",
    "a length that is none": lambda given: b"HTTP/1.1 200 OK\r\nContent-Length: " + given + b"\r\n\r\n",
    "a broken chunk": lambda given: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + given + b"\r\nx",
    "half a body": lambda given: b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + given,
    "an encoding": lambda given: b"HTTP/1.1 200 OK\r\nContent-Encoding: " + given + b"\r\nContent-Length: 1\r\n\r\nx",
    "a broken deflate": lambda given: (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(given) + given
    ),
    "another protocol": lambda given: b"HTTP/1.1 101 " + given + b"\r\nUpgrade: " + given + b"\r\n\r\n",
}


@pytest.mark.parametrize("garbled", GARBLED.values(), ids=GARBLED)
async def test_an_answer_that_is_no_http_is_not_quoted_by_any_library(
    mirror: Place, ears: Ears, garbled: Callable[[bytes], bytes]
) -> None:
    """The parser's own exceptions quote what they could not read, and that may be the request."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            given = b""
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"authorization:"):
                    given = line.split(b" ", 1)[1].strip()
            self.wfile.write(garbled(given))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        connect(mirror, f"http://127.0.0.1:{server.server_address[1]}", PLAIN)
        async with hasty(mirror) as parts:
            with pytest.raises(Exception) as failed:
                raise_unless_failed(await send_look(mirror, parts.egress))
            said = await heard(parts, mirror, "mirror_look", {"what": "it"})
        server.shutdown()
    assert not leaks(rendered(failed.value), PLAIN)
    assert_nowhere(PLAIN, mirror, said=said, logs=ears.text)


def raise_unless_failed(reply: Reply) -> None:
    raise RuntimeError(f"answered after all: {reply}")


async def test_what_attaching_raises_carries_no_frame_that_held_the_credential(mirror: Place) -> None:
    """A credential of another shape than the definition wants, and a definition that has no such kind any more."""
    with Upstream() as upstream:
        connect(mirror, upstream.url, PLAIN)
        connect(mirror, upstream.url, PLAIN + "\u20ac", name="unsendable")
        async with running(mirror.installation) as parts:
            with pytest.raises(Exception) as failed:
                await send_look(mirror, parts.egress, kind="pair")
            said = await heard(parts, mirror, "unsendable_look", {"what": "it"})
        assert upstream.requests == []
    assert not leaks(rendered(failed.value), PLAIN)
    assert not leaks([said], PLAIN)
    assert "outside ASCII" in said


async def test_verifying_a_credential_that_does_not_work_tells_nobody_what_it_was(mirror: Place, ears: Ears) -> None:
    from server.connections import plan

    planned = plan(
        mirror.installation.catalogue, [], connector="mirror", name="new", kind=None, base_url=None, private=()
    )
    said: list[str] = []
    with Upstream() as upstream:
        for answer in (
            Answer({"error": {"message": PLAIN}}, 401),
            Answer({"error": {"message": PLAIN}}, 500),
            Answer(hang_up=True),
            Answer({"name": PLAIN}),
        ):
            upstream.answer = lambda _, answer=answer: answer
            pointed = replace(planned, base_url=upstream.url, private=("127.0.0.1/32",))
            async with Egress() as egress:
                try:
                    account = await verify(egress, pointed, planned.connector, Secret({"secret": PLAIN}))
                except Exception as error:
                    said += rendered(error)
                else:
                    said.append(str(account))
        assert upstream.requests
    assert_nowhere(PLAIN, mirror, said="\n".join(said), logs=ears.text)
    assert said[-1] == "[removed by Keyleash]"


async def test_a_failure_inside_keyleash_is_named_and_not_quoted(mirror: Place, ears: Ears) -> None:
    class Broken(Egress):
        async def send(self, prepared: Any, *, attach: Any, **_: Any) -> Reply:
            headers: dict[str, str] = {}
            attach(headers, [])
            raise RuntimeError(f"cannot send {headers}")

    connect(mirror, "http://127.0.0.1:9", PLAIN)
    async with Broken() as egress:
        said = await heard(mirror.installation.parts(egress), mirror, "mirror_look", {"what": "it"})
    assert "RuntimeError" in ears.text
    assert_nowhere(PLAIN, mirror, said=said, logs=ears.text)
    assert mirror.events("call.outcome")[0]["outcome"] == "unknown"


@pytest.mark.sqlite_only("it looks at what SQLite's driver raises")
async def test_a_credential_that_cannot_be_written_is_in_no_traceback(mirror: Place) -> None:
    connection = mirror.installation.workspaces.of(mirror.caller()).connections["stripe"]
    connector = mirror.installation.catalogue.connectors["stripe"]
    again = replan(connection, connector, kind=None, base_url=None, private=None)
    planned = replace(again, name="another")
    vault = mirror.installation.vault
    more: dict[str, Any] = {"account": None, "verified": False, "by": "alice"}
    for change in ("INSERT", "UPDATE"):
        execute(
            mirror, f"CREATE TRIGGER no_{change} BEFORE {change} ON connection BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with contextlib.closing(sqlite3.connect(mirror.installation.settings.database)) as rows:
        with pytest.raises(sqlite3.Error) as stored:
            store(rows, vault, mirror.org, planned, fields={"secret": PLAIN}, **more)
        with pytest.raises(sqlite3.Error) as rotated:
            rotate(rows, vault, connection, again, fields={"secret": PLAIN}, **more)
    for failed in (stored.value, rotated.value):
        said = list(rendered(failed))
        assert "server/connections.py" in "".join(said)
        assert not leaks(said, PLAIN)


# -- held calls


@pytest.mark.parametrize("era", ERAS)
async def test_an_approvals_record_holds_no_credential(
    mirror: Place, ears: Ears, spans: Callable[[], str], era: str
) -> None:
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"you": request.headers["authorization"]})
        connect(mirror, upstream.url, PLAIN)
        answer, asked = answering("accept", {"decision": "approve_for_one_hour"})
        async with connected(mirror, "http", era, answer) as client:
            for _ in range(3):
                result = await client.call_tool("mirror_tell", {"what": "it"})
        assert len(upstream.requests) == 3
    record = mirror.installation.approvals.list(mirror.org)[0]
    outcome = mirror.installation.approvals.outcome(record)
    assert outcome is not None
    assert "[removed by Keyleash]" in outcome["text"]
    said = result.model_dump_json() + "".join(each.model_dump_json() for each in asked)
    assert_nowhere(PLAIN, mirror, said=said, logs=ears.text, spans=spans())


# -- tracing


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", ["memory", "http"])
async def test_spans_name_the_tool_and_neither_its_arguments_nor_a_secret(
    mirror: Place, spans: Callable[[], str], era: str, transport: str
) -> None:
    with Upstream() as upstream:
        upstream.answer = lambda _: Answer({"error": {"message": PLAIN}}, 500)
        connect(mirror, upstream.url, PLAIN)
        async with connected(mirror, transport, era) as client:
            await client.call_tool("mirror_look", {"what": "an argument of the agent"})
            await client.call_tool("mirror_tell", {"what": "an argument of the agent"})
            await client.call_tool("mirror_look", {"what": ["an argument of the agent"]})
            with pytest.raises(MCPError):
                await client.call_tool("an_argument", {"what": "an argument of the agent"})
    seen = spans()
    assert "mirror_look" in seen
    assert "an argument of the agent" not in seen
    assert not leaks([seen], PLAIN)
    assert not leaks([seen], mirror.tokens["reconciler"][-43:])


# -- objects


async def test_no_object_on_the_path_shows_the_credential(mirror: Place) -> None:
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"you": request.headers["authorization"]})
        connect(mirror, upstream.url, PLAIN)
        async with running(mirror.installation) as parts:
            caller = mirror.caller()
            workspace = parts.workspaces.of(caller)
            connection = workspace.connections["mirror"]
            bound = workspace.offer.bind("mirror_look", {"what": "it"})
            prepared = prepare(bound, base_url=connection.base_url)
            secret = mirror.database.snapshot(lambda rows: open_credential(rows, parts.vault, connection))
            reply = await send_look(mirror, parts.egress)
            outcome = await call(parts, caller, "mirror_look", {"what": "it"}, Nobody())
            objects = {
                "secret": secret,
                "given": Secret({"secret": PLAIN}),
                "attach": attaching(bound.connector.kind(connection.kind), secret),
                "caller": caller,
                "connection": connection,
                "workspace": workspace,
                "call": bound,
                "prepared": prepared,
                "reply": reply,
                "outcome": outcome,
                "parts": parts,
                "egress": parts.egress,
                "sessions": list(vars(parts.egress).values()),
                "vault": parts.vault,
                "installation": mirror.installation,
                "nested": {"deeply": [secret, parts.vault, reply]},
            }
            for name, value in objects.items():
                assert not leaks([shown(value)], PLAIN), name
        assert leak(reply.body, PLAIN), "the reply did hold it, unshown"
        assert secret.reveal() == PLAIN
    for field in ("prepared", "connection", "caller", "outcome"):
        assert not leaks([repr(asdict(objects[field]))], PLAIN)  # type: ignore[call-overload]


async def test_the_secret_is_wiped_when_its_call_ends(mirror: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    class Noting(Egress):
        async def send(self, prepared: Any, *, attach: Any, **more: Any) -> Reply:
            held = [cell.cell_contents for cell in attach.__closure__]  # one function in another
            for inner in held:
                held.extend(cell.cell_contents for cell in getattr(inner, "__closure__", None) or ())
            opened.extend(held)
            return await super().send(prepared, attach=attach, **more)

    with Upstream() as upstream:
        connect(mirror, upstream.url, PLAIN)
        async with Noting() as egress:
            await call(mirror.installation.parts(egress), mirror.caller(), "mirror_look", {}, Nobody())
        assert upstream.requests[0].headers["authorization"] == f"Bearer {PLAIN}"
    (secret,) = {id(each): each for each in opened if hasattr(each, "reveal")}.values()
    with pytest.raises(Exception, match="wiped"):
        secret.reveal()


# -- agent tokens


@pytest.mark.parametrize("era", ERAS)
async def test_an_agents_token_is_stored_logged_and_traced_nowhere(
    mirror: Place, ears: Ears, spans: Callable[[], str], era: str
) -> None:
    token = mirror.tokens["reconciler"][-43:]
    answer, asked = answering("accept", {"decision": "approve"})
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"headers": request.headers})
        connect(mirror, upstream.url, PLAIN)
        async with connected(mirror, "http", era, answer) as client:
            await client.list_tools()
            results = [
                await client.call_tool("mirror_look", {"what": "it"}),
                await client.call_tool("mirror_tell", {"what": "it"}),
                await client.call_tool("mirror_look", {"wrong": "it"}),
            ]
        assert len(upstream.requests) == 2
        sent = "".join(f"{request.target} {request.headers} {request.body!r}" for request in upstream.requests)
    said = "\n".join(result.model_dump_json() for result in [*results, *asked])
    objects = shown(mirror.caller()) + shown(mirror.installation) + shown(mirror.installation.directory)
    assert_nowhere(token, mirror, said=said, logs=ears.text, spans=spans(), sent=sent, objects=objects)


# -- a process of its own


async def test_a_server_that_logs_all_it_can_logs_no_credential(mirror: Place) -> None:
    """Over stdio, at the loudest setting: what the client gets, and what stands on standard error."""
    errors = mirror.home.parent / "stderr"
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"error": {"message": request.headers["authorization"]}}, 500)
        connect(mirror, upstream.url, PLAIN)
        env = {**os.environ, "KEYLEASH_HOME": str(mirror.home), "KEYLEASH_HOLD_SECONDS": "0", "KEYLEASH_LOG": "debug"}
        env |= postgres.environment(mirror.home)
        code = "import logging; logging.getLogger().setLevel(1); from server.cli import main; main()"
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-X", "dev", "-W", "ignore", "-c", code, "serve", "--agent", "reconciler"],
            env=env,
        )
        with errors.open("w") as log:
            async with Client(stdio_client(parameters, errlog=log)) as client:
                results = [await client.call_tool("mirror_look", {"what": "it"})]
        assert upstream.requests
    assert results[0].is_error
    reopened(mirror)
    assert_nowhere(PLAIN, mirror, said=results[0].model_dump_json())
    assert not leaks([errors.read_text()], PLAIN)


# -- secrets that stay elsewhere


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_secret_that_stays_elsewhere_is_nowhere_else_however_its_call_ends(
    mirror: Place, places: Places, ears: Ears, source: str, way: str
) -> None:
    gate = threading.Event()
    with Upstream() as upstream:
        upstream.answer = lambda _: WAYS[way](gate)
        connect(mirror, upstream.url, to_reference(places.keep(source, PLAIN)))
        async with hasty(mirror, way, references=places.resolver(home=mirror.home)) as parts:
            said = await heard(parts, mirror, "mirror_look", {"what": "it"})
            said += await heard(parts, mirror, "mirror_tell", {"what": "it"}, Person(Decision.APPROVE))
        gate.set()
        assert {request.headers["authorization"] for request in upstream.requests} == {f"Bearer {PLAIN}"}
    for secret in (PLAIN, OP_TOKEN, KV_TOKEN):
        assert_nowhere(secret, mirror, said=said, logs=ears.text)
    assert ("[removed by Keyleash]" in said) == (way in ("success", "error"))


@pytest.mark.parametrize("kind", ["key", "parameter", "pair"])
async def test_what_a_reference_leads_to_is_scrubbed_in_every_scheme_of_authentication(
    mirror: Place, places: Places, ears: Ears, kind: str
) -> None:
    def reflect(request: Received) -> Answer:
        return Answer({"seen": {"headers": request.headers, "target": request.target}})

    with Upstream() as upstream:
        upstream.answer = reflect
        value = f"agnes\n{AWKWARD}\n" if kind == "pair" else f"{AWKWARD}\n"
        connect(mirror, upstream.url, to_reference(places.keep("file", value)), kind=kind)
        async with hasty(mirror, references=places.resolver(home=mirror.home)) as parts:
            said = await heard(parts, mirror, "mirror_look", {"what": "it"})
        sent = "".join(f"{request.target} {request.headers}" for request in upstream.requests)
    assert leak(sent, AWKWARD), "the credential was sent"
    assert "[removed by Keyleash]" in said
    assert_nowhere(AWKWARD, mirror, said=said, logs=ears.text)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("value", [f"{PLAIN}\nand another line", f"keyleash-root-key:v1: {PLAIN}", f"{PLAIN}\u20ac"])
async def test_a_secret_that_was_had_and_refused_is_nowhere(
    mirror: Place, places: Places, ears: Ears, source: str, value: str, upstream: Upstream
) -> None:
    connect(mirror, upstream.url, to_reference(places.keep(source, value)))
    async with hasty(mirror, references=places.resolver(home=mirror.home)) as parts:
        said = await heard(parts, mirror, "mirror_look", {"what": "it"})
        sealed = mirror.database.snapshot(
            lambda rows: open_credential(rows, parts.vault, parts.workspaces.of(mirror.caller()).connections["mirror"])
        )
        kind = parts.workspaces.of(mirror.caller()).offer.tools[0].connector.credentials[0]
        with pytest.raises(CannotResolve) as refused:
            resolved(parts.references, kind, sealed)
    assert upstream.requests == []
    for secret in (PLAIN, OP_TOKEN, KV_TOKEN):
        assert not leaks(rendered(refused.value), secret)
        assert_nowhere(secret, mirror, said=said, logs=ears.text)


async def test_a_place_that_says_the_secret_while_it_fails_is_not_repeated(
    mirror: Place, places: Places, ears: Ears, upstream: Upstream
) -> None:
    """On either stream, in an error; and a reference that carries it itself, as a command's argument may."""
    places.kv.answer = lambda request: Answer({"errors": [PLAIN, request.headers["x-vault-token"]]}, 500)
    (places.programs / "op").write_text(f"#!/bin/sh\necho {PLAIN}; echo {PLAIN} $OP_SERVICE_ACCOUNT_TOKEN >&2; exit 1")
    references = {
        "cmd": f"cmd:sh -c 'echo {PLAIN}; echo {PLAIN} >&2; exit 3'",
        "cmd_gone": f"cmd:/nowhere/{PLAIN}",
        "file": f"file:/nowhere/{PLAIN}",
        "env": f"env:{PLAIN}",
        "op": OP_ITEM,
        "kv": KV_PATH,
    }
    said = ""
    for name, reference in references.items():
        connect(mirror, upstream.url, to_reference(reference), name=name)
        async with hasty(mirror, references=places.resolver(home=mirror.home)) as parts:
            said += await heard(parts, mirror, f"{name}_look", {"what": "it"})
    assert said.count("could not be had from where it is kept") == len(references)
    assert upstream.requests == []
    for secret in (PLAIN, OP_TOKEN, KV_TOKEN):
        assert_nowhere(secret, mirror, said=said, logs=ears.text)


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "op"])  # which is not installed here
async def test_a_server_that_logs_all_it_can_logs_no_secret_that_stays_elsewhere(
    mirror: Place, places: Places, source: str
) -> None:
    errors = mirror.home.parent / "stderr"
    with Upstream() as upstream:
        upstream.answer = lambda request: Answer({"error": {"message": request.headers["authorization"]}}, 500)
        connect(mirror, upstream.url, to_reference(places.keep(source, PLAIN)))
        env = {
            **os.environ,
            "KEYLEASH_HOME": str(mirror.home),
            "KEYLEASH_HOLD_SECONDS": "0",
            "KEYLEASH_LOG": "debug",
            "KEYLEASH_KV_ADDR": places.kv.url,
            "KEYLEASH_KV_TOKEN_FILE": str(places.folder / "kv.token"),
            **postgres.environment(mirror.home),
        }
        code = "import logging; logging.getLogger().setLevel(1); from server.cli import main; main()"
        parameters = StdioServerParameters(
            command=sys.executable,
            args=["-X", "dev", "-W", "ignore", "-c", code, "serve", "--agent", "reconciler"],
            env=env,
        )
        with errors.open("w") as log:
            async with Client(stdio_client(parameters, errlog=log)) as client:
                first = await client.call_tool("mirror_look", {"what": "it"})
                places.lose(source)
                second = await client.call_tool("mirror_look", {"what": "it"})
        # A variable is the process's own from its start to its end.
        assert len(upstream.requests) == (2 if source == "env" else 1)
        assert {request.headers["authorization"] for request in upstream.requests} == {f"Bearer {PLAIN}"}
    reopened(mirror)
    for secret in (PLAIN, KV_TOKEN):
        assert_nowhere(secret, mirror, said=first.model_dump_json() + second.model_dump_json())
        assert not leaks([errors.read_text()], secret)
