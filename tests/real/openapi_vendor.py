"""A vendor's OpenAPI documents, 3.0 or 3.1, one or several: their operations by method and path."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from tests.connectors.realistic import INNER, ITEMS, usual

Json = dict[str, Any]
DEEPEST = 6
"""Levels of a made answer: descriptions refer to themselves."""
BODIES = ("application/json", "application/x-www-form-urlencoded", "application/scim+json", "*/*")
METHODS = frozenset({"get", "put", "post", "delete", "patch", "head"})
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class OpenApi:
    """What the documents describe. `base` is the path of the connector's base URL, `renamed` a part of it that the
    documents write in another way.
    """

    operations: tuple["Found", ...]
    base: str = ""
    renamed: tuple[str, str] = ("", "")
    version: str | None = None  # no document says which API version it describes
    answers: bool = True

    @classmethod
    def read(cls, files: Sequence[Path], base_url: str, renamed: tuple[str, str] = ("", "")) -> "OpenApi":
        """Read the documents, JSON or YAML."""
        found = [each for file in files for each in _operations(_document(file))]
        return cls(tuple(found), urlsplit(base_url).path, renamed)

    def operation(self, method: str, path: str) -> "Described | None":
        """The operation, that which names most of the path where several fit; None where there is none."""
        whole = f"{self.base}{path}".replace(*self.renamed) if self.renamed[0] else f"{self.base}{path}"
        fitting = [each for each in self.operations if each.method == method and each.fits(whole)]
        return Described(max(fitting, key=lambda each: each.named)) if fitting else None


@dataclass(frozen=True)
class Found:
    """One operation of a document."""

    document: Json
    method: str
    path: str
    operation: Json
    shared: Sequence[Json]  # parameters of the whole path

    @property
    def named(self) -> int:
        """How much of its path stands there word by word."""
        return len(re.sub(r"\{[^}]*\}", "", self.path))

    def fits(self, path: str) -> bool:
        """Whether this path, with holes of any name, is one of this operation's."""
        pattern = "".join("[^/]+" if part.startswith("{") else re.escape(part) for part in _parts(self.path))
        return re.fullmatch(pattern, re.sub(r"\{[^}]*\}", "{}", path)) is not None

    def resolve(self, schema: Json) -> Json:
        """What a reference refers to."""
        while isinstance(schema.get("$ref"), str):
            at: Any = self.document
            for name in schema["$ref"].removeprefix("#/").split("/"):
                at = at[int(name)] if isinstance(at, list) else at[name.replace("~1", "/").replace("~0", "~")]
            schema = at
        return schema


def _document(file: Path) -> Json:
    text = file.read_bytes()
    return json.loads(text) if file.suffix == ".json" else yaml.load(text, LOADER)


def _operations(document: Json) -> Iterator[Found]:
    servers = document.get("servers") or [{"url": ""}]
    before = urlsplit(re.sub(r"\{[^}]*\}", "x", servers[0]["url"])).path.rstrip("/")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                whole = f"{before}{path.partition('?')[0]}"
                yield Found(document, method.upper(), whole, operation, methods.get("parameters", ()))


def _parts(path: str) -> list[str]:
    return [part for part in re.split(r"(\{[^}]*\})", path) if part]


class Described:
    """One operation: its arguments and its answer."""

    def __init__(self, found: Found) -> None:
        parameters = [found.resolve(each) for each in (*found.shared, *found.operation.get("parameters", ()))]
        self._arguments = {_place(each): Schema(found, each.get("schema", {})) for each in parameters}
        needed = {_place(each) for each in parameters if each.get("required") and each["in"] != "path"}
        self._body = _content(found, found.resolve(found.operation.get("requestBody", {})))
        needed |= {("body", name) for name in (self._body.required() if self._body else ())}
        self.required = frozenset(needed)
        self.answer = _answer(found)

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """The values that an argument may have; in a body, `created[gte]` is the field `gte` of `created`."""
        whole = self._arguments.get((place, name)) or self._arguments.get((place, f"{name}[]"))
        if place != "body":
            outer, _, inner = name.partition("[")
            around = self._arguments.get((place, outer)) if inner else None
            whole = whole or (around and _walk(around, inner))
            return whole.values() if whole else None
        at = _walk(self._body, name) if self._body else None
        return at.values() if at else None


