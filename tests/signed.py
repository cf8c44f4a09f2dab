"""An MCP server that is signed in to by OAuth, with its authorization server beside it: both are the SDK's own pieces.

Codes and refresh tokens are used once, tokens are bound to the resource that they were asked for, and a refresh token
that comes twice ends everything that was given with it. There is no clock: tokens end when a test says so.
"""

import asyncio
import json
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import uvicorn
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    ProviderTokenVerifier,
    RefreshToken,
    TokenError,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl

from tests.wrapped import World, build

FOR_EVER = 1 << 40


class Accounts:
    """What the authorization server knows: clients, codes and tokens."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}
        self.used: set[str] = set()
        self.reused: list[str] = []
        self.revoked: list[str] = []
        self.given: list[str] = []
        """Every code, token and secret that was ever given out."""
        self.refreshes = 0
        self.expires_in = 3600

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        self.clients[client_info.client_id] = client_info
        self.given += [client_info.client_secret] if client_info.client_secret else []

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        code = f"co_{secrets.token_hex(20)}"
        self.given.append(code)
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or [],
            expires_at=FOR_EVER,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        return f"{params.redirect_uri}?{urlencode({'code': code, 'state': params.state or ''})}"

    async def load_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: str
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._pair(client.client_id, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> RefreshToken | None:
        if refresh_token in self.used:
            self.reused.append(refresh_token)
            self.end_consents()
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        if self.refresh.pop(refresh_token.token, None) is None:
            raise TokenError("invalid_grant")
        self.used.add(refresh_token.token)
        self.refreshes += 1
        return self._pair(client.client_id, scopes, refresh_token.resource)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.revoked.append(token.token)
        self.access.clear()
        self.refresh.pop(token.token, None)

    def _pair(self, client: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = f"at_{secrets.token_hex(20)}", f"rt_{secrets.token_hex(20)}"
        self.given += [access, refresh]
        self.access[access] = AccessToken(token=access, client_id=client, scopes=scopes, resource=resource)
        self.refresh[refresh] = RefreshToken(token=refresh, client_id=client, scopes=scopes, resource=resource)
        return OAuthToken(
            access_token=access, refresh_token=refresh, expires_in=self.expires_in, scope=" ".join(scopes)
        )

    def expire(self) -> None:
        """Every access token has ended."""
        self.access.clear()

    def end_consents(self) -> None:
        """The person has taken their consent back."""
        self.access.clear()
        self.refresh.clear()


Answer = tuple[int, Mapping[str, str], bytes]


class Signed:
    """`with Signed() as signed:`; `signed.url` is the server, `signed.origin` the authorization server's issuer."""

    def __init__(self) -> None:
        self.accounts = Accounts()
        self.world = World(lambda: "no secret at all")
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers of every request."""
        self.instead: dict[str, Callable[[], Answer]] = {}
        """What is answered at a path in place of what the SDK would."""
        self.registers = True
        self.scopes = ["read", "write"]
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.origin = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.url = f"{self.origin}/mcp"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def says(self, path: str, content: Any, status: int = 200, **headers: str) -> None:
        """From now on this is answered there."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.instead[path] = lambda: (status, {"Content-Type": "application/json", **headers}, body)

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]

    async def _serve(self) -> None:
        auth = AuthSettings(
            issuer_url=AnyHttpUrl(self.origin),
            resource_server_url=AnyHttpUrl(self.url),
            required_scopes=self.scopes[:1],
            validate_token_resource=True,
            client_registration_options=ClientRegistrationOptions(
                enabled=self.registers, valid_scopes=self.scopes, default_scopes=self.scopes
            ),
            revocation_options=RevocationOptions(enabled=True),
        )
        inner = build(self.world, "modern").streamable_http_app(
            auth=auth, auth_server_provider=self.accounts, token_verifier=ProviderTokenVerifier(self.accounts)
        )

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
                self.requests.append((scope["method"], scope["path"], headers))
                if scope["path"] in self.instead:
                    await _send(send, *self.instead[scope["path"]]())
                    return
            await inner(scope, receive, send)

        config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        task = asyncio.create_task(self._server.serve(sockets=[self._listening]))
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has a flag and no event
            await asyncio.sleep(0)
        self._ready.set()
        await task

    def __enter__(self) -> "Signed":
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listening.close()


async def _send(send: Any, status: int, headers: Mapping[str, str], body: bytes) -> None:
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
