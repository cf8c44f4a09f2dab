"""Receivers of ours on loopback: syslog over UDP, TCP or TLS, and OTLP over HTTP. They can go away and come back."""

import contextlib
import gzip
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from syslogcef.parsers import parse_rfc5424

from tests.ports import free_port

PATIENCE_S = 30.0


class Collector:
    """Reads messages until it is stopped; `seqs` are the entries' numbers, in the order in which they came."""

    def __init__(self, kind: str, port: int = 0, certificate: Path | None = None) -> None:
        self.messages: list[bytes] = []
        self._kind, self._certificate = kind, certificate
        self._changed = threading.Condition()
        self._lines: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if kind == "udp":  # what does not fit while our thread waits for its turn is lost
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
        self._socket.bind(("127.0.0.1", port or free_port()))
        self.port = self._socket.getsockname()[1]
        if kind != "udp":
            self._socket.listen()
        self._thread = threading.Thread(target=self._datagrams if kind == "udp" else self._accept, daemon=True)
        self._thread.start()

    @property
    def seqs(self) -> list[int]:
        return [int(self.data(message)["seq"]) for message in self.messages]

    @staticmethod
    def data(message: bytes) -> dict[str, Any]:
        read = parse_rfc5424(message.decode())
        assert read is not None
        return {name.partition("32473.")[2]: value for name, value in read.sd.items()}

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, PATIENCE_S)

    def stop(self) -> None:
        """End everything at once, as a process that dies does."""
        for line in (*self._lines, self._socket):
            with contextlib.suppress(OSError):  # over UDP there is no connection to end; the thread wakes all the same
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self._thread.join(PATIENCE_S)

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _took(self, message: bytes) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def _datagrams(self) -> None:
        while True:
            try:
                message = self._socket.recv(65_536)
            except OSError:
                return
            if not message:
                return
            self._took(message)

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            try:
                if self._certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(self._certificate)
                    line = context.wrap_socket(line, server_side=True)
            except OSError:
                line.close()
                continue
            self._lines.append(line)
            threading.Thread(target=self._read, args=(line,), daemon=True).start()

    def _read(self, line: socket.socket) -> None:
        """Messages by their length in octets, as RFC 6587 counts them."""
        try:
            with line.makefile("rb") as file:
                while True:
                    length = b""
                    while not length.endswith(b" "):
                        byte = file.read(1)
                        if not byte:
                            return
                        length += byte
                    message = file.read(int(length))
                    if len(message) < int(length):
                        return
                    self._took(message)
        except OSError:
            return


class Reply(NamedTuple):
    """What a receiver over HTTP answers; `hang_up`: nothing."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    hang_up: bool = False


class Request(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes


class HttpCollector:
    """A receiver of OTLP over HTTP; what it is sent is read with OpenTelemetry's own messages, by the tests."""

    def __init__(self, port: int = 0, certificate: Path | None = None) -> None:
        self.requests: list[Request] = []
        self.reply: Callable[[Request], Reply] = lambda _: Reply()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits for 40 ms behind its headers

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append(Request(self.path, headers, body))
                answer = outer.reply(outer.requests[-1])
                if answer.hang_up:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

        self._server = ThreadingHTTPServer(("127.0.0.1", port or free_port()), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """From now on nobody listens; a second time does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> "HttpCollector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Trickle:
    """A receiver over HTTP that says yes, a byte of a header at a time, for as long as it is listened to."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1/logs"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Trickle":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._socket.close()
        self._thread.join(PATIENCE_S)

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            line, _ = self._socket.accept()
            with line:
                line.sendall(b"HTTP/1.1 200 OK\r\nx: ")
                for _ in range(100):
                    if self._over.wait(0.02):
                        return
                    line.sendall(b"x")
                line.sendall(b"\r\ncontent-length: 0\r\n\r\n")
