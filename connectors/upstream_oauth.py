"""How one signs in to a wrapped MCP server, found in what it says, checked, and written so that a person can read it.

Sources: MCP 2026-07-28, authorization; RFC 9728, 8414, 7591, 8707, 9207. The SDK says where to look, reads what is
there and compares it; its own client is not run, because that keeps tokens for itself, logs what a provider says, and
renews in every process by itself. What is found here goes into the file, and from there on this is OAuth like any
other. Nothing secret is sent to find it, and everything goes through the one door.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from httpx2 import Response
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    extract_resource_metadata_from_www_auth,
    extract_scope_from_www_auth,
    get_client_metadata_scopes,
    issuers_match,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthMetadata, ProtectedResourceMetadata
from mcp.shared.auth_utils import check_resource_allowed, resource_url_from_server_url
from mcp_types import LATEST_PROTOCOL_VERSION
from pydantic import AnyUrl, ValidationError

from connectors.addresses import Network
from connectors.bounded import Limits
from connectors.definition import ClientAuth, OAuth, Revocation
from connectors.errors import ConnectorError, Unsendable, UpstreamError
from connectors.oauth import SHORTEST_TOKEN, endpoint
from connectors.oauthblock import good_scope, is_endpoint, is_issuer
from connectors.request import Prepared, base

if TYPE_CHECKING:
    from connectors.egress import Egress, Reply  # at run time it would load the HTTP library

LIMITS = Limits(connect_s=5, total_s=10, max_body=256 * 1024)
CLIENT_NAME = "Keyleash"
_MOST_SCOPES = 50
_METHODS: dict[str, ClientAuth] = {"none": "none", "client_secret_post": "post", "client_secret_basic": "basic"}
_AS_REGISTERED: dict[ClientAuth, str] = {ours: theirs for theirs, ours in _METHODS.items()}


class CannotSignIn(ConnectorError):
    """What a server says of its way to sign in is missing, contradicts itself, or cannot be used here."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """A way to sign in, in the words of a connector file. URLs at the server's own host are paths."""

    oauth: OAuth
    host: str  # where a person consents
    resource: str  # RFC 8707: what the tokens are for


@final
class Registered:
    """An app that an authorization server has made for us: had by name, and shown by nothing."""

    __slots__ = ("_kept", "fields")

    def __init__(self, client_id: str, client_secret: str | None) -> None:
        kept = {"client_id": client_id} | ({"client_secret": client_secret} if client_secret else {})
        self._kept = lambda: kept
        self.fields = tuple(kept)

    def reveal(self, field: str) -> str:
        return self._kept()[field]


async def discover(egress: "Egress", url: str, *, private: tuple[Network, ...] = ()) -> SignIn | None:
    """How the MCP server at `url` is signed in to; None where it does not say. Raises ConnectorError.

    CannotSignIn where it says something that is not to be followed.
    """
    asked = await _asked_unsigned(egress, url, private)
    if asked.status_code != 401:
        return None
    resource = await _resource(egress, url, extract_resource_metadata_from_www_auth(asked), private)
    issuer = str(resource.authorization_servers[0]) if resource else None
    found = await _authorization_server(egress, url, issuer, private)
    if found is None:
        if resource is None:
            return None
        raise CannotSignIn(f"{issuer} is to be asked for tokens, and does not say how: it has no metadata (RFC 8414).")
    return _read(url, resource, found, extract_scope_from_www_auth(asked))


async def register(
    egress: "Egress",
    oauth: OAuth,
    base_url: str,
    *,
    redirect: str,
    scopes: tuple[str, ...],
    private: tuple[Network, ...] = (),
) -> Registered:
    """Have the authorization server make an app for us (RFC 7591). Raises ConnectorError."""
    origin, path = endpoint(oauth.register, base_url)
    wanted = OAuthClientMetadata(
        redirect_uris=[AnyUrl(redirect)],
        token_endpoint_auth_method=_AS_REGISTERED[oauth.client],  # pyright: ignore[reportArgumentType] - one of its own
        client_name=CLIENT_NAME,
        scope=" ".join(scopes) or None,
    )
    body = wanted.model_dump_json(by_alias=True, exclude_none=True).encode()
    headers = (("Accept", "application/json"), ("Content-Type", "application/json"))
    reply = await egress.send(
        Prepared("POST", origin + path, origin, path.removesuffix("/"), headers, body),
        attach=_nothing,
        private=private,
        limits=LIMITS,
    )
    host = origin.partition("//")[2]
    outcome = _registered(oauth, host, redirect, reply)
    if isinstance(outcome, ConnectorError):
        raise outcome
    return outcome


