"""A root key that never leaves the Transit engine of OpenBao or Vault: it wraps there, for a context that it binds.

It is named `transit:URL#KEY`: the server's address and, as its path, the engine's mount (by default `transit`), after
its namespace where there is one: `transit:https://bao.example.com:8200/team-a/transit#keyleash`. The address is https,
or http to this machine itself, where an agent may listen. No key is created here. A token that may `update`
MOUNT/encrypt/KEY and MOUNT/decrypt/KEY is all that is needed. It stands in the file that KEYLEASH_TRANSIT_TOKEN_FILE
names, which only we can read; it is read at each use, so a renewed one acts at once. It is sent to the address that
KEYLEASH_TRANSIT_ADDR says and to no other: a database or a backup, which name one too, may have been altered.
KEYLEASH_TRANSIT_CA_FILE names certificates (PEM) to trust instead of the system's.

A blob, version 1:

    offset  length  what
    0       1       version, 0x01
    1       4       version of Transit's key, big-endian, not 0
    5       n       what Transit encrypted, in bytes: for its AES and ChaCha keys a nonce (12; XChaCha 24), the
                    ciphertext (32), a tag (16)

Transit writes that as `vault:v1:` and Base64, and reads more than it writes: `v0` for `v1`, line breaks, stray bits at
the end. The bytes leave no such play, so that no bit of a blob can be flipped. `associated_data` is the context as
`vault.seal` encodes it.

Sources: the API of the Transit engine, in OpenBao's documentation and in its source (`path_encrypt.go`,
`path_decrypt.go`, `keysutil/policy.go`), which Vault shares. Associated data came with Vault 1.13.
"""

import base64
import json
import os
import re
import time
from binascii import Error as NotBase64
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, final
from urllib.parse import urlsplit

from vault.errors import CannotOpen, KeysUnavailable, Mend, RootKeyProblem, VaultError
from vault.keyfile import open_private, refuse_without_modes
from vault.remote import given, prove, refuse_in_clear
from vault.seal import encode_context
from vault.secret import Opaque, Secret

if TYPE_CHECKING:
    import ssl

    import httpx2

VERSION = b"\x01"
KEY_VERSION_BYTES = 4
HEAD_BYTES = len(VERSION) + KEY_VERSION_BYTES
MOST_BLOB_BYTES = 4096
MOST_ANSWER_BYTES = 65536
MOST_TOKEN_BYTES = 16384
TOKEN_FILE = "KEYLEASH_TRANSIT_TOKEN_FILE"  # noqa: S105 -- the name of a variable
CA_FILE = "KEYLEASH_TRANSIT_CA_FILE"
ADDRESS = "KEYLEASH_TRANSIT_ADDR"
CREATE_NOTHING = "must-exist"
"""Sent as the type of a key that Transit would create while encrypting, where there is none: it is no type, so Transit
refuses. Where the key is there, Transit does not look at it."""

GRAMMAR = "`transit:https://HOST:PORT/MOUNT#KEY`; /MOUNT is /transit if left out, and has any namespace before it"
HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
MOUNT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
KEY = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
CIPHERTEXT = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]+={0,2})")
TOKEN = re.compile(r"[!-~]+")

UNFIT = {
    "encryption key not found": "There is no such key. Make one: bao write -f {mount}/keys/{key}",
    "unknown key type": "There is no such key. Make one: bao write -f {mount}/keys/{key}",
    "non-aead": "Its type takes no associated data. Make a key of type aes256-gcm96.",
    "not supported for key type": "Its type does not encrypt. Make a key of type aes256-gcm96.",
    "key derivation": "It is a derived key. Make one that is not: bao write -f {mount}/keys/{key}",
    "soft-deleted": "It is deleted. Restore it: bao write -f {mount}/keys/{key}/restore",
    "(too old)": "Its min_decryption_version shuts out what was wrapped before. Lower it to open that.",
}
"""What Transit says (status 400), in part → what is wrong with the key itself, and the mend."""

STANDING_BY = (412, 429, 472, 473)
"""A replica that is behind, a quota that is used up, a replica that only stands by."""


