"""Signing in by OAuth at the real `oidc-provider`: PKCE, rotation, and its detection of a token that is used twice."""

import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import anyio

from tests.browser import Browser
from tests.commandline import Ran, with_environment
from tests.installed import files_holding
from tests.ports import free_port
from tests.real.emulators import HOST, started, watched
from tests.real.fetching import Cache, node
from tests.real.governed import Agent, Org, agent, org, text_of
from tests.real.report import Report, expect
from tests.upstream import Answer, Received, Upstream

VERSION = "9.13.3"
PROCESSES, CALLS = 4, 50
LIVES_S = 12
"""How long an access token lives: long enough for all calls to be answered with one."""

CONNECTOR = """\
id: directory
title: Directory
base_url: https://directory.example.invalid
credentials:
  oauth:
    label: OAuth
    help: An app of these checks.
    scheme: bearer
    oauth:
      authorize: /auth
      token: /token
      revoke: {url: /token/revocation}
      client: basic
      scopes: [openid, offline_access]
      authorize_params: {prompt: consent}
verify: {call: GET /me, account: sub}
tools:
  who_am_i:
    title: Who am I
    description: The person who consented.
    call: GET /me
    effect: read
"""


@dataclass(frozen=True)
class Place:
    """An org, the provider's own address, and the relay in front of it that keeps what came."""

    made: Org
    provider: str
    relay: Upstream
    redirect: str
    client_secret: str

    def keyleash(self, *arguments: str, stdin: str = "") -> Ran:
        """A command at a machine with a browser."""
        return self.made.line.alone(*arguments, stdin=stdin.encode())

    def tokens(self, grant: str) -> list[dict[str, str]]:
        """What was sent to the token endpoint for this grant."""
        return [sent for sent in map(_form, self.relay.requests) if sent.get("grant_type") == grant]


def _form(request: Received) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode())) if request.target == "/token" else {}


async def check(report: Report, cache: Cache) -> None:
    """Connect, run out, renew, be robbed, consent again, disconnect."""
    with _place(cache) as place:
        _pkce(report, place)
        with report.line("connects through a browser, with PKCE, and the tokens are nowhere in the open"):
            _connect(place)
        with report.line(f"{PROCESSES} processes with {CALLS} calls each at the token's end make one renewal"):
            await _at_the_end(place)
        with report.line("the next renewal sends the token that the one before was given"):
            await _rotates(place)
        with report.line("a refresh token that somebody else used ends the grant, and people hear what to do"):
            await _robbed(place)
        with report.line("consenting again mends it; removing the connection ends the tokens at the provider"):
            await _again_and_away(place)
        with report.line("no token, code, verifier or secret is in a file, and the record verifies"):
            _nowhere(place)


@contextmanager
def _place(cache: Cache) -> Iterator[Place]:
    package = cache.npm("oidc-provider", VERSION)
    port, redirect = free_port(), f"http://{HOST}:{free_port()}/callback"
    secret = secrets.token_urlsafe(32)
    script = Path(__file__).with_name("authorization.mjs")
    command = [node(), str(script), str(package), str(port), str(LIVES_S), redirect]
    with (
        started(command, port, cwd=str(package), env={"CLIENT_SECRET": secret, "PATH": ""}) as url,
        watched(url) as relay,
        org() as made,
    ):
        folder = made.line.home / "data" / "connectors"
        folder.mkdir(mode=0o700)
        (folder / "directory.yaml").write_text(CONNECTOR)
        forward = (
            relay.answer
        )  # of several cookies it would pass on one, so a browser is sent on to the provider itself
        relay.answer = lambda request: (
            Answer(b"", 302, {"Location": url + request.target})
            if request.target.startswith("/auth")
            else forward(request)
        )
        browser = f"{sys.executable} {Path(__file__).parents[1] / 'browser.py'} %s"
        line = with_environment(made.line, {"BROWSER": browser})
        yield Place(Org(line, made.token), url, relay, redirect, secret)


def _pkce(report: Report, place: Place) -> None:
    with report.line("the provider gives nothing without PKCE"):
        query = f"client_id=app_of_acme&response_type=code&redirect_uri={place.redirect}&scope=openid&state=x"
        _, headers, page = Browser().get(f"{place.provider}/auth?{query}")
        expect("PKCE" in headers.get("location", "") + page, "it asks for no challenge, so nothing is shown below")


def _connect(place: Place) -> None:
    ran = place.keyleash(
        *("connect", "directory", "--kind", "oauth", "--secret-stdin", "--json"),
        *("--base-url", place.relay.url, "--allow-private", f"{HOST}/32", "--redirect", place.redirect),
        stdin=f"app_of_acme\n{place.client_secret}\n",
    )
    expect(ran.code == 0, ran.err)
    made: dict[str, Any] = json.loads(ran.out)
    expect(made["account"] == "ann", f"connected to {made['account']}")
    expect(made["oauth"]["renewed_by_itself"], "it has no refresh token")
    (exchange,) = place.tokens("authorization_code")
    expect(len(exchange.get("code_verifier", "")) >= 43, "no verifier was sent")
    expect("client_secret" not in exchange, "the app's secret is in the body, where Basic was said")