def _place(parameter: Json) -> tuple[str, str]:
    """Headers have their names in lower case."""
    name = parameter["name"]
    return parameter["in"], name.lower() if parameter["in"] == "header" else name


def _walk(schema: "Schema", name: str) -> "Schema | None":
    at: Schema | None = schema
    for step in name.replace("]", "").split("["):
        at = at and (at.item() if step == "0" else at.field(step))
    return at


def _content(found: Found, part: Json) -> "Schema | None":
    content = part.get("content", {})
    kind = next((kind for kind in BODIES if kind in content), next(iter(content), None))
    return Schema(found, content[kind].get("schema", {})) if kind else None


def _answer(found: Found) -> "Schema":
    """Any of its answers that are no refusal."""
    fine = [answer for status, answer in found.operation["responses"].items() if str(status).startswith("2")]
    described = [each.schema for answer in fine if (each := _content(found, found.resolve(answer)))]
    return Schema(found, {"anyOf": described} if described else {})


@dataclass(frozen=True)
class Schema:
    """A JSON Schema of a document, as the shape of an answer or of a body."""

    found: Found
    schema: Json

    def field(self, name: str) -> "Schema | None":
        """The shape of a property; None where there is none of that name."""
        parts = list(self._parts(self.schema))
        named = [part["properties"][name] for part in parts if name in part.get("properties", {})]
        if named:
            return Schema(self.found, {"anyOf": named})
        more = [part["additionalProperties"] for part in parts if part.get("additionalProperties")]
        if more:
            return Schema(self.found, {"anyOf": [each if isinstance(each, dict) else {} for each in more]})
        # A schema of which nothing is said admits any field.
        said = {"properties", "items", "allOf", "anyOf", "oneOf", "enum", "$ref"}
        open_ended = any(not said & part.keys() and part.get("type", "object") == "object" for part in parts)
        return Schema(self.found, {}) if open_ended else None

    def item(self) -> "Schema":
        """The shape of a list's items, and of a list of lists those of the inner ones; of anything else, itself."""
        items = [part["items"] for part in self._parts(self.schema) if "items" in part]
        return Schema(self.found, {"anyOf": items}).item() if items else self

    def values(self) -> frozenset[str]:
        """The values that it may have, empty where any; of a list, those of its items."""
        parts = list(self._parts(self.item().schema))
        listed = [
            part["enum"] if "enum" in part else [part["const"]] for part in parts if {"enum", "const"} & part.keys()
        ]
        free = any(
            part.get("type") in ("string", "integer", "number") for part in parts if not {"enum", "const"} & part.keys()
        )
        return frozenset() if free else frozenset(_written(value) for values in listed for value in values)

    def sample(self, name: str = "", depth: int = 0, level: int = 0) -> Any:
        """A usual value: every property that is described, thirty things in the outermost list and two in others."""
        parts = list(self._parts(self.schema))
        fields = {key: inner for part in parts for key, inner in part.get("properties", {}).items()}
        if any("items" in part for part in parts):
            inner = next(Schema(self.found, part["items"]) for part in parts if "items" in part)
            return [inner.sample(name, depth + 1, level + 1)] * (INNER if depth else ITEMS)
        if fields and level < DEEPEST:
            return {key: Schema(self.found, inner).sample(key, depth, level + 1) for key, inner in fields.items()}
        return usual(name, depth)

    def required(self) -> frozenset[str]:
        """Properties that every value has."""
        whole = self.found.resolve(self.schema)
        inner = [Schema(self.found, part).required() for part in whole.get("allOf", ())]
        return frozenset(whole.get("required", ())).union(*inner)

    def _parts(self, schema: Json, depth: int = 0) -> Iterator[Json]:
        schema = self.found.resolve(schema)
        yield schema
        for name in ("allOf", "anyOf", "oneOf"):
            for part in cast("Sequence[Json]", schema.get(name, ())):
                if depth < 12:
                    yield from self._parts(part, depth + 1)


def _written(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
