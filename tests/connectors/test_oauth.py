"""What is asked of a provider carries its secrets where they belong, and what it answers is not taken on trust."""

import base64
import json
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from connectors.definition import OAuth, Revocation
from connectors.egress import Reply
from connectors.errors import DefinitionError, TokenRefused
from connectors.loading import parse
from connectors.oauth import Asked, Proof, asking, authorization_url, endpoint, granted, revoked, revoking
from tests.provider import LEDGER

BASE = "https://acme.example/v1"
OAUTH = OAuth(authorize="/oauth/authorize", token="/oauth/token", scopes=("read", "write"))
TOKEN, RENEWING = "at_0123456789abcdef", "rt_0123456789abcdef"


class Held:
    """Fields in the open, for tests."""

    def __init__(self, **fields: str) -> None:
        self.fields = tuple(fields)
        self._fields = fields

    def reveal(self, field: str = "secret") -> str:
        return self._fields[field]


APP = {"client_id": "app", "client_secret": "s3cr3t of:app"}


def changed(**more: Any) -> OAuth:
    return OAuth(**{name: getattr(OAUTH, name) for name in OAuth.__dataclass_fields__} | more)


def sent(asked: Asked) -> tuple[dict[str, str], Any, tuple[str, ...]]:
    """Headers, body and secrets, as they leave."""
    headers: dict[str, str] = dict(asked.prepared.headers)
    secrets = asked.attach(headers, [])
    body, more = asked.fill() if asked.fill else (b"", ())
    kind = headers.get("Content-Type", "")
    read = json.loads(body) if kind == "application/json" else dict(parse_qsl(body.decode()))
    return headers, read, (*secrets, *more)


def reply(body: Any, status: int = 200, *secrets: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {}, content, 1.0, len(content), secrets)


# -- asking


def test_the_address_that_a_browser_opens_says_everything_and_nothing_secret() -> None:
    proof = Proof()
    url = authorization_url(
        changed(authorize_params=(("prompt", "consent"),), separator=","),
        BASE,
        client_id="app",
        redirect="http://127.0.0.1:8701/callback",
        state="st&te",
        challenge=proof.challenge,
        scopes=("read", "write"),
    )
    assert url.startswith("https://acme.example/oauth/authorize?")
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert query == {
        "response_type": "code",
        "client_id": "app",
        "redirect_uri": "http://127.0.0.1:8701/callback",
        "state": "st&te",
        "scope": "read,write",
        "code_challenge": proof.challenge,
        "code_challenge_method": "S256",
        "prompt": "consent",
    }
    assert proof.reveal() not in url
    assert proof.reveal() not in repr(proof)
    assert len(proof.reveal()) >= 43


@pytest.mark.parametrize(
    ("client", "body", "sends", "basic"),
    [
        ("post", "form", {"client_id": "app", "client_secret": "s3cr3t of:app"}, None),
        ("post", "json", {"client_id": "app", "client_secret": "s3cr3t of:app"}, None),
        ("basic", "form", {}, "app:s3cr3t+of%3Aapp"),
        ("none", "form", {"client_id": "app"}, None),
    ],
)
def test_a_code_is_exchanged_with_its_verifier_and_the_app_that_asks(
    client: str, body: str, sends: dict[str, str], basic: str | None
) -> None:
    held = Held(**APP, code="the code", verifier="the verifier")
    asked = asking(changed(client=client, body=body), BASE, "authorization_code", held, redirect="http://127.0.0.1/x")
    headers, given, secrets = sent(asked)
    assert (asked.prepared.method, asked.prepared.url) == ("POST", "https://acme.example/oauth/token")
    what = {"grant_type": "authorization_code", "code": "the code", "redirect_uri": "http://127.0.0.1/x"}
    assert given == {**what, "code_verifier": "the verifier", **sends}
    authorization = headers.get("Authorization", "")
    assert authorization == (f"Basic {base64.b64encode(basic.encode()).decode()}" if basic else "")
    assert {"the code", "the verifier"} <= set(secrets)
    assert ("s3cr3t of:app" in secrets) is (client != "none")
    for secret in secrets:
        assert secret not in repr(asked)
        assert secret not in asked.prepared.url


