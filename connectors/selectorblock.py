"""Read a JMESPath expression of a connector file, and make of it a function that never fails on an answer."""

from collections.abc import Mapping
from typing import Any, cast

import jmespath
import jmespath.exceptions
import jmespath.functions

from connectors import selecting
from connectors.definition import Selector
from connectors.source import Spot, suggestion


def read_selector(spot: Spot | None) -> Selector | None:
    if spot is None:
        return None
    text = spot.text("The JMESPath expression")
    try:
        compiled = jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        reason = " ".join(str(error).split())
        spot.fail(f"This is not JMESPath: {reason}.")
    _check_functions(cast("dict[str, Any]", compiled.parsed), spot)

    search = selecting.compiled(cast("dict[str, Any]", compiled.parsed))

    def find(value: Any) -> Any:
        try:
            return search(value)
        except (ValueError, TypeError, AttributeError, RecursionError):  # JMESPath's own are ValueErrors
            return None

    return Selector(text, find)


def _check_functions(part: Mapping[str, Any], spot: Spot) -> None:
    """JMESPath would find an unknown function, or one with too few arguments, only when an answer comes."""
    if part["type"] == "function_expression":
        table = cast("dict[str, dict[str, Any]]", jmespath.functions.Functions().FUNCTION_TABLE)
        if part["value"] not in table:
            spot.fail(f"JMESPath has no function {part['value']!r}.", f"{suggestion(part['value'], table)}".strip())
        signature = cast("list[dict[str, Any]]", table[part["value"]]["signature"])
        variadic = bool(signature) and bool(signature[-1].get("variadic"))
        given, wanted = len(part["children"]), len(signature)
        if given < wanted or (given > wanted and not variadic):
            spot.fail(f"The JMESPath function {part['value']!r} takes {wanted} arguments, not {given}.")
    for child in cast("list[Any]", part.get("children", [])):
        if isinstance(child, Mapping):
            _check_functions(cast("Mapping[str, Any]", child), spot)
