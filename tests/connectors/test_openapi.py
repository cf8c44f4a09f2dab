"""What vendors publish becomes a valid, portable, bounded schema and a sendable request, or is refused by name."""

import json
import time
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.arguments import Taken
from connectors.compiling import portable_name
from connectors.document import MAX_DEPTH, Document, DocumentError, read_document
from connectors.portable import CUT
from tests.connectors.documents import body, compiled, document, query, refused, schema_of, taken_in

# --- schemas

ODDITIES: list[tuple[str, Any, Any]] = [
    ("3.0 nullable", {"type": "string", "nullable": True}, {"type": ["string", "null"]}),
    (
        "3.0 nullable enum",
        {"type": "string", "nullable": True, "enum": ["a"]},
        {"type": ["string", "null"], "enum": ["a", None]},
    ),
    ("x-nullable", {"type": "integer", "x-nullable": True}, {"type": ["integer", "null"]}),
    (
        "3.0 exclusive flags",
        {"type": "integer", "minimum": 1, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False},
        {"type": "integer", "exclusiveMinimum": 1, "maximum": 9},
    ),
    ("3.1 exclusive bounds", {"type": "number", "exclusiveMaximum": 5}, {"type": "number", "exclusiveMaximum": 5}),
    ("3.1 list of types", {"type": ["string", "null"]}, {"type": ["string", "null"]}),
    ("3.1 const", {"const": "a"}, {"type": "string", "enum": ["a"]}),
    ("XML and extensions", {"type": "string", "xml": {}, "x-y": 1, "title": "T"}, {"type": "string"}),
    ("a type that there is not", {"type": "any", "description": "What."}, {"description": "What."}),
    ("a type of another language", {"type": "int64"}, {"type": "integer"}),
    ("no type, but items", {"items": {"type": "string"}}, {"type": "array", "items": {"type": "string"}}),
    ("a list without items", {"type": "array"}, {"type": "array", "items": {}}),
    ("items as a list of Draft 4", {"type": "array", "items": [{}, {}]}, {"type": "array", "items": {}}),
    ("numbers for texts", {"type": "string", "enum": [1, True, "a"]}, {"type": "string", "enum": ["1", "true", "a"]}),
    ("texts for numbers", {"type": "integer", "enum": ["1", "2"]}, {"type": "integer", "enum": [1, 2]}),
    ("a value of another type", {"type": "string", "enum": [{"a": 1}]}, {"type": "object", "enum": [{"a": 1}]}),
    (
        "a null among the values",
        {"type": "string", "enum": ["a", None]},
        {"type": ["string", "null"], "enum": ["a", None]},
    ),
    ("a value twice", {"enum": ["a", "a"]}, {"type": "string", "enum": ["a"]}),
    ("an empty enum", {"type": "string", "enum": []}, {"type": "string"}),
    ("a look-ahead", {"type": "string", "pattern": "^(?!a)b"}, {"type": "string"}),
    ("a back-reference", {"type": "string", "pattern": r"(a)\1"}, {"type": "string"}),
    ("a pattern that is none", {"type": "string", "pattern": "["}, {"type": "string"}),
    ("a plain pattern", {"type": "string", "pattern": "^a+$"}, {"type": "string", "pattern": "^a+$"}),
    ("bounds as texts", {"type": "integer", "minimum": "1", "maxLength": -1, "multipleOf": 0}, {"type": "integer"}),
    ("bounds that cross", {"type": "string", "minLength": 9, "maxLength": 2}, {"type": "string"}),
    ("a length as a float", {"type": "string", "maxLength": 5.0}, {"type": "string", "maxLength": 5}),
    (
        "deprecated",
        {"type": "string", "deprecated": True, "description": "Old."},
        {"type": "string", "description": "Deprecated. Old."},
    ),
    (
        "HTML and hidden characters",
        {"type": "string", "description": "<p>One\u202e</p>\n two"},
        {"type": "string", "description": "One two"},
    ),
    (
        "alternatives of which one holds",
        {"oneOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    ),
    ("one alternative", {"oneOf": [{"type": "string"}]}, {"type": "string"}),
    (
        "alternatives that are the same",
        {"anyOf": [{"type": "string"}, {"type": "string", "title": "B"}]},
        {"type": "string"},
    ),
    ("an alternative that is anything", {"anyOf": [{"type": "string"}, {}]}, {}),
    (
        "alternatives and null",
        {"nullable": True, "anyOf": [{"type": "string"}, {"type": "integer"}]},
        {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
    ),
    (
        "parts that all hold",
        {"allOf": [{"type": "string", "maxLength": 3}, {"description": "Short."}]},
        {"type": "string", "maxLength": 3, "description": "Short."},
    ),
    ("a schema that is a truth value", True, {}),
]


@pytest.mark.parametrize(("schema", "becomes"), [case[1:] for case in ODDITIES], ids=[case[0] for case in ODDITIES])
def test_an_oddity_of_schemas_becomes_portable(schema: Any, becomes: Any) -> None:
    assert schema_of(schema) == becomes


def test_objects_keep_what_is_written_and_lose_what_is_only_read() -> None:
    schema = {
        "type": "object",
        "required": ["id", "name", "made"],
        "properties": {
            "id": {"type": "string", "readOnly": True},
            "made": {"$ref": "#/components/schemas/Made"},
            "name": {"type": "string", "writeOnly": True},
            "never": False,
        },
        "additionalProperties": {"type": "integer"},
    }
    found = compiled(
        document(body({"type": "array", "items": schema}), components={"schemas": {"Made": {"readOnly": True}}})
    )
    assert found["body"].schema["items"] == {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
        "additionalProperties": {"type": "integer"},
    }


def test_a_closed_object_with_patterned_names_is_left_open() -> None:
    schema = {"type": "object", "patternProperties": {"^x": {}}, "additionalProperties": False}
    assert compiled(document(body({"type": "array", "items": schema})))["body"].schema["items"] == {"type": "object"}


def test_required_names_that_a_closed_object_does_not_have_are_dropped() -> None:
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a", "b"], "additionalProperties": False}
    found = compiled(document(body({"type": "array", "items": schema})))["body"].schema["items"]
    assert found["required"] == ["a"]


def test_a_reference_is_written_out_with_what_stands_beside_it() -> None:
    named = {
        "schemas": {
            "A/b~c": {"type": "string", "description": "A name."},
            "B": {"$ref": "#/components/schemas/A~1b~0c"},
        }
    }
    beside = {"$ref": "#/components/schemas/B", "description": "Whose.", "nullable": True}
    assert schema_of(beside, components=named) == {"type": ["string", "null"], "description": "Whose."}


def test_a_reference_may_lead_anywhere_in_the_document_and_be_percent_encoded() -> None:
    paths = {
        "/a": {
            "get": {
                "operationId": "a",
                "parameters": [{"name": "q", "in": "query", "schema": {"$ref": "#/paths/~1b/get/parameters/0/schema"}}],
            }
        },
        "/b": {"get": {"parameters": [{"name": "r", "in": "query", "schema": {"type": "integer"}}]}},
    }
    assert compiled(document(paths=paths))["q"].schema == {"type": "integer"}
    named = {"schemas": {"A B": {"type": "integer"}}}
    assert schema_of({"$ref": "#/components/schemas/A%20B"}, components=named) == {"type": "integer"}


def test_recursion_is_cut_to_an_open_object_and_the_description_says_so() -> None:
    node = {
        "type": "object",
        "description": "A node.",
        "properties": {"name": {"type": "string"}, "next": {"$ref": "#/components/schemas/Node"}},
    }
    found = compiled(document(body({"$ref": "#/components/schemas/Node"}), components={"schemas": {"Node": node}}))
    inner = found["next"].schema["properties"]["next"]["properties"]["next"]
    assert inner == {"type": "object", "description": f"A node. {CUT}"}
    assert found["name"].schema == {"type": "string"}


def test_a_schema_that_would_double_at_each_level_is_cut_and_takes_no_time() -> None:
    schemas: dict[str, Any] = {
        f"S{level}": {
            "type": "object",
            "properties": {side: {"$ref": f"#/components/schemas/S{level + 1}"} for side in "lr"},
        }
        for level in range(40)
    }
    schemas["S40"] = {"type": "string"}
    began = time.process_time()
    found = compiled(document(body({"$ref": "#/components/schemas/S0"}), components={"schemas": schemas}))
    assert time.process_time() - began < 2
    assert len(json.dumps(found["l"].schema)) < 100_000
    assert CUT in json.dumps(found["l"].schema)


def test_a_chain_of_parts_that_never_ends_is_cut() -> None:
    schemas = {
        "A": {"allOf": [{"$ref": "#/components/schemas/B"}]},
        "B": {"anyOf": [{"$ref": "#/components/schemas/A"}, {"type": "string"}]},
    }
    assert compiled(document(query({"$ref": "#/components/schemas/A"}), components={"schemas": schemas}))["q"]


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("other.yaml#/A", "$ref to elsewhere"),
        ("https://x.example/a.json", "$ref to elsewhere"),
        ("#anchor", "$ref to elsewhere"),
        ("#/components/schemas/Gone", "broken $ref"),
        ("#/components/schemas/List/9", "broken $ref"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused_with_its_place(reference: str, reason: str) -> None:
    problem = refused(document(query({"$ref": reference}), components={"schemas": {"List": [{}]}}))
    assert problem.reason == reason
    assert problem.at == "/paths/~1things~1{id}/post/parameters/0/schema"


def test_a_parameter_that_refers_to_itself_is_refused() -> None:
    looped = {"parameters": {"P": {"$ref": "#/components/parameters/P"}}}
    operation = {"parameters": [{"$ref": "#/components/parameters/P"}]}
    assert refused(document(operation, components=looped)).reason == "endless $ref"


_LEAF = st.sampled_from(
    [
        *({"type": name} for name in ("string", "integer", "object", "array", "null", "file", 7, ["string", 3])),
        *({"enum": values} for values in ([1, "a"], [None], "no", [[1]])),
        *(
            {key: value}
            for key in ("minimum", "maxLength", "pattern", "required", "properties", "items", "default")
            for value in (1, -1, "x", True, None, [], {}, ["a", 1], {"a": 1})
        ),
        True,
        False,
        None,
        "text",
        3,
        [],
        {"$ref": 7},
        {"$ref": "#/components/schemas/A"},
        {"allOf": {}},
        {"anyOf": [7]},
    ]
)
_SCHEMA = st.recursive(
    _LEAF,
    lambda inner: st.dictionaries(
        st.sampled_from(["properties", "items", "allOf", "anyOf", "oneOf", "additionalProperties", "not", "nullable"]),
        st.one_of(inner, st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "\x00"]), inner)),
        max_size=4,
    ),
    max_leaves=12,
)


_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
)


