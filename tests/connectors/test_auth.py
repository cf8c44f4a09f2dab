"""A secret enters the request in the declared way only, and every form of it is handed back to be scrubbed."""

import base64
from collections.abc import Mapping

import pytest

from connectors.auth import MAX_SECRET, SCHEMES, attaching, check, environment, recognise
from connectors.credentialblock import NOTHING
from connectors.definition import CredentialKind, Field
from connectors.errors import CredentialMalformed
from connectors.loading import parse

CANARY = "sk_canary_77aa/+=~"
LONG = ["x" * (MAX_SECRET + 1)]

TEXT = """\
id: shop
title: Shop
base_url: https://api.shop.example
credentials:
  bearer: {label: token, help: There., scheme: bearer, pattern: ^tok_, warnings: {^tok_old: It is an old one.}}
  prefixed: {label: token, help: There., scheme: header, name: Authorization2, prefix: Token}
  header: {label: key, help: There., scheme: header, name: X-Key, pattern: ^key_}
  query: {label: key, help: There., scheme: query, name: api_key, pattern: ^q_}
  basic:
    label: user and password
    help: There.
    scheme: basic
    fields: {user: {label: user, secret: false}, password: {label: password}}
  user_only: {label: key, help: There., scheme: basic, fields: {user: {label: key}}}
verify: {call: GET /me}
tools:
  get_me: {title: Me, description: Me., call: GET /me}
"""
SHOP = parse(TEXT)


class Held:
    """A secret as this room sees one."""

    def __init__(self, **fields: str) -> None:
        self.reveal = fields.__getitem__


def apply(kind: str, query: list[tuple[str, str]] | None = None, headers: dict[str, str] | None = None, **fields: str):
    headers, query = {} if headers is None else headers, [] if query is None else query
    secrets = attaching(SHOP.kind(kind), Held(**fields))(headers, query)
    return headers, query, secrets


def test_every_scheme_puts_the_secret_where_it_says_and_nowhere_else():
    pair = base64.b64encode(f"ann:{CANARY}".encode()).decode()
    alone = base64.b64encode(f"{CANARY}:".encode()).decode()
    assert apply("bearer", secret=CANARY) == ({"Authorization": f"Bearer {CANARY}"}, [], (CANARY,))
    assert apply("prefixed", secret=CANARY) == ({"Authorization2": f"Token {CANARY}"}, [], (CANARY,))
    assert apply("header", secret=CANARY) == ({"X-Key": CANARY}, [], (CANARY,))
    assert apply("query", secret=CANARY) == ({}, [("api_key", CANARY)], (CANARY,))
    assert apply("basic", user="ann", password=CANARY) == ({"Authorization": f"Basic {pair}"}, [], (pair, CANARY))
    assert apply("user_only", user=CANARY) == ({"Authorization": f"Basic {alone}"}, [], (alone, CANARY))
    assert {kind.scheme for kind in SHOP.credentials} | {"env", "none", "aws_sigv4"} == set(SCHEMES)


STARTED = parse(
    """\
id: started
title: Started
kind: mcp
command: [server]
credentials:
  one: {label: key, help: There., scheme: env, name: ONE_KEY}
  two:
    label: both
    help: There.
    scheme: env
    fields: {user: {label: user, secret: false, variable: THE_USER}, key: {label: key, variable: THE_KEY}}
tools:
  go: {title: Go, description: It goes., upstream: go, pinned: "%s", effect: write, ask: Go, input: {type: object}}
"""
    % ("0" * 64)
)


def test_a_secret_for_the_environment_stands_in_its_variables_and_in_no_request():
    assert environment(STARTED.kind("one"), Held(secret=CANARY)) == ({"ONE_KEY": CANARY}, (CANARY,))
    assert environment(STARTED.kind("two"), Held(user="ann", key=CANARY)) == (
        {"THE_USER": "ann", "THE_KEY": CANARY},
        (CANARY,),
    )
    with pytest.raises(CredentialMalformed, match="no credential that a request can carry"):
        attaching(STARTED.kind("one"), Held(secret=CANARY))({}, [])
    with pytest.raises(CredentialMalformed) as refused:
        environment(STARTED.kind("one"), Held(secret=f"{CANARY}\n"))
    assert CANARY not in str(refused.value)


