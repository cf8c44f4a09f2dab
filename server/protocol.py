"""The MCP face: tools in, people asked, results out, in both protocol eras; nothing that was not meant leaves.

The only module of the server that knows the protocol. It holds no rule and no secret: `server.call` does the work.
"""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TextIO, TypeVar, cast

import anyio
import mcp_types as t
from mcp.server import Server, ServerRequestContext
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types.methods import serialize_server_result
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace

from connectors.catalogue import CALL, DESCRIBE, MORE, OWN_NAMES, SEARCH, Offered
from server.approval import STATE_TTL_S, Decision
from server.call import call
from server.database import DatabaseProblem
from server.errors import AskFirst, BadArguments, CallRefused, NoSuchTool, NotOurState, Question, Refused, structured
from server.folding import READ_ON, call_through, describe, folded, read_on, search
from server.identity import Caller, Frozen
from server.listing import StaleCursor, described, page, tools_for
from server.onrecord import refused
from server.outcome import Outcome
from server.outside import AskThrough, Form, Onward, brought, carried
from server.parts import Parts
from server.stdio import INSTRUCTIONS

log = logging.getLogger("keyleash")

NAME = "keyleash"
LIST_TTL_MS = 30_000
MODERN = MODERN_PROTOCOL_VERSIONS[0]

McpServer = Server[Any]
Context = ServerRequestContext[Any, Any]
Identify = Callable[[Context], Caller]
P = TypeVar("P")
R = TypeVar("R")


def build(parts: Parts, identify: Identify, *, version: str, state_keys: list[bytes], list_limit: int) -> Server[Any]:
    """Make the server. `identify` names the caller of a request, or raises Frozen or MCPError.

    A caller with more than `list_limit` tools is listed three that find, describe and call them. The others may call
    these three too: a client may have kept an earlier list.
    `state_keys` seal the pointers that clients carry; replicas share them. 32 bytes each, the first one seals.
    """

    async def list_tools(ctx: Context, params: t.PaginatedRequestParams | None) -> t.ListToolsResult:
        try:
            caller = identify(ctx)
        except (Frozen, CallRefused):
            return t.ListToolsResult(tools=[])
        try:
            return _listed(tools_for(parts, caller), caller, params.cursor if params else None, list_limit)
        except StaleCursor:
            raise MCPError(
                t.INVALID_PARAMS, "Invalid cursor, or the list has changed since; list again from the start."
            ) from None

    async def call_tool(ctx: Context, params: t.CallToolRequestParams) -> t.CallToolResult | t.InputRequiredResult:
        try:
            caller = _with_client(identify(ctx), ctx)
            outcome = await _called(parts, caller, params, _person(ctx, params))
        except AskFirst as ask:
            return _input_required(ask.question)
        except AskThrough as ask:
            return _input_required_outside(ask)
        except NoSuchTool as refusal:
            raise MCPError(t.INVALID_PARAMS, str(refusal)) from None
        except CallRefused as refusal:
            return _result(str(refusal), structured(refusal), ok=False)
        except Frozen as frozen:
            return _result(str(frozen), None, ok=False)
        return _result(outcome.text, outcome.structured, ok=outcome.ok)

    async def listen(ctx: Context, params: t.SubscriptionsListenRequestParams) -> t.SubscriptionsListenResult:
        try:
            caller = identify(ctx)
        except (Frozen, CallRefused) as refusal:
            raise MCPError(t.INVALID_REQUEST, str(refusal)) from None
        return await _listen(parts, caller, ctx, params)

    sealed = parts.vault.sealed
    server: Server[Any] = Server(
        NAME,
        version=version,
        title="Keyleash",
        instructions=INSTRUCTIONS if sealed is None else f"Keyleash is sealed and offers no tools: {sealed}",
        cache_hints={"tools/list": CacheHint(ttl_ms=LIST_TTL_MS, scope="private")},
        get_tool_input_schema=lambda _name: None,
        on_list_tools=masked(list_tools),
        on_call_tool=masked(call_tool),
        on_subscriptions_listen=masked(listen),
    )
    security = RequestStateSecurity(
        keys=state_keys, ttl=STATE_TTL_S, bind_principal=lambda ctx: _principal(identify, ctx)
    )
    if not _traced():
        server.middleware.clear()
    server.middleware.append(_Boundary(security, partial(_note_state, parts, identify)))
    server.middleware.append(_Plain(masked(call_tool), server))
    return server


