"""Read what a file says of a wrapped MCP server: how it is reached, and of each tool its name there, pin and arguments.

A file holds no reference and no surprise: the arguments are one closed object of portable JSON Schema, and the server's
own definition is pinned by its hash, so that a changed one is noticed before anything is sent.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from connectors import fileformat as keys
from connectors.arguments import compiled
from connectors.definition import Argument, WrappedServer, canonical
from connectors.source import Spot

STDIO = "stdio:"
"""What the address of a server begins with that is started: its command follows, as JSON."""

MAX_SCHEMA = 200_000  # characters of a tool's arguments as JSON
_PINNED = re.compile(keys.SHA256_PATTERN)
_ARGUMENT = re.compile(keys.UPSTREAM_ARGUMENT_PATTERN)
_UPSTREAM = re.compile(keys.UPSTREAM_PATTERN)
_VARIABLE = re.compile(keys.ENVIRONMENT_PATTERN)
_OURS = frozenset({"PATH", "HOME", "LANG", "TMPDIR"})

# Each keyword with what stands below it: nothing to look into, one schema, a list of schemas, or schemas by name.
_PLAIN = frozenset(
    {"type", "title", "description", "enum", "const", "default", "examples", "format", "pattern", "minLength"}
    | {"maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems"}
    | {"uniqueItems", "required"}
)
_ONE, _LIST, _NAMED = frozenset({"items", "additionalProperties"}), frozenset({"anyOf", "oneOf", "allOf"}), "properties"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapped:
    """A tool of a wrapped server, as a file has it."""

    upstream: str
    pinned: str
    annotations: Mapping[str, bool]  # as the server gives them
    arguments: tuple[Argument, ...]
    fixed: tuple[tuple[tuple[str, ...], Any], ...]

    @property
    def sent(self) -> list[Any]:
        """All that decides what is sent, as plain JSON."""
        return [self.upstream, self.pinned, [[a.name, dict(a.schema), a.required] for a in self.arguments], self.fixed]


def read_server(block: Mapping[str, Spot], spot: Spot) -> WrappedServer:
    """How the server is reached; raises DefinitionError."""
    if "command" not in block:
        if "base_url" not in block:
            spot.fail("Nothing says where the server is.", "Add `base_url: https://…`, or `command: [program, …]`.")
        return WrappedServer(endpoint=_endpoint(block.get("endpoint")), keep_s=_keep(block))
    for key in ("base_url", "endpoint", "headers"):
        if key in block:
            block[key].fail(f"A server that is started has no {key!r}.", "Remove it, or `command:`.")
    words = [item.value for item in block["command"].items("The command")]
    if not words or not all(isinstance(word, str) and word and "\0" not in word for word in words):
        block["command"].fail("The command is a list of texts: the program, then its arguments.", "Quote each.")
    return WrappedServer(command=tuple(cast("list[str]", words)), keep_s=_keep(block))


LEAST_KEPT_S, MOST_KEPT_S = 30, 3_600
_KEEP = re.compile(keys.KEEP_PATTERN)
_SECONDS = {"s": 1, "m": 60, "h": 3_600}


def _keep(block: Mapping[str, Spot]) -> int:
    """For how many seconds a conversation is kept; raises DefinitionError. Without a word none is."""
    if "keep" not in block:
        return 0
    spot = block["keep"]
    text = spot.matching("The time to keep", _KEEP, "Write it as `90s`, `10m` or `1h`.")
    seconds = int(text[:-1]) * _SECONDS[text[-1]]
    if not LEAST_KEPT_S <= seconds <= MOST_KEPT_S:
        spot.fail(f"A conversation is not kept for {text}.", "Give from 30s to 1h; left out, each call has its own.")
    if "reviewed" not in block or not block["reviewed"].flag("Reviewed"):
        spot.fail("Only a server whose tools a person has reviewed is kept.", "Review it and say `reviewed: true`.")
    return seconds


def address_of(server: WrappedServer) -> str:
    """What stands for the base URL of a server that is started."""
    return STDIO + canonical(list(server.command))


def check_variable(spot: Spot) -> str:
    """The name of an environment variable; raises DefinitionError."""
    name = spot.matching("The variable", _VARIABLE, "Write its name as the server's documentation has it.")
    if name in _OURS or name.startswith(("LD_", "DYLD_", "PYTHON", "NODE_OPTIONS")):
        spot.fail(f"The variable {name} decides how programs run, and holds no secret.", "Use another.")
    return name


def read_wrapped(block: Mapping[str, Spot]) -> Wrapped:
    """What the tool in this block sends; raises DefinitionError."""
    schema = _input(block["input"])
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
    required = cast("list[str]", schema.get("required", []))
    fixed = _fixed(block.get("fixed"), properties)
    return Wrapped(
        upstream=block["upstream"].matching("The upstream name", _UPSTREAM, "Write it as the server lists it."),
        pinned=block["pinned"].matching("The pin", _PINNED, "Write the 64 hex digits that `import-mcp` prints."),
        annotations=_annotations(block.get("annotations")),
        arguments=_arguments(block.get("absent"), {n: p for n, p in properties.items() if n not in fixed}, required),
        fixed=tuple(((name,), value) for name, value in fixed.items()),
    )


def _arguments(
    absent: Spot | None, properties: Mapping[str, dict[str, Any]], required: list[str]
) -> tuple[Argument, ...]:
    """Those first that are always given."""
    said = absent.mapping("Absent") if absent is not None else {}
    for name, spot in said.items():
        if name not in properties:
            spot.fail(f"{name!r} is no argument that is offered.", f"Offered: {', '.join(properties) or 'none'}.")
    made = [
        Argument(
            name=name,
            place="body",
            wire_name=name,
            schema=schema,
            required=name in required,
            steps=(name,),
            absent=said[name].text("Absent") if name in said else "(not given)",
        )
        for name, schema in properties.items()
    ]
    return tuple(sorted(made, key=lambda argument: not argument.required))


def _endpoint(spot: Spot | None) -> str:
    return "" if spot is None else spot.matching("The endpoint", _ENDPOINT, "Write its path, for instance `/mcp`.")


_ENDPOINT = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+/?")


def _annotations(spot: Spot | None) -> Mapping[str, bool]:
    if spot is None:
        return {}
    block = spot.block("Annotations", keys.ANNOTATIONS)
    return {name: value.flag(name) for name, value in block.items()}


def _fixed(spot: Spot | None, properties: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if spot is None:
        return {}
    fixed: dict[str, Any] = {}
    for name, value in spot.mapping("Fixed").items():
        if name not in properties:
            value.fail(f"The server's tool has no argument {name!r}.", f"Known: {', '.join(properties) or 'none'}.")
        fixed[name] = value.plain()
        if not compiled(properties[name], value).is_valid(fixed[name]):
            value.fail(f"The argument {name!r} does not take this value.", "See `input:`.")
    return fixed


def _input(spot: Spot) -> dict[str, Any]:
    """The arguments' schema, closed at its root."""
    block = spot.mapping("The input")
    kind = block["type"].value if "type" in block else None
    if kind != "object":
        spot.fail("The root of `input:` must say `type: object`.", "Add it: MCP takes nothing else.")
    for where in _walk(spot):
        _check(where)
    schema = cast("dict[str, Any]", spot.plain())
    if len(canonical(schema)) > MAX_SCHEMA:
        spot.fail(f"The arguments are longer than {MAX_SCHEMA} characters.", "Offer fewer of them.")
    properties = block["properties"].mapping("Properties") if "properties" in block else {}
    for name, part in properties.items():
        if not _ARGUMENT.fullmatch(name):
            part.fail(f"No argument can be called {name!r} here.", "Leave it out, or use another tool.")
    for name in cast("list[Any]", schema.get("required", [])):
        if name not in properties:
            block["required"].fail(f"{name!r} is required, and is no property.", "Add it, or take it out.")
    compiled(schema, spot)
    return schema | {"additionalProperties": False}


def _walk(spot: Spot) -> Iterator[Spot]:
    """Every schema in this one, itself first."""
    yield spot
    for key, value in spot.mapping("A schema").items():
        if key in _ONE and not isinstance(value.value, bool):
            yield from _walk(value)
        elif key in _LIST:
            for item in value.items(key):
                yield from _walk(item)
        elif key == _NAMED:
            for item in value.mapping("Properties").values():
                yield from _walk(item)


def _check(spot: Spot) -> None:
    for key, value in spot.mapping("A schema").items():
        if key not in _PLAIN | _ONE | _LIST | {_NAMED}:
            _refuse(key, value)


def _refuse(key: str, spot: Spot) -> NoReturn:
    mend = "Write out what it refers to." if key in ("$ref", "$defs", "definitions", "$dynamicRef") else "Leave it out."
    spot.fail(f"Not every client understands {key!r} in a schema.", mend)