def test_what_needs_no_credential_adds_nothing():
    headers: dict[str, str] = {}
    assert attaching(NOTHING, Held(nothing="nothing"))(headers, []) == ()
    assert headers == {}
    assert environment(NOTHING, Held(nothing="nothing")) == ({}, ())
    assert check(NOTHING, {"nothing": "nothing"}) == ()


def test_basic_takes_text_in_utf_8_and_no_colon_in_the_user():
    headers, _, _ = apply("basic", user="ann", password="pä:ß")
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode() == "ann:pä:ß"
    with pytest.raises(CredentialMalformed, match="colon"):
        apply("basic", user="a:b", password=CANARY)


@pytest.mark.parametrize("kind", ["bearer", "prefixed", "header", "query"])
@pytest.mark.parametrize(
    "bad",
    [
        "",
        " lead",
        "trail ",
        "a\r\nX-Evil: 1",
        "a\nb",
        "a\x00b",
        "a\tb",
        "a\x7fb",
        "a\x85b",
        "é",
        "a\u202eb",
        "\ud800",
        *LONG,
    ],
)
def test_a_secret_that_would_change_the_request_is_refused_and_never_quoted(kind: str, bad: str):
    headers: dict[str, str] = {}
    query: list[tuple[str, str]] = []
    with pytest.raises(CredentialMalformed) as refused:
        apply(kind, query, headers, secret=bad)
    assert (headers, query) == ({}, [])
    assert not bad.strip() or bad not in str(refused.value)


@pytest.mark.parametrize("bad", ["", "a\r\nb", "a\x00", "\u2028", "\ud800", "x" * (MAX_SECRET + 1)])
def test_a_password_that_could_not_be_typed_is_refused(bad: str):
    with pytest.raises(CredentialMalformed):
        apply("basic", user="ann", password=bad)


def test_authentication_never_joins_or_replaces_what_is_already_there():
    for kind, headers in [
        ("bearer", {"authorization": "x"}),
        ("header", {"x-key": "x"}),
        ("basic", {"AUTHORIZATION": "x"}),
    ]:
        before = dict(headers)
        with pytest.raises(CredentialMalformed, match="already"):
            apply(kind, [], headers, secret=CANARY, user="ann", password=CANARY)
        assert headers == before
    query = [("api_key", "x")]
    with pytest.raises(CredentialMalformed, match="already"):
        apply("query", query, secret=CANARY)
    assert query == [("api_key", "x")]


# --- what a person enters


def kinds(**patterns: str) -> tuple[CredentialKind, ...]:
    return tuple(
        CredentialKind(
            id=name, label=name, help="", scheme="bearer", fields=(Field(name="secret", label=name, pattern=pattern),)
        )
        for name, pattern in patterns.items()
    )


def test_a_credential_that_looks_unusual_is_warned_of_and_one_that_cannot_work_is_refused():
    bearer = SHOP.kind("bearer")
    assert check(bearer, {"secret": "tok_1"}) == ()
    assert check(bearer, {"secret": "tok_old1"}) == ("It is an old one.",)
    (warning,) = check(bearer, {"secret": CANARY})
    assert "^tok_" in warning
    assert CANARY not in warning
    bad: list[Mapping[str, str]] = [
        {},
        {"secret": "a\nb"},
        {"secret": ""},
        {"secret": "tok_1", "user": "ann"},
        {"user": "ann"},
    ]
    for fields in bad:
        with pytest.raises(CredentialMalformed):
            check(bearer, fields)


def test_a_kind_is_recognised_by_its_look_and_else_the_first_is_taken():
    two = kinds(restricted="^rk_", secret="^sk_")
    for value, expected in [("rk_1", "restricted"), ("sk_1", "secret"), ("other", "restricted")]:
        kind = recognise(two, {"secret": value})
        assert kind is not None
        assert kind.id == expected
    assert recognise(two, {"user": "ann"}) is None
    basic = recognise(SHOP.credentials, {"user": "ann", "password": "x"})
    assert basic is not None
    assert basic.id == "basic"
