"""Find a value in the log, where only its keyed hash stands: the hashes that it would have, for whoever has the key.

A hash is made of the argument's name and the value as JSON spells it, so the text ``5000`` and the number 5000 have
two. A whole number may have been sent as 5000 or as 5000.0: these are two as well.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from server.audit.chain import hash_value
from server.audit.entry import canonical

AUDIT_VALUES = "audit-values"
"""The purpose under which an org's key for these hashes is derived; it stays the same when keys are rotated."""


class Hashed(NamedTuple):
    """One argument's value as it would stand in the log. `form` is the type that it was taken for."""

    argument: str
    form: str
    hash: str


def hashes_of(key: bytes, arguments: Iterable[str], given: str) -> list[Hashed]:
    """What `given` would be for each argument: as a text, and as JSON where it reads as such."""
    return [Hashed(name, form, hash_value(key, name, value)) for name in arguments for form, value in _readings(given)]


def _readings(given: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [("text", given)]
    try:
        value = json.loads(given)
    except (ValueError, RecursionError):
        return found
    others = [value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _EXACT:
        others.append(float(value))
    elif isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        others.append(int(value))
    found += [(_KINDS[type(each)], each) for each in others]
    return [(form, value) for form, value in found if form == "text" or canonical(value) != canonical(given)]


_EXACT = 2**53
_KINDS: dict[type, str] = {
    **{str: "text", bool: "truth value", int: "whole number", float: "number with a point"},
    **{list: "list", dict: "object", type(None): "nothing"},
}
