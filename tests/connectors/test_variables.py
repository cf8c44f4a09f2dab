"""A GraphQL tool's arguments and its document's variables have the same names, types and needs, or nothing loads."""

import json

import jsonschema_rs
import pytest

from connectors.definition import Call, Effect
from connectors.errors import DefinitionError
from connectors.fileformat import json_schema
from connectors.loading import parse
from connectors.request import prepare, prepare_verify
from connectors.source import read_text

GOOD = """\
id: shop
title: Shop
kind: graphql
reviewed: true
base_url: https://api.shop.example/v1
endpoint: /graphql
idempotency: {variable: key}
credentials: {token: {label: Token, help: There., scheme: header, name: Authorization}}
verify: {document: "query Verify { me { name } }", account: me.name}
errors: {user_errors: userErrors, limited: [SLOW], rejected: [NOT_YOU], unclear: [BROKE]}
tools:
  list_orders:
    title: List orders
    description: All orders.
    document: |
      query ListOrders($first: Int! = 10, $tags: [String!], $where: OrderFilter) {
        orders(first: $first, tags: $tags, where: $where) { id }
      }
    effect: read
    arguments:
      first: {type: integer, maximum: 50}
      tags: {type: array, items: {type: string}}
      where: {type: object, properties: {status: {type: string}}}
    output: {select: "{ids: orders[].id}"}
  cancel_order:
    title: Cancel an order
    description: For good.
    document: |
      mutation CancelOrder($order: ID!, $note: String, $key: String!) {
        orderCancel(id: $order, note: $note) @idempotent(key: $key) { id userErrors { field message } }
      }
    effect: destroy
    ask: Cancel {order}
    grant: [order]
    plain: [order]
    arguments:
      order: {type: string, required: true}
      note: {type: string, absent: none}
"""


def test_the_good_file_loads_as_written() -> None:
    shop = parse(GOOD)
    listed, cancel = shop.tools["list_orders"], shop.tools["cancel_order"]
    assert (listed.method, listed.path, listed.effect, listed.safe) == ("POST", "/graphql", Effect.READ, True)
    assert (cancel.method, cancel.path, cancel.effect, cancel.safe) == ("POST", "/graphql", Effect.DESTROY, False)
    assert [(a.name, a.place, a.wire_name, a.required) for a in cancel.arguments] == [
        ("order", "body", "order", True),
        ("note", "body", "note", False),
    ]
    assert cancel.operation is not None
    assert cancel.operation.key_variable == "key"
    assert "key" not in cancel.input_schema["properties"]
    assert (shop.errors.user_errors, shop.errors.limited) == ("userErrors", frozenset({"SLOW"}))
    assert shop.errors.message is not None
    assert shop.errors.code is not None
    error = {"errors": [{"message": "No.", "extensions": {"code": "NOPE"}}]}
    assert (shop.errors.message.search(error), shop.errors.code.search(error)) == ("No.", "NOPE")
    assert shop.credentials[0].name == "Authorization"


