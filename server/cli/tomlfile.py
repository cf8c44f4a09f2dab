"""TOML: tomllib reads it, these functions edit its lines."""

import json
import re
import tomllib
from dataclasses import dataclass
from typing import cast

from server.cli.textfile import BOM, CannotEditError, Json, as_object, line_start, newline


@dataclass(frozen=True)
class Statement:
    path: tuple[str, ...]
    start: int
    value: int | None
    """Where the value begins; `None` for a table header."""
    end: int


_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""+|\'\'\'.*?\'\'\'+|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}=\n]|[^"\'#\[\]{}=\n]+',
    re.DOTALL,
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def statements(text: str) -> list[Statement]:
    """Headers and assignments of a valid document, in order, each with its full path."""
    found: list[Statement] = []
    table: tuple[str, ...] = ()
    depth, start, value, end = 0, None, None, 0
    for token in _TOKEN.finditer(text + "\n", len(BOM) if text.startswith(BOM) else 0):
        word = token[0]
        if word == "\n" and depth == 0:
            if start is not None:
                path = _path(text[start:end] if value is None else text[start:value] + " 0")
                table = path if value is None else table
                begin = None if value is None else value + len(text[value:end]) - len(text[value:end].lstrip())
                found.append(Statement(path if value is None else (*table, *path), start, begin, end))
            start = value = None
        elif word.startswith("#") or not word.strip():
            continue
        else:
            depth += (word in ("[", "{")) - (word in ("]", "}"))
            if word == "=" and depth == 0 and value is None:
                value = token.end()
            start = token.start() + len(word) - len(word.lstrip()) if start is None else start
            end = token.start() + len(word.rstrip())
    return found


def _path(line: str) -> tuple[str, ...]:
    path: list[str] = []
    here: object = tomllib.loads(line)
    while inner := as_object(here):
        key, here = next(iter(inner.items()))
        path.append(key)
    return tuple(path)


def _value(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in cast("list[object]", value)) + "]"
    if (table := as_object(value)) is not None:
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in table.items()) + " }"
    raise CannotEditError(f"would hold {value!r}, which is not text. Nothing was changed.")


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def block(table: str, name: str, value: Json, newline: str) -> str:
    """A table with its header, each line ended by `newline`."""
    lines = [
        f"[{table}.{_key(name)}]",
        *(f"{_key(key)} = {_value(item)}" for key, item in value.items()),
    ]
    return "".join(line + newline for line in lines)


def append(text: str, block: str) -> str:
    """The text with a block below everything else."""
    if not text.removeprefix(BOM):
        return text + block
    return text + ("" if text.endswith("\n") else newline(text)) + newline(text) + block


def merge(text: str, path: tuple[str, ...], wanted: Json, there: Json) -> str:
    """Set each wanted key of a table that is there; its other keys stay."""
    for key, value in wanted.items():
        if there.get(key) == value:
            continue
        full, part, old = (*path, key), as_object(value), as_object(there.get(key))
        there_are = statements(text)
        exact = next((one for one in there_are if one.path == full and one.value is not None), None)
        header = next((one for one in there_are if one.path == path and one.value is None), None)
        if exact is not None:
            merged = value if part is None or old is None else {**old, **part}
            text = text[: exact.value] + _value(merged) + text[exact.end :]
        elif part is not None and old is not None:
            text = merge(text, full, part, old)
        elif header is not None:
            end = _line_end(text, header.end)
            text = text[:end] + newline(text) + _key(key) + " = " + _value(value) + text[end:]
        else:
            raise CannotEditError("writes this entry in a form that Keyleash does not edit.")
    return text


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end - (text[end - 1] == "\r")


def drop(text: str, path: tuple[str, ...]) -> str:
    """Without the lines of the table and its sub-tables; comments on lines of their own stay."""
    for statement in reversed(statements(text)):
        if statement.path[: len(path)] != path:
            continue
        start = line_start(text, statement.start)
        if text[:start].endswith(("\n\n", "\n\r\n")) and statement.value is None:
            start = line_start(text, start - 1)
        end = text.find("\n", statement.end)
        text = text[: start + (len(BOM) if start == 0 and text.startswith(BOM) else 0)] + (
            text[end + 1 :] if end >= 0 else ""
        )
    return text
