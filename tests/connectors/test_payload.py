"""What a GraphQL answer comes to: HTTP 200 is no success, and "not done" is said only where that is certain."""

import json
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from connectors.answer import Result, interpret, interpret_verify
from connectors.definition import Call
from connectors.egress import Reply
from connectors.errors import ConnectorError, CredentialRejected, RateLimited, UpstreamError
from connectors.loading import parse

CANARY = "sk_live_CANARY4f8a91"

SHOP = parse("""\
id: shop
title: Shop
kind: graphql
base_url: https://api.shop.example
endpoint: /graphql
credentials: {token: {label: Token, help: There., scheme: bearer}}
verify: {document: "query Verify { me { name } }", account: me.name}
errors:
  user_errors: userErrors
  limited: [SLOW]
  rejected: [NOT_YOU]
  unclear: [BROKE]
  request_id_header: X-Request-Id
tools:
  get:
    title: Get
    description: Two things.
    document: "query Get { order { id total secret } shop { id } }"
    effect: read
    output: {redact: [secret], usage: order.cost}
  pick:
    title: Pick
    description: A part.
    document: "query Pick { orders { nodes { id } } }"
    effect: read
    output: {select: "orders.nodes[].id"}
  change:
    title: Change
    description: One thing.
    document: "mutation Change { changed: orderUpdate { id userErrors { field message code } } }"
    effect: write
    ask: Change it
""")

NOTHING_FOUND = [{"message": "Not found", "path": ["order"], "extensions": {"code": "NOT_FOUND"}}]


def reply(body: Any = b"", status: int = 200, **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"content-type": "application/json"} | names, raw, 1.0, len(raw), (CANARY,))


def got(tool: str, body: Any, status: int = 200, **headers: str) -> Result:
    return interpret(Call("shop", SHOP, SHOP.tools[tool], f"shop_{tool}", {}), reply(body, status, **headers))


def failed(tool: str, body: Any, status: int = 200, **headers: str) -> UpstreamError:
    with pytest.raises(UpstreamError) as error:
        got(tool, body, status, **headers)
    return error.value


# -- results


def test_a_whole_answer_is_its_data() -> None:
    result = got("get", {"data": {"order": {"id": 1, "secret": "x", "cost": {"points": 3}}, "shop": None}})
    assert result.structured == {"order": {"id": 1, "cost": {"points": 3}}, "shop": None}
    assert result.usage == {"points": 3}
    assert got("pick", {"data": {"orders": {"nodes": [{"id": 1}]}}, "extensions": {}}).structured == {"items": [1]}


@pytest.mark.parametrize("errors", [[], None])
def test_an_empty_list_of_errors_is_none(errors: Any) -> None:
    assert got("pick", {"data": {"orders": {"nodes": []}}, "errors": errors}).structured == {"items": []}


def test_what_is_not_there_is_null_and_no_error() -> None:
    assert got("get", {"data": {"order": None, "shop": None}}).structured == {"order": None, "shop": None}
    assert got("pick", {"data": {"orders": None}}).structured == {"status": 200, "result": None}


def test_an_answer_in_part_says_so_beside_what_there_is() -> None:
    errors = [{"message": "No right to see it", "path": ["shop", "id"]}, {"message": "And more"}]
    result = got("get", {"data": {"order": {"id": 1}, "shop": None}, "errors": errors})
    assert result.ok
    assert result.structured == {
        "order": {"id": 1},
        "shop": None,
        "note_on_errors": "Shop could not give the whole answer and says: shop.id: No right to see it; And more",
    }
    assert json.loads(result.text) == result.structured
    assert got("pick", {"data": {"orders": {"nodes": [{"id": 1}]}}, "errors": errors}).structured == {
        "items": [1],
        "note_on_errors": "Shop could not give the whole answer and says: shop.id: No right to see it; And more",
    }


def test_a_change_that_was_made_stays_one_when_its_answer_has_a_hole() -> None:
    errors = [{"message": "Cannot show it", "path": ["changed", "total"]}]
    result = got("change", {"data": {"changed": {"id": 1, "userErrors": []}}, "errors": errors})
    assert result.ok
    assert result.structured is not None
    assert result.structured["note_on_errors"] == (
        "The call took effect. Shop could not give the whole answer and says: changed.total: Cannot show it"
    )