class _Boundary(RequestStateBoundary):
    """The SDK's check of what a client sends back as its state; what it refuses is on record."""

    def __init__(self, security: RequestStateSecurity, note: Callable[[Context], Awaitable[None]]) -> None:
        super().__init__(security, default_audience=NAME)
        self._note = note

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        passed = False

        async def go_on(inner: Context) -> HandlerResult:
            nonlocal passed
            passed = True
            return await call_next(inner)

        try:
            return await super().__call__(ctx, go_on)
        except MCPError:
            if not passed and ctx.method == "tools/call":
                await self._note(ctx)
            raise


async def _note_state(parts: Parts, identify: Identify, ctx: Context) -> None:
    with contextlib.suppress(Frozen, CallRefused, MCPError):
        params: dict[str, Any] = dict(ctx.params or {})
        name = _named(params.get("name"), params.get("arguments"))
        if name is not None:
            await refused(parts, _with_client(identify(ctx), ctx), name, NotOurState())


def _named(name: Any, arguments: Any) -> str | None:
    """The tool of a connection that a call is about; None where it names none."""
    if name == CALL:
        name = cast("dict[str, Any]", arguments).get("name") if isinstance(arguments, dict) else None
    return name if isinstance(name, str) and name not in OWN_NAMES else None


def _traced() -> bool:
    """Whether anyone listens to spans. The SDK makes one for every message even where none does (40 us)."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class _Plain(ServerMiddleware[Any]):
    """Answer a modern `tools/call` in its wire form, which the SDK otherwise builds, dumps and validates three times.

    What asks a person, and every older client, takes the SDK's own way.
    """

    def __init__(self, handler: Callable[[Context, Any], Awaitable[Any]], server: Server[Any]) -> None:
        self._handler, self._server = handler, server

    async def __call__(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        if ctx.method != "tools/call" or ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return await call_next(ctx)
        params = t.CallToolRequestParams.model_validate(ctx.params or {}, by_name=False)
        result = await self._handler(ctx, params)
        stamp = {"io.modelcontextprotocol/serverInfo": self._server.server_info_stamp}
        if not isinstance(result, t.CallToolResult):
            question = result.model_dump(by_alias=True, mode="json", exclude_none=True)
            return {**serialize_server_result(ctx.method, ctx.protocol_version, question), "_meta": stamp}
        wire: dict[str, Any] = {
            "_meta": stamp,
            "content": [block.model_dump(by_alias=True, mode="json", exclude_none=True) for block in result.content],
            "isError": bool(result.is_error),
            "resultType": "complete",
        }
        if result.structured_content is not None:
            wire["structuredContent"] = result.structured_content
        return wire


def masked(
    handler: Callable[[Context, P], Awaitable[R]],
) -> Callable[[Context, P], Awaitable[R]]:
    """Let no exception's text out: the client gets a number, the log the same number and the exception's kind."""

    async def run(ctx: Context, params: P) -> R:
        try:
            return await handler(ctx, params)
        except MCPError:
            raise
        except Exception as error:
            number = secrets.token_hex(4)
            log.error("internal error %s in %s: %s", number, ctx.method, type(error).__name__)
            raise MCPError(t.INTERNAL_ERROR, f"Internal error {number}: the operator finds it in the log.") from None

    return run


# -- tools


def _listed(offered: list[Offered], caller: Caller, cursor: str | None, limit: int) -> t.ListToolsResult:
    """One page of the list, or what stands in place of it. Raises StaleCursor."""
    if len(offered) <= limit:
        part, following = page(offered, caller, cursor)
        tools = _described(part)
        if part and (cursor is None or part[0].name < MORE) and (following is None or part[-1].name > MORE):
            tools = sorted([*tools, t.Tool.model_validate(READ_ON)], key=lambda tool: tool.name)
        return t.ListToolsResult(tools=tools, next_cursor=following)
    if cursor is not None:
        raise StaleCursor
    return t.ListToolsResult(tools=[t.Tool.model_validate(own) for own in folded(offered)])


def _described(offered: Sequence[Offered]) -> list[t.Tool]:
    """These tools for the list; one that would break it for everyone is left out, with a line in the log."""
    tools: list[t.Tool] = []
    for each in offered:
        whole = described(each)
        try:
            tools.append(t.Tool.model_validate(whole))
        except ValueError:
            log.error("tool %s is left out of the list: it cannot be described", each.name)
    return tools


async def _called(
    parts: Parts, caller: Caller, params: t.CallToolRequestParams, person: "_Nobody | _Handshake | _Modern"
) -> Outcome:
    """What comes of a tool's name and arguments. Raises CallRefused or AskFirst."""
    name, arguments = params.name, params.arguments or {}
    if name == CALL:
        try:
            return await call_through(parts, caller, arguments, person, pointer=person.pointer)
        except BadArguments as refusal:
            if (inner := _named(name, arguments)) is not None:
                await refused(parts, caller, inner, refusal)
            raise
    if name == MORE:
        return await read_on(parts, caller, arguments)
    if name in _LOOKS:
        found = _LOOKS[name](parts, caller, arguments)
        return Outcome(ok=True, structured=found, text=json.dumps(found, ensure_ascii=False))
    return await call(parts, caller, name, arguments, person, pointer=person.pointer)


