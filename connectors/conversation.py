"""Carry an MCP conversation: over HTTP through egress and nowhere else, or over the pipes of a process.

What goes wrong below the protocol is kept on the Line, as an error of this room: the SDK would hide or quote it.
"""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, cast

import anyio
import httpx2
import mcp_types as t
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from connectors.addresses import Network
from connectors.auth import Attach
from connectors.bounded import Limits
from connectors.definition import Connector
from connectors.egress import Egress, Stream, retry_after
from connectors.errors import ConnectorError, ResponseTooLarge, Unreachable, UpstreamError
from connectors.lifeline import Lifeline
from connectors.process import Started, program, started
from connectors.request import Prepared, endpoint
from connectors.scrub import Scrubber

log = logging.getLogger("keyleash")

GOODBYE_S = 2.0
"""How long a server may take to be told that its session is over."""
MOST_SESSION = 512  # characters of a session's id
MOST_REQUESTS = {"POST": 500, "GET": 50}
"""Of one conversation: each time that a stream ends, its server can have us open it again at once."""
MOST_NOISE = 200  # lines that are no message
MOST_SECRETS = 50
"""Different ones of a conversation, as tokens that were renewed meanwhile: each is looked for in every answer."""
_LONGEST_ESCAPE = 8  # characters for one of a secret's
_PASSED = ("content-type", "mcp-session-id")
_OURS = frozenset({"host", "content-length", "connection", "accept-encoding", "user-agent", "transfer-encoding"})


@dataclass
class Line:
    """What is known of a conversation beside its messages."""

    title: str
    sent: bool = False  # whether the call itself may have left
    problem: ConnectorError | None = None
    status: int = 0  # of the last message's answer over HTTP
    retry_after: float | None = None
    bytes_in: int = 0
    noise: int = 0  # lines of a process that were no message
    requests: Counter[str] = field(default_factory=Counter[str])
    process: Started | None = None
    _secrets: list[str] = field(default_factory=list[str], repr=False)

    @property
    def alive(self) -> bool:
        """Whether nothing is known that has ended it, or should."""
        ended = self.process is not None and not self.process.running
        return self.problem is None and not ended and len(self._secrets) <= MOST_SECRETS

    @property
    def received(self) -> int:
        """Bytes of this call's answers, and of what the server said since the one before."""
        return self.bytes_in + (self.process.bytes_in if self.process is not None else 0)

    def another(self) -> None:
        """A further call begins: what is counted is counted anew. What has to be scrubbed stays."""
        self.sent, self.status, self.retry_after, self.bytes_in, self.noise = False, 0, None, 0, 0
        self.requests.clear()
        if self.process is not None:
            self.process.bytes_in = 0

    def keep(self, secrets: Sequence[str]) -> None:
        """Remember what has to be scrubbed from whatever comes back."""
        self._secrets += [secret for secret in secrets if secret not in self._secrets]

    def secrets(self) -> tuple[str, ...]:
        return tuple(self._secrets)

    def unsent(self, error: ConnectorError) -> ConnectorError:
        """The same failure, told as one before the call was sent, where it was."""
        if self.sent or not isinstance(error, (Unreachable, UpstreamError, ResponseTooLarge)):
            return error
        return Unreachable(f"{str(error).rstrip('.')}. The call itself was not sent.", maybe_sent=False)

    def note_what_it_said(self, failed: Exception | None) -> None:
        """What a process wrote on its error stream is for the operator's log alone, scrubbed, where it failed."""
        if failed is None or self.process is None or not self.process.said:
            return
        said = Scrubber(self.secrets()).text(self.process.said)
        if self.process.said_more:  # it may begin in the middle of a secret, in whichever disguise
            said = said[_LONGEST_ESCAPE * max((len(secret) for secret in self.secrets()), default=0) :]
        shown = "".join(char if char.isprintable() else " " for char in said)
        log.warning("the server of %s failed, and said last: %s", self.title, shown[-1_000:])


def over_http(
    line: Line,
    egress: Egress,
    connector: Connector,
    base_url: str,
    *,
    attach: Attach,
    private: tuple[Network, ...],
    limits: Limits,
) -> tuple[httpx2.AsyncClient, str]:
    """A client for the SDK that can reach this server's endpoint, and nothing else; and the endpoint's URL."""
    target = endpoint(connector, base_url)
    transport = Through(line, egress, target, attach, private, limits)
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=None), target.url


