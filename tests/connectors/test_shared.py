"""What several orgs may use with one account: exactly these tools, and none of their arguments reaches across."""

from pathlib import Path
from typing import Any

import pytest

from connectors.catalogue import Catalogue, Offered, is_shipped, shipped_folder
from connectors.definition import Connector, Effect
from connectors.errors import DefinitionError, InvalidArguments
from connectors.loading import load, parse
from connectors.request import prepare

CATALOGUE = Catalogue.load(shipped_folder())

SHARED: dict[str, dict[str, set[str]]] = {
    "openai": {
        "create_response": {"model", "input", "instructions", "max_output_tokens", "temperature"},
        "create_embedding": {"model", "input", "dimensions", "encoding_format"},
        "create_moderation": {"model", "input"},
    },
    "anthropic": {
        "list_models": {"limit", "after_id", "before_id"},
        "get_model": {"model_id"},
        "count_tokens": {"model", "messages", "system"},
        "create_message": {"model", "max_tokens", "messages", "system", "temperature", "stop_sequences"},
    },
    "google_gemini": {
        "list_models": {"page_size", "page_token"},
        "generate_content": {"model", "contents", "system", "max_output_tokens", "temperature"},
        "count_tokens": {"model", "text"},
        "embed_content": {"model", "text", "task_type", "dimensions"},
    },
}
"""Connector → shared tool → its arguments, each looked at: none of them names what an org has put at the provider."""

OFFERED = CATALOGUE.offer({name: name for name in CATALOGUE.connectors}, shared=set(CATALOGUE.connectors)).tools


@pytest.mark.parametrize("connector", CATALOGUE.connectors.values(), ids=lambda connector: connector.id)
def test_a_connector_shares_exactly_what_is_stated_here(connector: Connector):
    shared = {tool.name: {each.name for each in tool.arguments} for tool in connector.tools.values() if tool.shared}
    assert shared == SHARED.get(connector.id, {})


def test_an_offer_of_shared_connections_has_their_shared_tools_and_no_others():
    assert {each.name for each in OFFERED} == {f"{name}_{tool}" for name, tools in SHARED.items() for tool in tools}
    mixed = CATALOGUE.offer({"openai": "openai", "mine": "openai"}, shared={"openai"})
    assert mixed.find("openai_delete_file") is None
    assert mixed.find("mine_delete_file") is not None


@pytest.mark.parametrize("offered", OFFERED, ids=lambda offered: offered.name)
def test_a_shared_tool_reads_or_runs_up_the_bill_and_takes_nothing_that_was_not_declared(offered: Offered):
    assert offered.tool.effect in (Effect.READ, Effect.METERED)
    assert all(argument.place != "header" for argument in offered.tool.arguments)
    for schema in _objects(offered.tool.input_schema):
        assert schema["additionalProperties"] is False, "what it does not name could name what is another org's"


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list | tuple):
        return [found for part in schema for found in _objects(part)]
    if not hasattr(schema, "items"):
        return []
    own = [schema] if schema.get("type") == "object" else []
    return own + [found for key, part in schema.items() if key != "enum" for found in _objects(part)]


