"""Read the `oauth:` block of a credential: what loads names its endpoints once, and nothing in it can be overridden.

The parameters of the protocol itself are Keyleash's to set: a file cannot say `state`, `redirect_uri` or a secret.
"""

import re
from collections.abc import Mapping
from typing import cast, get_args

from connectors import fileformat as keys
from connectors.definition import (
    HOLE,
    BodyStyle,
    ClientAuth,
    Field,
    Grant,
    OAuth,
    Revocation,
    Revoker,
    SchemeName,
    TokenName,
)
from connectors.signed import SIGNED
from connectors.source import Spot

_URL = re.compile(keys.OAUTH_URL_PATTERN)
_TOKEN_URL = re.compile(keys.TOKEN_URL_PATTERN)
_REVOKE_URL = re.compile(keys.REVOKE_URL_PATTERN)
_NAME = re.compile(r"[a-z_]+")
_PATH = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_URL_MEND = "Write https://host/path, or /path at the host of the base URL, or ./path below it; no query, no user name."
_ISSUER = re.compile(r"https?://[a-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?")  # compared, and never gone to
_OURS = frozenset(
    (
        *("response_type", "client_id", "redirect_uri", "state", "code_challenge", "code_challenge_method"),
        *("grant_type", "code", "code_verifier", "refresh_token", "client_secret", "token", "access_token", "scope"),
        "assertion",
    )
)
_NEEDS_A_PERSON = ("authorize", "authorize_params", "pkce", "issuer", "rotates", "register")
_NEEDS_A_SECRET = ("client", "token_params", "body", "separator", "scope_name")


def read_oauth(spot: Spot, scheme: SchemeName) -> OAuth:
    """The block; raises DefinitionError."""
    block = spot.block("OAuth", keys.OAUTH, keys.required(keys.OAUTH))
    if scheme not in ("bearer", "header"):
        spot.fail(f"A token does not enter a request by {scheme!r}.", "Use the scheme bearer or header.")
    grant = cast("Grant", _choice(block, "grant", get_args(Grant), "code"))
    if grant == "code" and "authorize" not in block:
        spot.fail("OAuth lacks 'authorize'.", "Add `authorize:`, or `grant: client_credentials` where nobody consents.")
    _require_use(block, grant)
    client = cast("ClientAuth", _choice(block, "client", get_args(ClientAuth), "post"))
    pkce = _choice(block, "pkce", ("S256", "none"), "S256") == "S256"
    if grant not in SIGNED:
        _require_some_proof(spot, grant, client, pkce=pkce)
    scope_name = _matching(block, "scope_name", _NAME, "scope")
    asked_of_person = _params(block.get("authorize_params"), scope_name)
    return OAuth(
        grant=grant,
        authorize=_matching(block, "authorize", _URL, "", _URL_MEND),
        token=_token(block["token"], grant),
        revoke=_revocation(block["revoke"], grant) if "revoke" in block else None,
        scopes=_scopes(block.get("scopes")),
        separator=_choice(block, "separator", (",", ";", "+"), " "),
        scope_name=scope_name,
        pkce=pkce and grant == "code",
        client=client,
        authorize_params=tuple((name, str(value)) for name, value in asked_of_person),
        token_params=_params(block.get("token_params"), scope_name),
        body=cast("BodyStyle", _choice(block, "body", get_args(BodyStyle), "form")),
        lifetime=_seconds(block.get("lifetime")),
        rotates=grant == "code" and ("rotates" not in block or block["rotates"].flag("Rotates")),
        answer=tuple(part for part in _matching(block, "answer", _PATH, "").split(".") if part),
        issuer=_matching(block, "issuer", _ISSUER, "", "Write it as the provider's metadata does: https://host."),
        ended=frozenset(block["ended"].texts("Ended") if "ended" in block else ()),
        register=_matching(block, "register", _URL, "", _URL_MEND),
        token_uris=_token_uris(block.get("token_uris"), grant),
    )


def _require_use(block: Mapping[str, Spot], grant: Grant) -> None:
    """Refuse what would mean nothing with this grant."""
    nobody = _NEEDS_A_PERSON if grant != "code" else ()
    for key in (*nobody, "ended") if grant == "client_credentials" else nobody:
        if key in block:
            how = "client credentials" if grant == "client_credentials" else "a private key"
            block[key].fail(f"With {how} nobody consents, and {key!r} means nothing.", "Remove it.")
    for key in _NEEDS_A_SECRET if grant in SIGNED else ():
        if key in block:
            block[key].fail(
                f"With a private key the request is what the grant says; {key!r} means nothing.", "Remove it."
            )


