"""Services that others wrote to stand in for the real ones, each a process of its own on loopback."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.ports import free_port
from tests.real.fetching import Cache, node
from tests.real.report import CannotRun
from tests.upstream import Answer, Received, Upstream

HOST = "127.0.0.1"
START_S = 30.0
HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
LOCALSTRIPE = (
    # Its own start listens on every address, and keeps its state in a file of the machine's temporary folder.
    "import sys; from aiohttp import web; from localstripe import resources;"
    "resources.Store.dump_to_disk = lambda self: None;"
    "from localstripe.server import app; web.run_app(app, host='127.0.0.1', port=int(sys.argv[1]), print=None)"
)


@contextmanager
def emulate(cache: Cache, service: str, seed: Mapping[str, Any]) -> Iterator[str]:
    """Vercel's `emulate` with one service; yields its address."""
    script = cache.npm("emulate", "0.12.2") / "dist" / "index.js"
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "seed.json"
        config.write_text(json.dumps(seed))
        command = [node(), str(script), "start", "--service", service, "--port", str(port), "--seed", str(config)]
        with started(command, port, cwd=folder) as url:
            yield url


@contextmanager
def localstripe(cache: Cache) -> Iterator[str]:
    """localstripe; yields its address."""
    found = cache.pip("localstripe==1.15.10", "python-dateutil==2.9.0.post0", "six==1.17.0")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-c", LOCALSTRIPE, str(port)]
        with started(command, port, cwd=folder, env={**os.environ, "PYTHONPATH": str(found)}) as url:
            yield url


@contextmanager
def started(command: Sequence[str], port: int, *, cwd: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a server until the block ends; yields its address once it listens. Raises CannotRun."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(port, process, said)
            yield f"http://{HOST}:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], said: Any) -> None:
    """It says nothing that could be waited for, so it is asked until it answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    said.seek(0)
    raise CannotRun(f"{Path(process.args[0]).name} did not start: {said.read().decode(errors='replace')[-300:]}")  # type: ignore[index]


@contextmanager
def watched(url: str, adapt: Callable[[Received], Received] = lambda request: request) -> Iterator[Upstream]:
    """A relay in front of a service: it keeps what came, and passes it on, adapted where the service is narrower."""
    target = urlsplit(url)

    def forward(received: Received) -> Answer:
        assert target.hostname
        request = adapt(received)
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
        kept = {name: value for name, value in request.headers.items() if name not in HOP}
        connection.request(request.method, request.target, request.body or None, kept)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        headers = {name.title(): value for name, value in answer.getheaders() if name.lower() not in HOP}
        return Answer(body, answer.status, headers)

    with Upstream() as upstream:
        upstream.answer = forward
        yield upstream


def ask(url: str, method: str, path: str, token: str, body: Any = None, *, form: bool = False) -> Any:
    """A request of the check's own, straight to the service: what a person prepares there before an agent comes."""
    from urllib.parse import urlencode

    target = urlsplit(url)
    assert target.hostname
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
    kind = "application/x-www-form-urlencoded" if form else "application/json"
    sent = None if body is None else urlencode(body) if form else json.dumps(body)
    connection.request(method, path, sent, {"Authorization": f"Bearer {token}", "Content-Type": kind})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status >= 400:
        raise CannotRun(f"{method} {path}, to prepare: {answer.status} {content[:200]!r}")
    return json.loads(content) if content else None
