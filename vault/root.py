"""The key that wraps an installation's keys: what is asked of one, and the one that is held in memory."""

import base64
import re
import secrets
from collections.abc import Sequence
from typing import Protocol, final

from vault.errors import RootKeyProblem
from vault.seal import KEY_BYTES, Key
from vault.secret import Opaque, Secret

PREFIX = "keyleash-root-key:v1:"


class RootKey(Protocol):
    """A root key in use. It may stay in a KMS for good, so only wrapping is asked of it. Threads may share one."""

    @property
    def provider(self) -> str: ...

    @property
    def location(self) -> str: ...

    @property
    def remote(self) -> bool:
        """Whether `wrap` and `unwrap` ask a service over the network, and so may take seconds or fail for now.

        Do not call those of a remote key inside a database transaction or on an event loop. Bound how long you keep
        what one unwrapped: until that time is up, a permission that was taken away at the service does not act here.
        """
        ...

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        """A blob that this root key alone unwraps, for this context alone. A remote one raises as `unwrap` does."""
        ...

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        """Raises CannotOpen for what this key did not wrap, or wrapped for another context.

        A remote one also raises KeysUnavailable while its service does not answer or refuses, and RootKeyProblem
        where the service says that there is no such key, or none that may be used.
        """
        ...


@final
class LocalRootKey(Opaque):
    """A root key held in this process's memory. 32 bytes, not all zero (ValueError)."""

    __slots__ = ("_key", "location", "provider")

    remote = False

    def __init__(self, raw: bytes, *, provider: str = "memory", location: str = "this process") -> None:
        self._key = Key(raw)
        self.provider = provider
        self.location = location

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        return self._key.seal(key, context=context)

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        return self._key.unseal(blob, context=context)


def new_root_text() -> Secret:
    """A new random root key as it is written: `keyleash-root-key:v1:` and base64url of its 32 bytes."""
    return Secret({"secret": _to_text(secrets.token_bytes(KEY_BYTES))})


def root_from_text(text: str, *, provider: str, location: str) -> LocalRootKey | None:
    """The root key of a text that `new_root_text` made; None for any other text, and for a key of zeros."""
    text = text.strip()
    if not re.fullmatch(PREFIX + r"[A-Za-z0-9_-]{43}=", text):
        return None
    raw = base64.urlsafe_b64decode(text.removeprefix(PREFIX))
    if not any(raw) or _to_text(raw) != text:
        return None
    return LocalRootKey(raw, provider=provider, location=location)


def require_root_text(text: Secret) -> None:
    """Refuse to keep what is no whole root key."""
    if root_from_text(text.reveal(), provider="memory", location="this process") is None:
        raise RootKeyProblem("That is not a whole root key, so it is not kept.")


def _to_text(raw: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(raw).decode("ascii")