_LOOKS = {SEARCH: search, DESCRIBE: describe}


# -- changes

LISTENERS_PER_ORG = 64
CHANGES_S = 1.0
_listening: Counter[str] = Counter()


async def _listen(
    parts: Parts, caller: Caller, ctx: Context, params: t.SubscriptionsListenRequestParams
) -> t.SubscriptionsListenResult:
    """One stream of changes, from a bus of its own: what changes in another org cannot reach it.

    It ends when the agent is removed, expired or frozen, its token rotated, or its address narrowed away.
    """
    if _listening[caller.org] >= LISTENERS_PER_ORG:
        raise MCPError(t.INTERNAL_ERROR, "Too many streams of changes are open; close one first.")
    bus = InMemorySubscriptionBus()
    handler = ListenHandler(bus, max_subscriptions=1)

    async def forward() -> None:
        async for _ in changes(parts, caller):
            await bus.publish(ToolsListChanged())
        handler.close()

    _listening[caller.org] += 1
    result = t.SubscriptionsListenResult()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(forward)
            result = await handler(ctx, params)
            group.cancel_scope.cancel()
    finally:
        _listening[caller.org] -= 1
    return result


async def changes(parts: Parts, caller: Caller, *, through_freeze: bool = False) -> AsyncIterator[None]:
    """Yields whenever the caller's tools may have changed, within a second or so; ends when it may no longer ask."""
    revision = caller.revision
    while True:
        await anyio.sleep(CHANGES_S)
        try:
            now = parts.directory.again(caller)
        except Frozen:
            if not through_freeze:
                return
            revision = -1
            continue
        except DatabaseProblem:
            continue  # it may be back at the next look; calls say so themselves meanwhile
        if now is None:
            return
        if now.revision != revision:
            revision = now.revision
            yield


# -- people


@dataclass(frozen=True)
class _Nobody:
    """A client that cannot ask its person."""

    can_be_asked: bool = False
    answers_later: bool = False
    pointer: str | None = None
    outside: None = None

    async def ask(self, question: Question) -> Decision | None:
        raise AssertionError(f"nobody can be asked about {question.approval}")


@dataclass(frozen=True)
class _Handshake:
    """A client that is asked by `elicitation/create`, in the middle of the call."""

    ctx: Context
    can_be_asked: bool = True
    answers_later: bool = False
    pointer: str | None = None
    onward: Onward | None = None

    @property
    def outside(self) -> "_Handshake":
        return self

    async def put(self, form: Form) -> tuple[str, Mapping[str, Any] | None]:
        try:
            answer = await self.ctx.session.elicit_form(
                form.text, dict(form.schema), related_request_id=self.ctx.request_id
            )
        except MCPError:
            return "cancel", None
        return answer.action, answer.content

    async def ask(self, question: Question) -> Decision | None:
        try:
            answer = await self.ctx.session.elicit_form(
                question.text, _form(question), related_request_id=self.ctx.request_id
            )
        except MCPError:
            return None  # it said that it can ask, and then could not: the same as declining
        return _decision(answer, question)


