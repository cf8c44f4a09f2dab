"""A request holds declared arguments only, and never leaves its base URL, whatever the arguments are."""

import base64
import json
import re
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.definition import Call
from connectors.errors import Unsendable
from connectors.loading import parse
from connectors.request import (
    MAX_BODY,
    MAX_HEADER_VALUE,
    MAX_PATH_VALUE,
    MAX_PATH_VALUES,
    MAX_QUERY_VALUE,
    MAX_URL,
    Prepared,
    base,
    check_below,
    prepare,
    prepare_verify,
)

TEXT = """\
id: shop
title: Shop
base_url: https://api.shop.example/v1
headers: {X-Version: "7", Content-Type: application/json; charset=utf-8}
idempotency: {header: Idempotency-Key, methods: [POST]}
credentials: {key: {label: Key, help: There., scheme: bearer}}
verify: {call: GET /me}
tools:
  order:
    title: Order
    description: One order.
    call: GET /orders/{order}/lines
    arguments:
      order: {type: string}
      q: {type: string}
      after: {as: "created[gte]", type: integer}
      open: {type: boolean}
      tags: {type: array, items: {type: string}}
      kinds: {type: array, items: {type: string}, list: comma}
      ids: {type: array, items: {type: integer}, list: brackets}
      trace: {in: header, as: X-Trace, type: string}
  file:
    title: File
    description: One file.
    call: GET /files/{path}
    headers: {Accept: text/plain}
    arguments:
      path: {type: string, slashes: true}
  make:
    title: Make
    description: Make one.
    call: POST /orders
    ask: Make {title}
    arguments:
      title: {type: string}
      lines: {type: array, items: {type: object}}
      meta: {type: object}
  file_ticket:
    title: File
    description: File one.
    call: POST /tickets
    ask: File {subject}
    fixed: {query: {notify: true, fields: "id,name"}, body: {"ticket[kind]": bug, "ticket[who][0][role]": owner}}
    arguments:
      subject: {as: "ticket[subject]", type: string}
      owner: {as: "ticket[who][0][email]", type: string}
      tags: {as: "ticket[tags]", type: array, items: {type: string}}
      size: {in: query, as: "page[size]", type: integer}
      draft: {type: boolean}
  touch:
    title: Touch
    description: Touch one.
    call: POST /users/@me/touch
    fixed: {body: {touched: true}}
    ask: Touch
  close:
    title: Close
    description: Close one.
    call: POST /orders/{order}/close
    ask: Close {order}
    arguments:
      order: {type: string}
"""
SHOP = parse(
    TEXT
    + """\
  send_mail:
    title: Send
    description: Send one.
    call: POST /mail
    ask: Send {to}
    encode: {"message[raw]": mail}
    arguments:
      to: {as: "message[raw][to]", type: array, items: {type: string}}
      cc: {as: "message[raw][cc]", type: array, items: {type: string}}
      subject: {as: "message[raw][subject]", type: string}
      text: {as: "message[raw][text]", type: string}
      in_reply_to: {as: "message[raw][in_reply_to]", type: string}
      thread: {as: "message[thread]", type: string}
"""
)
FORM = parse(
    TEXT.replace("headers: {X-Version", "body: form\nheaders: {X-Version").replace(
        ", Content-Type: application/json; charset=utf-8", ""
    )
)
URL = "https://api.shop.example/v1"


def make(tool: str, arguments: dict[str, Any], *, base_url: str = URL, connector: Any = SHOP, **more: Any) -> Prepared:
    return prepare(Call("shop", connector, connector.tools[tool], f"shop_{tool}", arguments), base_url=base_url, **more)


# --- what is sent


def test_the_request_is_exactly_what_the_definition_and_the_arguments_say():
    assert make(
        "order", {"order": "o 1/é?".replace("/", ""), "q": "a&b=c #1", "after": 5, "open": True, "trace": "t-1"}
    ) == Prepared(
        method="GET",
        url=f"{URL}/orders/o%201%C3%A9%3F/lines?q=a%26b%3Dc%20%231&created%5Bgte%5D=5&open=true",
        origin="https://api.shop.example",
        base_path="/v1",
        headers=(("Accept", "application/json"), ("X-Version", "7"), ("X-Trace", "t-1")),
    )


