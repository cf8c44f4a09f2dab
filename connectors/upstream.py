"""Speak to a wrapped MCP server, in both eras: what it offers, and one call of a tool that is what it was agreed to be.

The only module of this room that knows the protocol. Nothing that the SDK raises escapes, and the SDK never sees the
credential: egress attaches it, or it stands in the environment of a process that is started for this alone.
"""

import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, TypeVar, cast

import anyio
import mcp_types as t
from mcp.client.session import ClientRequestContext, ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter

from connectors.addresses import Network
from connectors.answer import MAX_MESSAGE, credential_rejected, one_line
from connectors.auth import Attach, Revealing, attaching, environment
from connectors.bounded import DEFAULT_LIMITS, Limits, check_json
from connectors.conversation import Heard, Line, Said, over_http, over_stdio
from connectors.definition import Connector, CredentialKind, canonical
from connectors.egress import Egress, Reply
from connectors.elicitation import ASKING_S, DECLINED, MOST_ASKS, Answer, Ask, vetted
from connectors.errors import (
    ConnectorError,
    DefinitionChanged,
    ProtocolRefused,
    RateLimited,
    Unreachable,
    UpstreamError,
)
from connectors.lifeline import Lifeline
from connectors.scrub import Scrubber

__all__ = ["Answer", "Ask", "Definition", "DefinitionChanged", "Relay", "Returned", "Upstream", "Wanted", "opened"]

MAX_TOOLS = 2_000
MAX_PAGES = 50
MAX_STATE = 16 * 1024  # characters
LONGEST_KEY = 200  # characters of what a server calls a question
_SHOWN = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
_NOT_DONE = frozenset({t.PARSE_ERROR, t.INVALID_REQUEST, t.METHOD_NOT_FOUND, t.INVALID_PARAMS})
_LOGGERS = ("client", "mcp.client", "mcp.shared", "mcp.os")

