"""A server's question is put to a person only as one flat form of plain values, written anew."""

from typing import Any

import pytest

from connectors.elicitation import LONGEST, Ask, answered, vetted

FORM = {
    "$schema": "x",
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "blue"], "title": "Colour", "x-evil": 1},
        "size": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "sure": {"type": "boolean"},
        "mail": {"type": "string", "format": "email", "pattern": "(a+)+$"},
        "kind": {"type": "string", "oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]},
    },
    "required": ["colour"],
}


def test_what_is_asked_is_written_anew_from_what_every_client_can_show() -> None:
    ask = vetted("Which?", FORM)
    assert ask is not None
    assert ask.schema == {
        "type": "object",
        "properties": {
            "colour": {"type": "string", "title": "Colour", "enum": ["red", "blue"]},
            "size": {"type": "integer", "minimum": 1, "maximum": 9},
            "sure": {"type": "boolean"},
            "mail": {"type": "string", "format": "email"},
            "kind": {"type": "string", "enum": ["a", "b"]},
        },
        "required": ["colour"],
    }


def form(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "array", "properties": {}},
        form(decision={"type": "string"}),
        form(Decision={"type": "string"}),
        form(a={"type": "object", "properties": {}}),
        form(a={"type": "array", "items": {"type": "string"}}),
        form(a={"type": ["string", "null"]}),
        form(a={"$ref": "#/x"}),
        form(a={"type": "string", "enum": []}),
        form(a={"type": "string", "enum": ["fine", "\u202eenif"]}),
        form(a={"type": "string", "enum": ["x" * 301]}),
        form(a={"type": "integer", "enum": ["1"]}),
        form(**{"two words": {"type": "string"}}),
        form(**{f"a{number}": {"type": "string"} for number in range(21)}),
        {**form(a={"type": "string"}), "required": ["b"]},
        form(a="string"),
    ],
)
def test_what_cannot_be_shown_as_it_is_is_not_asked(schema: dict[str, Any]) -> None:
    assert vetted("Which?", schema) is None


def test_a_field_that_may_be_left_out_is_where_it_cannot_be_shown() -> None:
    lists = {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}
    schema = {**form(name={"type": "string"}, several=lists, decision={"type": "string"}), "required": ["name"]}
    ask = vetted("Who?", schema)
    assert ask is not None
    assert ask.schema == {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert vetted("Who?", {**schema, "required": ["name", "several"]}) is None
    assert vetted("Who?", {**schema, "required": ["name", "decision"]}) is None


@pytest.mark.parametrize(
    "bound",
    [
        {"type": "number", "minimum": float("inf")},
        {"type": "number", "minimum": float("nan")},
        {"type": "integer", "maximum": 10**40},
        {"type": "integer", "minLength": -1.5},
        {"type": "string", "minLength": -1},
        {"type": "string", "maxLength": 5.5},
        {"type": "string", "enum": ["red", "red"]},
    ],
    ids=str,
)
def test_a_bound_that_is_none_is_not_passed_on(bound: dict[str, Any]) -> None:
    ask = vetted("Which?", {**form(a=bound, b={"type": "boolean"}), "required": ["b", "b"]})
    assert ask is not None
    assert set(ask.schema["properties"]["a"]) <= {"type", "enum"}
    assert answered(ask, "accept", {"b": True}).action == "accept"


def test_what_is_required_is_named() -> None:
    assert vetted("Which?", {**form(a={"type": "string"}), "required": [["a"]]}) is None


def test_a_question_that_is_too_long_is_not_asked() -> None:
    assert vetted("x" * (LONGEST + 1), form(a={"type": "string"})) is None


@pytest.mark.parametrize(
    ("action", "content", "expected"),
    [
        ("accept", {"colour": "red", "size": 2}, "accept"),
        ("accept", {"colour": "green"}, "cancel"),
        ("accept", {"size": 2}, "cancel"),
        ("accept", {"colour": "red", "other": 1}, "cancel"),
        ("accept", {"colour": "red", "mail": "x" * 20_000}, "cancel"),
        ("accept", None, "cancel"),
        ("decline", {"colour": "red"}, "decline"),
        ("cancel", None, "cancel"),
        ("approve", {"colour": "red"}, "cancel"),
    ],
)
def test_only_an_answer_to_this_very_question_is_one(action: str, content: Any, expected: str) -> None:
    ask = vetted("Which?", FORM)
    assert isinstance(ask, Ask)
    answer = answered(ask, action, content)
    assert answer.action == expected
    assert (answer.content is not None) is (expected == "accept")