@settings(max_examples=120, deadline=None)
@given(_SCHEMA)
def test_whatever_stands_there_becomes_a_valid_schema_or_is_refused(schema: Any) -> None:
    for operation in (query(schema), body(schema)):
        whole = document(operation, components={"schemas": {"A": schema}})
        try:
            compiled(whole)
        except DocumentError as problem:
            assert problem.reason


@settings(max_examples=120, deadline=None)
@given(_SCHEMA, _VALUE)
def test_what_the_documents_own_schema_takes_is_taken(schema: Any, value: Any) -> None:
    """Held against a validator of JSON Schema, for the keywords that 3.1 shares with it."""
    if not _is_schema(schema):
        return
    theirs = jsonschema_rs.Draft202012Validator(
        {"components": {"schemas": {"A": schema}}, "$ref": "#/components/schemas/A"}
    )
    try:
        rows = body({"type": "array", "items": {"allOf": [schema]}})
        ours = compiled(document(rows, version="3.1.0"))["body"].schema["items"]
    except DocumentError:
        return
    if theirs.is_valid(value):
        assert jsonschema_rs.Draft202012Validator(ours).is_valid(value), (schema, ours)


def _is_schema(schema: Any) -> bool:
    """Whether it is one of Draft 2020-12 as it stands, and can be judged: without values that we read more kindly."""
    text = json.dumps(schema)
    if _untyped(schema) or any(
        word in text for word in ('"file"', "false", '"required"', '"nullable"', '"enum"', "$ref")
    ):
        return False
    try:
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", "allOf": [schema]})
        jsonschema_rs.Draft202012Validator({"components": {"schemas": {"A": schema}}, "allOf": [schema]})
    except (jsonschema_rs.ValidationError, ValueError):
        return False
    return True


