"""A connector file of kind openapi offers what it names of its pinned document, and is refused whole otherwise."""

import hashlib
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from connectors.catalogue import Catalogue
from connectors.definition import Call, Connector, Effect, Tool
from connectors.errors import DefinitionError, InvalidArguments, Unsendable
from connectors.loading import load
from connectors.request import Prepared, prepare

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "paths": {
        "/shops/{ShopId}/notes": {
            "get": {
                "operationId": "listNotes",
                "parameters": [
                    {"name": "ShopId", "in": "path", "required": True, "schema": {"type": "string"}},
                    {"name": "created", "in": "query", "style": "deepObject", "schema": {"type": "object"}},
                    {"name": "ids", "in": "query", "explode": False, "schema": {"type": "array"}},
                    {"name": "state", "in": "query", "schema": {"type": "string", "enum": ["open", "closed"]}},
                    {"name": "where", "in": "query", "content": {"application/json": {"schema": {}}}},
                    {"name": "X-Version", "in": "header", "required": True, "schema": {"type": "string"}},
                    {"name": "X-Trace", "in": "header", "schema": {"type": "array", "items": {"type": "string"}}},
                ],
            },
            "post": {
                "operationId": "createNote",
                "parameters": [{"name": "ShopId", "in": "path", "required": True, "schema": {"type": "string"}}],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": ["item"],
                                "properties": {
                                    "item": {"type": "string"},
                                    "giftNote": {"type": "string"},
                                    "lines": {"type": "array", "items": {"type": "object"}},
                                },
                            }
                        }
                    },
                },
            },
        },
        "/notes/batch": {
            "put": {
                "operationId": "putNotes",
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/vnd.shop+json": {"schema": {"type": "array", "items": {"type": "string"}}}
                    },
                },
            }
        },
        "/files/{path}": {
            "get": {
                "operationId": "readFile",
                "parameters": [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}],
            },
            "delete": {
                "operationId": "dropFile",
                "parameters": [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}],
            },
        },
        "/form": {
            "post": {
                "operationId": "sendForm",
                "requestBody": {
                    "content": {
                        "application/x-www-form-urlencoded": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "To": {"type": "string"},
                                    "Events": {"type": "array", "items": {"type": "string"}},
                                    "Meta": {"type": "object"},
                                },
                            }
                        }
                    }
                },
            }
        },
    },
}
CONTENT = json.dumps(DOCUMENT).encode()

FILE = """\
id: shop
title: Shop
kind: openapi
reviewed: true
base_url: https://api.shop.example/v1
document: shop.openapi.json
sha256: "{sha256}"
headers: {{X-Version: "7"}}
credentials: {{key: {{label: Key, help: There., scheme: header, name: X-Key}}}}
verify: {{call: GET /me}}
tools:
{tools}
"""

LIST = """\
  list_notes:
    title: List notes
    description: Notes of a shop.
    operation: listNotes
    effect: read
"""


def write(folder: Path, tools: str, content: bytes = CONTENT, **changes: str) -> Path:
    """A connector file beside its document."""
    text = FILE.format(sha256=hashlib.sha256(CONTENT).hexdigest(), tools=tools.rstrip())
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "shop.openapi.json").write_bytes(content)
    (folder / "shop.yaml").write_text(text)
    return folder / "shop.yaml"


def loaded(folder: Path, tools: str, **changes: str) -> Connector:
    return load(write(folder, tools, **changes))


def one(folder: Path, tools: str) -> Tool:
    (tool,) = loaded(folder, tools).tools.values()
    return tool


def sent(folder: Path, tools: str, **arguments: Any) -> Prepared:
    """The request of the file's one tool with these arguments."""
    connector = loaded(folder, tools)
    (tool,) = connector.tools.values()
    offer = Catalogue({"shop": connector}).offer({"shop": "shop"})
    return prepare(offer.bind(f"shop_{tool.name}", arguments), base_url=connector.base_url)


def refused(folder: Path, tools: str, content: bytes = CONTENT, **changes: str) -> str:
    with pytest.raises(DefinitionError) as error:
        load(write(folder, tools, content, **changes))
    return str(error.value)


