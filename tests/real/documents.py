"""What the vendors publish of their interfaces, against our connector files: requests, and the fields that we select.

Out of packages: GitHub's, OpenAI's and Anthropic's OpenAPI documents; Google's discovery documents; Stripe's own
library, which Stripe generates from its document, at the API version that the connector asks for; Slack's own library,
requests only; Linear's and Shopify's GraphQL schemas. The others' OpenAPI documents out of KEYLEASH_REAL_DOCUMENTS,
where they are there. This shows names and values, not what a call does.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import graphql
import jmespath

from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Connector, Tool, canonical
from tests.connectors.compared import keep
from tests.connectors.sizes import LISTING, hear
from tests.real import graphql_documents, linear_library, shopify_library
from tests.real.fetching import Cache
from tests.real.google_document import Google
from tests.real.openapi_documents import github_document, model_document
from tests.real.openapi_vendor import OpenApi
from tests.real.report import CannotRun, Report, Wrong
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


async def check(report: Report, cache: Cache, *, kept: bool = False) -> None:
    """One line for each vendor's requests and answers, and one that counts.

    With `kept`, connectors of which every tool is as its vendor describes it are recorded for the ordinary run.
    """
    shipped = Catalogue.load(shipped_folder()).connectors
    matched: dict[str, int] = {}
    for identifier, connector in sorted(shipped.items()):
        with report.line(f"{connector.title}: what its vendor publishes is read") as notes:
            source = SOURCES.get(identifier) or _own
            matched[identifier] = source(report, cache, connector)
            notes.append(f"{matched[identifier]} of {len(connector.tools)} tools")
        if kept and matched.get(identifier) == len(connector.tools):
            keep(connector)
    with report.line("tools whose requests are as their vendor describes them") as notes:
        tools = sum(len(connector.tools) for connector in shipped.values())
        notes.append(f"{sum(matched.values())} of {tools}, of {len(matched)} of {len(shipped)} connectors")


Source = Callable[[Report, Cache, Connector], int]


def _described(vendor: Callable[[Cache, Connector], "Vendor"], header: str = "") -> Source:
    def compare(report: Report, cache: Cache, connector: Connector) -> int:
        return _compare(report, connector, vendor(cache, connector), header)

    return compare


def _in_graphql(schema: Callable[[Cache, Connector], graphql.GraphQLSchema]) -> Source:
    def compare(report: Report, cache: Cache, connector: Connector) -> int:
        return graphql_documents.compare(report, connector, schema(cache, connector))

    return compare


def _google(api: str) -> Source:
    return _described(lambda cache, connector: Google.read(cache, api, connector.base_url))


def _models(vendor: str) -> Source:
    def read(cache: Cache, connector: Connector) -> OpenApi:
        return OpenApi.read([model_document(cache, vendor)], connector.base_url)

    return _described(read)


def _own(report: Report, cache: Cache, connector: Connector) -> int:
    """Documents that no package carries, out of a folder named after the connector."""
    folder = os.environ.get("KEYLEASH_REAL_DOCUMENTS")
    files = sorted((Path(folder) / connector.id).glob("*.*")) if folder else []
    if not files:
        raise CannotRun(f"no package carries a document; KEYLEASH_REAL_DOCUMENTS/{connector.id} may")
    where = connector.example_url or connector.base_url
    return _compare(report, connector, OpenApi.read(files, where, WRITTEN.get(connector.id, ("", ""))), "")


SOURCES: dict[str, Source] = {
    "anthropic": _models("anthropic"),
    "github": _described(lambda cache, connector: OpenApi.read([github_document(cache)], connector.base_url)),
    "gmail": _google("gmail.v1"),
    "google_calendar": _google("calendar.v3"),
    "google_drive": _google("drive.v3"),
    "google_gemini": _described(
        lambda cache, connector: Google.of(model_document(cache, "gemini"), connector.base_url)
    ),
    "linear": _in_graphql(lambda cache, _: linear_library.read(cache)),
    "openai": _models("openai"),
    "shopify": _in_graphql(shopify_library.read),
    "slack": _described(lambda cache, _: Slack.read(cache)),
    "stripe": _described(lambda cache, _: Stripe.read(cache), "Stripe-Version"),
}
"""Of all others the documents are one's own: `KEYLEASH_REAL_DOCUMENTS/CONNECTOR/*.json`."""

WRITTEN = {"jira": ("/rest/api/2/", "/rest/api/3/")}
"""Atlassian describes version 3; version 2, which takes texts as texts, has the same calls."""