# What is changed in GOOD, into what; then the line and a word of the message.
BROKEN = [
    ("kind: graphql", "kind: grapql", 3, "Did you mean 'graphql'"),
    ("endpoint: /graphql\n", "", 1, "lacks 'endpoint'"),
    ("endpoint: /graphql", "endpoint: graphql", 6, "Write its path"),
    ("endpoint: /graphql", "endpoint: /a/../b", 6, "segment"),
    ("endpoint: /graphql", "endpoint: /{shop}/graphql", 6, "hole"),
    ("endpoint: /graphql", "endpoint: /graphql?a=1", 6, "segment"),
    ("endpoint: /graphql", "endpoint: /graphql\nbody: form", 7, "no key 'body'"),
    ("{variable: key}", "{header: Idempotency-Key, methods: [POST]}", 7, "no key 'header'"),
    ("{variable: key}", "{variable: $key}", 7, "without $"),
    ("document: \"query Verify { me { name } }\"", "call: GET /me", 9, "no key 'call'"),
    ("query Verify { me { name } }", "mutation Verify { a { userErrors { message } } }", 9, "change nothing"),
    ("query Verify { me { name } }", "query Verify($a: Int) { me(a: $a) { name } }", 9, "has no argument"),
    ("query Verify {", "query Verify($key: String!) { a(b: $key) ", 9, "query needs no $key"),
    ("limited: [SLOW]", "limited: SLOW", 10, "must be a list"),
    ("user_errors: userErrors", "user_errors: failures", 28, "does not ask for failures"),
    ("userErrors { field message }", "userErrors { field }", 28, "does not ask for userErrors"),
    (" userErrors { field message }", "", 28, "Select `userErrors { message }`"),
    ("    effect: read\n", "    effect: read\n    call: POST /graphql\n", 20, "no key 'call'"),
    ("$where: OrderFilter", "$where: OrderFilter, $more: Int", 16, "never used"),
    ("first: $first,", "first: $first, after: $after,", 17, "not declared"),
    ("      tags: {type: array, items: {type: string}}\n", "", 16, "variable $tags has no argument"),
    ("      note: {", "      memo: {type: string}\n      note: {", 38, "argument 'memo' has no variable"),
    ("      note: {", "      key: {type: string}\n      note: {", 38, "filled by Keyleash"),
    ("$key: String!", "$key: Int!", 29, "filled with a text"),
    ("$key: String!", "$key: [String!]!", 29, "filled with a text"),
    ("required: true}", "required: false}", 37, "may be left out"),
    ("$first: Int! = 10", "$first: Int!", 21, "may be left out"),
    ("$note: String", "$note: String!", 38, "may be left out"),
    ("first: {type: integer,", "first: {type: number,", 21, "'first' can be of type number"),
    ("first: {type: integer,", "first: {type: [integer, string],", 21, "can be of type string"),
    ("$first: Int! = 10", "$first: Boolean! = true", 21, "can be of type integer"),
    ("$first: Int! = 10", "$first: [Int!]! = 10", 21, "need not be a list"),
    ("$tags: [String!]", "$tags: String", 22, "can be of type array"),
    ("$tags: [String!]", "$tags: [Int!]", 22, "items of which one can be of type string"),
    ("$tags: [String!]", "$tags: [[String!]]", 22, "items of which one need not be a list"),
    ("tags: {type: array, items: {type: string}}", "tags: {type: array}", 22, "does not say what its items are"),
    ("$where: OrderFilter", "$where: String", 23, "can be of type object"),
    ("$where: OrderFilter", "$where: [OrderFilter!]", 23, "need not be a list"),
    ("where: {type: object, properties: {status: {type: string}}}", "where: {type: array, items: {type: string}}",
     23, "can be of type array"),
    ("order: {type: string,", "order: {type: boolean,", 37, "can be of type boolean"),
    ("order: {type: string,", "order: {anyOf: [{type: string}, {type: object}],", 37, "can be of type object"),
    ("order: {type: string,", "order: {enum: [a, true],", 37, "can be of type boolean"),
    ("order: {type: string,", "order: {const: 1.5,", 37, "can be of type number"),
    ("order: {type: string,", "order: {in: query, type: string,", 37, "no key 'in'"),
    ("order: {type: string,", "order: {as: id, type: string,", 37, "no key 'as'"),
    ("output: {select:", "output: {text: true, select:", 24, "no key 'text'"),
    ("output: {select:", "output: {next: cursor, select:", 24, "no key 'next'"),
    ("output: {select:", "output: {next: cursor, next_url: orders.next, select:", 24, "no key 'next"),
    ("    plain: [order]\n", "    plain: [order]\n    fixed: {body: {note: x}}\n", 36, "no key 'fixed'"),
    ("    plain: [order]\n", "    plain: [order]\n    encode: {note: mail}\n", 36, "no key 'encode'"),
    ("effect: destroy", "effect: read\n    because: It says so.", 32, "mutation does more than read"),
    ("effect: destroy", "effect: write", 32, "milder than destroy"),
    ("    effect: destroy\n", "", 25, "suggest destroy"),
]  # fmt: skip


