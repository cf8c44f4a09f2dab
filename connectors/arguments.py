"""The arguments of a tool: JSON Schema in short form, and the place of each in the request.

An argument cannot stand where its value could not be written, where another already stands, or where the credential
goes. Objects are closed unless the file opens them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import jsonschema_rs

from connectors import fileformat as keys
from connectors.definition import Argument, BodyStyle, ListStyle, Place, Style, Validator
from connectors.source import Spot

# Headers that authenticate, or that the transport alone decides.
RESERVED_HEADERS = frozenset(
    {"accept-encoding", "authorization", "connection", "content-encoding", "content-length", "cookie", "expect"}
    | {"forwarded", "host", "keep-alive", "origin", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "via"}
)
Steps = tuple[str, ...]

LIST_OF_ONE = "0"
NESTING_MEND = "Write `name` or `outer[inner]`; [0] is a list of one."
_NESTED = re.compile(r"[^\[\]]+(\[[^\[\]]+\])*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


@dataclass(frozen=True, slots=True)
class Taken:
    """Names that no argument may use, since the credential or the connector's own headers stand there."""

    headers: frozenset[str]  # in lower case
    queries: frozenset[str]


def check_header(name: str, spot: Spot, taken: frozenset[str]) -> None:
    """Raise DefinitionError unless a header may have this name."""
    if not _HEADER_NAME.fullmatch(name):
        spot.fail(f"{name!r} cannot be a header's name.", "Use letters, digits and hyphens.")
    if name.lower() in taken:
        spot.fail(f"The header {name!r} is set by Keyleash itself.", "Remove it.")


def steps_of(name: str, spot: Spot) -> Steps:
    """The way to a value in a JSON body: `ticket[subject]` is two steps. Raises DefinitionError."""
    if not _NESTED.fullmatch(name) or name.startswith(f"{LIST_OF_ONE}["):
        spot.fail(f"{name!r} names no place in a JSON body.", NESTING_MEND)
    first, *others = name.replace("]", "").split("[")
    return (first, *others)


def read_arguments(
    block: dict[str, Spot], method: str, holes: list[str], taken: Taken, style: BodyStyle
) -> tuple[Argument, ...]:
    """The arguments of a tool block, in the order of the file; raises DefinitionError."""
    spots = block["arguments"].named("Arguments") if "arguments" in block else {}
    for hole in holes:
        if hole not in spots:
            block["call"].fail(
                f"The path has a hole {{{hole}}} without its argument.", f"Add `{hole}:` to `arguments:`."
            )
    arguments: list[Argument] = []
    places: dict[tuple[Place, str], str] = {}
    for name, spot in spots.items():
        argument = _argument(name, spot, _Call(method, holes, taken, style))
        wire = argument.wire_name.lower() if argument.place == "header" else argument.wire_name
        if (other := places.setdefault((argument.place, wire), name)) != name:
            spot.fail(f"{name!r} and {other!r} are the same {argument.place} name upstream.", "Change one `as:`.")
        arguments.append(argument)
    return tuple(arguments)


@dataclass(frozen=True, slots=True)
class _Call:
    """The call that an argument belongs to."""

    method: str
    holes: list[str]
    taken: Taken
    style: BodyStyle


def _argument(name: str, spot: Spot, call: _Call) -> Argument:
    block = spot.block("An argument", keys.ARGUMENT)
    place = _place(name, block, call.method, call.holes)
    wire_name = block["as"].text("As") if "as" in block else name
    schema = _schema(spot, {key: value for key, value in block.items() if key in keys.SCHEMA})
    slashes = "slashes" in block and block["slashes"].flag("Slashes")
    required = "required" in block and block["required"].flag("Required")
    if place == "path":
        _check_path_argument(name, spot, block)
        required = True
    elif slashes:
        block["slashes"].fail("Only a path argument has segments.", "Remove `slashes:`.")
    if place == "header":
        check_header(wire_name, spot, call.taken.headers)
    if place == "query" and wire_name in call.taken.queries:
        spot.fail(f"The query parameter {wire_name!r} carries the credential.", "Remove the argument.")
    compiled(schema, spot)
    _check_type(place, schema, spot)
    return Argument(
        name=name,
        place=place,
        wire_name=wire_name,
        schema=schema,
        required=required,
        steps=steps_of(wire_name, spot) if place == "body" and call.style == "json" else (wire_name,),
        slashes=slashes,
        style=_style(block.get("list"), place),
        absent=block["absent"].text("Absent") if "absent" in block else "(not given)",
    )


