"""Say in plain values what an upstream wraps in forms of its own; each way is one function and one line.

For what JMESPath cannot say: it keeps no name of a field that it does not know beforehand.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast


def notion(value: Any) -> Any:
    """The same, with each property as its value and each rich text as its text.

    People and linked pages become their ids, files their names; what is not known stays as it is.
    Source: https://developers.notion.com/reference/page-property-values
    """
    if isinstance(value, list):
        listed = cast("list[Any]", value)
        if listed and all(map(_is_rich, listed)):
            return "".join(each["plain_text"] for each in listed)
        return [notion(item) for item in listed]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    if _is_property(fields):
        empty = fields["type"] in ("title", "rich_text") and not fields[fields["type"]]
        return "" if empty else _plain(notion(fields[fields["type"]]))
    return {name: notion(item) for name, item in fields.items()}


def _is_rich(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(cast("dict[str, Any]", value).get("plain_text"), str)


def _is_property(fields: Mapping[str, Any]) -> bool:
    """Whether this is `{id, type, TYPE: value}` and no more: a column's value, and neither a block nor a person."""
    kind = fields.get("type")
    return isinstance(kind, str) and kind in fields and {"id"} <= fields.keys() <= {"id", "type", kind, "has_more"}


def _plain(value: Any) -> Any:
    """A column's value without what surrounds it."""
    if isinstance(value, list):
        return [_plain(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    kind = fields.get("type")
    if isinstance(kind, str) and kind in fields and "name" not in fields and "object" not in fields:
        return _plain(fields[kind])  # a formula's, a rollup's
    if "prefix" in fields and "number" in fields:
        return f"{fields['prefix'] or ''}{'-' if fields['prefix'] else ''}{fields['number']}"
    if "start" in fields:
        return fields["start"] if fields.get("end") is None else [fields["start"], fields["end"]]
    return next((fields[name] for name in ("name", "id") if fields.get(name) is not None), fields)


BRIEFS: Mapping[str, Callable[[Any], Any]] = {
    "notion": notion,
}
