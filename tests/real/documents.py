"""What the vendors publish of their interfaces, against our connector files: requests, and the fields that we select.

GitHub's OpenAPI document; Google's discovery documents; Stripe's own library, which Stripe generates from its
document, at the API version that the connector asks for; Slack's own library, requests only; Linear's and Shopify's
GraphQL schemas. This shows names and values, not what a call does.
"""

from collections.abc import Iterator
from typing import Protocol

import jmespath

from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Connector, Tool
from tests.real import graphql_documents, linear_library, shopify_library
from tests.real.fetching import Cache
from tests.real.github_document import GitHub
from tests.real.google_document import Google
from tests.real.report import Report, Wrong
from tests.real.shape import Missing, Shape
from tests.real.slack_library import Slack
from tests.real.stripe_library import Stripe


class Operation(Protocol):
    """A method and path, as the vendor describes it."""

    @property
    def answer(self) -> Shape: ...

    @property
    def required(self) -> frozenset[tuple[str, str]]:
        """Places and names."""
        ...

    def values(self, place: str, name: str) -> frozenset[str] | None:
        """The values that an argument may have, empty where any; None where there is no such argument."""
        ...


class Vendor(Protocol):
    """What a vendor publishes."""

    @property
    def version(self) -> str | None:
        """Of the API, where that is known."""
        ...

    @property
    def answers(self) -> bool:
        """Whether answers are described too."""
        ...

    def operation(self, method: str, path: str) -> Operation | None:
        """The operation; None where there is none."""
        ...


async def check(report: Report, cache: Cache) -> None:
    """One line for each vendor's requests, and one for their answers."""
    shipped = Catalogue.load(shipped_folder()).connectors
    with report.line("GitHub: its document is read"):
        _compare(report, shipped["github"], GitHub.read(cache), "X-GitHub-Api-Version")
    for identifier, api in (("gmail", "gmail.v1"), ("google_calendar", "calendar.v3"), ("google_drive", "drive.v3")):
        with report.line(f"{shipped[identifier].title}: its document is read"):
            _compare(report, shipped[identifier], Google.read(cache, api, shipped[identifier].base_url), "")
    with report.line("Stripe: its library is read"):
        _compare(report, shipped["stripe"], Stripe.read(cache), "Stripe-Version")
    with report.line("Slack: its library is read"):
        _compare(report, shipped["slack"], Slack.read(cache), "")
    with report.line("Linear: its library is read"):
        graphql_documents.compare(report, shipped["linear"], linear_library.read(cache))
    with report.line("Shopify: its schema is read"):
        graphql_documents.compare(report, shipped["shopify"], shopify_library.read(cache, shipped["shopify"]))


def _compare(report: Report, connector: Connector, vendor: Vendor, header: str) -> None:
    tools = [*connector.tools.values(), connector.verify]
    with report.line(f"{connector.title}: {len(tools)} requests exist, with these arguments and values"):
        _raise([problem for tool in tools for problem in _request(tool, vendor)])
    if vendor.answers:
        with report.line(f"{connector.title}: every field that is selected exists"):
            _raise([problem for tool in tools for problem in _selected(tool, vendor)])
    if vendor.version is not None:
        with report.line(f"{connector.title}: the API version is the one described"):
            asked = dict(connector.headers).get(header)
            _raise([] if asked == vendor.version else [f"we ask for {asked}, described is {vendor.version}"])


def _raise(problems: list[str]) -> None:
    if problems:
        raise Wrong("; ".join(problems))


def _request(tool: Tool, vendor: Vendor) -> Iterator[str]:
    operation = vendor.operation(tool.method, tool.path)
    if operation is None:
        yield f"{tool.name}: there is no {tool.method} {tool.path}"
        return
    sent = list(_sent(tool))
    for place, name, values in sent:
        yield from (f"{tool.name}: {problem}" for problem in _value(place, name, values, operation))
    ours = {(place, name) for place, name, _ in sent}
    for place, name in sorted(operation.required - ours):
        yield f"{tool.name}: {name} in {place} is required there"


def _sent(tool: Tool) -> Iterator[tuple[str, str, set[str]]]:
    """Place and name of all that a call may send, the path apart, and what it can be where that is known."""
    for argument in tool.arguments:
        schema = argument.schema.get("items", argument.schema)
        values = {str(value) for value in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()))}
        written = [steps for steps, _ in tool.encode if argument.steps[: len(steps)] == steps]
        if argument.place != "path":
            yield argument.place, _name(written[0]) if written else argument.wire_name, values
    yield from (("query", name, {value}) for name, value in tool.fixed_query)
    yield from (("body", _name(steps), {str(value)}) for steps, value in tool.fixed_body)


def _name(steps: tuple[str, ...]) -> str:
    return steps[0] + "".join(f"[{step}]" for step in steps[1:])


def _value(place: str, name: str, ours: set[str], operation: Operation) -> Iterator[str]:
    values = operation.values(place, name)
    if values is None:
        yield f"there is no {name} in {place}"
    elif values and ours - values:
        yield f"{name} cannot be {', '.join(sorted(ours - values))}"


def _selected(tool: Tool, vendor: Vendor) -> Iterator[str]:
    operation = vendor.operation(tool.method, tool.path)
    if operation is None or tool.output_select is None:
        return
    missing = Missing()
    missing.walk(jmespath.compile(tool.output_select.text).parsed, operation.answer)
    yield from (f"{tool.name}: its answer has no {name}" for name in missing.names)