# --- what is offered and sent


def test_an_operation_is_a_tool_like_any_other(tmp_path: Path) -> None:
    tool = one(tmp_path, LIST)
    assert (tool.method, tool.path, tool.effect) == ("GET", "/shops/{shop_id}/notes", Effect.READ)
    assert tool.input_schema["required"] == ["shop_id"]
    assert list(tool.input_schema["properties"]) == ["shop_id", "created", "ids", "state", "where", "x_trace"]
    assert tool.input_schema["additionalProperties"] is False
    request = sent(
        tmp_path, LIST, shop_id="a b", created={"gte": 1, "lt": 2}, ids=["x", "y"], state="open", x_trace=["t", "u"]
    )
    parts = urlsplit(request.url)
    assert parts.path == "/v1/shops/a%20b/notes"
    assert parse_qsl(parts.query) == [("created[gte]", "1"), ("created[lt]", "2"), ("ids", "x,y"), ("state", "open")]
    headers = dict(request.headers)
    assert (headers["X-Version"], headers["X-Trace"], request.body) == ("7", "t,u", None)


@pytest.mark.parametrize(("value", "text"), [({"a": [1]}, '{"a":[1]}'), ("a", '"a"'), (None, "null")])
def test_a_parameter_whose_content_is_json_is_written_as_json(tmp_path: Path, value: Any, text: str) -> None:
    assert parse_qsl(urlsplit(sent(tmp_path, LIST, shop_id="1", where=value).url).query) == [("where", text)]


def test_a_header_that_the_connector_sends_is_no_argument(tmp_path: Path) -> None:
    keyed = {"credentials:": "idempotency: {header: X-Trace, methods: [POST]}\ncredentials:"}
    (tool,) = loaded(tmp_path, LIST, **keyed).tools.values()
    assert not {"x_trace", "x_version"} & tool.input_schema["properties"].keys()


def test_only_what_is_listed_is_offered_and_the_required_always(tmp_path: Path) -> None:
    text = LIST + "    arguments: [state]\n"
    assert list(one(tmp_path, text).input_schema["properties"]) == ["shop_id", "state"]
    with pytest.raises(InvalidArguments, match="no argument ids"):
        sent(tmp_path, text, shop_id="1", ids=["1"])


def test_an_argument_that_is_fixed_is_sent_with_every_call_and_is_not_offered(tmp_path: Path) -> None:
    text = LIST + "    fixed: {state: closed, shop_id: s-1, x_trace: [t]}\n"
    assert "Outside of JSON a fixed value" in refused(tmp_path, text)
    text = LIST + "    fixed: {state: closed, shop_id: s-1}\n    arguments: []\n"
    assert one(tmp_path, text).input_schema["properties"] == {}
    assert sent(tmp_path, text).url == "https://api.shop.example/v1/shops/s-1/notes?state=closed"
    with pytest.raises(InvalidArguments):
        sent(tmp_path, text, state="open")


def test_a_fixed_value_of_a_body_is_sent_in_it(tmp_path: Path) -> None:
    text = (
        "  create_note:\n    title: T\n    description: D.\n    operation: createNote\n    effect: write\n"
        "    ask: Note {item}\n    rename: {gift_note: note}\n    fixed: {lines: [{sku: 1}]}\n"
    )
    request = sent(tmp_path, text, shop_id="1", item="tea", note="hi")
    assert json.loads(request.body or b"") == {"lines": [{"sku": 1}], "item": "tea", "giftNote": "hi"}
    assert dict(request.headers)["Content-Type"] == "application/json"


def test_a_body_that_is_a_list_is_sent_whole_in_its_own_media_type(tmp_path: Path) -> None:
    text = (
        "  put_notes:\n    title: T\n    description: D.\n    operation: PUT /notes/batch\n    effect: write\n"
        "    ask: Put {body}\n"
    )
    request = sent(tmp_path, text, body=["a", "b"])
    assert (request.body, dict(request.headers)["Content-Type"]) == (b'["a","b"]', "application/vnd.shop+json")


