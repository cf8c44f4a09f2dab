"""A slice says what the whole document does; the file that is written loads, and errs on the strict side."""

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.arguments import Taken
from connectors.compiling import arguments, outline
from connectors.definition import Connector, Effect, canonical
from connectors.document import Described, Document, DocumentError, read_document
from connectors.importing import TOO_LARGE, Draft, candidate, draft, search
from connectors.loading import load
from connectors.slicing import cut
from tests.connectors.documents import Json, body, document

WORD = {"type": "string"}


def operations(*described: tuple[str, str, Json], **more: Any) -> Document:
    """A document with these operations: method, path and the rest."""
    paths: dict[str, Json] = {}
    for method, path, rest in described:
        paths.setdefault(path, {})[method] = {"operationId": f"{method}{path}", **rest}
    servers = {"servers": [{"url": "https://api.things.example/v2/"}]}
    return document(paths=paths, **{**servers, **more})


def drafted(whole: Document, folder: Path, *calls: str, source: str = "things.json") -> tuple[Draft, Connector]:
    """What is written for these operations, or all; and what it loads as."""
    chosen = [whole.find(call) for call in calls] or list(whole.operations())
    made = draft(whole, chosen, identifier="things", source=source)
    (folder / "things.openapi.json").write_bytes(made.document)
    (folder / "things.yaml").write_text(made.text)
    return made, load(folder / "things.yaml")


# --- slices


def said(whole: Document, described: Described) -> str:
    found = outline(whole, described, Taken(frozenset(), frozenset()))
    made = arguments(whole, found.inputs, described.part)
    listed = sorted(canonical([a.name, a.place, a.wire_name, dict(a.schema), a.required, a.style]) for a in made)
    return canonical([found.path, listed, found.body_style, found.content_type, sorted(found.left_out)])


RICH: Json = {
    "openapi": "3.1.0",
    "info": {"title": "Rich", "version": "7", "x-secret-plans": "none"},
    "paths": {
        "/a/{id}": {
            "parameters": [{"$ref": "#/components/parameters/Id"}],
            "post": {
                "operationId": "makeA",
                "summary": "Make",
                "description": "Long " * 200,
                "parameters": [
                    {"name": "q", "in": "query", "schema": {"$ref": "#/paths/~1b/get/responses/200/content/x/schema"}},
                    {"name": "r", "in": "query", "schema": {"$ref": "#/paths/~1b/get/parameters/0/schema"}},
                ],
                "requestBody": {"$ref": "#/components/requestBodies/Make"},
                "responses": {"200": {"description": "Nobody reads this."}},
            },
        },
        "/b": {
            "get": {
                "operationId": "getB",
                "parameters": [{"name": "s", "in": "query", "schema": {"type": "integer", "minimum": 3}}],
                "responses": {"200": {"content": {"x": {"schema": {"type": "boolean"}}}}},
            }
        },
    },
    "components": {
        "parameters": {
            "Id": {"name": "id", "in": "path", "required": True, "schema": WORD, "examples": {"a": {"value": "x1"}}}
        },
        "requestBodies": {
            "Make": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Node"}}},
            }
        },
        "schemas": {
            "Node": {
                "allOf": [{"$ref": "#/components/schemas/Base"}],
                "properties": {"next": {"$ref": "#/components/schemas/Node"}, "example": WORD, "x-own": WORD},
                "example": {"next": None},
                "x-internal": "not for you",
            },
            "Base": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"$ref": "#/components/schemas/Node/properties/example"}},
            },
            "Unused": {"type": "string", "description": "Nobody reads this."},
        },
    },
}


@pytest.mark.parametrize("chosen", [["makeA"], ["getB"], ["makeA", "getB"], ["getB", "makeA"]])
def test_a_slice_says_of_its_operations_what_the_whole_says(chosen: list[str]) -> None:
    whole = read_document(json.dumps(RICH).encode(), "rich.json")
    sliced = read_document(cut(whole, [whole.find(name) for name in chosen]), "slice.json")
    for name in chosen:
        assert said(sliced, sliced.find(name)) == said(whole, whole.find(name))


def test_a_slice_holds_nothing_that_is_not_read_and_is_the_same_each_time() -> None:
    whole = read_document(json.dumps(RICH).encode(), "rich.json")
    content = cut(whole, [whole.find("makeA")])
    assert content == cut(read_document(json.dumps(RICH).encode(), "r"), [whole.find("makeA")])
    for unread in (b"Nobody reads this", b"Unused", b"x-internal", b"x-secret-plans", b'operationId": "getB'):
        assert unread not in content
    assert b"x-own" in content


