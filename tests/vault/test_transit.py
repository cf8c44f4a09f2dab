import base64
import gzip
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.certificates import self_signed
from tests.upstream import Answer, Upstream
from tests.vault.fake_transit import CANARY, FakeKey, FakeTransit
from tests.vault.rigs import write_token
from vault import CannotOpen, KeysUnavailable, Mend, RootKeyProblem, VaultError, root_key_spec
from vault.seal import encode_context
from vault.transit import TransitKey, TransitRef

KEY = bytes(range(200, 232))
ORG = ("org-key", "org_a", "1")
PATIENCE = 0.3
"""Seconds, for what never answers; where an answer is to come, a busy machine is given the ordinary time."""


@pytest.fixture
def transit() -> Iterator[FakeTransit]:
    with FakeTransit() as transit:
        transit.keys["one"] = FakeKey()
        yield transit


@pytest.fixture
def ref(transit: FakeTransit, tmp_path: Path) -> TransitRef:
    token = write_token(tmp_path / "token", transit.token)
    return TransitRef(transit.url, "transit", "one", token_file=str(token), only=transit.url)


@pytest.fixture
def root(ref: TransitRef) -> TransitKey:
    return ref.load()


@pytest.mark.parametrize(
    ("where", "address", "mount"),
    [
        ("https://bao.example.com:8200#k", "https://bao.example.com:8200", "transit"),
        ("https://bao.example.com/#k", "https://bao.example.com", "transit"),
        ("https://BAO.example.com/transit-eu/#k", "https://bao.example.com", "transit-eu"),
        ("https://bao.example.com/team-a/sub/transit#k", "https://bao.example.com", "team-a/sub/transit"),
        ("http://127.0.0.1:8200#k", "http://127.0.0.1:8200", "transit"),
        ("http://localhost:8100#k", "http://localhost:8100", "transit"),
        ("http://[::1]:8200#k", "http://[::1]:8200", "transit"),
        ("https://[2001:db8::1]#k", "https://[2001:db8::1]", "transit"),
    ],
)
def test_a_spec_carries_address_mount_and_key(where: str, address: str, mount: str, tmp_path: Path):
    ref = root_key_spec(f"transit:{where}", tmp_path)
    assert isinstance(ref, TransitRef)
    assert (ref.address, ref.mount, ref.key) == (address, mount, "k")
    assert ref.location == f"{address}/{mount}#k"
    assert root_key_spec(f"transit:{ref.location}", tmp_path) == ref


