"""A connector file loads whole or is refused with file, line and mend."""

import json
from pathlib import Path

import jsonschema_rs
import pytest

from connectors.definition import DEFAULTS, Effect
from connectors.effects import derive
from connectors.errors import DefinitionError
from connectors.fileformat import json_schema
from connectors.loading import load, parse
from connectors.source import MAX_BYTES, read_text

GOOD = """\
id: shop
title: Shop
reviewed: true
base_url: https://api.shop.example/v1
headers:
  X-Version: "2026-01-02"
credentials:
  key:
    label: API key
    help: In the settings.
    scheme: header
    name: X-Key
verify: {call: GET /me, account: name}
errors: {message: error.message, ok: ok}
deprecations:
  - {date: "2027-01", what: Old keys end.}
tools:
  list_orders:
    title: List orders
    description: All orders.
    call: GET /orders
    effect: read
    arguments:
      since: {as: "created[gte]", type: integer}
      tags: {type: array, items: {type: string}, list: comma}
  cancel_order:
    title: Cancel an order
    description: For good.
    call: DELETE /orders/{order}
    effect: destroy
    ask: Cancel {order}
    grant: [order]
    plain: [order]
    arguments:
      order: {type: string}
      note: {in: body, type: string, absent: none}
    output: {select: "{id: id}", redact: [token]}
"""


def test_the_good_file_loads_as_written():
    shop = parse(GOOD)
    assert (shop.id, shop.base_url, shop.headers) == (
        "shop",
        "https://api.shop.example/v1",
        (("X-Version", "2026-01-02"),),
    )
    assert shop.credentials[0].name == "X-Key"
    assert shop.account is not None
    assert shop.account.search({"name": "acme"}) == "acme"
    cancel = shop.tools["cancel_order"]
    assert (cancel.effect, cancel.method, cancel.path) == (Effect.DESTROY, "DELETE", "/orders/{order}")
    assert [(a.name, a.place, a.required) for a in cancel.arguments] == [
        ("order", "path", True),
        ("note", "body", False),
    ]
    assert cancel.input_schema == {
        "type": "object",
        "properties": {"order": {"type": "string"}, "note": {"type": "string"}},
        "additionalProperties": False,
        "required": ["order"],
    }
    assert shop.tools["list_orders"].arguments[0].wire_name == "created[gte]"


