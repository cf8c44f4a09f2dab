"""JSON, with or without comments and trailing commas: parsed into positions, edited between them."""

import json
import re
from dataclasses import dataclass
from typing import cast

from server.cli.textfile import BOM, CannotEditError, as_object, line_start, newline


class MalformedError(ValueError):
    """The text is not JSON as this client writes it; `line` and `what` say where and why."""

    def __init__(self, text: str, at: int, what: str) -> None:
        super().__init__(what)
        self.line = text.count("\n", 0, at) + 1
        self.what = what


@dataclass(frozen=True)
class Node:
    start: int
    end: int
    value: object
    members: tuple["Member", ...] = ()


@dataclass(frozen=True)
class Member:
    key: str
    start: int
    node: Node
    comma: int | None
    """Where the comma after it stands."""


_BLANKS = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]+")
_TABS = re.compile(r"[ \t]+")
_COMMENT = re.compile(r"//[^\r\n]*|/\*.*?\*/", re.DOTALL)
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None}
_WORD = re.compile("true|false|null")
DEPTH = 200
"""Levels of nesting beyond which a configuration file is taken for an accident."""


def parse(text: str, *, comments: bool, commas: bool) -> Node | None:
    """The root value, or `None` where there is nothing but space and comments. Raises MalformedError."""
    reader = _Reader(text, comments=comments, commas=commas)
    at = reader.skip(len(BOM) if text.startswith(BOM) else 0)
    if at == len(text):
        return None
    root = reader.value(at)
    if (rest := reader.skip(root.end)) != len(text):
        raise MalformedError(text, rest, "there is more after the end of the document")
    return root


@dataclass(frozen=True)
class _Reader:
    text: str
    comments: bool
    commas: bool

    def skip(self, at: int) -> int:
        while match := _SPACE.match(self.text, at) or _COMMENT.match(self.text, at):
            if not self.comments and match[0].startswith("/"):
                raise MalformedError(self.text, at, "a comment, which this client's plain JSON does not allow")
            at = match.end()
        return at

    def value(self, at: int, depth: int = 0) -> Node:
        if depth > DEPTH:
            raise MalformedError(self.text, at, "nested too deeply")
        if self.text.startswith("{", at):
            return self.object(at, depth)
        if self.text.startswith("[", at):
            return self.array(at, depth)
        if match := _STRING.match(self.text, at):
            return Node(at, match.end(), self.string(match))
        if match := _NUMBER.match(self.text, at):
            return Node(at, match.end(), ("number", match[0]))
        if match := _WORD.match(self.text, at):
            return Node(at, match.end(), _WORDS[match[0]])
        raise MalformedError(self.text, at, "not valid JSON here")

    def string(self, match: re.Match[str]) -> str:
        try:
            return json.loads(match[0])
        except ValueError:
            raise MalformedError(self.text, match.start(), "a string with an escape that JSON does not have") from None

    def object(self, start: int, depth: int) -> Node:
        members: list[Member] = []
        at = self.skip(start + 1)
        while not self.text.startswith("}", at):
            key = _STRING.match(self.text, at)
            if key is None:
                raise MalformedError(self.text, at, "a name in double quotes was expected here")
            colon = self.skip(key.end())
            if not self.text.startswith(":", colon):
                raise MalformedError(self.text, colon, "a colon was expected here")
            node = self.value(self.skip(colon + 1), depth + 1)
            comma, at = self.comma(node.end, "}")
            members.append(Member(self.string(key), key.start(), node, comma))
        return Node(start, at + 1, {member.key: member.node.value for member in members}, tuple(members))

    def array(self, start: int, depth: int) -> Node:
        values: list[object] = []
        at = self.skip(start + 1)
        while not self.text.startswith("]", at):
            node = self.value(at, depth + 1)
            values.append(node.value)
            _, at = self.comma(node.end, "]")
        return Node(start, at + 1, values)

    def comma(self, at: int, close: str) -> tuple[int | None, int]:
        """Where the comma stands, if any, and where to go on: at the next value or at the closing bracket."""
        after = self.skip(at)
        if self.text.startswith(close, after):
            return None, after
        if not self.text.startswith(",", after):
            raise MalformedError(self.text, after, f"a comma or {close} was expected here")
        going_on = self.skip(after + 1)
        if self.text.startswith(close, going_on) and not self.commas:
            raise MalformedError(self.text, after, "a comma too many, which this client does not allow")
        return after, going_on


def member(node: Node, key: str) -> Member | None:
    """The member of an object, if there is one. CannotEditError where the key stands there twice."""
    found = [member for member in node.members if member.key == key]
    if len(found) > 1:
        raise CannotEditError(f"has {json.dumps(key)} twice. Nothing was changed. Delete one and try again.")
    return found[0] if found else None


