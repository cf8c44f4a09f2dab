"""One field of a secret of Vault or OpenBao: asked for plainly, bounded, taken apart strictly."""

import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import self_signed
from tests.upstream import Answer, Upstream
from vault import CannotResolve, Secret
from vault.kv import MOST_ANSWER, kv_field, trust

TOKEN = "hvs.token_canary_5521"
CANARY = "rk_canary_in_the_engine_88"
USUAL = trust(None)


def read(address: str, field: str = "key", seconds: float = 5.0, tls: ssl.SSLContext = USUAL, **more: Any) -> str:
    given = {"mount": "secret", "path": ["apis", "stripe"], **more}
    return kv_field(address, Secret({"secret": TOKEN}), field=field, tls=tls, seconds=seconds, **given)


def kept(data: Any) -> dict[str, Any]:
    return {"request_id": "1", "data": {"data": data, "metadata": {"version": 2}}}


@pytest.fixture
def engine() -> Iterator[Upstream]:
    with Upstream() as running:
        running.answer = lambda request: Answer(kept({"key": CANARY, "other": "x"}))
        yield running


def test_a_field_of_the_newest_version_is_read_with_the_token(engine: Upstream):
    assert read(engine.url) == CANARY
    assert read(f"{engine.url}/", "other") == "x"
    (first, _) = engine.requests
    assert (first.method, first.target, first.body) == ("GET", "/v1/secret/data/apis/stripe", b"")
    assert first.headers["x-vault-token"] == TOKEN
    assert "cookie" not in first.headers
    read(f"{engine.url}/below", mount="team kv", path=["a b"])
    assert engine.requests[-1].target == "/below/v1/team%20kv/data/a%20b"


@pytest.mark.parametrize(
    "content",
    [
        kept({}),
        kept({"key": None}),
        kept({"key": 5}),
        kept({"key": {"a": CANARY}}),
        kept({"key": [CANARY]}),
        kept(None),
        kept([CANARY]),
        {"data": {"key": CANARY}},
        {"data": CANARY},
        {"key": CANARY},
        [CANARY],
        CANARY,
        b"",
        b"<html>" + CANARY.encode(),
        b'{"data": {"data": {"key": "' + CANARY.encode() + b'", "key": "x"}}}',
        b'{"data": {"data": {"key": "' + CANARY.encode() + b'", "n": NaN}}}',
        b'{"data": {"data": {"key": "' + CANARY.encode() + b'\xff"}}}',
        b"[" * 200_000,
    ],
    ids=lambda content: str(content)[:40],
)
def test_an_answer_without_exactly_that_text_is_refused_unquoted(
    engine: Upstream, content: Any, locals_in: Callable[[BaseException], str]
):
    engine.answer = lambda request: Answer(content)
    with pytest.raises(CannotResolve, match="no such field") as caught:
        read(engine.url)
    assert CANARY not in str(caught.value) + locals_in(caught.value)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (301, "sends elsewhere"),
        (307, "sends elsewhere"),
        (400, "version 2"),
        (403, "refuses the token"),
        (404, "has nothing there"),
        (429, "no more requests"),
        (473, "standby"),
        (500, "HTTP 500"),
        (503, "is sealed"),
        (204, "HTTP 204"),
    ],
)
def test_a_refusal_says_what_to_do_and_quotes_nothing(
    engine: Upstream, status: int, says: str, locals_in: Callable[[BaseException], str]
):
    with Upstream() as elsewhere:
        engine.answer = lambda request: Answer(
            {"errors": [f"{CANARY} {request.headers['x-vault-token']}"], **kept({"key": CANARY})},
            status,
            {"Location": f"{elsewhere.url}/v1/x"},
        )
        with pytest.raises(CannotResolve, match=says) as caught:
            read(engine.url)
        assert elsewhere.requests == []
    assert len(engine.requests) == 1, "nothing is asked twice"
    for hidden in (CANARY, TOKEN):
        assert hidden not in str(caught.value) + locals_in(caught.value)


def test_an_answer_that_is_too_long_is_cut_off(engine: Upstream):
    engine.answer = lambda request: Answer(b" " * (MOST_ANSWER + 1))
    with pytest.raises(CannotResolve, match=f"more than {MOST_ANSWER} bytes"):
        read(engine.url)


def test_a_compressed_answer_is_not_unpacked(engine: Upstream):
    import gzip

    packed = gzip.compress(json.dumps(kept({"key": CANARY})).encode())
    engine.answer = lambda request: Answer(packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(CannotResolve, match="no such field"):
        read(engine.url)


def test_one_that_does_not_answer_is_given_up_in_time(engine: Upstream, locals_in: Callable[[BaseException], str]):
    gate = threading.Event()
    engine.answer = lambda request: Answer(wait=gate)
    started = time.monotonic()
    with pytest.raises(CannotResolve, match=r"within 0\.2 seconds") as caught:
        read(engine.url, seconds=0.2)
    gate.set()
    assert time.monotonic() - started < 5
    assert TOKEN not in locals_in(caught.value)


def test_one_that_answers_drop_by_drop_is_given_up_in_time():
    """Each drop comes in time; all of them together would not."""
    stop = threading.Event()

    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not stop.wait(0.05):
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            return

    with served(Dripping) as address:
        started = time.monotonic()
        with pytest.raises(CannotResolve, match=r"within 0\.4 seconds"):
            read(address, seconds=0.4)
        assert time.monotonic() - started < 5
        stop.set()


def test_one_that_is_not_there_says_what_to_check(locals_in: Callable[[BaseException], str]):
    with pytest.raises(CannotResolve, match="KEYLEASH_KV_ADDR") as caught:
        read("http://127.0.0.1:9")
    assert TOKEN not in locals_in(caught.value)


def test_the_environment_sends_it_nowhere_else(engine: Upstream, monkeypatch: pytest.MonkeyPatch):
    with Upstream() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert read(engine.url) == CANARY
        assert proxy.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "",
        "kv.example:8200",
        "http://kv.example:8200",
        "http://10.0.0.1:8200",
        "http://localhost.evil.example",
        "ftp://127.0.0.1",
        "https://",
        "https://user:pass@kv.example",
        "https://kv.example?x=1",
        "https://kv.example#x",
        "https://kv.example:0x50",
        "https://kv.example:0",
        "https://[::1",
    ],
)
def test_an_address_that_is_none_or_not_protected_is_not_asked(address: str, locals_in: Callable[[BaseException], str]):
    with pytest.raises(CannotResolve, match="must be https"):
        read(address)


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` from an authority of our own, with its key, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"), "localhost")


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_only_an_engine_that_proves_its_name_gets_the_token(
    certificate: Path, locals_in: Callable[[BaseException], str]
):
    tokens: list[str | None] = []

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tokens.append(self.headers["X-Vault-Token"])
            body = json.dumps(kept({"key": CANARY})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            return

    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    with served(Engine, serving) as address:
        with pytest.raises(CannotResolve, match="KEYLEASH_KV_CA_FILE") as caught:
            read(address)
        with pytest.raises(CannotResolve, match="did not prove its identity"):
            read(address.replace("localhost", "127.0.0.1"), tls=trust(certificate))
        assert tokens == []
        assert TOKEN not in locals_in(caught.value)
        assert read(address, tls=trust(certificate)) == CANARY
    assert tokens == [TOKEN]


def test_a_file_of_authorities_that_holds_none_is_named_by_its_setting(tmp_path: Path):
    (tmp_path / "empty").write_text("nothing")
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(CannotResolve, match="KEYLEASH_KV_CA_FILE"):
            trust(path)