# -- refusals


def test_errors_without_data_are_a_refusal_in_the_upstreams_words() -> None:
    error = failed("get", {"errors": NOTHING_FOUND}, x_request_id="req_1")
    assert str(error) == "Shop refused the call and says: Not found (HTTP 200, NOT_FOUND, request req_1)"
    assert not error.maybe_done
    assert str(failed("get", {"errors": NOTHING_FOUND, "data": None})).startswith("Shop refused the call")
    assert str(failed("get", {"errors": NOTHING_FOUND, "data": {"order": None, "shop": None}})).startswith("Shop refu")
    assert str(failed("get", {"errors": "a text"})) == "Shop refused the call and gave no reason (HTTP 200)"


# What a mutation's answer says, and whether a change may have been made.
AT_THE_TOP = [{"message": "No such order", "path": ["changed"]}]
BELOW = [{"message": "Cannot show it", "path": ["changed", "id"]}]
CHANGES = [
    ({"errors": [{"message": "Unknown field"}]}, False),  # refused before anything was carried out
    ({"errors": AT_THE_TOP, "data": None}, False),
    ({"errors": AT_THE_TOP, "data": {"changed": None}}, False),
    ({"errors": BELOW, "data": None}, True),  # something that was made could not be shown
    ({"errors": [*AT_THE_TOP, *BELOW], "data": None}, True),
    ({"errors": [{"message": "Nobody knows where"}], "data": None}, True),
    ({"errors": "a text", "data": None}, True),
    ({"errors": [{"message": "Oh", "path": ["changed"], "extensions": {"code": "BROKE"}}], "data": None}, True),
    ({"data": None}, True),
    ({"data": {"changed": None}}, True),
    ({"data": {}}, True),
    ({"data": [1]}, True),
    ({"ok": True}, True),
    ([1], True),
    (b"", True),
    (b"<html>", True),
    ({"data": {"changed": {"id": 1, "userErrors": [{"message": "Title is empty"}]}}}, False),
    ({"data": {"changed": {"id": None, "userErrors": [{"message": "Busy", "code": "BROKE"}]}}}, True),
]


@pytest.mark.parametrize(("body", "maybe_done"), CHANGES, ids=repr)
def test_only_what_is_certain_is_called_not_done(body: Any, *, maybe_done: bool) -> None:
    assert failed("change", body).maybe_done is maybe_done


@pytest.mark.parametrize(
    ("body", "status", "maybe_done"),
    [
        ({"errors": AT_THE_TOP}, 400, False),
        ({"errors": AT_THE_TOP, "data": None}, 400, False),
        ({"errors": BELOW, "data": None}, 400, True),
        (b"<html>", 400, False),
        ({"error": "no"}, 422, False),
    ],
)
def test_an_http_error_is_one_whatever_its_body(body: Any, status: int, *, maybe_done: bool) -> None:
    error = failed("change", body, status)
    assert error.status == status
    assert error.maybe_done is maybe_done


def test_what_is_no_graphql_points_to_the_base_url() -> None:
    for body in (b"<html>", b"", {"hello": 1}, [1]):
        assert "check the connection's base URL" in str(failed("get", body))


def test_a_payload_that_lists_errors_is_a_refusal_with_the_places_they_are_about() -> None:
    errors = [
        {"field": ["input", "title"], "message": "is empty", "code": "BLANK"},
        {"field": None, "message": "and so on"},
        {"field": ["a"], "message": "b"},
        {"message": "c"},
    ]
    error = failed("change", {"data": {"changed": {"id": None, "userErrors": errors}}})
    said = "Shop refused the call and says: input.title: is empty; and so on; a: b; and 1 more (HTTP 200, BLANK)"
    assert str(error) == said
    bare = failed("change", {"data": {"changed": {"userErrors": [{"code": "BLANK"}, 3]}}})
    assert str(bare) == "Shop refused the call and gave no reason (HTTP 200, BLANK)"


def test_a_payloads_errors_are_of_mutations_only() -> None:
    assert got("get", {"data": {"order": {"userErrors": [{"message": "x"}]}, "shop": None}}).ok


