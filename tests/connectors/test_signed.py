"""A private key signs who asks, for the one place that is asked, for minutes; the vendors' libraries sign the same."""

import json
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec

from connectors.assertion import Signer, secrets_of
from connectors.catalogue import Catalogue, shipped_folder
from connectors.egress import Reply
from connectors.errors import CredentialMalformed, DefinitionError, TokenRefused
from connectors.loading import parse
from connectors.oauth import Asked, asking, granted, revoked, revoking
from connectors.scrub import contains_secret
from connectors.signed import SIGNED
from server.connections import bound_scheme
from tests.connectors.test_oauth import Held
from tests.issuer import ACCOUNT, APP, FORGE, INSTALLATION, KEY_ID, PERSON, Issuer, key, pem, pieces

AT = 1_795_669_200.0  # 2026-11-26T05:00:00Z
FORGE_FILE = parse(FORGE)
GITHUB, GOOGLE = (FORGE_FILE.kind(kind).oauth for kind in ("app", "robot"))
assert GITHUB is not None
assert GOOGLE is not None
BASE = "https://forge.example/api/v3"
TOKENS = "https://forge.example/oauth/token"


def app(**changed: str) -> Held:
    return Held(**{"app_id": APP, "installation_id": INSTALLATION, "private_key": pem(key())} | changed)


def account(subject: str = "", **changed: Any) -> Held:
    file = {"type": "service_account", "private_key": pem(key()), "client_email": ACCOUNT, "private_key_id": KEY_ID}
    return Held(key_file=json.dumps(file | changed), **({"subject": subject} if subject else {}))


def claims(token: str) -> dict[str, Any]:
    unchecked = {"verify_exp": False, "verify_iat": False, "verify_aud": False}
    return jwt.decode(token, key().public_key(), algorithms=["RS256"], options=unchecked)


def sent(asked: Asked) -> tuple[dict[str, str], bytes, tuple[str, ...]]:
    headers = dict(asked.prepared.headers)
    secrets = asked.attach(headers, [])
    assert asked.fill is not None
    body, more = asked.fill()
    return headers, body, (*secrets, *more)


def reply(body: Any, status: int = 200, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, headers, content, 1.0, len(content), ())


# -- what is asked


def test_an_app_asks_below_its_base_url_as_its_installation() -> None:
    asked = asking(GITHUB, BASE, "github_app", app(), clock=lambda: AT)
    headers, body, secrets = sent(asked)
    assert asked.prepared.method == "POST"
    assert asked.prepared.url == f"{BASE}/app/installations/{INSTALLATION}/access_tokens"
    token = headers["Authorization"].removeprefix("Bearer ")
    assert claims(token) == {"iss": APP, "iat": AT - 60, "exp": AT + 540}
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT"}
    assert json.loads(body) == {}
    assert contains_secret(token, secrets)
    assert contains_secret(f"e30.e30.{token.rpartition('.')[2]}", secrets), "its signature alone"
    assert asked.prepared.idempotent, "a lost answer is asked for again: nothing is used up"


def test_and_for_less_where_scopes_say_so() -> None:
    scopes = ("issues:write", "repository:web", "contents:read", "repository:api")
    _, body, _ = sent(asking(GITHUB, BASE, "github_app", app(), scopes=scopes, clock=lambda: AT))
    narrowed = {"repositories": ["web", "api"], "permissions": {"issues": "write", "contents": "read"}}
    assert json.loads(body) == narrowed