def _token(spot: Spot, grant: Grant) -> str:
    """Where tokens are had; a hole is filled with what a person gives in the open."""
    url = spot.matching("'token'", _TOKEN_URL, _URL_MEND)
    known = [field.name for field in SIGNED[grant].fields if not field.secret] if grant in SIGNED else []
    for hole in HOLE.findall(url):
        if hole not in known or grant == "jwt_bearer":
            spot.fail(f"Nothing fills the hole {{{hole}}} of 'token'.", "Only a github_app has {installation_id}.")
    return url


def _token_uris(spot: Spot | None, grant: Grant) -> tuple[str, ...]:
    if spot is not None and grant != "jwt_bearer":
        spot.fail("Only a key file of grant jwt_bearer names a place for tokens.", "Remove `token_uris:`.")
    return spot.texts("Token URIs") if spot is not None else ()


def fields_of_app(oauth: OAuth) -> tuple[Field, ...]:
    """What a person gives: whoever asks, and not the tokens that it is given."""
    if oauth.grant in SIGNED:
        return SIGNED[oauth.grant].fields
    client_id = Field(name="client_id", label="client id", secret=False)
    if oauth.client == "none":
        return (client_id,)
    return (client_id, Field(name="client_secret", label="client secret"))


def _require_some_proof(spot: Spot, grant: Grant, client: ClientAuth, *, pkce: bool) -> None:
    if client == "none" and grant == "client_credentials":
        spot.fail("Client credentials without a secret are none.", "Remove `client: none`.")
    if client == "none" and not pkce:
        spot.fail("Without a secret and without PKCE, whoever sees a code can use it.", "Remove one of the two.")


def _revocation(spot: Spot, grant: Grant) -> Revocation:
    block = spot.block("Revoke", keys.REVOKE, keys.required(keys.REVOKE))
    by = cast("Revoker", _choice(block, "by", get_args(Revoker), "client"))
    if by == "token" and ("parameter" in block or "sends" in block):
        spot.fail("By the token itself, nothing else is sent.", "Remove `parameter:` and `sends:`.")
    method = _choice(block, "method", ("POST", "DELETE"), "POST")
    default = "access_token" if grant != "code" or by == "token" else "refresh_token"
    if by in ("client", "basic") and grant in SIGNED:
        block["url"].fail(
            "With a private key there is no app's secret that could sign this.", "Say `by: token`, or nobody."
        )
    return Revocation(
        url=_matching(block, "url", _REVOKE_URL, "", _URL_MEND),
        method="DELETE" if method == "DELETE" else "POST",
        by=by,
        body=cast("BodyStyle", block["body"].one_of("'body'", get_args(BodyStyle))) if "body" in block else None,
        parameter="" if by == "token" else _matching(block, "parameter", _NAME, "token"),
        sends=cast("TokenName", _choice(block, "sends", get_args(TokenName), default)),
    )


def _choice(block: Mapping[str, Spot], key: str, choices: tuple[str, ...], default: str) -> str:
    return block[key].one_of(f"{key!r}", choices) if key in block else default


def _matching(block: Mapping[str, Spot], key: str, pattern: re.Pattern[str], default: str, mend: str = "") -> str:
    mend = mend or "Use lower-case letters, as the provider spells it."
    return block[key].matching(f"{key!r}", pattern, mend) if key in block else default


def _scopes(spot: Spot | None) -> tuple[str, ...]:
    if spot is None:
        return ()
    scopes = spot.texts("Scopes")
    for scope in scopes:
        if not good_scope(scope):
            spot.fail(f"{scope!r} is no scope.", "One is visible ASCII without spaces, quotes and backslashes.")
    return scopes


def is_endpoint(text: str) -> bool:
    """Whether this can stand in a file as a place where tokens are had."""
    return _URL.fullmatch(text) is not None


def is_issuer(text: str) -> bool:
    """Whether this can stand in a file as an issuer."""
    return _ISSUER.fullmatch(text) is not None


def good_scope(text: str) -> bool:
    """RFC 6749, 3.3, and not with a comma, by which some providers separate them."""
    return re.fullmatch(r"[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,256}", text) is not None


def _params(spot: Spot | None, scope_name: str) -> tuple[tuple[str, str | int], ...]:
    if spot is None:
        return ()
    found: list[tuple[str, str | int]] = []
    for name, value in spot.mapping("The parameters").items():
        if name in _OURS or name == scope_name:
            value.fail(f"{name!r} is a parameter of the protocol, and not the file's to set.", "Remove it.")
        plain = value.value
        if isinstance(plain, bool) or not isinstance(plain, str | int):
            value.fail(f"The parameter {name!r} must be text or a whole number.", "Write it in quotes.")
        found.append((name, plain))
    return tuple(found)


def _seconds(spot: Spot | None) -> int:
    if spot is None:
        return 0
    value = spot.value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 315_360_000:
        spot.fail("The lifetime must be a whole number of seconds, ten years at most.")
    return value