# -- looking


async def _asked_unsigned(egress: "Egress", url: str, private: tuple[Network, ...]) -> Response:
    """What the server answers to whoever has no token: where to get one."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    where = base(url)
    headers = (
        ("Accept", "application/json, text/event-stream"),
        ("Content-Type", "application/json"),
        ("MCP-Protocol-Version", LATEST_PROTOCOL_VERSION),
    )
    prepared = Prepared("POST", where.url, where.origin, where.path, headers, json.dumps(body).encode())
    reply = await egress.send(prepared, attach=_nothing, private=private, limits=LIMITS)
    return Response(reply.status, headers=dict(reply.headers))


async def _resource(
    egress: "Egress", url: str, pointed: str | None, private: tuple[Network, ...]
) -> ProtectedResourceMetadata | None:
    for candidate in build_protected_resource_metadata_discovery_urls(pointed, url):
        reply = await _looked_up(egress, candidate, url, private)
        if reply is None:
            continue
        try:
            found = ProtectedResourceMetadata.model_validate_json(reply.body)
        except ValidationError:
            continue
        # RFC 9728, 3.3: metadata of another resource would have us get tokens for that, and send them here.
        if not check_resource_allowed(resource_url_from_server_url(url), str(found.resource)):
            of = _short(str(found.resource))
            raise CannotSignIn(f"The metadata at {_short(candidate)} is of {of}, and not of {url}.")
        return found
    return None


async def _authorization_server(
    egress: "Egress", url: str, issuer: str | None, private: tuple[Network, ...]
) -> OAuthMetadata | None:
    expected = issuer or base(url).origin
    for candidate in build_oauth_authorization_server_metadata_discovery_urls(issuer, url):
        reply = await _looked_up(egress, candidate, url, private)
        if reply is None:
            continue
        try:
            found = OAuthMetadata.model_validate_json(reply.body)
        except ValidationError:
            continue
        # RFC 8414, 3.3: whoever can write one page of a host is not its authorization server.
        if not issuers_match(str(found.issuer), expected):
            raise CannotSignIn(f"The metadata at {_short(candidate)} is of {_short(str(found.issuer))}.")
        return found
    return None


async def _looked_up(egress: "Egress", url: str, server: str, private: tuple[Network, ...]) -> "Reply | None":
    """What stands there, where it is a 200; None otherwise. Raises CannotSignIn for where nothing is looked up."""
    try:
        where = base(url.partition("?")[0])
    except Unsendable:
        raise CannotSignIn(f"{_short(url)} is no address that is followed from here.") from None
    if "?" in url or "#" in url or not (where.origin.startswith("https://") or where.origin == base(server).origin):
        raise CannotSignIn(f"{_short(url)} is no address that is followed from here: it has to be https, and plain.")
    prepared = Prepared("GET", where.url, where.origin, where.path, (("Accept", "application/json"),))
    try:
        reply = await egress.send(prepared, attach=_nothing, private=private, limits=LIMITS)
    except UpstreamError:  # a redirect: it is not served here
        return None
    return reply if reply.status == 200 else None


def _nothing(_headers: dict[str, str], _query: list[tuple[str, str]]) -> tuple[str, ...]:
    return ()


# -- reading


def _read(url: str, resource: ProtectedResourceMetadata | None, found: OAuthMetadata, challenged: str | None) -> SignIn:
    issuer = _short(str(found.issuer))
    if "S256" not in (found.code_challenge_methods_supported or ()):
        raise CannotSignIn(f"{issuer} does not say that it knows PKCE with S256: whoever saw a code could use it.")
    if "code" not in found.response_types_supported:
        raise CannotSignIn(f"{issuer} gives no codes, and nothing else is taken.")
    offered = found.token_endpoint_auth_methods_supported or ["client_secret_basic"]
    client: ClientAuth | None = next((ours for theirs, ours in _METHODS.items() if theirs in offered), None)
    if client is None:
        raise CannotSignIn(f"{issuer} takes no app that signs by its secret, or not at all.")
    of = str(resource.resource) if resource else resource_url_from_server_url(url)
    authorize = _place(str(found.authorization_endpoint), url)
    oauth = OAuth(
        authorize=authorize,
        token=_place(str(found.token_endpoint), url),
        revoke=_revocation(found, url),
        register=_place(str(found.registration_endpoint), url) if found.registration_endpoint else "",
        scopes=tuple(_scopes(resource, found, challenged)),
        client=client,
        authorize_params=(("resource", of),),
        token_params=(("resource", of),),
        issuer=_issuer(found),
    )
    return SignIn(oauth, endpoint(authorize, url)[0].partition("//")[2], of)


def _revocation(found: OAuthMetadata, url: str) -> Revocation | None:
    """Where tokens are ended (RFC 7009), where there is such a place."""
    return Revocation(url=_place(str(found.revocation_endpoint), url)) if found.revocation_endpoint else None


def _place(address: str, url: str) -> str:
    """An endpoint as a file has it: a path at the server's own host, else https. Raises CannotSignIn."""
    origin = base(url).origin
    place = address.removeprefix(origin) if address.startswith(f"{origin}/") else address
    if not is_endpoint(place):
        raise CannotSignIn(f"{_short(address)} is no endpoint for tokens: it has to be https, without a query.")
    return place