def test_a_refresh_and_an_app_for_itself_ask_for_what_they_are() -> None:
    held = Held(**APP, refresh_token=RENEWING, secret=TOKEN)
    renewing = asking(changed(token_params=(("expiring", 1),)), BASE, "refresh_token", held)
    assert sent(renewing)[1] == {"grant_type": "refresh_token", "refresh_token": RENEWING, "expiring": "1", **APP}
    itself = asking(
        changed(grant="client_credentials", pkce=False), BASE, "client_credentials", held, scopes=("a", "b")
    )
    assert sent(itself)[1] == {"grant_type": "client_credentials", "scope": "a b", **APP}


def test_only_what_is_not_used_up_by_asking_is_asked_twice() -> None:
    held = Held(**APP, code="c", verifier="v", refresh_token=RENEWING)
    again = {
        (what, rotates): asking(changed(rotates=rotates), BASE, what, held).prepared.idempotent
        for what in ("authorization_code", "refresh_token", "client_credentials")
        for rotates in (True, False)
    }
    assert again == {
        ("authorization_code", True): False,
        ("authorization_code", False): False,
        ("refresh_token", True): False,
        ("refresh_token", False): True,
        ("client_credentials", True): True,
        ("client_credentials", False): True,
    }


def test_an_endpoint_is_the_files_or_lies_at_the_accounts_own_host() -> None:
    assert endpoint("/oauth/token", "https://acme.example:8443/v1") == ("https://acme.example:8443", "/oauth/token")
    assert endpoint("https://id.example/token", "https://acme.example/v1") == ("https://id.example", "/token")


@pytest.mark.parametrize(
    ("how", "held", "url", "body", "authorization"),
    [
        (
            Revocation(url="/revoke"),
            {"secret": TOKEN, "refresh_token": RENEWING},
            "POST https://acme.example/revoke",
            {"token": RENEWING, **APP},
            "",
        ),
        (Revocation(url="/revoke"), {"secret": TOKEN}, "POST https://acme.example/revoke", {"token": TOKEN, **APP}, ""),
        (
            Revocation(url="https://id.example/revoke", by="nobody"),
            {"secret": TOKEN, "refresh_token": RENEWING},
            "POST https://id.example/revoke",
            {"token": RENEWING},
            "",
        ),
        (
            Revocation(url="/tokens/current", method="DELETE", by="token", parameter=""),
            {"secret": TOKEN, "refresh_token": RENEWING},
            "DELETE https://acme.example/tokens/current",
            {},
            f"Bearer {TOKEN}",
        ),
        (
            Revocation(
                url="/apps/{client_id}/token",
                method="DELETE",
                by="basic",
                body="json",
                parameter="access_token",
                sends="access_token",
            ),
            {"secret": TOKEN, "refresh_token": RENEWING},
            "DELETE https://acme.example/apps/app/token",
            {"access_token": TOKEN},
            f"Basic {base64.b64encode(b'app:s3cr3t+of%3Aapp').decode()}",
        ),
        (
            Revocation(url="/apps/{client_id}/token", parameter="access_token", sends="access_token"),
            {"secret": TOKEN, "refresh_token": RENEWING},
            "POST https://acme.example/apps/app/token",
            {"access_token": TOKEN, **APP},
            "",
        ),
    ],
)
def test_a_token_is_ended_as_its_provider_wants_it(
    how: Revocation, held: dict[str, str], url: str, body: dict[str, str], authorization: str
) -> None:
    asked = revoking(changed(revoke=how), BASE, Held(**APP, **held), tuple(held))
    headers, given, secrets = sent(asked)
    assert f"{asked.prepared.method} {asked.prepared.url}" == url
    assert (given, headers.get("Authorization", "")) == (body, authorization)
    assert all(secret not in asked.prepared.url for secret in secrets)


def test_a_client_id_that_climbs_is_not_sent_anywhere() -> None:
    from connectors.departure import checked_url
    from connectors.errors import Unsendable

    held = Held(client_id="..", client_secret="x" * 8, secret=TOKEN)
    asked = revoking(changed(revoke=Revocation(url="/apps/{client_id}/token")), BASE, held, ("secret",))
    with pytest.raises(Unsendable):
        checked_url(asked.prepared)


