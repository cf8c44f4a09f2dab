"""GitHub's OpenAPI document, as the npm package `@octokit/openapi` carries it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from tests.real.fetching import Cache

VERSION = "23.0.2"
Json = dict[str, Any]


@dataclass(frozen=True)
class GitHub:
    """The document, by method and path with nameless holes."""

    document: Json
    operations: dict[tuple[str, str], Json]
    version: str | None = None  # the package does not say which API version it describes
    answers: bool = True

    @classmethod
    def read(cls, cache: Cache) -> "GitHub":
        """Download and read it."""
        folder = cache.npm("@octokit/openapi", VERSION)
        document = json.loads((folder / "generated" / "api.github.com.json").read_bytes())
        operations = {
            (method.upper(), _nameless(path)): cast("Json", operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        return cls(document, operations)

    def operation(self, method: str, path: str) -> "Described | None":
        """The operation; None where there is none."""
        found = self.operations.get((method, _nameless(path)))
        return None if found is None else Described(self, found)

    def resolve(self, schema: Json) -> Json:
        """What a reference refers to."""
        while "$ref" in schema:
            at: Any = self.document
            for name in schema["$ref"].removeprefix("#/").split("/"):
                at = at[name.replace("~1", "/").replace("~0", "~")]
            schema = at
        return schema


def _nameless(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


class Described:
    """One operation of the document."""

    def __init__(self, github: GitHub, operation: Json) -> None:
        self._github = github
        parameters = [github.resolve(each) for each in operation.get("parameters", [])]
        self._arguments = {(each["in"], each["name"]): cast("Json", each["schema"]) for each in parameters}
        required = {(each["in"], each["name"]) for each in parameters if each.get("required") and each["in"] != "path"}
        body = github.resolve(operation.get("requestBody", {})).get("content", {}).get("application/json")
        if body:
            schema = Schema(github, body["schema"])
            self._arguments |= {("body", name): field for name, field in schema.fields()}
            required |= {("body", name) for name in github.resolve(body["schema"]).get("required", ())}
        self.required = frozenset(required)
        self.answer = Schema(github, _answer(github, operation))

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """The values that an argument may have."""
        schema = self._arguments.get((place, name))
        if schema is None:
            return None
        resolved = self._github.resolve(schema)
        return frozenset(map(str, resolved.get("enum", ())))


def _answer(github: GitHub, operation: Json) -> Json:
    for status in ("200", "201"):
        content = github.resolve(operation["responses"].get(status, {})).get("content", {})
        for kind in content.values():
            return cast("Json", kind.get("schema", {}))
    return {}


@dataclass(frozen=True)
class Schema:
    """A JSON Schema of the document, as the shape of an answer."""

    github: GitHub
    schema: Json

    def fields(self) -> Iterator[tuple[str, Json]]:
        """Every property, also of the schemas that it is made of."""
        for each in self._parts(self.schema):
            yield from each.get("properties", {}).items()

    def field(self, name: str) -> "Schema | None":
        """The shape of a property; None where there is none of that name."""
        found = [schema for known, schema in self.fields() if known == name]
        if found:
            return Schema(self.github, {"anyOf": found})
        open_ended = any(part.get("additionalProperties") or not part for part in self._parts(self.schema))
        return Schema(self.github, {}) if open_ended else None

    def item(self) -> "Schema":
        """The shape of a list's items; of anything else, itself."""
        items = [part["items"] for part in self._parts(self.schema) if "items" in part]
        return Schema(self.github, {"anyOf": items}) if items else self

    def _parts(self, schema: Json) -> Iterator[Json]:
        schema = self.github.resolve(schema)
        yield schema
        for name in ("allOf", "anyOf", "oneOf"):
            for part in schema.get(name, ()):
                yield from self._parts(part)
