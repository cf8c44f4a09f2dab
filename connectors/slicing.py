"""Cut the chosen operations out of a document, with all that they refer to and nothing that is not read here.

The slice is again an OpenAPI document, small enough to be reviewed and kept under version control, and what is compiled
from it is what would be compiled from the whole. The same choice gives the same bytes.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any, cast

from connectors.document import Described, Document, Part, short

Json = dict[str, Any]

_OF_SCHEMA = frozenset(
    {"type", "description", "enum", "const", "default", "format", "pattern", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems", "required"}
    | {"nullable", "x-nullable", "readOnly", "deprecated", "example", "additionalProperties", "patternProperties"}
)
_OF_PARAMETER = frozenset(
    {"name", "in", "description", "required", "deprecated", "style", "explode", "example", "type", "enum"}
)
_OF_ENCODING = frozenset({"style", "explode", "contentType"})
_OF_OPERATION = frozenset({"operationId", "summary", "deprecated"})


def cut(document: Document, chosen: Iterable[Described]) -> bytes:
    """The slice with these operations, as canonical JSON in ASCII: what cannot be seen shows in a review."""
    cutter = _Cutter(document)
    for described in chosen:
        cutter.take(described)
    cutter.follow()
    info = {"title": document.title or "unnamed", "version": str(_info(document).get("version", ""))[:40]}
    whole = {"openapi": str(document.root["openapi"]), "info": info, **cutter.made}
    return (json.dumps(whole, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _info(document: Document) -> Json:
    info = document.root.get("info")
    return cast("Json", info) if isinstance(info, dict) else {}


Kept = Callable[[Part], Any]


class _Cutter:
    """Copies parts to where they stand in the document, and follows their references."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._waiting: list[tuple[Part, Kept]] = []
        self.made: Json = {"paths": {}}

    def take(self, described: Described) -> None:
        """An operation, as it stands at its path; what is said for the whole path comes along."""
        item = self.made["paths"].setdefault(described.path, {})
        listed = described.item.get("parameters")
        if listed is not None:
            item["parameters"] = [self._parameter(each) for each in listed.list()]
        item[described.method.lower()] = self._operation(described.part)

    def follow(self) -> None:
        """Copy what is referred to, and what that refers to, each once."""
        taken: set[str] = set()
        while self._waiting:
            target, kept = self._waiting.pop()
            if target.at not in taken:
                taken.add(target.at)
                self.made = _with(self.made, target.at[1:].split("/"), kept(target))

    def _operation(self, part: Part) -> Json:
        kept = _some(part, _OF_OPERATION)
        listed, body = part.get("parameters"), part.get("requestBody")
        if listed is not None:
            kept["parameters"] = [self._parameter(each) for each in listed.list()]
        if body is not None:
            kept["requestBody"] = self._body(body)
        return kept

    def _parameter(self, part: Part) -> Any:
        if self._referred(part, self._parameter):
            return {"$ref": part.reference}
        kept = _some(part, _OF_PARAMETER)
        for key in ("schema", "items"):
            if (inner := part.get(key)) is not None:
                kept[key] = self._schema(inner)
        if part.get("content") is not None:
            kept["content"] = self._content(part)
        examples = part.get("examples")
        if examples is not None and "example" not in kept:
            first = next((each for _, each in examples.items() if isinstance(each.value, dict)), None)
            kept |= {"example": first.mapping["value"]} if first is not None and "value" in first.mapping else {}
        return kept

    def _body(self, part: Part) -> Any:
        if self._referred(part, self._body):
            return {"$ref": part.reference}
        return _some(part, frozenset({"description", "required"})) | {"content": self._content(part)}

    def _content(self, part: Part) -> Json:
        content = part.get("content")
        return {kind: self._media(media) for kind, media in (content.items() if content else ())}

    def _media(self, part: Part) -> Json:
        kept: Json = {}
        schema, encoding = part.get("schema"), part.get("encoding")
        if schema is not None:
            kept["schema"] = self._schema(schema)
        if encoding is not None:
            kept["encoding"] = {name: _some(each, _OF_ENCODING) for name, each in encoding.items()}
        return kept

    def _schema(self, part: Part) -> Any:
        if not isinstance(part.value, dict):
            return part.value if isinstance(part.value, bool) else {}
        kept = _some(part, _OF_SCHEMA)
        if self._referred(part, self._schema):
            kept["$ref"] = part.reference
        if "additionalProperties" in kept:
            kept["additionalProperties"] = self._schema(part["additionalProperties"])
        if "patternProperties" in kept:
            kept["patternProperties"] = {}  # that there are any is all that counts
        if (properties := part.get("properties")) is not None:
            kept["properties"] = {name: self._schema(each) for name, each in properties.items()}
        if (items := part.get("items")) is not None:
            kept["items"] = self._schema(items)
        for key in ("allOf", "anyOf", "oneOf"):
            if (parts := part.get(key)) is not None:
                kept[key] = [self._schema(each) for each in parts.list()]
        return kept

    def _referred(self, part: Part, kept: Kept) -> bool:
        """Whether this is a reference; what it leads to will be copied to its own place."""
        if part.reference is None:
            return False
        self._waiting.append((self._document.at(part.reference, part), kept))
        return True


def _some(part: Part, keys: frozenset[str]) -> Json:
    kept = {key: value for key, value in part.mapping.items() if key in keys}
    if isinstance(kept.get("description"), str):
        kept["description"] = short(kept["description"])
    return kept


def _with(whole: Any, way: list[str], value: Any) -> Any:
    """The same with this value in it, at the end of this way; what is there already is of the same document."""
    for escaped in reversed(way):
        value = {escaped.replace("~1", "/").replace("~0", "~"): value}
    return _together(whole, value)


def _together(one: Any, other: Any) -> Any:
    """Two cuttings of the same part. A list is always whole; single items of one stand by their numbers."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other if isinstance(one, dict) else one
    mine, more = cast("Json", one), cast("Json", other)
    return mine | {key: _together(mine[key], part) if key in mine else part for key, part in more.items()}
