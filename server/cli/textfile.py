"""What the editors of configuration files share: lines, line endings, and the one error for what cannot be edited."""

from typing import Any, cast

Json = dict[str, Any]
BOM = "\ufeff"


class CannotEditError(Exception):
    """The file says something in a form that is not edited; the message goes on after the file's name."""


def as_object(value: object) -> Json | None:
    """The value, where it is an object or a table."""
    return cast("Json", value) if isinstance(value, dict) else None


def newline(text: str) -> str:
    """How the text ends its lines."""
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def line_start(text: str, at: int) -> int:
    """Where the line of this position begins."""
    return text.rfind("\n", 0, at) + 1
