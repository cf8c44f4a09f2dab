"""A fake of an OAuth 2 authorization server with an API behind it: ours, on loopback, and as strict as the RFCs ask.

Codes are used once and bound to redirect and PKCE challenge; refresh tokens rotate, and one that is used twice ends its
whole family, as a stolen one would. There is no clock: tokens end when a test says so.
"""

import base64
import hashlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from tests.upstream import Answer, Received, Upstream

CLIENT_ID = "app_of_acme"
CLIENT_SECRET = "cs_canary_Wf3kT9qZr7LmXv2pBnYd"
ISSUER = "https://ledger.example"

LEDGER = """\
id: ledger
title: Ledger
base_url: https://acme.ledger.example.invalid/v1
credentials:
  oauth:
    label: OAuth
    help: Register an app at your ledger's settings.
    scheme: bearer
    oauth:
      authorize: /oauth/authorize
      token: /oauth/token
      revoke: {url: /oauth/revoke}
      scopes: [read, write]
      client: basic
      issuer: https://ledger.example
  machine:
    label: client credentials
    help: Register an app that acts for itself.
    scheme: header
    name: X-Access-Token
    oauth: {grant: client_credentials, token: /oauth/token, scopes: [read], lifetime: 3600}
  pasted:
    label: access token
    help: From the settings.
    scheme: bearer
verify: {call: GET /me, account: name}
errors: {message: error.message}
tools:
  list_entries:
    title: List entries
    description: Entries of the ledger.
    call: GET /entries
    effect: read
  add_entry:
    title: Add an entry
    description: Adds one.
    call: POST /entries
    effect: write
    ask: Add {text}
    arguments:
      text: {type: string, required: true, description: Its text.}
"""


@dataclass
class Family:
    """One consent: whatever is made of it ends with it."""

    alive: bool = True
    scopes: str = "read write"
    of: str = ""
    """Whose account it is: their tokens and answers name them."""


