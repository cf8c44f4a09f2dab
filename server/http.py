"""The HTTP door: who knocks is known before anything else happens, and a strange Host or Origin gets nowhere."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from urllib.parse import urlsplit

from server.identity import Caller, Frozen, Outside
from server.narrowing import Network, address_of, within
from server.page import APPROVAL_PATH, HEADERS, PAGE
from server.readiness import READY

log = logging.getLogger("keyleash")

AGENT_PATH = "/agent/mcp"
"""Where agents with a static token connect. It carries no OAuth discovery: some clients would then drop their token."""

NOT_SERVED = "Keyleash is not served under this name. Its operator adds it to KEYLEASH_ALLOWED_HOSTS."

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class BindProblem(Exception):
    """The server cannot listen there; the message says how to mend it."""


class Face(Protocol):
    """What serves an authenticated request: `protocol.HttpFace`."""

    def run(self) -> AbstractAsyncContextManager[None]: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class ByToken(Protocol):
    """Who holds a token that was sent from an address: `Directory.by_token`."""

    def __call__(self, token: str, *, address: str | None) -> Caller | None: ...


class Door:
    """An ASGI application: `/agent/mcp` for agents, `/health` and `/ready` for whoever watches, and a page.

    `/health` says that the process answers, `/ready` whether calls can be carried out; neither asks who wants to know.

    The page is the same for everybody who follows a link to an approval, and holds nothing of any org.

    `proxies` are believed about whom they forward; `turned_away` is told of each token used from where it may not be.
    """

    def __init__(
        self,
        face: Face,
        by_token: ByToken,
        turned_away: Callable[[Caller], Awaitable[None]],
        ready: Callable[[], Awaitable[Mapping[str, str]]],
        *,
        caller_key: str,
        hosts: list[str],
        proxies: Sequence[Network] = (),
    ) -> None:
        self._hosts = frozenset(hosts)
        self._face = face
        self._by_token = by_token
        self._turned_away = turned_away
        self._ready = ready
        self._caller_key = caller_key
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] != "http":
            raise RuntimeError("only HTTP is served here")
        elif not _welcome(scope, self._hosts):
            await _answer(send, 421, {"error": "misdirected", "error_description": NOT_SERVED})
        elif scope["path"] == AGENT_PATH:
            await self._agent(scope, receive, send)
        elif scope["path"] == "/health":
            await _answer(send, 200, {"status": "ok"})
        elif scope["path"] == "/ready":
            found = await self._ready()
            ready = all(word == READY for word in found.values())
            await _answer(send, 200 if ready else 503, {"status": READY if ready else "not ready", **found})
        elif APPROVAL_PATH.fullmatch(scope["path"]):
            await _page(send, scope["method"])
        else:
            await _answer(send, 404, {"error": "not_found", "error_description": f"Agents connect at {AGENT_PATH}."})

    async def _agent(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller = self._by_token(_bearer(scope), address=sender(scope, self._proxies))
        except Frozen as frozen:
            await _answer(send, 403, {"error": "frozen", "error_description": str(frozen)})
            return
        except Outside as outside:
            await _stranger(send)
            # After the answer: a thief who tries tokens learns nothing from how long the entry takes either.
            await self._turned_away(outside.caller)
            return
        if caller is None:
            await _stranger(send)
            return
        scope[self._caller_key] = caller
        # The token has done its work: nothing behind this door can log or echo it. White space around a value is no
        # part of it (RFC 9110, 5.5), and not every HTTP parser takes it off.
        scope["headers"] = [(name, value.strip(b" \t")) for name, value in scope["headers"] if name != b"authorization"]
        await self._face(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self._face.run():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def _welcome(scope: Scope, hosts: frozenset[str]) -> bool:
    """Whether the one Host header names us, with any port where the list says `:*`."""
    given = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    if len(given) != 1:
        return False
    name, colon, port = given[0].rpartition(":")
    return given[0] in hosts or bool(colon and port.isdigit() and f"{name}:*" in hosts)


def _bearer(scope: Scope) -> str:
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(given) != 1:
        return ""
    scheme, _, token = given[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


LONGEST_CHAIN = 32
"""Proxies that one request may have come through."""


def sender(scope: Scope, proxies: Sequence[Network]) -> str | None:
    """The address that a request came from, or None where that cannot be told.

    It is the peer's, unless that is one of the operator's `proxies`: then it is the right-most address in
    X-Forwarded-For that is none of them, each being believed about the one before it. A proxy that names nobody, and a
    header that holds anything but addresses, tell nothing.
    """
    peer = address_of(str(scope["client"][0])) if scope.get("client") else None
    if peer is None or not within(peer, proxies):
        return None if peer is None else str(peer)
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
    chain = [address_of(each.strip()) for each in ",".join(given).split(",", LONGEST_CHAIN - 1)]
    known = [address for address in chain if address is not None]
    if len(known) < len(chain):
        return None
    return str(next((address for address in reversed(known) if not within(address, proxies)), known[0]))


async def _stranger(send: Send) -> None:
    """What anything but a valid token gets, whatever is wrong with it."""
    description = "Send a valid agent token as `Authorization: Bearer …`."
    await _answer(send, 401, {"error": "invalid_token", "error_description": description}, challenge=True)


async def _answer(send: Send, status: int, content: dict[str, str], *, challenge: bool = False) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if challenge:
        headers.append((b"www-authenticate", b'Bearer error="invalid_token"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _page(send: Send, method: str) -> None:
    """How to decide about a held call; nothing can be decided there, and no other method does anything."""
    if method not in ("GET", "HEAD"):
        await _answer(send, 405, {"error": "method_not_allowed", "error_description": "Nothing is decided here."})
        return
    headers = [*HEADERS, (b"content-length", str(len(PAGE)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else PAGE})


def parse_bind(text: str) -> tuple[str, int]:
    """`127.0.0.1:8700`, `[::1]:8700` or `localhost:8700` as host and port. Raises BindProblem."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise BindProblem(f"{text!r} is not HOST:PORT. Write for instance 127.0.0.1:8700.")
    return host, int(port)


LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def allowed(host: str, configured: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The Host and Origin headers that a bind to `host` accepts.

    Loopback answers to its own names, whatever else is configured. Raises BindProblem for any other bind without
    allowed hosts.
    """
    own = LOOPBACK if _loopback(host) else ()
    if not own and not configured:
        raise BindProblem(
            f"{host} can be reached from other machines. Say under which names, so that others are refused: "
            "KEYLEASH_ALLOWED_HOSTS=keyleash.example.com"
        )
    named, here = _any_port(configured), _any_port(own)
    origins = [f"{scheme}://{name}" for scheme in ("https", "http") for name in named]
    return [*named, *here], [*origins, *(f"http://{name}" for name in here)]


def _any_port(names: Sequence[str]) -> list[str]:
    return [each for name in names for each in (name.lower(), f"{name.lower()}:*")]


def not_reached(public_url: str, hosts: list[str]) -> str | None:
    """The host of the address that people are given, where a server that accepts these `hosts` turns it away."""
    given = urlsplit(public_url.lower()).netloc
    name = given.partition(":")[0]
    return None if not given or given in hosts or f"{name}:*" in hosts else name


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
