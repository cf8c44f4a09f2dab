"""A service that answers any GET with the same page of charges, and refuses whoever lacks the key.

Bytes in, prepared bytes out: it has to cost little beside the servers that call it. Ends with its standard input.
"""

import asyncio
import ssl
import sys
from typing import cast

import uvloop

from tests.bench.wire import HOST, KEY, PAGE

_AUTHORISED = f"\r\nauthorization: bearer {KEY}\r\n".lower().encode()


def _answer(status: str, body: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nRequest-Id: req_bench\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


_PAGE = _answer("200 OK", PAGE)
_REFUSED = _answer("401 Unauthorized", '{"error":{"message":"Invalid API Key provided."}}')


class Serving(asyncio.Protocol):
    """One connection of one client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            authorised = _AUTHORISED in head.lower() + b"\r\n"
            self._transport.write(_PAGE if authorised else _REFUSED)


async def serve(certificate: str | None) -> None:
    """Serve on a port of the system's choice, printed as the first line, until standard input ends."""
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Serving, HOST, 0, ssl=tls, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1] if len(sys.argv) > 1 else None))