@dataclass
class Provider:
    """`with Provider() as provider:`. What a test may change stands first; what happened, after it."""

    expires_in: int | None = 3600
    rotates: bool = True
    issuer: str = ISSUER
    redirects: set[str] = field(default_factory=set)
    deny: str = ""
    of: str = ""
    """Whose account is signed in to from now on."""
    wait: threading.Event | None = None
    """Holds every answer to a refresh back until it is set."""
    asked: threading.Event = field(default_factory=threading.Event)
    answering: Callable[[str, Answer], Answer] = lambda _path, answer: answer
    """Last say over what is answered at a path."""

    tokens: list[dict[str, str]] = field(default_factory=list)
    """Every answer of the token endpoint that gave tokens."""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Path and parameters of every request but those to the API."""
    revoked: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    calls: list[Received] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    verifiers: list[str] = field(default_factory=list)
    access: dict[str, Family] = field(default_factory=dict)
    refresh: dict[str, Family] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._upstream = Upstream()
        self._upstream.answer = self._answer

    def __enter__(self) -> "Provider":
        self._upstream.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.wait:
            self.wait.set()
        self._upstream.__exit__()

    @property
    def url(self) -> str:
        """The account's base URL."""
        return f"{self._upstream.url}/v1"

    @property
    def raw(self) -> list[Received]:
        """Every request as it arrived."""
        return self._upstream.requests

    def refreshes(self) -> int:
        return sum(asked.get("grant_type") == "refresh_token" for path, asked in self.requests)

    def issue(self, family: Family | None = None, *, renewing: bool = True) -> dict[str, str]:
        """A new pair, as after a consent."""
        with self._lock:
            family = family or Family(of=self.of)
            pair = {"access_token": f"at_{family.of}{secrets.token_hex(20)}"}
            self.access[pair["access_token"]] = family
            if renewing:
                pair["refresh_token"] = f"rt_{family.of}{secrets.token_hex(20)}"
                self.refresh[pair["refresh_token"]] = family
            self.tokens.append(pair)
            return pair

    def expire(self) -> None:
        """Every access token has ended."""
        with self._lock:
            self.access.clear()

    def end_consents(self) -> None:
        """The person has taken their consent back at the provider."""
        with self._lock:
            for family in (*self.refresh.values(), *self.access.values()):
                family.alive = False

    # -- what it answers

    def _answer(self, request: Received) -> Answer:
        parts = urlsplit(request.target)
        given = dict(parse_qsl(parts.query if request.method == "GET" else request.body.decode()))
        if not parts.path.startswith("/oauth/"):
            return self._api(request)
        with self._lock:
            self.requests.append((parts.path, given))
        if parts.path == "/oauth/token" and given.get("grant_type") == "refresh_token":
            self.asked.set()
            if self.wait:
                self.wait.wait(30)
        with self._lock:
            answer = {
                "/oauth/authorize": self._authorize,
                "/oauth/token": self._token,
                "/oauth/revoke": self._revoke,
            }[parts.path](request, given)
        return self.answering(parts.path, answer)

    def _api(self, request: Received) -> Answer:
        with self._lock:
            self.calls.append(request)
            bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
            family = self.access.get(bearer or request.headers.get("x-access-token", ""))
            if family is None or not family.alive:
                return Answer({"error": {"message": f"no such token {bearer}"}}, 401)
            return Answer({"name": family.of or "Acme Inc.", "id": 1, "echo": bearer})

    def _authorize(self, _request: Received, given: dict[str, str]) -> Answer:
        redirect = given.get("redirect_uri", "")
        if redirect not in self.redirects or given.get("client_id") != CLIENT_ID:
            return Answer({"error": "this redirect is not registered"}, 400)
        answer = {"state": given.get("state", ""), "iss": self.issuer}
        if self.deny:
            answer["error"] = self.deny
        else:
            answer["code"] = f"co_{secrets.token_hex(20)}"
            self.codes[answer["code"]] = given
        return Answer(b"", 302, {"Location": f"{redirect}?{urlencode(answer)}"})

    def _token(self, request: Received, given: dict[str, str]) -> Answer:
        if not _is_the_app(request, given):
            return Answer({"error": "invalid_client", "error_description": f"not {CLIENT_SECRET}"}, 401)
        what = given.get("grant_type")
        if what == "client_credentials":
            return self._given(Family(scopes=given.get("scope", "")), renewing=False)
        if what == "authorization_code":
            return self._for_code(given)
        return self._for_refresh(given.get("refresh_token", ""))

    def _for_code(self, given: dict[str, str]) -> Answer:
        begun = self.codes.pop(given.get("code", ""), None)
        self.verifiers.append(given.get("code_verifier", ""))
        if begun is None or begun["redirect_uri"] != given.get("redirect_uri"):
            return Answer({"error": "invalid_grant"}, 400)
        digest = hashlib.sha256(given.get("code_verifier", "").encode()).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != begun.get("code_challenge"):
            return Answer({"error": "invalid_grant", "error_description": "PKCE"}, 400)
        return self._given(Family(scopes=begun.get("scope", "")))

    def _for_refresh(self, token: str) -> Answer:
        family = self.refresh.get(token)
        if family is None or not family.alive:
            return Answer({"error": "invalid_grant"}, 400)
        if token in self.used:
            self.reused.append(token)
            family.alive = False
            return Answer({"error": "invalid_grant", "error_description": "reuse"}, 400)
        if self.rotates:
            self.used.add(token)
        return self._given(family, renewing=self.rotates)

    def _given(self, family: Family, *, renewing: bool = True) -> Answer:
        answer: dict[str, Any] = {**self.issue(family, renewing=renewing), "token_type": "Bearer"}
        if family.scopes:
            answer["scope"] = family.scopes
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        return Answer(answer)

    def _revoke(self, request: Received, given: dict[str, str]) -> Answer:
        if not _is_the_app(request, given):
            return Answer({"error": "invalid_client"}, 401)
        token = given.get("token", "")
        self.revoked.append(token)
        family = self.refresh.get(token) or self.access.get(token)
        if family:
            family.alive = False
        return Answer(b"")

    # -- what a test looks for

    def secrets(self) -> list[str]:
        """Everything that only the provider and the sealed credential may know."""
        return [
            CLIENT_SECRET,
            *(value for pair in self.tokens for value in pair.values()),
            *(verifier for verifier in self.verifiers if verifier),
            *(given["code"] for _, given in self.requests if given.get("code")),
        ]


def _is_the_app(request: Received, given: dict[str, str]) -> bool:
    scheme, _, basic = request.headers.get("authorization", "").partition(" ")
    if scheme == "Basic":
        user, _, password = base64.b64decode(basic).decode().partition(":")
        return (unquote_plus(user), unquote_plus(password)) == (CLIENT_ID, CLIENT_SECRET)
    return (given.get("client_id"), given.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)