def test_lists_in_a_query_are_written_as_declared():
    prepared = make("order", {"order": "o", "tags": ["a", "b"], "kinds": ["c", "d"], "ids": [1, 2]})
    assert urlsplit(prepared.url).query == "tags=a&tags=b&kinds=c%2Cd&ids%5B%5D=1&ids%5B%5D=2"
    assert "?" not in make("order", {"order": "o", "tags": [], "kinds": []}).url
    with pytest.raises(Unsendable, match="kinds may not hold a comma"):
        make("order", {"order": "o", "kinds": ["a,b"]})


def test_a_json_body_holds_the_body_arguments_and_keeps_their_text():
    prepared = make("make", {"title": "é\n\x01", "lines": [{"n": 1}], "meta": {}})
    assert prepared.body == '{"title":"é\\n\\u0001","lines":[{"n":1}],"meta":{}}'.encode()
    assert ("Content-Type", "application/json; charset=utf-8") in prepared.headers
    assert make("make", {}).body == b"{}"


def test_a_form_body_nests_in_brackets_and_escapes_every_key():
    prepared = make(
        "make", {"title": "a&b=c", "lines": [{"n": 1}, {"n": None}], "meta": {"x&y=1": True}}, connector=FORM
    )
    assert prepared.body == b"title=a%26b%3Dc&lines%5B0%5D%5Bn%5D=1&lines%5B1%5D%5Bn%5D=&meta%5Bx%26y%3D1%5D=true"
    assert parse_qsl(prepared.body.decode(), keep_blank_values=True)[-1] == ("meta[x&y=1]", "true")
    assert ("Content-Type", "application/x-www-form-urlencoded") in prepared.headers


@pytest.mark.parametrize("key", ["", "a][b", "a[b]", "x]", "[x", "]["])
def test_a_name_that_a_form_would_be_read_with_as_something_else_is_refused(key: str):
    for meta in ({key: "v"}, {"a": {key: "v"}}):
        with pytest.raises(Unsendable, match="inside of meta"):
            make("make", {"meta": meta}, connector=FORM)
        assert make("make", {"meta": meta}).body == json.dumps({"meta": meta}, separators=(",", ":")).encode()


def test_brackets_nest_in_a_json_body_and_fixed_values_are_always_sent():
    prepared = make("file_ticket", {"subject": "x", "owner": "a@b.example", "tags": ["t"], "size": 5, "draft": False})
    assert prepared.body is not None
    assert json.loads(prepared.body) == {
        "ticket": {"kind": "bug", "who": [{"role": "owner", "email": "a@b.example"}], "subject": "x", "tags": ["t"]},
        "draft": False,
    }
    assert urlsplit(prepared.url).query == "notify=true&fields=id%2Cname&page%5Bsize%5D=5"
    bare = make("file_ticket", {})
    assert bare.body == b'{"ticket":{"kind":"bug","who":[{"role":"owner"}]}}'
    assert make("touch", {}).body == b'{"touched":true}'


def test_one_call_leaves_nothing_in_what_the_next_one_sends():
    first = make("file_ticket", {"owner": "a@b.example"})
    make("file_ticket", {"owner": "c@d.example", "tags": ["t"]})
    assert make("file_ticket", {"owner": "a@b.example"}).body == first.body


def test_in_a_form_brackets_are_a_part_of_the_name():
    form = make("file_ticket", {"subject": "a b"}, connector=FORM)
    assert form.body == b"ticket%5Bkind%5D=bug&ticket%5Bwho%5D%5B0%5D%5Brole%5D=owner&ticket%5Bsubject%5D=a%20b"


def test_a_path_may_hold_an_at_sign():
    assert make("touch", {}).url == f"{URL}/users/@me/touch"


# --- mail


def mail_in(prepared: Prepared) -> EmailMessage:
    assert prepared.body is not None
    raw = base64.urlsafe_b64decode(json.loads(prepared.body)["message"]["raw"])
    return message_from_bytes(raw, policy=SMTP)