def _place(name: str, block: dict[str, Spot], method: str, holes: list[str]) -> Place:
    stated = cast("Place", block["in"].one_of("In", get_args(Place))) if "in" in block else None
    if name in holes:
        if stated not in (None, "path"):
            block["in"].fail(f"The path has a hole {{{name}}}, so it stands there.", "Remove `in:`.")
        return "path"
    if stated == "path":
        block["in"].fail(f"The path has no hole {{{name}}}.", "Add it to `call:`, or change `in:`.")
    if stated == "body" and method in ("GET", "HEAD"):
        block["in"].fail(f"A {method} has no body.", "Use `in: query`.")
    return stated or ("query" if method in ("GET", "HEAD", "DELETE") else "body")


def _check_path_argument(name: str, spot: Spot, block: dict[str, Spot]) -> None:
    if "required" in block and not block["required"].flag("Required"):
        block["required"].fail("A path argument is always required.", "Remove `required: false`.")
    if "as" in block:
        block["as"].fail(f"A path argument is called as its hole, {{{name}}}.", "Remove `as:`.")


def _style(spot: Spot | None, place: Place) -> Style:
    if spot is None:
        return "nested" if place == "body" else "repeat"
    if place != "query":
        spot.fail("`list:` says how a query writes a list.", "Remove it.")
    return cast("ListStyle", spot.one_of("List", get_args(ListStyle)))


_SCALARS = ("string", "integer", "number", "boolean")
_TYPES: Mapping[Place, tuple[str, ...]] = {
    "path": ("string", "integer"),
    "header": ("string", "integer", "boolean"),
    "query": (*_SCALARS, "array"),
    "body": (*_SCALARS, "array", "object"),
}


def _check_type(place: Place, schema: Mapping[str, Any], spot: Spot) -> None:
    """Outside a body, a value must be writable as one text, or as a list of them in a query."""
    if place == "body":
        return
    kind = schema.get("type")
    if kind not in _TYPES[place]:
        spot.fail(f"In a {place}, `type` must be one of {', '.join(_TYPES[place])}.", "Or move it to the body.")
    if kind == "array" and schema.get("items", {}).get("type") not in _SCALARS:
        spot.fail("A list in a query needs `items:` with a simple type.", "Add `items: {type: string}`.")


def _schema(spot: Spot, block: dict[str, Spot]) -> dict[str, Any]:
    """JSON Schema out of the short form: `required: true` at a property moves up, and objects are closed."""
    if not block.keys() & {"type", "enum", "const", "anyOf"}:
        spot.fail("There is no `type`.", "Add `type: string`, or what it is.")
    schema: dict[str, Any] = {}
    for key, value in block.items():
        match key:
            case "required":
                value.flag("Required")
            case "items":
                schema[key] = _nested(value)
            case "additionalProperties" if not isinstance(value.value, bool):
                schema[key] = _nested(value)
            case "anyOf":
                schema[key] = [_nested(item) for item in value.items("anyOf")]
            case "properties":
                schema |= _properties(value)
            case "description":
                schema[key] = " ".join(value.text("The description").split())
            case _:
                schema[key] = value.plain()
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _nested(spot: Spot) -> dict[str, Any]:
    return _schema(spot, spot.block("A schema", keys.SCHEMA))


def _properties(spot: Spot) -> dict[str, Any]:
    properties = spot.mapping("Properties")
    blocks = {name: value.block("A schema", keys.SCHEMA) for name, value in properties.items()}
    required = [name for name, block in blocks.items() if "required" in block and block["required"].flag("Required")]
    made: dict[str, Any] = {"properties": {name: _schema(properties[name], block) for name, block in blocks.items()}}
    return made | {"required": required} if required else made


def fits(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value is one that this schema takes."""
    return jsonschema_rs.Draft202012Validator(dict(schema), pattern_options=jsonschema_rs.RegexOptions()).is_valid(
        value
    )


def compiled(schema: dict[str, Any], spot: Spot) -> Validator:
    """The schema's validator, whose patterns run in linear time; raises DefinitionError."""
    try:
        return jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions())
    except (jsonschema_rs.ValidationError, ValueError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())[:200]
        spot.fail(f"This is not a JSON Schema: {reason}.")