Relay = Callable[[Ask], Awaitable[Answer]]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Definition:
    """A tool as its server describes it. `raw` holds these keys, where the server gives them, and no others:
    name, title, description, inputSchema, outputSchema, annotations.
    """

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def hash(self) -> str:
        """What a connector file pins: SHA-256, hex, of `raw` as canonical JSON."""
        return hashlib.sha256(canonical(dict(self.raw)).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Returned:
    """What a tool gave, not scrubbed yet: `answer.interpret` does that with `reply`."""

    reply: Reply = field(repr=False)
    is_error: bool
    asked: tuple[str, ...] = ()
    """What became of each question that the server asked in mid-call: accept, decline, cancel or `not put`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The server has done nothing yet: it wants answers first, and its `state` back with them. Modern servers only."""

    asks: Mapping[str, Ask]
    state: str | None = field(repr=False)


class Upstream:
    """An open conversation with a wrapped server."""

    def __init__(self, line: Line, limits: Limits) -> None:
        self._line, self._limits = line, limits
        self._left = limits.total_s
        self._patience = ASKING_S
        self._scope: anyio.CancelScope | None = None
        self._relay: Relay | None = None
        self._turn: object | None = None  # of the call under way
        self._open: anyio.CancelScope | None = None  # while the person is asked
        self._used = False
        self._asked: list[str] = []
        self._asking = anyio.Lock()
        self._session: ClientSession | None = None

    @property
    def server(self) -> Mapping[str, str]:
        """What the server says of itself, scrubbed: name, version, and the protocol that is spoken."""
        info = self._talk.server_info
        said = {"name": info.name, "version": info.version} if info else {}
        said["protocol"] = self._talk.protocol_version or ""
        return {key: one_line(self._scrubber.text(value), 100) or "" for key, value in said.items()}

    async def definitions(self) -> tuple[Definition, ...]:
        """Every tool of the server, sorted by name. Raises a ConnectorError; also for a list that does not end."""
        return await self._within_time(self._definitions)

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        pinned: str,
        relay: Relay | None = None,
        defer: bool = False,
        answers: Mapping[str, Answer] | None = None,
        state: str | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Returned | Wanted:
        """Call a tool that its server still defines as `pinned`; raises DefinitionChanged, or a ConnectorError.

        One call after another: each has its own time, and looks at the definitions anew.
        `relay` asks the person in mid-call. Without it every question is declined; but with `defer` a server that has
        done nothing yet gets no answer, and what it wants is returned. `answers` and `state` go on from there.
        `before` runs at the last moment before the call is sent, and may raise.
        """
        self._begin_call(relay)

        async def go() -> Returned | Wanted:
            found = [each for each in await self._definitions() if each.name == name]
            if len(found) != 1 or found[0].hash != pinned:
                raise DefinitionChanged(name, pinned, found[0].raw if found else None, found[0].hash if found else None)
            before()
            self._line.sent = True
            return await self._called(name, arguments, defer=defer, answers=answers, state=state)

        try:
            return await self._within_time(go)
        finally:
            self._end_call()

    @property
    def alive(self) -> bool:
        """Whether another call may be made in this conversation, as far as is known."""
        return self._line.alive

    def _begin_call(self, relay: Relay | None) -> None:
        """What an earlier call used up, or left behind, is not this one's."""
        if self._used:
            self._left, self._patience, self._asked = self._limits.total_s, ASKING_S, []
            self._line.another()
        self._used, self._turn, self._relay = True, object(), relay

    def _end_call(self) -> None:
        """From now on nobody is asked; who is being asked still is so for nothing."""
        self._turn = self._relay = None
        if self._open is not None:
            self._open.cancel()

    # -- one request after another

    @property
    def _talk(self) -> ClientSession:
        if self._session is None:
            raise AssertionError("a conversation is begun before it is used")
        return self._session

    @property
    def _scrubber(self) -> Scrubber:
        return Scrubber(self._line.secrets())

    async def begin(self, session: ClientSession) -> None:
        """Find the era that the server speaks."""

        async def greet() -> None:
            try:
                await session.discover()
            except (MCPError, RuntimeError, ValueError):
                if self._line.problem is not None or self._line.status in (401, 403, 429):
                    raise
                await session.initialize()

        self._session = session
        await self._within_time(greet)

    async def _within_time(self, run: Callable[[], Awaitable[R]]) -> R:
        """Raises only what this room raises, and in time; what a person thinks about is not counted."""
        failed: ConnectorError | None = None
        began = time.monotonic()
        asking = self._patience
        done: list[R] = []
        with anyio.move_on_after(self._left) as self._scope:
            try:
                done.append(await run())
            except ConnectorError as error:
                failed = error
            except Exception as error:
                failed = self._translated(error)
        self._scope = None
        self._left -= time.monotonic() - began - (asking - self._patience)
        if failed is not None:
            raise failed
        if not done:
            raise Unreachable(
                f"{self._line.title} did not finish its answer in {self._limits.total_s:g} s.",
                maybe_sent=self._line.sent,
            )
        return done[0]

    async def _definitions(self) -> tuple[Definition, ...]:
        found: list[Definition] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            listed = await self._talk.list_tools(params=t.PaginatedRequestParams(cursor=cursor) if cursor else None)
            found += [_definition(tool, self._scrubber) for tool in listed.tools]
            cursor = listed.next_cursor
            if not cursor:
                return tuple(sorted(found, key=lambda each: each.name))
            if len(found) > MAX_TOOLS:
                break
        raise ProtocolRefused(self._line.title, f"lists more than {MAX_TOOLS} tools, or more than {MAX_PAGES} pages")

    async def _called(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        defer: bool,
        answers: Mapping[str, Answer] | None,
        state: str | None,
    ) -> Returned | Wanted:
        responses = {key: _wire(answer) for key, answer in (answers or {}).items()} or None
        self._asked += [answer.action for answer in (answers or {}).values()]
        for _ in range(MOST_ASKS):
            params = t.CallToolRequestParams(
                name=name,
                arguments=dict(arguments),
                input_responses=cast("t.InputResponses | None", responses),
                request_state=state,
            )
            # Not `call_tool`: that holds the answer to the server's own schema, with patterns that may never end.
            result = await self._talk.send_request(t.CallToolRequest(params=params), _RESULT)
            if isinstance(result, t.CallToolResult):
                return self._returned(result)
            wanted = self._wanted(result)
            if defer and wanted.asks:
                return wanted
            responses = {key: _wire(await self._put(ask)) for key, ask in wanted.asks.items()} or None
            responses = {**dict.fromkeys(self._not_put(result, wanted), _wire(DECLINED)), **(responses or {})} or None
            state = wanted.state
        raise ProtocolRefused(self._line.title, f"asked more than {MOST_ASKS} times, and was not asked again")

    def _wanted(self, result: t.InputRequiredResult) -> Wanted:
        asks: dict[str, Ask] = {}
        requests = result.input_requests or {}
        if len(requests) > MOST_ASKS or any(len(key) > LONGEST_KEY for key in requests):
            raise ProtocolRefused(
                self._line.title, f"asks more than {MOST_ASKS} questions at once, or at endless length"
            )
        for key, request in requests.items():
            if not isinstance(request, t.ElicitRequest):
                raise ProtocolRefused(self._line.title, "wants what Keyleash does not give: a model's answer, or files")
            ask = self._vetted(request.params)
            if ask is not None:
                asks[key] = ask
        if result.request_state is not None and len(result.request_state) > MAX_STATE:
            raise ProtocolRefused(self._line.title, f"wants more than {MAX_STATE} characters carried for it")
        return Wanted(asks, result.request_state)

    def _not_put(self, result: t.InputRequiredResult, wanted: Wanted) -> list[str]:
        left = [key for key in result.input_requests or {} if key not in wanted.asks]
        self._asked += ["not put"] * len(left)
        return left

    def _returned(self, result: t.CallToolResult) -> Returned:
        body = json.dumps(_value(result)).encode()
        check_json(body, self._line.title, self._limits)
        reply = Reply(200, {}, body, 0.0, self._line.received, self._line.secrets())
        return Returned(reply, bool(result.is_error), tuple(self._asked))

    # -- the person

    async def elicit(self, context: ClientRequestContext, params: t.ElicitRequestParams) -> t.ElicitResult:
        """What a server asks in mid-call; whatever cannot be put to a person is declined, and what it asks unasked."""
        if self._turn is None:
            return _wire(DECLINED)
        ask = self._vetted(params)
        if ask is None:
            self._asked.append("not put")
            return _wire(DECLINED)
        return _wire(await self._put(ask))

    def _vetted(self, params: t.ElicitRequestParams) -> Ask | None:
        if not isinstance(params, t.ElicitRequestFormParams):
            return None
        scrubber = self._scrubber
        return vetted(scrubber.text(params.message), scrubber.value(dict(params.requested_schema)))

    async def _put(self, ask: Ask) -> Answer:
        """Ask the person of this call, if there is one; their time is not the server's."""
        turn = self._turn
        async with self._asking:
            if turn is None or turn is not self._turn:  # the call was over before it was this question's turn
                return DECLINED
            if self._relay is None or self._patience <= 0 or len(self._asked) >= MOST_ASKS:
                self._asked.append("not put")
                return DECLINED
            began = time.monotonic()
            if self._scope is not None:
                self._scope.deadline += self._patience
            answer = Answer("cancel")
            with anyio.move_on_after(self._patience) as self._open:
                answer = await self._relay(ask)
            self._open = None
            if turn is not self._turn:  # what they said was for a call that is over
                return DECLINED
            took = time.monotonic() - began
            if self._scope is not None:
                self._scope.deadline -= self._patience - took
            self._patience -= took
            self._asked.append(answer.action)
            return answer

    # -- what goes wrong

    def _translated(self, error: Exception) -> ConnectorError:
        """What a failure of the SDK means. What it says is the server's text, and goes through the scrubber."""
        line = self._line
        if line.problem is not None:
            return line.unsent(line.problem)
        if line.status >= 400 and not (line.status in (400, 404) and _says_why(error)):
            return self._refused()
        if isinstance(error, MCPError) and error.code not in (t.CONNECTION_CLOSED, t.REQUEST_TIMEOUT):
            said = one_line(self._scrubber.text(error.message), MAX_MESSAGE)
            maybe_done = line.sent and error.code not in _NOT_DONE
            return ProtocolRefused(line.title, f"says: {said}" if said else "", code=error.code, maybe_done=maybe_done)
        said = "broke off before it answered." if isinstance(error, MCPError) else "sent what cannot be understood."
        return Unreachable(f"{line.title} {said}", maybe_sent=line.sent)

    def _refused(self) -> ConnectorError:
        """What a status means that is no answer."""
        line = self._line
        if line.status in (401, 403):
            return credential_rejected(line.title, f"the credential of {line.title}", line.status)
        if line.status == 429:
            wait = line.retry_after
            when = f"Try again in {wait:.0f} s." if wait is not None else "Try again later."
            return RateLimited(429, f"{line.title} asks for fewer calls. {when}", retry_after=wait)
        return line.unsent(UpstreamError(line.status, f"{line.title} refused the call and gave no reason"))


def _says_why(error: Exception) -> bool:
    """Whether it is the server's own JSON-RPC error, rather than what the SDK makes of a status."""
    return isinstance(error, MCPError) and error.message not in ("Server returned an error response", "Not Found")


_RESULT: TypeAdapter[t.CallToolResult | t.InputRequiredResult] = TypeAdapter(t.CallToolResult | t.InputRequiredResult)


@asynccontextmanager
async def opened(
    connector: Connector,
    *,
    base_url: str,
    kind: CredentialKind,
    secret: Revealing,
    egress: Egress,
    private: tuple[Network, ...] = (),
    limits: Limits = DEFAULT_LIMITS,
    attach: Attach | None = None,
    lifeline: Lifeline | None = None,
) -> AsyncGenerator[Upstream]:
    """A conversation with the connector's server, ended with the block; raises a ConnectorError of this room.

    `base_url` is the connection's own; what goes over HTTP goes through `egress`, with `attach` in place of what `kind`
    and `secret` make of it. A process does not outlive whoever holds the `lifeline`.
    """
    if connector.server is None:
        raise AssertionError("a connector of kind mcp has a server")
    _quiet()
    line = Line(connector.title)
    upstream = Upstream(line, limits)
    failed: Exception | None = None
    try:
        async with AsyncExitStack() as stack:
            if connector.server.command:
                variables, secrets = environment(kind, secret)
                line.keep(secrets)
                streams = over_stdio(connector.server.command, variables, line, limits, lifeline)
            else:
                long = replace(limits, total_s=limits.total_s + ASKING_S)
                signed = attach or attaching(kind, secret)
                client, url = over_http(line, egress, connector, base_url, attach=signed, private=private, limits=long)
                await stack.enter_async_context(client)
                streams = streamable_http_client(url, http_client=client, max_sse_event_size=limits.max_body)
            read, write = await stack.enter_async_context(streams)
            session = _Session(
                Heard(read, line),
                Said(write),
                elicitation_callback=upstream.elicit,
                client_info=t.Implementation(name="keyleash", version=_version()),
            )
            await stack.enter_async_context(session)
            try:
                await upstream.begin(session)
                yield upstream
            except Exception as error:  # to be raised outside of the SDK's task groups, which would wrap it
                failed = error
    except ConnectorError as error:
        failed = failed or error
    except Exception:  # what the SDK's own tasks came to
        failed = failed or line.problem or Unreachable(f"{line.title} broke off.", maybe_sent=line.sent)
    line.note_what_it_said(failed)
    if failed is not None:
        raise failed


class _Session(ClientSession):
    """A client that takes forms, and no URLs: what stands behind one, nobody here has seen."""

    def _build_capabilities(self, version: str) -> t.ClientCapabilities:
        forms = t.ElicitationCapability(form=t.FormElicitationCapability())
        return super()._build_capabilities(version).model_copy(update={"elicitation": forms})


def _quiet() -> None:
    """The SDK logs what it cannot read, and a server may have put its secret there."""
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _version() -> str:
    try:
        return metadata.version("keyleash")
    except metadata.PackageNotFoundError:
        return "0"


def _definition(tool: t.Tool, scrubber: Scrubber) -> Definition:
    whole = tool.model_dump(by_alias=True, mode="json", exclude_none=True)
    found = Definition(scrubber.value({key: whole[key] for key in _SHOWN if key in whole}))
    _ = found.hash  # a number that JSON does not have fails here, rather than where it is compared
    return found


def _wire(answer: Answer) -> t.ElicitResult:
    content = cast("Any", dict(answer.content)) if answer.content is not None else None
    return t.ElicitResult(action=answer.action, content=content if answer.action == "accept" else None)


# -- what a model gets of a result

MAX_PLAIN = 40_000  # characters of text


def _value(result: t.CallToolResult) -> dict[str, Any]:
    """One JSON object: the structured content where there is one, else the text; of what is neither, what it is."""
    text = "\n".join(block.text for block in result.content if isinstance(block, t.TextContent))
    others = [_described(block) for block in result.content if not isinstance(block, t.TextContent)]
    beside = {"other_content": others} if others else {}
    structured, read = result.structured_content, _read(text)
    if structured is None and read is None:
        return {**_text(text), **beside} if text or not others else beside
    value: Any = structured if structured is not None else read
    shown = cast("dict[str, Any]", value) if isinstance(value, dict) else {"items": value}
    repeated = not text or structured is None or read == structured
    return {**shown, **({} if repeated else {"text_beside": text[:MAX_PLAIN]}), **beside}


def _text(text: str) -> dict[str, Any]:
    if len(text) <= MAX_PLAIN:
        return {"text": text}
    return {"text": text[:MAX_PLAIN], "note": f"Cut by Keyleash: the first {MAX_PLAIN} characters of {len(text)}."}


def _read(text: str) -> Any:
    """The JSON object or list that the text is; None where it is neither."""
    if text[:1] not in ("{", "["):
        return None
    try:
        check_json(text.encode("utf-8", "replace"), "The server", DEFAULT_LIMITS)
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _described(block: t.ContentBlock) -> dict[str, Any]:
    """What can be told in words of content that is no text."""
    if isinstance(block, t.ResourceLink):
        return {"type": "link", "uri": str(block.uri), "name": block.name, "description": block.description}
    if isinstance(block, t.EmbeddedResource):
        inner = block.resource
        about: dict[str, Any] = {"type": "resource", "uri": str(inner.uri), "mime_type": inner.mime_type}
        if isinstance(inner, t.TextResourceContents):
            return {**about, **_text(inner.text)}
        return {**about, **_unshown(inner.blob)}
    data = getattr(block, "data", "")
    return {"type": block.type, "mime_type": getattr(block, "mime_type", None), **_unshown(data)}


def _unshown(data: Sequence[Any]) -> dict[str, Any]:
    return {"bytes": len(data) * 3 // 4, "note": "It is no text, and is not shown."}
