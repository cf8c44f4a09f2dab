"""Read a tool of kind `openapi`: an operation of the connector's document, and what a person made of it.

The document says what there is; the file says what of it is offered, under which names, and what is fixed. Whatever a
file names that the operation does not have is refused with its line.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from connectors.arguments import Taken, check_header, compiled
from connectors.compiling import Input, Outline, arguments, outline
from connectors.definition import Argument, BodyStyle
from connectors.document import Document, DocumentError, read_json_document
from connectors.fileformat import DOCUMENT_PATTERN, SHA256_PATTERN
from connectors.source import NAME_MEND, NAME_PATTERN, Spot

MAX_DOCUMENT = 8 * 1024 * 1024  # bytes: what a backup takes along

_NAME = re.compile(NAME_PATTERN)
_FILE = re.compile(DOCUMENT_PATTERN)
_SHA256 = re.compile(SHA256_PATTERN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """An operation as a tool has it."""

    id: str  # operationId
    method: str
    path: str
    arguments: tuple[Argument, ...]
    body_style: BodyStyle
    headers: tuple[tuple[str, str], ...]
    fixed_query: tuple[tuple[str, str], ...]
    fixed_body: tuple[tuple[tuple[str, ...], Any], ...]

    @property
    def sent(self) -> list[Any]:
        """All that decides what is sent, as plain JSON."""
        taken = [[a.name, a.place, a.wire_name, a.required, a.steps, a.slashes, a.style] for a in self.arguments]
        schemas = [dict(a.schema) for a in self.arguments]
        fixed = [*self.headers], [*self.fixed_query], [*self.fixed_body]
        return [self.method, self.path, taken, schemas, self.body_style, *fixed]


def pinned_document(name: Spot, sha256: Spot) -> Document:
    """The document of this name beside the connector's file; raises DefinitionError, also where it is another one."""
    file = name.matching("The document", _FILE, "Name a JSON file beside this one, as `import-openapi` writes it.")
    pinned = sha256.matching("The sha256", _SHA256, "Write the 64 hex digits that `sha256sum` prints, in quotes.")
    path = Path(name.file).parent / file
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_DOCUMENT + 1)
    except OSError as error:
        name.fail(f"The document cannot be read: {error.strerror}.", "Put it beside this file.")
    if len(content) > MAX_DOCUMENT:
        name.fail(f"The document is larger than {MAX_DOCUMENT >> 20} MiB.", "`import-openapi` cuts what is needed.")
    found = hashlib.sha256(content).hexdigest()
    if found != pinned:
        sha256.fail(
            f"The document {file} is not the one that was pinned: its SHA-256 is {found}.",
            "Look at what has changed in it, and pin it again if it is right.",
        )
    try:
        return read_json_document(content, str(path))
    except DocumentError as problem:
        name.fail(str(problem))


def read_operation_of(block: Mapping[str, Spot], document: Document, taken: Taken) -> Compiled:
    """What the tool in this block sends; raises DefinitionError."""
    spot = block["operation"]
    try:
        described = document.find(spot.text("The operation"))
        found = outline(document, described, taken)
        found = _renamed(found, block)
        fixed = _fixed(found, block)
        offered = _offered(found, block, fixed)
        kept = [each for each in found.inputs if each.name not in fixed and (each.required or each.name in offered)]
        made = arguments(document, kept, described.part)
        values = arguments(document, [each for each in found.inputs if each.name in fixed], described.part)
    except DocumentError as problem:
        spot.fail(f"The operation cannot be offered: {problem}")
    for each in made:
        if each.place == "header":
            check_header(each.wire_name, spot, taken.headers)
    _check_named(block, made)
    layout = _Fixed()
    for each in values:
        layout.put(each, fixed[each.name], found.body_style)
    path = found.path
    for name, text in layout.path.items():
        path = path.replace(f"{{{name}}}", text)
    content_type = (("Content-Type", found.content_type),) if found.content_type else ()
    return Compiled(
        id=described.id,
        method=found.method,
        path=path,
        arguments=tuple(_stated(each, block) for each in _in_order(made)),
        body_style=found.body_style,
        headers=(*content_type, *layout.headers),
        fixed_query=(*found.fixed_query, *layout.query),
        fixed_body=tuple(layout.body),
    )


def _in_order(made: Sequence[Argument]) -> list[Argument]:
    """Those first that are always given."""
    return sorted(made, key=lambda argument: not argument.required)


