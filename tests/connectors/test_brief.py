"""What an upstream wraps in forms of its own reaches the model as plain values, and nothing is lost or made up."""

import json
from typing import Any

import pytest

from connectors.answer import interpret
from connectors.brief import notion
from connectors.definition import Call
from connectors.egress import Reply
from tests.connectors.wire import OFFER


def rich(*texts: str) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": {"content": text, "link": None}, "annotations": {"bold": True}, "plain_text": text}
        for text in texts
    ]


def brief(value: Any) -> Any:
    return notion(value)


PERSON = {"object": "user", "id": "u1", "type": "person", "person": {"email": "ann@example.com"}}

COLUMNS: list[tuple[str, Any, Any]] = [
    ("title", rich("Re", "fund"), "Refund"),
    ("rich_text", [], ""),
    ("number", 12.5, 12.5),
    ("number", None, None),
    ("checkbox", False, False),
    ("select", {"id": "o1", "name": "Open", "color": "red"}, "Open"),
    ("select", None, None),
    ("status", {"id": "o2", "name": "Done", "color": "green"}, "Done"),
    ("multi_select", [{"id": "o1", "name": "a", "color": "red"}, {"id": "o2", "name": "b"}], ["a", "b"]),
    ("multi_select", [], []),
    ("date", {"start": "2026-11-26", "end": None, "time_zone": None}, "2026-11-26"),
    ("date", {"start": "2026-11-26", "end": "2026-11-27", "time_zone": None}, ["2026-11-26", "2026-11-27"]),
    ("people", [PERSON | {"name": "Ann"}, {"object": "user", "id": "u2"}], ["Ann", "u2"]),
    ("files", [{"name": "a.pdf", "type": "file", "file": {"url": "https://x", "expiry_time": "…"}}], ["a.pdf"]),
    ("url", "https://example.com", "https://example.com"),
    ("relation", [{"id": "p1"}, {"id": "p2"}], ["p1", "p2"]),
    ("formula", {"type": "number", "number": 3}, 3),
    ("formula", {"type": "date", "date": {"start": "2026-11-26", "end": None}}, "2026-11-26"),
    ("rollup", {"type": "array", "array": [{"type": "title", "title": rich("x")}], "function": "show_original"}, ["x"]),
    ("unique_id", {"prefix": "SHOP", "number": 7}, "SHOP-7"),
    ("unique_id", {"prefix": None, "number": 7}, "7"),
    ("created_by", PERSON | {"name": "Ann"}, "Ann"),
    ("created_time", "2026-11-26T05:00:00.000Z", "2026-11-26T05:00:00.000Z"),
    ("one_of_tomorrow", {"new": [1]}, {"new": [1]}),
]


@pytest.mark.parametrize(("kind", "value", "plain"), COLUMNS)
def test_a_column_of_notion_is_its_value(kind: str, value: Any, plain: Any) -> None:
    page = {"id": "p", "properties": {"type": {"id": "abc", "type": kind, kind: value}}}
    assert brief(page) == {"id": "p", "properties": {"type": plain}}


def test_what_is_no_column_keeps_its_form() -> None:
    parent = {"type": "page_id", "page_id": "p"}
    block = {"object": "block", "id": "b", "type": "paragraph", "paragraph": {"rich_text": rich("Hi"), "color": "red"}}
    row = {"object": "block", "id": "r", "type": "table_row", "table_row": {"cells": [rich("a"), [], rich("b", "c")]}}
    assert brief({"parent": parent, "results": [block, row]}) == {
        "parent": parent,
        "results": [
            block | {"paragraph": {"rich_text": "Hi", "color": "red"}},
            row | {"table_row": {"cells": ["a", [], "bc"]}},
        ],
    }
    for value in (None, 1, "x", [], {}, [None, [1]], {"type": "text"}, {"id": 1, "type": ["a"]}):
        assert brief(value) == value


@pytest.mark.parametrize("tool", ["notion_query_data_source", "notion_search"])
def test_a_secret_that_came_in_pieces_is_not_put_together(tool: str) -> None:
    secret = "ntn_canary8Jq2vXw0Zr5TnYb7LdKe"
    column = {"id": "a", "type": "title", "title": rich("The key is ", secret[:12], secret[12:])}
    body = json.dumps({"results": [{"object": "page", "id": "p", "properties": {"Name": column}}]}).encode()
    offered = OFFER.get(tool)
    call = Call(offered.connection, offered.connector, offered.tool, tool, {})
    assert secret in interpret(call, Reply(200, {}, body, 1.0, len(body))).text
    told = interpret(call, Reply(200, {}, body, 1.0, len(body), (secret,)))
    assert secret not in told.text
    assert "withheld" in told.text
