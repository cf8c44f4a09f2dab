"""Our GraphQL documents against a vendor's schema: what they ask for exists, and what they are given is taken."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import graphql
from graphql.execution.values import get_variable_values
from graphql.validation import NoDeprecatedCustomRule

from connectors.definition import Connector, Tool
from tests.real.report import Report, Wrong


def compare(report: Report, connector: Connector, schema: graphql.GraphQLSchema) -> int:
    """Three lines for a connector. Returns how many of its tools are as the schema says."""
    tools = [*connector.tools.values(), connector.verify]
    wrong = {tool.name for tool in tools if any((_errors(tool, schema), *_refused(tool, schema)))}
    with report.line(f"{connector.title}: {len(tools)} documents are valid against its schema"):
        _raise(f"{tool.name}: {error}" for tool in tools for error in _errors(tool, schema))
    with report.line(f"{connector.title}: nothing in them is deprecated"):
        _raise(f"{tool.name}: {error}" for tool in tools for error in _deprecated(tool, schema))
    with report.line(f"{connector.title}: every value that an argument may have is one of its variable's type"):
        _raise(f"{tool.name}: {error}" for tool in tools for error in _refused(tool, schema))
    return len(connector.tools.keys() - wrong)


def _raise(problems: Iterator[str]) -> None:
    listed = list(problems)
    if listed:
        raise Wrong("; ".join(listed))


def _parsed(tool: Tool) -> graphql.DocumentNode:
    if tool.operation is None:
        raise Wrong(f"{tool.name} has no document")
    return graphql.parse(tool.operation.document)


def _errors(tool: Tool, schema: graphql.GraphQLSchema) -> list[str]:
    return [error.message for error in graphql.validate(schema, _parsed(tool))]


def _deprecated(tool: Tool, schema: graphql.GraphQLSchema) -> list[str]:
    return [error.message for error in graphql.validate(schema, _parsed(tool), [NoDeprecatedCustomRule])]


def _refused(tool: Tool, schema: graphql.GraphQLSchema) -> Iterator[str]:
    """Each argument with each of its samples, the required ones with their first; enums and objects whole."""
    (operation,) = _parsed(tool).definitions
    if not isinstance(operation, graphql.OperationDefinitionNode):
        raise Wrong(f"{tool.name} has no operation")
    key = {tool.operation.key_variable: "k"} if tool.operation and tool.operation.key_variable else {}
    needed = {each.name: next(samples(each.schema)) for each in tool.arguments if each.required} | key
    for argument in tool.arguments:
        for value in samples(argument.schema):
            given = needed | {argument.name: value}
            coerced: Any = get_variable_values(schema, operation.variable_definitions or (), given)
            if isinstance(coerced, list):
                yield f"{argument.name}: {coerced[0].message}"


def samples(schema: Any) -> Iterator[Any]:
    """Values of every kind that a schema admits: each of an enum, each property of an object, and a list of each."""
    if "const" in schema:
        yield schema["const"]
    elif "enum" in schema:
        yield from schema["enum"]
    elif "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from samples(part)
    elif schema["type"] == "array":
        for item in samples(schema["items"]):
            yield [item]
    elif schema["type"] == "object":
        names = schema.get("required", [])
        properties: dict[str, Any] = schema.get("properties", {})
        for name, part in properties.items():
            others = [[(other, value) for value in samples(properties[other])][:1] for other in names if other != name]
            for value, *rest in product(samples(part), *others):
                yield {name: value, **dict(rest)}
    elif schema["type"] == "string":
        yield next(text for text in _TEXTS if re.search(schema.get("pattern", ""), text))
    else:
        yield {"integer": 1, "number": 0.5, "boolean": True}[schema["type"]]


_TEXTS = ("text", "USD", "12.50", "2026-11-30")  # one of them fits any pattern that a shipped tool has