async def _run_out(place: Place) -> None:
    """Wait until the provider itself takes the token no more."""
    (row,) = json.loads(place.made.run("connection", "list", "--json"))
    ends = json.loads(place.made.run("connection", "show", row["name"], "--json"))["oauth"]["expires_at"]
    await anyio.sleep(max(0.0, datetime.fromisoformat(ends).timestamp() - time.time()) + 1)


async def _at_the_end(place: Place) -> None:
    with ExitStack() as servers:
        urls = [servers.enter_context(place.made.serving()) for _ in range(PROCESSES)]
        await _run_out(place)
        said: list[str] = []

        async def one(at_work: Agent) -> None:
            result = await at_work.call("who_am_i")
            said.append("" if not result.is_error else text_of(result))

        async def client(url: str) -> None:
            async with (
                agent(url, place.made.token, "directory", place.relay) as at_work,
                anyio.create_task_group() as calls,
            ):
                for _ in range(CALLS):
                    calls.start_soon(one, at_work)

        began = time.monotonic()
        async with anyio.create_task_group() as clients:
            for url in urls:
                clients.start_soon(client, url)
        took = time.monotonic() - began
    failed = [each for each in said if each]
    expect(len(said) == PROCESSES * CALLS, f"{len(said)} calls were answered")
    expect(not failed, f"{len(failed)} of {len(said)} calls failed: {failed[:1]}")
    refreshes = place.tokens("refresh_token")
    expect(len(refreshes) == 1, f"{len(refreshes)} renewals in {took:.1f} s")


async def _rotates(place: Place) -> None:
    with place.made.serving() as url:
        await _run_out(place)
        async with agent(url, place.made.token, "directory", place.relay) as at_work:
            await at_work.get("who_am_i")
    first, second = place.tokens("refresh_token")
    expect(first["refresh_token"] != second["refresh_token"], "the same refresh token was sent twice")


async def _robbed(place: Place) -> None:
    """Somebody who has the first refresh token uses it: the provider ends everything that came of the consent."""
    used = place.tokens("refresh_token")[0]["refresh_token"]
    before = len(place.tokens("refresh_token"))
    stolen = _replayed(place, used)
    expect(stolen == "invalid_grant", f"the provider does not detect reuse: {stolen}")
    with place.made.serving() as url:
        async with agent(url, place.made.token, "directory", place.relay) as at_work:
            await _run_out(place)
            said = await at_work.refused("who_am_i")
            again = await at_work.refused("who_am_i")
            names = [tool.name for tool in (await at_work.client.list_tools()).tools]
    expect("Tell the person you work for" in said, said)
    expect(said == again, again)
    expect("directory_who_am_i" in names, "the tool is not listed any more")
    expect(len(place.tokens("refresh_token")) == before + 1, "a dead token was sent again")
    shown = json.loads(place.made.run("connection", "show", "directory", "--json"))
    expect(shown["needs_consent_at"], "the connection does not show that it needs consent")


def _replayed(place: Place, token: str) -> str:
    """What the provider says to a refresh token, sent by somebody else who has the app's secret as well."""
    import base64
    import http.client
    from urllib.parse import urlencode, urlsplit

    target = urlsplit(place.provider)
    assert target.hostname
    connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
    basic = base64.b64encode(f"app_of_acme:{place.client_secret}".encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode({"grant_type": "refresh_token", "refresh_token": token})
    connection.request("POST", "/token", body, headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer.get("error", "tokens"))


async def _again_and_away(place: Place) -> None:
    ran = place.keyleash("connection", "rotate", "directory", "--redirect", place.redirect)
    expect(ran.code == 0, ran.err)
    with place.made.serving() as url:
        async with agent(url, place.made.token, "directory", place.relay) as at_work:
            await at_work.get("who_am_i")
    bearer = place.relay.requests[-1].headers["authorization"]
    removed = json.loads(place.made.run("connection", "remove", "directory", "--yes", "--json"))
    expect(removed["revoked"], f"not revoked: {removed['reason']}")
    status, _, _ = Browser().get(f"{place.provider}/me", Authorization=bearer)
    expect(status == 401, f"the access token still works: {status}")


def _nowhere(place: Place) -> None:
    held = [place.client_secret]
    for request in place.relay.requests:
        sent = _form(request)
        held += [sent[name] for name in ("code", "code_verifier", "refresh_token") if name in sent]
        held += [request.headers["authorization"].removeprefix("Bearer ")] if request.target == "/me" else []
    record = json.dumps(place.made.record())
    for secret in held:
        found = files_holding(place.made.line.home, secret.encode())
        expect(not found, f"a secret is in {', '.join(map(str, found))}")
        expect(secret not in record, "a secret is in the record")
    expect(len(held) > PROCESSES, "nothing was looked for")