def _untyped(schema: Any) -> bool:
    """Whether a type follows from the rest: vendors mean it, and JSON Schema does not say it."""
    if isinstance(schema, dict):
        mine = ("properties" in schema or "items" in schema) and "type" not in schema
        return mine or any(_untyped(part) for part in schema.values())
    return isinstance(schema, list) and any(map(_untyped, schema))


# --- parameters

SENT: list[tuple[str, dict[str, Any], str | None]] = [
    ("a list repeats its name", query({"type": "array"}), "repeat"),
    ("not exploded, it has commas", query({"type": "array"}, explode=False), "comma"),
    ("spaces", query({"type": "array"}, style="spaceDelimited", explode=False), "space"),
    ("bars", query({"type": "array"}, style="pipeDelimited", explode=False), "pipe"),
    ("exploded bars repeat", query({"type": "array"}, style="pipeDelimited", explode=True), "repeat"),
    ("deep objects nest", query({"type": "object"}, style="deepObject", explode=True), "nested"),
    (
        "content is JSON",
        {"parameters": [{"name": "q", "in": "query", "content": {"application/json": {"schema": {"type": "object"}}}}]},
        "json",
    ),
    ("a free object is left out", query({"type": "object"}), None),
    ("a style that there is not is left out", query({"type": "string"}, style="matrix"), None),
    ("an optional cookie is left out", {"parameters": [{"name": "q", "in": "cookie", "schema": {}}]}, None),
]


