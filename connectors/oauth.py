"""OAuth 2 as requests and answers, and nothing that sends them: what to open, what to ask, what an answer gives.

Sources: RFC 6749, 7636 (PKCE, S256), 9207 (`iss`), 7009 (revocation). No secret stands in a URL, nor in a `Prepared`:
bodies are filled at the moment of sending. Written here because a library's client brings its own way out, and what it
has without one is a page of text: there is one door.
"""

import base64
import email.utils
import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast, final
from urllib.parse import quote, quote_plus, urlencode

from connectors.assertion import EARLY_S, GOOD_FOR_S, secrets_of
from connectors.auth import MAX_SECRET, Revealing
from connectors.definition import HOLE, ClientAuth, OAuth
from connectors.errors import ConnectorError, TokenRefused
from connectors.oauthblock import good_scope
from connectors.request import Prepared, base
from connectors.scrub import Scrubber
from connectors.signed import SIGNED, Claim

if TYPE_CHECKING:
    from connectors.egress import Attach, Fill, Reply  # at run time it would load the HTTP library

Asking = Literal["authorization_code", "refresh_token", "client_credentials", "jwt_bearer", "github_app"]
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

SHORTEST_TOKEN = 8
"""A shorter one could not be scrubbed from answers without tearing holes into ordinary words."""
_LONGEST_LIFE_S = 315_360_000
_MOST_SCOPES = 200
_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ENDED = frozenset(("invalid_grant", "invalid_client", "unauthorized_client"))
"""RFC 6749, 5.2: the token or the app is no longer good, and asking again will not change that."""
_BOUND_TO_A_KEY = ("dpop", "mac")  # token types that need more than the token


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the door out: where it goes, and what fills in the secrets when it goes."""

    prepared: Prepared
    attach: "Attach" = field(repr=False)
    fill: "Fill | None" = field(repr=False)


@final
class Granted:
    """The tokens of an answer: had by name, and shown by nothing."""

    __slots__ = ("_kept", "fields", "lifetime", "scopes")

    def __init__(self, tokens: Mapping[str, str], *, lifetime: int | None, scopes: tuple[str, ...] | None) -> None:
        kept = dict(tokens)
        self._kept = lambda: kept
        self.fields = tuple(kept)  # access_token, and refresh_token where there is one
        self.lifetime = lifetime  # seconds; None: until it is revoked
        self.scopes = scopes  # None where the answer says nothing: then those that were asked for (RFC 6749, 5.1)

    def reveal(self, field: str) -> str:
        return self._kept()[field]


@final
class Proof:
    """A PKCE verifier, which is secret until it is used, and the challenge made of it."""

    __slots__ = ("_kept", "challenge")

    def __init__(self) -> None:
        verifier = secrets.token_urlsafe(48)
        self._kept = lambda: verifier
        self.challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")

    def reveal(self) -> str:
        return self._kept()


def endpoint(url: str, base_url: str) -> tuple[str, str]:
    """Origin and path of an endpoint.

    A path alone lies at the host of the account's own base URL; one that begins with `./` lies below that URL.
    """
    if url.startswith("/"):
        return base(base_url).origin, url
    if url.startswith("./"):
        return base(base_url).origin, base(base_url).path + url[1:]
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", f"/{path}"


def authorization_url(
    oauth: OAuth,
    base_url: str,
    *,
    client_id: str,
    redirect: str,
    state: str,
    challenge: str,
    scopes: Sequence[str],
) -> str:
    """Where a person's browser goes to consent."""
    origin, path = endpoint(oauth.authorize, base_url)
    query = {"response_type": "code", "client_id": client_id, "redirect_uri": redirect, "state": state}
    if scopes:
        query[oauth.scope_name] = oauth.separator.join(scopes)
    if oauth.pkce:
        query |= {"code_challenge": challenge, "code_challenge_method": "S256"}
    return f"{origin}{path}?{urlencode(query | dict(oauth.authorize_params), quote_via=quote)}"


def asking(
    oauth: OAuth,
    base_url: str,
    what: Asking,
    held: Revealing,
    *,
    redirect: str = "",
    scopes: Sequence[str] = (),
    clock: Callable[[], float] = time.time,
) -> Asked:
    """The request for tokens. `held` has the app's fields and `code` and `verifier`, or `refresh_token`; or a key's.

    Raises CredentialMalformed where a private key cannot be used.
    """
    if oauth.signed:
        return _signed(oauth, base_url, held, scopes, clock)
    origin, path = endpoint(oauth.token, base_url)

    def values() -> dict[str, str | int]:
        sent: dict[str, str | int] = {"grant_type": what}
        if what == "authorization_code":
            sent |= {"code": held.reveal("code"), "redirect_uri": redirect}
            if oauth.pkce:
                sent["code_verifier"] = held.reveal("verifier")
        elif what == "refresh_token":
            sent["refresh_token"] = held.reveal("refresh_token")
        elif scopes:
            sent[oauth.scope_name] = oauth.separator.join(scopes)
        return sent | _of_app(oauth.client, held) | dict(oauth.token_params)

    named = ("code", "code_verifier", "refresh_token", "client_secret")
    # A refresh token that is used once is never sent twice by itself: the second would look like a stolen one.
    again = what == "client_credentials" or (what == "refresh_token" and not oauth.rotates)
    return Asked(
        _prepared("POST", origin, path, oauth.body, again=again),
        _signing(oauth.client, held),
        lambda: _filled(oauth.body, values(), named),
    )


