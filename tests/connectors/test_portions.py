"""A long answer is told in portions that together hold all of it, each item once."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.portions import ASK_FOR_LESS, MAX_TEXT, Portion, portion


def all_of(whole: dict[str, Any]) -> list[Portion]:
    told = [portion(whole)]
    while (following := told[-1].next) is not None:
        told.append(portion(whole, following))
    return told


def is_in_form(told: Portion) -> None:
    assert json.loads(told.text) == told.structured
    assert len(told.text.encode()) <= MAX_TEXT
    assert (told.next is None) == (ASK_FOR_LESS not in told.structured.get("note_on_length", ""))


@pytest.mark.parametrize("whole", [{}, {"a": 1}, {"items": ["x"] * 1000, "has_more": True}])
def test_a_short_answer_is_told_as_it_is(whole: dict[str, Any]) -> None:
    assert portion(whole) == Portion(whole, json.dumps(whole, separators=(",", ":")))


ITEMS = [{"id": number, "text": "é" * 100} for number in range(2_000)]


def test_a_long_list_is_told_item_by_item_with_what_stands_beside_it_once() -> None:
    told = all_of({"items": ITEMS, "has_more": True, "next": "c"})
    assert len(told) == 8
    assert [item for each in told for item in each.structured["items"]] == ITEMS
    assert told[0].structured["has_more"] is True
    assert all(each.structured.keys() == {"items", "note_on_length"} for each in told[1:])
    first, second = told[0].next, told[1].next
    assert first is not None
    notes = [each.structured["note_on_length"].partition(" are shown.")[0] for each in told]
    assert notes[0] == f"Cut by Keyleash: {first} of 2000 in 'items'"
    assert notes[1] == f"Cut by Keyleash: {first + 1} to {second} of 2000 in 'items'"
    assert told[-1].structured["note_on_length"].endswith("2000 of 2000 in 'items' are shown. This is the end of it.")


@pytest.mark.parametrize("text", ["x" * 200_000, 'é\n"\\' * 40_000, "\u0001" * 50_000, "\U0001f600" * 50_000])
def test_a_long_text_is_told_without_a_gap(text: str) -> None:
    told = all_of({"status": 200, "text": text})
    assert "".join(each.structured["text"] for each in told) == text
    assert told[0].structured["status"] == 200


@pytest.mark.parametrize(
    "whole",
    [
        {"a": {"deep": ["x" * 100] * 2_000}},
        {"list": ["x" * 100_000, "y"]},
        {"a": ["x" * 300] * 150, "b": ["y" * 300] * 150},
        {"x" * 70_000: list(range(50_000))},
    ],
)
def test_what_is_neither_is_told_as_the_text_of_its_json(whole: dict[str, Any]) -> None:
    told = all_of(whole)
    assert json.loads("".join(each.structured["json"] for each in told)) == whole


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.integers(1, 4_000), st.dictionaries(st.text(max_size=5), VALUES))
def test_nothing_is_lost_or_told_twice(some: list[Any], times: int, beside: dict[str, Any]) -> None:
    whole = beside | {"items": some * times}
    told = all_of(whole)
    for each in told:
        is_in_form(each)
    if "json" in told[0].structured and "json" not in beside:
        assert json.loads("".join(each.structured["json"] for each in told)) == json.loads(json.dumps(whole))
    else:
        assert [item for each in told for item in each.structured["items"]] == whole["items"]
        assert beside.items() <= told[0].structured.items()


@pytest.mark.parametrize("start", [2_000, 10**9])
def test_there_is_nothing_past_the_end(start: int) -> None:
    with pytest.raises(IndexError):
        portion({"items": ITEMS}, start)


def test_how_the_rest_is_had_is_said_with_its_place() -> None:
    told = portion({"items": ITEMS}, how=lambda place: f"Ask for {place}.")
    assert told.structured["note_on_length"] == (
        f"Cut by Keyleash: {told.next} of 2000 in 'items' are shown. Ask for {told.next}. "
        "Do so before you ask for the next page."
    )
