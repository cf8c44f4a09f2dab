"""One door out: what leaves goes to its own origin, exactly as prepared; what comes back is bounded; nothing leaks.

Every upstream here is a real socket on loopback that records the bytes it gets.
"""

import asyncio
import contextlib
import datetime
import email.utils
import gzip
import ssl
import threading
import traceback
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from connectors.bounded import Limits, deeper_than
from connectors.definition import Call
from connectors.egress import Egress, Reply, resolve_apart
from connectors.errors import (
    ConnectorError,
    CredentialMalformed,
    ResponseTooLarge,
    Unreachable,
    Unsendable,
    UpstreamError,
)
from connectors.loading import parse
from connectors.request import Prepared, prepare
from connectors.waiting import retry_after
from tests.certificates import self_signed

pytestmark = pytest.mark.anyio

CANARY = "sk_live_CANARY4f8a91"
LOOPBACK = (ip_network("127.0.0.1/32"),)
QUICK = Limits(connect_s=0.3, total_s=0.3)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Upstream:
    """A socket that records each whole request, then lets the next script answer (the last one stays)."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        self.scripts, self.requests, self.connections, self.port = list(scripts), list[bytes](), 0, 0
        self.gone = asyncio.Event()
        self.listener: asyncio.Server | None = None

    def stop_listening(self) -> None:
        """From now on a connection is refused; those that stand stay."""
        assert self.listener is not None
        self.listener.close()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        # uvloop says of a client that has gone that the handler is closed: a RuntimeError.
        with contextlib.suppress(ConnectionError, RuntimeError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = [
                    line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                self.requests.append(head + await reader.readexactly(int(length[0]) if length else 0))
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                await script(self.requests[-1], writer)
                await writer.drain()
        self.gone.set()
        writer.close()


@asynccontextmanager
async def upstream(
    *scripts: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Upstream]:
    made = Upstream(scripts or [says(b"{}")])
    server = await asyncio.start_server(made.serve, host, 0, limit=1 << 24, ssl=tls)
    made.listener, made.port = server, server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def says(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> Script:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", ""))
    return raw(head.encode() + body)


def raw(answer: bytes) -> Script:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return script


async def hangs_up(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def says_nothing(request: bytes, writer: asyncio.StreamWriter) -> None:
    """The connection stays open; no answer ever comes."""


def prepared(origin: str, target: str = "/v1/charges", method: str = "GET", **changes: Any) -> Prepared:
    fields: dict[str, Any] = {"base_path": "/v1", "headers": (), "body": None, "idempotent": False}
    return Prepared(method=method, url=origin + target, origin=origin, **(fields | changes))


def bearer(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
    headers["Authorization"] = f"Bearer {CANARY}"
    return (CANARY,)


def in_query(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
    query.append(("api key", f"{CANARY}&=+"))
    return (CANARY,)


def never(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
    raise AssertionError("the credential was attached")


def resolving(*addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


async def get(egress: Egress, origin: str, target: str = "/v1/charges", **options: Any) -> Reply:
    return await egress.send(prepared(origin, target), **({"attach": bearer, "private": LOOPBACK} | options))


# --- what leaves ------------------------------------------------------------------------------------------------------

EXACT = [
    "/v1/a%2e%2eb/%7E%41%2Fc",
    "/v1/x?q=%2e%2e%2F&r=a+b%20c&s=%c3%a9&t[]=1&u=",
    "/v1/%252e%252e/x",
    "/v1/a;b=c,d/@me:$1!*'()",
    "/v1//double",
]


@pytest.mark.parametrize("target", EXACT)
async def test_the_very_bytes_of_the_target_are_on_the_wire(target: str) -> None:
    async with upstream() as server, Egress() as egress:
        await get(egress, server.origin, target)
    assert server.requests[0].split(b"\r\n")[0] == f"GET {target} HTTP/1.1".encode()


async def test_nothing_is_sent_that_nobody_asked_for() -> None:
    async with upstream() as server, Egress() as egress:
        await egress.send(prepared(server.origin, method="POST"), attach=bearer, private=LOOPBACK)
    lines = server.requests[0].decode().lower().split("\r\n")
    names = {line.split(":")[0] for line in lines[1:] if line}
    assert names == {"host", "authorization", "user-agent", "accept", "accept-encoding", "content-length"}
    assert f"authorization: bearer {CANARY}".lower() in lines
    assert "accept-encoding: gzip, deflate" in lines
    assert any(line.startswith("user-agent: keyleash/") for line in lines)


async def test_a_large_body_arrives_whole_and_its_own_headers_stand() -> None:
    body = b'{"x":"' + b"y" * (3 << 20) + b'"}'
    headers = (("Content-Type", "application/json"), ("User-Agent", "own"), ("Accept", "text/csv"))
    async with upstream() as server, Egress() as egress:
        request = prepared(server.origin, method="POST", body=body, headers=headers)
        await egress.send(request, attach=bearer, private=LOOPBACK)
    head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    assert sent == body
    assert head.count(b"Content-Type") == head.count(b"User-Agent") == head.count(b"Accept:") == 1


async def test_a_secret_in_the_query_is_encoded_and_follows_what_was_prepared() -> None:
    async with upstream() as server, Egress() as egress:
        await get(egress, server.origin, "/v1/x?a=%2e", attach=in_query)
        await get(egress, server.origin, "/v1/x", attach=in_query)
    lines = [request.split(b" ")[1].decode() for request in server.requests]
    assert lines == [f"/v1/x?a=%2e&api%20key={CANARY}%26%3D%2B", f"/v1/x?api%20key={CANARY}%26%3D%2B"]


LEAVING = [
    "/v2/charges",
    "/v1x",
    "/",
    "",
    "x",
    "@evil.example/v1/",
    ".evil.example/v1/",
    "//evil.example/v1/",
    "/v1/../admin",
    "/v1/%2e%2e/admin",
    "/v1/%2E./admin",
    "/v1/..%2fadmin",
    "/v1/x%2F..%2f..%2Fadmin",
    "/v1/..%5cadmin",
    "/v1/./x",
    "/v1/..",
    "/v1/a b",
    "/v1/a\r\nX: y",
    "/v1/a\x00",
    "/v1/a\\..\\b",
    "/v1/é",
    "/v1/x#fragment",
]


@pytest.mark.parametrize("target", LEAVING)
async def test_a_request_that_would_leave_its_base_url_is_refused_before_the_credential(target: str) -> None:
    async with upstream() as server, Egress() as egress:
        with pytest.raises(Unsendable):
            await get(egress, server.origin, target, attach=never)
    assert server.connections == 0


@pytest.mark.parametrize(
    "origin",
    [
        "ftp://127.0.0.1",
        "HTTP://127.0.0.1",
        "http://user@127.0.0.1",
        "http://127.0.0.1:1/x",
        "http://",
        "http://a b",
        "http://ex%61mple.com",
        "http://127.0.0.1\n",
        "file:///etc",
    ],
)
async def test_an_origin_that_is_none_is_refused_before_the_credential(origin: str) -> None:
    async with Egress() as egress:
        with pytest.raises(Unsendable):
            await get(egress, origin, attach=never)


async def test_the_url_must_begin_with_its_own_origin() -> None:
    async with upstream() as evil, upstream() as server, Egress() as egress:
        request = Prepared(method="GET", url=f"{evil.origin}/v1/x", origin=server.origin, base_path="/v1", headers=())
        with pytest.raises(Unsendable):
            await egress.send(request, attach=never, private=LOOPBACK)
    assert evil.connections == server.connections == 0


@pytest.mark.parametrize("base", ["", "/v1", "/v1/"])
async def test_a_base_path_may_be_empty_or_end_in_a_slash(base: str) -> None:
    async with upstream() as server, Egress() as egress:
        await egress.send(prepared(server.origin, "/v1/x", base_path=base), attach=bearer, private=LOOPBACK)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "Bearer other"),  # beside the one that is attached
        ("Host", "evil.example"),
        ("Content-Length", "0"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "X-Secret"),
        ("Accept-Encoding", "br"),
        ("Expect", "100-continue"),
        ("X-A", "a\r\nX-B: b"),
        ("X-A", "a\nb"),
        ("X-A", "a\x00"),
        ("X-A", "é"),
        ("X A", "a"),
        ("X-A:", "a"),
        ("", "a"),
    ],
)
async def test_a_header_that_would_change_the_request_is_refused_and_nothing_leaves(name: str, value: str) -> None:
    async with upstream() as server, Egress() as egress:
        with pytest.raises(Unsendable) as refused:
            await egress.send(prepared(server.origin, headers=((name, value),)), attach=bearer, private=LOOPBACK)
    assert server.connections == 0
    no_secret_in(refused.value)


# --- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirect_to_another_host_is_not_followed(status: str, method: str) -> None:
    async with upstream() as evil:
        redirect = says(b"", status, f"Location: {evil.origin}/v1/steal")
        async with upstream(redirect) as server, Egress() as egress:
            with pytest.raises(UpstreamError) as refused:
                await egress.send(prepared(server.origin, method=method), attach=bearer, private=LOOPBACK)
    assert refused.value.status == int(status[:3])
    assert len(server.requests) == 1
    assert evil.connections == 0
    no_secret_in(refused.value)


async def test_a_redirect_to_the_same_origin_is_not_followed_either() -> None:
    async with upstream(says(b"", "307 Temporary", "Location: /v1/other")) as server, Egress() as egress:
        with pytest.raises(UpstreamError):
            await get(egress, server.origin)
    assert len(server.requests) == 1


CLOSED = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "nonsense",
]


@pytest.mark.parametrize("addresses", [*[(address,) for address in CLOSED], ("93.184.216.34", "127.0.0.1"), ()])
async def test_a_name_that_leads_to_a_closed_address_is_refused(addresses: tuple[str, ...]) -> None:
    async with upstream() as server, Egress(resolve=resolving(*addresses)) as egress:
        with pytest.raises(Unreachable, match="not public") as refused:
            await get(egress, f"http://api.example:{server.port}", private=())
    assert not refused.value.maybe_sent
    assert server.connections == 0


NOTATIONS = [
    *("127.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "127.1.", "0x7f000001", "0x7f.0.0.1", "0x7f.1", "2130706433"),
    *("017700000001", "0177.0.0.1", "0177.1", "127.0x1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::127.0.0.1]", "[0:0:0:0:0:0:0:1]", "localhost"),
]


@pytest.mark.parametrize("host", NOTATIONS)
async def test_no_notation_of_loopback_opens_it(host: str) -> None:
    """With the machine's own resolver."""
    async with upstream() as server, Egress() as egress:
        with pytest.raises((Unreachable, Unsendable)):
            await get(egress, f"http://{host}:{server.port}", private=())
    assert server.connections == 0