@dataclass(frozen=True)
class TransitRef:
    """A key of a Transit engine. `patience` is in seconds: for a connection, and then for an answer, once."""

    address: str
    mount: str
    key: str
    token_file: str = ""
    ca_file: str = ""
    patience: float = 3.0
    only: str = ""
    """the one address that the token may be sent to, as the operator says; none where they say nothing"""
    provider: ClassVar[str] = "transit"

    @classmethod
    def at(cls, where: str, home: Path) -> "TransitRef":
        address, mount, key = _taken_apart(where)
        refuse_in_clear(address, mend="Give Transit an https address, or one on this machine, where an agent listens.")
        only = os.environ.get(ADDRESS, "").rstrip("/").lower()
        return cls(address, mount, key, os.environ.get(TOKEN_FILE, ""), os.environ.get(CA_FILE, ""), only=only)

    @property
    def agreed(self) -> bool:
        """Whether the operator says of this address, and not only a database or a backup, that the token is for it."""
        return self.only == self.address

    @property
    def location(self) -> str:
        return f"{self.address}/{self.mount}#{self.key}"

    def describe(self) -> dict[str, str]:
        return {"provider": self.provider, "location": self.location}

    def create(self) -> "TransitKey":
        """No key is created: the one named is proven to wrap and unwrap. Raises as `wrap` and `unwrap` do as well."""
        root = self.load()
        prove(root)
        return root

    def successor(self, generation: int) -> "TransitRef":
        """This place: a key service makes new versions of a key in its place, and wraps under the newest."""
        return self

    def destroy(self) -> bool:
        """Never from here: who may destroy a service's key is decided there."""
        return False

    def load(self) -> "TransitKey":
        """Asks Transit nothing, so that a server can start, and say what is the matter, while Transit is away.

        RootKeyProblem where there is no token, others could have read it, or the certificates to trust are no good.
        """
        import ssl

        self.read_token()
        try:
            tls = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError):
            raise RootKeyProblem(
                f"{CA_FILE} is {self.ca_file}, which cannot be read as certificates in PEM. Name a file that can."
            ) from None
        return TransitKey(self, tls)

    def read_token(self) -> Secret:
        """The token as it is now. RootKeyProblem, also where it is not for this address."""
        if not self.agreed:
            allows = f"{ADDRESS} allows {self.only} alone" if self.only else f"{ADDRESS} is not set"
            raise RootKeyProblem(
                f"The root key is said to be at {self.address}, and {allows}: the token is not sent, because who says "
                f"so may have been altered. If that place is yours, set {ADDRESS}={self.address}."
            )
        if not self.token_file:
            raise RootKeyProblem(
                f"Set {TOKEN_FILE} to a file of mode 0600 that holds a token for {self.address}, and nothing else."
            )
        refuse_without_modes(os.name)
        path = Path(self.token_file).expanduser()
        try:
            with open_private(path, holds="the token") as file:
                token = Secret({"secret": file.read(MOST_TOKEN_BYTES + 1).decode("ascii", "replace").strip()})
        except OSError as error:
            raise RootKeyProblem(
                f"The token for {self.address} cannot be read from {path}: {error.strerror}. Put it there, in a file "
                f"of mode 0600 that is no link, or set {TOKEN_FILE} to where it is."
            ) from None
        if not TOKEN.fullmatch(token.reveal()) or len(token.reveal()) > MOST_TOKEN_BYTES:
            raise RootKeyProblem(f"{path} holds no token. Write one there, in one line and nothing else.")
        return token


@dataclass(frozen=True)
class Answer:
    """What Transit said: the status, and the JSON object of the body; empty where there was none."""

    status: int
    body: Mapping[str, Any]

    def text(self, field: str) -> str:
        """A text of `data`; empty where there is none."""
        data = self.body.get("data")
        found = cast("Mapping[str, Any]", data).get(field) if isinstance(data, dict) else None
        return found if isinstance(found, str) else ""

    def says(self, words: str) -> bool:
        """Whether any of its errors has these words."""
        return words in str(self.body.get("errors", "")).lower()


