"""How a wrapped server is signed in to is found in what it says, and followed only where it may lead."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from connectors.definition import OAuth
from connectors.egress import Egress
from connectors.errors import ConnectorError, Unreachable
from connectors.upstream_oauth import CannotSignIn, SignIn, discover, register
from tests.signed import Signed

pytestmark = pytest.mark.anyio
LOCAL = (ip_network("127.0.0.1/32"),)
PRM = "/.well-known/oauth-protected-resource/mcp"
ASM = "/.well-known/oauth-authorization-server"
REDIRECT = "http://127.0.0.1:8701/callback"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def signed() -> Iterator[Signed]:
    with Signed() as running:
        yield running


async def found(signed: Signed) -> SignIn | None:
    async with Egress() as egress:
        return await discover(egress, signed.url, private=LOCAL)


async def registered(signed: Signed, oauth: OAuth) -> Any:
    async with Egress() as egress:
        return await register(egress, oauth, signed.url, redirect=REDIRECT, scopes=("read",), private=LOCAL)


def metadata(signed: Signed, **changed: Any) -> dict[str, Any]:
    """What the authorization server would say, with something else in it; None leaves a key out."""
    origin = signed.origin
    whole = {
        "issuer": origin,
        "authorization_endpoint": f"{origin}/authorize",
        "token_endpoint": f"{origin}/token",
        "registration_endpoint": f"{origin}/register",
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    }
    return {key: value for key, value in (whole | changed).items() if value is not None}


def resource(signed: Signed, **changed: Any) -> dict[str, Any]:
    return {"resource": signed.url, "authorization_servers": [signed.origin], "scopes_supported": ["read"]} | changed


async def test_a_server_and_its_authorization_server_are_followed_to_what_a_file_can_say(signed: Signed) -> None:
    way = await found(signed)
    assert way is not None
    assert (way.oauth.authorize, way.oauth.token, way.oauth.register) == ("/authorize", "/token", "/register")
    assert way.oauth.revoke is not None
    assert (way.oauth.revoke.url, way.oauth.client, way.oauth.pkce) == ("/revoke", "post", True)
    assert way.oauth.scopes == ("read",), "what the server needs, and not all that its provider knows"
    assert way.oauth.token_params == way.oauth.authorize_params == (("resource", signed.url),)
    assert (way.host, way.resource) == (signed.origin.partition("//")[2], signed.url)
    assert signed.paths() == ["/mcp", PRM, ASM]
    assert not any("authorization" in headers for _, _, headers in signed.requests)


async def test_an_app_is_registered_for_exactly_our_redirect_and_its_secret_is_shown_by_nothing(signed: Signed) -> None:
    way = await found(signed)
    assert way is not None
    app = await registered(signed, way.oauth)
    (client,) = signed.accounts.clients.values()
    assert app.reveal("client_id") == client.client_id
    assert app.reveal("client_secret") == client.client_secret
    assert [str(uri) for uri in client.redirect_uris or ()] == [REDIRECT]
    assert client.scope == "read"
    assert str(client.client_secret) not in repr(app)


async def test_a_server_that_says_nothing_of_it_has_no_way_to_sign_in(signed: Signed) -> None:
    for path in (PRM, "/.well-known/oauth-protected-resource", ASM):
        signed.says(path, b"", 404)
    assert await found(signed) is None
    signed.says("/mcp", {}, 200)
    assert await found(signed) is None
    assert signed.paths()[-1] == "/mcp", "nobody who asks for nothing is looked into any further"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"issuer": "https://evil.example"}, "is of https://evil.example"),
        ({"code_challenge_methods_supported": None}, "PKCE"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"response_types_supported": ["token"]}, "gives no codes"),
        ({"token_endpoint_auth_methods_supported": ["private_key_jwt"]}, "takes no app"),
        ({"token_endpoint": "http://tokens.example/token"}, "no endpoint for tokens"),
        ({"token_endpoint": "https://tokens.example/token?tenant=1"}, "no endpoint for tokens"),
        ({"authorization_endpoint": "http://10.0.0.1/authorize"}, "no endpoint for tokens"),
        ({"registration_endpoint": "http://127.0.0.1:1/register"}, "no endpoint for tokens"),
        ({"revocation_endpoint": "http://tokens.example/revoke"}, "no endpoint for tokens"),
    ],
)
async def test_an_authorization_server_that_cannot_be_trusted_with_it_is_refused(
    signed: Signed, changed: dict[str, Any], says: str
) -> None:
    signed.says(ASM, metadata(signed, **changed))
    with pytest.raises(CannotSignIn) as refused:
        await found(signed)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    "of",
    ["https://mcp.other.example/mcp", "{origin}/another", "{origin}/mcp/deeper", "http://127.0.0.1/mcp"],
)
async def test_metadata_of_another_resource_gets_no_token_sent_here(signed: Signed, of: str) -> None:
    signed.says(PRM, resource(signed, resource=of.format(origin=signed.origin)))
    with pytest.raises(CannotSignIn) as refused:
        await found(signed)
    assert "and not of" in str(refused.value)
    assert ASM not in signed.paths()


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://evil.example/metadata",
        "https://user:pw@evil.example/x",
        "file:///etc/passwd",
        "https://evil.example/x?y=1",
    ],
)
async def test_a_pointer_to_metadata_is_not_followed_just_anywhere(signed: Signed, elsewhere: str) -> None:
    challenge = {"WWW-Authenticate": f'Bearer resource_metadata="{elsewhere}"'}
    signed.says("/mcp", {}, 401, **challenge)
    with pytest.raises(CannotSignIn):
        await found(signed)
    assert signed.paths() == ["/mcp"]


async def test_metadata_at_an_address_that_is_not_public_is_not_looked_up(signed: Signed) -> None:
    signed.says("/mcp", {}, 401, **{"WWW-Authenticate": 'Bearer resource_metadata="https://169.254.169.254/x"'})
    with pytest.raises(Unreachable) as refused:
        await found(signed)
    assert "not public" in str(refused.value)
    signed.says(PRM, resource(signed, authorization_servers=["https://10.1.2.3"]))
    signed.says("/mcp", {}, 401)
    with pytest.raises(Unreachable):
        await found(signed)


async def test_metadata_is_bounded_and_a_redirect_leads_nowhere(signed: Signed) -> None:
    signed.says(PRM, {**resource(signed), "padding": "x" * 300_000})
    with pytest.raises(ConnectorError):
        await found(signed)
    signed.says(PRM, b"", 302, Location=f"{signed.origin}/evil")
    way = await found(signed)
    assert way is not None, "the next place where it may stand is looked at"
    assert "/evil" not in signed.paths()


async def test_an_issuer_is_compared_where_the_provider_promises_it(signed: Signed) -> None:
    signed.says(ASM, metadata(signed, authorization_response_iss_parameter_supported=True))
    way = await found(signed)
    assert way is not None
    assert way.oauth.issuer == signed.origin


async def test_scopes_are_those_of_the_challenge_and_one_that_lets_tokens_be_renewed(signed: Signed) -> None:
    challenge = f'Bearer error="invalid_token", scope="read bad\\"scope", resource_metadata="{signed.origin}{PRM}"'
    signed.says("/mcp", {}, 401, **{"WWW-Authenticate": challenge})
    signed.says(ASM, metadata(signed, scopes_supported=["everything", "offline_access"]))
    way = await found(signed)
    assert way is not None
    assert way.oauth.scopes[0] == "read"
    assert way.oauth.scopes[-1] == "offline_access"
    assert "everything" not in way.oauth.scopes


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ({"error": "invalid_client_metadata", "error_description": "<b>hostile</b>"}, 400, "HTTP 400"),
        ({"client_name": "x"}, 201, "something else"),
        (
            {"client_id": "app", "token_endpoint_auth_method": "client_secret_basic", "client_secret": "s" * 20},
            201,
            "otherwise",
        ),
        ({"client_id": "app", "token_endpoint_auth_method": "client_secret_post"}, 201, "cannot be used"),
        ({"client_id": "a\u0000pp", "client_secret": "s" * 20}, 201, "cannot be used"),
        (
            {"client_id": "app", "client_secret": "s" * 20, "redirect_uris": ["https://evil.example/"]},
            201,
            "another redirect",
        ),
    ],
)
async def test_a_registration_that_cannot_be_used_says_so_and_how_to_go_on(
    signed: Signed, answer: dict[str, Any], status: int, says: str
) -> None:
    way = await found(signed)
    assert way is not None
    signed.says("/register", answer, status)
    with pytest.raises(CannotSignIn) as refused:
        await registered(signed, way.oauth)
    assert says in str(refused.value)
    assert "--own-app" in str(refused.value)
    assert "hostile" not in str(refused.value)
    assert "ssss" not in str(refused.value)