# -- answers


def test_an_answer_gives_tokens_a_lifetime_and_scopes() -> None:
    given = granted(
        OAUTH,
        reply({"access_token": TOKEN, "refresh_token": RENEWING, "expires_in": "3600", "scope": "read write"}),
        "id",
    )
    assert (given.reveal("access_token"), given.reveal("refresh_token")) == (TOKEN, RENEWING)
    assert (given.lifetime, given.scopes) == (3600, ("read", "write"))
    assert TOKEN not in f"{given!r} {given}"


@pytest.mark.parametrize(
    ("oauth", "body", "lifetime", "scopes"),
    [
        ({}, {}, None, None),
        ({"lifetime": 1800}, {}, 1800, None),
        ({"lifetime": 1800}, {"expires_in": 60}, 60, None),
        ({}, {"expires_in": 0}, None, None),
        ({}, {"expires_in": True}, None, None),
        ({}, {"expires_in": -5}, None, None),
        ({}, {"expires_in": 1e30}, None, None),
        ({}, {"expires_in": "soon"}, None, None),
        ({}, {"scope": "a,b"}, None, ("a", "b")),
        ({}, {"scope": ["a", 7, 'x"y']}, None, ("a",)),
    ],
)
def test_what_an_answer_leaves_out_or_says_oddly(
    oauth: dict[str, Any], body: dict[str, Any], lifetime: int | None, scopes: tuple[str, ...] | None
) -> None:
    given = granted(changed(**oauth), reply({"access_token": TOKEN, **body}), "id")
    assert (given.lifetime, given.scopes, given.fields) == (lifetime, scopes, ("access_token",))


def test_tokens_may_stand_deeper_in_an_answer() -> None:
    body = {"ok": True, "access_token": "of the bot", "authed_user": {"access_token": TOKEN, "expires_in": 9}}
    given = granted(changed(answer=("authed_user",)), reply(body), "id")
    assert (given.reveal("access_token"), given.lifetime) == (TOKEN, 9)
    with pytest.raises(TokenRefused):
        granted(changed(answer=("authed_user",)), reply({"access_token": TOKEN}), "id")


@pytest.mark.parametrize(
    ("status", "body", "code", "ended"),
    [
        (400, {"error": "invalid_grant"}, "invalid_grant", True),
        (401, {"error": "invalid_client"}, "invalid_client", True),
        (400, {"error": "invalid_scope"}, "invalid_scope", False),
        (200, {"error": "bad_refresh_token"}, "bad_refresh_token", True),
        (200, {"ok": False, "error": "ratelimited"}, "ratelimited", False),
        (200, {"ok": False, "error": "x", "access_token": TOKEN}, "x", False),
        (400, {"status": "BAD_AUTH_CODE"}, "BAD_AUTH_CODE", False),
        (503, {"error": "invalid_grant"}, "invalid_grant", False),
        (503, b"<html>", "HTTP 503", False),
        (200, b"<html>", "an answer that is not JSON", False),
        (200, [], "an answer that is not JSON", False),
        (200, {}, "an answer without a token", False),
        (200, {"access_token": 7}, "an answer without a token", False),
        (200, {"access_token": "short"}, "a token that cannot be sent", False),
        (200, {"access_token": TOKEN + "\r\nX: y"}, "a token that cannot be sent", False),
        (200, {"access_token": TOKEN, "refresh_token": "rt\u2028" + RENEWING}, "a token that cannot be sent", False),
        (200, {"access_token": "x" * 20_000}, "a token that cannot be sent", False),
        (200, {"access_token": TOKEN, "token_type": "DPoP"}, "a token that is bound to a key", False),
        (400, {"error": {"message": "no"}}, "an error", False),
        (400, {"error": "<script>"}, "an error", False),
    ],
)
def test_an_answer_that_gives_nothing_says_whether_only_consent_helps(
    status: int, body: Any, code: str, ended: bool
) -> None:
    with pytest.raises(TokenRefused) as refused:
        granted(changed(ended=frozenset(("bad_refresh_token",))), reply(body, status), "id.example")
    assert (refused.value.code, refused.value.ended) == (code, ended)
    assert str(refused.value) == f"id.example gives no token ({code})."