SOUND: dict[str, dict[str, Any]] = {
    "openai_create_response": {"model": "gpt-5", "input": [{"role": "user", "content": "x"}]},
    "openai_create_embedding": {"model": "text-embedding-3-small", "input": "x"},
    "openai_create_moderation": {"model": "omni-moderation-latest", "input": "x"},
    "anthropic_create_message": {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
    "anthropic_count_tokens": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    "google_gemini_generate_content": {"model": "models/m", "contents": [{"role": "user", "parts": [{"text": "x"}]}]},
    "google_gemini_count_tokens": {"model": "models/m", "text": "x"},
    "google_gemini_embed_content": {"model": "models/m", "text": "x"},
}
_ITEM = {"role": "user", "content": "x"}

ACROSS: list[tuple[str, dict[str, Any]]] = [
    ("openai_create_response", {"model": "ft:gpt-4.1:other::1"}),
    ("openai_create_response", {"model": "curie:ft-other-2022"}),
    ("openai_create_response", {"previous_response_id": "resp_1"}),
    ("openai_create_response", {"store": True}),
    ("openai_create_response", {"conversation": "conv_1"}),
    ("openai_create_response", {"background": True}),
    ("openai_create_response", {"metadata": {"a": "b"}}),
    ("openai_create_response", {"prompt_cache_key": "k"}),
    ("openai_create_response", {"prompt": {"id": "pmpt_1"}}),
    ("openai_create_response", {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}),
    ("openai_create_response", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}),
    ("openai_create_response", {"input": [{**_ITEM, "type": "item_reference", "id": "msg_1"}]}),
    ("openai_create_embedding", {"model": "ft:x"}),
    ("openai_create_moderation", {"model": "ft:x"}),
    ("anthropic_create_message", {"container": "container_1"}),
    ("anthropic_create_message", {"metadata": {"user_id": "x"}}),
    ("anthropic_create_message", {"messages": [{"role": "user", "content": [{"type": "document"}]}]}),
    ("anthropic_create_message", {"messages": [{**_ITEM, "cache_control": {"type": "ephemeral"}}]}),
    ("anthropic_count_tokens", {"messages": [{"role": "user", "content": [{"file_id": "file_1"}]}]}),
    ("google_gemini_generate_content", {"model": "tunedModels/others"}),
    ("google_gemini_generate_content", {"model": "cachedContents/others"}),
    ("google_gemini_generate_content", {"cachedContent": "cachedContents/1"}),
    (
        "google_gemini_generate_content",
        {"contents": [{"role": "user", "parts": [{"text": "x", "fileData": {"fileUri": "files/1"}}]}]},
    ),
    ("google_gemini_count_tokens", {"model": "tunedModels/others"}),
    ("google_gemini_embed_content", {"model": "tunedModels/others"}),
]
"""Ways to what another org has put at the provider, each in place of a part of what is sound."""


@pytest.mark.parametrize(("name", "change"), ACROSS, ids=str)
def test_no_argument_of_a_shared_tool_reaches_what_another_org_has_put_there(name: str, change: dict[str, Any]):
    offer = CATALOGUE.offer({each: each for each in SHARED}, shared=set(SHARED))
    offer.bind(name, SOUND[name])
    with pytest.raises(InvalidArguments):
        offer.bind(name, SOUND[name] | change)


def test_an_answer_of_a_shared_tool_is_never_kept_for_later():
    offer = CATALOGUE.offer({"openai": "openai"}, shared={"openai"})
    call = offer.bind("openai_create_response", {"model": "gpt-5", "input": "x"})
    sent = prepare(call, base_url="https://api.openai.com/v1")
    assert sent.body is not None
    assert b'"store":false' in sent.body


WRITES = """
id: notes
title: Notes
reviewed: {reviewed}
base_url: https://notes.example.com
credentials: {{key: {{label: key, help: here, scheme: bearer}}}}
verify: {{call: GET /me}}
tools:
  one:
    title: One
    description: One thing.
    call: {call}
    effect: {effect}
    because: the test says so
    ask: do it
    shared: {shared}
"""


@pytest.mark.parametrize("effect", [each for each in Effect if each not in (Effect.READ, Effect.METERED)])
def test_a_tool_that_changes_something_or_reads_what_is_peoples_own_is_not_shared(effect: Effect):
    with pytest.raises(DefinitionError, match="not safe where several organisations") as refused:
        parse(WRITES.format(reviewed="true", call="POST /x", effect=effect, shared="true"), "notes.yaml")
    assert refused.value.line == 16


def test_only_a_reviewed_file_shares_and_only_by_a_plain_word():
    shared = {"call": "GET /x", "effect": "read"}
    assert parse(WRITES.format(reviewed="true", shared="true", **shared), "notes.yaml").tools["one"].shared
    assert not parse(WRITES.format(reviewed="true", shared="false", **shared), "notes.yaml").tools["one"].shared
    with pytest.raises(DefinitionError, match="Only a reviewed file"):
        parse(WRITES.format(reviewed="false", shared="true", **shared), "notes.yaml")
    with pytest.raises(DefinitionError, match="Shared"):
        parse(WRITES.format(reviewed="true", shared="'yes'", **shared), "notes.yaml")


def test_a_file_of_the_same_id_elsewhere_is_not_the_shipped_one(tmp_path: Path):
    copied = tmp_path / "openai.yaml"
    copied.write_bytes((shipped_folder() / "openai.yaml").read_bytes())
    assert not is_shipped(load(copied))
    assert is_shipped(CATALOGUE.connectors["openai"])
    assert Catalogue.load(shipped_folder(), tmp_path).connectors["openai"].file == CATALOGUE.connectors["openai"].file