def _signed(oauth: OAuth, base_url: str, held: Revealing, scopes: Sequence[str], clock: Callable[[], float]) -> Asked:
    """The same, signed by a private key: a JWT is made at each sending, for the one place that it is sent to."""
    grant = SIGNED[oauth.grant]
    origin, template = endpoint(oauth.token, base_url)
    signer = grant.signer(oauth, held, origin + template)
    path = HOLE.sub(lambda hole: quote(held.reveal(hole[1]), safe=""), template)
    audience = origin + path

    def claim() -> Claim:
        return grant.claim(held, audience, scopes, int(clock()))

    def assertion() -> str:
        now = claim()
        return signer.jwt(now.claims, key_id=now.key_id)

    def attach(headers: dict[str, str], _query: list[tuple[str, str]]) -> tuple[str, ...]:
        if not grant.in_header:
            return ()
        token = assertion()
        headers["Authorization"] = f"Bearer {token}"
        return secrets_of(token)

    def fill() -> tuple[bytes, tuple[str, ...]]:
        if grant.in_header:
            return json.dumps(claim().body).encode(), ()
        token = assertion()
        return urlencode({"grant_type": JWT_BEARER, "assertion": token}).encode(), secrets_of(token)

    prepared = _prepared("POST", origin, path, "json" if grant.in_header else "form", again=True)
    return Asked(prepared, attach, fill)


def revoking(oauth: OAuth, base_url: str, held: Revealing, fields: Sequence[str]) -> Asked:
    """The request that ends what was granted; `fields` are the names that `held` has. Needs `oauth.revoke`."""
    how = oauth.revoke
    assert how is not None  # noqa: S101 - for the type checker: the caller has looked
    origin, template = endpoint(how.url, base_url)
    path = HOLE.sub(lambda hole: quote(held.reveal(hole[1]), safe=""), template)
    below = template.partition("{")[0].rpartition("/")[0] if "{" in template else path.removesuffix("/")
    token = "refresh_token" if how.sends == "refresh_token" and "refresh_token" in fields else "secret"
    client: ClientAuth = oauth.client if how.by == "client" else "basic" if how.by == "basic" else "none"
    body = how.body or oauth.body

    def values() -> dict[str, str | int]:
        return {how.parameter: held.reveal(token)} | (_of_app(client, held) if how.by == "client" else {})

    def by_token(headers: dict[str, str], _query: list[tuple[str, str]]) -> tuple[str, ...]:
        headers["Authorization"] = f"Bearer {held.reveal('secret')}"
        return (held.reveal("secret"),)

    return Asked(
        _prepared(how.method, origin, path, body, again=True, below=below, bare=not how.parameter),
        by_token if how.by == "token" else _signing(client, held),
        (lambda: _filled(body, values(), (how.parameter, "client_secret"))) if how.parameter else None,
    )


def revoked(oauth: OAuth, reply: "Reply", host: str) -> None:
    """Whether the token is ended, as the answer says. Raises TokenRefused; `ended`: asking again is no use.

    One that had to sign its own end and is not taken any more has ended already.
    """
    if reply.status == 401 and oauth.revoke and oauth.revoke.by == "token":
        return
    if not 200 <= reply.status < 300:
        final = 400 <= reply.status < 500 and reply.status not in (408, 425, 429)
        raise TokenRefused(host, _said(reply, _object(reply)) or f"HTTP {reply.status}", ended=final)


def granted(oauth: OAuth, reply: "Reply", host: str, *, clock: Callable[[], float] = time.time) -> Granted:
    """The tokens in an answer. Raises TokenRefused, in a frame that holds none."""
    outcome = _read(oauth, reply, host, clock())
    if isinstance(outcome, ConnectorError):
        raise outcome
    return outcome


def _prepared(
    method: str, origin: str, path: str, body: str, *, again: bool, below: str | None = None, bare: bool = False
) -> Prepared:
    kind = "application/json" if body == "json" else "application/x-www-form-urlencoded"
    headers = (("Accept", "application/json"), *(() if bare else (("Content-Type", kind),)))
    where = path.removesuffix("/") if below is None else below
    return Prepared(method, origin + path, origin, where, headers, idempotent=again)


def _of_app(client: ClientAuth, held: Revealing) -> dict[str, str | int]:
    match client:
        case "basic":
            return {}
        case "post":
            return {"client_id": held.reveal("client_id"), "client_secret": held.reveal("client_secret")}
        case "none":
            return {"client_id": held.reveal("client_id")}