def put(text: str, root: Node, keys: tuple[str, ...], value: object) -> str:
    """Set the value under the keys. Members of objects that are there stay, so a merge never drops any."""
    node, found = root, None
    for index, key in enumerate(keys):
        found = member(node, key)
        if found is None:
            nested: object = value
            for missing in reversed(keys[index + 1 :]):
                nested = {missing: nested}
            return _insert(text, root, node, key, nested)
        node = found.node
    wanted = as_object(value)
    if wanted is None or as_object(node.value) is None:
        own_line = found is not None and _starts_line(text, found.start)
        shown = _text(text, root, value, _indent(text, node.start) if own_line else None)
        return text if node.value == value else text[: node.start] + shown + text[node.end :]
    for key, item in wanted.items():
        text = put(text, root, (*keys, key), item)
        root = _Reader(text, comments=True, commas=True).value(root.start)
    return text


def _insert(text: str, root: Node, node: Node, key: str, value: object) -> str:
    """A new last member. A comment on the line of the member before it stays with that member."""
    member = json.dumps(key, ensure_ascii=False) + _separators(text)[1]
    inside = text[node.start + 1 : node.end - 1]
    kept = node.start + 1 + len(inside.rstrip(_BLANKS))
    whole = text[root.start : root.end] if root.members else "\n"
    if "\n" not in (inside if node.members else whole):
        item = member + _text(text, root, value)
        if not node.members:
            return text[:kept] + item + text[kept:]
        last = node.members[-1]
        end = last.node.end if last.comma is None else last.comma + 1
        lead = _separators(text)[0] if last.comma is None else " "
        return text[:end] + lead + item + ("" if last.comma is None else ",") + text[end:]
    end_of_line, outer = newline(text), _indent(text, node.start)
    indent = outer + _unit(text, root)
    if node.members and _starts_line(text, node.members[0].start):
        indent = _indent(text, node.members[0].start)
    item = end_of_line + indent + member + _text(text, root, value, indent)
    if not node.members:
        space = text[kept : node.end - 1]
        return text[:kept] + item + (space if "\n" in space else end_of_line + outer) + text[node.end - 1 :]
    last = node.members[-1]
    if last.comma is not None:
        end = _line_end(text, last.comma + 1)
        return text[:end] + item + "," + text[end:]
    end = _line_end(text, last.node.end)
    return text[: last.node.end] + "," + text[last.node.end : end] + item + text[end:]


def drop(text: str, table: Node, mine: Member) -> str:
    """Without the member, its comma and the space before it; comments stay."""
    members = table.members
    position = members.index(mine)
    start = len(text[: mine.start].rstrip(_BLANKS))
    rest = text[mine.node.end if mine.comma is None else mine.comma + 1 :].lstrip(" \t")
    if "\n" in text[start : mine.start] and not rest.startswith(("\n", "\r\n")):
        start = mine.start  # a line comment may stand before: what follows must not run into it
    if mine.comma is not None:
        between = text[mine.node.end : mine.comma]
        text = text[:start] + between + text[mine.comma + 1 :]
    elif position > 0:
        before = cast("int", members[position - 1].comma)
        text = text[:before] + text[before + 1 : start] + text[mine.node.end :]
    else:
        text = text[:start] + text[mine.node.end :]
    if len(members) == 1:
        inside = _SPACE.match(text, table.start + 1)
        end = inside.end() if inside else table.start + 1
        if text.startswith("}", end):
            return text[: table.start + 1] + text[end:]
    return text


def _text(text: str, root: Node, value: object, indent: str | None = None) -> str:
    """The value in the manner of the file: its indentation and line endings, or on one line inside such an object."""
    if indent is None:
        return json.dumps(value, ensure_ascii=False, separators=_separators(text))
    lines = json.dumps(value, ensure_ascii=False, indent=_unit(text, root)).split("\n")
    return (newline(text) + indent).join(lines)


def _separators(text: str) -> tuple[str, str]:
    tight = "\n" not in text.strip() and re.search(r'":[^ ]', text) is not None
    return (",", ":") if tight else (", ", ": ")


def _unit(text: str, root: Node) -> str:
    if root.members and _starts_line(text, root.members[0].start):
        return _indent(text, root.members[0].start) or "  "
    return "  "


def _indent(text: str, at: int) -> str:
    line = text[line_start(text, at) : at].removeprefix(BOM)
    return line[: len(line) - len(line.lstrip(" \t"))]


def _starts_line(text: str, at: int) -> bool:
    return line_start(text, at) > 0 and not text[line_start(text, at) : at].strip(_BLANKS)


def _line_end(text: str, at: int) -> int:
    """Past the comments on the rest of the line, if nothing else follows on it."""
    end = at
    while match := _TABS.match(text, end) or _COMMENT.match(text, end):
        end = match.end()
    return end if text.startswith(("\n", "\r"), end) else at
