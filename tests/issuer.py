"""A fake of what gives tokens for a private key's signature, GitHub's way and Google's, with an API behind: ours.

It checks the JWT with the public key, and its claims as strictly as the two document it. What they really answer was
not seen. It has a clock of its own, which a test can set apart.
"""

import base64
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.upstream import Answer, Received, Upstream

APP, INSTALLATION, ACCOUNT, KEY_ID = "4711", "77", "robot@acme.iam.example", "kid_1"
PERSON = "ann@acme.example"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"

FORGE = """\
id: forge
title: Forge
base_url: https://forge.example.invalid/api/v3
credentials:
  pasted:
    label: access token
    help: From the settings.
    scheme: bearer
  app:
    label: app by its key
    help: Make one in the settings.
    scheme: bearer
    verify:
      call: GET /installation/repositories
      fixed: {query: {per_page: 1}}
      account: repositories[0].owner.login
    oauth:
      grant: github_app
      token: ./app/installations/{installation_id}/access_tokens
      revoke: {url: ./installation/token, method: DELETE, by: token}
  robot:
    label: service account
    help: Make a key in the console.
    scheme: bearer
    oauth: {grant: jwt_bearer, token: /oauth/token, scopes: [read, write], lifetime: 3600}
verify: {call: GET /me, account: name}
errors: {message: message}
tools:
  list_entries:
    title: List entries
    description: Entries of the forge.
    call: GET /entries
    effect: read
"""


