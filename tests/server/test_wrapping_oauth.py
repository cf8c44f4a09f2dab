"""A wrapped server that is signed in to by OAuth: found, shown, consented to, sealed, renewed, ended as others are."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from connectors.loading import load
from server.app import running
from server.call import call
from server.connections import connection_named
from server.errors import ConsentNeeded
from tests.agents import Nobody, reopened
from tests.commandline import CommandLine, Ran, everything, with_environment
from tests.consenting import run_out
from tests.installed import Place, files_holding
from tests.ports import free_port
from tests.server.test_oauth_consent import BROWSER
from tests.signed import Signed

LOCAL = ("--allow-private", "127.0.0.1/32")
IMPORT = ("connector", "import-mcp")
ASM = "/.well-known/oauth-authorization-server"


@pytest.fixture
def signed() -> Iterator[Signed]:
    with Signed() as running:
        yield running


@pytest.fixture
def admin(owner: CommandLine) -> CommandLine:
    """The owner at a terminal with a browser."""
    return with_environment(owner, {"BROWSER": BROWSER})


@pytest.fixture
def redirect() -> tuple[str, str]:
    return ("--redirect", f"http://127.0.0.1:{free_port()}/callback")


def imported(admin: CommandLine, signed: Signed, redirect: tuple[str, str]) -> Ran:
    return admin(*IMPORT, signed.url, *LOCAL, *redirect, "--tool", "echo", "--tool", "note")


def file_of(place: Place) -> Path:
    return place.installation.settings.connectors / "world.yaml"


def connect(admin: CommandLine, signed: Signed, redirect: tuple[str, str], *more: str) -> Ran:
    return admin("connect", "world", "--base-url", signed.url, *LOCAL, *redirect, *more)


@pytest.fixture
def ready(admin: CommandLine, place: Place, signed: Signed, redirect: tuple[str, str]) -> Place:
    """The server imported, reviewed and connected."""
    ran = imported(admin, signed, redirect)
    assert ran.code == 0, ran.err
    file = file_of(place)
    file.write_text(file.read_text().replace("reviewed: false", "reviewed: true"))
    ran = connect(admin, signed, redirect)
    assert ran.code == 0, ran.err
    for tool in ("echo", "note"):
        assert admin("policy", "add", "--who", "everyone", "--tools", f"world.{tool}", "--then", "allow").code == 0
    return reopened(place)


def test_an_import_signs_in_for_itself_alone_and_writes_where_tokens_are_had(
    admin: CommandLine, place: Place, signed: Signed, redirect: tuple[str, str], tmp_path: Path
) -> None:
    ran = imported(admin, signed, redirect)
    assert ran.code == 0, ran.err
    (kind,) = load(file_of(place)).credentials
    assert kind.oauth is not None
    assert (kind.oauth.authorize, kind.oauth.token, kind.oauth.register) == ("/authorize", "/token", "/register")
    assert kind.oauth.token_params == (("resource", signed.url),)
    assert (len(signed.accounts.clients), len(signed.accounts.revoked), signed.accounts.access) == (1, 1, {})
    assert place.database.read("SELECT COUNT(*) FROM oauth_token") == [(0,)], "nothing is connected yet"
    assert len(signed.accounts.given) == 4
    for secret in signed.accounts.given:
        assert secret not in everything(ran)
        assert files_holding(tmp_path, secret.encode()) == []


@pytest.mark.anyio
async def test_connecting_registers_consents_and_calls_and_the_tokens_go_nowhere_else(
    ready: Place, signed: Signed, admin: CommandLine, tmp_path: Path
) -> None:
    async with running(ready.installation) as parts:
        outcome = await call(parts, ready.caller(), "world_echo", {"text": "x"}, Nobody())
    assert outcome.ok
    assert signed.world.calls == [("echo", {"text": "x"})]
    created = ready.events("connection.created")[-1]
    assert (created["connection"], created["app"], created["scopes"]) == ("world", "registered", ["read"])
    tokens = {secret for secret in signed.accounts.given if secret.startswith("at_")}
    carried = {
        (path, headers["authorization"][7:]) for _, path, headers in signed.requests if "authorization" in headers
    }
    assert {path for path, token in carried if token in tokens} == {"/mcp"}
    assert all(token.resource == signed.url for token in signed.accounts.access.values())
    shown = await anyio.to_thread.run_sync(partial(admin, "connection", "show", "world", "--json"))
    exported = await anyio.to_thread.run_sync(
        partial(admin, "audit", "export", "--output", str(tmp_path / "log.jsonl"))
    )
    assert (shown.code, exported.code, shown.json["oauth"]["renewed_by_itself"]) == (0, 0, True)
    assert len(signed.accounts.given) == 8
    for secret in signed.accounts.given:
        assert secret not in everything(shown, exported) + outcome.text
        assert files_holding(tmp_path, secret.encode()) == []


@pytest.mark.anyio
async def test_many_calls_at_a_tokens_end_make_one_refresh_and_none_is_used_twice(ready: Place, signed: Signed) -> None:
    signed.accounts.expire()
    run_out(ready)
    outcomes: list[bool] = []

    async def one(parts: Any, number: int) -> None:
        outcome = await call(parts, ready.caller(), "world_note", {"text": str(number)}, Nobody())
        outcomes.append(outcome.ok)

    async with running(ready.installation) as parts, anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(one, parts, number)
    assert outcomes == [True] * 12
    assert (signed.accounts.refreshes, signed.accounts.reused) == (1, [])


@pytest.mark.anyio
async def test_a_consent_that_is_taken_back_is_asked_for_again_with_an_app_made_anew(
    ready: Place, signed: Signed, admin: CommandLine, redirect: tuple[str, str]
) -> None:
    signed.accounts.end_consents()
    run_out(ready)
    async with running(ready.installation) as parts:
        with pytest.raises(ConsentNeeded):
            await call(parts, ready.caller(), "world_echo", {"text": "x"}, Nobody())
        apps = len(signed.accounts.clients)
        again = partial(admin, "connection", "rotate", "world", *redirect)
        ran = await anyio.to_thread.run_sync(again)
        assert ran.code == 0, ran.err
        assert len(signed.accounts.clients) == apps + 1
        outcome = await call(parts, ready.caller(), "world_echo", {"text": "y"}, Nobody())
    assert outcome.ok
    assert connection_named(ready.database, ready.org, "world").needs_consent_at is None


def test_disconnecting_ends_the_tokens_at_their_provider(ready: Place, signed: Signed, admin: CommandLine) -> None:
    before = len(signed.accounts.revoked)
    ran = admin("connection", "remove", "world", "--yes", "--json")
    assert (ran.code, ran.json["revoked"]) == (0, True), ran.err
    assert len(signed.accounts.revoked) == before + 1
    assert signed.accounts.access == {}


def test_who_is_asked_on_another_host_is_said_before_anybody_consents(
    ready: Place, signed: Signed, admin: CommandLine, redirect: tuple[str, str]
) -> None:
    file = file_of(ready)
    file.write_text(file.read_text().replace('authorize: "/authorize"', 'authorize: "https://login.example/authorize"'))
    ran = admin.alone("connect", "world", "--name", "two", "--base-url", signed.url, *LOCAL, *redirect, "--paste")
    assert ran.code == 1
    said = " ".join(ran.err.split())
    assert f"consent at login.example, which is not the host of world ({signed.origin[7:]})" in said
    assert said.index("consent at login.example") < said.index("https://login.example/authorize?")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"issuer": "https://evil.example"}, "is of https://evil.example"),
        ({"code_challenge_methods_supported": ["plain"]}, "PKCE"),
        ({"token_endpoint": "http://10.0.0.1/token"}, "no endpoint for tokens"),
    ],
)
def test_a_provider_that_cannot_be_trusted_with_it_ends_the_import(
    admin: CommandLine, place: Place, signed: Signed, redirect: tuple[str, str], changed: dict[str, Any], says: str
) -> None:
    whole = {
        "issuer": signed.origin,
        "authorization_endpoint": f"{signed.origin}/authorize",
        "token_endpoint": f"{signed.origin}/token",
        "registration_endpoint": f"{signed.origin}/register",
        "code_challenge_methods_supported": ["S256"],
    }
    signed.says(ASM, whole | changed)
    ran = imported(admin, signed, redirect)
    assert (ran.code, says in ran.err, "Traceback" in ran.err) == (1, True, False)
    assert not file_of(place).exists()
    assert signed.accounts.clients == {}


def test_without_registration_an_app_of_ones_own_is_asked_for(
    admin: CommandLine, place: Place, signed: Signed, redirect: tuple[str, str]
) -> None:
    signed.says("/register", {"error": "access_denied", "error_description": "<script>"}, 403)
    refused = imported(admin, signed, redirect)
    assert (refused.code, "--own-app" in refused.err, "<script>" in refused.err) == (1, True, False)
    del signed.instead["/register"]
    ran = imported(admin, signed, redirect)
    assert ran.code == 0, ran.err
    (client,) = signed.accounts.clients.values()
    file = file_of(place)
    file.write_text(re.sub(r"      register: .*\n", "", file.read_text()))
    with admin.at_terminal("connect", "world", "--base-url", signed.url, *LOCAL, *redirect) as terminal:
        terminal.until("client id: ")
        terminal.type(f"{client.client_id}\n")
        terminal.until("client secret: ")
        terminal.type(f"{client.client_secret}\n")
        terminal.until("Connected world")
        assert terminal.end() == 0
    assert len(signed.accounts.clients) == 1
    assert client.client_secret not in terminal.shown