def lines(text: str) -> list[str]:
    """Lines of a mail, whatever ends them, without the ends of the last."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


def test_arguments_are_written_as_a_mail():
    prepared = make(
        "send_mail",
        {
            "to": ["ann@a.example", "Böb Ünal <bob@b.example>"],
            "cc": ["c@c.example"],
            "subject": "Grüße",
            "text": "Hällo,\n\nwie geht's?\n.\nFrom here on\n" + "x" * 2000,
            "in_reply_to": "<1@a.example>",
            "thread": "t1",
        },
    )
    mail = mail_in(prepared)
    assert mail["To"] == "ann@a.example, Böb Ünal <bob@b.example>"
    assert (mail["Cc"], mail["Subject"], mail["In-Reply-To"]) == ("c@c.example", "Grüße", "<1@a.example>")
    assert lines(mail.get_content()) == ["Hällo,", "", "wie geht's?", ".", "From here on", "x" * 2000]
    assert set(mail.keys()) == {
        *("To", "Cc", "Subject", "In-Reply-To", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"),
    }
    assert json.loads(prepared.body or b"")["message"]["thread"] == "t1"


def test_a_mail_without_any_argument_is_an_empty_one():
    assert mail_in(make("send_mail", {})).get("To") is None
    assert lines(mail_in(make("send_mail", {"thread": "t"})).get_content()) == [""]


def test_equal_arguments_make_the_same_mail():
    arguments = {"to": ["a@a.example"], "subject": "s", "text": "t"}
    assert make("send_mail", arguments).body == make("send_mail", arguments).body


@pytest.mark.parametrize(
    "address",
    [
        *("", "ann", "ann@", "@a.example", "ann@example", "a@a.example, b@b.example", "a@a.example;b@b.example"),
        *("a@a.example\r\nBcc: b@b.example", "Ann\n <a@a.example>", "<a@a.example> <b@b.example>", "a b@a.example"),
        *("b@b.example <a@a.example>", '"b@b.example" <a@a.example>', "Ann <a@a.example", "a@a.example (b@b.example)"),
        *("group: b@b.example;", "a@[127.0.0.1]", "ä@a.example", "a@a..example", "=?utf-8?q?b=40b=2Eexample?= <a@a>"),
    ],
)
def test_an_address_that_could_be_read_as_another_is_refused(address: str):
    for field in ("to", "cc"):
        with pytest.raises(Unsendable, match=r"address|control"):
            make("send_mail", {"to": ["z@z.example"], field: [address], "text": "t"})


@pytest.mark.parametrize("field", ["subject", "in_reply_to"])
@pytest.mark.parametrize("value", ["a\r\nBcc: b@b.example", "a\nb", "a\rb", "a\x00b", "a\u2028b", "a\x85b"])
def test_no_line_of_a_mail_adds_a_header(field: str, value: str):
    with pytest.raises(Unsendable, match=f"{field} may not hold line breaks"):
        make("send_mail", {"to": ["a@a.example"], field: value, "text": "t"})


@given(text=st.text(max_size=200), subject=st.text(st.characters(exclude_categories=["C", "Z"]), max_size=200))
def test_whatever_is_written_the_mail_has_the_headers_and_the_text_that_were_given(text: str, subject: str):
    try:
        mail = mail_in(make("send_mail", {"to": ["a@a.example"], "subject": subject, "text": text}))
    except Unsendable:
        return
    assert mail.get_all("To") == ["a@a.example"]
    assert mail.get("Bcc") is None
    assert str(mail["Subject"] or "") == subject
    assert lines(mail.get_content()) == lines(text)


def test_a_call_without_body_arguments_has_neither_body_nor_content_type():
    for prepared in (make("order", {"order": "o"}), make("close", {"order": "o"}), prepare_verify(SHOP, base_url=URL)):
        assert prepared.body is None
        assert "Content-Type" not in dict(prepared.headers)


def test_a_tools_own_header_stands_in_place_of_the_connectors():
    assert dict(make("file", {"path": "a"}).headers)["Accept"] == "text/plain"


def test_an_idempotency_key_goes_only_where_it_is_honoured():
    keyed = make("make", {}, idempotency_key="k1")
    assert keyed.idempotent
    assert ("Idempotency-Key", "k1") in keyed.headers
    for prepared in (make("make", {}), make("order", {"order": "o"}, idempotency_key="k1")):
        assert not prepared.idempotent
        assert "Idempotency-Key" not in dict(prepared.headers)


def test_the_verify_call_is_prepared_like_any_other():
    prepared = prepare_verify(SHOP, base_url="http://127.0.0.1:8080/")
    assert (prepared.method, prepared.url, prepared.base_path) == ("GET", "http://127.0.0.1:8080/me", "")


# --- attacks

CLIMBING = [
    "..", ".", "%2e%2e", "%2E.", "%252e%252e", "%25252e%25252e", "../me", "a/../b", "/", "//evil.example", "a/b",
    "/etc", "\\", "..\\..", "a\\b", "%2f", "a%2Fb", "%5c", "a%255cb", "%2e%2e%2f", "..%2f", "", "..%00/",
]  # fmt: skip
CONTROL = ["a\r\nHost: evil", "a\nb", "\x00", "a\x00", "\t", "\x7f", "\x85", "\u2028", "\ud800", "a\udfffb"]
ENCODED = [
    "?admin=1", "#x", "@evil.example", ":80@evil", "a;b", "a&b", "a=b", "a b", "…", "é", "..a", "...", "~", "%", "100%",
    "%zz", "%41", "a:b", "http:evil", "*", "'", '"', "<>", "|", "^", "`", "{order}", "\u202e", "\uff0e\uff0e", "\uff0f",
]  # fmt: skip


@pytest.mark.parametrize("value", [*CLIMBING, *CONTROL])
def test_a_path_value_that_could_climb_or_break_the_line_is_refused(value: str):
    with pytest.raises(Unsendable, match="order"):
        make("order", {"order": value})


@pytest.mark.parametrize("value", ENCODED)
def test_any_other_path_value_is_one_encoded_segment(value: str):
    prepared = make("order", {"order": value})
    path = urlsplit(prepared.url).path
    assert path.startswith("/v1/orders/")
    assert path.endswith("/lines")
    assert path.count("/") == 4
    assert unquote(path.split("/")[3]) == value
    assert re.fullmatch(r"([A-Za-z0-9._~-]|%[0-9A-F]{2})+", path.split("/")[3])
    assert urlsplit(prepared.url)[1] == "api.shop.example"
    assert urlsplit(prepared.url)[3:] == ("", "")


@pytest.mark.parametrize(
    "value",
    [
        *(value for value in CLIMBING if value not in ("a/b",)),
        *CONTROL,
        "a//b",
        "/a",
        "a/",
        "a/./b",
        "a/%2e%2e/b",
        "a/b\\c",
    ],
)
def test_every_segment_of_a_value_with_slashes_is_held_to_the_same_rule(value: str):
    with pytest.raises(Unsendable, match="path"):
        make("file", {"path": value})


def test_a_value_with_slashes_keeps_them_and_encodes_the_rest():
    assert make("file", {"path": "docs/a b/?x#y/@z"}).url == f"{URL}/files/docs/a%20b/%3Fx%23y/%40z"


@pytest.mark.parametrize("value", CONTROL)
def test_a_query_value_with_control_characters_is_refused(value: str):
    for arguments in ({"q": value}, {"tags": [value]}):
        with pytest.raises(Unsendable):
            make("order", {"order": "o", **arguments})


@pytest.mark.parametrize("value", ["..", "//evil", "?a=b", "#x", "@evil", "\\", "a&order=b", "=", "%2e%2e", "", "é"])
def test_any_other_query_value_is_one_encoded_value(value: str):
    prepared = make("order", {"order": "o", "q": value})
    assert parse_qsl(urlsplit(prepared.url).query, keep_blank_values=True) == [("q", value)]
    assert prepared.url.startswith(f"{URL}/orders/o/lines?q=")
    assert "#" not in prepared.url


@pytest.mark.parametrize("value", [*CONTROL, "", " a", "a ", "é", "a\r\nX-Evil: 1", "\u202e", "a\x0bb"])
def test_a_header_value_is_visible_ascii_or_refused(value: str):
    with pytest.raises(Unsendable, match="trace"):
        make("order", {"order": "o", "trace": value})


def test_over_long_values_are_refused_and_the_longest_are_not():
    longest = {"order": "a" * MAX_PATH_VALUE, "q": "b" * MAX_QUERY_VALUE, "trace": "c" * MAX_HEADER_VALUE}
    assert make("order", longest).url.endswith("b")
    assert make("file", {"path": "a/" * (MAX_PATH_VALUES // 2 - 1) + "bc"}).url.endswith("bc")
    for name, value in longest.items():
        with pytest.raises(Unsendable, match=f"{name} .*longer|longer"):
            make("order", longest | {name: value + "a"})
    with pytest.raises(Unsendable, match="longer"):
        make("file", {"path": "a/" * (MAX_PATH_VALUES // 2) + "b"})
    with pytest.raises(Unsendable, match=f"longer than {MAX_URL}"):
        make("order", {"order": "o", "tags": ["é" * 700, "é" * 700, "é" * 700]})


def test_an_over_long_body_is_refused_and_the_longest_is_not():
    room = MAX_BODY - len('{"title":""}')
    assert len(make("make", {"title": "a" * room}).body or b"") == MAX_BODY
    with pytest.raises(Unsendable, match="body"):
        make("make", {"title": "a" * (room + 1)})


def test_a_lone_surrogate_in_a_body_is_refused_in_json_and_form():
    for connector in (SHOP, FORM):
        with pytest.raises(Unsendable, match="surrogate"):
            make("make", {"title": "\ud800"}, connector=connector)


@given(st.text(max_size=40), st.text(max_size=40))
@example("..", "")
@example("a/../../b", "?")
def test_whatever_the_arguments_are_the_url_is_below_the_base_or_nothing_is_made(first: str, second: str):
    for tool, arguments in (("order", {"order": first, "q": second}), ("file", {"path": first})):
        try:
            prepared = make(tool, arguments)
        except Unsendable:
            continue
        parts = urlsplit(prepared.url)
        assert prepared.url.isascii()
        assert f"{parts.scheme}://{parts.netloc}" == "https://api.shop.example"
        decoded = parts.path
        while (again := unquote(decoded)) != decoded:
            decoded = again
        assert decoded.startswith(f"/v1/{tool}s/")
        assert not {".", ".."} & set(decoded.replace("\\", "/").split("/"))


# --- the last check, by itself


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/v1/x",
        "http://api.shop.example/v1/x",
        "https://api.shop.example:444/v1/x",
        "https://api.shop.example@evil.example/v1/x",
        "https://a@api.shop.example/v1/x",
        "https://api.shop.example.evil.example/v1/x",
        "https://api.shop.example/v2/x",
        "https://api.shop.example/v1",
        "https://api.shop.example/v10/x",
        "https://api.shop.example/v1/../x",
        "https://api.shop.example/v1/%2e%2e/x",
        "https://api.shop.example/v1/%252e%252e/x",
        "https://api.shop.example/v1/a%2f..%2f..%2fx",
        "https://api.shop.example/v1//x",
        "https://api.shop.example/v1/x\\y",
        "https://api.shop.example/v1/x%5cy",
        "https://api.shop.example/v1/x#y",
        "https://api.shop.example/v1/x y",
        "https://api.shop.example/v1/x\ny",
        "https://api.shop.example/v1/é",
        "//api.shop.example/v1/x",
        "/v1/x",
        "",
    ],
)
def test_a_url_elsewhere_does_not_pass_the_last_check(url: str):
    with pytest.raises(Unsendable):
        check_below(url, origin="https://api.shop.example", base_path="/v1")


def test_a_url_below_the_base_passes_the_last_check():
    for url in (f"{URL}/x", f"{URL}/x/", f"{URL}/x?y=/../z&w=%2e%2e", f"{URL}/a%20b%25"):
        check_below(url, origin="https://api.shop.example", base_path="/v1")


# --- base URLs


@pytest.mark.parametrize(
    ("text", "origin", "path"),
    [
        ("https://API.shop.example", "https://api.shop.example", ""),
        ("https://api.shop.example/", "https://api.shop.example", ""),
        ("https://api.shop.example:443/v1/", "https://api.shop.example", "/v1"),
        ("http://127.0.0.1:8080/a/b", "http://127.0.0.1:8080", "/a/b"),
        ("http://[::1]:80/a", "http://[::1]", "/a"),
    ],
)
def test_a_base_url_is_taken_apart_and_made_plain(text: str, origin: str, path: str):
    assert (base(text).origin, base(text).path) == (origin, path)


@pytest.mark.parametrize(
    "text",
    [
        "", "api.shop.example", "ftp://a.example", "HTTPS//a", "https://", "https:///v1", "https://user@a.example",
        "https://user:pw@a.example", "https://a.example?x=1", "https://a.example/?x=1", "https://a.example/#x",
        "https://a.example/..", "https://a.example/a/../b", "https://a.example/%2e%2e", "https://a.example//b",
        "https://a.example/b//", "https://a.example\\b", "https://a.example/b\\c", "https://a.example:0", "https://a b",
        "https://a.example:99999", "https://a.example:", "https://a.example\n", "https://[::1", "https://[zz]",
        "https://[:::]", "https://exämple.de", "https://a.example/ü", "https://a.example/\u202e",
        "https://a.example/a b",
    ],
)  # fmt: skip
def test_anything_but_scheme_host_port_and_path_is_no_base_url(text: str):
    with pytest.raises(Unsendable):
        base(text)
