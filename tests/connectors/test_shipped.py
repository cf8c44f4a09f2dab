"""Every connector and every tool that is shipped keeps the same promises, and a changed one is a visible diff.

To accept a change: KEYLEASH_UPDATE_SNAPSHOTS=1 pytest tests/connectors/test_shipped.py
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jmespath
import jsonschema_rs
import pytest
import yaml

from connectors.auth import SCHEMES
from connectors.catalogue import MAX_WIRE_NAME, Catalogue, Offered, shipped_folder
from connectors.definition import HOLE, Connector, Effect, Selector, Tool
from connectors.effects import derive, derive_operation
from connectors.errors import InvalidArguments
from connectors.fileformat import json_schema
from connectors.graphql import read_document
from connectors.request import prepare, prepare_verify
from connectors.source import Spot, read_file
from server.cli.checks.accounts import announced
from server.identity import Caller
from server.listing import described
from server.prompt import EFFECTS, render
from tests.connectors.compared import NOT_DESCRIBED, fingerprint, recorded
from tests.connectors.realistic import ITEMS
from tests.connectors.sizes import MOST, lists
from tests.real.shape import Missing
from tests.samples import sample_arguments

CATALOGUE = Catalogue.load(shipped_folder())
OFFER = CATALOGUE.offer({name: name for name in CATALOGUE.connectors})
COMPARED = recorded()
AGENT = Caller("org_1", "acme", "default", 1, "agt_1", "reconciler", "mem_1", "Ann", ("member",), ())
SNAPSHOTS = Path(__file__).parent / "snapshots"

every_connector = pytest.mark.parametrize(
    "connector", CATALOGUE.connectors.values(), ids=lambda connector: connector.id
)
every_tool = pytest.mark.parametrize("offered", OFFER.tools, ids=lambda offered: offered.name)


def references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        found = [key for key in schema if key in ("$ref", "$dynamicRef", "$id", "$defs")]
        return found + [key for part in schema.values() for key in references(part)]
    return [key for part in schema for key in references(part)] if isinstance(schema, list) else []


def test_what_is_shipped_loads_without_a_problem():
    assert [str(problem) for problem in CATALOGUE.problems] == []
    assert OFFER.problems == ()
    assert set(CATALOGUE.connectors) == {
        "airtable",
        "anthropic",
        "cloudflare",
        "discord",
        "github",
        "gmail",
        "google_calendar",
        "google_drive",
        "google_gemini",
        "hubspot",
        "jira",
        "linear",
        "notion",
        "openai",
        "pagerduty",
        "sendgrid",
        "sentry",
        "shopify",
        "slack",
        "stripe",
        "twilio",
        "zendesk",
    }


# --- every connector


@every_connector
def test_a_shipped_file_is_reviewed_and_fits_the_schema_for_editors(connector: Connector):
    assert connector.reviewed
    errors = jsonschema_rs.Draft202012Validator(json_schema()).iter_errors(read_file(Path(connector.file)).plain())
    assert [error.message for error in errors] == []
    assert (
        Path(connector.file).read_text("utf-8").startswith("# yaml-language-server: $schema=../connector.schema.json\n")
    )


@every_connector
def test_a_shipped_connector_has_reads_and_acts_that_wait_for_a_person(connector: Connector):
    effects = {tool.effect for tool in connector.tools.values()}
    assert Effect.READ in effects
    assert max(effect.strictness for effect in effects) >= Effect.WRITE.strictness


@every_connector
def test_a_shipped_connector_can_be_verified_signed_in_to_and_understood_when_it_fails(connector: Connector):
    prepared = prepare_verify(connector, base_url=connector.base_url)
    assert prepared.url.startswith("https://")
    assert connector.credentials
    assert all(kind.scheme in SCHEMES and kind.label and kind.help for kind in connector.credentials)
    assert connector.errors.message is not None
    assert connector.help.startswith("https://")


@every_connector
def test_a_shipped_connectors_requests_carry_nothing_that_a_credential_will_set(connector: Connector):
    taken = {kind.name.lower() for kind in connector.credentials} | {"authorization", "cookie", "host"}
    for tool in connector.tools.values():
        headers = {argument.wire_name.lower() for argument in tool.arguments if argument.place == "header"}
        headers |= {name.lower() for name, _ in (*connector.headers, *tool.headers)}
        assert not headers & taken


# --- every tool


@every_tool
def test_a_shipped_tools_schema_is_a_closed_object_without_references(offered: Offered):
    schema = offered.tool.input_schema
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    assert references(schema) == []
    assert not {"anyOf", "oneOf", "allOf"} & schema.keys()
    assert all(part.get("description") for part in schema["properties"].values())


@every_tool
def test_a_shipped_tool_takes_its_arguments_and_its_request_stays_below_its_base(offered: Offered):
    base_url = offered.connector.base_url
    call = OFFER.bind(offered.name, sample_arguments(offered.tool))
    prepared = prepare(call, base_url=base_url)
    assert prepared.url.startswith(f"{base_url}/")
    assert "{" not in prepared.url
    required = {name: call.arguments[name] for name in offered.tool.input_schema.get("required", [])}
    assert prepare(OFFER.bind(offered.name, required), base_url=base_url).method == offered.tool.method


@every_tool
def test_a_shipped_tool_refuses_an_argument_that_it_does_not_declare(offered: Offered):
    with pytest.raises(InvalidArguments, match="no argument keyleash_unknown"):
        OFFER.bind(offered.name, sample_arguments(offered.tool) | {"keyleash_unknown": 1})
    for name in offered.tool.input_schema.get("required", []):
        with pytest.raises(InvalidArguments, match=name):
            OFFER.bind(
                offered.name, {key: value for key, value in sample_arguments(offered.tool).items() if key != name}
            )


@every_tool
def test_a_shipped_tool_says_what_it_does_and_what_a_person_agrees_to(offered: Offered):
    tool = offered.tool
    assert 10 <= len(tool.description) <= 400
    assert 3 <= len(tool.title) <= 60
    assert len(offered.name) <= MAX_WIRE_NAME
    derived = derive(tool.method, tool.path, tool.name)
    if tool.operation:
        document = read_document(Spot("", 1, tool.operation.document))
        derived = derive_operation(tool.operation.kind, document.fields, tool.operation.name, tool.name)
    assert tool.effect.strictness >= derived.strictness or tool.because
    if tool.effect is not Effect.READ:
        filled = tool.summary(sample_arguments(tool))
        assert filled
        assert "\n" not in filled
        assert "{" not in HOLE.sub("", tool.ask)
        assert filled != tool.summary({})


@cache
def tools_in(file: str) -> dict[str, Any]:
    return yaml.safe_load(Path(file).read_text("utf-8"))["tools"]


@every_tool
def test_a_shipped_tool_states_its_effect_in_its_file(offered: Offered):
    """Nothing that is shipped relies on what a method and a path suggest."""
    written = tools_in(offered.connector.file)[offered.tool.name]
    assert written["effect"] == offered.tool.effect.value
    assert offered.tool.unreviewed is None


@every_tool
def test_a_shipped_tool_tells_clients_all_four_things_about_itself(offered: Offered):
    shown = described(offered)
    assert shown is not None
    hints = shown["annotations"]
    assert sorted(hints) == ["destructiveHint", "idempotentHint", "openWorldHint", "readOnlyHint"]
    assert all(isinstance(hint, bool) for hint in hints.values())
    reads = offered.tool.effect in (Effect.READ, Effect.SENSITIVE)
    assert hints["readOnlyHint"] is reads
    assert not (hints["destructiveHint"] and reads)
    assert hints["destructiveHint"] or offered.tool.effect.strictness < Effect.SPEND.strictness


@every_tool
def test_a_person_is_shown_the_whole_of_a_shipped_tools_request(offered: Offered):
    call = OFFER.bind(offered.name, sample_arguments(offered.tool))
    request = prepare(call, base_url=offered.connector.base_url)
    prompt = render(AGENT, call, request, account="acme", ownership="own", done_before=None)
    assert prompt.whole
    lines = prompt.text.splitlines()
    assert f"Request: {request.method} {request.url.partition('?')[0]}" in [line.partition("?")[0] for line in lines]
    assert f"Tool: {offered.name}, which {EFFECTS[offered.tool.effect]} ({offered.tool.effect})" in lines
    written = [line for line in lines if line.startswith("  ")]
    assert all(any(line.startswith(f"  {name} = ") for line in written) for name in call.arguments)
    if offered.tool.effect is not Effect.READ:
        assert lines[0] != offered.tool.title, "a person is asked about this call, not about the tool"


@every_tool
def test_a_shipped_tool_is_as_it_was_when_it_was_compared_with_what_its_vendor_publishes(offered: Offered):
    of = offered.connector.id
    assert (of in NOT_DESCRIBED) != (of in COMPARED)
    if of in COMPARED:
        compared = COMPARED[of].get(offered.tool.name)
        assert compared == fingerprint(offered.connector, offered.tool), (
            "Compare it again: python -m tests.real --only documents --keep"
        )


def test_nothing_is_said_to_be_compared_that_is_gone():
    here = {(offered.connector.id, offered.tool.name) for offered in OFFER.tools}
    assert {(of, name) for of, tools in COMPARED.items() for name in tools} <= here


@every_connector
def test_what_a_vendor_has_announced_has_a_date_and_a_page(connector: Connector):
    for deprecation in connector.deprecations:
        (said,) = announced(connector.title, deprecation, datetime(2099, 1, 1, tzinfo=UTC))
        assert said.status == "warn"
        assert f"{connector.title}, since {deprecation.date}: " in said.message
        assert deprecation.see.startswith("https://")
        assert list(announced(connector.title, deprecation, datetime(2000, 1, 1, tzinfo=UTC))) == []


@every_tool
def test_only_sensitive_writing_and_sending_tools_offer_an_hour(offered: Offered):
    if offered.tool.grant:
        assert offered.tool.effect in (Effect.SENSITIVE, Effect.WRITE, Effect.SEND)


@every_tool
def test_a_shipped_tools_answer_is_shaped_without_failing_on_an_empty_one(offered: Offered):
    select = offered.tool.output_select
    if select is not None:
        for answer in ({}, [], None, "text"):
            select.search(answer)
        assert isinstance(select.search({} if not select.text.startswith("[]") else []), dict | list)


@dataclass(frozen=True)
class Asked:
    """What a GraphQL document asks for, as the shape of its answer; lists look like what is in them."""

    keys: Mapping[str, Any]

    def field(self, name: str) -> "Asked | None":
        return Asked(self.keys[name]) if name in self.keys else None

    def item(self) -> "Asked":
        return self


@pytest.mark.parametrize(
    ("tool", "select"),
    [
        *((offered.tool, offered.tool.output_select) for offered in OFFER.tools if offered.tool.operation),
        *((connector.verify, connector.account) for connector in CATALOGUE.connectors.values()),
    ],
    ids=lambda part: getattr(part, "name", "") if isinstance(part, Tool) else "",
)
def test_what_is_selected_of_a_graphql_answer_was_asked_for(tool: Tool, select: Selector | None) -> None:
    if tool.operation is None or select is None:
        return
    missing = Missing()
    missing.walk(jmespath.compile(select.text).parsed, Asked(tool.operation.answers))
    assert missing.names == []


LISTS = [pytest.param(offered, heard, id=offered.name) for offered, heard in lists()]


@pytest.mark.parametrize(("offered", "heard"), LISTS)
def test_thirty_things_of_any_list_are_told_whole_and_in_few_bytes(offered: Offered, heard: str):
    told = json.loads(heard)
    assert ITEMS in [len(value) for value in told.values() if isinstance(value, list)]
    assert "note_on_length" not in told
    assert len(heard.encode()) <= MOST


def test_no_list_is_left_out_of_what_is_measured():
    """A tool that takes the place of a page is one of a list, whatever it is called."""
    pages = {"limit", "page", "per_page", "page_size", "max_results", "first", "size", "cursor", "offset"}
    paged = {each.name for each in OFFER.tools if pages & each.tool.input_schema["properties"].keys()}
    assert paged <= {offered.name for offered, _ in lists()}


@every_tool
def test_a_shipped_tool_is_as_committed(offered: Offered):
    tool = offered.tool
    prepared = prepare(OFFER.bind(offered.name, sample_arguments(tool)), base_url=offered.connector.base_url)
    now: dict[str, Any] = {
        "name": offered.name,
        "title": tool.title,
        "description": tool.description,
        "effect": tool.effect.value,
        "ask": tool.summary(sample_arguments(tool)),
        "grant": list(tool.grant),
        "plain": list(tool.plain),
        "input_schema": tool.input_schema,
        "select": tool.output_select.text if tool.output_select else None,
        "redact": list(tool.output_redact),
        "request": {
            "line": f"{prepared.method} {prepared.url}",
            "headers": dict(prepared.headers),
            "body": prepared.body.decode() if prepared.body is not None else None,
        },
    }
    if tool.output_brief:
        now["brief"] = tool.output_brief
    file = SNAPSHOTS / offered.connector.id / f"{tool.name}.json"
    if os.environ.get("KEYLEASH_UPDATE_SNAPSHOTS"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert file.is_file(), "There is no snapshot of this tool yet."
    assert json.loads(file.read_text("utf-8")) == now, "If this change is meant, write the snapshot again."


def test_there_is_no_snapshot_of_a_tool_that_is_gone():
    committed = {f"{file.parent.name}_{file.stem}" for file in SNAPSHOTS.glob("*/*.json")}
    assert committed == {offered.name for offered in OFFER.tools}
