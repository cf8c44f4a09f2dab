"""Read a YAML file into values that remember their line; what YAML would silently turn into something else is refused.

Dates, `yes` and `on`, octal and sexagesimal numbers, empty values, duplicate keys, anchors, tags and a second document
are refused with the line and the mend.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from connectors.errors import DefinitionError

MAX_BYTES = 1024 * 1024
NAME_PATTERN = "^[a-z][a-z0-9_]{0,39}$"
NAME_MEND = "Use at most 40 of a-z, 0-9 and _, beginning with a letter."

_NAME = re.compile(NAME_PATTERN)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,3999})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Spot:
    """A value in a file, and the line to name when it is wrong."""

    file: str
    line: int
    value: "str | int | float | bool | dict[str, Spot] | list[Spot]"

    def fail(self, message: str, mend: str = "") -> NoReturn:
        raise DefinitionError(self.file, self.line, message, mend)

    def block(self, what: str, allowed: Collection[str], required: Collection[str] = ()) -> dict[str, "Spot"]:
        """A mapping with no other keys than `allowed`, and all of `required`."""
        block = self.mapping(what)
        for key, spot in block.items():
            if key not in allowed:
                spot.fail(f"{what} has no key {key!r}.", f"{suggestion(key, allowed)}Known: {', '.join(allowed)}.")
        for key in required:
            if key not in block:
                self.fail(f"{what} lacks {key!r}.", f"Add `{key}:`.")
        return block

    def mapping(self, what: str) -> dict[str, "Spot"]:
        if not isinstance(self.value, dict):
            self.fail(f"{what} must be a mapping of names to values.", "Write `name: value`, one a line.")
        return self.value

    def named(self, what: str) -> dict[str, "Spot"]:
        """A mapping with at least one entry, whose keys are names of ours."""
        block = self.mapping(what)
        if not block:
            self.fail(f"{what} is empty.", "Add at least one.")
        for name, spot in block.items():
            if not _NAME.fullmatch(name):
                spot.fail(f"{name!r} cannot be a name.", NAME_MEND)
        return block

    def items(self, what: str) -> list["Spot"]:
        if not isinstance(self.value, list):
            self.fail(f"{what} must be a list.", "Write `[a, b]`, or one `- item` a line.")
        return self.value

    def text(self, what: str) -> str:
        if not isinstance(self.value, str):
            self.fail(f"{what} must be text.", "Write it in quotes.")
        if not self.value.strip():
            self.fail(f"{what} is empty.", "Give it a text, or remove the key.")
        return self.value.strip()

    def texts(self, what: str) -> tuple[str, ...]:
        return tuple(item.text(what) for item in self.items(what))

    def flag(self, what: str) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"{what} must be true or false.")
        return self.value

    def one_of(self, what: str, choices: Collection[str]) -> str:
        text = self.text(what)
        if text not in choices:
            self.fail(f"{what} cannot be {text!r}.", f"{suggestion(text, choices)}Known: {', '.join(choices)}.")
        return text

    def matching(self, what: str, pattern: re.Pattern[str], mend: str) -> str:
        text = self.text(what)
        if not pattern.fullmatch(text):
            self.fail(f"{what} cannot be {text!r}.", mend)
        return text

    def plain(self) -> Any:
        """The value without its lines, as JSON would hold it."""
        if isinstance(self.value, dict):
            return {key: spot.plain() for key, spot in self.value.items()}
        if isinstance(self.value, list):
            return [spot.plain() for spot in self.value]
        return self.value


def suggestion(word: str, known: Collection[str]) -> str:
    """`Did you mean …? `, or nothing."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {near[0]!r}? " if near else ""


def read_file(path: Path) -> Spot:
    """Raises DefinitionError also where the file cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DefinitionError(path, 1, f"The file cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise DefinitionError(path, 1, "The file is larger than 1 MiB.", "Split the connector.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DefinitionError(path, line, "The file is not UTF-8.", "Save it as UTF-8.") from None
    return read_text(text, str(path))


def read_text(text: str, file: str) -> Spot:
    """Raises DefinitionError for anything that is not one plain YAML document."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(text, Loader=loader)
        if root is None:
            raise DefinitionError(file, 1, "The file is empty.")
        return _spot(root, file, set())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise DefinitionError(file, line, f"This is not YAML: {error.problem}.") from None
    except yaml.YAMLError:
        raise DefinitionError(file, 1, "This is not YAML: it holds characters that may not stand there.") from None
    except RecursionError:
        raise DefinitionError(file, 1, "The file is nested too deeply.") from None


def _spot(node: yaml.Node, file: str, seen: set[int]) -> Spot:
    line: int = node.start_mark.line + 1
    if id(node) in seen:
        raise DefinitionError(file, line, "An anchor is used twice.", "Write the value out: each tool reads by itself.")
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        return Spot(file, line, _scalar(node, file, line))
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return Spot(file, line, [_spot(item, file, seen) for item in node.value])
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Spot(file, line, _mapping(node, file, seen))
    raise DefinitionError(file, line, f"The tag {node.tag!r} is not taken.", "Remove it.")


def _mapping(node: yaml.MappingNode, file: str, seen: set[int]) -> dict[str, Spot]:
    block: dict[str, Spot] = {}
    for key_node, value_node in node.value:
        key = _spot(key_node, file, seen)
        if not isinstance(key.value, str):
            key.fail(f"The key {key_node.value!r} is not text.", "Write it in quotes.")
        if key.value in block:
            key.fail(f"The key {key.value!r} is there twice, first in line {block[key.value].line}.", "Remove one.")
        value = _spot(value_node, file, seen)
        # A key and a block below it: what is wrong is best looked for at the key.
        block[key.value] = Spot(file, key.line, value.value)
    return block


def _scalar(node: yaml.ScalarNode, file: str, line: int) -> str | int | float | bool:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "bool" if text in ("true", "false"):
            return text == "true"
        case "int" if _INTEGER.fullmatch(text):
            return int(text)
        case "float" if _FLOAT.fullmatch(text):
            return float(text)
        case "timestamp":
            problem, mend = f"YAML reads {text} as a date.", f'Write it in quotes: "{text}".'
        case "null":
            problem, mend = "The value is empty.", "Give it one, or remove the key."
        case "bool":
            problem, mend = f"YAML reads {text} as a truth value.", f'Write true or false, or in quotes: "{text}".'
        case "int" | "float":
            problem, mend = f"YAML reads {text} as an unusual number.", f'Write plain digits, or in quotes: "{text}".'
        case _:
            problem, mend = f"The tag {node.tag!r} is not taken.", "Remove it."
    raise DefinitionError(file, line, problem, mend)