@pytest.mark.parametrize(
    "where",
    [
        "https://bao.example.com:8200",
        "https://bao.example.com:8200#",
        "https://bao.example.com:8200/transit/keys/k",
        "https://#k",
        "bao.example.com#k",
        "//bao.example.com#k",
        "ftp://bao.example.com#k",
        "https://bao.example.com:port#k",
        "https://bao.example.com:99999#k",
        "https://ada:hunter2-hunter2@bao.example.com#k",
        "https://bao.example.com/?token=hunter2-hunter2#k",
        "https://bao.example.com?#k",
        "https://bao.example.com/a/../b#k",
        "https://bao.example.com/.hidden#k",
        "https://bao.example.com/a//b#k",
        "https://bao.example.com/a%2fb#k",
        "https://bao.example.com/ü#k",
        "https://bäo.example.com#k",
        "https://bao.example.com#k/../../sys/seal",
        "https://bao.example.com#-k",
        "https://bao.example.com#k ",
        "https://bao.example.com\\@evil.example#k",
        "https://[::1#k",
        "k",
    ],
)
def test_anything_else_is_refused_and_not_repeated(where: str, tmp_path: Path):
    with pytest.raises(RootKeyProblem, match="`transit:https://HOST:PORT/MOUNT#KEY`") as caught:
        root_key_spec(f"transit:{where}", tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_network_in_clear_is_refused(tmp_path: Path):
    with pytest.raises(RootKeyProblem, match=r"in clear\. Give Transit an https address"):
        root_key_spec("transit:http://bao.example.com:8200#k", tmp_path)


def test_the_request_is_what_the_api_asks_for(transit: FakeTransit, root: TransitKey):
    blob = root.wrap(KEY, context=ORG)
    assert root.unwrap(blob, context=ORG) == KEY
    bound = base64.b64encode(encode_context(ORG)).decode()
    ciphertext = f"vault:v1:{base64.b64encode(blob[5:]).decode()}"
    assert blob[:5] == b"\x01\x00\x00\x00\x01"
    assert [(received.method, received.target) for received in transit.requests] == [
        ("POST", "/v1/transit/encrypt/one"),
        ("POST", "/v1/transit/decrypt/one"),
    ]
    assert [json.loads(received.body) for received in transit.requests] == [
        {"plaintext": base64.b64encode(KEY).decode(), "associated_data": bound, "type": "must-exist"},
        {"ciphertext": ciphertext, "associated_data": bound},
    ]
    for received in transit.requests:
        assert received.headers["x-vault-token"] == transit.token
        assert received.headers["x-vault-request"] == "true"


def test_a_blob_of_the_first_release_is_sent_as_transit_wrote_it(transit: FakeTransit, root: TransitKey):
    transit.instead = lambda received: Answer({"data": {"plaintext": base64.b64encode(KEY).decode()}})
    golden = bytes.fromhex("0100000007" + "00ff10" * 20)
    assert root.unwrap(golden, context=ORG) == KEY
    assert json.loads(transit.requests[0].body)["ciphertext"] == "vault:v7:" + "AP8Q" * 20


def test_namespace_and_mount_are_the_path(ref: TransitRef):
    with FakeTransit("team-a/transit-eu") as transit:
        transit.keys["one"] = FakeKey()
        transit.token = ref.read_token().reveal()
        replace(ref, address=transit.url, only=transit.url, mount="team-a/transit-eu").create()
        assert transit.requests[0].target == "/v1/team-a/transit-eu/encrypt/one"


def test_loading_asks_nothing_and_needs_no_service(transit: FakeTransit, ref: TransitRef):
    ref.load()
    assert transit.requests == []


def test_creating_makes_no_key_and_proves_the_one_that_is_there(transit: FakeTransit, ref: TransitRef):
    root = ref.create()
    assert [received.target.split("/")[3] for received in transit.requests] == ["encrypt", "decrypt", "decrypt"]
    assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY


@pytest.mark.parametrize("may", [{"update"}, {"update", "create"}])
def test_a_key_that_is_not_there_is_never_made_even_by_a_token_that_may(
    transit: FakeTransit, ref: TransitRef, may: set[str]
):
    transit.may["encrypt"] = may
    missing = replace(ref, key="two")
    with pytest.raises(
        VaultError, match=r"no such key\. Make one: bao write -f transit/keys/two|there is a key of this"
    ):
        missing.create()
    assert list(transit.keys) == ["one"]


def test_the_service_would_make_one_for_whoever_does_not_say_otherwise(transit: FakeTransit, ref: TransitRef):
    """Or the test above would show nothing."""
    import httpx2

    transit.may["encrypt"] = {"update", "create"}
    with httpx2.Client(trust_env=False) as client:
        body = {"plaintext": "eA==", "associated_data": "eA=="}
        url = f"{transit.url}/v1/transit/encrypt/two"
        assert client.post(url, json=body, headers={"X-Vault-Token": transit.token}).status_code == 200
    assert list(transit.keys) == ["one", "two"]


def test_a_vault_that_ignores_associated_data_is_found_out(transit: FakeTransit, ref: TransitRef):
    transit.binds = False
    with pytest.raises(RootKeyProblem, match=r"OpenBao, Vault 1\.13 or newer"):
        ref.create()


@pytest.mark.parametrize(
    ("key", "mend"),
    [
        (FakeKey(type="rsa-4096"), "type takes no associated data.*aes256-gcm96"),
        (FakeKey(type="ed25519"), "type does not encrypt.*aes256-gcm96"),
        (FakeKey(derived=True), "derived key"),
        (FakeKey(deleted=True), "deleted.*keys/one/restore"),
    ],
    ids=["rsa", "ed25519", "derived", "deleted"],
)
def test_a_key_that_cannot_be_used_is_said_with_its_mend(
    transit: FakeTransit, ref: TransitRef, root: TransitKey, key: FakeKey, mend: str
):
    blob = root.wrap(KEY, context=ORG)
    transit.keys["one"] = key
    for use in (ref.create, lambda: root.wrap(KEY, context=ORG)):
        with pytest.raises(RootKeyProblem, match=mend) as caught:
            use()
        assert CANARY not in str(caught.value)
    if key.type != "ed25519":
        with pytest.raises(RootKeyProblem, match=mend):
            root.unwrap(blob, context=ORG)


def test_a_key_that_was_removed_is_said_when_unwrapping(transit: FakeTransit, root: TransitKey):
    blob = root.wrap(KEY, context=ORG)
    transit.keys.clear()
    with pytest.raises(RootKeyProblem, match="no such key"):
        root.unwrap(blob, context=ORG)


def test_after_transits_own_rotation_old_and_new_blobs_open(transit: FakeTransit, root: TransitKey):
    before = root.wrap(KEY, context=ORG)
    transit.keys["one"].versions.append(os.urandom(32))
    after = root.wrap(KEY, context=ORG)
    assert (before[4], after[4]) == (1, 2)
    assert root.unwrap(before, context=ORG) == root.unwrap(after, context=ORG) == KEY
    with pytest.raises(CannotOpen):
        root.unwrap(after[:4] + b"\x01" + after[5:], context=ORG)
    transit.keys["one"].oldest = 2
    assert root.unwrap(after, context=ORG) == KEY
    with pytest.raises(RootKeyProblem, match=r"min_decryption_version.*Lower it"):
        root.unwrap(before, context=ORG)


def test_no_play_in_how_transit_reads_lets_an_altered_blob_through(transit: FakeTransit, root: TransitKey):
    """Transit takes other texts for the same ciphertext; a blob has one form only."""
    import httpx2

    blob = root.wrap(KEY + b"!", context=ORG)
    text = base64.b64encode(blob[5:]).decode()
    assert text.endswith("==")
    stray = text[:-3] + chr(ord(text[-3]) + 1) + "=="
    bound = base64.b64encode(encode_context(ORG)).decode()
    with httpx2.Client(trust_env=False, headers={"X-Vault-Token": transit.token}) as client:
        for ciphertext in (f"vault:v0:{text}", f"vault:v1:{stray}", f"vault:v+1:\n{text}"):
            body = {"ciphertext": ciphertext, "associated_data": bound}
            assert client.post(f"{transit.url}/v1/transit/decrypt/one", json=body).status_code == 200
    asked = len(transit.requests)
    with pytest.raises(CannotOpen):
        root.unwrap(b"\x01\x00\x00\x00\x00" + blob[5:], context=ORG)
    assert len(transit.requests) == asked


def test_what_is_no_blob_of_ours_is_not_sent(transit: FakeTransit, root: TransitKey):
    for blob in [
        b"",
        b"\x01",
        b"\x01\x00\x00\x00\x01",
        b"\x00\x00\x00\x00\x01abc",
        b"\x01\x00\x00\x00\x01" + b"x" * 5000,
    ]:
        with pytest.raises(CannotOpen):
            root.unwrap(blob, context=ORG)
    assert transit.requests == []


STATUSES = [
    (404, RootKeyProblem, None, "no Transit engine.*secrets enable -path=transit"),
    (401, KeysUnavailable, Mend.PERMIT, "refuses our token"),
    (403, KeysUnavailable, Mend.PERMIT, "Renew it in .*transit/encrypt/one and transit/decrypt/one"),
    (412, KeysUnavailable, Mend.WAIT, "Try again"),
    (429, KeysUnavailable, Mend.WAIT, "standing by, overloaded or broken"),
    (472, KeysUnavailable, Mend.WAIT, "standing by"),
    (473, KeysUnavailable, Mend.WAIT, "standing by"),
    (500, KeysUnavailable, Mend.WAIT, "HTTP 500"),
    (502, KeysUnavailable, Mend.WAIT, "HTTP 502"),
    (503, KeysUnavailable, Mend.WAIT, "sealed or in maintenance.*bao operator unseal"),
    (204, KeysUnavailable, Mend.REACH, "HTTP 204"),
    (307, KeysUnavailable, Mend.REACH, "redirect, which is not followed"),
    (405, KeysUnavailable, Mend.REACH, "HTTP 405"),
    (418, KeysUnavailable, Mend.REACH, "HTTP 418"),
]


@pytest.mark.parametrize(("status", "kind", "mend", "said"), STATUSES, ids=lambda value: str(value)[:24])
def test_each_status_is_what_it_means_and_none_of_the_services_words(
    transit: FakeTransit,
    root: TransitKey,
    locals_in: Callable[[BaseException], str],
    status: int,
    kind: type[VaultError],
    mend: Mend | None,
    said: str,
):
    blob = root.wrap(KEY, context=ORG)
    transit.instead = lambda received: Answer({"errors": [CANARY]}, status=status)
    for use in (lambda: root.wrap(KEY, context=ORG), lambda: root.unwrap(blob, context=ORG)):
        with pytest.raises(VaultError, match=said) as caught:
            use()
        assert type(caught.value) is kind
        assert getattr(caught.value, "mend", None) is mend
        assert CANARY not in locals_in(caught.value)
        assert transit.token not in locals_in(caught.value)
        assert caught.value.__context__ is None
    transit.instead = lambda received: None
    assert root.unwrap(blob, context=ORG) == KEY  # without a restart


def test_an_unknown_complaint_is_about_the_blob_when_unwrapping_and_about_the_key_when_wrapping(
    transit: FakeTransit, root: TransitKey
):
    blob = root.wrap(KEY, context=ORG)
    transit.instead = lambda received: Answer({"errors": [CANARY]}, status=400)
    with pytest.raises(CannotOpen):
        root.unwrap(blob, context=ORG)
    with pytest.raises(RootKeyProblem, match=r"cannot use the root key one .* aes256-gcm96") as caught:
        root.wrap(KEY, context=ORG)
    assert CANARY not in str(caught.value)


def test_one_that_is_sealed_is_said_and_works_again_once_unsealed(transit: FakeTransit, root: TransitKey):
    transit.sealed = True
    with pytest.raises(KeysUnavailable, match="sealed"):
        root.wrap(KEY, context=ORG)
    transit.sealed = False
    assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY


def test_a_redirect_carries_the_token_nowhere(transit: FakeTransit, root: TransitKey):
    with Upstream() as elsewhere:
        target = f"{elsewhere.url}/v1/transit/encrypt/one"
        for status in (301, 302, 303, 307, 308):
            transit.instead = lambda received, status=status: Answer(status=status, headers={"Location": target})
            with pytest.raises(KeysUnavailable, match="name the active node"):
                root.wrap(KEY, context=ORG)
        assert elsewhere.requests == []


def test_no_proxy_and_no_netrc_of_the_environment_gets_in_between(
    transit: FakeTransit, root: TransitKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password hunter2-hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Upstream() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY
        assert proxy.requests == []
    assert all("authorization" not in received.headers for received in transit.requests)


ODD = {
    "html": Answer(b"<html>hello</html>"),
    "a list": Answer([1]),
    "no data": Answer({"data": None}),
    "data of another kind": Answer({"data": ["ciphertext"]}),
    "no text": Answer({"data": {"ciphertext": 1, "plaintext": 1}}),
    "empty": Answer({"data": {"ciphertext": "", "plaintext": ""}}),
    "another form": Answer({"data": {"ciphertext": "vault:v0:AAAA", "plaintext": "%"}}),
    "no version": Answer({"data": {"ciphertext": "vault:v:AAAA", "plaintext": "A"}}),
    "no base64": Answer({"data": {"ciphertext": "vault:v1:A", "plaintext": "%AAAA"}}),
    "compressed": Answer(
        gzip.compress(b'{"data": {"ciphertext": "vault:v1:AAAA", "plaintext": "AAAA"}}'),
        headers={"Content-Encoding": "gzip"},
    ),
    "too long": Answer({"data": {"ciphertext": "vault:v1:AAAA", "plaintext": "AAAA"}, "warnings": "x" * 70_000}),
    "hangs up": Answer(hang_up=True),
}


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_what_does_not_speak_as_transit_does_is_no_answer(transit: FakeTransit, root: TransitKey, answer: Answer):
    blob = root.wrap(KEY, context=ORG)
    transit.instead = lambda received: answer
    for use in (lambda: root.wrap(KEY, context=ORG), lambda: root.unwrap(blob, context=ORG)):
        with pytest.raises(KeysUnavailable, match="does not answer, or what answers is not it") as caught:
            use()
        assert caught.value.mend is Mend.REACH


def test_one_that_never_answers_is_not_waited_for(transit: FakeTransit, ref: TransitRef):
    root = replace(ref, patience=PATIENCE).load()
    never = threading.Event()
    transit.instead = lambda received: Answer(wait=never)
    began = time.monotonic()
    with pytest.raises(KeysUnavailable, match="ReadTimeout"):
        root.wrap(KEY, context=ORG)
    assert time.monotonic() - began < 2 * PATIENCE + 4
    assert len(transit.requests) == 1
    never.set()


def test_the_longest_wait_is_under_ten_seconds():
    assert 2 * TransitRef("", "", "").patience < 10


def test_without_a_token_it_does_not_load(transit: FakeTransit, ref: TransitRef, tmp_path: Path):
    for nowhere, said in [("", "Set KEYLEASH_TRANSIT_TOKEN_FILE"), (str(tmp_path / "no"), "cannot be read from .*/no")]:
        for use in (replace(ref, token_file=nowhere).load, replace(ref, token_file=nowhere).create):
            with pytest.raises(RootKeyProblem, match=said):
                use()
    assert transit.requests == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_token_that_others_may_have_read_is_refused_and_not_sent(transit: FakeTransit, ref: TransitRef, mode: int):
    root = ref.load()
    Path(ref.token_file).chmod(mode)
    with pytest.raises(RootKeyProblem, match=f"mode {mode:04o}: others may have read the token.*chmod 600"):
        ref.load()
    with pytest.raises(KeysUnavailable, match="others may have read the token") as caught:
        root.wrap(KEY, context=ORG)
    assert caught.value.mend is Mend.RENEW
    assert transit.requests == []


def test_a_link_in_the_tokens_place_is_refused(ref: TransitRef, tmp_path: Path):
    (tmp_path / "link").symlink_to(ref.token_file)
    with pytest.raises(RootKeyProblem, match="that is no link"):
        replace(ref, token_file=str(tmp_path / "link")).load()


@pytest.mark.parametrize(
    "content", ["", "\n", "hvs.one two", "hvs.one\nhvs.two", "hvs.\x00one", "hvs.ünï", "x" * 17_000 + " "]
)
def test_what_is_no_token_is_refused_and_not_shown(
    ref: TransitRef, content: str, locals_in: Callable[[BaseException], str]
):
    Path(ref.token_file).write_text(content)
    with pytest.raises(RootKeyProblem, match="holds no token") as caught:
        ref.load()
    assert "hvs." not in locals_in(caught.value)


def test_a_renewed_token_acts_at_the_next_use(transit: FakeTransit, ref: TransitRef, root: TransitKey):
    blob = root.wrap(KEY, context=ORG)
    transit.token = "hvs.renewed-canary-4kQ9"
    with pytest.raises(KeysUnavailable, match="refuses our token"):
        root.unwrap(blob, context=ORG)
    write_token(Path(ref.token_file), transit.token)
    assert root.unwrap(blob, context=ORG) == KEY


def test_a_token_that_is_gone_while_running_is_to_be_renewed(transit: FakeTransit, ref: TransitRef, root: TransitKey):
    Path(ref.token_file).unlink()
    with pytest.raises(KeysUnavailable, match="cannot be read from") as caught:
        root.wrap(KEY, context=ORG)
    assert caught.value.mend is Mend.RENEW
    assert transit.requests == []


def test_the_environment_names_token_and_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEYLEASH_TRANSIT_TOKEN_FILE", "/run/token")
    monkeypatch.setenv("KEYLEASH_TRANSIT_CA_FILE", "/run/ca.pem")
    ref = root_key_spec("transit:https://bao.example.com#k", tmp_path)
    assert ref == TransitRef("https://bao.example.com", "transit", "k", token_file="/run/token", ca_file="/run/ca.pem")
    assert not ref.agreed
    monkeypatch.setenv("KEYLEASH_TRANSIT_ADDR", "https://bao.example.com/")
    assert root_key_spec("transit:https://bao.example.com#k", tmp_path).agreed  # type: ignore[attr-defined]


@pytest.mark.parametrize("only", ["", "https://bao.example.com"])
def test_the_token_is_sent_nowhere_that_the_operator_has_not_named(transit: FakeTransit, ref: TransitRef, only: str):
    for use in (replace(ref, only=only).load, replace(ref, only=only).create):
        with pytest.raises(RootKeyProblem, match=f"the token is not sent.*KEYLEASH_TRANSIT_ADDR={transit.url}"):
            use()
    assert transit.requests == []


def test_nothing_is_logged_but_that_there_was_a_request(
    transit: FakeTransit, root: TransitKey, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    root.unwrap(root.wrap(KEY, context=ORG), context=ORG)
    assert transit.token not in caplog.text
    assert base64.b64encode(KEY).decode() not in caplog.text


def certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate that nobody signed but itself, for this name; and TLS to serve with it."""
    path = self_signed(folder, name)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(path)
    return path, serving


def over_tls(transit: FakeTransit, serving: ssl.SSLContext) -> str:
    server = transit.upstream._server
    server.socket = serving.wrap_socket(server.socket, server_side=True)
    return transit.url.replace("http://", "https://")


def test_only_a_certificate_that_is_trusted_and_for_this_name_gets_the_token(ref: TransitRef, tmp_path: Path):
    good, serving_good = certificate(tmp_path, "127.0.0.1")
    other, serving_other = certificate(tmp_path, "127.0.0.2")
    for trusted, serving, taken in [
        ("", serving_good, False),
        (str(other), serving_good, False),
        (str(other), serving_other, False),
        (str(good), serving_good, True),
    ]:
        server = FakeTransit()
        server.keys["one"] = FakeKey()
        server.token = ref.read_token().reveal()
        address = over_tls(server, serving)
        with server:
            root = replace(ref, address=address, only=address, ca_file=trusted).load()
            if taken:
                assert root.unwrap(root.wrap(KEY, context=ORG), context=ORG) == KEY
                continue
            with pytest.raises(KeysUnavailable, match=r"ConnectError.*KEYLEASH_TRANSIT_CA_FILE") as caught:
                root.wrap(KEY, context=ORG)
            assert caught.value.mend is Mend.REACH
            assert server.requests == []


def test_certificates_that_cannot_be_read_are_said_at_once(ref: TransitRef, tmp_path: Path):
    (tmp_path / "empty.pem").write_text("")
    for wrong in (tmp_path / "none.pem", tmp_path / "empty.pem", tmp_path):
        with pytest.raises(RootKeyProblem, match="KEYLEASH_TRANSIT_CA_FILE is"):
            replace(ref, ca_file=str(wrong)).load()


def test_an_answer_that_comes_in_drops_is_not_waited_for(ref: TransitRef):
    with Dripping() as url:
        began = time.monotonic()
        with pytest.raises(KeysUnavailable):
            replace(ref, address=url, only=url, patience=PATIENCE).load().wrap(KEY, context=ORG)
        assert time.monotonic() - began < 2 * PATIENCE + 4


class Dripping:
    """A server that sends a byte of its answer each time before its client's patience for one read is up."""

    def __init__(self) -> None:
        import socket

        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)

    def _drip(self) -> None:
        client, _ = self._listening.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                for _ in range(100):
                    client.sendall(b" ")
                    if self._ended.wait(PATIENCE / 5):
                        return
            except OSError:
                return

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listening.close()