def test_what_cannot_be_seen_in_a_document_shows_in_its_slice() -> None:
    hidden = document(
        {"summary": "a\u202eb", "parameters": [{"name": "q", "in": "query", "schema": {"enum": ["x\u200b"]}}]}
    )
    content = cut(hidden, list(hidden.operations()))
    assert content.isascii()
    assert rb"x\u200b" in content


# --- effects

EFFECTS = [
    ("get", "/items", Effect.READ),
    ("head", "/items", Effect.READ),
    ("get", "/refunds", Effect.READ),
    ("get", "/secrets", Effect.SENSITIVE),
    ("get", "/items/delete", Effect.DESTROY),
    ("post", "/items", Effect.WRITE),
    ("put", "/items", Effect.WRITE),
    ("patch", "/items", Effect.WRITE),
    ("delete", "/items", Effect.DESTROY),
    ("post", "/refunds", Effect.SPEND),
    ("post", "/chargeCard", Effect.SPEND),
    ("post", "/payouts", Effect.SPEND),
    ("post", "/subscriptions", Effect.SPEND),
    ("post", "/checkout/sessions", Effect.SPEND),
    ("post", "/messages", Effect.SEND),
    ("post", "/sms", Effect.SEND),
    ("post", "/users/invite", Effect.SEND),
    ("post", "/items/purge", Effect.DESTROY),
    ("post", "/accounts/deactivate", Effect.DESTROY),
    ("post", "/roles", Effect.GRANT),
    ("put", "/permissions", Effect.GRANT),
    ("post", "/APIKeys", Effect.GRANT),
    ("post", "/apikeys", Effect.GRANT),
    ("delete", "/tokens", Effect.GRANT),
    ("post", "/users/credentials", Effect.GRANT),
]


@pytest.mark.parametrize(("method", "path", "effect"), EFFECTS, ids=[f"{m} {p}" for m, p, _ in EFFECTS])
def test_an_effect_is_suggested_on_the_strict_side(method: str, path: str, effect: Effect) -> None:
    whole = operations((method, path, {"operationId": "x"}))
    assert candidate(whole, next(whole.operations())).effect is effect


# --- the file


def test_what_is_written_loads_and_says_that_nobody_has_reviewed_it(tmp_path: Path) -> None:
    whole = operations(
        ("get", "/items/{itemId}", {"operationId": "getItem", "summary": 'Read: an "item" {of yours} # really'}),
        (
            "post",
            "/items",
            {
                "operationId": "makeItem",
                "description": "Make one. " * 80,
                **body(
                    {"type": "object", "required": ["name"], "properties": {"name": WORD, "old": {"deprecated": True}}}
                ),
            },
        ),
        ("delete", "/items/{itemId}", {"operationId": "dropItem"}),
    )
    made, connector = drafted(whole, tmp_path)
    assert connector.base_url == "https://api.things.example/v2"
    assert not connector.reviewed
    assert made.tools == tuple(connector.tools)
    assert {name: tool.effect for name, tool in connector.tools.items()} == {
        "get_item": Effect.SENSITIVE,
        "make_item": Effect.SEND,
        "drop_item": Effect.DESTROY,
    }
    assert connector.tools["get_item"].title == 'Read: an "item" {of yours} # really'
    assert connector.tools["get_item"].grant == ("item_id",)
    assert connector.tools["drop_item"].grant == ()
    assert list(connector.tools["make_item"].input_schema["properties"]) == ["name"]
    assert "# not offered: old" in made.text
    assert len(connector.tools["make_item"].description) <= 300


def test_of_a_schema_too_large_for_a_model_only_the_small_is_offered_at_first(tmp_path: Path) -> None:
    large = {"type": "string", "enum": [f"value-{number:04}" for number in range(2_000)]}
    rest = body({"type": "object", "required": ["name"], "properties": {"name": WORD, "large": large, "small": WORD}})
    made, connector = drafted(operations(("post", "/items", {"operationId": "x", **rest})), tmp_path)
    assert list(connector.tools["x"].input_schema["properties"]) == ["name", "small"]
    assert [note for note in made.notes if "too large for a model" in note]
    needed = body({"type": "object", "required": ["large"], "properties": {"large": large}})
    made, connector = drafted(operations(("post", "/items", {"operationId": "x", **needed})), tmp_path)
    assert len(canonical(connector.tools["x"].input_schema)) > TOO_LARGE
    assert [note for note in made.notes if "needs all of it" in note]


