"""What a provider itself reports of a call: numbers, and the unit of a cost.

It is found in an answer that is too large to be taken in as well: there, nothing is parsed but the one object that the
definition's `output.usage` begins with.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

import jmespath

from connectors.bounded import level
from connectors.definition import Selector, Tool
from connectors.scrub import Scrubber

MOST_REPORT = 16 * 1024  # bytes of the object that holds a report
MOST_LOOKS = 4  # how often its name is looked at in one answer, from the end: each costs a reading of what is before it


def numbers(value: Any) -> dict[str, Any] | None:
    """The numbers of what the provider reports, and in what its cost is stated.

    `unread` stands with them where it reports something that is to be counted, and that is no number, or one of input
    and output where the tool's file looks for both.
    """
    if not isinstance(value, dict):
        return None
    said = cast("dict[str, Any]", value)
    found: dict[str, Any] = {name: number for name, number in said.items() if _is_number(number)}
    unit = said.get("cost_unit")
    if "cost" in found and isinstance(unit, str) and _UNIT.fullmatch(unit):
        found["cost_unit"] = unit.upper()
    both = [name in found for name in ("tokens_in", "tokens_out") if name in said]
    if any(said.get(name) is not None and name not in found for name in COUNTED) or len(set(both)) > 1:
        found["unread"] = True
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


COUNTED = ("tokens_in", "tokens_out", "tokens_cached", "cost")
"""What of a report is added up; its other numbers stand in the record only."""
_UNIT = re.compile(r"[A-Za-z]{1,12}")
_LARGEST = 10**15  # what is beyond is no count of anything, and may be beyond what a float or a database holds


def reported_in(tool: Tool, body: bytes, secrets: Sequence[str]) -> dict[str, Any] | None:
    """What the provider reports in a body that came whole and is too large to be parsed; None where that is not found.

    Never raises.
    """
    selector = tool.output_usage
    name = None if selector is None or tool.operation is not None else _first_name(selector)
    if selector is None or name is None:
        return None
    found = _member(body, name)
    return None if found is None else numbers(selector.search({name: Scrubber(secrets).value(found)}))


def _first_name(selector: Selector) -> str | None:
    """The one field of the answer that an expression begins with: `usage` of `usage.{tokens_in: input}`."""
    node = cast("dict[str, Any]", jmespath.compile(selector.text).parsed)
    while node["type"] in ("subexpression", "pipe"):
        node = node["children"][0]
    return str(node["value"]) if node["type"] == "field" else None


def _member(body: bytes, name: str) -> Any:
    """The value of a member of the outermost object; of several of one name the last, as a parser has it."""
    key = json.dumps(name).encode()
    end = len(body)
    for _ in range(MOST_LOOKS):
        end = body.rfind(key, 0, end)
        if end < 0:
            return None
        after = _COLON.match(body, end + len(key))
        if after is not None and level(body[:end]) == 1:
            return _value(body[after.end() : after.end() + MOST_REPORT])
    return None


_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")


def _value(text: bytes) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))[0]
    except (ValueError, RecursionError):
        return None