@pytest.mark.parametrize(("was", "becomes", "line", "says"), BROKEN)
def test_what_does_not_fit_is_refused_with_its_line(was: str, becomes: str, line: int, says: str) -> None:
    assert was in GOOD
    text = GOOD.replace(was, becomes, 1)
    with pytest.raises(DefinitionError) as refused:
        parse(text, "shop.yaml")
    assert says in str(refused.value), str(refused.value)
    assert str(refused.value).startswith(f"shop.yaml:{line}: "), str(refused.value)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("$first: Int! = 10", "$first: Int"),
        ("$first: Int! = 10", "$first: Float! = 10"),
        ("$first: Int! = 10", "$first: Money"),
        ("first: {type: integer,", "first: {type: integer, required: true,"),
        ("$order: ID!", "$order: String"),
        ("order: {type: string,", "order: {type: [string, integer],"),
        ("order: {type: string,", "order: {enum: [a, 1],"),
        ("$note: String", "$note: Kind"),
        ("$tags: [String!]", "$tags: [Kind]! = []"),
        ("{order: {type: string, required: true}}", "{}"),
        ("$key: String!", "$key: ID"),
    ],
)
def test_what_a_vendor_could_take_is_left_to_the_vendor(was: str, becomes: str) -> None:
    assert parse(GOOD.replace(was, becomes, 1)).tools


def test_an_unreviewed_query_reads_and_a_mutation_writes_unless_its_words_say_more() -> None:
    text = GOOD.replace("reviewed: true\n", "").replace("    effect: destroy\n", "").replace("    effect: read\n", "")
    assert parse(text).tools["list_orders"].effect is Effect.READ
    assert parse(text).tools["cancel_order"].effect is Effect.DESTROY
    milder = text.replace("orderCancel", "orderChange").replace("CancelOrder", "Order").replace("cancel_", "change_")
    assert parse(milder).tools["change_order"].effect is Effect.WRITE
    with pytest.raises(DefinitionError, match="effect is destroy"):
        parse(text.replace("orders(", "deleteOrders("))
    aliased = text.replace("orderCancel", "order: orderCancel").replace("CancelOrder", "Order").replace("cancel_", "a_")
    assert parse(aliased).tools["a_order"].effect is Effect.DESTROY


def test_a_tools_hash_changes_with_its_document_and_where_it_goes() -> None:
    def hash_of(was: str, becomes: str) -> str:
        assert was in GOOD
        return parse(GOOD.replace(was, becomes, 1)).tools["cancel_order"].definition_hash

    changes = [
        ("note: $note)", "note: $note, refund: true)"),
        ("CancelOrder", "CancelOrders"),
        ("endpoint: /graphql", "endpoint: /graphql.json"),
        ("https://api.shop.example/v1", "https://api.shop.example/v2"),
        ("Cancel {order}", "Stop {order}"),
    ]
    hashes = {hash_of("title: Shop", "title: Shop"), *(hash_of(*change) for change in changes)}
    assert len(hashes) == len(changes) + 1
    keyed = parse(GOOD).tools["list_orders"]
    other = parse(GOOD.replace("variable: key", "variable: k").replace("$key", "$k")).tools["list_orders"]
    assert keyed.definition_hash != other.definition_hash


# -- what is sent

BASE = "https://api.shop.example/v1"


def body_of(tool: str, arguments: dict[str, object], key: str = "") -> bytes | None:
    shop = parse(GOOD)
    return prepare(
        Call("shop", shop, shop.tools[tool], f"shop_{tool}", arguments), base_url=BASE, idempotency_key=key
    ).body


def test_a_request_is_the_document_its_name_and_the_given_arguments() -> None:
    shop = parse(GOOD)
    tool = shop.tools["list_orders"]
    prepared = prepare(Call("shop", shop, tool, "shop_list_orders", {"first": 3}), base_url=BASE)
    assert (prepared.method, prepared.url) == ("POST", f"{BASE}/graphql")
    assert dict(prepared.headers) == {"Accept": "application/json", "Content-Type": "application/json"}
    assert prepared.body is not None
    assert json.loads(prepared.body) == {
        "query": "query ListOrders($first: Int! = 10, $tags: [String!], $where: OrderFilter) { "
        "orders(first: $first, tags: $tags, where: $where) { id } }",
        "operationName": "ListOrders",
        "variables": {"first": 3},
    }
    assert prepared.safe
    assert not prepared.idempotent


