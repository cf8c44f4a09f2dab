"""The Transit engine of OpenBao and Vault in this process: real AES-256-GCM with associated data, on loopback.

As lenient and as strict as the real one, where that matters: it makes a missing key on encryption if the token may
create, reads version 0 as version 1, skips line breaks and stray bits of Base64, and answers each misuse with its
status. Whatever error it gives carries CANARY, so that a test sees when its words are passed on.
"""

import base64
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.upstream import Answer, Received, Upstream

CANARY = "words-of-the-service"


@dataclass
class FakeKey:
    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    type: str = "aes256-gcm96"
    derived: bool = False
    deleted: bool = False
    oldest: int = 1


class Refusal(Exception):
    def __init__(self, status: int, *errors: str) -> None:
        self.answer = Answer({"errors": [f"{error} {CANARY}" for error in errors]}, status=status)


class FakeTransit:
    """`with FakeTransit() as transit:`; then `transit.url`, `.keys`, `.token`, `.requests`, and `.instead`."""

    def __init__(self, mount: str = "transit") -> None:
        self.mount = mount
        self.keys: dict[str, FakeKey] = {}
        self.token = f"hvs.{secrets.token_urlsafe(24)}"
        self.may = {"encrypt": {"update"}, "decrypt": {"update"}}
        self.sealed = False
        self.binds = True
        """False for Vault before 1.13, which takes associated data without a word and ignores them."""
        self.instead: Callable[[Received], Answer | None] = lambda received: None
        self.upstream = Upstream()
        self.upstream.answer = self._answer
        self.url = self.upstream.url

    @property
    def requests(self) -> list[Received]:
        return self.upstream.requests

    def __enter__(self) -> "FakeTransit":
        self.upstream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.upstream.__exit__()

    def _answer(self, received: Received) -> Answer:
        instead = self.instead(received)
        if instead is not None:
            return instead
        try:
            return Answer({"request_id": "1", "data": self._done(received)})
        except Refusal as refusal:
            return refusal.answer

    def _done(self, received: Received) -> dict[str, object]:
        if self.sealed:
            raise Refusal(503, "Vault is sealed")
        if received.headers.get("x-vault-token") != self.token:
            raise Refusal(403, "permission denied", "invalid token")
        place = re.fullmatch(rf"/v1/{re.escape(self.mount)}/(encrypt|decrypt)/([\w.-]+)", received.target)
        if place is None:
            raise Refusal(404, "no handler for route")
        if received.method not in ("POST", "PUT"):
            raise Refusal(405, "unsupported operation")
        asked = json.loads(received.body)
        verb, name = place[1], place[2]
        if verb == "encrypt":
            return self._encrypted(name, asked)
        self._require("decrypt", "update")
        key = self._usable(name, asked)
        return {"plaintext": base64.b64encode(self._opened(key, asked)).decode()}

    def _encrypted(self, name: str, asked: dict[str, str]) -> dict[str, object]:
        self._require("encrypt", "update" if name in self.keys else "create")
        if name not in self.keys:
            if asked.get("type", "aes256-gcm96") not in ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305"):
                raise Refusal(400, f"unknown key type {asked['type']}")
            self.keys[name] = FakeKey()
        key = self._usable(name, asked)
        nonce, plaintext = os.urandom(12), base64.b64decode(asked["plaintext"], validate=True)
        sealed = nonce + AESGCM(key.versions[-1]).encrypt(nonce, plaintext, self._bound(asked))
        version = len(key.versions)
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}", "key_version": version}

    def _require(self, verb: str, capability: str) -> None:
        if capability not in self.may[verb]:
            raise Refusal(403, "1 error occurred:\n\t* permission denied\n\n")

    def _usable(self, name: str, asked: dict[str, str]) -> FakeKey:
        key = self.keys.get(name)
        if key is None:
            raise Refusal(400, "encryption key not found")
        if asked.get("associated_data") and key.type.startswith("rsa"):
            raise Refusal(400, f"'[0].associated_data' provided for non-AEAD cipher suite {key.type}")
        if key.deleted:
            raise Refusal(400, "refusing to use soft-deleted key")
        if key.type == "ed25519":
            raise Refusal(400, "message encryption not supported for key type ed25519")
        if key.derived:
            raise Refusal(400, "missing 'context' for key derivation; the key was created using a derived key")
        return key

    def _opened(self, key: FakeKey, asked: dict[str, str]) -> bytes:
        written = re.fullmatch(r"vault:v([+]?[0-9]+):(.*)", asked["ciphertext"], re.DOTALL)
        if written is None:
            raise Refusal(400, "invalid ciphertext: no prefix")
        version = int(written[1]) or 1
        if version > len(key.versions):
            raise Refusal(400, "invalid ciphertext: version is too new")
        if version < key.oldest:
            raise Refusal(400, "ciphertext or signature version is disallowed by policy (too old)")
        try:
            sealed = base64.b64decode(re.sub(r"[\r\n]", "", written[2]), validate=True)
            return AESGCM(key.versions[version - 1]).decrypt(sealed[:12], sealed[12:], self._bound(asked))
        except (ValueError, InvalidTag):
            raise Refusal(400, "cipher: message authentication failed") from None

    def _bound(self, asked: dict[str, str]) -> bytes:
        return base64.b64decode(asked.get("associated_data", ""), validate=True) if self.binds else b""