@final
class TransitKey(Opaque):
    """A key of a Transit engine, in use. Each use has a connection of its own: they are rare."""

    __slots__ = ("_ref", "_tls", "location")

    provider = TransitRef.provider
    remote = True

    def __init__(self, ref: TransitRef, tls: "ssl.SSLContext") -> None:
        self.location = ref.location
        self._ref = ref
        self._tls = tls

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        answer = self._encrypted(key, context)
        del key  # so that a traceback that prints locals has no key to print
        return given(answer)

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        answer = self._decrypted(blob, context)
        del blob
        return given(answer)

    def _encrypted(self, key: bytes, context: Sequence[str]) -> bytes | VaultError:
        bound = base64.b64encode(encode_context(context)).decode()
        plaintext = base64.b64encode(key).decode()
        answer = self._asked("encrypt", {"plaintext": plaintext, "associated_data": bound, "type": CREATE_NOTHING})
        if isinstance(answer, VaultError):
            return answer
        if answer.status != 200:
            return self._refusal(answer)
        return _packed(answer.text("ciphertext")) or self._unreached("its answer has no ciphertext")

    def _decrypted(self, blob: bytes, context: Sequence[str]) -> bytes | VaultError:
        bound = base64.b64encode(encode_context(context)).decode()
        ciphertext = _unpacked(blob)
        if ciphertext is None:
            return CannotOpen()
        answer = self._asked("decrypt", {"ciphertext": ciphertext, "associated_data": bound})
        if isinstance(answer, VaultError):
            return answer
        if answer.status == 400 and not self._unfit(answer):
            return CannotOpen()
        if answer.status != 200:
            return self._refusal(answer)
        return _decoded(answer.text("plaintext")) or self._unreached("its answer has no plaintext")

    def _asked(self, verb: str, body: Mapping[str, str]) -> Answer | VaultError:
        ref = self._ref
        try:
            token = ref.read_token()
        except RootKeyProblem as problem:
            return KeysUnavailable(str(problem), mend=Mend.RENEW, how="The new token acts at the next use.")
        try:
            with token, self._post(f"{ref.address}/v1/{ref.mount}/{verb}/{ref.key}", body, token) as response:
                return Answer(response.status_code, _object(_read(response.iter_raw(), ref.patience)))
        except Exception as error:  # whatever it is, its frames hold the token and the key, and end here
            return self._unreached(type(error).__name__)

    @contextmanager
    def _post(self, url: str, body: Mapping[str, str], token: Secret) -> "Generator[httpx2.Response]":
        import httpx2

        headers = {"X-Vault-Token": token.reveal(), "X-Vault-Request": "true", "Accept-Encoding": "identity"}
        with (
            httpx2.Client(
                trust_env=False, follow_redirects=False, verify=self._tls, timeout=self._ref.patience
            ) as client,
            client.stream("POST", url, json=body, headers=headers) as response,
        ):
            yield response

    def _refusal(self, answer: Answer) -> VaultError:
        """What a status other than 200 means."""
        ref, status = self._ref, answer.status
        if status == 400:
            return RootKeyProblem(
                f"Transit cannot use the root key {ref.key} at {ref.address}/{ref.mount}. "
                + (self._unfit(answer) or "Make a key of type aes256-gcm96, and name it with `--root transit:…`.")
            )
        if status == 404:
            return RootKeyProblem(
                f"There is no Transit engine at {ref.address}/{ref.mount}. Enable it (`bao secrets enable -path="
                f"{ref.mount} transit`), or correct the mount and its namespace in `--root transit:…`."
            )
        if status in (401, 403):
            return KeysUnavailable(
                f"Transit at {ref.address} refuses our token (HTTP {status}).",
                mend=Mend.PERMIT,
                how=f"Renew it in {ref.token_file} if it has expired; else allow it `update` on {ref.mount}/encrypt/"
                f"{ref.key} and {ref.mount}/decrypt/{ref.key}, and check that there is a key of this name.",
            )
        return self._unavailable(status)

    def _unavailable(self, status: int) -> KeysUnavailable:
        server = f"OpenBao or Vault at {self._ref.address}"
        if status == 503:
            return KeysUnavailable(
                f"{server} is sealed or in maintenance (HTTP 503).",
                mend=Mend.WAIT,
                how="Those who run it unseal it: bao operator unseal",
            )
        if status in STANDING_BY or status >= 500:
            return KeysUnavailable(
                f"{server} is standing by, overloaded or broken (HTTP {status}).",
                mend=Mend.WAIT,
                how="Try again in a moment; if it lasts, ask those who run it.",
            )
        if 300 <= status < 400:
            return self._unreached(f"HTTP {status}, a redirect, which is not followed: name the active node itself")
        return self._unreached(f"HTTP {status}")

    def _unfit(self, answer: Answer) -> str:
        found = next((mend for words, mend in UNFIT.items() if answer.says(words)), "")
        return found.format(mount=self._ref.mount, key=self._ref.key)

    def _unreached(self, shown: str) -> KeysUnavailable:
        return KeysUnavailable(
            f"Transit at {self._ref.address} does not answer, or what answers is not it ({shown}).",
            mend=Mend.REACH,
            how=f"Check that it runs and that this machine reaches it and trusts its certificate ({CA_FILE}).",
        )


def _taken_apart(where: str) -> tuple[str, str, str]:
    """Address, mount and key of `URL#KEY`. RootKeyProblem, which does not repeat a text that may hold a password."""
    try:
        url = urlsplit(where)
        port = f":{url.port}" if url.port else ""
    except ValueError:
        raise RootKeyProblem(f"That names no key of a Transit engine. Write {GRAMMAR}.") from None
    host = url.netloc.removesuffix(port)
    mount = url.path.strip("/") or "transit"
    whole = url.scheme in ("http", "https") and HOST.fullmatch(host) and MOUNT.fullmatch(mount)
    if not whole or not KEY.fullmatch(url.fragment) or "?" in where:
        raise RootKeyProblem(f"That names no key of a Transit engine. Write {GRAMMAR}.")
    return f"{url.scheme}://{host.lower()}{port}", mount, url.fragment


def _packed(ciphertext: str) -> bytes | None:
    written = CIPHERTEXT.fullmatch(ciphertext)
    sealed = _decoded(written[2]) if written else None
    if written is None or not sealed:
        return None
    return VERSION + int(written[1]).to_bytes(KEY_VERSION_BYTES, "big") + sealed


def _unpacked(blob: bytes) -> str | None:
    number = int.from_bytes(blob[len(VERSION) : HEAD_BYTES], "big")
    if blob[:1] != VERSION or not number or not HEAD_BYTES < len(blob) <= MOST_BLOB_BYTES:
        return None
    return f"vault:v{number}:{base64.b64encode(blob[HEAD_BYTES:]).decode()}"


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except NotBase64:
        return None


def _read(chunks: Iterable[bytes], patience: float) -> bytes:
    """The body, as far as it comes within the time and size of an answer."""
    until, body = time.monotonic() + patience, b""
    for chunk in chunks:
        body += chunk
        if len(body) > MOST_ANSWER_BYTES or time.monotonic() > until:
            return b""
    return body


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}
