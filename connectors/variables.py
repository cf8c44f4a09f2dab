"""Hold a GraphQL document and the arguments of its tool to each other: one variable for each argument, of its type.

What can be told without the vendor's schema is refused here, at load; the rest is left to the vendor.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from connectors import fileformat as keys
from connectors.arguments import Taken, read_arguments
from connectors.definition import Argument
from connectors.graphql import Document, Type, read_document
from connectors.source import Spot

# The types that GraphQL itself has, and what JSON may stand for them (GraphQL, September 2025, 3.5).
_BUILT_IN: Mapping[str, frozenset[str]] = {
    "ID": frozenset({"string", "integer"}),
    "String": frozenset({"string"}),
    "Int": frozenset({"integer"}),
    "Float": frozenset({"number", "integer"}),
    "Boolean": frozenset({"boolean"}),
}
# A vendor's own type: an enum, a scalar or an input object, which is no list unless the document says so.
_OWN = frozenset({"string", "integer", "number", "boolean", "object"})


def read_operation(block: Mapping[str, Spot], key_variable: str, user_errors: str) -> Document:
    """The document of a tool or of a verify call; raises DefinitionError.

    A variable named `key_variable` is Keyleash's to fill. Where the connector has `user_errors`, each mutation must ask
    for them, or a refusal would pass for a success.
    """
    spot = block["document"]
    document = read_document(spot)
    operation = document.operation
    payloads = list(operation.answers.values()) if operation.kind == "mutation" and user_errors else []
    if any("message" not in payload.get(user_errors, ()) for payload in payloads):
        spot.fail(
            f"The mutation does not ask for {user_errors}, so that a refusal would look like a success.",
            f"Select `{user_errors} {{ message }}`; `{user_errors}: otherName {{ message }}` where it is called so.",
        )
    if key_variable not in document.variables:
        return document
    variable = document.variables[key_variable]
    there = Spot(spot.file, variable.line, "")
    if operation.kind == "query":
        there.fail(f"A query needs no ${key_variable}.", "It is sent again by itself; remove the variable.")
    if variable.type.item or variable.type.name not in ("String", "ID"):
        there.fail(f"${key_variable} is filled with a text, and declared as {variable.type}.", "Declare it as String!.")
    return replace(document, operation=replace(operation, key_variable=key_variable))


def read_variables(block: dict[str, Spot], document: Document, taken: Taken) -> tuple[Argument, ...]:
    """The arguments of a GraphQL tool, in the order of the file; raises DefinitionError."""
    spots = block["arguments"].named("Arguments") if "arguments" in block else {}
    for spot in spots.values():
        spot.block("An argument of a GraphQL tool", keys.VARIABLE)
    arguments = read_arguments(block, "POST", [], taken, "json")
    operation = document.operation
    for argument in arguments:
        _check(argument, spots[argument.name], document)
    for name, variable in document.variables.items():
        if name not in spots and name != operation.key_variable:
            Spot(block["document"].file, variable.line, "").fail(
                f"The variable ${name} has no argument.", f"Add `{name}:` to `arguments:`, or write its value out."
            )
    return arguments


def _check(argument: Argument, spot: Spot, document: Document) -> None:
    name, operation = argument.name, document.operation
    if name == operation.key_variable:
        spot.fail(f"${name} is filled by Keyleash.", "Remove the argument.")
    if name not in document.variables:
        spot.fail(f"The argument {name!r} has no variable.", f"Add `${name}: Type` to the operation's parentheses.")
    variable = document.variables[name]
    if variable.type.required and not variable.default and not argument.required:
        spot.fail(
            f"{name!r} may be left out, and the document declares ${name}: {variable.type}.",
            "Add `required: true`, or take the ! away.",
        )
    problem = _mismatch(variable.type, argument.schema)
    if problem:
        spot.fail(f"{name!r} {problem}, and the document declares ${name}: {variable.type}.", "Change one of the two.")


def _mismatch(kind: Type, schema: Mapping[str, Any]) -> str:
    """What does not fit, or nothing."""
    possible = _possible(schema)
    if kind.item is None:
        wrong = possible - _BUILT_IN.get(kind.name, _OWN)
        return f"can be of type {' or '.join(sorted(wrong))}" if wrong else ""
    if possible != {"array"}:
        return "need not be a list"
    if "items" not in schema:
        return "does not say what its items are"
    problem = _mismatch(kind.item, schema["items"])
    return f"has items of which one {problem}" if problem else ""


def _possible(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a value may have by this schema."""
    if "type" in schema:
        stated: str | list[str] = schema["type"]
        return {stated} if isinstance(stated, str) else set(stated)
    if "anyOf" in schema:
        return {kind for part in cast("list[dict[str, Any]]", schema["anyOf"]) for kind in _possible(part)}
    values = cast("list[Any]", schema.get("enum", [schema.get("const")]))
    return {_json_type(value) for value in values}


def _json_type(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"