def test_a_form_repeats_lists_and_nests_objects(tmp_path: Path) -> None:
    text = "  form:\n    title: T\n    description: D.\n    operation: sendForm\n    effect: send\n    ask: Send {to}\n"
    request = sent(tmp_path, text, to="+1", events=["a", "b"], meta={"x": {"y": 1}})
    assert request.body == b"To=%2B1&Events=a&Events=b&Meta%5Bx%5D%5By%5D=1"
    assert dict(request.headers)["Content-Type"] == "application/x-www-form-urlencoded"


READ_FILE = "  read_file:\n    title: T\n    description: D.\n    operation: readFile\n    effect: read\n"


def test_a_path_argument_holds_one_segment_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    with pytest.raises(Unsendable):
        sent(tmp_path, READ_FILE, path="a/b")
    open_to = READ_FILE + "    slashes: [path]\n"
    assert sent(tmp_path, open_to, path="a/b").url.endswith("/files/a/b")
    for climbing in ("../b", "a/..", "a/%2e%2e/b", "a//b"):
        with pytest.raises(Unsendable):
            sent(tmp_path, open_to, path=climbing)


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}]])
def test_a_value_that_a_query_cannot_hold_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(Unsendable, match="ids takes plain values"):
        prepare(_unchecked(loaded(tmp_path, LIST), ids=value), base_url="https://api.shop.example/v1")
    with pytest.raises(Unsendable, match="may not hold a comma"):
        sent(tmp_path, LIST, shop_id="1", ids=["a,b"])


def _unchecked(connector: Connector, **arguments: Any) -> Call:
    (tool,) = connector.tools.values()
    return Call("shop", connector, tool, "shop_x", {"shop_id": "1", **arguments})


# --- what is refused, with its line

WRONG: list[tuple[str, int, str]] = [
    (LIST.replace("listNotes", "listNote"), 15, "Did you mean 'listNotes'"),
    (LIST + "    arguments: [stat]\n", 17, "no argument 'stat'"),
    (LIST + "    arguments: [state, state]\n", 17, "'state' is there twice"),
    (LIST + "    fixed: {state: open}\n    arguments: [state]\n", 18, "'state' is fixed"),
    (LIST + "    fixed: {state: gone}\n", 17, "does not let state have this value"),
    (LIST + "    fixed: {shop_id: a/b}\n", 17, "cannot be a part of a path"),
    (LIST + "    fixed: {shop_id: ..}\n", 17, "cannot be a part of a path"),
    (LIST + "    fixed: {other: 1}\n", 17, "no argument 'other'"),
    (LIST + "    rename: {state: ids}\n", 17, "already an argument 'ids'"),
    (LIST + "    rename: {state: Bad}\n", 17, "The new name cannot be 'Bad'"),
    (LIST + "    rename: {gone: new}\n", 17, "no argument 'gone'"),
    (LIST + "    slashes: [state]\n", 17, "no path argument"),
    (LIST + "    absent: {gone: x}\n", 17, "no argument that is offered"),
    (LIST + "    call: GET /notes\n", 17, "has no key 'call'"),
    (LIST + "    encode: {raw: mail}\n", 17, "has no key 'encode'"),
    (LIST + "    grant: [gone]\n", 17, "cannot be 'gone'"),
    (LIST.replace("    effect: read\n", ""), 12, "states every effect"),
    (LIST.replace("listNotes", "createNote"), 16, "milder than write"),
    (READ_FILE.replace("readFile", "dropFile"), 16, "milder than destroy"),
    (
        "  put:\n    title: T\n    description: D.\n    operation: putNotes\n    effect: write\n    ask: x {body}\n"
        "    fixed: {body: [a]}\n",
        18,
        "A whole body cannot be fixed",
    ),
]