async def test_what_the_operator_opened_is_reached_by_address_and_by_name() -> None:
    async with upstream() as server, Egress(resolve=resolving("127.0.0.1")) as egress:
        assert (await get(egress, server.origin)).status == 200
        assert (await get(egress, f"http://api.example:{server.port}")).status == 200
        with pytest.raises(Unreachable, match="not public"):
            await get(egress, f"http://127.0.0.2:{server.port}")
    assert b"Host: api.example:" in server.requests[1]


async def test_the_vetted_address_is_the_one_that_is_dialled() -> None:
    """A name that changes its answer between the check and the dial would otherwise win."""
    answers = [["127.0.0.1"], ["127.0.0.2"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with upstream() as server, Egress(resolve=resolve) as egress:
        await get(egress, f"http://api.example:{server.port}")
    assert len(server.requests) == 1
    assert answers == [["127.0.0.2"]]


async def test_a_connection_made_under_one_allowance_serves_no_other() -> None:
    async with upstream() as server, Egress(resolve=resolving("127.0.0.1")) as egress:
        origin = f"http://api.example:{server.port}"
        await get(egress, origin)
        with pytest.raises(Unreachable, match="not public"):
            await get(egress, origin, private=())
        with pytest.raises(Unreachable, match="not public"):
            await get(egress, origin, private=(ip_network("10.0.0.0/8"),))
        await get(egress, origin)
    assert (len(server.requests), server.connections) == (2, 1)


async def test_proxies_and_passwords_in_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password fromnetrc\n")
    async with upstream() as proxy, upstream() as server, Egress() as egress:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        monkeypatch.setenv("HOME", str(tmp_path))
        await get(egress, server.origin, attach=lambda headers, query: ())
    assert proxy.connections == 0
    assert b"authorization" not in server.requests[0].lower()


async def test_cookies_are_neither_kept_nor_passed_on() -> None:
    async with upstream(says(b"{}", "200 OK", "Set-Cookie: a=b; Path=/")) as server, Egress() as egress:
        reply = await get(egress, server.origin)
        await get(egress, server.origin)
    assert "set-cookie" not in reply.headers
    assert b"cookie" not in server.requests[1].lower()


async def test_a_name_that_does_not_resolve_says_so() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError("Name or service not known: quoting " + CANARY)

    async with Egress(resolve=resolve) as egress:
        with pytest.raises(Unreachable, match="was not found") as refused:
            await get(egress, "http://api.example")
    assert not refused.value.maybe_sent
    no_secret_in(refused.value)


# --- what comes back --------------------------------------------------------------------------------------------------


async def test_an_answer_comes_whole_with_its_headers_and_figures() -> None:
    answer = says(b'{"a":1}', "404 Not Found", "X-Request-Id: r1", "Link: a", "Link: b")
    async with upstream(answer) as server, Egress() as egress:
        reply = await get(egress, server.origin)
    assert (reply.status, reply.body, reply.bytes_in, reply.secrets) == (404, b'{"a":1}', 7, (CANARY,))
    assert reply.headers["x-request-id"] == "r1"
    assert reply.headers["link"] == "a, b"
    assert 0 < reply.milliseconds < 5000
    assert CANARY not in repr(reply)
    assert '"a"' not in repr(reply)


def bare_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip in members": ("x-gzip", lambda body: gzip.compress(body[:5]) + gzip.compress(body[5:])),
    "zlib": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize("name", PACKED)
async def test_a_compressed_answer_is_unpacked(name: str) -> None:
    encoding, pack = PACKED[name]
    body = b'{"items":[' + b",".join(b"%d" % number for number in range(50_000)) + b"]}"
    async with upstream(says(pack(body), "200 OK", f"Content-Encoding: {encoding}")) as server, Egress() as egress:
        reply = await get(egress, server.origin)
    assert reply.body == body
    assert reply.bytes_in == len(pack(body))


@pytest.mark.parametrize("name", ["gzip", "gzip in members", "zlib", "bare deflate"])
@pytest.mark.parametrize("size", [200_000, 60 << 20])
async def test_a_compressed_bomb_is_refused(name: str, size: int) -> None:
    encoding, pack = PACKED[name]
    async with (
        upstream(says(pack(b" " * size), "200 OK", f"Content-Encoding: {encoding}")) as server,
        Egress() as egress,
    ):
        with pytest.raises(ResponseTooLarge, match="compressed") as refused:
            await get(egress, server.origin)
    no_secret_in(refused.value)


async def test_a_compressed_answer_within_the_ratio_is_bounded_in_size() -> None:
    body = gzip.compress(b"".join(b"%x" % (number * 2654435761) for number in range(60_000)))
    limits = Limits(max_body=500_000)
    assert len(body) < limits.max_body
    async with upstream(says(body, "200 OK", "Content-Encoding: gzip")) as server, Egress() as egress:
        with pytest.raises(ResponseTooLarge, match="MiB"):
            await get(egress, server.origin, limits=limits)


async def test_a_stream_that_unpacks_to_nothing_is_bounded_too() -> None:
    packer = zlib.compressobj(wbits=31)
    nothing = packer.compress(b"x") + b"".join(
        packer.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" for _ in range(50_000)
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(nothing), nothing)
    async with upstream(raw(head + chunks)) as server, Egress() as egress:
        with pytest.raises(ResponseTooLarge, match="MiB"):
            await egress.send(
                prepared(server.origin), attach=bearer, private=LOOPBACK, limits=Limits(max_body=len(nothing) - 1)
            )


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"x"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0)),
        ("gzip", b"not gzip"),
        ("gzip", gzip.compress(b"x" * 100, mtime=0)[:-9]),
        ("deflate", zlib.compress(b"x") + b"trailing"),
    ],
)
async def test_what_cannot_be_unpacked_is_refused(encoding: str, body: bytes) -> None:
    async with upstream(says(body, "200 OK", f"Content-Encoding: {encoding}")) as server, Egress() as egress:
        with pytest.raises(Unreachable) as refused:
            await get(egress, server.origin)
    assert refused.value.maybe_sent
    no_secret_in(refused.value)