@pytest.mark.parametrize("subject", ["", PERSON])
def test_a_service_account_asks_the_connectors_own_place_for_tokens(subject: str) -> None:
    held = account(subject, token_uri=TOKENS)
    asked = asking(GOOGLE, BASE, "jwt_bearer", held, scopes=("read", "write"), clock=lambda: AT)
    headers, body, secrets = sent(asked)
    assert (asked.prepared.method, asked.prepared.url) == ("POST", TOKENS)
    assert "Authorization" not in headers
    given = dict(parse_qsl(body.decode()))
    token = given.pop("assertion")
    assert given == {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
    acts_for = {"sub": PERSON} if subject else {}
    expected = {"iss": ACCOUNT, "scope": "read write", "aud": TOKENS, "iat": AT - 60, "exp": AT + 3540}
    assert claims(token) == expected | acts_for
    assert jwt.get_unverified_header(token)["kid"] == KEY_ID
    assert contains_secret(token, secrets)


@pytest.mark.parametrize("kind", ["github_app", "jwt_bearer"])
def test_each_try_is_signed_anew_and_shows_nothing_of_the_key(kind: Any) -> None:
    times = count(AT)
    held, oauth = (app(), GITHUB) if kind == "github_app" else (account(), GOOGLE)
    asked = asking(oauth, BASE, kind, held, scopes=(), clock=lambda: next(times))
    first, second = sent(asked), sent(asked)
    assert first[:2] != second[:2]
    for piece in pieces(pem(key())):
        assert piece not in repr((asked, first, second, Signer(pem(key()))))


# -- keys that cannot be used


def unreadable() -> dict[str, str]:
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    locked = serialization.BestAvailableEncryption(b"passphrase")
    whole = pem(key())
    public = (
        key().public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return {
        "encrypted": pem(key(), encryption=locked),
        "encrypted, as before": pem(key(), encryption=locked, form=traditional),
        "too short": pem(key(2, 1024)),
        "another family": pem(ec.generate_private_key(ec.SECP256R1())),
        "another family, as long": pem(dsa.generate_private_key(2048)),
        "cut off": whole[: len(whole) // 2],
        "a hole in the middle": whole[:700] + whole[900:],
        "public": public.decode(),
        "a password": "hunter2hunter2hunter2",
        "nothing": "   ",
        "far too long": "-----BEGIN PRIVATE KEY-----\n" + "A" * 20_000 + "\n-----END PRIVATE KEY-----",
    }


SAYS = {
    "encrypted": "encrypted with a passphrase",
    "encrypted, as before": "encrypted with a passphrase",
    "too short": "1024 bits; at least 2048",
    "another family": "not an RSA key",
    "another family, as long": "not an RSA key",
    "cut off": "no private key in PEM",
    "a hole in the middle": "missing or changed",
    "public": "public key",
    "a password": "no private key in PEM",
    "nothing": "no private key in PEM",
    "far too long": "longer than",
}


@pytest.mark.parametrize("name", SAYS)
def test_a_key_that_cannot_be_used_is_refused_before_anything_is_sent_and_not_quoted(name: str) -> None:
    text = unreadable()[name]
    for refusing in (
        lambda: asking(GITHUB, BASE, "github_app", app(private_key=text)),
        lambda: asking(GOOGLE, BASE, "jwt_bearer", account(private_key=text)),
    ):
        with pytest.raises(CredentialMalformed, match=SAYS[name]) as refused:
            refusing()
        said = str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__context__ is None
        assert all(piece not in said for piece in text.split() if len(piece) > 12 and "PRIVATE" not in piece)


@pytest.mark.parametrize("how", ["\r\n", "\\n"])
def test_a_key_whose_line_breaks_were_changed_on_the_way_is_still_one(how: str) -> None:
    Signer(pem(key()).replace("\n", how)).jwt({"iss": "x"})
    Signer(pem(key(), form=serialization.PrivateFormat.TraditionalOpenSSL)).jwt({"iss": "x"})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"type": "authorized_user"}, "not that of a service account"),
        ({"client_email": None}, "lacks its client_email"),
        ({"private_key": 7}, "private_key"),
        ({"token_uri": "https://evil.example/token"}, "another place for tokens"),
        ({"token_uri": TOKENS + "/"}, "another place for tokens"),
        ({"token_uri": None}, "another place for tokens"),
    ],
)
def test_a_key_file_that_is_no_service_accounts_or_leads_elsewhere_signs_nothing(changed: Any, says: str) -> None:
    with pytest.raises(CredentialMalformed, match=says) as refused:
        asking(GOOGLE, BASE, "jwt_bearer", account(**changed))
    assert "evil" not in str(refused.value)
    with pytest.raises(CredentialMalformed, match="not JSON"):
        asking(GOOGLE, BASE, "jwt_bearer", Held(key_file="[" * 100_000))


def test_what_a_file_may_call_the_place_besides_is_the_connectors_to_say_and_nothing_goes_there() -> None:
    older = "https://accounts.google.com/o/oauth2/token"
    declared = (
        parse(FORGE.replace("grant: jwt_bearer,", f"grant: jwt_bearer, token_uris: [{older}],")).kind("robot").oauth
    )
    assert declared is not None
    asked = asking(declared, BASE, "jwt_bearer", account(token_uri=older), scopes=("read",), clock=lambda: AT)
    assert asked.prepared.url == TOKENS
    assert claims(dict(parse_qsl(sent(asked)[1].decode()))["assertion"])["aud"] == TOKENS
    with pytest.raises(CredentialMalformed):
        asking(GOOGLE, BASE, "jwt_bearer", account(token_uri=older))


@pytest.mark.parametrize("bad", ["", "7/../8", "acme", "7 ", "-1", "１"])
def test_an_installation_is_a_number(bad: str) -> None:
    with pytest.raises(CredentialMalformed, match="is a number"):
        asking(GITHUB, BASE, "github_app", app(installation_id=bad))


