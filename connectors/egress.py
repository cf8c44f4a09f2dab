"""The one door out: a prepared request leaves for its own origin and nowhere else, and what comes back is bounded.

The address is vetted and then dialled; the credential is attached last, after the URL has been checked; no redirect is
followed, no cookie kept, no proxy or netrc taken from the environment. Exceptions are made here, in frames that never
held the secret: nothing that the HTTP library raises escapes.
"""

import asyncio
import contextlib
import io
import socket
import ssl
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from time import perf_counter
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from connectors.addresses import Network, allowed
from connectors.bounded import DEFAULT_LIMITS, Inflate, Limits, check_json
from connectors.departure import checked_headers, checked_url, not_public, with_query
from connectors.errors import ConnectorError, ResponseTooLarge, Unreachable, UpstreamError
from connectors.request import Prepared
from connectors.waiting import retry_after

__all__ = ["Attach", "Egress", "Fill", "Limits", "Reply", "Resolve", "Stream", "resolve_apart"]

# Adds authentication to the headers and the query; returns every secret string that it put there or that was made of
# one, so that these can be scrubbed from what comes back.
Attach = Callable[[dict[str, str], list[tuple[str, str]]], tuple[str, ...]]
# Makes a body that holds secrets, at the moment of sending; returns it with every secret string in it.
Fill = Callable[[], tuple[bytes, tuple[str, ...]]]
# Looks at a body that came whole and is not taken in, with every secret string that may be in it.
TooLarge = Callable[[bytes, tuple[str, ...]], object]
# The addresses of a host and port; an OSError where there are none.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_RETRIES = 2
_PATIENCE_S = 5.0  # the longest Retry-After that is waited for
_SMALL = 64 * 1024  # up to here an answer may be as dense as it likes
_HEADER_BYTES = 16 * 1024
_NO_BODY = ("Content-Type",)  # left alone, the library names a type for the body that is not there


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, decoded and within its limits. Not scrubbed yet: `answer.interpret` does that."""

    status: int
    headers: Mapping[str, str] = field(repr=False)  # names in lower case, repeated ones joined by ", "; no cookies
    body: bytes = field(repr=False)
    milliseconds: float  # from the first attempt to the last byte
    bytes_in: int  # of the body, on the wire
    secrets: tuple[str, ...] = field(default=(), repr=False)
    maybe_before: bool = False  # an earlier try may have arrived as well, of which a refusal of the last says nothing


class Egress:
    """Sends prepared requests. Make one per process, and close it.

    `resolve` finds a host's addresses, which are vetted all the same; `tls` is an operator's own trust root.
    """

    def __init__(self, *, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._resolve = resolve or _system_resolve
        self._tls = tls
        self._agent = _user_agent()
        # A connection opened under one allowance must not serve a call that has another: a pool for each.
        self._sessions: dict[tuple[Network, ...], aiohttp.ClientSession] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection; `send` refuses from then on."""
        self._closed = True
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()

    async def send(
        self,
        prepared: Prepared,
        *,
        attach: Attach,
        private: tuple[Network, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
        fill: Fill | None = None,
        too_large: TooLarge | None = None,
    ) -> Reply:
        """Send the request to its origin, authenticated by `attach`, and return the whole bounded answer.

        `fill` makes the body in place of `prepared.body`, where that holds secrets itself. `too_large` sees what came
        whole before ResponseTooLarge is raised for it, and must not raise.

        `private` are the networks that the operator has opened for this connection. A GET, a HEAD, a GraphQL query, or
        a request with an idempotency key is tried up to three times within `limits.total_s`: when the connection fails
        before an answer, or after a 429 or 503 whose Retry-After is at most five seconds. Nothing else is ever sent
        twice. What is told of several tries is what the last came to, with `maybe_before` where an earlier one may have
        arrived; but where the last did not leave, what that earlier one came to.

        Raises Unsendable before anything is attached or dialled; Unreachable when no answer came (`maybe_sent` tells
        whether the request may have arrived); ResponseTooLarge; UpstreamError for a redirect. What `attach` raises
        passes, without its traceback.
        """
        url, session = self._door(prepared, private)
        retries = _RETRIES if prepared.idempotent or prepared.safe else 0
        started = perf_counter()
        left = limits.total_s
        arrived: _Answered | _Failed | None = None
        while True:
            try:
                outcome = await self._attempt(
                    session, prepared, url, attach=attach, fill=fill, limits=limits, left=left, too_large=too_large
                )
            except asyncio.CancelledError as cancelled:
                raise _bare(cancelled) from None
            spent = perf_counter() - started
            wait = _wait_before_retry(outcome, first=retries == _RETRIES) if retries else None
            if wait is None or spent + wait >= limits.total_s:
                break
            if arrived is None and _may_have_arrived(outcome):
                arrived = outcome
            retries -= 1
            left = limits.total_s - spent - wait
            await asyncio.sleep(wait)
        if arrived is not None and not _may_have_arrived(outcome) and isinstance(outcome, _Failed):
            outcome = arrived
        if isinstance(outcome, _Failed):
            raise outcome.error
        status, headers, body, wire, secrets = outcome
        return Reply(status, headers, body, spent * 1000, wire, secrets, maybe_before=arrived is not None)

    def _door(self, prepared: Prepared, private: tuple[Network, ...]) -> tuple[yarl.URL, aiohttp.ClientSession]:
        """The URL, checked, and the connections that may serve it. Raises Unsendable or Unreachable."""
        if self._closed:
            raise Unreachable("Keyleash is shutting down, so nothing was sent.", maybe_sent=False)
        return checked_url(prepared, private), self._sessions.get(private) or self._open(private)

    def _open(self, private: tuple[Network, ...]) -> aiohttp.ClientSession:
        session = self._sessions[private] = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_Vetting(self._resolve, private), ssl=self._tls or True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            middlewares=(_never_twice,),
        )
        return session

    async def _attempt(
        self,
        session: aiohttp.ClientSession,
        prepared: Prepared,
        url: yarl.URL,
        *,
        attach: Attach,
        fill: Fill | None,
        limits: Limits,
        left: float,
        too_large: TooLarge | None,
    ) -> "_Answered | _Failed":
        """One sending. The secret is in this frame and below, so every failure is returned, to be raised elsewhere."""
        answered = await self._answered(session, prepared, url, attach=attach, fill=fill, limits=limits, left=left)
        if isinstance(answered, _Failed):
            return answered
        response, secrets = answered
        try:
            try:
                content, wire = await _read(response, prepared, limits)
            finally:
                response.close()  # read to its end, the connection is in the pool already; otherwise it goes
            try:
                check_json(content, _host(prepared), limits)
            except ResponseTooLarge:
                if too_large is not None:
                    too_large(content, secrets)
                raise
        except Exception as error:
            return _failed(error, prepared, limits)
        return response.status, _plain(response.headers), content, wire, secrets

    async def _answered(
        self,
        session: aiohttp.ClientSession,
        prepared: Prepared,
        url: yarl.URL,
        *,
        attach: Attach,
        fill: Fill | None,
        limits: Limits,
        left: float,
    ) -> "tuple[aiohttp.ClientResponse, tuple[str, ...]] | _Failed":
        """One sending, up to the head of the answer."""
        try:
            headers, query, secrets = self._authenticated(prepared, attach)
            body, more = fill() if fill else (prepared.body, ())
            secrets = (*secrets, *more)
        except Exception as error:
            return _Failed(_bare(error))
        try:
            response = await session.request(
                prepared.method,
                with_query(url, query) if query else url,
                data=_payload(body),
                headers=headers,
                skip_auto_headers=None if body or prepared.method == "GET" else _NO_BODY,
                allow_redirects=False,
                timeout=_timeout(min(limits.connect_s, left), left),
            )
            try:
                _refuse_redirect(response.status, prepared)
            except ConnectorError:
                response.close()
                raise
        except Exception as error:
            return _failed(error, prepared, limits)
        return response, secrets

    async def stream(
        self,
        prepared: Prepared,
        *,
        attach: Attach,
        private: tuple[Network, ...] = (),
        limits: Limits = DEFAULT_LIMITS,
    ) -> "Stream":
        """Send the request once, as `send` does, and return as soon as the answer begins; close the Stream after."""
        url, session = self._door(prepared, private)
        try:
            answered = await self._answered(
                session, prepared, url, attach=attach, fill=None, limits=limits, left=limits.total_s
            )
        except asyncio.CancelledError as cancelled:
            raise _bare(cancelled) from None
        if isinstance(answered, _Failed):
            raise answered.error
        response, secrets = answered
        return Stream(response, prepared, limits, secrets)

    def _authenticated(
        self, prepared: Prepared, attach: Attach
    ) -> tuple[dict[str, str], list[tuple[str, str]], tuple[str, ...]]:
        headers = dict(prepared.headers)
        query: list[tuple[str, str]] = []
        secrets = attach(headers, query)
        names = checked_headers(headers)
        if "user-agent" not in names:
            headers["User-Agent"] = self._agent
        if "accept" not in names:
            headers["Accept"] = "application/json"
        headers["Accept-Encoding"] = "gzip, deflate"
        return headers, query, secrets


