"""A root key that a service keeps, as far as a test of the vault needs one, and a clock that is set by hand."""

from collections.abc import Callable, Sequence

from vault import LocalRootKey, VaultError


class Unreachable(VaultError):
    """What this service says when it is down."""


class Clock:
    """Seconds; stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class KeyService:
    """Wraps and unwraps with a key that never leaves it, and remembers what it was asked for."""

    def __init__(
        self,
        raw: bytes = b"s" * 32,
        *,
        location: str = "key/1",
        remote: bool = True,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.provider = "service"
        self.location = location
        self.remote = remote
        self.down: Exception | None = None
        self.asked: list[tuple[str, ...]] = []
        self._key = LocalRootKey(raw)
        self._meanwhile = meanwhile

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        self._answer(context)
        return self._key.wrap(key, context=context)

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        self._answer(context)
        return self._key.unwrap(blob, context=context)

    def _answer(self, context: Sequence[str]) -> None:
        self.asked.append(tuple(context))
        self._meanwhile()
        if self.down is not None:
            raise self.down