def _issuer(found: OAuthMetadata) -> str:
    """What `iss` in the redirect has to be, where it is promised; RFC 9207 compares it letter by letter."""
    issuer = str(found.issuer)
    if not found.authorization_response_iss_parameter_supported:
        return ""
    return issuer if is_issuer(issuer) else ""


def _scopes(resource: ProtectedResourceMetadata | None, found: OAuthMetadata, challenged: str | None) -> Iterator[str]:
    """Those that the server asks for, and what lets tokens be renewed; never everything that its provider knows."""
    chosen = get_client_metadata_scopes(challenged, resource)
    given = [scope for scope in (chosen or "").split() if good_scope(scope)][:_MOST_SCOPES]
    yield from given
    if given and "offline_access" not in given and "offline_access" in (found.scopes_supported or ()):
        yield "offline_access"


def _registered(oauth: OAuth, host: str, redirect: str, reply: "Reply") -> Registered | CannotSignIn:
    """The app, or why there is none; in a frame of its own, because the answer holds its secret."""
    own = "Register one there yourself, and give it with `--own-app`."
    if reply.status not in (200, 201):
        return CannotSignIn(f"{host} registers no app for us (HTTP {reply.status}). {own}")
    try:
        made = OAuthClientInformationFull.model_validate_json(reply.body)
    except ValidationError:
        return CannotSignIn(f"{host} answered a registration with something else. {own}")
    method = made.token_endpoint_auth_method or _AS_REGISTERED[oauth.client]
    if method != _AS_REGISTERED[oauth.client]:
        return CannotSignIn(f"{host} registered an app that signs otherwise than the file says (`client:`). {own}")
    secret = made.client_secret if oauth.client != "none" else None
    usable = made.client_id.isascii() and made.client_id.isprintable()
    if not usable or (oauth.client != "none" and not _good(secret)):
        return CannotSignIn(f"{host} registered an app that cannot be used. {own}")
    if made.redirect_uris and redirect not in [str(each) for each in made.redirect_uris]:
        return CannotSignIn(f"{host} registered an app for another redirect. {own}")
    return Registered(made.client_id, secret)


def _good(secret: str | None) -> bool:
    return secret is not None and len(secret) >= SHORTEST_TOKEN and secret.isascii() and secret.isprintable()


def _short(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:200])