def test_a_code_that_echoes_a_secret_is_not_passed_on() -> None:
    with pytest.raises(TokenRefused) as refused:
        granted(OAUTH, reply({"error": f"bad_{RENEWING}"}, 400, RENEWING), "id")
    assert RENEWING not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "final"), [(200, None), (204, None), (400, True), (401, True), (429, False), (500, False), (503, False)]
)
def test_a_revocation_is_done_refused_for_good_or_to_be_tried_again(status: int, final: bool | None) -> None:
    if final is None:
        revoked(OAUTH, reply(b"", status), "id")
        return
    with pytest.raises(TokenRefused) as refused:
        revoked(OAUTH, reply(b"", status), "id")
    assert refused.value.ended is final


# -- the file


def test_the_block_loads_as_written() -> None:
    ledger = parse(LEDGER)
    oauth, machine = ledger.kind("oauth").oauth, ledger.kind("machine").oauth
    assert oauth is not None
    assert machine is not None
    assert (oauth.grant, oauth.authorize, oauth.token) == ("code", "/oauth/authorize", "/oauth/token")
    assert (oauth.scopes, oauth.client, oauth.pkce, oauth.rotates) == (("read", "write"), "basic", True, True)
    assert oauth.revoke == Revocation(url="/oauth/revoke")
    assert oauth.issuer == "https://ledger.example"
    assert [(field.name, field.secret) for field in ledger.kind("oauth").fields] == [
        ("client_id", False),
        ("client_secret", True),
    ]
    assert (machine.grant, machine.pkce, machine.rotates, machine.lifetime) == (
        "client_credentials",
        False,
        False,
        3600,
    )


WRONG = {
    "a key that is not there": ("client: basic", "clint: basic", 14, "no key 'clint'"),
    "no token endpoint": ("      token: /oauth/token\n", "", 9, "lacks 'token'"),
    "nowhere to consent": ("      authorize: /oauth/authorize\n", "", 9, "lacks 'authorize'"),
    "plain http": ("token: /oauth/token\n      rev", "token: http://x/token\n      rev", 11, "'token' cannot be"),
    "a query": ("authorize: /oauth/authorize", "authorize: /oauth/authorize?a=b", 10, "'authorize' cannot be"),
    "a user name": ("authorize: /oauth/authorize", "authorize: https://u@x/a", 10, "'authorize' cannot be"),
    "a hole elsewhere": ("url: /oauth/revoke", "url: '/oauth/{token}'", 12, "'url' cannot be"),
    "our own parameter": ("client: basic", "client: basic\n      token_params: {code: x}", 15, "not the file's to set"),
    "state": ("client: basic", "client: basic\n      authorize_params: {state: x}", 15, "not the file's to set"),
    "no secret and no PKCE": ("client: basic", "client: none\n      pkce: none", 9, "Remove one of the two"),
    "a scope with spaces": ("[read, write]", "['read write']", 13, "is no scope"),
    "a truth value": ("client: basic", "client: basic\n      token_params: {x: true}", 15, "must be text"),
    "a pattern for a token": (
        "    scheme: bearer\n    oauth:",
        "    scheme: bearer\n    pattern: x\n    oauth:",
        9,
        "'pattern'",
    ),
    "a token in the query": (
        "    scheme: bearer\n    oauth:",
        "    scheme: query\n    name: x\n    oauth:",
        10,
        "by 'query'",
    ),
    "consent without a person": ("lifetime: 3600}", "lifetime: 3600, issuer: 'https://x'}", 21, "nobody consents"),
    "no whole seconds": ("lifetime: 3600", "lifetime: 0", 21, "whole number"),
    "an answer path": ("client: basic", "client: basic\n      answer: a..b", 15, "'answer' cannot be"),
}


@pytest.mark.parametrize(("old", "new", "line", "says"), WRONG.values(), ids=WRONG)
def test_a_block_that_is_wrong_is_refused_with_its_line(old: str, new: str, line: int, says: str) -> None:
    assert old in LEDGER
    with pytest.raises(DefinitionError) as refused:
        parse(LEDGER.replace(old, new, 1))
    assert says in str(refused.value)
    assert refused.value.line == line