@pytest.mark.parametrize(("operation", "style"), [case[1:] for case in SENT], ids=[case[0] for case in SENT])
def test_a_parameter_is_sent_in_its_style_or_left_out(operation: dict[str, Any], style: str | None) -> None:
    whole = document(operation)
    found = {each.name: each.style for each in taken_in(whole).inputs}
    assert found.get("q") == style
    assert [name for name, _ in taken_in(whole).left_out] == ([] if style else ["q"])


UNSENDABLE: list[tuple[str, dict[str, Any], str]] = [
    (
        "a needed cookie",
        {"parameters": [{"name": "s", "in": "cookie", "required": True, "schema": {}}]},
        "parameter in cookie",
    ),
    (
        "a whole query string",
        {"parameters": [{"name": "s", "in": "querystring", "required": True}]},
        "parameter in querystring",
    ),
    ("a needed free object", query({"type": "object"}, required=True), "object in a query"),
    (
        "a needed header of the transport's",
        {"parameters": [{"name": "Host", "in": "header", "required": True, "schema": {}}]},
        "reserved header",
    ),
    (
        "a path in matrix style",
        {"parameters": [{"name": "id", "in": "path", "required": True, "style": "matrix", "schema": {}}]},
        "style matrix",
    ),
    ("files", body({"type": "object"}, "multipart/form-data"), "body multipart/form-data"),
    ("bytes", body({"type": "string"}, "application/octet-stream"), "body application/octet-stream"),
    ("a form of anything", body({"type": "object"}, "application/x-www-form-urlencoded"), "form without fields"),
    (
        "too many arguments",
        {"parameters": [{"name": f"p{n}", "in": "query", "schema": {}} for n in range(3001)]},
        "too many arguments",
    ),
]


@pytest.mark.parametrize(
    ("operation", "reason"), [case[1:] for case in UNSENDABLE], ids=[case[0] for case in UNSENDABLE]
)
def test_an_operation_that_cannot_be_sent_is_refused_by_name(operation: dict[str, Any], reason: str) -> None:
    problem = refused(document(operation))
    assert problem.reason == reason
    assert problem.at.startswith("/paths/~1things~1{id}/post")


@pytest.mark.parametrize(
    ("path", "method", "reason"),
    [
        ("/a#b", "get", "path with a fragment or a query hole"),
        ("/a?b={c}", "get", "path with a fragment or a query hole"),
        ("/a/../b", "get", "path with an empty or dotted segment"),
        ("/a//b", "get", "path with an empty or dotted segment"),
        ("/{a}/{a}", "get", "the same hole twice"),
        ("/a%2e", "get", "path with an odd sign"),
        ("/{a", "get", "path with an odd sign"),
        ("/a", "options", "method OPTIONS"),
        ("/a", "trace", "method TRACE"),
        ("/a", "query", "method QUERY"),
    ],
)
def test_a_path_or_method_that_cannot_be_sent_is_refused_by_name(path: str, method: str, reason: str) -> None:
    assert refused(document(paths={path: {method: {"operationId": "x"}}})).reason == reason


