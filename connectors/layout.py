"""Where values stand in a request beside the arguments' own names: nested in a JSON body, fixed, or written as a text.

Nothing can stand where another value already stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

from connectors import fileformat as keys
from connectors.arguments import LIST_OF_ONE, NESTING_MEND, Steps, Taken, steps_of
from connectors.definition import Argument, BodyStyle
from connectors.encoding import ENCODERS
from connectors.source import Spot


@dataclass(frozen=True, slots=True)
class Layout:
    """What a tool sends beside its arguments, and what is made of them on the way."""

    fixed_query: tuple[tuple[str, str], ...] = ()
    fixed_body: tuple[tuple[Steps, Any], ...] = ()
    encode: tuple[tuple[Steps, str], ...] = ()


def read_layout(
    block: Mapping[str, Spot], method: str, arguments: Sequence[Argument], style: BodyStyle, taken: Taken
) -> Layout:
    """The `fixed` and `encode` of a tool; raises DefinitionError, also where two values would share a place."""
    fixed = block["fixed"].block("Fixed", keys.FIXED) if "fixed" in block else {}
    queries = {argument.wire_name for argument in arguments if argument.place == "query"} | taken.queries
    query = tuple(_fixed_query(name, spot, queries) for name, spot in (_mapping(fixed, "query", "Fixed query")).items())
    bodies = _mapping(fixed, "body", "Fixed body")
    if bodies and method in ("GET", "HEAD"):
        fixed["body"].fail(f"A {method} has no body.", "Use `query:`.")
    body = tuple((_steps(name, spot, style), spot.plain()) for name, spot in bodies.items())
    encode = tuple(
        (_steps(name, spot, style), spot.one_of("An encoder", ENCODERS))
        for name, spot in _mapping(block, "encode", "Encode").items()
    )
    if encode and style == "form":
        block["encode"].fail("An encoder writes into a JSON body, and this connector sends forms.", "Remove `encode:`.")
    ways = [argument.steps for argument in arguments if argument.place == "body"]
    _check_places([*ways, *(steps for steps, _ in body)], block)
    for steps, encoder in encode:
        _check_encoded(steps, encoder, ways, block["encode"])
    return Layout(query, body, encode)


def nested(values: Sequence[tuple[Steps, Any]]) -> dict[str, Any]:
    """The JSON body in which each value stands at the end of its steps."""
    body: dict[str, Any] = {}
    for steps, value in values:
        at = _before_last(body, steps)
        if isinstance(at, list):
            cast("list[Any]", at).append(value)
        else:
            at[steps[-1]] = value
    return body


def encoded(body: dict[str, Any], encode: tuple[tuple[Steps, str], ...]) -> dict[str, Any]:
    """The same body, with what stands at these places written as one text. Raises Unsendable."""
    for steps, encoder in encode:
        at = _before_last(body, steps)
        at[steps[-1]] = ENCODERS[encoder].write(at.get(steps[-1], {}))
    return body


def _before_last(body: dict[str, Any], steps: Steps) -> Any:
    """The object or list in which the last step is taken, made where it is not there yet."""
    at: Any = body
    for step, following in pairwise(steps):
        at = _inner(at, step, [] if following == LIST_OF_ONE else {})
    return at


def _inner(at: Any, step: str, made: Any) -> Any:
    if isinstance(at, dict):
        return cast("dict[str, Any]", at).setdefault(step, made)
    if not at:
        at.append(made)
    return at[0]


def _mapping(block: Mapping[str, Spot], key: str, what: str) -> dict[str, Spot]:
    return block[key].mapping(what) if key in block else {}


def _fixed_query(name: str, spot: Spot, taken: frozenset[str] | set[str]) -> tuple[str, str]:
    if name in taken:
        spot.fail(f"The query parameter {name!r} is set elsewhere.", "Remove one of the two.")
    value = spot.value
    if isinstance(value, bool):
        return name, "true" if value else "false"
    if not isinstance(value, (str, int)):
        spot.fail("A fixed query value is a text, a whole number, true or false.", "Write a list as `a,b`.")
    return name, str(value)


def _steps(name: str, spot: Spot, style: BodyStyle) -> Steps:
    return steps_of(name, spot) if style == "json" else (name,)


def _check_places(ways: Sequence[Steps], block: Mapping[str, Spot]) -> None:
    spot = block.get("fixed") or block.get("arguments")
    for place, steps in enumerate(ways):
        for other in ways[:place]:
            shorter = min(len(steps), len(other))
            if spot and steps[:shorter] == other[:shorter]:
                spot.fail(
                    f"Two values would stand at {_written(steps)} in the body.", "Change one `as:`, or remove one."
                )
            apart = next(at for at, (one, two) in enumerate(zip(steps, other, strict=False)) if one != two)
            if spot and LIST_OF_ONE in (steps[apart], other[apart]):
                spot.fail(f"{_written(steps)} and {_written(other)} disagree on what is a list.", NESTING_MEND)


def _check_encoded(steps: Steps, encoder: str, ways: Sequence[Steps], spot: Spot) -> None:
    if LIST_OF_ONE in steps:
        spot.fail("An encoder cannot write into a list.", "Name a place in an object.")
    inner = [way[len(steps) :] for way in ways if way[: len(steps)] == steps]
    if not inner:
        spot.fail(f"No argument stands at {_written(steps)} in the body.", "Give those it takes an `as:` below it.")
    for rest in inner:
        if len(rest) != 1 or rest[0] not in ENCODERS[encoder].fields:
            known = ", ".join(sorted(ENCODERS[encoder].fields))
            spot.fail(f"The encoder {encoder!r} takes no {_written(rest) or 'value of its own'}.", f"It takes {known}.")


def _written(steps: Steps) -> str:
    return steps[0] + "".join(f"[{step}]" for step in steps[1:]) if steps else ""