@pytest.mark.parametrize(
    ("scope", "fine"),
    [
        ("issues:write", True),
        ("repository:web", True),
        ("repository:acme/web", False),
        ("issues", False),
        ("issues:all", False),
        ("repository:", False),
        ("Issues:read", False),
    ],
)
def test_the_scopes_of_an_app_are_permissions_and_repositories(scope: str, fine: bool) -> None:
    assert (SIGNED["github_app"].check_scope(scope) == "") is fine
    assert SIGNED["jwt_bearer"].check_scope(scope) == ""


# -- what is answered


def test_an_apps_token_ends_when_the_answer_says_and_may_what_it_says() -> None:
    body = {
        "token": "ghs_0123456789abcdef",
        "expires_at": "2026-11-26T06:00:00Z",
        "permissions": {"issues": "write", "metadata": "read"},
        "repositories": [{"name": "web"}, "junk"],
    }
    given = granted(GITHUB, reply(body, 201), "forge", clock=lambda: AT)
    assert given.reveal("access_token") == "ghs_0123456789abcdef"
    assert (given.lifetime, given.fields) == (3600, ("access_token",))
    assert given.scopes == ("issues:write", "metadata:read", "repository:web")
    for odd in ("tomorrow", None, 7, "2026-11-26"):
        assert granted(GITHUB, reply(body | {"expires_at": odd}, 201), "f", clock=lambda: AT).lifetime in (None, 1)


@pytest.mark.parametrize(
    ("oauth", "status", "body", "code", "ended"),
    [
        (GITHUB, 401, {"message": "no", "status": "401"}, "HTTP 401", True),
        (GITHUB, 404, b"<html>", "HTTP 404", True),
        (GITHUB, 403, {"message": "suspended", "status": "403"}, "HTTP 403", False),
        (GITHUB, 422, {"message": "no", "status": "422"}, "HTTP 422", False),
        (GITHUB, 500, b"", "HTTP 500", False),
        (GITHUB, 201, {"nothing": 1}, "an answer without a token", False),
        (GITHUB, 201, {"token": ["x"]}, "an answer without a token", False),
        (GOOGLE, 400, {"error": "invalid_grant", "error_description": "x"}, "invalid_grant", True),
        (GOOGLE, 401, {"error": "unauthorized_client"}, "unauthorized_client", True),
        (GOOGLE, 400, {"error": "invalid_scope"}, "invalid_scope", False),
        (GOOGLE, 404, b"<html>", "HTTP 404", False),
        (GOOGLE, 403, {"error": "access_denied"}, "access_denied", False),
    ],
)
def test_a_refusal_ends_a_key_or_is_trouble(oauth: Any, status: int, body: Any, code: str, ended: bool) -> None:
    with pytest.raises(TokenRefused) as refused:
        granted(oauth, reply(body, status), "forge", clock=lambda: AT)
    assert (refused.value.code, refused.value.ended) == (code, ended)
    assert SIGNED[oauth.grant].mend(code)