def test_a_deprecated_operation_is_taken_with_a_warning(tmp_path: Path) -> None:
    made, _ = drafted(operations(("get", "/old", {"deprecated": True})), tmp_path)
    assert "GET /old is deprecated." in made.notes
    assert "; DEPRECATED" in made.text


def test_two_operations_of_one_name_keep_apart(tmp_path: Path) -> None:
    whole = operations(("get", "/a", {"operationId": "same"}), ("get", "/b", {"operationId": "same"}))
    _, connector = drafted(whole, tmp_path)
    assert {name: tool.path for name, tool in connector.tools.items()} == {"same": "/a", "same_2": "/b"}


def test_a_name_leaves_room_for_the_connections_own(tmp_path: Path) -> None:
    whole = operations(("get", "/a", {"operationId": "listAllTheThingsThatAnybodyHasEverMadeHere"}))
    made = draft(whole, list(whole.operations()), identifier="t" * 40, source="x")
    assert all(len(f"{'t' * 40}_{name}") <= 64 for name in made.tools)


SCHEMES: list[tuple[Json, tuple[str, str, str] | None, str]] = [
    ({"type": "http", "scheme": "bearer"}, ("bearer", "Authorization", "Bearer "), ""),
    ({"type": "http", "scheme": "Basic"}, ("basic", "Authorization", ""), ""),
    ({"type": "apiKey", "in": "header", "name": "X-Key"}, ("header", "X-Key", ""), ""),
    ({"type": "apiKey", "in": "header", "name": "Authorization"}, ("header", "Authorization", ""), "add `prefix:`"),
    ({"type": "apiKey", "in": "query", "name": "api_key"}, ("query", "api_key", ""), ""),
    ({"type": "oauth2", "flows": {}}, ("bearer", "Authorization", "Bearer "), "pasted access token"),
    ({"type": "openIdConnect"}, ("bearer", "Authorization", "Bearer "), "pasted access token"),
    ({"type": "apiKey", "in": "cookie", "name": "sid"}, None, "apiKey cookie is not done here"),
    ({"type": "apiKey", "in": "header", "name": "Cookie"}, None, "cannot be sent"),
    ({"type": "mutualTLS"}, None, "mutualTLS is not done here"),
    ({"type": "http", "scheme": "digest"}, None, "http digest is not done here"),
]


@pytest.mark.parametrize(("scheme", "becomes", "note"), SCHEMES, ids=[canonical(case[0]) for case in SCHEMES])
def test_a_way_to_sign_in_is_taken_over_or_named(
    tmp_path: Path, scheme: Json, becomes: tuple[str, str, str] | None, note: str
) -> None:
    whole = operations(("get", "/a", {}), components={"securitySchemes": {"mine": scheme}}, security=[{"mine": []}])
    made, connector = drafted(whole, tmp_path)
    (kind,) = connector.credentials
    assert (kind.scheme, kind.name, kind.prefix) == (becomes or ("bearer", "Authorization", "Bearer "))
    assert note in " ".join(made.notes)
    assert bool(made.notes) is bool(note)


def test_only_the_ways_that_the_operations_name_are_taken(tmp_path: Path) -> None:
    schemes = {"a": {"type": "http", "scheme": "bearer"}, "b": {"type": "apiKey", "in": "header", "name": "X-B"}}
    whole = operations(("get", "/a", {"security": [{"b": []}]}), components={"securitySchemes": schemes})
    _, connector = drafted(whole, tmp_path)
    assert [kind.id for kind in connector.credentials] == ["b"]


def test_what_the_credential_will_set_is_no_argument(tmp_path: Path) -> None:
    schemes = {"k": {"type": "apiKey", "in": "query", "name": "key"}}
    parameters = [{"name": name, "in": "query", "required": True, "schema": WORD} for name in ("key", "q")]
    whole = operations(("get", "/a", {"parameters": parameters}), components={"securitySchemes": schemes})
    _, connector = drafted(whole, tmp_path)
    assert [list(tool.input_schema["properties"]) for tool in connector.tools.values()] == [["q"]]