@dataclass(frozen=True)
class _Modern:
    """A client that is asked by an InputRequiredResult, and repeats the call with the answer."""

    pointer: str | None
    answer: Any
    onward: Onward | None = None
    can_be_asked: bool = True
    answers_later: bool = True

    @property
    def outside(self) -> "_Modern":
        return self

    async def put(self, form: Form) -> tuple[str, Mapping[str, Any] | None]:
        raise AssertionError("a modern client is not asked in mid-call")

    async def ask(self, question: Question) -> Decision | None:
        if self.answer is None or self.pointer != question.approval:
            raise AskFirst(question)
        return _decision(self.answer, question)


def _person(ctx: Context, params: t.CallToolRequestParams) -> _Nobody | _Handshake | _Modern:
    modern = ctx.protocol_version >= MODERN
    pointer = _pointer(params.request_state) if modern and params.request_state else None
    declared = ctx.session.client_capabilities
    elicitation = declared.elicitation if declared else None
    takes_forms = elicitation is not None and (elicitation.form is not None or elicitation.url is None)
    if not takes_forms:
        return _Nobody(pointer=pointer)
    if modern:
        responses = params.input_responses or {}
        return _Modern(pointer, responses.get(ANSWER), _onward(params.request_state, responses))
    return _Handshake(ctx) if ctx.session.can_send_request else _Nobody()


ANSWER = "approval"


def _form(question: Question) -> dict[str, Any]:
    explained = "; ".join(f"{choice}: {meaning}" for choice, meaning in question.choices.items())
    return {
        "type": "object",
        "properties": {
            "decision": {
                "type": "string",
                "title": "Your decision",
                "description": explained,
                "enum": list(question.choices),
            }
        },
        "required": ["decision"],
    }


def _input_required(question: Question) -> t.InputRequiredResult:
    form = t.ElicitRequestFormParams(message=question.text, requested_schema=_form(question))
    return t.InputRequiredResult(
        input_requests={ANSWER: t.ElicitRequest(params=form)},
        request_state=json.dumps({"approval": question.approval}),
    )


OUTSIDE = "outside:"
"""What the name of a wrapped server's question begins with among those that a client is asked."""


def _input_required_outside(ask: AskThrough) -> t.InputRequiredResult:
    forms = {
        OUTSIDE + key: t.ElicitRequest(
            params=t.ElicitRequestFormParams(message=form.text, requested_schema=dict(form.schema))
        )
        for key, form in ask.forms.items()
    }
    state = {"approval": ask.approval, "outside": carried(ask.onward)}
    return t.InputRequiredResult(input_requests=dict(forms), request_state=json.dumps(state))


def _onward(state: str | None, responses: Mapping[str, Any]) -> Onward | None:
    """Where a server's questions were left, with the answers to them; the boundary has verified that it is ours."""
    try:
        found = json.loads(state or "")["outside"]
    except (ValueError, KeyError, TypeError):
        return None
    given: dict[str, tuple[str, Mapping[str, Any] | None]] = {
        key.removeprefix(OUTSIDE): (answer.action, answer.content)
        for key, answer in responses.items()
        if key.startswith(OUTSIDE) and isinstance(answer, t.ElicitResult)
    }
    return brought(found, given)


def _decision(answer: Any, question: Question) -> Decision | None:
    """Only `accept` with exactly one offered decision decides; everything else is as if nobody was asked."""
    if not isinstance(answer, t.ElicitResult) or answer.action != "accept":
        return None
    content = answer.content or {}
    chosen = content.get("decision")
    if set(content) != {"decision"} or not isinstance(chosen, str) or chosen not in question.choices:
        return None
    return Decision(chosen)