class Stream:
    """An answer of which the head has come, and the rest comes piece by piece, within the same limits."""

    def __init__(
        self, response: aiohttp.ClientResponse, prepared: Prepared, limits: Limits, secrets: tuple[str, ...]
    ) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = _plain(response.headers)
        self.secrets: Callable[[], tuple[str, ...]] = lambda: secrets
        self.bytes_in = 0
        self._response, self._prepared, self._limits = response, prepared, limits

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The decoded body; raises Unreachable and ResponseTooLarge as `Egress.send` does."""
        failed: Exception | None = None
        values = 0
        try:
            async for part, wire in _pieces(self._response, _host(self._prepared), self._limits):
                self.bytes_in = wire
                values += part.count(b",")
                if values > self._limits.max_values:
                    failed = ResponseTooLarge(
                        f"{_host(self._prepared)} sent more than {self._limits.max_values} values. Ask for less."
                    )
                    break
                yield part
        except Exception as error:
            failed = _failed(error, self._prepared, self._limits).error
        finally:
            self.close()
        if failed is not None:
            raise failed

    async def whole(self) -> bytes:
        """The rest of the body at once; JSON is checked for its depth as well."""
        body = b"".join([part async for part in self.pieces()])
        check_json(body, _host(self._prepared), self._limits)
        return body

    def close(self) -> None:
        """End it, whatever is still to come."""
        self._response.close()


class _Vetting(AbstractResolver):
    """Resolves a name and vets every address; the library then dials one of these, and resolves no more."""

    def __init__(self, resolve: Resolve, private: tuple[Network, ...]) -> None:
        self._resolve, self._private = resolve, private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = await self._resolve(host, port)
        if not addresses or not all(allowed(address, self._private) for address in addresses):
            raise _NotPublicError
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


async def _system_resolve(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(entry[4][0]) for entry in found]


async def resolve_apart(host: str, port: int) -> Sequence[str]:
    """The system's addresses of a host, each found on a thread of its own: a slow name server holds up nobody else.

    The threads that everything else shares also flush the database to disk.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Sequence[str]] = loop.create_future()

    def look() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except OSError as error:
            answer: Sequence[str] | OSError = error
        else:
            answer = [str(entry[4][0]) for entry in entries]
        with contextlib.suppress(RuntimeError):  # nobody waits any more, and the loop has closed
            loop.call_soon_threadsafe(_settle, found, answer)

    threading.Thread(target=look, daemon=True).start()
    return await found