def test_additional_operations_of_3_2_are_seen_and_refused() -> None:
    whole = document(version="3.2.0", paths={"/a": {"additionalOperations": {"LINK": {"operationId": "x"}}}})
    assert refused(whole).reason == "method LINK"


def test_a_path_is_encoded_and_its_holes_renamed() -> None:
    path = "/Users('{UserId}')/v1.1:run/{fooBar}.json"
    found = taken_in(document(paths={path: {"get": {"operationId": "x"}}}))
    assert found.path == "/Users%28%27{user_id}%27%29/v1.1:run/{foo_bar}.json"
    assert [(each.name, each.required) for each in found.inputs] == [("user_id", True), ("foo_bar", True)]


def test_a_query_that_is_written_into_the_path_is_sent_as_it_is() -> None:
    found = taken_in(document(paths={"/a?beta=true&x=a%20b": {"get": {"operationId": "x"}}}))
    assert (found.path, found.fixed_query) == ("/a", (("beta", "true"), ("x", "a b")))


def test_what_keyleash_sends_itself_is_no_argument() -> None:
    operation = {
        "parameters": [
            *(
                {"name": name, "in": "header", "required": True, "schema": {}}
                for name in ("Accept", "X-Key", "AUTHORIZATION")
            ),
            {"name": "api_key", "in": "query", "required": True, "schema": {}},
            {"name": "X-Trace", "in": "header", "schema": {}},
        ]
    }
    found = taken_in(document(operation), Taken(frozenset({"x-key"}), frozenset({"api_key"})))
    assert [each.name for each in found.inputs] == ["x_trace", "id"]
    assert found.left_out == ()


def test_an_operation_overrides_a_parameter_of_its_path() -> None:
    item = {"parameters": [{"name": "q", "in": "query", "schema": {"type": "string"}}]}
    own = {
        "operationId": "x",
        "parameters": [{"name": "q", "in": "query", "required": True, "schema": {"type": "integer"}}],
    }
    found = compiled(document(paths={"/a": {**item, "get": own}}))
    assert (found["q"].schema, found["q"].required) == ({"type": "integer"}, True)


def test_an_object_in_the_query_is_one_argument_for_each_of_its_fields() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "bC": {"type": "integer"}}}
    found = compiled(document(query(schema, required=True)))
    assert {name: (each.wire_name, each.required) for name, each in found.items() if name != "id"} == {
        "a": ("a", True),
        "b_c": ("bC", False),
    }


def test_what_a_document_left_of_swagger_2_is_understood() -> None:
    found = compiled(document({"parameters": [{"name": "q", "in": "query", "type": "integer"}]}))
    assert found["q"].schema == {"type": "integer"}


def test_names_are_portable_and_their_own() -> None:
    wires = [
        ("path", "id"),
        ("query", "ID"),
        ("header", "X-ID"),
        ("query", "created[gte]"),
        ("query", "$filter"),
        ("query", "2fa"),
    ]
    operation = {
        "parameters": [{"name": name, "in": where, "required": where == "path", "schema": {}} for where, name in wires]
    }
    properties = {name: {} for name in ("id", "ID", "pageSize", "HTTPServer", "x" * 90, "x" * 91, "??")}
    found = taken_in(document(operation | body({"type": "object", "properties": properties})))
    assert {each.name: (each.place, each.wire_name) for each in found.inputs} == {
        "id": ("path", "id"),
        "id_query": ("query", "ID"),
        "x_id": ("header", "X-ID"),
        "created_gte": ("query", "created[gte]"),
        "filter": ("query", "$filter"),
        "n_2fa": ("query", "2fa"),
        "id_body": ("body", "id"),
        "id_2": ("body", "ID"),
        "page_size": ("body", "pageSize"),
        "http_server": ("body", "HTTPServer"),
        "x" * 40: ("body", "x" * 90),
        f"{'x' * 33}_body": ("body", "x" * 91),
        "n": ("body", "??"),
    }
    assert len({portable_name(each.name) for each in found.inputs}) == len(found.inputs)


