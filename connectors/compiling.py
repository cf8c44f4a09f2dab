"""Make of an operation of an OpenAPI document what a tool of kind `rest` has: a path with holes, and arguments.

Every argument of the document is taken, refused with its reason, or left out because it is optional and cannot be sent,
or because Keyleash itself sends it. From here on nothing knows that there was a document.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast
from urllib.parse import quote, unquote

from connectors.arguments import RESERVED_HEADERS, Taken
from connectors.definition import Argument, BodyStyle, Place, Style
from connectors.document import METHODS, Described, Document, DocumentError, Part, line, short
from connectors.portable import ENOUGH, LEVELS, MOST, SHALLOW, TooLarge, Writer

WHOLE = "body"
"""What the argument is called that is a whole body: a list, or one of several objects."""
MAX_NAME = 40

_HOLE = re.compile(r"\{([^{}]*)\}")
_SAFE = "._~:@-"
_DECIDED = frozenset({"accept", "content-type", "authorization"})  # never parameters (OpenAPI 3.1, 4.8.12.1)
_JSON = re.compile(r"(application|text)/([A-Za-z0-9.!#$&^_-]+\+)?json")
_FORM = "application/x-www-form-urlencoded"
_PLACES: Mapping[str, Place] = {"path": "path", "query": "query", "header": "header"}
_DELIMITED: Mapping[str, Style] = {"form": "comma", "spaceDelimited": "space", "pipeDelimited": "pipe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """Something that the operation takes, before its schema is written."""

    name: str = ""
    place: Place
    wire_name: str
    schema: Part
    required: bool
    description: str = ""
    deprecated: bool = False
    examples: tuple[Any, ...] = ()
    steps: tuple[str, ...] = ()
    style: Style = "repeat"


@dataclass(frozen=True, slots=True)
class Outline:
    """What an operation takes and how it is sent; `left_out` says of optional inputs why they cannot be."""

    method: str
    path: str  # with {name} holes, encoded elsewhere
    inputs: tuple[Input, ...]
    body_style: BodyStyle
    content_type: str  # where it is not the style's own
    fixed_query: tuple[tuple[str, str], ...]  # that stands in the path, as some documents have it
    left_out: tuple[tuple[str, str], ...]


def outline(document: Document, described: Described, taken: Taken) -> Outline:
    """What this operation takes. Raises DocumentError, whose `reason` says why it cannot be offered."""
    if described.method.lower() not in METHODS:
        described.part.fail(f"{described.method} is not sent.", reason=f"method {described.method}")
    reader = _Reader(document, described, taken)
    path, fixed = reader.path()
    inputs = [*reader.parameters(), *reader.path_only()]
    body = reader.body() or _Body([], "json")
    named = _named([*inputs, *body.inputs])
    holes = {each.wire_name: each.name for each in named if each.place == "path"}
    path = _HOLE.sub(lambda hole: f"{{{holes[hole[1]]}}}", path)
    return Outline(
        described.method,
        path,
        tuple(named),
        body.style,
        body.content_type,
        fixed,
        tuple(reader.left_out),
    )


def arguments(document: Document, inputs: Sequence[Input], of: Part) -> tuple[Argument, ...]:
    """The arguments with their schemas, as deep as fits. Raises DocumentError."""
    made: tuple[Argument, ...] | None = None
    for levels in LEVELS:
        writer = Writer(document, levels=levels, most=MOST)
        deeper = _written(inputs, writer)
        if deeper is None:
            break
        made = deeper
        if not writer.more:
            break
    for levels in SHALLOW:
        if made is None:
            made = _written(inputs, Writer(document, levels=levels, most=ENOUGH))
    return made if made is not None else of.fail("It takes too many arguments.", reason="too many arguments")


def _written(inputs: Sequence[Input], writer: Writer) -> tuple[Argument, ...] | None:
    try:
        return tuple(_argument(each, writer) for each in inputs)
    except TooLarge:
        return None


def portable_name(wire: str) -> str:
    """A name that every client takes and a person can write: `created[gte]` is created_gte, `pageSize` page_size."""
    parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", wire))
    name = re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")
    return (name if name[:1].isalpha() else f"n_{name}".rstrip("_"))[:MAX_NAME].rstrip("_")


# --- names


def _named(inputs: Sequence[Input]) -> list[Input]:
    """Each with a name of its own: of two that would share one, the one in the path, then the query, keeps it."""
    order: list[Place] = ["path", "query", "header", "body"]
    names: dict[int, str] = {}
    used: set[str] = set()
    for number in sorted(range(len(inputs)), key=lambda number: (order.index(inputs[number].place), number)):
        each = inputs[number]
        plain = portable_name(each.wire_name)
        numbered = (f"{plain[: MAX_NAME - 5]}_{count}" for count in range(2, len(inputs) + 2))
        others = chain((plain, f"{plain[: MAX_NAME - 7]}_{each.place}"), numbered)
        names[number] = next(name for name in others if name not in used)
        used.add(names[number])
    return [replace(each, name=names[number]) for number, each in enumerate(inputs)]


def _argument(given: Input, writer: Writer) -> Argument:
    schema = writer.write(given.schema)
    said = schema.get("description") or ""
    if given.description and given.description != said:
        schema["description"] = said = given.description
    if given.deprecated and not said.startswith("Deprecated."):
        schema["description"] = f"Deprecated. {said}".strip()
    if given.examples:
        schema["examples"] = list(given.examples)
    return Argument(
        name=given.name,
        place=given.place,
        wire_name=given.wire_name if given.place != "path" else given.name,
        schema=schema,
        required=given.required,
        steps=given.steps,
        style=given.style,
    )


# --- reading


@dataclass(frozen=True, slots=True)
class _Body:
    inputs: list[Input]
    style: BodyStyle
    content_type: str = ""


class _Reader:
    """Reads one operation."""

    def __init__(self, document: Document, described: Described, taken: Taken) -> None:
        self._document, self._described, self._taken = document, described, taken
        self.left_out: list[tuple[str, str]] = []
        self._holes: set[str] = set()
        self._filled: set[str] = set()

    def path(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """The path with what stands between its holes encoded, and the query that some documents write into it."""
        text, _, query = self._described.path.partition("?")
        if "#" in text or "#" in query or _HOLE.search(query):
            self._fail("The path has a fragment, or a hole in a query.", reason="path with a fragment or a query hole")
        pieces = _HOLE.split(text)  # literal, hole, literal, …
        for hole in pieces[1::2]:
            if hole in self._holes:
                self._fail(f"The path has the hole {{{hole}}} twice.", reason="the same hole twice")
            self._holes.add(hole)
        literals = [self._literal(piece) for piece in pieces[::2]]
        holes = [f"{{{hole}}}" for hole in pieces[1::2]]
        path = "".join(part for pair in zip(literals, [*holes, ""], strict=True) for part in pair)
        if any(segment in ("", ".", "..") for segment in path[1:].removesuffix("/").split("/")) and path != "/":
            self._fail("The path has a segment that cannot be sent.", reason="path with an empty or dotted segment")
        fixed = tuple(_pair(pair) for pair in query.split("&") if pair)
        return path, fixed

    def _literal(self, text: str) -> str:
        if "%" in text or "{" in text or "}" in text or "\\" in text:
            self._fail("The path holds a sign that cannot be sent.", reason="path with an odd sign")
        return quote(text, safe=f"{_SAFE}/")

    def parameters(self) -> Iterator[Input]:
        """What stands in path, query and headers."""
        found: dict[tuple[str, str], Part] = {}
        for whole in (self._described.item, self._described.part):
            listed = whole.get("parameters")
            for each in listed.list() if listed else ():
                parameter = self._document.resolve(each)
                if parameter.text("name") and parameter.text("in"):
                    found[parameter.text("in"), parameter.text("name")] = parameter
        for (where, name), parameter in found.items():
            yield from self._parameter(where, name, parameter)

    def path_only(self) -> Iterator[Input]:
        """Holes that the document forgot to describe."""
        for hole in sorted(self._holes - self._filled):
            yield Input(place="path", wire_name=hole, schema=Part({"type": "string"}, ""), required=True)

    def _parameter(self, where: str, name: str, parameter: Part) -> Iterator[Input]:
        required = parameter.says("required")
        if where not in _PLACES:
            self._leave(name, required, f"stands in a {where}", f"parameter in {where}")
            return
        if (where == "header" and self._sent_already(name)) or (where == "query" and name in self._taken.queries):
            return
        if where == "header" and name.lower() in RESERVED_HEADERS:
            self._leave(name, required, "is a header that only Keyleash sets", "reserved header")
            return
        if where == "path" and name not in self._holes:
            return  # it stands nowhere
        self._filled |= {name} if where == "path" else set()
        given = Input(
            place=_PLACES[where],
            wire_name=name,
            schema=self._schema(parameter),
            required=required or where == "path",
            description=short(parameter.text("description")),
            deprecated=parameter.says("deprecated"),
            examples=_examples(parameter),
        )
        yield from self._styled(given, parameter)

    def _sent_already(self, name: str) -> bool:
        return name.lower() in _DECIDED or name.lower() in self._taken.headers

    def _schema(self, parameter: Part) -> Part:
        found = parameter.get("schema")
        if found is not None:
            return found
        content = next((each for _, each in _content(parameter)), None)
        inner = content.get("schema") if content else None
        # What is left of Swagger 2 in some documents: the type stands at the parameter itself.
        return inner or Part(
            {key: parameter.value[key] for key in ("type", "items", "enum") if key in parameter.value}, ""
        )

    def _styled(self, given: Input, parameter: Part) -> Iterator[Input]:
        """The input in the style that the document asks for; an object in style `form` is one input for each field."""
        if parameter.get("schema") is None and parameter.get("content") is not None:
            yield replace(given, style="json" if given.place == "query" else "repeat")
            return
        style = parameter.text("style") or ("form" if given.place == "query" else "simple")
        if given.place != "query":
            if style != "simple" or self._is_object(given.schema):
                self._leave(given.wire_name, given.required, f"is written in the style {style}", f"style {style}")
                return
            yield replace(given, style="comma")
            return
        explode = parameter.mapping.get("explode", style == "form")
        if style == "deepObject":
            yield replace(given, style="nested")
        elif style not in _DELIMITED:
            self._leave(given.wire_name, given.required, f"is written in the style {style}", f"style {style}")
        elif not self._is_object(given.schema):
            yield replace(given, style="repeat" if explode else _DELIMITED[style])
        elif explode and style == "form" and (fields := self._fields(given.schema)) is not None:
            yield from (
                Input(place="query", wire_name=name, schema=part, required=given.required and name in fields[1])
                for name, part in fields[0].items()
                if name not in self._taken.queries
            )
        else:
            self._leave(
                given.wire_name, given.required, "is an object, of which every key would be one", "object in a query"
            )

    # --- body

    def body(self) -> _Body | None:
        found = self._described.part.get("requestBody")
        if found is None or not isinstance(found.value, dict):
            return None
        body = self._document.resolve(found)
        content = list(_content(body))
        if not content:
            return None
        required = body.says("required")
        if self._described.method in ("GET", "HEAD"):
            self._leave("the body", required, "belongs to a method that has none", "body of a GET")
            return None
        for kind, media in content:
            if _JSON.fullmatch(kind) or kind in ("*/*", "application/*"):
                return self._json_body(body, media, kind)
        for kind, media in content:
            if kind == _FORM:
                return self._form_body(body, media)
        kinds = ", ".join(kind for kind, _ in content)
        return self._fail(f"Its body is {kinds}; JSON and forms are sent.", reason=f"body {content[0][0]}")

    def _json_body(self, body: Part, media: Part, kind: str) -> _Body:
        schema = media.get("schema") or Part({}, media.at)
        content_type = kind if kind not in ("application/json", "*/*", "application/*") else ""
        fields = self._fields(schema)
        if fields is None:
            said = short(body.text("description"))
            whole = Input(
                place="body", wire_name=WHOLE, schema=schema, required=body.says("required"), description=said
            )
            return _Body([replace(whole, style="nested")], "json", content_type)
        return _Body(self._body_fields(body, fields, {}), "json", content_type)

    def _form_body(self, body: Part, media: Part) -> _Body:
        schema = media.get("schema") or Part({}, media.at)
        fields = self._fields(schema)
        if fields is None:
            self._leave("the form", body.says("required"), "has no fields that are named", "form without fields")
            return _Body([], "form")
        encoding = media.get("encoding")
        styles: dict[str, Style] = {name: self._form_style(name, part, encoding) for name, part in fields[0].items()}
        return _Body(self._body_fields(body, fields, styles), "form")

    def _form_style(self, name: str, part: Part, encoding: Part | None) -> Style:
        """Of one field (OpenAPI 3.1, 4.8.15.1): said, or else repeated where it is a list, and nested as an object."""
        said = encoding.get(name) if encoding else None
        style = said.text("style") if said else ""
        if style == "deepObject":
            return "nested"
        if said and said.text("contentType").startswith("application/json"):
            return "json"
        if said and said.mapping.get("explode") is False and not self._is_object(part):
            return _DELIMITED.get(style or "form", "comma")
        return "nested" if self._is_object(part) or self._has_objects(part) else "repeat"

    def _body_fields(self, body: Part, fields: "_Fields", styles: Mapping[str, Style]) -> list[Input]:
        """A body that may be left out whole has no field that may not."""
        optional = body.mapping.get("required") is False
        return [
            Input(
                place="body",
                wire_name=name,
                schema=part,
                required=name in fields[1] and not optional,
                deprecated=part.says("deprecated"),
                steps=(name,),
                style=styles.get(name, "nested"),
            )
            for name, part in fields[0].items()
        ]

    # --- objects

    def _fields(self, schema: Part, depth: int = 0) -> "_Fields | None":
        """The fields of an object and which of them are required; None where it cannot be taken apart."""
        found = self._document.resolve(schema)
        if depth > 8 or not isinstance(found.value, dict):
            return None
        fields: dict[str, Part] = {}
        required: set[str] = set()
        if any(_says_more(choices) for key in ("anyOf", "oneOf") if (choices := found.get(key)) is not None):
            return None
        parts = found.get("allOf")
        for part in parts.list() if parts else ():
            inner = self._fields(part, depth + 1)
            if inner is None:
                if self._is_object(part) or self._document.resolve(part).mapping.keys() - _ABOUT:
                    return None
                continue
            fields |= inner[0]
            required |= inner[1]
        properties = found.get("properties")
        for name, part in properties.items() if properties else ():
            if name and name.isprintable() and part.value is not False and not self._only_read(part):
                fields[name] = part
        named = found.get("required")
        required |= {part.value for part in named.list() if isinstance(part.value, str)} if named else set()
        if found.mapping.get("type", "object") not in ("object", ["object"], ["object", "null"], ["null", "object"]):
            return None
        return (fields, frozenset(required)) if fields or (depth and named) else None

    def _only_read(self, part: Part) -> bool:
        return part.says("readOnly") or self._document.resolve(part).says("readOnly")

    def _is_object(self, schema: Part) -> bool:
        found = self._document.resolve(schema)
        if not isinstance(found.value, dict):
            return False
        kind = found.mapping.get("type")
        kinds = cast("list[Any]", kind) if isinstance(kind, list) else [kind]
        parts = found.get("allOf")
        return (
            "object" in kinds
            or (kind is None and "properties" in found.mapping)
            or any(self._is_object(part) for part in (parts.list() if parts else ()))
        )

    def _has_objects(self, schema: Part) -> bool:
        items = self._document.resolve(schema).get("items")
        return items is not None and self._is_object(items)

    # --- what cannot be

    def _leave(self, name: str, required: bool, why: str, reason: str) -> None:
        if required:
            self._fail(f"It needs {name}, which {why}.", reason=reason)
        self.left_out.append((name, why))

    def _fail(self, message: str, *, reason: str) -> Any:
        raise DocumentError(message, at=self._described.part.at, reason=reason)


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return unquote(name), unquote(value)


_Fields = tuple[dict[str, Part], frozenset[str]]
_ABOUT = frozenset({"description", "title", "example", "examples", "deprecated", "nullable", "externalDocs", "type"})


def _says_more(choices: Part) -> bool:
    """Whether alternatives say more than which fields go together, or that null is one."""
    return any(each.mapping.keys() - {"required", "description", "title"} for each in choices.list())


def _content(part: Part) -> Iterator[tuple[str, Part]]:
    """Media types in lower case and without parameters."""
    content = part.get("content")
    for kind, media in content.items() if content else ():
        yield kind.split(";")[0].strip().lower(), media


def _examples(parameter: Part) -> tuple[Any, ...]:
    """An example that is a plain value and short enough to be shown."""
    schema, examples = parameter.get("schema"), parameter.get("examples")
    found = [parameter.mapping.get("example"), schema.mapping.get("example") if schema else None]
    found += [each.mapping.get("value") for _, each in (examples.items() if examples else ())]
    plain = [each for each in found if isinstance(each, str | int | float) and 0 < len(str(each)) <= 80]
    return tuple(line(each) if isinstance(each, str) else each for each in plain[:1])
