"""AWS KMS in this process, as far as Keyleash asks it: Encrypt and Decrypt over its JSON protocol, on loopback.

It enforces what KMS does: the encryption context exactly, the key id, the key's state and use, and whose credentials
these are (by the access key's id: the signature is not checked). Whatever it says carries CANARY, so that a test sees
when its words are passed on.
"""

import base64
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.upstream import Answer, Received, Upstream

CANARY = "words-of-the-service"
ACCESS_KEY = "AKIAKEYLEASHTESTS000"
SECRET_KEY = "aws-secret-canary-9QzW8xV7tS6rP5nM4kJ3"
DENIED_BLOB = (
    "The ciphertext refers to a customer master key that does not exist, does not exist in this region, "
    "or you are not allowed to access."
)


@dataclass
class FakeKey:
    raw: bytes
    state: str = "Enabled"
    symmetric: bool = True


class Refusal(Exception):
    def __init__(self, code: str, message: str = "", status: int = 400) -> None:
        self.answer = Answer({"__type": code, "message": f"{message} {CANARY}".strip()}, status=status)


class FakeKms:
    """`with FakeKms() as kms:`; then `kms.url`, `kms.new_key()`, `kms.asked`, and `kms.instead` to answer otherwise."""

    def __init__(self) -> None:
        self.keys: dict[str, FakeKey] = {}
        self.instead: Callable[[Received], Answer | None] = lambda received: None
        self._upstream = Upstream()
        self._upstream.answer = self._answer
        self.url = self._upstream.url

    def new_key(self, **key: Any) -> str:
        arn = f"arn:aws:kms:eu-west-1:111122223333:key/{secrets.token_hex(4)}-aaaa-bbbb-cccc-{secrets.token_hex(6)}"
        self.keys[arn] = FakeKey(os.urandom(32), **key)
        return arn

    @property
    def requests(self) -> list[Received]:
        return self._upstream.requests

    @property
    def asked(self) -> list[tuple[str, dict[str, Any]]]:
        """(operation, request), in order."""
        return [(_operation(received), json.loads(received.body)) for received in self.requests]

    def __enter__(self) -> "FakeKms":
        self._upstream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._upstream.__exit__()

    def _answer(self, received: Received) -> Answer:
        instead = self.instead(received)
        if instead is not None:
            return instead
        try:
            return Answer(self._done(received), headers={"Content-Type": "application/x-amz-json-1.1"})
        except Refusal as refusal:
            return refusal.answer

    def _done(self, received: Received) -> dict[str, str]:
        if f"Credential={ACCESS_KEY}/" not in received.headers["authorization"]:
            raise Refusal("UnrecognizedClientException", "The security token included in the request is invalid.")
        asked = json.loads(received.body)
        arn, pairs = asked["KeyId"], asked.get("EncryptionContext", {})
        key = self._usable(arn)
        if _operation(received) == "Encrypt":
            sealed = _sealed(arn, key, base64.b64decode(asked["Plaintext"]), pairs)
            return {"CiphertextBlob": base64.b64encode(sealed).decode(), "KeyId": arn}
        if _operation(received) == "Decrypt":
            plaintext = self._opened(arn, base64.b64decode(asked["CiphertextBlob"]), pairs)
            return {"Plaintext": base64.b64encode(plaintext).decode(), "KeyId": arn}
        raise Refusal("UnknownOperationException")

    def _usable(self, arn: str) -> FakeKey:
        key = self.keys.get(arn)
        if key is None:
            raise Refusal("NotFoundException", f"Key '{arn}' does not exist")
        if key.state != "Enabled":
            raise Refusal("DisabledException" if key.state == "Disabled" else "KMSInvalidStateException")
        if not key.symmetric:
            raise Refusal("InvalidKeyUsageException")
        return key

    def _opened(self, arn: str, blob: bytes, pairs: dict[str, str]) -> bytes:
        named, nonce, sealed = _taken_apart(blob)
        if named not in self.keys:
            raise Refusal("AccessDeniedException", DENIED_BLOB)
        if named != arn:
            raise Refusal("IncorrectKeyException")
        try:
            return AESGCM(self.keys[named].raw).decrypt(nonce, sealed, _bound(named, pairs))
        except InvalidTag:
            raise Refusal("InvalidCiphertextException") from None


def _operation(received: Received) -> str:
    return received.headers["x-amz-target"].removeprefix("TrentService.")


def _sealed(arn: str, key: FakeKey, plaintext: bytes, pairs: dict[str, str]) -> bytes:
    nonce = os.urandom(12)
    head = len(arn).to_bytes(1, "big") + arn.encode()
    return head + nonce + AESGCM(key.raw).encrypt(nonce, plaintext, _bound(arn, pairs))


def _taken_apart(blob: bytes) -> tuple[str, bytes, bytes]:
    length = blob[0]
    named, rest = blob[1 : 1 + length], blob[1 + length :]
    if len(rest) < 12 + 16 or not named.startswith(b"arn:"):
        raise Refusal("InvalidCiphertextException")
    return named.decode("latin-1"), rest[:12], rest[12:]


def _bound(arn: str, pairs: dict[str, str]) -> bytes:
    return json.dumps([arn, sorted(pairs.items())]).encode()