def _pointer(state: str) -> str | None:
    """The approval that a client's state points to. The boundary has verified that the state is one of ours."""
    try:
        found = json.loads(state)["approval"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _principal(identify: Identify, ctx: Context) -> str:
    try:
        caller = identify(ctx)
    except (Frozen, CallRefused) as refusal:
        raise MCPError(t.INVALID_REQUEST, str(refusal)) from None
    return json.dumps([caller.org, caller.agent, caller.member, caller.token_mark])


def _with_client(caller: Caller, ctx: Context) -> Caller:
    client = ctx.session.client_params
    if client is None:
        return caller
    info = client.client_info
    return replace(caller, client=_printable(info.name), client_version=_printable(info.version))


def _printable(text: str) -> str:
    return "".join(char for char in text if char.isprintable())[:100]


def _result(text: str, content: dict[str, Any] | None, *, ok: bool) -> t.CallToolResult:
    return t.CallToolResult(
        content=[t.TextContent(type="text", text=text)], structured_content=content, is_error=not ok
    )


# -- stdio


async def run_stdio(
    server: Server[Any], parts: Parts, identify: Callable[[Any], Caller], *, stdin: TextIO, stdout: TextIO
) -> None:
    """Serve one client over standard streams until it hangs up.

    `server/discover` is answered without fixing the era: clients probe, give up, and then send `initialize` on the
    same pipe, so it is the first other request that decides.
    """
    streams = stdio_server(stdin=anyio.wrap_file(stdin), stdout=anyio.wrap_file(stdout))
    async with streams as (read, write):
        send, undecided = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        modern = True  # until a client says `initialize`

        async def pump() -> None:
            nonlocal modern
            deciding = True
            async with send:
                async for item in read:
                    if deciding and _is_probe(item):
                        probe = cast("t.JSONRPCRequest", cast("SessionMessage", item).message)
                        reply = t.JSONRPCResponse(jsonrpc="2.0", id=probe.id, result=discovery(server))
                        await write.send(SessionMessage(reply))
                        continue
                    if deciding and _is_request(item):
                        deciding = False
                        modern = cast("t.JSONRPCRequest", cast("SessionMessage", item).message).method != "initialize"
                    await send.send(item)

        async def tell_of_changes() -> None:
            """Handshake clients get a notification on this one pipe; modern ones open a stream for it."""
            try:
                caller = identify(None)
            except Exception:
                return
            async for _ in changes(parts, caller, through_freeze=True):
                if not modern:
                    note = t.JSONRPCNotification(jsonrpc="2.0", method="notifications/tools/list_changed")
                    await write.send(SessionMessage(note))

        async with anyio.create_task_group() as group:
            group.start_soon(pump)
            group.start_soon(tell_of_changes)
            options = server.create_initialization_options(NotificationOptions(tools_changed=True))
            await server.run(undecided, write, options)
            group.cancel_scope.cancel()


def discovery(server: Server[Any]) -> dict[str, Any]:
    """The result of `server/discover`, as the SDK would give it."""
    result = t.DiscoverResult(
        supported_versions=list(MODERN_PROTOCOL_VERSIONS),
        capabilities=server.get_capabilities(protocol_version=MODERN_PROTOCOL_VERSIONS[-1]),
        instructions=server.instructions,
        ttl_ms=0,
        cache_scope="private",
    )
    wire = serialize_server_result(
        "server/discover",
        MODERN_PROTOCOL_VERSIONS[-1],
        result.model_dump(by_alias=True, mode="json", exclude_none=True),
    )
    return {**wire, "_meta": {"io.modelcontextprotocol/serverInfo": server.server_info_stamp}}


def _is_request(item: SessionMessage | Exception) -> bool:
    return isinstance(item, SessionMessage) and isinstance(item.message, t.JSONRPCRequest)


def _is_probe(item: SessionMessage | Exception) -> bool:
    if not isinstance(item, SessionMessage) or not isinstance(item.message, t.JSONRPCRequest):
        return False
    request = item.message
    meta: dict[str, Any] = (request.params or {}).get("_meta") or {}
    version = meta.get("io.modelcontextprotocol/protocolVersion")
    return request.method == "server/discover" and version in MODERN_PROTOCOL_VERSIONS


# -- HTTP

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_VERSION_HEADER = b"mcp-protocol-version"
SESSION_S = 1800.0
SESSIONS_PER_AGENT = 200
"""Handshake sessions that one agent may open in `SESSION_S`, after which an idle one is closed."""
CALLER = "keyleash.caller"
"""Where the HTTP application leaves the caller it has authenticated, in the ASGI scope."""
AT_ONCE = "keyleash.at-once"
"""Set there where the whole body had come when the caller was looked at: there was no time to change anything."""


class HttpFace:
    """Streamable HTTP: JSON for modern clients, SSE for those of the handshake, which could not be asked otherwise."""

    def __init__(
        self, server: Server[Any], again: Callable[[Caller], Caller | None], *, hosts: list[str], origins: list[str]
    ) -> None:
        self._again = again
        security = TransportSecuritySettings(
            enable_dns_rebinding_protection=True, allowed_hosts=hosts, allowed_origins=origins
        )
        self._modern = StreamableHTTPSessionManager(server, json_response=True, security_settings=security)
        self._handshake = StreamableHTTPSessionManager(
            server, json_response=False, security_settings=security, session_idle_timeout=SESSION_S
        )
        self._opened: dict[str, deque[float]] = {}

    def _may_open(self, agent: str) -> bool:
        """Whether the agent may open one more session; the SDK's own limit is one for all agents together."""
        now = time.monotonic()
        opened = self._opened.setdefault(agent, deque())
        while opened and opened[0] < now - SESSION_S:
            opened.popleft()
        if len(opened) >= SESSIONS_PER_AGENT:
            return False
        opened.append(now)
        return True

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Both managers, for as long as the application lives."""
        async with self._modern.run(), self._handshake.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of an authenticated caller, who stands in `scope[CALLER]`."""
        version = next((value for name, value in scope["headers"] if name == _VERSION_HEADER), b"")
        manager = self._modern
        if version.decode("latin-1") not in MODERN_PROTOCOL_VERSIONS:
            manager = self._handshake
            caller: Caller = scope[CALLER]
            in_session = any(name == b"mcp-session-id" for name, _ in scope["headers"])
            if scope["method"] == "POST" and not in_session and not self._may_open(caller.agent):
                await _too_many(send)
                return
            if scope["method"] == "DELETE" and self._opened.get(caller.agent):
                self._opened[caller.agent].popleft()
            scope["user"] = _session_owner(caller)
            if scope["method"] == "GET":
                receive = _while_welcome(receive, self._again, caller)
        if scope["method"] == "POST":
            receive = _noting_what_comes_at_once(scope, receive)
        await manager.handle_request(scope, receive, send)  # pyright: ignore[reportArgumentType] - ASGI's own types


def _noting_what_comes_at_once(scope: Scope, receive: Receive) -> Receive:
    """Set `scope[AT_ONCE]` where the first message is the whole body, and was there without waiting for it."""
    first = True

    async def received() -> dict[str, Any]:
        nonlocal first
        waited: list[bool] = []
        noted = asyncio.get_running_loop().call_soon(waited.append, True)  # runs only if something else may run
        message = await receive()
        noted.cancel()
        if first and not waited and not message.get("more_body"):
            scope[AT_ONCE] = True
        first = False
        return message

    return received


def _while_welcome(receive: Receive, again: Callable[[Caller], Caller | None], caller: Caller) -> Receive:
    """As if the client hung up, within a second or so, once the caller may no longer ask: its stream ends with that."""

    async def received() -> dict[str, Any]:
        heard: dict[str, Any] = {"type": "http.disconnect"}

        async def listen() -> None:
            nonlocal heard
            heard = await receive()
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            while _is_welcome(again, caller):  # noqa: ASYNC110 - what ends it is a row that changes
                await anyio.sleep(CHANGES_S)
            group.cancel_scope.cancel()
        return heard

    return received


def _is_welcome(again: Callable[[Caller], Caller | None], caller: Caller) -> bool:
    try:
        return again(caller) is not None
    except Frozen:
        return False
    except DatabaseProblem:
        return True  # it may be back at the next look, and nothing is told meanwhile


async def _too_many(send: Send) -> None:
    body = json.dumps({"error": "too_many_sessions", "error_description": "Use the sessions that are open."}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _session_owner(caller: Caller) -> AuthenticatedUser:
    """Whom the SDK binds a session to; only the handshake has sessions."""
    token = AccessToken(token="", client_id=caller.agent, scopes=[], subject=caller.member, claims={"iss": caller.org})
    return AuthenticatedUser(token)


def caller_of_request(again: Callable[[Caller], Caller | None], ctx: Context) -> Caller:
    """The caller whom the HTTP application has authenticated for this very request, as of now.

    The application looks when the headers come. Where the body took its time, the caller is looked at `again`: who may
    no longer ask by then does not. Raises Frozen or Refused.
    """
    if ctx.request is None:
        raise MCPError(t.INVALID_REQUEST, "This request came without a caller.")
    caller: Caller = ctx.request.scope[CALLER]
    if ctx.request.scope.get(AT_ONCE):
        return caller
    now = again(caller)
    if now is None:
        raise Refused("the agent was removed, or its access ended, before all of its request had come")
    return now