async def test_an_announced_body_that_is_too_large_is_not_waited_for() -> None:
    async with upstream(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")) as server, Egress() as egress:
        with pytest.raises(ResponseTooLarge):
            await get(egress, server.origin)
        await asyncio.wait_for(server.gone.wait(), 15)


async def test_an_endless_body_is_cut_off_and_its_connection_dropped() -> None:
    sent = 0

    async def endless(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with upstream(endless, says(b"[1]")) as server, Egress() as egress:
        with pytest.raises(ResponseTooLarge):
            await get(egress, server.origin, limits=Limits(max_body=1 << 20))
        await asyncio.wait_for(server.gone.wait(), 15)
        assert sent < 32 << 20
        assert (await get(egress, server.origin)).body == b"[1]"
    assert server.connections == 2


@pytest.mark.parametrize(
    "head",
    [
        b"X-Long: " + b"a" * 70_000 + b"\r\n",
        b"".join(b"X-%d: a\r\n" % number for number in range(2_000)),
    ],
)
async def test_huge_headers_are_refused(head: bytes) -> None:
    async with (
        upstream(raw(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 2\r\n\r\n{}")) as server,
        Egress() as egress,
    ):
        with pytest.raises(Unreachable) as refused:
            await get(egress, server.origin)
    no_secret_in(refused.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_unreachable(answer: bytes) -> None:
    async with upstream(raw(answer)) as server, Egress() as egress:
        with pytest.raises(Unreachable) as refused:
            await get(egress, server.origin, limits=Limits(connect_s=1, total_s=1))
    assert len(server.requests) == 1
    no_secret_in(refused.value)


async def test_a_body_that_breaks_off_is_unreachable_and_may_have_been_sent() -> None:
    async def breaks_off(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
        writer.close()

    async with upstream(breaks_off) as server, Egress() as egress:
        with pytest.raises(Unreachable, match="broke off") as refused:
            await get(egress, server.origin)
    assert refused.value.maybe_sent
    no_secret_in(refused.value)


async def test_deep_json_is_refused_before_anything_parses_it() -> None:
    async with (
        upstream(says(b'{"a":' * 65 + b"1" + b"}" * 65), says(b"[" * 64 + b"]" * 64)) as server,
        Egress() as egress,
    ):
        with pytest.raises(ResponseTooLarge, match="64 deep"):
            await get(egress, server.origin)
        assert (await get(egress, server.origin)).status == 200


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf "])
async def test_json_of_very_many_small_values_is_refused_before_anything_parses_it(mark: bytes) -> None:
    many, commas = mark + b"[" + b"1," * 50_001 + b"1]", b"a,b," * 50_000
    async with upstream(says(many), says(commas)) as server, Egress() as egress:
        with pytest.raises(ResponseTooLarge, match="50000 values"):
            await get(egress, server.origin)
        assert (await get(egress, server.origin)).status == 200, "a table in text has commas, and few values"


@pytest.mark.parametrize(
    ("text", "deeper"),
    [
        (b"[[[]]]", False),
        (b"[[[[]]]]", True),
        (b'[{"a":[1]}]', False),
        (b'[{"a":[{}]}]', True),
        (b'["[[[[[[", {"]":"}"}]', False),
        (rb'["\\", "[[[[", "\"[[[[", "\\\"[[["]', False),
        (rb'[[["\\"]], [[["\\\""]]]]', True),
        (b"[" * 1_000_000, True),
        (b"[]" * 100, False),
        (b"]]]][[", False),
    ],
)
def test_depth_is_counted_outside_strings_only(text: bytes, deeper: bool) -> None:
    assert deeper_than(text, 3) is deeper


# --- time -------------------------------------------------------------------------------------------------------------


async def trickles(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("script", [says_nothing, trickles])
async def test_a_slow_answer_ends_when_its_time_is_up(script: Script) -> None:
    async with upstream(script) as server, Egress() as egress:
        async with asyncio.timeout(15):
            with pytest.raises(Unreachable, match=r"within 0\.3 s|in 0\.3 s") as refused:
                await get(egress, server.origin, limits=QUICK)
        await asyncio.wait_for(server.gone.wait(), 15)
    assert refused.value.maybe_sent
    assert len(server.requests) == 1
    no_secret_in(refused.value)


async def test_a_connection_that_never_stands_ends_when_its_time_is_up() -> None:
    """TLS to a socket that is silent: the handshake counts as connecting."""
    async with upstream(says_nothing) as server, Egress() as egress:
        async with asyncio.timeout(15):
            with pytest.raises(Unreachable, match="took no connection") as refused:
                await get(egress, f"https://127.0.0.1:{server.port}", limits=Limits(connect_s=0.2, total_s=20))
    assert not refused.value.maybe_sent
    no_secret_in(refused.value)


async def test_a_resolver_that_hangs_counts_as_connecting() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    async with Egress(resolve=resolve) as egress, asyncio.timeout(15):
        with pytest.raises(Unreachable, match="took no connection"):
            await get(egress, "http://api.example", limits=Limits(connect_s=0.2, total_s=20))


async def test_a_refused_connection_is_unreachable_and_nothing_was_sent() -> None:
    async with upstream() as server:
        pass
    async with Egress() as egress:
        with pytest.raises(Unreachable, match="could not be reached") as refused:
            await get(egress, server.origin)
    assert not refused.value.maybe_sent
    no_secret_in(refused.value)


# --- once, or again ---------------------------------------------------------------------------------------------------

BUSY = says(b"{}", "503 Busy", "Retry-After: 0")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("script", [hangs_up, BUSY])
async def test_a_write_is_sent_once_whatever_happens(method: str, script: Script) -> None:
    """Also on a pooled connection, where the HTTP library by itself would send a PUT or a DELETE again."""
    async with upstream(says(b"{}"), script) as server, Egress() as egress:
        await get(egress, server.origin)
        with contextlib.suppress(Unreachable):
            await egress.send(prepared(server.origin, method=method, body=b"{}"), attach=bearer, private=LOOPBACK)
    assert len(server.requests) == 2
    assert server.connections == 1


@pytest.mark.parametrize("script", [hangs_up, BUSY, says(b"{}", "429 Slow down", "Retry-After: 0")])
async def test_a_read_is_tried_three_times_at_most(script: Script) -> None:
    async with upstream(script, script, says(b"[1]")) as server, Egress() as egress:
        assert (await get(egress, server.origin)).body == b"[1]"
    assert len(server.requests) == 3
    async with upstream(script) as server, Egress() as egress:
        with contextlib.suppress(Unreachable):
            await get(egress, server.origin)
    assert len(server.requests) == 3


@pytest.mark.parametrize("script", [hangs_up, BUSY])
@pytest.mark.parametrize(("tool", "times"), [("list_orders", 3), ("cancel_order", 1)])
async def test_a_graphql_query_is_a_read_and_a_mutation_a_write(script: Script, tool: str, times: int) -> None:
    """Both go by POST, and only the document tells them apart."""
    shop = parse(GRAPHQL)
    call = Call("shop", shop, shop.tools[tool], f"shop_{tool}", {})
    async with upstream(script) as server, Egress() as egress:
        request = prepare(call, base_url=server.origin, idempotency_key="k1")
        with contextlib.suppress(Unreachable):
            await egress.send(request, attach=bearer, private=LOOPBACK)
    assert len(server.requests) == times
    assert all(sent.startswith(b"POST /graphql ") for sent in server.requests)


GRAPHQL = """\
id: shop
title: Shop
kind: graphql
base_url: https://shop.example
endpoint: /graphql
credentials: {key: {label: Key, help: There., scheme: bearer}}
verify: {document: "query V { me { id } }"}
tools:
  list_orders: {title: List, description: All., document: "query L { orders { id } }"}
  cancel_order: {title: Stop, description: One., document: "mutation C { orderCancel { id } }", ask: Stop}
"""


async def test_a_write_with_an_idempotency_key_is_tried_again_with_the_same_bytes() -> None:
    async with upstream(hangs_up, says(b"[1]")) as server, Egress() as egress:
        request = prepared(
            server.origin, method="POST", body=b"a=1", idempotent=True, headers=(("Idempotency-Key", "k1"),)
        )
        assert (await egress.send(request, attach=bearer, private=LOOPBACK)).body == b"[1]"
    first, second = server.requests
    assert first == second
    assert b"Idempotency-Key: k1" in first


def keyed(origin: str) -> Prepared:
    return prepared(origin, method="POST", body=b"a=1", idempotent=True, headers=(("Idempotency-Key", "k1"),))


SLOW_DOWN = says(b"{}", "429 Slow down", "Retry-After: 0")


@pytest.mark.parametrize(
    ("scripts", "maybe_before"),
    [
        ((says(b"{}"),), False),
        ((hangs_up, says(b"{}")), True),
        ((hangs_up, says(b"{}", "429 Slow down")), True),
        ((hangs_up, SLOW_DOWN, says(b"{}", "401 No")), True),
        ((BUSY, says(b"{}", "409 In use")), True),
        ((SLOW_DOWN, SLOW_DOWN, says(b"{}", "401 No")), False),
    ],
    ids=["one try", "lost, done", "lost, limited", "lost, limited, refused", "broken, in use", "limited, refused"],
)
async def test_an_answer_tells_whether_an_earlier_try_may_have_arrived(
    scripts: Sequence[Script], maybe_before: bool
) -> None:
    async with upstream(*scripts) as server, Egress() as egress:
        reply = await egress.send(keyed(server.origin), attach=bearer, private=LOOPBACK)
    assert len(server.requests) == len(scripts)
    assert reply.maybe_before is maybe_before


async def test_where_a_later_try_finds_nobody_it_is_told_what_the_earlier_one_came_to() -> None:
    async def last_words(request: bytes, writer: asyncio.StreamWriter) -> None:
        server.stop_listening()
        await hangs_up(request, writer)

    async with upstream(last_words) as server, Egress() as egress:
        with pytest.raises(Unreachable, match="without an answer") as lost:
            await egress.send(keyed(server.origin), attach=bearer, private=LOOPBACK)
    assert len(server.requests) == 1
    assert lost.value.maybe_sent
    assert "othing was sent" not in str(lost.value)
    no_secret_in(lost.value)


async def test_where_a_later_try_finds_nobody_an_earlier_503_is_told() -> None:
    async def last_words(request: bytes, writer: asyncio.StreamWriter) -> None:
        server.stop_listening()
        await says(b"{}", "503 Busy", "Retry-After: 0", "Connection: close")(request, writer)
        writer.close()

    async with upstream(last_words) as server, Egress() as egress:
        assert (await egress.send(keyed(server.origin), attach=bearer, private=LOOPBACK)).status == 503
    assert len(server.requests) == 1


async def test_where_a_later_try_cannot_be_authenticated_it_is_told_what_the_earlier_one_came_to() -> None:
    tries = iter([bearer])

    def once(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        attach = next(tries, None)
        if attach is None:
            raise CredentialMalformed("There is none any more.")
        return attach(headers, query)

    async with upstream(hangs_up) as server, Egress() as egress:
        with pytest.raises(Unreachable, match="without an answer"):
            await egress.send(keyed(server.origin), attach=once, private=LOOPBACK)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["500 Broken", "502 Bad", "504 Late", "429 Slow down", "503 Busy"])
async def test_an_answer_that_asks_for_no_retry_gets_none(status: str) -> None:
    async with upstream(says(b"{}", status)) as server, Egress() as egress:
        assert (await get(egress, server.origin)).status == int(status[:3])
    assert len(server.requests) == 1


async def test_retry_after_is_waited_for_when_it_is_short_and_handed_on_when_it_is_long() -> None:
    loop = asyncio.get_running_loop()
    async with upstream(says(b"{}", "503 Busy", "Retry-After: 1"), says(b"[1]")) as server, Egress() as egress:
        before = loop.time()
        reply = await get(egress, server.origin)
        assert reply.body == b"[1]"
        assert loop.time() - before >= 0.9
        assert reply.milliseconds >= 900
    for wait, limits in (("6", Limits()), ("3", Limits(connect_s=2, total_s=2))):
        async with upstream(says(b"{}", "503 Busy", f"Retry-After: {wait}")) as server, Egress() as egress:
            before = loop.time()
            assert (await get(egress, server.origin, limits=limits)).status == 503
            assert loop.time() - before < float(wait), "it was not waited for"
        assert len(server.requests) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "0.5"}) == 0.5
    assert 90 < (retry_after({"retry-after": email.utils.format_datetime(soon, usegmt=True)}) or 0) <= 100
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    for text in ("", "soon", "-1", "1e9", "٣", "nan", "1.2.3", "Wed, 99 Oct 99999 99:99:99 GMT"):
        assert retry_after({"retry-after": text}) is None
    assert retry_after({}) is None


async def test_a_connection_is_used_again() -> None:
    async with upstream() as server, Egress() as egress:
        for _ in range(3):
            await get(egress, server.origin)
    assert (len(server.requests), server.connections) == (3, 1)


async def test_a_closed_egress_sends_nothing() -> None:
    async with upstream() as server:
        egress = Egress()
        async with egress:
            await get(egress, server.origin)
        with pytest.raises(Unreachable, match="shutting down"):
            await get(egress, server.origin, attach=never)
    assert len(server.requests) == 1


# --- nothing leaks ----------------------------------------------------------------------------------------------------


def no_secret_in(error: BaseException) -> None:
    """Not in the text, not in the traceback with every frame's locals, and no other exception hangs behind it."""
    assert CANARY not in str(error)
    assert CANARY not in repr(error.__dict__)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert CANARY not in "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    trace = error.__traceback__
    while trace:
        name = trace.tb_frame.f_code.co_filename
        assert "aiohttp" not in name
        if "connectors" in name and "tests" not in name:
            for value in trace.tb_frame.f_locals.values():
                assert CANARY not in repr(value)
                assert CANARY not in repr(getattr(value, "__dict__", ""))
        trace = trace.tb_next


async def test_the_check_for_leaks_finds_one() -> None:
    def leaky() -> None:
        held = CANARY
        raise ValueError(len(held))

    try:
        leaky()
    except ValueError as error:
        with pytest.raises(AssertionError):
            no_secret_in(error)


async def test_cancellation_passes_without_the_secret_and_drops_the_connection() -> None:
    arrived = asyncio.Event()

    async def waits(request: bytes, writer: asyncio.StreamWriter) -> None:
        arrived.set()

    caught: list[asyncio.CancelledError] = []

    async def call(egress: Egress, origin: str) -> None:
        try:
            await get(egress, origin)
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    async with upstream(waits) as server, Egress() as egress:
        task = asyncio.create_task(call(egress, server.origin))
        await arrived.wait()
        task.cancel("stop")
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.gone.wait(), 15)
    assert caught[0].args == ("stop",)
    no_secret_in(caught[0])
    assert len(server.requests) == 1


async def test_an_outer_timeout_works_as_anywhere_else() -> None:
    async with upstream(says_nothing) as server, Egress() as egress:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await get(egress, server.origin)


async def test_what_attach_raises_passes_without_its_frames() -> None:
    def malformed(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        held = CANARY
        try:
            raise ValueError(held)
        except ValueError:
            raise CredentialMalformed("The credential holds a line break. Enter it again.")  # noqa: B904 - on purpose

    async with upstream() as server, Egress() as egress:
        with pytest.raises(CredentialMalformed) as refused:
            await get(egress, server.origin, attach=malformed)
    assert server.connections == 0
    no_secret_in(refused.value)


async def test_an_attach_that_breaks_the_header_rules_is_refused_without_its_value() -> None:
    def broken(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        headers["Authorization"] = f"Bearer {CANARY}\n"
        return (CANARY,)

    async with upstream() as server, Egress() as egress:
        with pytest.raises(Unsendable) as refused:
            await get(egress, server.origin, attach=broken)
    assert server.connections == 0
    no_secret_in(refused.value)


async def test_failures_log_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    bomb = says(gzip.compress(b" " * 200_000), "200 OK", "Content-Encoding: gzip")
    async with upstream(hangs_up, bomb) as server, Egress() as egress:
        for method in ("POST", "GET"):
            with pytest.raises(ConnectorError):
                await egress.send(prepared(server.origin, method=method), attach=in_query, private=LOOPBACK)
    assert CANARY not in caplog.text


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for `api.example`, with its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"), "api.example")


async def test_only_a_host_that_proves_its_name_gets_the_credential(certificate: Path) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with upstream(tls=serving) as server:
        async with Egress(resolve=resolving("127.0.0.1"), tls=trusting) as egress:
            assert (await get(egress, f"https://api.example:{server.port}")).status == 200
            with pytest.raises(Unreachable, match="identity") as refused:
                await get(egress, f"https://other.example:{server.port}")
        assert not refused.value.maybe_sent
        no_secret_in(refused.value)
        async with Egress(resolve=resolving("127.0.0.1")) as egress:
            with pytest.raises(Unreachable, match="identity"):
                await get(egress, f"https://api.example:{server.port}")
    assert len(server.requests) == 1


async def test_names_are_found_apart_from_the_threads_that_everything_else_shares() -> None:
    """A tenant's slow name server must not keep the database from being flushed."""
    loop, busy = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(1) as shared:
        loop.set_default_executor(shared)
        stuck = loop.run_in_executor(None, busy.wait, 30)
        assert "127.0.0.1" in await asyncio.wait_for(resolve_apart("127.0.0.1", 80), 25)
        with pytest.raises(OSError):
            await resolve_apart("no such host", 80)
        assert not stuck.done()
        busy.set()
        await stuck