def test_an_example_comes_along_where_it_is_a_plain_value() -> None:
    assert compiled(document(query({"type": "string"}, example="ord_1")))["q"].schema["examples"] == ["ord_1"]
    named = query({"type": "string"}, examples={"one": {"value": "ord_2"}})
    assert compiled(document(named))["q"].schema["examples"] == ["ord_2"]
    assert "examples" not in compiled(document(query({}, example={"a": 1})))["q"].schema


# --- bodies


def test_the_fields_of_a_json_body_are_arguments() -> None:
    base = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    more = {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}
    both = {"allOf": [{"$ref": "#/components/schemas/Base"}, more, {"description": "Both."}]}
    found = compiled(document(body(both), components={"schemas": {"Base": base}}))
    assert {name: (each.steps, each.required) for name, each in found.items() if each.place == "body"} == {
        "name": (("name",), True),
        "size": (("size",), True),
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "string"}},
        {"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "string"},
    ],
)
def test_a_body_that_cannot_be_taken_apart_is_one_argument(schema: dict[str, Any]) -> None:
    found = compiled(document(body(schema)))
    assert (found["body"].steps, found["body"].required) == ((), True)


def test_alternatives_that_only_say_which_fields_go_together_do_not_hide_them() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert set(compiled(document(body(schema)))) == {"a", "b", "id"}


def test_the_fields_of_a_body_that_may_be_left_out_are_not_required() -> None:
    schema = {"type": "object", "required": ["a"], "properties": {"a": {}}}
    assert compiled(document(body(schema)))["a"].required
    assert not compiled(document(body(schema, required=False)))["a"].required
    silent = {"requestBody": {"content": {"application/json": {"schema": schema}}}}
    assert compiled(document(silent))["a"].required, "many documents forget to say that a body is required"


@pytest.mark.parametrize(
    ("kind", "style", "content_type"),
    [
        ("application/json; charset=utf-8", "json", ""),
        ("Application/JSON", "json", ""),
        ("*/*", "json", ""),
        ("application/merge-patch+json", "json", "application/merge-patch+json"),
        ("application/x-www-form-urlencoded", "form", ""),
    ],
)
def test_a_media_type_decides_how_the_body_is_written(kind: str, style: str, content_type: str) -> None:
    found = taken_in(document(body({"type": "object", "properties": {"a": {}}}, kind)))
    assert (found.body_style, found.content_type) == (style, content_type)


def test_json_is_taken_where_a_body_may_have_several_kinds() -> None:
    schema = {"schema": {"type": "object", "properties": {"a": {}}}}
    content = {"multipart/form-data": schema, "application/x-www-form-urlencoded": schema, "application/json": schema}
    assert taken_in(document({"requestBody": {"content": content}})).body_style == "json"


def test_a_form_writes_each_field_as_its_encoding_says() -> None:
    many = {"type": "array", "items": {"type": "string"}}
    inner = {"type": "object", "properties": {"a": {}}}
    fields = {
        "plain": {},
        "many": many,
        "inner": inner,
        "rows": {"type": "array", "items": inner},
        "deep": many,
        "text": inner,
        "comma": many,
    }
    encoding = {
        "deep": {"style": "deepObject", "explode": True},
        "text": {"contentType": "application/json"},
        "comma": {"style": "form", "explode": False},
    }
    media = {"schema": {"type": "object", "properties": fields}, "encoding": encoding}
    found = taken_in(document({"requestBody": {"content": {"application/x-www-form-urlencoded": media}}}))
    assert {each.name: each.style for each in found.inputs if each.place == "body"} == {
        **{"plain": "repeat", "many": "repeat", "inner": "nested", "rows": "nested"},
        **{"deep": "nested", "text": "json", "comma": "comma"},
    }


def test_a_get_has_no_body() -> None:
    optional = body({"type": "object", "properties": {"a": {}}}, required=False)
    found = taken_in(document(paths={"/a": {"get": optional}}))
    assert (found.inputs, [name for name, _ in found.left_out]) == ((), ["the body"])
    needed = document(paths={"/a": {"get": body({"type": "object", "properties": {"a": {}}})}})
    assert refused(needed).reason == "body of a GET"