def _input(name: str, spot: Spot, inputs: Sequence[Input]) -> Input:
    found = next((each for each in inputs if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in inputs) or "none"
        spot.fail(f"The operation has no argument {name!r}.", f"It has {known}.")
    return found


def _renamed(found: Outline, block: Mapping[str, Spot]) -> Outline:
    inputs, path = list(found.inputs), found.path
    for old, spot in block["rename"].mapping("Rename").items() if "rename" in block else ():
        each = _input(old, spot, found.inputs)
        new = spot.matching("The new name", _NAME, NAME_MEND)
        if new != old and any(other.name == new for other in inputs):
            spot.fail(f"There is already an argument {new!r}.", "Take another name, or rename that one too.")
        inputs = [replace(other, name=new) if other.name == each.name else other for other in inputs]
        path = path.replace(f"{{{old}}}", f"{{{new}}}") if each.place == "path" else path
    return replace(found, inputs=tuple(inputs), path=path)


def _fixed(found: Outline, block: Mapping[str, Spot]) -> dict[str, Spot]:
    fixed = block["fixed"].mapping("Fixed") if "fixed" in block else {}
    for name, spot in fixed.items():
        _input(name, spot, found.inputs)
    return fixed


def _offered(found: Outline, block: Mapping[str, Spot], fixed: Mapping[str, Spot]) -> frozenset[str]:
    """The arguments that the file lists; without a list, all of them."""
    if "arguments" not in block:
        return frozenset(each.name for each in found.inputs)
    names: set[str] = set()
    for spot in block["arguments"].items("Arguments"):
        name = _input(spot.text("An argument"), spot, found.inputs).name
        if name in fixed or name in names:
            spot.fail(f"{name!r} is {'fixed' if name in fixed else 'there twice'}.", "Remove it here.")
        names.add(name)
    return frozenset(names)


class _Fixed:
    """Fixed values, sorted to the places where they are sent."""

    def __init__(self) -> None:
        self.path: dict[str, str] = {}
        self.query: list[tuple[str, str]] = []
        self.headers: list[tuple[str, str]] = []
        self.body: list[tuple[tuple[str, ...], Any]] = []

    def put(self, argument: Argument, spot: Spot, style: BodyStyle) -> None:
        """Place this value of an argument; raises DefinitionError where it does not fit or cannot stand there."""
        value = spot.plain()
        if not compiled(dict(argument.schema), spot).is_valid(value):
            spot.fail(f"The document does not let {argument.name} have this value.", "Look at its type and its values.")
        if argument.place == "body" and not argument.steps:
            spot.fail("A whole body cannot be fixed.", "Leave it to the agent, or write a connector of kind rest.")
        if argument.place == "body" and style == "json":
            self.body.append((argument.steps, value))
            return
        text = _text(value, spot)
        match argument.place:
            case "body":
                self.body.append((argument.steps, text))
            case "query":
                self.query.append((argument.wire_name, text))
            case "header":
                if not text.isascii() or not text.isprintable() or text != text.strip():
                    spot.fail("A header takes visible ASCII only.")
                self.headers.append((argument.wire_name, text))
            case "path":
                if text in ("", ".", "..") or set(text) & set("/\\%"):
                    spot.fail("This cannot be a part of a path.", "Use no slash, backslash or percent sign.")
                self.path[argument.name] = quote(text, safe="-._~")


def _text(value: Any, spot: Spot) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int):
        spot.fail("Outside of JSON a fixed value is a text, a whole number, true or false.")
    return str(value)


def _check_named(block: Mapping[str, Spot], made: Sequence[Argument]) -> None:
    """What is said of arguments is said of some that are offered."""
    names = [each.name for each in made]
    for name, spot in block["absent"].mapping("Absent").items() if "absent" in block else ():
        if name not in names:
            spot.fail(f"{name!r} is no argument that is offered.", f"Offered: {', '.join(names) or 'none'}.")
    for spot in block["slashes"].items("Slashes") if "slashes" in block else ():
        if spot.text("An argument") not in [each.name for each in made if each.place == "path"]:
            spot.fail(f"{spot.text('An argument')!r} is no path argument that is offered.", "Remove it.")


def _stated(argument: Argument, block: Mapping[str, Spot]) -> Argument:
    """With what the file says of it besides."""
    slashes = "slashes" in block and argument.name in block["slashes"].texts("Slashes")
    absent = block["absent"].mapping("Absent").get(argument.name) if "absent" in block else None
    return replace(argument, slashes=slashes, absent=absent.text("Absent") if absent else argument.absent)
