"""Schemas of an OpenAPI document as portable JSON Schema 2020-12: without references, and of a bounded size.

What comes out has the few keywords that every model's API understands, those that a connector file may use itself.
What these cannot say is left for the upstream to judge: a schema here may let more through than the document's. It is
stricter only where the document means it: no name that is only read, and an object where there are properties.
Recursion, and what is nested too deeply, is cut to an open value, and the description says so.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

import jsonschema_rs

from connectors.definition import canonical
from connectors.document import Document, Part, short

LEVELS = (2, 3, 4, 5, 6, 8, 12)
"""How deep a tool's schema may be: the deepest of these at which it is made of no more than MOST."""
MOST = 600
SHALLOW = (1, 0)
"""Where two levels are too much already: how deep it is then, of no more than ENOUGH."""
ENOUGH = 3000
CUT = "(It is nested further; the vendor's reference says how.)"

_AGAIN = 2  # how often a schema may stand within itself
_WAY = 60  # references and parts that lead to one value
_LONG = 300  # characters of a default or a pattern
_FORMAT = re.compile(r"[A-Za-z0-9_.:/-]{1,40}")
_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
_NAMES: Mapping[str, str] = {
    **{name: name for name in _TYPES},
    **dict.fromkeys(("file", "date", "datetime", "date-time", "uuid", "uri", "email", "binary", "text"), "string"),
    **dict.fromkeys(("int", "int32", "int64", "long", "timestamp"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **{"bool": "boolean", "list": "array", "map": "object", "dict": "object", "hash": "object"},
}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_PARTS = ("allOf", "anyOf", "oneOf", "properties", "items", "additionalProperties", "$ref")

Json = dict[str, Any]


class TooLarge(Exception):
    """The schema would have too many parts at this many levels."""


class Writer:
    """Writes the schemas of one tool, of so many parts and levels at most; raises TooLarge and DocumentError."""

    def __init__(self, document: Document, *, levels: int, most: int) -> None:
        self._document, self._levels, self._left = document, levels, most
        self.more = False
        """Whether there would have been more at a further level."""

    def write(self, part: Part) -> Json:
        """The schema that stands here."""
        return self._write(part, 0, ())

    def _write(self, part: Part, level: int, way: tuple[str, ...]) -> Json:
        self._left -= 1
        if self._left < 0:
            raise TooLarge
        if not isinstance(part.value, dict):
            return {}
        if part.reference is not None:
            return self._referred(part, part.reference, level, way)
        parts = part.get("allOf")
        if parts is None or not isinstance(parts.value, list):
            return self._plain(part, level, way)
        inner = [self._write(each, level, (*way, "")) for each in parts.list() if self._near(way)]
        own = Part({key: value for key, value in part.mapping.items() if key != "allOf"}, part.at)
        return _null_too(_joined([*inner, self._plain(own, level, way)]), part)

    def _near(self, way: tuple[str, ...]) -> bool:
        return len(way) < _WAY

    def _referred(self, part: Part, reference: str, level: int, way: tuple[str, ...]) -> Json:
        """What is referred to, and what 3.1 lets stand beside it."""
        target = self._document.at(reference, part)
        if way.count(reference) >= _AGAIN or not self._near(way):
            return self._cut(self._document.resolve(target))
        beside = Part({key: value for key, value in part.mapping.items() if key != "$ref"}, part.at)
        found = self._write(target, level, (*way, reference))
        return _null_too(_joined([found, self._plain(beside, level, way)]), part) if beside.value else found

    def _cut(self, part: Part) -> Json:
        said = " ".join(text for text in (short(part.text("description")), CUT) if text)
        kinds = [kind for kind in _kinds(part) if kind in ("object", "array", "string", "null")]
        return {**({"type": _one(kinds)} if kinds else {}), "description": said, **_item(kinds)}

    def _plain(self, part: Part, level: int, way: tuple[str, ...]) -> Json:
        """A schema that is neither a reference nor made of others that all hold."""
        if level >= self._levels and any(key in part.mapping for key in _PARTS):
            self.more = True
            return self._cut(part)
        schema = _scalars(part)
        properties = part.get("properties")
        if properties is not None:
            schema |= self._properties(part, properties, level, way)
        if "array" in _listed(schema.get("type")):
            items = part.get("items")
            schema["items"] = self._write(items, level + 1, way) if items is not None else {}
        more = part.get("additionalProperties")
        if more is not None and not (more.value is False and "patternProperties" in part.mapping):
            open_to = bool(more.mapping)
            schema["additionalProperties"] = self._write(more, level + 1, way) if open_to else more.value is not False
        for key in ("anyOf", "oneOf"):
            choices = part.get(key)
            if choices is not None and any(True for _ in choices.list()):
                schema = self._one_of(schema, choices, level, way)
        return _settled(_null_too(schema, part))

    def _properties(self, part: Part, properties: Part, level: int, way: tuple[str, ...]) -> Json:
        kept = {
            name: self._write(each, level + 1, way)
            for name, each in properties.items()
            if name.isprintable() and each.value is not False and not self.only_read(each)
        }
        gone = {name for name, _ in properties.items()} - kept.keys()
        required = [name for name in _names(part.get("required")) if name not in gone]
        if part.mapping.get("additionalProperties") is False:
            required = [name for name in required if name in kept]
        return {"properties": kept, **({"required": required} if required else {})}

    def only_read(self, part: Part) -> bool:
        """Whether a property comes back and is never sent."""
        return part.says("readOnly") or self._document.resolve(part).says("readOnly")

    def _one_of(self, schema: Json, choices: Part, level: int, way: tuple[str, ...]) -> Json:
        """Alternatives, of which one or more may hold: vendors' `oneOf` overlap, and would refuse what is right."""
        if not self._near(way):
            return schema
        written = [self._write(each, level, (*way, "")) for each in choices.list()]
        if schema.get("type") not in (None, "object"):
            written = [_joined([{"type": schema["type"]}, each]) for each in written]
        different = list({canonical(each): each for each in written}.values())
        if len(different) == 1:
            return _joined([different[0], schema])
        if not all(each.keys() - {"description"} for each in different) or "anyOf" in schema:
            return schema
        return schema | {"anyOf": different}


def _scalars(part: Part) -> Json:
    """What a schema says by itself, without what it is made of."""
    value = part.mapping
    schema: Json = {}
    said = short(part.text("description"))
    if value.get("deprecated") is True:
        said = f"Deprecated. {said}".strip()
    kinds = _kinds(part)
    if kinds:
        schema["type"] = _one(kinds)
    if said:
        schema["description"] = said
    values = [value["const"]] if "const" in value else value.get("enum")
    if isinstance(values, list) and values:
        schema |= _enum(cast("list[Any]", values), kinds)
    schema |= _bounds(value)
    for key in _COUNTS:
        if _is_count(value.get(key)):
            schema[key] = int(value[key])
    if value.get("uniqueItems") is True:
        schema["uniqueItems"] = True
    pattern = value.get("pattern")
    if isinstance(pattern, str) and _is_pattern(pattern):
        schema["pattern"] = pattern
    if isinstance(value.get("format"), str) and _FORMAT.fullmatch(value["format"]):
        schema["format"] = value["format"]
    if value.get("default") is not None and len(canonical(value["default"])) <= _LONG:
        schema["default"] = value["default"]
    return schema | ({"required": _names(part.get("required"))} if _names(part.get("required")) else {})


def _kinds(part: Part) -> list[str]:
    """The types that are stated, or else follow from the rest; none for anything."""
    value = part.mapping
    stated = [_NAMES.get(str(kind).lower()) for kind in _listed(value.get("type"))]
    if None in stated:  # a type that there is not: anything may be meant
        return []
    kinds = [kind for kind in _TYPES if kind in stated]
    if not kinds and isinstance(value.get("properties"), dict):
        kinds = ["object"]
    if not kinds and isinstance(value.get("items"), dict):
        kinds = ["array"]
    return kinds


def _enum(values: list[Any], kinds: list[str]) -> Json:
    """The values, as the stated type has them; where they have another, no type is kept."""
    found = [_as(value, kinds) for value in values]
    unlike = any(value is not None and _kind(value) not in kinds for value in found)
    unlike = unlike and not (set(map(_kind, found)) <= {"integer"} and "number" in kinds)
    if None in found and kinds and not unlike and "null" not in kinds:
        kinds = [*kinds, "null"]
    different = list({canonical(value): value for value in found}.values())
    if unlike or not kinds:
        kinds = [kind for kind in _TYPES if kind in set(map(_kind, different))]
    return {"type": _one(kinds), "enum": different}


def _as(value: Any, kinds: list[str]) -> Any:
    if kinds == ["string"] and isinstance(value, bool | int | float):
        return canonical(value)
    if kinds in (["integer"], ["number"]) and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,15}", value):
        return int(value)
    return (
        {"true": True, "false": False}.get(value, value) if kinds == ["boolean"] and isinstance(value, str) else value
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (list, "array"))
    return next((kind for made, kind in kinds if isinstance(value, made)), "object")


def _bounds(value: Json) -> Json:
    bounds: Json = {}
    for key, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if _is_number(value.get(key)) and value.get(exclusive) is not True:
            bounds[key] = value[key]
        elif _is_number(value.get(key)):  # 3.0, where a flag makes the bound exclusive
            bounds[exclusive] = value[key]
        if _is_number(value.get(exclusive)):
            bounds[exclusive] = value[exclusive]
    if _is_number(value.get("multipleOf")) and value["multipleOf"] > 0:
        bounds["multipleOf"] = value["multipleOf"]
    return bounds


def _joined(parts: Iterable[Json]) -> Json:
    """One schema out of several that all hold; where two say the same thing differently, the later one does."""
    whole: Json = {}
    for part in parts:
        for key, value in part.items():
            whole[key] = _both(key, whole[key], value) if key in whole else value
    if isinstance(whole.get("enum"), list):
        whole["enum"] = [value for value in whole["enum"] if not _listed(whole.get("type")) or _fits(value, whole)]
        if not whole["enum"]:
            del whole["enum"]
    return whole


def _both(key: str, one: Any, other: Any) -> Any:
    match key:
        case "properties":
            return one | {name: _joined([one[name], part]) if name in one else part for name, part in other.items()}
        case "required":
            return [*one, *(name for name in other if name not in one)]
        case "type":
            return _one([kind for kind in _listed(one) if kind in _listed(other)] or _listed(other))
        case "enum":
            return [value for value in one if value in other] or other
        case "items":
            return _joined([one, other])
        case _:
            return one if key == "anyOf" else other


def _null_too(schema: Json, part: Part) -> Json:
    """The schema with null let in, where 3.0 says so beside it."""
    if not (part.says("nullable") or part.says("x-nullable")):
        return schema
    if "enum" in schema and None not in schema["enum"]:
        schema = schema | {"enum": [*schema["enum"], None]}
    if schema.get("type"):
        return schema | {"type": _one([*_listed(schema["type"]), "null"])}
    return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]} if "anyOf" in schema else schema


def _settled(schema: Json) -> Json:
    """Without what would let nothing through: bounds that cross, and keywords of a type that it is not."""
    for low, high in (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems")):
        if low in schema and high in schema and schema[low] > schema[high]:
            schema = {key: value for key, value in schema.items() if key not in (low, high)}
    return schema


def _fits(value: Any, schema: Json) -> bool:
    kinds = _listed(schema["type"])
    return _kind(value) in kinds or (_kind(value) == "integer" and "number" in kinds)


def _item(kinds: list[str]) -> Json:
    return {"items": {}} if "array" in kinds else {}


def _one(kinds: list[str]) -> Any:
    different = list(dict.fromkeys(kinds))
    return different[0] if len(different) == 1 else different


def _listed(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]


def _names(part: Part | None) -> list[str]:
    listed = [each.value for each in part.list()] if part is not None else []
    return list(dict.fromkeys(name for name in listed if isinstance(name, str)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


@lru_cache(maxsize=2_000)
def _is_pattern(pattern: str) -> bool:
    """Whether it can be searched for in linear time: no look-around, no back-references."""
    if len(pattern) > _LONG:
        return False
    try:
        jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=jsonschema_rs.RegexOptions())
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True