@cache
def key(number: int = 1, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key that lasts as long as this process."""
    return rsa.generate_private_key(65537, bits)


def pem(private: Any, *, encryption: Any = None, form: Any = serialization.PrivateFormat.PKCS8) -> str:
    how = encryption or serialization.NoEncryption()
    return private.private_bytes(serialization.Encoding.PEM, form, how).decode()


def pieces(text: str) -> list[str]:
    """What may be found nowhere of a key in PEM: lines of it, and what they hold, but for the common ends."""
    lines = [line for line in text.splitlines() if "-----" not in line]
    return [*lines[2:-1:5], base64.b64decode("".join(lines))[200:400].hex()]


def key_file(private: rsa.RSAPrivateKey, *, token_uri: str, **changed: Any) -> str:
    """A service account's key, as Google's console gives one."""
    whole = {"type": "service_account", "project_id": "acme", "client_id": "1080", "client_email": ACCOUNT}
    whole |= {"private_key_id": KEY_ID, "private_key": pem(private), "token_uri": token_uri}
    return json.dumps(whole | changed, indent=2)


@dataclass
class Issuer:
    """`with Issuer() as issuer:`. What a test may change stands first; what happened, after it."""

    apart_s: float = 0.0
    """How far its clock is ahead of ours."""
    installed: bool = True
    suspended: bool = False
    permissions: dict[str, str] = field(default_factory=lambda: {"issues": "write", "contents": "read"})
    repositories: tuple[str, ...] = ("web", "api")
    people: set[str] = field(default_factory=lambda: {PERSON})
    """Whom the account may act for."""
    private: rsa.RSAPrivateKey = field(default_factory=key)
    wait: threading.Event | None = None
    """Holds every answer to an exchange back until it is set."""
    asked: threading.Event = field(default_factory=threading.Event)
    answering: Callable[[Received, Answer], Answer] = lambda _request, answer: answer
    """Last say over what is answered to an exchange."""

    exchanges: list[dict[str, Any]] = field(default_factory=list)
    """The claims, and beside them under "body" what stood beside them, of each exchange that was asked for."""
    assertions: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    good: set[str] = field(default_factory=set)
    revoked: list[str] = field(default_factory=list)
    calls: list[Received] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._upstream = Upstream()
        self._upstream.answer = self._answer

    def __enter__(self) -> "Issuer":
        self._upstream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.wait:
            self.wait.set()
        self._upstream.__exit__()

    @property
    def origin(self) -> str:
        return self._upstream.url

    @property
    def url(self) -> str:
        """The account's base URL, as a GitHub Enterprise Server has it."""
        return f"{self.origin}/api/v3"

    @property
    def raw(self) -> list[Received]:
        return self._upstream.requests

    @property
    def pem(self) -> str:
        return pem(self.private)

    def key_file(self, **changed: Any) -> str:
        return key_file(self.private, **{"token_uri": f"{self.origin}/oauth/token"} | changed)

    def app_lines(self) -> bytes:
        """What is piped in for an app: two lines, and its key file."""
        return f"{APP}\n{INSTALLATION}\n{self.pem}".encode()

    def expire(self) -> None:
        """Every token has ended."""
        with self._lock:
            self.good.clear()

    def now(self) -> float:
        return time.time() + self.apart_s

    # -- what it answers

    def _answer(self, request: Received) -> Answer:
        path = urlsplit(request.target).path
        exchange = path.endswith("/access_tokens") or path == "/oauth/token"
        if exchange:
            self.asked.set()
            if self.wait:
                self.wait.wait(30)
        with self._lock:
            if path == f"/api/v3/app/installations/{INSTALLATION}/access_tokens" and request.method == "POST":
                answer = self._for_app(request)
            elif path == "/oauth/token" and request.method == "POST":
                answer = self._for_account(request)
            elif path == "/api/v3/installation/token" and request.method == "DELETE":
                answer = self._revoke(request)
            else:
                answer = self._api(request, path)
        dated = Answer(answer.content, answer.status, {"Date": formatdate(self.now(), usegmt=True), **answer.headers})
        return self.answering(request, dated) if exchange else dated

    def _for_app(self, request: Received) -> Answer:
        claims = self._signed(request.headers.get("authorization", "").removeprefix("Bearer "))
        body = json.loads(request.body or b"{}")
        self.exchanges.append({**(claims or {}), "body": body})
        now = self.now()
        if claims is None or claims.get("iss") != APP or not claims["iat"] <= now < claims["exp"] <= now + 600:
            return Answer({"message": f"not decoded: {request.headers.get('authorization')}", "status": "401"}, 401)
        if not self.installed:
            return Answer({"message": "Not Found", "status": "404"}, 404)
        if self.suspended:
            return Answer({"message": "This installation has been suspended", "status": "403"}, 403)
        wanted, names = body.get("permissions", self.permissions), body.get("repositories")
        if not wanted.items() <= self.permissions.items() or not set(names or ()) <= set(self.repositories):
            return Answer({"message": "not installed for these", "status": "422"}, 422)
        ends = datetime.fromtimestamp(now + 3600, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        narrowed = {"repositories": [{"name": name} for name in names]} if names else {}
        return Answer({"token": self.issue("ghs_"), "expires_at": ends, "permissions": wanted, **narrowed}, 201)

    def _for_account(self, request: Received) -> Answer:
        given = dict(parse_qsl(request.body.decode()))
        claims = self._signed(given.get("assertion", ""))
        self.exchanges.append({**(claims or {}), "body": {"grant_type": given.get("grant_type")}})
        now = self.now()
        if given.get("grant_type") != JWT_BEARER or claims is None or claims.get("iss") != ACCOUNT:
            return _refused("invalid_grant", f"Invalid JWT Signature: {given.get('assertion')}")
        if claims["aud"] != f"{self.origin}/oauth/token" or claims["exp"] - claims["iat"] > 3600:
            return _refused("invalid_grant", "Invalid JWT: its audience or its time")
        if not claims["iat"] <= now < claims["exp"]:
            return _refused("invalid_grant", "Invalid JWT: not in a reasonable timeframe")
        if not claims.get("scope") or not set(claims["scope"].split()) <= {"read", "write"}:
            return _refused("invalid_scope", "no such scope")
        if "sub" in claims and claims["sub"] not in self.people:
            return Answer({"error": "unauthorized_client"}, 401)
        return Answer({"access_token": self.issue("ya29."), "expires_in": 3599, "token_type": "Bearer"})

    def _signed(self, token: str) -> dict[str, Any] | None:
        self.assertions.append(token)
        wanted = {"require": ["iss", "iat", "exp"], "verify_exp": False, "verify_iat": False, "verify_aud": False}
        try:
            return jwt.decode(token, self.private.public_key(), algorithms=["RS256"], options=wanted)
        except jwt.PyJWTError:
            return None

    def issue(self, prefix: str) -> str:
        token = f"{prefix}{secrets.token_hex(24)}"
        self.tokens.append(token)
        self.good.add(token)
        return token

    def _revoke(self, request: Received) -> Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.good:
            return Answer({"message": "Bad credentials"}, 401)
        self.good.discard(token)
        self.revoked.append(token)
        return Answer(b"", 204)

    def _api(self, request: Received, path: str) -> Answer:
        self.calls.append(request)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.good:
            return Answer({"message": f"no such token {token}"}, 401)
        if path == "/api/v3/me" and token.startswith("ghs_"):
            return Answer({"message": "Resource not accessible by integration"}, 403)
        return Answer({"name": "Acme Inc.", "repositories": [{"owner": {"login": "acme"}}], "echo": token})


def _refused(code: str, said: str) -> Answer:
    return Answer({"error": code, "error_description": said}, 400)