@pytest.mark.parametrize(
    ("date", "apart"),
    [
        ("Thu, 26 Nov 2026 04:58:50 GMT", "70 s apart"),
        ("Thu, 26 Nov 2026 05:10:00 GMT", "600 s apart"),
        ("Thu, 26 Nov 2026 04:59:10 GMT", ""),
        ("Thu, 26 Nov 2026 05:08:00 GMT", ""),
        ("yesterday", ""),
    ],
)
@pytest.mark.parametrize("oauth", [GITHUB, GOOGLE])
def test_a_clock_that_is_wrong_is_named_and_no_key_is_blamed_for_it(oauth: Any, date: str, apart: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        granted(oauth, reply({"error": "invalid_grant"}, 401, date=date), "forge", clock=lambda: AT)
    assert refused.value.ended is not bool(apart)
    assert apart in refused.value.code


def test_a_token_signs_its_own_end_and_one_that_is_not_taken_has_ended_already() -> None:
    asked = revoking(GITHUB, BASE, Held(secret="ghs_0123456789abcdef"), ("secret",))
    headers: dict[str, str] = {}
    asked.attach(headers, [])
    assert (asked.prepared.method, asked.prepared.url) == ("DELETE", f"{BASE}/installation/token")
    assert headers == {"Authorization": "Bearer ghs_0123456789abcdef"}
    revoked(GITHUB, reply(b"", 204), "forge")
    revoked(GITHUB, reply(b"", 401), "forge")
    for status in (403, 404, 500):
        with pytest.raises(TokenRefused):
            revoked(GITHUB, reply(b"", status), "forge")


# -- the vendors' own libraries


def test_google_auth_signs_and_asks_the_same() -> None:
    service_account = pytest.importorskip("google.oauth2.service_account")
    seen: list[tuple[str, str, dict[str, str], bytes]] = []

    class Answered:
        status, headers, data = 200, {}, b'{"access_token": "ya29.0123456789", "expires_in": 3599}'

    def transport(url: str, method: str, body: bytes, headers: dict[str, str], **_: Any) -> Answered:
        seen.append((url, method, headers, body))
        return Answered()

    oauth = Catalogue.load(shipped_folder()).connectors["gmail"].kind("service_account").oauth
    assert oauth is not None
    file = json.loads(account(token_uri=oauth.token).reveal("key_file"))
    theirs = service_account.Credentials.from_service_account_info(file, scopes=["read", "write"], subject=PERSON)
    theirs.refresh(transport)
    ((url, method, their_headers, their_body),) = seen
    asked = asking(oauth, BASE, "jwt_bearer", account(PERSON, token_uri=oauth.token), scopes=("read", "write"))
    headers, body, _ = sent(asked)
    assert (asked.prepared.url, asked.prepared.method) == (url, method)
    assert headers["Content-Type"] == their_headers["Content-Type"]
    given, their_given = (dict(parse_qsl(each.decode())) for each in (body, their_body))
    token, their_token = given.pop("assertion"), their_given.pop("assertion")
    assert given == their_given
    assert jwt.get_unverified_header(token) == jwt.get_unverified_header(their_token)
    ours, theirs_claims = claims(token), claims(their_token)
    assert ours["exp"] - ours["iat"] == theirs_claims["exp"] - theirs_claims["iat"] == 3600
    assert abs(theirs_claims["iat"] - 60 - ours["iat"]) < 60
    for each in (ours, theirs_claims):
        del each["iat"], each["exp"]
    assert ours == theirs_claims


def test_pygithub_signs_and_asks_the_same() -> None:
    github = pytest.importorskip("github")
    with Issuer() as issuer:
        auth = github.Auth.AppAuth(APP, issuer.pem)
        github.GithubIntegration(auth=auth, base_url=issuer.url).get_access_token(
            int(INSTALLATION), permissions={"issues": "write"}
        )
        (theirs,) = issuer.raw
    asked = asking(GITHUB, issuer.url, "github_app", app(), scopes=("issues:write",))
    headers, body, _ = sent(asked)
    assert asked.prepared.url == issuer.origin + theirs.target
    assert json.loads(body) == json.loads(theirs.body)
    ours, their_claims = (
        claims(value.removeprefix("Bearer ")) for value in (headers["Authorization"], theirs.headers["authorization"])
    )
    assert ours.keys() == their_claims.keys()
    assert str(ours["iss"]) == str(their_claims["iss"])
    assert abs(ours["iat"] - their_claims["iat"]) <= 60


# -- the file


def test_a_key_is_bound_to_its_grant_and_its_places() -> None:
    assert bound_scheme(FORGE_FILE.kind("app")) == (
        "signed:github_app bearer ./app/installations/{installation_id}/access_tokens ./installation/token"
    )
    assert bound_scheme(FORGE_FILE.kind("robot")) == "signed:jwt_bearer bearer /oauth/token -"


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        ("grant: github_app", "grant: github_app\n      authorize: /a", "nobody consents"),
        ("grant: github_app", "grant: github_app\n      pkce: S256", "nobody consents"),
        ("grant: github_app", "grant: github_app\n      client: basic", "means nothing"),
        ("grant: github_app", "grant: github_app\n      token_uris: [x]", "Only a key file"),
        ("{installation_id}", "{private_key}", "Nothing fills the hole"),
        ("token: /oauth/token", "token: '/oauth/{installation_id}'", "Nothing fills the hole"),
        ("token: /oauth/token", "token: '/oauth/{subject}'", "Nothing fills the hole"),
        ("by: token", "by: client", "no app's secret"),
        ("grant: github_app", "grant: app", "grant"),
        ("scheme: bearer\n    verify", "scheme: bearer\n    pattern: x\n    verify", "Nobody enters a token"),
        ("call: GET /installation/repositories", "call: 'GET /x/{y}'", "hole"),
        ("fixed: {query: {per_page: 1}}", "fixed: {body: {x: 1}}", "has no body"),
    ],
)
def test_a_block_says_nothing_that_means_nothing(was: str, becomes: str, says: str) -> None:
    assert was in FORGE
    with pytest.raises(DefinitionError, match=says):
        parse(FORGE.replace(was, becomes))


def test_the_signature_of_a_jwt_is_secret_too() -> None:
    assert secrets_of("a.b.c") == ("a.b.c", "c")
