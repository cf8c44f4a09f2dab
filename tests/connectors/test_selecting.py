"""Compiled JMESPath finds what the library finds, in whatever an upstream may send."""

import os
from pathlib import Path
from typing import Any

import jmespath
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.selecting import compiled

FOLDER = Path(__file__).parents[2] / "configs" / "connectors"


def expressions(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["select"]] if isinstance(part.get("select"), str) else []
        return own + [text for value in part.values() for text in expressions(value)]
    return [text for value in part for text in expressions(value)] if isinstance(part, list) else []


SHIPPED = sorted({text for path in FOLDER.glob("*.yaml") for text in expressions(yaml.safe_load(path.read_text()))})
OTHERS = [
    *("a", "a.b.c", "a[0]", "a[-1].b", "a[]", "a[].b", "a[*].b[]", "[].a", "*.a", "a | [0]", "@", "a.[b, c]"),
    *("{x: a, y: b}", "{x: a.b, y: length(c)}", "a || b", "a && b", "!a", "a[?b == `1`].c", "a[1:2]", "`5`"),
    *("a[].{x: b, y: c[].{z: d}}", "{x: {y: a}}", "data[].{id: id, n: a.b[0]}", "to_string(a)", "sort_by(a, &b)"),
]
NAMES = st.sampled_from(["a", "b", "c", "d", "data", "id", "items", "object", "name", "type", "user", "text", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "a", "text"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)


def outcome(find: Any, value: Any) -> Any:
    try:
        return ("found", find(value))
    except Exception as error:
        return ("raised", type(error))


@pytest.mark.parametrize("text", [*SHIPPED, *OTHERS])
@settings(max_examples=100 if os.environ.get("KEYLEASH_PROOFS") else 10, deadline=None)
@given(value=VALUES)
def test_it_finds_what_the_library_finds(text: str, value: Any):
    parsed = jmespath.compile(text)
    assert outcome(compiled(parsed.parsed), value) == outcome(parsed.search, value)