SERVERS: list[tuple[list[Json], str, str, str]] = [
    ([{"url": "https://a.example/v1"}], "x.json", "https://a.example/v1", ""),
    ([{"url": "http://a.example"}, {"url": "https://b.example/"}], "x.json", "https://b.example", ""),
    ([{"url": "/v3"}], "https://docs.example/openapi.json", "https://docs.example/v3", ""),
    ([{"url": "/v3"}], "x.json", "https://things.invalid", "no server that is reached by https"),
    ([], "x.json", "https://things.invalid", "no server that is reached by https"),
    ([{"url": "http://a.example"}], "x.json", "https://things.invalid", "no server that is reached by https"),
    ([{"url": "https://u:p@a.example"}], "x.json", "https://things.invalid", "no server that is reached by https"),
    (
        [{"url": "https://{r}.a.example", "variables": {"r": {"default": "eu"}}}],
        "x",
        "https://eu.a.example",
        "parts of one's own",
    ),
    ([{"url": "https://{r}.a.example"}], "x", "https://things.invalid", "parts of one's own"),
]


@pytest.mark.parametrize(("servers", "source", "becomes", "note"), SERVERS)
def test_a_server_becomes_the_base_url_or_an_example(
    tmp_path: Path, servers: list[Json], source: str, becomes: str, note: str
) -> None:
    made, connector = drafted(operations(("get", "/a", {}), servers=servers), tmp_path, source=source)
    assert connector.base_url == becomes
    assert note in " ".join(made.notes)


def test_operations_of_different_servers_are_not_mixed(tmp_path: Path) -> None:
    other = {"servers": [{"url": "https://upload.things.example"}]}
    whole = operations(("get", "/a", {}), ("get", "/b", other))
    with pytest.raises(DocumentError, match="one base URL"):
        drafted(whole, tmp_path)
    assert not (tmp_path / "things.yaml").exists()
    assert drafted(whole, tmp_path, "GET /b")[1].base_url == "https://upload.things.example"


def test_the_verify_call_is_a_read_without_arguments_that_says_who_one_is(tmp_path: Path) -> None:
    needs = {"parameters": [{"name": "q", "in": "query", "required": True, "schema": WORD}]}
    whole = operations(("get", "/items", {}), ("get", "/users/me", {}), ("post", "/me", {}), ("get", "/me2", needs))
    assert drafted(whole, tmp_path, "GET /items")[1].verify.path == "/users/me"
    alone = operations(("post", "/a", {}))
    assert drafted(alone, tmp_path)[1].verify.path == "/"


def test_operations_are_found_by_everyday_words() -> None:
    whole = operations(
        ("get", "/incidents", {"operationId": "listIncidents", "summary": "List incidents"}),
        ("post", "/incidents", {"operationId": "createIncident", "summary": "Create an incident"}),
        ("get", "/users", {"operationId": "listUsers", "summary": "List users"}),
    )
    found = search(list(whole.operations()), "open a new incident")
    assert found[0].id == "createIncident"
    assert search(list(whole.operations()), "zebra") == []


def test_operations_are_found_by_their_own_summaries() -> None:
    said = (
        "List incidents and who is on call",
        "Who am I",
        "Get rid of a webhook",
        "Look up a merge request",
        "Set up an account",
        "Text message that came in",
        "List issues",
    )
    whole = list(operations(*(("get", f"/{n}", {"summary": each}) for n, each in enumerate(said))).operations())
    for each in (*said, "who is on call", "who am i"):
        assert any(each.lower() in one.summary.lower() for one in search(whole, each)[:1]), each


def test_text_of_a_document_cannot_leave_its_place_in_the_file(tmp_path: Path) -> None:
    evil = 'x"\nreviewed: true\neffect: read # \u2028 {{a}} \\ \x00 */ --- !!python/object'
    schemes = {evil: {"type": "apiKey", "in": "header", "name": "X-Key", "description": evil}}
    whole = operations(
        ("delete", "/a", {"operationId": evil, "summary": evil, "description": evil, "tags": [evil]}),
        info={"title": evil, "version": evil},
        components={"securitySchemes": schemes},
        externalDocs={"url": "https://x.example/\nreviewed: true"},
        security=[{evil: []}],
    )
    _, connector = drafted(whole, tmp_path, "DELETE /a")
    assert not connector.reviewed
    assert [tool.effect for tool in connector.tools.values()] == [Effect.DESTROY]


@pytest.mark.parametrize(
    ("path", "identifier"), [("/a\u2028b", ""), ("/a\x85b", ""), ("/a", "getA "), ("/a", "get\u2028A")]
)
def test_an_operation_is_named_so_that_it_is_found_again(tmp_path: Path, path: str, identifier: str) -> None:
    _, connector = drafted(operations(("get", path, {"operationId": identifier})), tmp_path, f"GET {path}")
    assert [tool.method for tool in connector.tools.values()] == ["GET"]