# What is changed in GOOD, into what; then the line and a word of the message.
BROKEN = [
    ("title: Shop", "titel: Shop", 2, "Did you mean 'title'"),
    ("title: Shop\n", "", 1, "lacks 'title'"),
    ("title: Shop", "title: Shop\ntitle: Again", 3, "twice"),
    ("title: Shop", "title: [Shop]", 2, "must be text"),
    ("title: Shop", "title: 2026-01-02", 2, "date"),
    ("title: Shop", "title: yes", 2, "truth value"),
    ("title: Shop", "title: 0777", 2, "unusual number"),
    ("title: Shop", "title: 12:30:45", 2, "unusual number"),
    ("title: Shop", "title:", 2, "empty"),
    ("title: Shop", "title: '  '", 2, "empty"),
    ("title: Shop", "title: !!python/object:os.system Shop", 2, "tag"),
    ("title: Shop", "on: Shop", 2, "truth value"),
    ("id: shop", "id: Shop", 1, "cannot be"),
    ("title: Shop", "title: &a Shop\nhelp: *a", 2, "anchor"),
    ("reviewed: true", "reviewed: 1", 3, "true or false"),
    ("https://api", "http://api", 4, "https://"),
    ("https://api.shop.example/v1", "https://a@api.shop.example", 4, "user name"),
    ("https://api.shop.example/v1", "https://api.shop.example/a/../b", 4, "segment"),
    ("https://api.shop.example/v1", "https://api.shop.example/?q=1", 4, "segment"),
    ("X-Version:", "Authorization:", 6, "set by Keyleash"),
    ("X-Version:", "x-key:", 6, "set by Keyleash"),
    ("X-Version:", "Host:", 6, "set by Keyleash"),
    ('"2026-01-02"', '"a\\nb"', 6, "visible ASCII"),
    ("X-Version:", "X Version:", 6, "name"),
    ("scheme: header", "scheme: heder", 11, "Did you mean 'header'"),
    ("    name: X-Key\n", "", 8, "needs the name"),
    ("name: X-Key", "name: Cookie", 12, "set by Keyleash"),
    ("name: X-Key", "name: X-Key\n    pattern: '('", 13, "regular expression"),
    ("scheme: header\n    name: X-Key", "scheme: basic", 8, "needs its fields"),
    ("call: GET /me,", "call: 'GET /me/{id}',", 13, "hole"),
    ("account: name", "account: 'name['", 13, "not JMESPath"),
    ("account: name", "account: nope(name)", 13, "no function"),
    ("account: name", "account: 'join(name)'", 13, "takes 2 arguments"),
    ('date: "2027-01"', "date: soon", 16, "YYYY-MM"),
    ("  list_orders:", "  ListOrders:", 18, "cannot be a name"),
    ("call: GET /orders\n", "call: FETCH /orders\n", 21, "METHOD /path"),
    ("call: GET /orders\n", "call: GET orders\n", 21, "METHOD /path"),
    ("call: GET /orders\n", "call: GET /a/../orders\n", 21, "segment"),
    ("call: GET /orders\n", "call: GET //orders\n", 21, "segment"),
    ("call: GET /orders\n", "call: GET /orders?all=1\n", 21, "segment"),
    ("    effect: read\n", "", 18, "states every effect"),
    ("effect: destroy", "effect: write", 30, "because"),
    ("effect: destroy", "effect: destory", 30, "Did you mean 'destroy'"),
    ("    ask: Cancel {order}\n", "", 26, "needs an `ask`"),
    ("ask: Cancel {order}", "ask: Cancel {ordre}", 31, "no argument"),
    ("ask: Cancel {order}", "ask: Cancel an order", 31, "names no argument"),
    ("ask: Cancel {order}", "ask: Cancel {order} {", 31, "brace"),
    ("ask: Cancel {order}", "ask: Cancel {order} {no te}", 31, "brace"),
    ("ask: Cancel {order}", "ask: Cancel {order} {Note}", 31, "no argument"),
    ("grant: [order]", "grant: [ordr]", 32, "Did you mean 'order'"),
    ("plain: [order]", "plain: [everything]", 33, "cannot be"),
    ("DELETE /orders/{order}", "DELETE /orders/{id}", 29, "without its argument"),
    ("DELETE /orders/{order}", "DELETE /orders/{order}/{order}", 29, "twice"),
    ("order: {type: string}", "order: {type: string, required: false}", 35, "always required"),
    ("order: {type: string}", "order: {type: string, in: query}", 35, "stands there"),
    ("order: {type: string}", "order: {type: string, as: id}", 35, "Remove `as:`"),
    ("order: {type: string}", "order: {type: object}", 35, "In a path"),
    ("order: {type: string}", "order: {}", 35, "no `type`"),
    ("order: {type: string}", "order: {type: strin}", 35, "not a JSON Schema"),
    ("order: {type: string}", "order: {type: string, minLength: -1}", 35, "not a JSON Schema"),
    ("order: {type: string}", "order: {type: string, pattern: '(?<=a)b'}", 35, "not a JSON Schema"),
    ("order: {type: string}", "order: {type: string, $ref: '#/x'}", 35, "no key '$ref'"),
    ("order: {type: string}", "order: {type: string, default: 2026-01-02}", 35, "date"),
    ("note: {in: body,", "note: {in: path,", 36, "no hole"),
    ("note: {in: body,", "note: {in: header, as: X-Key,", 36, "set by Keyleash"),
    ("note: {in: body,", "note: {in: header, as: Host,", 36, "set by Keyleash"),
    ("note: {in: body,", "note: {in: body, slashes: true,", 36, "Only a path argument"),
    ("note: {in: body,", "note: {in: body, list: comma,", 36, "query"),
    ("note: {in: body,", "note: {in: body, required: [a],", 36, "true or false"),
    ("type: integer}", "type: integer, in: body}", 24, "has no body"),
    ("type: integer}", "type: object}", 24, "In a query"),
    ("type: array, items: {type: string}", "type: array", 25, "items"),
    ("tags: {", 'tags: {as: "created[gte]", ', 25, "same query name"),
    ('select: "{id: id}"', 'select: "{id: }"', 37, "not JMESPath"),
    ("redact: [token]", "redact: token", 37, "must be a list"),
    ("output: {select", "output: {selects", 37, "Did you mean 'select'"),
    ("title: Shop", "title: Shop\n429: x", 3, "not text"),
    ("name: X-Key", "name: X-Key\n    fields: {}", 13, "Fields is empty"),
    ("X-Version:", 'x-version: "1"\n  X-Version:', 7, "there twice"),
    ("ok: ok}", "request_id_header: 'a b'}", 14, "header's name"),
    ("ok: ok}", "ok: ok, limited: [SLOW]}", 14, "no `code:` that finds one"),
    ("ok: ok}", "ok: ok, code: code, unclear: SLOW}", 14, "must be a list"),
    ("scheme: header", "scheme: bearer", 12, "always stands in Authorization"),
    ("scheme: header\n", "scheme: query\n    prefix: Token\n", 12, "takes no prefix"),
    ("name: X-Key", "name: X-Key\n    pattern: a\n    fields: {secret: {label: Key}}", 13, "belongs to each"),
    ("name: X-Key", "name: X-Key\n    fields: {password: {label: Key}}", 13, "has no field 'password'"),
    ("name: X-Key", "name: X-Key\n    fields: {secret: {label: Key, secret: false}}", 13, "No field is secret"),
    ("ask: Cancel {order}", 'ask: "Cancel {order}\\nand more"', 31, "more than one line"),
    ("scheme: header\n    name: X-Key", "scheme: query\n    name: tags", 25, "carries the credential"),
    ("ok: ok}", "ok: ok, limited: [slow]}", 14, "no `code:`"),
    ("ok: ok}", "ok: ok, rejected: [expired]}", 14, "no `code:`"),
    ("note: {in: body,", 'note: {in: body, as: "[note]",', 36, "names no place in a JSON body"),
    ("note: {in: body,", 'note: {in: body, as: "notes[]",', 36, "names no place in a JSON body"),
    ("note: {in: body,", 'note: {in: body, as: "0[note]",', 36, "names no place in a JSON body"),
    ("    plain: [order]", "    fixed: {boddy: {a: 1}}\n    plain: [order]", 33, "Did you mean 'body'"),
    ("    plain: [order]", "    fixed: {body: {note: 1}}\n    plain: [order]", 33, "Two values would stand at note"),
    (
        "    plain: [order]",
        '    fixed: {body: {"note[a]": 1}}\n    plain: [order]',
        33,
        "Two values would stand at note[a]",
    ),
    (
        "    plain: [order]",
        '    fixed: {body: {"a[0]": 1, "a[b]": 2}}\n    plain: [order]',
        33,
        "disagree on what is a list",
    ),
    (
        "    plain: [order]",
        "    fixed: {query: {a: [1]}}\n    plain: [order]",
        33,
        "text, a whole number, true or false",
    ),
    ("    plain: [order]", "    encode: {raw: mail}\n    plain: [order]", 33, "No argument stands at raw"),
    ("    plain: [order]", '    encode: {"note[0]": mail}\n    plain: [order]', 33, "cannot write into a list"),
    ("    plain: [order]", "    encode: {note: mail}\n    plain: [order]", 33, "takes no value of its own"),
    ("    plain: [order]", "    encode: {note: male}\n    plain: [order]", 33, "Did you mean 'mail'"),
    ("    arguments:\n      since", "    fixed: {body: {a: 1}}\n    arguments:\n      since", 23, "A GET has no body"),
    ("    arguments:\n      since", "    fixed: {query: {tags: a}}\n    arguments:\n      since", 23, "set elsewhere"),
    ("redact: [token]", "next_url: paging.next", 37, "Nobody knows which part"),
    ("redact: [token]", "brief: shorter", 37, "What makes it brief"),
    ("redact: [token]", "text: 1", 37, "true or false"),
    ("title: Shop", "title: Shop\nbody: xml", 3, "The body"),
    ("title: Shop", "title: Shop\nidempotency: {header: Host, methods: [POST]}", 3, "set by Keyleash"),
    ("title: Shop", "title: Shop\nidempotency: {header: Key, methods: [GET]}", 3, "A method"),
    ("account: name", "account: 'to_string(name, id)'", 13, "takes 1 arguments, not 2"),
    ("account: name", "account: 'to_string(nope(name))'", 13, "no function"),
    ("account: name", "account: '[to_string(name), join(name)]'", 13, "takes 2 arguments"),
    ("scheme: header\n", 'scheme: header\n    prefix: "a\\nb"\n', 12, "visible ASCII"),
    ("name: X-Key", "name: X-Key\n    fields: {secret: {label: Key, variable: KEY}}", 13, "no key 'variable'"),
    ("name: X-Key", 'name: X-Key\n    fields: {secret: {label: Key, secret: "no"}}', 13, "true or false"),
    ("name: X-Key", "name: X-Key\n    warnings: {'(': Never.}", 13, "regular expression"),
    ("ask: Cancel {order}", "ask: Cancel {order} }", 31, "brace"),
]