# --- reading


def whole(text: str) -> Document:
    return read_document(text.encode(), "d.yaml")


def test_yaml_is_read_as_the_json_that_it_stands_for() -> None:
    found = whole(
        "openapi: 3.1\ninfo: {title: T}\npaths:\n  /a:\n    get:\n      operationId: on\n      deprecated: true\n"
        "      x: [no, 2026-01-01, 0o7, 010, 1e3, ~, 1_000, 12:30:00]\n      responses: {200: {description: y}}\n"
    )
    operation = next(found.operations()).part.value
    assert operation["operationId"] == "on"
    assert operation["x"] == ["no", "2026-01-01", "0o7", "010", 1000.0, None, "1_000", "12:30:00"]
    assert list(operation["responses"]) == ["200"]
    assert next(found.operations()).deprecated


BOMB = "openapi: 3.0.0\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

UNREADABLE: list[tuple[str, str]] = [
    (BOMB, "aliases are written out"),
    ("openapi: 3.0.0\na: &a [*a]", "aliases are written out"),
    ("openapi: 3.0.0\na: {<<: {b: 1}}", "merge key"),
    ("openapi: 3.0.0\na: !!python/object:os.system {}", "d.yaml:2: This is not YAML"),
    ("openapi: 3.0.0\n a: b: c", "d.yaml:2: This is not YAML"),
    ("openapi: 3.0.0\na: " + "[" * 200 + "]" * 200, "nested too deeply"),
    ("a: " + "[" * 50_000, "This is not YAML"),
    ('{"openapi": "3.0.0",\n "a": }', "d.yaml:2: This is not JSON"),
    ('{"openapi": "3.0.0", "a": NaN}', "a number that JSON does not have"),
    ('{"openapi": "3.0.0", "a": ' + "[" * 200 + "]" * 200 + "}", f"deeper than {MAX_DEPTH}"),
    ("[]", "it is no mapping"),
    ('{"swagger": "2.0"}', "This is Swagger 2.0"),
    ('{"openapi": "4.0.0"}', "no OpenAPI 3"),
    ('{"info": {}}', "no OpenAPI 3"),
]


@pytest.mark.parametrize(("text", "says"), UNREADABLE, ids=[says for _, says in UNREADABLE])
def test_what_is_no_document_is_refused_with_its_line_and_costs_nothing(text: str, says: str) -> None:
    began = time.process_time()
    with pytest.raises(DocumentError) as error:
        whole(text)
    assert says in str(error.value)
    assert time.process_time() - began < 8


def test_a_document_that_is_not_utf_8_or_too_large_is_refused() -> None:
    with pytest.raises(DocumentError, match="d:2: The document is not UTF-8"):
        read_document(b"openapi: 3.0.0\n\xff", "d")
    with pytest.raises(DocumentError, match="larger than 8 MiB"):
        whole("openapi: 3.0.0\n" + "#" * (8 << 20))
    with pytest.raises(DocumentError, match="larger than 32 MiB"):
        whole("{" + " " * (32 << 20) + "}")


def test_an_operation_is_found_by_its_id_or_by_its_call() -> None:
    paths = {
        "/a": {"get": {"operationId": "twice"}, "post": {"operationId": "once"}},
        "/b": {"get": {"operationId": "twice"}},
    }
    found = document(paths=paths)
    assert found.find("once").call == "POST /a"
    assert found.find("get /b").id == "twice"
    with pytest.raises(DocumentError, match=r"Several .* `GET /a` or `GET /b`"):
        found.find("twice")
    with pytest.raises(DocumentError, match="Did you mean 'once'"):
        found.find("onze")
    with pytest.raises(DocumentError, match="METHOD /path"):
        found.find("GET /c")


def test_a_body_of_no_fields_that_may_be_left_out_is_left_out() -> None:
    empty = body({"type": "object", "properties": {}}, "application/x-www-form-urlencoded", required=False)
    found = taken_in(document(empty))
    assert [each.name for each in found.inputs] == ["id"]
    assert [name for name, _ in found.left_out] == ["the form"]
