"""Hold a secret so that it is had by asking for it by name, and in no other way."""

from collections.abc import Mapping
from typing import NoReturn, final

from vault.errors import VaultError


class Opaque:
    """What has something to hide: shows its class and nothing else, and cannot be pickled or copied.

    Subclasses keep what they hide in a closure behind a slot: there is no `__dict__`, and a slot's value prints as a
    function.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __format__(self, format_spec: str, /) -> str:
        return repr(self)

    def __getstate__(self) -> NoReturn:  # every protocol of pickle, and copy, ask for the state here
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied.")


@final
class Secret(Opaque):
    """The fields of one credential, for the length of one call.

    Printing, formatting, logging, pickling, copying, comparing or dumping it shows no content. `wipe()`, or leaving
    it as a context manager, overwrites the copy held here. Nothing is promised about strings that `reveal` has handed
    out: Python cannot overwrite those.
    """

    __slots__ = ("_kept", "fields")

    fields: tuple[str, ...]
    """The names of the fields, which are not secret."""

    def __init__(self, fields: Mapping[str, str] | Mapping[str, bytes]) -> None:
        """Of texts, or of what these are in UTF-8."""
        kept = {
            name: bytearray(value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass"))
            for name, value in fields.items()
        }
        self._kept = lambda: kept
        self.fields = tuple(kept)

    def reveal(self, field: str = "secret") -> str:
        """The field's value. VaultError when there is no such field, or it was wiped."""
        if field not in self._kept():  # held in no local, or a traceback that prints locals would print it
            there = ", ".join(self._kept()) or "none: it was wiped when its call ended"
            raise VaultError(f"This credential has no field {field!r} (it has {there}).")
        return self._kept()[field].decode("utf-8", "surrogatepass")

    def wipe(self) -> None:
        """Overwrite and forget every field; may be called again."""
        kept = self._kept()
        for value in kept.values():
            value[:] = bytes(len(value))
        kept.clear()

    def __enter__(self) -> "Secret":
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()