@pytest.mark.parametrize(("was", "becomes", "line", "says"), BROKEN)
def test_what_is_wrong_is_refused_with_its_line(was: str, becomes: str, line: int, says: str):
    assert was in GOOD
    text = GOOD.replace(was, becomes, 1)
    with pytest.raises(DefinitionError) as refused:
        parse(text, "shop.yaml")
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"shop.yaml:{line}: "), str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("- a\n", "mapping"),
        ("a: b\n---\nc: d\n", "not YAML"),
        ("a: [", "not YAML"),
        ("a: \x01", "not YAML"),
        ("a: " + "[" * 5000, "not YAML|too deeply"),
        ("a: " + "[" * 5000 + "]" * 5000, "too deeply|not YAML"),
        ("a: &x [*x]", "anchor|not YAML"),
    ],
)
def test_what_is_not_a_plain_document_is_refused(text: str, says: str):
    with pytest.raises(DefinitionError) as refused:
        parse(text)
    assert any(part in str(refused.value) for part in says.split("|")), str(refused.value)


def test_a_bomb_of_anchors_is_refused_before_it_expands():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    with pytest.raises(DefinitionError, match="anchor"):
        read_text(bomb, "bomb.yaml")


def test_a_file_that_cannot_be_read_is_refused_in_the_same_way(tmp_path: Path):
    for name, content, says in [
        ("latin.yaml", b"id: shop\ntitle: caf\xe9\n", "latin.yaml:2: The file is not UTF-8"),
        ("huge.yaml", b"#" * (MAX_BYTES + 1), "larger than 1 MiB"),
        ("other.yaml", GOOD.encode(), "The id is 'shop' in a file named 'other.yaml'"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DefinitionError) as refused:
            load(tmp_path / name)
        assert says in str(refused.value)
    with pytest.raises(DefinitionError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_nested_properties_are_closed_and_their_requirements_move_up():
    text = GOOD.replace(
        "note: {in: body, type: string, absent: none}",
        "note: {in: body, type: object, properties: {a: {type: string, required: true}, b: {type: integer}}}",
    )
    assert parse(text).tools["cancel_order"].input_schema["properties"]["note"] == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }


def test_a_tools_hash_changes_with_whatever_decides_what_is_sent_or_shown():
    def hash_of(was: str, becomes: str) -> str:
        assert was in GOOD
        return parse(GOOD.replace(was, becomes, 1)).tools["cancel_order"].definition_hash

    changes = [
        ("https://api.shop.example/v1", "https://api.shop.example/v2"),
        ('"2026-01-02"', '"2026-01-03"'),
        ("DELETE /orders/", "DELETE /order/"),
        ("Cancel {order}", "Stop {order}"),
        ("For good.", "Forever."),
        ("effect: destroy", "effect: grant"),
        ("redact: [token]", "redact: [tokens]"),
        ("redact: [token]", "redact: [token], base64url: [data]"),
        ("redact: [token]", "redact: [token], next: cursor"),
        ("plain: [order]", "plain: [order]\n    fixed: {query: {all: true}}"),
        ("plain: [order]", "plain: [order]\n    fixed: {body: {reason: other}}"),
        ("order: {type: string}", "order: {type: string, maxLength: 9}"),
        ("verify:", "body: form\nverify:"),
        ("verify:", "idempotency: {header: Idempotency-Key, methods: [POST]}\nverify:"),
    ]
    hashes = {hash_of("title: Shop", "title: Shop"), *(hash_of(*change) for change in changes)}
    assert len(hashes) == len(changes) + 1
    assert hash_of("title: List orders", "title: Orders") == hash_of("title: Shop", "title: Shop")


def test_an_encoder_writes_into_json_only():
    text = GOOD.replace("note: {in: body,", 'note: {in: body, as: "raw[text]",').replace(
        "    plain: [order]", "    encode: {raw: mail}"
    )
    assert parse(text).tools["cancel_order"].encode == ((("raw",), "mail"),)
    with pytest.raises(DefinitionError, match=r"yaml:34: An encoder writes into a JSON body"):
        parse(text.replace("verify:", "body: form\nverify:"))


@pytest.mark.parametrize(
    ("base_url", "example"),
    [
        ("https://acme.shop.example.invalid/v1", "https://acme.shop.example/v1"),
        ("https://acme.shop.example.invalid", "https://acme.shop.example"),
        ("https://shop.invalid", ""),  # written by an import: nobody knows one
        ("https://api.shop.example/v1", ""),
        ("https://api.invalid.example/v1", ""),
        ("https://api.invalidated/v1", ""),
        ("https://api.shop.example/v.invalid", ""),
    ],
)
def test_a_host_in_invalid_is_an_example_of_an_address(base_url: str, example: str):
    assert parse(GOOD.replace("https://api.shop.example/v1", base_url)).example_url == example


@pytest.mark.parametrize(("prefix", "sent"), [("Bot", "Bot "), ("Token token=", "Token token=")])
def test_a_prefix_that_ends_in_an_equals_sign_stands_directly_before_the_secret(prefix: str, sent: str):
    text = GOOD.replace("scheme: header\n    name: X-Key", f"scheme: bearer\n    prefix: {prefix}")
    assert parse(text).credentials[0].prefix == sent


def test_a_selector_finds_nothing_in_an_answer_it_does_not_fit():
    select = parse(GOOD.replace("account: name", "account: \"join(', ', names)\"")).account
    assert select is not None
    assert select.search({"names": ["a", "b"]}) == "a, b"
    for answer in ({}, [], "text", 3, None, {"names": 3}, {"names": [1]}):
        assert select.search(answer) is None


def test_the_summary_shows_every_value_once_and_says_what_is_absent():
    tool = parse(GOOD.replace("ask: Cancel {order}", "ask: 'Cancel {order} ({note})'")).tools["cancel_order"]
    assert tool.summary({"order": "o_1"}) == "Cancel o_1 (none)"
    assert tool.summary({"order": "{note}", "note": "x"}) == "Cancel {note} (x)"
    assert tool.summary({"order": "o_1", "note": {"b": 1, "a": 2}}) == 'Cancel o_1 ({"a":2,"b":1})'
    assert tool.summary({"order": "o_1", "note": "x"}, repr) == "Cancel 'o_1' ('x')"


# --- effects


def test_effects_are_in_the_order_of_strictness():
    assert [effect.value for effect in sorted(Effect, key=lambda effect: effect.strictness)] == [
        *("read", "metered", "sensitive", "write", "send", "spend", "destroy", "grant")
    ]


@pytest.mark.parametrize(
    ("method", "path", "name", "effect"),
    [
        ("GET", "/v1/refunds", "list_refunds", Effect.READ),
        ("HEAD", "/x", "x", Effect.READ),
        ("POST", "/things", "create_thing", Effect.WRITE),
        ("PATCH", "/things/{thing}", "update_thing", Effect.WRITE),
        ("DELETE", "/things/{thing}", "x", Effect.DESTROY),
        ("POST", "/v1/refunds", "create", Effect.SPEND),
        ("GET", "/chat.delete", "x", Effect.DESTROY),
        ("POST", "/chat.postMessage", "x", Effect.SEND),
        ("POST", "/x", "archive_channel", Effect.DESTROY),
        ("GET", "/actions/secrets", "x", Effect.SENSITIVE),
        ("PUT", "/actions/secrets/{name}", "x", Effect.GRANT),
        ("DELETE", "/orgs/{org}/members/{delete}", "x", Effect.GRANT),
        ("GET", "/things/{delete}", "x", Effect.READ),
    ],
)
def test_an_unstated_effect_is_the_methods_raised_by_the_words(method: str, path: str, name: str, effect: Effect):
    assert derive(method, path, name) is effect
    assert effect.strictness >= DEFAULTS[method].strictness


def test_an_unreviewed_file_may_leave_effects_out_and_cannot_lower_them_without_a_reason():
    unreviewed = (
        GOOD.replace("reviewed: true\n", "").replace("    effect: destroy\n", "").replace("    effect: read\n", "")
    )
    assert parse(unreviewed).tools["cancel_order"].effect is Effect.DESTROY
    assert parse(unreviewed).tools["list_orders"].effect is Effect.READ
    assert not parse(unreviewed).reviewed
    lowered = GOOD.replace("effect: destroy", "effect: write\n    because: Orders come back by themselves.")
    assert parse(lowered).tools["cancel_order"].effect is Effect.WRITE


@pytest.mark.parametrize("hours", ["0", "721", "1.5", "true", "'24'", "[24]"])
def test_how_long_a_key_is_known_is_a_number_of_hours(hours: str):
    keyed = "idempotency: {header: Idempotency-Key, methods: [POST], hours: HOURS}\nverify:"
    known = parse(GOOD.replace("verify:", keyed.replace("HOURS", "24"), 1))
    assert known.idempotency_hours == 24
    assert all(
        known.repeats_within(tool) == (24 * 3_600_000 if tool.method == "POST" else 0) for tool in known.tools.values()
    )
    with pytest.raises(DefinitionError, match="whole number from 1 to 720"):
        parse(GOOD.replace("verify:", keyed.replace("HOURS", hours), 1))


def test_a_text_cannot_be_selected_from():
    tool = GOOD.replace("    effect: read\n", "    effect: read\n    output: {text: true, redact: [a]}\n", 1)
    with pytest.raises(DefinitionError, match="has nothing that `redact:` could find"):
        parse(tool)


# --- the format's own schema


def test_the_committed_schema_for_editors_is_current():
    committed = Path(__file__).parents[2] / "configs" / "connector.schema.json"
    assert json.loads(committed.read_text("utf-8")) == json_schema(), (
        "Write json_schema() of connectors/fileformat.py into configs/connector.schema.json."
    )


def test_the_schema_for_editors_takes_the_good_file_and_finds_plain_mistakes():
    schema = jsonschema_rs.Draft202012Validator(json_schema())
    assert schema.is_valid(read_text(GOOD, "shop.yaml").plain())
    for was, becomes in [
        ("title: Shop", "titel: Shop"),
        ("scheme: header", "scheme: heder"),
        ("effect: destroy", "effect: destory"),
        ("call: GET /orders\n", "call: FETCH /orders\n"),
        ("order: {type: string}", "order: {type: string, $ref: '#/x'}"),
        ("order: {type: string}", "order: {type: string, in: cookie}"),
    ]:
        assert not schema.is_valid(read_text(GOOD.replace(was, becomes, 1), "shop.yaml").plain()), becomes
