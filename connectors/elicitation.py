"""Vet what a wrapped server wants to ask the person: one flat form of plain values, of a bounded size.

What comes out is written anew, from the few keywords that every client can show: nothing of the server's own object is
passed on. What cannot be vetted is not asked.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from connectors.arguments import fits

ASKING_S = 45.0
"""How long a person may think about all questions of one call together; that is not counted as the server's time."""
MOST_ASKS = 5
"""Questions of one call, or of one round of it where the answers come with a later request."""
MOST_FIELDS = 20
MOST_CHOICES = 100
LONGEST = 2_000  # characters of the question
LONG = 300  # characters of a title, a description, a choice
LONGEST_ANSWER = 10_000  # characters

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_OURS = frozenset({"decision"})
"""What Keyleash's own forms are filled in under: a server's must not look like one of them."""
_TYPES = ("string", "number", "integer", "boolean")
_NUMBERS = ("minimum", "maximum")
_BOUNDS = {"string": ("minLength", "maxLength"), "number": _NUMBERS, "integer": _NUMBERS, "boolean": ()}
_LARGEST = 2**53  # of a bound: the largest number up to which every client knows every whole one
_FORMATS = ("email", "uri", "date", "date-time")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a server wants to know, in form mode: its words, and a flat schema of plain values."""

    message: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the person said. `content` only with accept."""

    action: Literal["accept", "decline", "cancel"]
    content: Mapping[str, Any] | None = None


DECLINED = Answer("decline")


def vetted(message: str, schema: Mapping[str, Any]) -> Ask | None:
    """The question as it can be put to a person; None where it cannot.

    A field that may be left out is, where it cannot be shown.
    """
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or len(message) > LONGEST:
        return None
    found = cast("dict[Any, Any]", properties)
    made = {name: _field(value) for name, value in found.items() if _may_be_called(name)}
    shown = {name: field for name, field in made.items() if field is not None}
    wanted = schema.get("required", [])
    if not isinstance(wanted, list) or not all(name in list(shown) for name in cast("list[Any]", wanted)):
        return None
    if not shown or len(found) > MOST_FIELDS:
        return None
    return Ask(
        message,
        {
            "type": "object",
            "properties": shown,
            **({"required": list(dict.fromkeys(cast("list[str]", wanted)))} if wanted else {}),
        },
    )


def answered(ask: Ask, action: str, content: Mapping[str, Any] | None) -> Answer:
    """The person's answer, where it is one to this question; anything else counts as `cancel`."""
    if action == "decline":
        return DECLINED
    given = dict(content or {})
    closed = {**ask.schema, "additionalProperties": False}
    if action != "accept" or len(str(given)) > LONGEST_ANSWER or not fits(closed, given):
        return Answer("cancel")
    return Answer("accept", given)


def _may_be_called(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name.lower() not in _OURS


def _field(value: Any) -> dict[str, Any] | None:
    """One plain value; None where it is something else."""
    if not isinstance(value, dict):
        return None
    given = cast("dict[str, Any]", value)
    kind = given.get("type")
    if kind not in _TYPES:
        return None
    field: dict[str, Any] = {"type": kind}
    for key in ("title", "description"):
        if isinstance(given.get(key), str):
            field[key] = given[key][:LONG]
    choices = _choices(given)
    if choices is not None:
        if kind != "string" or not 0 < len(choices) <= MOST_CHOICES:
            return None
        field["enum"] = choices
    for key in _BOUNDS[kind]:
        bound: Any = given.get(key)
        if _is_number(bound) and (kind != "string" or (bound >= 0 and bound == int(bound))):
            field[key] = bound
    if given.get("format") in _FORMATS:
        field["format"] = given["format"]
    return field


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _choices(given: Mapping[str, Any]) -> list[str] | None:
    """The values to choose from, however the revision of the protocol writes them; None for a free one."""
    values = given.get("enum")
    if values is None and isinstance(given.get("oneOf"), list):
        parts = cast("list[Any]", given["oneOf"])
        values = [cast("dict[str, Any]", part).get("const") for part in parts if isinstance(part, dict)]
    if values is None:
        return None
    listed = cast("list[Any]", values) if isinstance(values, list) else []
    plain = [each for each in listed if isinstance(each, str) and each.isprintable() and 0 < len(each) <= LONG]
    return plain if len(plain) == len(listed) else []  # what cannot be shown as it is cannot be chosen