def _compare(report: Report, connector: Connector, vendor: Vendor, header: str) -> int:
    """How many of the connector's tools are as the vendor describes them."""
    tools = [*connector.tools.values(), connector.verify]
    known = ACCEPTED.get(connector.id, {})
    sent = {tool.name: set(_request(connector, tool, vendor)) for tool in tools}
    selected = {tool.name: set(_selected(tool, vendor) if vendor.answers else ()) for tool in tools}
    what = "requests exist, with these arguments and values" + (
        "; every field that is selected exists" if vendor.answers else ""
    )
    with report.line(f"{connector.title}: {len(tools)} {what}") as notes:
        notes += [f"{name}: {accepted.why}" for name, accepted in known.items()]
        _raise([problem for name in sent for problem in _unlike(name, sent[name] | selected[name], known.get(name))])
    if isinstance(vendor, OpenApi):
        with report.line(f"{connector.title}: what is heard of thirty things") as notes:
            notes.extend(_heard(connector, vendor))
    if vendor.version is not None:
        with report.line(f"{connector.title}: the API version is the one described"):
            asked = dict(connector.headers).get(header)
            _raise([] if asked == vendor.version else [f"we ask for {asked}, described is {vendor.version}"])
    unlike = {name for name in sent if list(_unlike(name, sent[name] | selected[name], known.get(name)))}
    return len(connector.tools.keys() - unlike)


@dataclass(frozen=True)
class Accepted:
    """What a tool leaves out though its document requires it, or selects though that has none; why it stays so."""

    why: str
    left_out: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()


def _unlike(name: str, wrong: set[str], accepted: Accepted | None) -> Iterator[str]:
    """Problems that are not accepted, and accepted ones that are gone."""
    known = {f"{each} in body is required there" for each in accepted.left_out} if accepted else set[str]()
    known |= {f"its answer has no {each}" for each in accepted.selected} if accepted else set[str]()
    yield from (f"{name}: {problem}" for problem in sorted(wrong - known))
    yield from (f"{name}: this is no longer so: {problem}" for problem in sorted(known - wrong))


_SEARCH = Accepted("the document requires every field of a search; HubSpot's guide sends an empty object", ("sorts",))
ACCEPTED: dict[str, dict[str, Accepted]] = {
    "hubspot": {
        **{f"search_{kind}": _SEARCH for kind in ("contacts", "companies", "deals")},
        "create_contact": Accepted(
            "the document requires every field; HubSpot's guide leaves it out", ("associations",)
        ),
    },
    "notion": {
        "get_me": Accepted("Notion's reference has it, its document not", selected=("workspace_name",)),
    },
    "sentry": {
        "update_issue": Accepted(
            "the document requires every field of a change in part",
            (
                *("discard", "hasSeen", "inbox", "isBookmarked", "isPublic", "isSubscribed", "merge"),
                *("statusDetails", "substatus"),
            ),
        )
    },
}
"""By connector and tool."""


def _heard(connector: Connector, vendor: OpenApi) -> Iterator[str]:
    """For each tool that lists, of an answer with everything that is described, how much reaches the model."""
    offer = Catalogue.load(shipped_folder()).offer({connector.id: connector.id})
    for offered in (each for each in offer.tools if each.tool.name.startswith(LISTING)):
        operation = vendor.operation(offered.tool.method, offered.tool.path)
        if operation is not None:
            body = operation.answer.sample()
            yield f"{offered.tool.name} {len(json.dumps(body)) / 1000:.0f} kB: {len(hear(offered, body)) / 1000:.0f} kB"


def _raise(problems: list[str]) -> None:
    if problems:
        raise Wrong("; ".join(problems))


def _request(connector: Connector, tool: Tool, vendor: Vendor) -> Iterator[str]:
    operation = vendor.operation(tool.method, tool.path)
    if operation is None:
        yield f"there is no {tool.method} {tool.path}"
        return
    sent = list(_sent(tool))
    for place, name, values in sent:
        yield from _value(place, name, values, operation)
    ours = {(place, part) for place, name, _ in sent for part in (name, name.partition("[")[0])}
    ours |= {("header", name.lower()) for name, _ in (*connector.headers, *tool.headers)} | {("header", "accept")}
    yield from (f"{name} in {place} is required there" for place, name in sorted(operation.required - ours))


def _sent(tool: Tool) -> Iterator[tuple[str, str, set[str]]]:
    """Place and name of all that a call may send, the path apart, and what it can be where that is known."""
    for argument in tool.arguments:
        schema = argument.schema.get("items", argument.schema)
        values = {str(value) for value in (*schema.get("enum", ()), *([schema["const"]] if "const" in schema else ()))}
        written = [steps for steps, _ in tool.encode if argument.steps[: len(steps)] == steps]
        if argument.place != "path":
            name = _name(written[0]) if written else argument.wire_name
            yield argument.place, name.lower() if argument.place == "header" else name, values
    yield from (("query", name, {value}) for name, value in tool.fixed_query)
    for steps, value in tool.fixed_body:
        values = value if isinstance(value, list) else [value]
        yield "body", _name(steps), {canonical(each).strip('"') for each in values if not isinstance(each, dict)}


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
    yield from (f"its answer has no {name}" for name in missing.names)