def _signing(client: ClientAuth, held: Revealing) -> "Attach":
    """RFC 6749, 2.3.1: id and secret are form-encoded before they become a user name and a password."""

    def sign(headers: dict[str, str], _query: list[tuple[str, str]]) -> tuple[str, ...]:
        if client != "basic":
            return ()
        pair = f"{quote_plus(held.reveal('client_id'))}:{quote_plus(held.reveal('client_secret'))}"
        basic = base64.b64encode(pair.encode()).decode()
        headers["Authorization"] = f"Basic {basic}"
        return (basic, held.reveal("client_secret"))

    return sign


def _filled(style: str, values: Mapping[str, str | int], named: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
    text = json.dumps(dict(values)) if style == "json" else urlencode(values)
    return text.encode(), tuple(str(values[name]) for name in named if name in values)


# -- answers


def _read(oauth: OAuth, reply: "Reply", host: str, at: float) -> Granted | TokenRefused:
    if oauth.signed and (refused := _key_refused(oauth, reply, host, at)):
        return refused
    answer = _object(reply)
    if answer is None:
        code = f"HTTP {reply.status}" if reply.status >= 400 else "an answer that is not JSON"
        return TokenRefused(host, code, ended=False)
    code = _said(reply, answer)
    place = _at(answer, oauth.answer)
    if oauth.signed and place is not None:
        place = dict(SIGNED[oauth.grant].answer(place, at))
    token = place.get("access_token") if place else None
    if place is None or reply.status >= 400 or code or not isinstance(token, str):
        said = code or (f"HTTP {reply.status}" if reply.status >= 400 else "an answer without a token")
        ended = reply.status < 500 and (said in _ENDED or said in oauth.ended)
        return TokenRefused(host, said, ended=ended)
    if str(place.get("token_type", "")).lower() in _BOUND_TO_A_KEY:
        return TokenRefused(host, "a token that is bound to a key", ended=False)
    tokens = {"access_token": token}
    renewing = place.get("refresh_token")
    if isinstance(renewing, str) and renewing:
        tokens["refresh_token"] = renewing
    if not all(_good(value) for value in tokens.values()):
        return TokenRefused(host, "a token that cannot be sent", ended=False)
    return Granted(tokens, lifetime=_lifetime(place.get("expires_in")) or oauth.lifetime or None, scopes=_scopes(place))


def _key_refused(oauth: OAuth, reply: "Reply", host: str, at: float) -> TokenRefused | None:
    """What a status says of the key, unless it is only that the clocks differ."""
    if 400 <= reply.status < 500 and (apart := _apart(reply, at)):
        return TokenRefused(host, f"its clock and the one here are {apart} s apart: set the clock", ended=False)
    ended = reply.status in SIGNED[oauth.grant].ended
    return TokenRefused(host, f"HTTP {reply.status}", ended=True) if ended else None


def _apart(reply: "Reply", at: float) -> int:
    """By how many seconds the provider's clock and ours differ, where that alone would have it refuse a JWT; else 0."""
    try:
        there = email.utils.parsedate_to_datetime(reply.headers.get("date", "")).timestamp()
    except (ValueError, OverflowError):
        return 0
    return round(abs(there - at)) if at - there > EARLY_S or there - at > GOOD_FOR_S else 0


def _object(reply: "Reply") -> dict[str, Any] | None:
    try:
        value: object = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _at(answer: dict[str, Any], path: Sequence[str]) -> dict[str, Any] | None:
    found: object = answer
    for key in path:
        found = cast("dict[str, object]", found).get(key) if isinstance(found, dict) else None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _said(reply: "Reply", answer: dict[str, Any] | None) -> str:
    """The provider's code for what is wrong; empty where there is none. Its words may quote what was sent."""
    if answer is None:
        return ""
    found = answer.get("error") or (answer.get("status") if reply.status >= 400 else None)
    if not found or found == str(reply.status):
        return ""
    if not isinstance(found, str) or not _CODE.fullmatch(found) or Scrubber(reply.secrets).finds(found):
        return "an error"
    return found


def _good(token: str) -> bool:
    return SHORTEST_TOKEN <= len(token) <= MAX_SECRET and re.fullmatch(r"[\x21-\x7e]+", token) is not None


def _lifetime(given: object) -> int:
    if isinstance(given, str) and given.isascii() and given.isdecimal() and len(given) < 12:
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= _LONGEST_LIFE_S:
        return 0
    return max(1, int(given))


def _scopes(place: Mapping[str, Any]) -> tuple[str, ...] | None:
    given = place.get("scope")
    parts: list[Any] = re.split(r"[ ,]+", given) if isinstance(given, str) else given if isinstance(given, list) else []  # pyright: ignore[reportUnknownVariableType] - JSON
    return tuple(part for part in parts if isinstance(part, str) and good_scope(part))[:_MOST_SCOPES] or None
