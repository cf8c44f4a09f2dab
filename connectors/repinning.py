"""Put what a person has reviewed into a connector file of kind mcp: the new pin, and what was the server's own words.

Whatever a person has changed or added stays as it is, comments included. An effect is raised, and never lowered.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from connectors.definition import Effect, Tool
from connectors.document import DocumentError
from connectors.errors import DefinitionError
from connectors.importing_wrapped import annotations_of, as_written, block_of, suggested
from connectors.source import read_text
from connectors.upstream import Definition

LARGEST = 8 * 1024 * 1024
KEPT = ".definitions.json"


# --- the definitions that a file pins, whole


def beside(file: Path) -> Path:
    """Where the definitions stand that the file pins: what a later one is compared with."""
    return file.with_name(f"{file.stem}{KEPT}")


def written(definitions: Sequence[Definition]) -> bytes:
    """These definitions, each under its hash."""
    tools = {each.hash: dict(each.raw) for each in definitions}
    return (json.dumps(tools, indent=1, sort_keys=True) + "\n").encode()


def kept(file: Path) -> dict[str, Definition]:
    """The definitions beside this file, by hash: those that are what their hash says, and no others."""
    try:
        with beside(file).open("rb") as opened:
            found: object = json.loads(opened.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    each = cast("dict[str, object]", found).items() if isinstance(found, dict) else ()
    taken = {of: Definition(cast("dict[str, Any]", raw)) for of, raw in each if isinstance(raw, dict)}
    return {of: one for of, one in taken.items() if "name" in one.raw and one.hash == of}


# --- what has changed


def effect_after(tool: Tool, before: Definition | None, found: Definition) -> Effect:
    """The effect that the file is to state: raised where the server's own words mean more than they did."""
    stated = tool.unreviewed or tool.effect
    now, _ = suggested(tool.upstream, tool.name, found)
    meant = suggested(tool.upstream, tool.name, before)[0] if before is not None else stated
    return max(stated, now, key=lambda each: each.strictness) if now.strictness > meant.strictness else stated


@dataclass(frozen=True, slots=True)
class Repinned:
    """A connector file with the new pin; `edited` says what else is new in it, `left` what a person has to look at."""

    text: str
    edited: tuple[str, ...]
    left: tuple[str, ...]


def repinned(text: str, file: str, tool: Tool, before: Definition | None, found: Definition) -> Repinned:
    """The file's text with the tool as it is found now. Raises DefinitionError where it cannot be written into."""
    new, name = text.replace(tool.pinned, found.hash), tool.name
    if new == text:
        raise DefinitionError(file, 1, f"The pin of {name} does not stand here as it was read.", "Read the file again.")
    edited, left = list[str](), list[str]()
    effect, stated = effect_after(tool, before, found), tool.unreviewed or tool.effect
    wanted: dict[str, list[str]] = {}
    if effect is not stated:
        wanted["effect"] = [f"effect: {effect} # raised by what the server says now; it was {stated}"]
    hints = annotations_of(found)
    if before is None or annotations_of(before) != hints:
        wanted["annotations"] = block_of("annotations", hints) if hints else []
    for key in ("title", "description", "input"):
        made = _made(key, found)
        if before is None or made == _made(key, before):
            continue
        if made is not None and _value(new, file, name, key) == _made(key, before):
            wanted[key] = block_of(key, made)
        else:
            left.append(key)
    for key, lines in wanted.items():
        changed = _with(new, name, key, lines)
        if changed is None:
            left.append(key)
        else:
            new, _ = changed, edited.append(key)
    return Repinned(new, tuple(edited), tuple(left))


def _made(key: str, definition: Definition) -> Any:
    """What an import writes at this key; None where it could not write any."""
    try:
        return as_written(definition)[key]
    except DocumentError:
        return None


def _value(text: str, file: str, name: str, key: str) -> Any:
    """What stands in the file at a tool's key."""
    block = read_text(text, file).mapping("A connector")["tools"].mapping("Tools")[name].mapping("A tool")
    return block[key].plain() if key in block else None


def _with(text: str, name: str, key: str, lines: Sequence[str]) -> str | None:
    """The text with these lines at a key of a tool; None where that is not a line by itself, or is commented inside."""
    tool = _node(_node(yaml.compose(text, Loader=yaml.SafeLoader), "tools"), name)
    if not isinstance(tool, yaml.MappingNode) or tool.flow_style or not tool.value:
        return None
    rows = text.splitlines(keepends=True)
    indent = " " * tool.value[0][0].start_mark.column
    fresh = [f"{indent}{line}\n" for line in lines]
    for place, (key_node, value) in enumerate(tool.value):
        if key_node.value == key:
            first, last = key_node.start_mark.line, _last(rows, key_node.start_mark.line, value.end_mark)
            inside = rows[first + 1 : last + 1]
            if any("#" in row for row in inside) or (place and tool.value[place - 1][1].end_mark.line > first):
                return None
            return "".join([*rows[:first], *fresh, *rows[last + 1 :]])
    return "".join([*rows[: tool.start_mark.line], *fresh, *rows[tool.start_mark.line :]])


def _last(rows: Sequence[str], first: int, end: yaml.Mark) -> int:
    """The last line of a value: a block ends where the next thing begins, behind what is blank or a comment."""
    last = end.line if end.column and rows[end.line][: end.column].strip() else end.line - 1
    while last > first and (not rows[last].strip() or rows[last].lstrip().startswith("#")):
        last -= 1
    return max(first, last)


def _node(node: Any, key: str) -> Any:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


# --- the difference, for people


def difference(before: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """What is new and what is gone, line by line. Nothing in it is anything but text; it is still to be escaped."""
    import difflib

    lines = difflib.unified_diff(list(_lines(before)), list(_lines(found)), "reviewed", "found now", lineterm="", n=2)
    return (line for line in lines if not line.startswith("@@"))


def _lines(raw: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "title", "description", "annotations", "inputSchema", "outputSchema"):
        value = raw.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            parts = value.splitlines() or [""]
            yield from (f"{key}: {parts[0]}", *(f"  {part}" for part in parts[1:]))
        else:
            shown = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).splitlines()
            yield from (f"{key}: {shown[0]}", *(f"  {part}" for part in shown[1:]))
