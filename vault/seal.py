"""Seal bytes under a key and a context: what opens is exactly what was sealed, for exactly what it was sealed for.

This text is the whole of the format: with it and the root key, another program opens what this one has stored.

**A blob**, version 1, is 81 bytes longer than its plaintext:

    offset  length  what
    0       1       version, 0x01
    1       32      salt, random, never used twice
    33      32      commitment to the key
    65      n       ciphertext, as long as the plaintext
    65+n    16      AES-256-GCM tag

    HKDF-SHA256 (RFC 5869; input the key, the salt above, info "keyleash/seal/v1") gives 76 bytes:
        encryption key (32) | nonce (12) | commitment (32)
    associated data = the blob's first 65 bytes, then the context

**A context** is a list of texts. Each is its length in bytes (4, big-endian), then itself in UTF-8; a lone surrogate is
three bytes, as if UTF-8 allowed it. Numbers are texts too, in decimal without leading zeros.

**What is sealed**, where it stands, under which key, and its context:

    vault_root.check_blob          root key    "root-check"
    vault_root.installation_key    root key    "installation-key"
    vault_org_key.wrapped          root key    "org-key", org, version
    vault_credential.data_key      org's key   "data-key", org, connection, version, key_id, origin, scheme,
                                               the name of each of its fields, by code point
    vault_field.sealed             data key    "field", org, connection, version, key_id, origin, scheme, field
    vault_derived.sealed           org's key   "derived", org, purpose, key_version
    texts, wherever they stand     org's key   "text", org, purpose, subject, version of the org's key

- The plaintext of a key is its 32 bytes, that of `check_blob` any 32 bytes, that of a field or a text UTF-8 as above.
- A root key in a file or a keychain is written `keyleash-root-key:v1:`, base64url of its 32 bytes with padding. Under a
  key service, what the first three rows hold is the service's own: the provider's module says how the context is bound.
- `vault_root` has a row for each generation of the root key: its number is `id`, its place `provider` and `location`. A
  row of `vault_org_key` is under generation `root`; the newest generation with a `check_blob` wraps what is new.
- A row of `vault_credential` or `vault_derived` is under version `key_version` of its org's key. A stored text begins
  with that version (4 bytes, big-endian); the blob follows.

**A derived key** is 32 bytes of HKDF-SHA256 (input the key, no salt, info "keyleash/derive/v1" and then the context:
org, purpose). The installation's own is derived from its key, with an empty org. An org's is derived from version 1 of
its key; when that is rotated, the bytes themselves are carried over into `vault_derived`. The row whose purpose is
empty lists the purposes that were (a JSON array): none of these is derived again. One that is not in it is derived from
the newest version.

**The signing key** of an org's log (`vault.signing`) is Ed25519; its seed is the derived key for the purpose
`audit-signing`.

A key is used with AES only through a fresh salt, so no nonce repeats however much is sealed. GCM by itself lets one
blob open under two keys (Albertini et al., "How to Abuse and Fix Authenticated Encryption Without Key Commitment",
USENIX Security 2022); the commitment is checked first and shuts that out.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from hmac import compare_digest
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vault.errors import CannotOpen
from vault.secret import Opaque

KEY_BYTES = 32
HASH = SHA256()
VERSION = b"\x01"
SEAL_INFO = b"keyleash/seal/v1"
DERIVE_INFO = b"keyleash/derive/v1"

SALT_BYTES = 32
NONCE_BYTES = 12
COMMITMENT_BYTES = 32
EXPANDED_BYTES = KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES
HEAD_BYTES = len(VERSION) + SALT_BYTES + COMMITMENT_BYTES


def seal(key: bytes, plaintext: bytes, *, context: Sequence[str]) -> bytes:
    """A blob that opens only under this key (32 bytes) with this context (at least one part)."""
    salt = secrets.token_bytes(SALT_BYTES)
    cipher_key, nonce, commitment = _expand(key, salt)
    head = VERSION + salt + commitment
    return head + AESGCM(cipher_key).encrypt(nonce, plaintext, head + encode_context(context))


def unseal(key: bytes, blob: bytes, *, context: Sequence[str]) -> bytes:
    """What `seal` was given. Raises CannotOpen for any other key or context, and for a blob changed in any bit."""
    decrypt = _decryption(key, blob, context)
    del key  # so that a traceback that prints locals has no key to print
    if decrypt is None:
        raise CannotOpen
    return _require_opened(decrypt)


def opener(key: bytes, blob: bytes, *, context: Sequence[str]) -> Callable[[], bytes]:
    """What unseals this one blob, over and over, its key derived once. Raises CannotOpen, now or when it is called."""
    decrypt = _decryption(key, blob, context)
    del key  # so that a traceback that prints locals has no key to print
    if decrypt is None:
        raise CannotOpen
    return partial(_require_opened, decrypt)


def derive(key: bytes, *, context: Sequence[str]) -> bytes:
    """32 bytes for another use, one value per key and context, from which neither the key nor another can be told."""
    _require_key(key)
    return HKDF(HASH, KEY_BYTES, salt=None, info=DERIVE_INFO + encode_context(context)).derive(key)


@final
class Key(Opaque):
    """A key that works and is never shown. Refuses what is not 32 bytes, or all zero (ValueError)."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        _require_key(raw)
        self._raw = lambda: raw

    def seal(self, plaintext: bytes, *, context: Sequence[str]) -> bytes:
        return seal(self._raw(), plaintext, context=context)

    def unseal(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        return unseal(self._raw(), blob, context=context)

    def opener(self, blob: bytes, *, context: Sequence[str]) -> Callable[[], bytes]:
        return opener(self._raw(), blob, context=context)

    def derive(self, *, context: Sequence[str]) -> bytes:
        return derive(self._raw(), context=context)


def _decryption(key: bytes, blob: bytes, context: Sequence[str]) -> Callable[[], bytes] | None:
    """What decrypts, or raises InvalidTag; None where the version or the commitment is not this key's."""
    if not blob.startswith(VERSION):
        return None
    cipher_key, nonce, commitment = _expand(key, blob[1 : 1 + SALT_BYTES])
    if not compare_digest(commitment, blob[1 + SALT_BYTES : HEAD_BYTES]):
        return None
    decrypt, bound = AESGCM(cipher_key).decrypt, blob[:HEAD_BYTES] + encode_context(context)
    ciphertext = blob[HEAD_BYTES:]
    return lambda: decrypt(nonce, ciphertext, bound)


def _require_opened(decrypt: Callable[[], bytes]) -> bytes:
    try:
        return decrypt()
    except InvalidTag:
        refusal = CannotOpen()
    raise refusal  # out here, so that it has no context


def _expand(key: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    _require_key(key)
    expanded = HKDF(HASH, EXPANDED_BYTES, salt=salt, info=SEAL_INFO).derive(key)
    return expanded[:KEY_BYTES], expanded[KEY_BYTES:-COMMITMENT_BYTES], expanded[-COMMITMENT_BYTES:]


def _require_key(key: bytes) -> None:
    usable = len(key) == KEY_BYTES and any(key)
    del key
    if not usable:
        raise ValueError("A key must be exactly 32 bytes and not all zero.")


def require_context(context: Sequence[str]) -> None:
    """Refuses an empty context, and a bare string, which is a sequence of its letters (ValueError)."""
    if isinstance(context, str) or not context:
        raise ValueError("A context must be a sequence of at least one part; a bare string is none.")


def encode_context(context: Sequence[str]) -> bytes:
    """The bytes that stand for a context, and for no other: each part's length, then the part, as written above."""
    require_context(context)
    return b"".join(map(_encode_part, context))


@lru_cache(maxsize=4096)  # ids, names and places, nothing secret: the same ones come with every call
def _encode_part(part: str) -> bytes:
    encoded = part.encode("utf-8", "surrogatepass")
    return len(encoded).to_bytes(4, "big") + encoded