def test_a_query_that_changes_something_by_the_files_own_word_is_not_safe() -> None:
    shop = parse(GOOD.replace("    effect: read\n", "    effect: write\n    ask: List {first}\n", 1))
    tool = shop.tools["list_orders"]
    assert not tool.safe
    assert not prepare(Call("shop", shop, tool, "shop_list_orders", {}), base_url=BASE).safe
    sensitive = parse(GOOD.replace("    effect: read\n", "    effect: sensitive\n    ask: List {first}\n", 1))
    assert sensitive.tools["list_orders"].safe


def test_a_left_out_argument_is_absent_and_not_null() -> None:
    assert (body_of("list_orders", {}) or b"").endswith(b'"variables":{}}')
    assert b"null" not in (body_of("cancel_order", {"order": "o_1"}, "k1") or b"")


def test_an_idempotency_key_stands_in_its_variable_and_makes_a_repeat_safe() -> None:
    shop = parse(GOOD)
    call = Call("shop", shop, shop.tools["cancel_order"], "shop_cancel_order", {"order": "o_1"})
    prepared = prepare(call, base_url=BASE, idempotency_key="k1")
    assert json.loads(prepared.body or b"")["variables"] == {"order": "o_1", "key": "k1"}
    assert prepared.idempotent
    assert not prepared.safe
    listed = prepare(Call("s", shop, shop.tools["list_orders"], "s", {}), base_url=BASE, idempotency_key="k1")
    assert b"k1" not in (listed.body or b"")
    assert not listed.idempotent


HOSTILE = [
    '") { shopDelete { id } } #',
    '"}, "query": "mutation X { shopDelete { id } }", "x": {"',
    "$order } mutation Evil { shopDelete { id } }",
    'a\\", admin: true, b: \\"',
    "\u2028\u2029\u202e\r\n\x7f{}[]!@",
    "query ListOrders { secrets }",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_an_argument_holds_changes_the_document(text: str) -> None:
    plain, hostile = (
        json.loads(body_of("cancel_order", {"order": order, "note": order}, "k") or b"") for order in ("o_1", text)
    )
    assert hostile["variables"] == {"order": text, "note": text, "key": "k"}
    assert {name: hostile[name] for name in ("query", "operationName")} == {
        name: plain[name] for name in ("query", "operationName")
    }
    assert list(hostile) == ["query", "operationName", "variables"]


def test_the_verify_call_is_its_query() -> None:
    prepared = prepare_verify(parse(GOOD), base_url=BASE)
    assert (prepared.method, prepared.url, prepared.safe) == ("POST", f"{BASE}/graphql", True)
    assert prepared.body == (b'{"query":"query Verify { me { name } }","operationName":"Verify","variables":{}}')


# -- the format's own schema


def test_the_schema_for_editors_takes_the_good_file_and_finds_plain_mistakes() -> None:
    schema = jsonschema_rs.Draft202012Validator(json_schema())
    assert schema.is_valid(read_text(GOOD, "shop.yaml").plain())
    for was, becomes in [
        ("kind: graphql", "kind: rest"),
        ("kind: graphql\n", ""),
        ("endpoint: /graphql\n", ""),
        ("    effect: read\n", "    effect: read\n    call: POST /graphql\n"),
        ("order: {type: string,", "order: {in: query, type: string,"),
        ("{variable: key}", "{header: Key, methods: [POST]}"),
        ("user_errors:", "user_error:"),
        ("output: {select:", "output: {text: true, select:"),
    ]:
        assert was in GOOD
        assert not schema.is_valid(read_text(GOOD.replace(was, becomes, 1), "shop.yaml").plain()), becomes


def test_no_credential_of_a_graphql_connector_has_a_verify_of_its_own() -> None:
    own = 'name: Authorization, verify: {document: "query Other { me { id } }"}}}'
    with pytest.raises(DefinitionError, match="tried by the same query"):
        parse(GOOD.replace("name: Authorization}}", own))
