"""Answers as large as real ones, made of what a tool selects: thirty things in the list, and texts of a usual length.

What is made has every field that the tool's JMESPath expression looks at, and nothing else, so it says how much a model
hears and not how much the upstream sends.
"""

from dataclasses import dataclass, field
from typing import Any

import jmespath

from connectors.definition import Tool

ITEMS, INNER = 30, 2
Node = dict[str, Any]


@dataclass
class Place:
    """A place of an answer: the fields that are looked at there, what is in its list, what it is compared with."""

    fields: dict[str, "Place"] = field(default_factory=dict)
    inside: "Place | None" = None
    equals: Any = None

    def item(self) -> "Place":
        """What is in the list that stands here."""
        self.inside = self.inside or Place()
        return self.inside

    def named(self, name: str) -> "Place":
        """The field of this name."""
        return self.fields.setdefault(name, Place())


def answer(connector: str, tool: Tool) -> Any:
    """What an upstream may answer, with thirty things in the outermost list."""
    if (name := f"{connector}_{tool.name}") in OTHERWISE:
        return OTHERWISE[name]
    root = Place()
    if tool.output_select:
        _walk(jmespath.compile(tool.output_select.text).parsed, root)
    return _made(root, "", 0)


def _walk(node: Node, at: Place) -> Place:
    """Note what this expression looks at, from `at` on; the place that it finds."""
    children = node["children"]
    match node["type"]:
        case "field":
            return at.named(node["value"])
        case "subexpression" | "index_expression" | "pipe":
            for child in children:
                at = _walk(child, at)
            return at
        case "projection":
            _walk(children[1], (listed := _walk(children[0], at)).item())
            return listed
        case "filter_projection":
            listed = _walk(children[0], at)
            _walk(children[2], listed.item())
            _walk(children[1], listed.item())
            return listed
        case "value_projection":
            _walk(children[1], _walk(children[0], at).named("any"))
            return Place()
        case "index":
            return at.item()
        case "flatten":
            return _walk(children[0], at)
        case "comparator":
            left, right = (_walk(child, at) for child in children)
            left.equals = right.equals
            return Place()
        case "literal":
            return Place(equals=node["value"])
        case "identity" | "current":
            return at
        case _:
            found = [_walk(child, at) for child in children]
            return found[0] if node["type"] in ("or_expression", "and_expression") else Place()


def _made(place: Place, name: str, depth: int) -> Any:
    if place.equals is not None:
        return place.equals
    if place.inside is not None:
        return [_made(place.inside, name, depth + 1)] * (INNER if depth else ITEMS)
    if place.fields:
        return {key: _made(inner, key, depth) for key, inner in place.fields.items()}
    return usual(name, depth)


def usual(name: str, depth: int) -> Any:
    """A usual value of a field of this name; in a list within a list its texts are shorter."""
    if (found := OPEN.get(name.lower())) is not None:
        return found
    value = next((value for part, value in USUAL if part in name.lower()), "a value")
    return LINE[:20] if depth > 1 and value in (TEXT, LINE) else value


OPEN: dict[str, Any] = {
    "metadata": {"order_id": "6735", "team": "blue"},
    "fields": {f"Field {number}": "Ann asks for it" for number in range(12)},
    "properties": {f"property_{number}": "Ann asks for it" for number in range(8)},
    "custom_fields": [{"id": 360000000000 + number, "value": "blue"} for number in range(8)],
}
"""What the account's owner fills as they like."""
RICH = [{"type": "text", "text": {"content": "x" * 40, "link": None}, "plain_text": "x" * 40, "href": None}]
RICH[0]["annotations"] = dict.fromkeys(("bold", "italic", "strikethrough", "underline", "code"), False)
PERSON = {"object": "user", "id": "0" * 36}
PAGE = {"object": "page", "id": "0" * 36, "url": "https://www.notion.so/" + "x" * 60, "parent": {"page_id": "0" * 36}}
BLOCK = {"object": "block", "id": "0" * 36, "type": "paragraph", "created_by": PERSON, "last_edited_by": PERSON}
MORE = {"has_more": True, "next_cursor": "a mark"}
OTHERWISE: dict[str, Any] = {
    "linear_list_teams": {
        "teams": {"nodes": [{"id": "0" * 36, "key": "ENG", "name": "Shop", "description": None}] * ITEMS}
    },
    "notion_list_block_children": {
        "results": [BLOCK | {"paragraph": {"rich_text": RICH}, "has_children": False}] * ITEMS,
        **MORE,
    },
    "notion_query_data_source": {
        "results": [
            PAGE
            | {
                "properties": {
                    f"Column {number}": {"id": "abcd", "type": "rich_text", "rich_text": RICH} for number in range(8)
                }
            }
        ]
        * ITEMS,
        **MORE,
    },
    "notion_search": {"results": [PAGE | {"properties": {"Name": {"id": "title", "title": RICH}}}] * ITEMS, **MORE},
    "sendgrid_list_scopes": {"scopes": ["mail.batch.create"] * ITEMS},
}
"""Answers of tools whose expression does not say what they look like."""
TEXT = "The customer writes that the parcel has not come, and asks when it will, or else for the money back. " * 2
LINE = "Refund of the order of last week, with postage"
USUAL: list[tuple[str, Any]] = [
    ("content_type", "image/png"),
    ("value", "Chrome 142.0"),
    *[(part, "0123456789abcdef01234567") for part in ("_id", "reply_to")],
    *[(part, None) for part in ("error", "currency")],
    *[(part, 12) for part in ("comments", "count", "total", "number", "quantity", "replies", "position", "num_")],
    *[(part, 123456) for part in ("amount", "size", "bytes", "price", "fee", "net", "additions", "deletions", "stars")],
    *[(part, False) for part in ("is_", "has_", "paid", "deleted", "refunded", "disputed", "private", "public", "bot")],
    *[(part, "2026-11-26T05:00:00Z") for part in ("created", "updated", "_at", "date", "time", "since", "until")],
    *[(part, "https://example.com/acme/shop/issues/1234567890") for part in ("url", "link", "uri", "self")],
    *[(part, TEXT) for part in ("body", "text", "content", "message", "html")],
    *[(part, LINE) for part in ("title", "subject", "summary", "reason", "description", "snippet", "topic", "purpose")],
    *[(part, "open") for part in ("status", "state", "type", "kind", "priority", "role", "effect", "category")],
    ("email", "ann.example@acme.example"),
    ("name", "Ann Example"),
    ("label", "bug"),
    ("login", "ann-example"),
    ("id", "0123456789abcdef01234567"),
]