@dataclass(frozen=True)
class Through(httpx2.AsyncBaseTransport):
    """The SDK's HTTP, through egress: the only reason why this room knows httpx2, which opens no socket here.

    What fails is kept on the line, and told to the SDK as an answer without content: it would pass an exception on, or
    log it.
    """

    line: Line
    egress: Egress
    target: Prepared
    attach: Attach
    private: tuple[Network, ...]
    limits: Limits

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        content = await request.aread()
        matters = request.method == "POST"
        failed: ConnectorError | None = None
        try:
            stream = await self._sent(request, content)
            if matters:
                self.line.status = stream.status
                self.line.retry_after = retry_after(stream.headers)
            return await self._response(request, stream)
        except ConnectorError as error:
            failed = error
        if matters:
            self.line.problem = failed
        return httpx2.Response(502, request=request)

    async def _sent(self, request: httpx2.Request, content: bytes) -> Stream:
        """Raises a ConnectorError; a request to any other place than the endpoint is not sent."""
        if str(request.url) != self.target.url:
            raise Unreachable("The server's messages go to its own address, and to no other.", maybe_sent=False)
        self.line.requests[request.method] += 1
        if self.line.requests[request.method] > MOST_REQUESTS.get(request.method, 1):
            raise Unreachable(f"{self.line.title} wants more requests than a call may take.")
        headers = tuple(
            (name, value) for name, value in request.headers.items() if name.lower() not in _OURS | self._fixed
        )
        prepared = replace(
            self.target, method=request.method, headers=(*self.target.headers, *headers), body=content or None
        )
        limits = replace(self.limits, total_s=GOODBYE_S) if request.method == "DELETE" else self.limits
        stream = await self.egress.stream(prepared, attach=self.attach, private=self.private, limits=limits)
        self.line.keep(stream.secrets())
        return stream

    @property
    def _fixed(self) -> frozenset[str]:
        return frozenset(name.lower() for name, _ in self.target.headers)

    async def _response(self, request: httpx2.Request, stream: Stream) -> httpx2.Response:
        headers = {name: stream.headers[name] for name in _PASSED if name in stream.headers}
        if len(headers.get("mcp-session-id", "")) > MOST_SESSION:
            stream.close()
            raise Unreachable(f"{self.line.title} names its session with too many characters.")
        if stream.headers.get("content-type", "").lower().startswith("text/event-stream") and stream.status < 300:
            pieces = _Pieces(stream, self.line, matters=request.method == "POST")
            return httpx2.Response(stream.status, headers=headers, stream=pieces, request=request)
        body = await stream.whole()
        self.line.bytes_in += stream.bytes_in
        return httpx2.Response(stream.status, headers=headers, content=body, request=request)


class _Pieces(httpx2.AsyncByteStream):
    """A stream of events, as it comes. Where it does not matter, as of what a server says unasked, it may break off."""

    def __init__(self, stream: Stream, line: Line, *, matters: bool) -> None:
        self._stream, self._line, self._matters = stream, line, matters

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        failed: ConnectorError | None = None
        try:
            async for piece in self._stream.pieces():
                yield piece
        except ConnectorError as error:
            failed = error
        if failed is not None:
            if self._matters:
                self._line.problem = failed
            raise httpx2.ReadError("The stream ended.")

    async def aclose(self) -> None:
        self._line.bytes_in += self._stream.bytes_in
        self._stream.close()


# -- what the SDK sees


class Heard:
    """The messages of a server, as the SDK may see them: it puts the text of an error into its spans and exceptions."""

    def __init__(self, stream: ReadStream[SessionMessage | Exception], line: Line) -> None:
        self._stream, self._line = stream, line

    async def receive(self) -> SessionMessage | Exception:
        return self._scrubbed(await self._stream.receive())

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> "Heard":
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        return self._scrubbed(await self._stream.__anext__())

    async def __aenter__(self) -> "Heard":
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc_val, exc_tb)

    def _scrubbed(self, item: SessionMessage | Exception) -> SessionMessage | Exception:
        if isinstance(item, SessionMessage) and isinstance(item.message, t.JSONRPCError):
            scrubber, error = Scrubber(self._line.secrets()), item.message.error
            item.message.error = t.ErrorData(
                code=error.code, message=scrubber.text(error.message), data=scrubber.value(error.data)
            )
        return item


class Said:
    """The SDK's messages, as a server may see them: without the context of our traces."""

    def __init__(self, stream: WriteStream[SessionMessage]) -> None:
        self._stream = stream

    async def send(self, item: SessionMessage, /) -> None:
        params = item.message.params if isinstance(item.message, t.JSONRPCRequest) else None
        meta: Any = (params or {}).get("_meta")
        for key in _TRACED if isinstance(meta, dict) else ():
            cast("dict[str, Any]", meta).pop(key, None)
        await self._stream.send(item)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> "Said":
        await self._stream.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc_val, exc_tb)


_TRACED = ("traceparent", "tracestate", "baggage")


# -- a process

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]


@asynccontextmanager
async def over_stdio(
    command: Sequence[str], variables: dict[str, str], line: Line, limits: Limits, lifeline: Lifeline | None = None
) -> AsyncGenerator[Streams]:
    """The streams of a server that runs until the block ends, and no longer than whoever holds the `lifeline`."""
    name = f"{line.title} (the server {program(command)})"
    async with started(command, variables, name=name, limits=limits, lifeline=lifeline) as process:
        line.process = process
        into, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, out_of = anyio.create_memory_object_stream[SessionMessage](0)
        async with anyio.create_task_group() as group:
            group.start_soon(process.listen)
            group.start_soon(_taken_in, process, into, line, name)
            group.start_soon(_given_out, process, out_of, line)
            try:
                yield read, write
            finally:
                group.cancel_scope.cancel()
                for stream in (read, write, into, out_of):
                    stream.close()


async def _taken_in(
    process: Started, into: MemoryObjectSendStream[SessionMessage | Exception], line: Line, name: str
) -> None:
    """Every message that it writes; what is none is passed over, up to a point."""
    try:
        async for text in process.lines():
            message = _message(text)
            if message is not None:
                await into.send(message)
                continue
            line.noise += bool(text.strip())
            if line.noise > MOST_NOISE:
                line.problem = Unreachable(f"{name} writes other things than MCP.", maybe_sent=line.sent)
                break
    except ConnectorError as error:
        line.problem = error
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return
    if line.problem is None:
        line.problem = Unreachable(f"{name} ended before it answered.", maybe_sent=line.sent)
    into.close()


def _message(text: bytes) -> SessionMessage | None:
    try:
        return SessionMessage(t.jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValidationError:
        return None


async def _given_out(process: Started, out_of: MemoryObjectReceiveStream[SessionMessage], line: Line) -> None:
    try:
        async for message in out_of:
            await process.send(message.message.model_dump_json(by_alias=True, exclude_unset=True).encode())
    except ConnectorError as error:
        line.problem = line.problem or error
