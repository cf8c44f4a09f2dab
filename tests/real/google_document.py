"""Google's discovery documents, as the package google-api-python-client carries them: read as text, never imported."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from tests.real.fetching import Cache

VERSION = "2.202.0"
Json = dict[str, Any]


@dataclass(frozen=True)
class Google:
    """One document, by method and path below the connector's base URL, with nameless holes."""

    document: Json
    operations: dict[tuple[str, str], list[Json]]
    version: str | None = None  # it stands in the base URL
    answers: bool = True

    @classmethod
    def read(cls, cache: Cache, api: str, base_url: str) -> "Google":
        """Download and read the document of this interface, gmail.v1."""
        folder = cache.pip(f"google-api-python-client=={VERSION}") / "googleapiclient" / "discovery_cache" / "documents"
        return cls.of(folder / f"{api}.json", base_url)

    @classmethod
    def of(cls, file: Path, base_url: str) -> "Google":
        """Read the document in this file."""
        document = json.loads(file.read_bytes())
        base = urlsplit(base_url).path + "/"
        operations: dict[tuple[str, str], list[Json]] = {}
        for method in _methods(document):
            path = _nameless(f"/{document['servicePath']}{method['path']}".removeprefix(base))
            operations.setdefault((method["httpMethod"], path), []).append(method)
        return cls(document, operations)

    def operation(self, method: str, path: str) -> "Described | None":
        """The operation; None where there is none. `users/me` is a user like any other.

        Gemini's have the whole name of a thing for their path, so that many share one: `{model}` is one of `models`.
        """
        found = self.operations.get((method, _nameless(path[1:].replace("users/me/", "users/{}/"))))
        found = found or self.operations.get((method, _nameless(path[1:])))
        if not found:
            return None
        named = re.search(r"\{(\w+)\}", path)
        own = [each for each in found if named and each["id"].split(".")[1] == f"{named[1]}s"]
        return Described(self.document, (own or found)[0])


def _methods(resource: Json) -> Iterator[Json]:
    yield from resource.get("methods", {}).values()
    for inner in resource.get("resources", {}).values():
        yield from _methods(inner)


def _nameless(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


class Described:
    """One method of the document."""

    def __init__(self, document: Json, method: Json) -> None:
        self._arguments = cast("Json", document["parameters"] | method.get("parameters", {}))
        self._body = Schema(document, cast("Json", method.get("request", {"properties": {}})))
        self.answer = Schema(document, cast("Json", method.get("response", {"properties": {}})))
        self.required = frozenset(
            (each["location"], name)
            for name, each in self._arguments.items()
            if each.get("required") and each["location"] != "path"
        )

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """The values that an argument may have; `start[dateTime]` is the field `dateTime` of `start`."""
        if place != "body":
            found = self._arguments.get(name)
            return None if found is None or found["location"] != place else frozenset(found.get("enum", ()))
        at: Schema | None = self._body
        for step in name.replace("]", "").split("["):
            at = at and (at.item() if step == "0" else at.field(step))
        return frozenset(at.schema.get("enum", ())) if at else None


@dataclass(frozen=True)
class Schema:
    """A schema of the document, as the shape of an answer or of a body."""

    document: Json
    written: Json

    @property
    def schema(self) -> Json:
        """The schema itself, where `written` refers to it."""
        return self.document["schemas"][self.written["$ref"]] if "$ref" in self.written else self.written

    def field(self, name: str) -> "Schema | None":
        """The shape of a property; None where there is none of that name."""
        properties = self.schema.get("properties", {})
        inner = properties.get(name, self.schema.get("additionalProperties"))
        return None if inner is None else Schema(self.document, inner)

    def item(self) -> "Schema":
        """The shape of a list's items; of anything else, itself."""
        return Schema(self.document, self.schema["items"]) if "items" in self.schema else self
