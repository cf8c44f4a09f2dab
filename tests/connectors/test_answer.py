"""What a model gets of a reply: shaped, bounded, without a secret, and without an upstream's word on a bad key."""

import base64
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from connectors.answer import MAX_MESSAGE, Result, interpret, interpret_verify
from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Call
from connectors.egress import Reply
from connectors.errors import ConnectorError, CredentialRejected, RateLimited, UpstreamError
from connectors.loading import load
from connectors.portions import MAX_TEXT
from connectors.scrub import REMOVED, Scrubber

ROOT = Path(__file__).parents[2]
CANARY = "sk_live_CANARY4f8a91"

SHOP = r"""
id: shop
title: Shop
base_url: https://shop.example/v1
credentials:
  key: {label: key, help: Ask for one., scheme: bearer}
verify: {call: GET /me, account: name}
errors:
  {message: error.message, code: error.code, request_id: id, request_id_header: X-Request-Id, ok: ok,
  limited: [slow_down], rejected: [token_revoked]}
tools:
  plain: {title: Plain, description: As it is., call: GET /plain, effect: read}
  shaped:
    title: Shaped
    description: Selected, and with keys removed.
    call: GET /shaped
    effect: read
    output: {select: "{rows: data[].{id: id, who: owner}, total: total}", redact: [token, who_secret], usage: usage}
  kept:
    title: Kept
    description: Only keys removed.
    call: GET /kept
    effect: read
    output: {redact: [token]}
  file: {title: File, description: A text., call: GET /file, effect: read, output: {text: true}}
  mail:
    title: Mail
    description: With texts in base64url.
    call: GET /mail
    effect: read
    output: {base64url: [data], select: "{text: parts[].data, size: size}"}
  linked:
    title: Linked
    description: With the next page in a header.
    call: GET /linked
    effect: read
    output: {select: "{rows: rows}", next: cursor}
  addressed:
    title: Addressed
    description: With the next page as an address.
    call: GET /addressed
    effect: read
    output: {select: "{rows: rows}", next: page_token, next_url: meta.next}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    path: Path = tmp_path_factory.mktemp("definitions") / "shop.yaml"
    path.write_text(SHOP)
    connector = load(path)
    return {name: Call("shop", connector, tool, f"shop_{name}", {}) for name, tool in connector.tools.items()}


@pytest.fixture(scope="module")
def shipped() -> Catalogue:
    return Catalogue.load(shipped_folder())


def reply(body: Any = b"", status: int = 200, **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"content-type": "application/json"} | names, raw, 1.0, len(raw), (CANARY,))


def text_is_the_object(result: Result) -> None:
    assert result.ok
    assert isinstance(result.structured, dict)
    assert json.loads(result.text) == result.structured
    assert len(result.text.encode()) <= MAX_TEXT


@pytest.mark.parametrize("status", [200, 400, 409])
@pytest.mark.parametrize(
    ("code", "kind", "maybe_done"),
    [("SLOW", RateLimited, False), ("BROKE", UpstreamError, True), ("ELSE", UpstreamError, False)],
)
def test_a_code_that_the_file_lists_says_more_than_the_status(
    tmp_path: Path, status: int, code: str, kind: type[UpstreamError], *, maybe_done: bool
) -> None:
    listed = "limited: [slow_down], rejected: [token_revoked]}"
    assert listed in SHOP
    text = SHOP.replace(listed, "limited: [SLOW], rejected: [NOT_YOU], unclear: [BROKE]}")
    (tmp_path / "shop.yaml").write_text(text)
    connector = load(tmp_path / "shop.yaml")
    call = Call("shop", connector, connector.tools["plain"], "shop_plain", {})
    with pytest.raises(UpstreamError) as refused:
        interpret(call, reply({"ok": False, "error": {"code": code, "message": "No."}}, status))
    assert type(refused.value) is kind
    assert refused.value.maybe_done is maybe_done
    with pytest.raises(CredentialRejected):
        interpret(call, reply({"ok": False, "error": {"code": "NOT_YOU", "message": "No."}}, status))


@pytest.mark.parametrize(
    ("body", "structured"),
    [
        ({"a": [1, None, "é"]}, {"a": [1, None, "é"]}),
        ([1, 2], {"items": [1, 2]}),
        ("hello", {"status": 200, "result": "hello"}),
        (b"null", {"status": 200, "result": None}),
        (b"", {"status": 200}),
        (b'\xef\xbb\xbf{"bom": 1}', {"bom": 1}),
        (rb'{"half": "\ud800", "\udfff": 1}', {"half": "?", "?": 1}),
    ],
)
def test_an_answer_is_always_an_object(shop: dict[str, Call], body: Any, structured: dict[str, Any]) -> None:
    result = interpret(shop["plain"], reply(body))
    assert result.structured == structured
    text_is_the_object(result)


def test_nothing_comes_of_an_empty_answer_but_its_status(shop: dict[str, Call]) -> None:
    assert interpret(shop["shaped"], reply(status=204)).structured == {"status": 204}


def test_the_definition_selects_and_removes_at_any_depth(shop: dict[str, Call]) -> None:
    body = {
        "data": [{"id": 1, "owner": {"name": "a", "token": "t1", "deep": [{"token": "t2"}]}, "extra": "x"}],
        "total": 1,
        "token": "t3",
        "usage": {"input_tokens": 3, "cost": 0.5, "cached": True, "details": {"x": 1}, "model": "m"},
    }
    result = interpret(shop["shaped"], reply(body))
    assert result.structured == {"rows": [{"id": 1, "who": {"name": "a", "deep": [{}]}}], "total": 1}
    assert result.usage == {"input_tokens": 3, "cost": 0.5}
    kept = interpret(shop["kept"], reply(body))
    assert "token" not in json.dumps(kept.structured).replace("input_tokens", "")
    assert kept.structured is not None
    assert kept.structured["data"][0]["extra"] == "x"


def test_an_answer_of_another_shape_than_expected_is_no_failure(shop: dict[str, Call]) -> None:
    """The call was made: to call it failed would have it made again."""
    for body in ([1], "x", {"data": 5}):
        text_is_the_object(interpret(shop["shaped"], reply(body)))


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b'{"a": NaN}', b"{", b"[1" * 500, b'{"n": ' + b"9" * 5000 + b"}"]
)
def test_what_is_not_json_is_labelled_and_bounded_text(shop: dict[str, Call], body: bytes) -> None:
    result = interpret(shop["plain"], reply(body, content_type="text/html"))
    assert result.structured is not None
    assert result.structured["text"] == body.decode()[:8000]
    assert result.structured["content_type"] == "text/html"
    assert "not JSON" in result.structured["note"]
    text_is_the_object(result)


@pytest.mark.parametrize("name", ["shaped", "kept"])
def test_what_the_definition_would_have_shaped_is_not_shown_where_it_cannot_be(
    shop: dict[str, Call], name: str
) -> None:
    result = interpret(shop[name], reply(b"<token>t1</token>", content_type="text/xml"))
    assert "t1" not in result.text
    assert result.structured is not None
    assert result.structured["bytes"] == 17


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b"a\x00b", b"\x89PNG\x00\x01", "ä".encode("latin-1")])
def test_bytes_that_are_no_text_are_only_counted(shop: dict[str, Call], body: bytes) -> None:
    result = interpret(shop["plain"], reply(body))
    assert result.structured is not None
    assert "text" not in result.structured
    assert result.structured["bytes"] == len(body)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}\n', "42", "[1, 2]", "null", "plain words", "\ufeffwith a mark"])
def test_a_text_comes_as_it_is_even_where_it_reads_as_json(shop: dict[str, Call], text: str) -> None:
    result = interpret(shop["file"], reply(text.encode()))
    assert result.structured == {"text": text.removeprefix("\ufeff")}
    text_is_the_object(result)


def test_a_text_is_scrubbed_bounded_and_an_error_is_still_an_error(shop: dict[str, Call]) -> None:
    long = interpret(shop["file"], reply(CANARY.encode() + b"x" * 80_000)).structured
    assert long is not None
    assert long["text"].startswith(REMOVED)
    assert "Cut by Keyleash: characters 1 to" in long["note_on_length"]
    assert interpret(shop["file"], reply(b"\x00\xff")).structured == {
        "status": 200,
        "bytes": 2,
        "note": "The answer is not text and is not shown.",
    }
    with pytest.raises(UpstreamError, match="gone"):
        interpret(shop["file"], reply({"error": {"message": "gone"}}, status=404))


def test_a_number_that_no_json_can_hold_is_withheld(shop: dict[str, Call]) -> None:
    result = interpret(shop["plain"], reply(b'{"n": 1e999}'))
    text_is_the_object(result)
    assert "Infinity" not in result.text


@pytest.mark.parametrize(
    "body",
    [
        {"data": [{"id": number, "text": "é" * 100} for number in range(2_000)], "has_more": True},
        {"a": {"deep": ["x" * 100] * 2_000}},
        {"one": '\\"é\U0001f600' * 50_000},
        {"list": ["x" * 100_000, "y"]},
        ["é"] * 100_000,
        {"x" * 70_000: list(range(50_000))},
    ],
)
def test_a_long_answer_is_cut_and_says_how_to_ask_for_less(shop: dict[str, Call], body: Any) -> None:
    result = interpret(shop["plain"], reply(body))
    text_is_the_object(result)
    assert result.structured is not None
    assert "Ask for less" in result.structured["note_on_length"]


def test_a_long_list_keeps_its_first_items_and_what_stands_beside_it(shop: dict[str, Call]) -> None:
    body = {"data": [{"id": number, "text": "é" * 100} for number in range(2_000)], "has_more": True}
    shown = interpret(shop["plain"], reply(body)).structured
    assert shown is not None
    assert shown["has_more"] is True
    assert shown["data"] == body["data"][: len(shown["data"])]  # type: ignore[index]
    assert 200 < len(shown["data"]) < 400
    assert f"{len(shown['data'])} of 2000" in shown["note_on_length"]


def test_the_request_id_is_found_in_the_header_or_the_body(shop: dict[str, Call]) -> None:
    assert interpret(shop["plain"], reply({"id": "b1"}, x_request_id="r1")).request_id == "r1"
    assert interpret(shop["plain"], reply({"id": "b1"})).request_id == "b1"
    assert interpret(shop["plain"], reply({})).request_id is None
    assert (
        interpret(shop["plain"], reply({}, x_request_id="a\x1b[31m\u202eb" * 99)).request_id
        == ("a [31m b" * 99)[:127] + "…"
    )


# --- texts in base64url, and the next page ---------------------------------------------------------------------------


def test_texts_in_base64url_are_read(shop: dict[str, Call]) -> None:
    def part(raw: bytes) -> dict[str, str]:
        return {"data": base64.urlsafe_b64encode(raw).decode().rstrip("=")}

    body = {"parts": [part("Grüße ✓?>".encode()), part(b""), {"data": "no base64!"}, part(b"\xff\xfe")], "size": 3}
    shown = interpret(shop["mail"], reply(body)).structured
    assert shown == {"text": ["Grüße ✓?>", "", "no base64!", "\ufffd\ufffd"], "size": 3}


def test_a_secret_in_a_text_in_base64url_is_removed(shop: dict[str, Call]) -> None:
    wrapped = CANARY
    for _ in range(2):
        wrapped = base64.urlsafe_b64encode(f"key: {wrapped}".encode()).decode()
        result = interpret(shop["mail"], reply({"parts": [{"data": wrapped}]}))
        assert CANARY not in result.text
        assert not Scrubber((CANARY,)).finds(result.text)


SENTRY = (
    '<https://shop.example/v1/linked?cursor=0:0:1>; rel="previous"; results="{}"; cursor="0:0:1", '
    '<https://shop.example/v1/linked?a=1&cursor=0%3A100%3A0>; rel="next"; results="{}"; cursor="0:100:0"'
)


@pytest.mark.parametrize(
    ("link", "cursor"),
    [
        (SENTRY.format("false", "true"), "0:100:0"),
        (SENTRY.format("true", "false"), None),
        ("<https://shop.example/?cursor=c2>; rel=next", "c2"),
        ('<https://shop.example/?cursor=c2>; title="a, b; rel=x"; rel="last next"', "c2"),
        ('<https://shop.example/?cursor=c1>; rel="prev", <https://shop.example/?cursor=c2>; rel="next"', "c2"),
        ('<https://shop.example/?page=2>; rel="next"', None),
        ('<https://[broken/?cursor=c2>; rel="next"', None),
        ("cursor=c2; rel=next", None),
        (f"<https://shop.example/?cursor={'c' * 5000}>; rel=next", None),
        (f"<https://shop.example/?cursor={CANARY}>; rel=next", REMOVED),
        ("", None),
    ],
)
def test_the_next_page_is_found_in_a_link_header(shop: dict[str, Call], link: str, cursor: str | None) -> None:
    assert interpret(shop["linked"], reply({"rows": [1]}, link=link)).structured == {"rows": [1], "next_cursor": cursor}


@pytest.mark.parametrize(
    ("url", "cursor"),
    [
        ("/v1/addressed?PageSize=50&page_token=PA%2B1", "PA+1"),
        ("https://shop.example/v1/addressed?page_token=t2", "t2"),
        ("https://shop.example/v1/addressed", None),
        (f"/v1/addressed?page_token={CANARY}", REMOVED),
        ("https://[broken", None),
        (None, None),
        (7, None),
    ],
)
def test_the_next_page_is_found_in_an_address_in_the_answer(
    shop: dict[str, Call], url: Any, cursor: str | None
) -> None:
    shown = interpret(shop["addressed"], reply({"rows": [], "meta": {"next": url}})).structured
    assert shown == {"rows": [], "next_cursor": cursor}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_told_in_our_words_with_the_way_to_mend_it(shop: dict[str, Call], status: int) -> None:
    body = {"error": {"message": f"UPSTREAM-TEXT: invalid key {CANARY[:8]}***{CANARY[-4:]}", "code": "UPSTREAM-CODE"}}
    with pytest.raises(CredentialRejected, match=r"(?i)credential rejected.*shop.*admin") as refused:
        interpret(shop["plain"], reply(body, status))
    assert "UPSTREAM" not in str(refused.value)
    assert CANARY[-4:] not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"retry_after": "7"}, 7),
        (429, {}, None),
        (403, {"retry_after": "60"}, 60),
        (403, {"x_ratelimit_remaining": "0", "x_ratelimit_reset": "in 100 s"}, 100),
        (403, {"x_ratelimit_remaining": "0"}, None),
    ],
)
def test_a_rate_limit_is_not_taken_for_a_bad_credential(
    shop: dict[str, Call], status: int, headers: dict[str, str], wait: float | None
) -> None:
    given = {name: str(int(time.time()) + 100) if text == "in 100 s" else text for name, text in headers.items()}
    with pytest.raises(RateLimited, match="fewer calls") as refused:
        interpret(shop["plain"], reply({}, status, **given))
    assert refused.value.retry_after == (wait if wait is None else pytest.approx(wait, abs=30))


@pytest.mark.parametrize(
    ("status", "headers"), [(403, {"x_ratelimit_remaining": "12"}), (401, {"x_ratelimit_remaining": "0"})]
)
def test_a_bad_credential_is_not_taken_for_a_rate_limit(
    shop: dict[str, Call], status: int, headers: dict[str, str]
) -> None:
    with pytest.raises(CredentialRejected):
        interpret(shop["plain"], reply({}, status, **headers))


@pytest.mark.parametrize("status", [400, 403, 503])
def test_a_code_that_asks_for_fewer_calls_is_no_bad_credential(shop: dict[str, Call], status: int) -> None:
    """Google limits with a 403, and Linear with a 400."""
    with pytest.raises(RateLimited, match="fewer calls"):
        interpret(shop["plain"], reply({"error": {"message": "x", "code": "slow_down"}}, status))


def test_a_code_that_refuses_the_credential_does_so_with_any_status(shop: dict[str, Call]) -> None:
    """Gemini answers 400 to a wrong key."""
    body = {"error": {"message": f"UPSTREAM {CANARY}", "code": "token_revoked"}}
    with pytest.raises(CredentialRejected) as refused:
        interpret(shop["plain"], reply(body, 400))
    assert "UPSTREAM" not in str(refused.value)


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 503])
def test_a_refusal_carries_what_the_upstream_says(shop: dict[str, Call], status: int) -> None:
    body = {"error": {"message": "No such charge: ch_1", "code": "missing"}, "id": "r9"}
    with pytest.raises(UpstreamError, match="No such charge: ch_1") as refused:
        interpret(shop["plain"], reply(body, status))
    assert (refused.value.status, refused.value.code, refused.value.request_id) == (status, "missing", "r9")


def test_an_error_behind_a_good_status_is_an_error(shop: dict[str, Call]) -> None:
    with pytest.raises(UpstreamError, match="channel_not_found"):
        interpret(shop["plain"], reply({"ok": False, "error": {"message": "channel_not_found"}}))
    with pytest.raises(CredentialRejected):
        interpret(shop["plain"], reply({"ok": False, "error": {"message": "x", "code": "token_revoked"}}))
    with pytest.raises(RateLimited):
        interpret(shop["plain"], reply({"ok": False, "error": {"message": "x", "code": "slow_down"}}))
    assert interpret(shop["plain"], reply({"ok": True})).ok
    assert interpret(shop["plain"], reply({"no": "field"})).ok


@pytest.mark.parametrize(
    "body", [b"", b"<html>Bad gateway</html>", b"[]", b'{"error": "text"}', b'{"error": {"message": ""}}']
)
def test_a_refusal_without_a_readable_reason_still_says_something(shop: dict[str, Call], body: bytes) -> None:
    with pytest.raises(UpstreamError, match=r"Shop .*HTTP 502"):
        interpret(shop["plain"], reply(body, 502))


def test_an_upstreams_message_is_one_bounded_line_of_visible_characters(shop: dict[str, Call]) -> None:
    nasty = "a\r\n\x00\x1b[2J\u202eevil\u200b\u2066\ufeff\udc80 " + "long " * 1000
    with pytest.raises(UpstreamError) as refused:
        interpret(shop["plain"], reply({"error": {"message": nasty, "code": "c\n" * 500}}, 400))
    assert refused.value.message.startswith("Shop refused the call and says: a [2J evil long long")
    assert len(refused.value.message) <= MAX_MESSAGE + 40
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < MAX_MESSAGE + 250


# --- secrets ----------------------------------------------------------------------------------------------------------

ECHOES = {
    "raw": CANARY,
    "base64": base64.b64encode(f"user:{CANARY}".encode()).decode(),
    "url": "".join(f"%{ord(char):02x}" for char in CANARY),
    "url twice": quote("".join(f"%{ord(char):02x}" for char in CANARY)),
    "json": "".join(f"\\u{ord(char):04x}" for char in CANARY),
    "html": "".join(f"&#{ord(char)};" for char in CANARY),
    "hex": CANARY.encode().hex(),
    "reversed": CANARY[::-1],
}


def shows(echo: str, text: str) -> bool:
    return echo in text or CANARY in text


@pytest.mark.parametrize("name", ECHOES)
def test_an_echoed_secret_reaches_no_result(shop: dict[str, Call], name: str) -> None:
    echo = ECHOES[name]
    bodies = [
        {"a": echo},
        {echo: 1},
        [f"see {echo} here"],
        {"d": [{"e": {"f": f"Bearer {echo}"}}]},
        f"<p>{echo}</p>".encode(),
    ]
    for body in bodies:
        result = interpret(shop["plain"], reply(body, x_request_id=f"r {echo}"))
        assert not shows(echo, result.text + str(result.structured) + repr(result))
        assert REMOVED in result.text
    escaped = '{"a": "' + "".join(f"\\u{ord(char):04x}" for char in echo) + '"}'
    result = interpret(shop["plain"], reply(escaped.encode()))
    assert not shows(echo, result.text + repr(result))


@pytest.mark.parametrize("name", ECHOES)
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_an_echoed_secret_reaches_no_error(shop: dict[str, Call], name: str, status: int) -> None:
    echo = ECHOES[name]
    body = {"ok": False, "error": {"message": f"bad key {echo}", "code": echo}, "id": echo}
    with pytest.raises(ConnectorError) as refused:
        interpret(shop["plain"], reply(body, status, x_request_id=echo, retry_after=echo))
    error = refused.value
    trace = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    ours = trace[trace.index("connectors/answer.py") :]
    assert not shows(echo, str(error) + repr(vars(error)))
    assert not shows(echo, ours)
    assert error.__context__ is None


def test_a_secret_at_the_edge_of_a_cut_is_removed_before_the_cut(shop: dict[str, Call]) -> None:
    whole = interpret(shop["plain"], reply(b"x" * 90_000)).structured
    assert whole is not None
    edge = len(whole["text"])
    body = ("x" * (edge - 8) + CANARY + "x" * 30_000).encode()
    shown = interpret(shop["plain"], reply(body))
    assert shown.structured is not None
    assert shown.structured["text"] == "x" * (edge - 8) + REMOVED[:8]
    assert CANARY not in json.dumps(shown.whole)
    assert "Cut by Keyleash" in shown.structured["note_on_length"]
    message = "x" * (MAX_MESSAGE - 8) + CANARY
    with pytest.raises(UpstreamError) as refused:
        interpret(shop["plain"], reply({"error": {"message": message}}, 400))
    assert CANARY[:6] not in str(refused.value)


def test_a_secret_that_comes_back_as_a_number_withholds_the_answer(shop: dict[str, Call]) -> None:
    body = b'{"n": 4815162342, "m": 1}'
    result = interpret(shop["plain"], Reply(200, {}, body, 1.0, len(body), ("4815162342",)))
    assert "4815162342" not in result.text
    assert "withheld" in result.text


def test_reading_answers_does_not_load_the_http_library() -> None:
    code = "import sys, connectors.answer; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- verify, and the real definitions ---------------------------------------------------------------------------------


def test_verify_names_the_account_or_refuses(shop: dict[str, Call]) -> None:
    connector = shop["plain"].connector
    assert interpret_verify(connector, reply({"name": "ACME\nInc"})) == "ACME Inc"
    assert interpret_verify(connector, reply({"name": f"x {CANARY}"})) == f"x {REMOVED}"
    assert interpret_verify(connector, reply({})) is None
    assert interpret_verify(connector, reply(b"")) is None
    with pytest.raises(CredentialRejected, match="this credential"):
        interpret_verify(connector, reply({}, 401))
    with pytest.raises(UpstreamError):
        interpret_verify(connector, reply({}, 500))


def test_slack_refuses_with_status_200_and_github_limits_with_403(shipped: Catalogue) -> None:
    slack, github = shipped.connectors["slack"], shipped.connectors["github"]
    with pytest.raises(CredentialRejected):
        interpret_verify(slack, reply({"ok": False, "error": "invalid_auth"}))
    with pytest.raises(UpstreamError, match="ratelimited"):
        interpret_verify(slack, reply({"ok": False, "error": "ratelimited"}))
    with pytest.raises(RateLimited):
        interpret_verify(github, reply({"message": "API rate limit exceeded"}, 403, x_ratelimit_remaining="0"))
    assert interpret_verify(github, reply({"login": "octocat"})) == "octocat"


def test_every_shipped_tool_takes_any_answer(shipped: Catalogue) -> None:
    assert shipped.connectors
    for connector in shipped.connectors.values():
        for tool in connector.tools.values():
            call = Call(connector.id, connector, tool, f"{connector.id}_{tool.name}", {})
            for body in (b"", b"{}", b"[]", b"[{}]", b"null", b'"x"', b"<x>", b'{"data": [{"id": 1}]}'):
                if tool.operation is None:
                    text_is_the_object(interpret(call, reply(body)))
                else:
                    with pytest.raises(UpstreamError):
                        interpret(call, reply(body))
            for key in tool.operation.answers if tool.operation else ():
                for value in ({}, [], [{}], "x", 3, {"nodes": [{}], "userErrors": []}, {"nodes": 3, "userErrors": 3}):
                    text_is_the_object(interpret(call, reply({"data": {key: value}})))