def _settle(found: "asyncio.Future[Sequence[str]]", answer: Sequence[str] | OSError) -> None:
    if found.done():
        return
    if isinstance(answer, OSError):
        found.set_exception(answer)
    else:
        found.set_result(answer)


_Answered = tuple[int, dict[str, str], bytes, int, tuple[str, ...]]  # status, headers, body, bytes on the wire, secrets


async def _read(response: aiohttp.ClientResponse, prepared: Prepared, limits: Limits) -> tuple[bytes, int]:
    """The decoded body and its length on the wire."""
    host = _host(prepared)
    parts: list[bytes] = []
    wire = 0
    async for part, wire in _pieces(response, host, limits):  # noqa: B007 - the last one is the whole length
        parts.append(part)
    return b"".join(parts), wire


async def _pieces(response: aiohttp.ClientResponse, host: str, limits: Limits) -> AsyncGenerator[tuple[bytes, int]]:
    """The decoded body as it comes, and how much of it has come over the wire so far."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    inflate = Inflate(encoding, host) if encoding not in ("", "identity") else None
    if (response.content_length or 0) > limits.max_body:
        raise ResponseTooLarge(_too_large(host, limits))
    wire = size = 0
    while chunk := await response.content.readany():
        wire += len(chunk)
        ceiling = min(limits.max_body, max(_SMALL, wire * limits.max_ratio))
        part = inflate.decode(chunk, ceiling - size + 1) if inflate else chunk
        size += len(part)
        if max(size, wire) > limits.max_body:
            raise ResponseTooLarge(_too_large(host, limits))
        if size > ceiling:
            raise ResponseTooLarge(f"{host} sent an answer that is compressed more than {limits.max_ratio} to 1.")
        yield part, wire
    if inflate and wire:
        inflate.check_whole()


def _too_large(host: str, limits: Limits) -> str:
    return f"{host} sent more than {limits.max_body / 1048576:g} MiB. Ask for less: a smaller page, a narrower filter."


def _refuse_redirect(status: int, prepared: Prepared) -> None:
    if status < 200:
        raise Unreachable(f"{_host(prepared)} asked to switch protocols, which is not done.")
    if 300 <= status < 400:
        raise UpstreamError(status, f"{_host(prepared)} redirected the request; redirects are not followed")


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    plain: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        plain[key] = f"{plain[key]}, {value}" if key in plain else value
    plain.pop("set-cookie", None)
    return plain


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception
    lost: bool = False  # no connection, or it went before an answer: what may be repeated is worth another try


class _LostError(aiohttp.ClientError):
    """The connection went away before the answer."""


class _NotPublicError(OSError):
    """A name leads to an address that is closed."""


async def _never_twice(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """By itself the library sends a PUT or a DELETE again when a pooled connection fails; only `send` may do so."""
    try:
        return await send(request)
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError):
        raise
    except aiohttp.ClientConnectionError:
        raise _LostError from None


# A kind of failure, what is said of it, whether the request may have arrived, whether another try is worth while.
# The first that fits; never a word of the exception's own.
_FAILURES: tuple[tuple[type[Exception], str, bool, bool], ...] = (
    (aiohttp.ClientConnectorDNSError, "{host} was not found. Check the network and the base URL.", False, True),
    (aiohttp.ClientSSLError, "{host} could not prove its identity: its TLS certificate was refused.", False, False),
    (aiohttp.ClientConnectorError, "{host} could not be reached. Nothing was sent; try again later.", False, True),
    (aiohttp.ConnectionTimeoutError, "{host} took no connection in {connect:g} s. Nothing was sent.", False, False),
    (TimeoutError, "{host} did not finish its answer in {total:g} s.", True, False),
    (_LostError, "{host} closed the connection without an answer.", True, True),
    (aiohttp.ClientPayloadError, "{host} broke off in the middle of its answer.", True, False),
    (OSError, "{host} broke off in the middle of its answer.", True, False),
    (Exception, "{host} sent an answer that cannot be understood.", True, False),
)


def _failed(error: Exception, prepared: Prepared, limits: Limits) -> _Failed:
    if isinstance(error, ConnectorError):
        return _Failed(_bare(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError) and isinstance(error.os_error, _NotPublicError):
        return _Failed(Unreachable(not_public(_host(prepared)), maybe_sent=False))
    text, maybe_sent, lost = next(row[1:] for row in _FAILURES if isinstance(error, row[0]))
    said = text.format(host=_host(prepared), connect=limits.connect_s, total=limits.total_s)
    return _Failed(Unreachable(said, maybe_sent=maybe_sent), lost)


def _may_have_arrived(outcome: "_Answered | _Failed") -> bool:
    """Whether this try may have been carried out, for all that its outcome says."""
    if not isinstance(outcome, _Failed):
        return outcome[0] != 429
    error = outcome.error
    return error.maybe_sent if isinstance(error, Unreachable) else isinstance(error, (ResponseTooLarge, UpstreamError))


def _wait_before_retry(outcome: "_Answered | _Failed", *, first: bool) -> float | None:
    """Seconds, or None where there is nothing to be gained by another try."""
    if isinstance(outcome, _Failed):
        return (0.0 if first else 0.25) if outcome.lost else None
    if outcome[0] not in (429, 503):
        return None
    wait = retry_after(outcome[1])
    return wait if wait is not None and wait <= _PATIENCE_S else None


_Error = TypeVar("_Error", bound=BaseException)


def _bare(error: _Error) -> _Error:
    """The same exception without the frames and causes behind it: these hold the request, and so the secret."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    return body if body is None or len(body) < 1 << 20 else io.BytesIO(body)  # a large one is written in pieces


@lru_cache(maxsize=64)
def _timeout(connect: float, total: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total, connect=connect)


def _host(prepared: Prepared) -> str:
    return prepared.origin.partition("//")[2]


def _user_agent() -> str:
    try:
        return f"keyleash/{metadata.version('keyleash')}"
    except metadata.PackageNotFoundError:
        return "keyleash/0"
