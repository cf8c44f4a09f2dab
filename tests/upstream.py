"""A fake upstream on loopback, in a thread of its own: it records every request and answers as the test says."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What to send back: JSON unless it is bytes already. `wait` holds the answer back until it is set."""

    content: Any = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None
    hang_up: bool = False


class Upstream:
    """`with Upstream() as upstream:`; then `upstream.url`, `upstream.requests`, and `upstream.answer` to change."""

    def __init__(self, secret: str | None = None) -> None:
        self.requests: list[Received] = []
        self.answer: Callable[[Received], Answer] = lambda request: Answer({"id": "ok", "path": request.target})
        self.secret = secret
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement of its headers

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
                return

            def _serve(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                received = Received(
                    self.command,
                    self.path,
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                )
                outer.requests.append(received)
                given = received.headers.get("authorization", "")
                if outer.secret is not None and given != f"Bearer {outer.secret}":
                    answer = Answer({"error": {"message": "no such key"}}, status=401)
                else:
                    answer = outer.answer(received)
                if answer.wait is not None:
                    answer.wait.wait(30)
                if answer.hang_up:
                    self.close_connection = True
                    return
                body = answer.content if isinstance(answer.content, bytes) else json.dumps(answer.content).encode()
                (self.send_response_only if "Date" in answer.headers else self.send_response)(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                return  # a client that hung up is what some tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop_listening(self) -> None:
        """From now on a connection is refused; those that stand stay."""
        self._server.shutdown()
        self._server.socket.close()

    def __enter__(self) -> "Upstream":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