# -- codes


@pytest.mark.parametrize("status", [200, 400])
def test_a_code_that_asks_for_fewer_calls_says_when_to_come_back(status: int) -> None:
    errors: list[Any] = [{"message": "Throttled", "extensions": {"code": "SLOW"}}]
    cost = {"requestedQueryCost": 70, "throttleStatus": {"currentlyAvailable": 20, "restoreRate": 25}}
    error = failed("get", {"errors": errors, "extensions": {"cost": cost}}, status)
    assert isinstance(error, RateLimited)
    assert error.retry_after == 2
    assert str(error) == f"Shop asks for fewer calls and says: Throttled. Try again in 2 s. (HTTP {status}, SLOW)"
    plain = failed("get", {"errors": errors}, status)
    assert isinstance(plain, RateLimited)
    assert "Try again later" in str(plain)
    header = failed("get", {"errors": errors, "extensions": {"cost": cost}}, status, retry_after="7")
    assert isinstance(header, RateLimited)
    assert header.retry_after == 7


@pytest.mark.parametrize(
    "cost",
    [
        None,
        3,
        {},
        {"requestedQueryCost": "70", "throttleStatus": {"currentlyAvailable": 20, "restoreRate": 25}},
        {"requestedQueryCost": 70, "throttleStatus": {"currentlyAvailable": 20, "restoreRate": 0}},
        {"requestedQueryCost": 70, "throttleStatus": [1]},
    ],
)
def test_a_cost_that_says_nothing_is_no_wait(cost: Any) -> None:
    error = failed("get", {"errors": [{"extensions": {"code": "SLOW"}}], "extensions": {"cost": cost}})
    assert isinstance(error, RateLimited)
    assert error.retry_after is None


@pytest.mark.parametrize("status", [200, 400])
def test_a_code_that_refuses_the_credential_is_not_passed_on_in_the_upstreams_words(status: int) -> None:
    errors = [{"message": "Key lin_api_x is bad", "extensions": {"code": "NOT_YOU"}}]
    for ask in (lambda: got("get", {"errors": errors}, status), lambda: verified({"errors": errors}, status)):
        with pytest.raises(CredentialRejected) as error:
            ask()
        assert "lin_api_x" not in str(error.value)
        assert "an admin of the org has to enter a credential that works" in str(error.value)


# -- the verify call


def verified(body: Any, status: int = 200) -> str | None:
    return interpret_verify(SHOP, reply(body, status))


def test_a_credential_is_verified_by_data_and_by_nothing_less() -> None:
    assert verified({"data": {"me": {"name": "ann"}}}) == "ann"
    assert verified({"data": {"me": {}}}) is None
    for body in ({"errors": [{"message": "No"}]}, {"data": None}, b"<html>", b"", {"ok": True}):
        with pytest.raises(UpstreamError):
            verified(body)
    with pytest.raises(CredentialRejected):
        verified({"errors": "Invalid API key"}, 401)


# -- secrets

ECHOES: list[Callable[[str], Any]] = [
    lambda secret: {"errors": [{"message": f"bad {secret}", "extensions": {"code": secret}}]},
    lambda secret: {"errors": [{"message": "x", "path": [secret]}], "data": {"order": {"id": 1}}},
    lambda secret: {"data": {"order": {"id": secret}, "shop": None}},
    lambda secret: {"data": {"changed": {"userErrors": [{"field": [secret], "message": secret, "code": secret}]}}},
]


@pytest.mark.parametrize("tool", ["get", "change"])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_secret_in_any_part_of_an_answer_is_cut_out(tool: str, echo: Callable[[str], Any]) -> None:
    try:
        told = got(tool, echo(CANARY)).text
    except ConnectorError as error:
        told = f"{error} {error!r} {traceback.format_exc()}"
    assert CANARY not in told
    assert told


def test_a_message_is_one_short_line() -> None:
    error = failed("get", {"errors": [{"message": "a\n\u202eb" + "x" * 2000}]})
    assert "\n" not in str(error)
    assert "\u202e" not in str(error)
    assert len(str(error)) < 600