@pytest.mark.parametrize(("tools", "line", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_what_the_document_does_not_have_is_refused_with_its_line(
    tmp_path: Path, tools: str, line: int, says: str
) -> None:
    said = refused(tmp_path, tools)
    assert says in said
    assert said.startswith(f"{tmp_path / 'shop.yaml'}:{line}: "), said


def test_another_document_than_the_pinned_one_leaves_the_connector_out(tmp_path: Path) -> None:
    changed = CONTENT.replace(b"listNotes", b"listNotez")
    said = refused(tmp_path, LIST, changed)
    assert "not the one that was pinned" in said
    assert hashlib.sha256(changed).hexdigest() in said
    catalogue = Catalogue.load(tmp_path)
    assert "shop" not in catalogue.connectors
    assert [problem.line for problem in catalogue.problems] == [7]
    offer = catalogue.offer({"shop": "shop"})
    assert (offer.tools, len(offer.problems)) == ((), 1)


def test_a_document_stands_beside_its_file_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("../shop.openapi.json", "/etc/passwd", "inner/../shop.openapi.json", "shop.yaml", ".json"):
        said = refused(tmp_path / "inner", LIST, **{"document: shop.openapi.json": f"document: {name}"})
        assert "The document cannot be" in said
    said = refused(tmp_path, LIST, **{"shop.openapi.json": "gone.json"})
    assert "cannot be read: No such file" in said


def test_a_document_is_bounded_and_is_json(tmp_path: Path) -> None:
    large = CONTENT + b" " * (8 << 20)
    pinned = {hashlib.sha256(CONTENT).hexdigest(): hashlib.sha256(large).hexdigest()}
    assert "larger than 8 MiB" in refused(tmp_path, LIST, large, **pinned)
    yaml = b"openapi: 3.0.0\npaths: {}\n"
    pinned = {hashlib.sha256(CONTENT).hexdigest(): hashlib.sha256(yaml).hexdigest()}
    assert "This is not JSON" in refused(tmp_path, LIST, yaml, **pinned)


def test_a_definition_is_another_one_when_anything_that_is_sent_changes(tmp_path: Path) -> None:
    before = one(tmp_path, LIST).definition_hash
    assert one(tmp_path, LIST).definition_hash == before
    other = json.dumps(DOCUMENT).replace('"style": "deepObject", ', "").encode()
    pinned = {hashlib.sha256(CONTENT).hexdigest(): hashlib.sha256(other).hexdigest()}
    (tool,) = load(write(tmp_path, LIST, other, **pinned)).tools.values()
    assert tool.definition_hash != before


# --- until it is reviewed


def unreviewed(folder: Path, tools: str) -> Connector:
    return loaded(folder, tools, **{"reviewed: true": "reviewed: false"})


SEND = "  create:\n    title: T\n    description: D.\n    operation: createNote\n    ask: Note {item}\n"


def test_until_it_is_reviewed_what_reads_is_asked_about_and_what_writes_is_never_free(tmp_path: Path) -> None:
    ask = "    ask: List {shop_id}\n    grant: [shop_id]\n"
    tools = {name: tool.effect for name, tool in unreviewed(tmp_path, LIST + ask + SEND).tools.items()}
    assert tools == {"list_notes": Effect.SENSITIVE, "create": Effect.SEND}
    reviewed = loaded(tmp_path, LIST + ask + SEND + "    effect: write\n").tools
    assert {name: tool.effect for name, tool in reviewed.items()} == {
        "list_notes": Effect.READ,
        "create": Effect.WRITE,
    }


def test_until_it_is_reviewed_a_read_needs_its_ask_and_a_write_has_no_hour(tmp_path: Path) -> None:
    changes = {"reviewed: true": "reviewed: false"}
    assert "asked for its reads too" in refused(tmp_path, LIST, **changes)
    for effect in ("", "    effect: send\n"):
        assert "only its reads are offered an hour" in refused(
            tmp_path, SEND + effect + "    grant: [shop_id]\n", **changes
        )


def test_a_reviewed_file_may_offer_an_hour_for_a_write(tmp_path: Path) -> None:
    assert one(tmp_path, SEND + "    effect: write\n    grant: [shop_id]\n").grant == ("shop_id",)
