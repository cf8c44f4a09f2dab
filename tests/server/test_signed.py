"""An account whose tokens a private key signs for: the key leaves for nowhere, one process of all asks, people hear."""

import base64
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.app import open_installation, running
from server.call import Outcome, Parts, call
from server.connections import Connection, connection_named, open_credential
from server.errors import KeyRefused, NotRenewed
from server.oauth.renewal import LEASE_MS, TRIES_TO_STORE, Renewals
from server.oauth.tokens import LIMITS, standing
from server.rollback import set_right
from tests.agents import Nobody, connected, execute
from tests.commandline import CommandLine, Ran, everything
from tests.consenting import due, run_out
from tests.installed import Place, files_holding
from tests.issuer import ACCOUNT, FORGE, INSTALLATION, PERSON, Issuer, key, pem, pieces
from tests.server.test_canary import Ears, assert_nowhere, ears, rendered
from tests.server.test_oauth_renewal import processes
from tests.upstream import Answer, Received
from vault.references import GRACE_S

pytestmark = pytest.mark.anyio
assert ears

HUGE = b'{"token": "' + b"x" * (LIMITS.max_body + 1) + b'"}'


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture
def admin(place: Place, owner: CommandLine) -> CommandLine:
    """The owner at the command line, with the forge's connector."""
    settings = place.installation.settings
    settings.connectors.mkdir(exist_ok=True, mode=0o700)
    (settings.connectors / "forge.yaml").write_text(FORGE, encoding="utf-8")
    place.installation.close()
    place.installation = open_installation(settings)
    return owner


def connect(line: CommandLine, issuer: Issuer, kind: str, *more: str, stdin: bytes | None = None) -> Ran:
    given = stdin or {"app": issuer.app_lines(), "robot": issuer.key_file().encode()}[kind]
    how = () if "--secret-from" in more else ("--secret-stdin",)
    where = ("--base-url", issuer.url, "--allow-private", "127.0.0.1/32")
    return line("connect", "forge", "--kind", kind, *how, *where, *more, stdin=given)


async def apart(what: Callable[..., Ran], *arguments: Any, **more: Any) -> Ran:
    """A command, run from inside of a test that has a loop of its own."""
    return await anyio.to_thread.run_sync(partial(what, *arguments, **more))


def forge(place: Place) -> Connection:
    return connection_named(place.database, place.org, "forge")


def sealed(place: Place) -> dict[str, str]:
    vault = place.installation.vault
    with place.database.snapshot(lambda rows: open_credential(rows, vault, forge(place))) as found:
        return {name: found.reveal(name) for name in found.fields}


async def read(parts: Parts, place: Place) -> Outcome:
    return await call(parts, place.caller(), "forge_list_entries", {}, Nobody())


def secrets_of(issuer: Issuer) -> list[str]:
    """What may be found nowhere: lines of the key, tokens, and what was signed."""
    return [*pieces(issuer.pem), *issuer.tokens, *(part for each in issuer.assertions for part in (each, each[-60:]))]


def bearers(issuer: Issuer) -> list[str]:
    return [request.headers["authorization"].removeprefix("Bearer ") for request in issuer.calls]


KINDS = pytest.mark.parametrize("kind", ["app", "robot"])


# -- connected


@pytest.mark.both_databases
@KINDS
def test_an_account_is_connected_by_its_key_which_is_nowhere(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str, tmp_path: Path
) -> None:
    ran = connect(admin, issuer, kind, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["account"] == {"app": "acme", "robot": "Acme Inc."}[kind]
    assert ran.json["oauth"]["renewed_by_itself"] is True
    assert (ran.json["needs"], ran.json["needs_consent_at"]) == (None, None)
    (entry,) = place.events("connection.created")[-1:]
    assert (entry["oauth"], entry["app"]) == ({"app": "github_app", "robot": "jwt_bearer"}[kind], "own")
    assert len(issuer.exchanges) == 1
    assert sealed(place)["secret"] == issuer.tokens[0]
    shown = [admin(*words) for words in (("connection", "show", "forge"), ("connection", "test", "forge"))]
    shown += [admin("connection", "list", "--json"), admin("audit", "export", "--output", str(tmp_path / "log.jsonl"))]
    assert [each.code for each in shown] == [0] * 4
    for secret in secrets_of(issuer):
        assert secret not in everything(ran, *shown)
        assert files_holding(tmp_path, secret.encode()) == []


def test_a_service_account_acts_for_the_person_who_is_named_beside_its_key(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    stdin = issuer.key_file(subject=PERSON).encode()
    assert connect(admin, issuer, "robot", stdin=stdin).code == 0
    assert [each["sub"] for each in issuer.exchanges] == [PERSON]
    assert "subject" not in json.loads(sealed(place)["key_file"])
    refused = connect(
        admin, issuer, "robot", "--name", "two", stdin=issuer.key_file(subject="eve@acme.example").encode()
    )
    assert refused.code == 1
    assert "Domain-wide delegation" in refused.err
    assert [each.name for each in connections(place)] == ["forge", "stripe"]


def connections(place: Place) -> list[Connection]:
    from server.connections import connections_of

    return connections_of(place.database, place.org)


def test_an_app_asks_for_less_where_scopes_say_so_and_again_after_a_new_key(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    scopes = ("--scope", "issues:write", "--scope", "repository:web")
    ran = connect(admin, issuer, "app", *scopes, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["oauth"]["scopes"] == ["issues:write", "repository:web"]
    issuer.private = key(3)
    again = admin("connection", "rotate", "forge", "--secret-stdin", stdin=issuer.app_lines())
    assert again.code == 0, again.err
    narrowed = {"repositories": ["web"], "permissions": {"issues": "write"}}
    assert [each["body"] for each in issuer.exchanges] == [narrowed, narrowed]
    more = connect(admin, issuer, "app", "--name", "two", "--scope", "repository:secret")
    assert (more.code, "HTTP 422" in more.err, "does not have what `--scope` names" in more.err) == (1, True, True)
    wrong = connect(admin, issuer, "app", "--name", "two", "--scope", "repo")
    assert (wrong.code, "`issues:write`" in wrong.err) == (1, True)
    assert len(issuer.exchanges) == 3


def test_a_rotation_takes_a_new_key_and_never_the_one_that_is_sealed(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    assert connect(admin, issuer, "app").code == 0
    before = sealed(place)
    ran = admin.alone("connection", "rotate", "forge")
    assert ran.code == 1
    assert "no terminal to ask at" in ran.err
    assert (sealed(place), len(issuer.exchanges)) == (before, 1)


TROUBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "another key": ("app", {"private": key(3)}, "The key is not one of this app's"),
    "another key of an account": ("robot", {"private": key(3)}, "The key was deleted"),
    "no installation": ("app", {"installed": False}, "not installed there"),
    "a suspended one": ("app", {"suspended": True}, "is suspended"),
    "a clock that is behind": ("app", {"apart_s": -120.0}, "s apart: set the clock"),
    "an account's clock": ("robot", {"apart_s": -120.0}, "s apart: set the clock"),
}


@pytest.mark.parametrize(("kind", "change", "says"), TROUBLE.values(), ids=TROUBLE)
def test_what_the_provider_refuses_is_not_stored_and_says_how_to_mend_it(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str, change: dict[str, Any], says: str
) -> None:
    given = {"app": issuer.app_lines(), "robot": issuer.key_file().encode()}[kind]
    for name, value in change.items():
        setattr(issuer, name, value)
    ran = connect(admin, issuer, kind, stdin=given)
    assert ran.code == 1
    assert says in ran.err
    assert "Nothing was stored" in ran.err
    assert [each.name for each in connections(place)] == ["stripe"]
    assert issuer.tokens == []
    assert all(part not in everything(ran) for each in issuer.assertions for part in (each, each[-60:]))


def test_a_key_that_cannot_be_used_is_sent_for_nothing_and_not_quoted(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    whole = issuer.pem
    elsewhere = issuer.key_file(token_uri="https://evil.example/token")
    for kind, stdin, says in (
        ("app", f"4711\n77\n{whole[:900]}".encode(), "no private key in PEM"),
        ("app", f"4711\nacme\n{whole}".encode(), "is a number"),
        ("app", f"4711\n77\n{pem(key(2, 1024))}".encode(), "1024 bits"),
        ("app", b"4711\n77", "private key, PEM is empty"),
        ("robot", elsewhere.encode(), "another place for tokens"),
        ("robot", issuer.key_file(private_key="secret").encode(), "no private key in PEM"),
        ("robot", json.dumps({"key_file": issuer.key_file(), "more": "x"}).encode(), "exactly these fields"),
    ):
        ran = connect(admin, issuer, kind, stdin=stdin)
        assert (ran.code, says in ran.err) == (1, True), ran.err
        assert "evil" not in ran.err
        assert all(piece not in everything(ran) for piece in pieces(whole))
    for options in (("--paste",), ("--own-app",), ("--redirect", "http://127.0.0.1:8701/callback")):
        assert "nobody consents" in connect(admin, issuer, "app", *options).err
    assert issuer.raw == []
    assert [each.name for each in connections(place)] == ["stripe"]


def test_a_provider_that_is_away_is_said_and_nothing_is_stored(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    issuer.answering = lambda _request, _answer: Answer(hang_up=True)
    ran = connect(admin, issuer, "app")
    assert (ran.code, "closed the connection" in ran.err) == (1, True)
    issuer.answering = lambda _request, _answer: Answer(HUGE)
    ran = connect(admin, issuer, "robot")
    assert (ran.code, "sent more than 0.25 MiB" in ran.err) == (1, True)
    assert [each.name for each in connections(place)] == ["stripe"]


@pytest.mark.slow
def test_a_key_is_pasted_unseen_or_named_by_its_file(
    admin: CommandLine, place: Place, issuer: Issuer, tmp_path: Path
) -> None:
    file = tmp_path / "person" / "robot.json"
    file.write_text(issuer.key_file())
    where = ("--base-url", issuer.url, "--allow-private", "127.0.0.1/32")
    with admin.at_terminal("connect", "forge", "--kind", "app", *where) as terminal:
        terminal.until("App ID, or client id: ")
        terminal.type("4711\n")
        terminal.until("installation id: ")
        terminal.type(f"{INSTALLATION}\n")
        terminal.until("nothing is shown): ")
        terminal.type(issuer.pem)
        terminal.until("Connected Forge as forge (acme)")
        assert terminal.end() == 0
        assert all(piece not in terminal.shown for piece in pieces(issuer.pem))
    with admin.at_terminal("connect", "forge", "--name", "robot", "--kind", "robot", *where) as terminal:
        terminal.until("JSON key file: paste it whole")
        terminal.type("~/robot.json\n")
        terminal.until("that it acts for (nothing, if there is none): ")
        terminal.type("\n")
        terminal.until("Connected Forge as robot (Acme Inc.)")
        assert terminal.end() == 0
    with admin.at_terminal("connect", "forge", "--name", "three", "--kind", "robot", *where) as terminal:
        terminal.until("JSON key file: paste it whole")
        terminal.type(issuer.key_file() + "\n")
        terminal.until("that it acts for (nothing, if there is none): ")
        terminal.type(f"{PERSON}\n")
        terminal.until("Connected Forge as three")
        assert terminal.end() == 0
        assert all(piece not in terminal.shown for piece in pieces(issuer.pem))
    assert [each.get("sub") for each in issuer.exchanges] == [None, None, PERSON]
    with admin.at_terminal("connect", "forge", "--name", "four", "--kind", "robot", *where) as terminal:
        terminal.until("JSON key file: paste it whole")
        terminal.type("~/nowhere.json\n")
        terminal.until("cannot be read here")
        assert terminal.end() == 1


# -- renewed


@pytest.mark.both_databases
@KINDS
async def test_many_calls_of_four_processes_make_one_exchange(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str
) -> None:
    assert (await apart(connect, admin, issuer, kind)).code == 0
    before, calls = forge(place), len(issuer.calls)
    run_out(place)
    issuer.expire()
    outcomes: list[Outcome] = []

    async def one(parts: Parts) -> None:
        outcomes.append(await read(parts, place))

    async with processes(place, 4) as each, anyio.create_task_group() as group:
        for parts in each:
            for _ in range(12):
                group.start_soon(one, parts)
    assert [outcome.ok for outcome in outcomes] == [True] * 48
    assert len(issuer.exchanges) == 2, "one to connect, and one more"
    assert set(bearers(issuer)[calls:]) == {issuer.tokens[1]}
    (entry,) = place.events("connection.renewed")
    assert (entry["outcome"], entry["connection"], entry["agent"]) == ("succeeded", "forge", "reconciler")
    assert entry["host"] == issuer.origin.removeprefix("http://")
    assert forge(place) == before, "the same version: approvals and grants stay good, and nobody consents to anything"
    found = sealed(place)
    assert found["secret"] == issuer.tokens[1]
    assert any("PRIVATE KEY" in value for value in found.values()), "the key is kept for the next"


@KINDS
async def test_a_token_near_its_end_is_renewed_while_it_still_works(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str
) -> None:
    await apart(connect, admin, issuer, kind)
    held = standing(place.database, forge(place))
    assert held is not None
    assert held.expires_at is not None
    assert held.renewable
    assert held.due_at is not None
    assert held.due_at < held.expires_at
    assert 3_590_000 < held.expires_at - held.obtained_at <= 3_600_000
    due(place)
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert len(issuer.exchanges) == 2


async def test_a_token_that_its_upstream_refuses_is_had_anew(admin: CommandLine, place: Place, issuer: Issuer) -> None:
    await apart(connect, admin, issuer, "app")
    issuer.expire()
    execute(place, "UPDATE oauth_token SET obtained_at = obtained_at - 120000")
    async with running(place.installation) as parts:
        assert not (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert len(issuer.exchanges) == 2
    assert forge(place).needs_consent_at is None


GONE: dict[str, tuple[str, dict[str, Any], str]] = {
    "the key was deleted": ("app", {"private": key(3)}, "HTTP 401"),
    "the installation is gone": ("app", {"installed": False}, "HTTP 404"),
    "the account's key was deleted": ("robot", {"private": key(3)}, "invalid_grant"),
}


@pytest.mark.both_databases
@pytest.mark.parametrize(("kind", "change", "reason"), GONE.values(), ids=GONE)
async def test_a_key_that_is_taken_no_more_leaves_the_tools_and_people_hear_that_it_needs_a_new_one(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str, change: dict[str, Any], reason: str
) -> None:
    assert (await apart(connect, admin, issuer, kind)).code == 0
    right = {"app": issuer.app_lines(), "robot": issuer.key_file().encode()}[kind]
    calls, private = len(issuer.calls), issuer.private
    run_out(place)
    for name, value in change.items():
        setattr(issuer, name, value)
    async with connected(place, "memory", "auto") as client:
        first = await client.call_tool("forge_list_entries", {})
        names = [tool.name for tool in (await client.list_tools()).tools]
        second = await client.call_tool("forge_list_entries", {})
    assert "forge_list_entries" in names
    for result in (first, second):
        said = result.content[0].text  # type: ignore[union-attr]
        assert "a new one" in said
        assert "Tell the person you work for" in said
        assert "consent" not in said
        assert "keyleash" not in said
    assert len(issuer.exchanges) == 2, "a key that was refused is not tried again by itself"
    assert len(issuer.calls) == calls
    (entry,) = place.events("connection.needs_consent")
    assert (entry["reason"], entry["connection"]) == (reason, "forge")
    assert [each["reason"] for each in place.events("call.refused")] == ["credential rejected: it needs a new key"] * 2

    def people() -> None:
        tested = admin("connection", "test", "forge")
        assert (tested.code, "needs a new key" in tested.err, "rotate forge" in tested.err) == (1, True, True)
        (listed,) = [each for each in admin("connection", "list", "--json").json if each["name"] == "forge"]
        assert (listed["needs"], listed["needs_consent_at"] is not None) == ("new key", True)
        assert "new key since" in admin("connection", "list").out
        (found,) = [each for each in admin("doctor", "--json").json if each["check"] == "consents"]
        assert (found["status"], "needs a new key" in found["message"]) == ("fail", True)
        assert "consent" not in found["message"]
        issuer.private, issuer.installed = private, True
        mended = admin("connection", "rotate", "forge", "--secret-stdin", stdin=right)
        assert mended.code == 0, mended.err
        assert admin("connection", "test", "forge").code == 0

    await anyio.to_thread.run_sync(people)
    assert forge(place).needs_consent_at is None


PASSING: dict[str, tuple[str, Any, str]] = {
    "suspended": ("app", {"suspended": True}, "HTTP 403"),
    "in trouble": ("app", lambda _request, _answer: Answer({}, 500), "HTTP 500"),
    "a page": ("robot", lambda _request, _answer: Answer(b"<html>", 200), "an answer that is not JSON"),
    "a huge answer": ("robot", lambda _request, _answer: Answer(HUGE), "ResponseTooLarge"),
    "away": ("app", lambda _request, _answer: Answer(hang_up=True), "Unreachable"),
    "a clock that is behind": ("app", {"apart_s": -300.0}, "its clock and the one here are"),
    "an account's clock": ("robot", {"apart_s": -300.0}, "its clock and the one here are"),
}


@pytest.mark.parametrize(("kind", "trouble", "reason"), PASSING.values(), ids=PASSING)
async def test_trouble_that_passes_blames_no_key_and_leaves_the_provider_alone_for_a_while(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str, trouble: Any, reason: str
) -> None:
    await apart(connect, admin, issuer, kind)
    run_out(place)
    if isinstance(trouble, dict):
        for name, value in trouble.items():
            setattr(issuer, name, value)
    else:
        issuer.answering = trouble
    calls, raw = len(issuer.calls), len(issuer.raw)
    async with running(place.installation) as parts:
        for _ in range(3):
            with pytest.raises(NotRenewed):
                await read(parts, place)
    asked = [request for request in issuer.raw[raw:] if "token" in request.target]
    assert len(asked) == (3 if reason == "Unreachable" else 1), "a lost answer is asked for again, a no is not"
    assert len(issuer.calls) == calls
    assert forge(place).needs_consent_at is None
    (entry,) = place.events("connection.renewed")
    assert entry["outcome"] == "failed"
    assert entry["reason"].startswith(reason)
    assert entry["maybe_lost"] is None if "maybe_lost" in entry else True
    (found,) = [each for each in (await apart(admin, "doctor", "--json")).json if each["check"] == "consents"]
    assert (found["status"], "1 times in a row" in found["message"]) == ("warn", True)


async def test_a_failure_does_not_keep_a_token_that_still_works_from_being_used(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    await apart(connect, admin, issuer, "app")
    due(place)
    issuer.suspended = True
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert len(issuer.exchanges) == 2


async def test_a_place_for_tokens_that_the_file_now_names_gets_nothing(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    await apart(connect, admin, issuer, "robot")
    run_out(place)
    file = place.installation.settings.connectors / "forge.yaml"
    for was, becomes in (("token: /oauth/token", "token: /oauth/stolen"), ("grant: jwt_bearer", "grant: github_app")):
        file.write_text(FORGE.replace(was, becomes))
        place.installation.close()
        place.installation = open_installation(place.installation.settings)
        raw = len(issuer.raw)
        async with running(place.installation) as parts:
            outcome = await read(parts, place)
        assert not outcome.ok
        assert "connect it again" in outcome.text
        assert len(issuer.raw) == raw


def test_an_older_database_doubts_no_key(admin: CommandLine, place: Place, issuer: Issuer) -> None:
    connect(admin, issuer, "app")
    stale, _ = place.database.write_now(lambda rows: set_right(rows, place.org, frozen=False, by="test"))
    assert stale == []
    assert forge(place).needs_consent_at is None


# -- a key that stays elsewhere


@pytest.mark.both_databases
@KINDS
async def test_a_key_stays_where_it_is_and_is_read_when_a_token_is_needed(
    admin: CommandLine, place: Place, issuer: Issuer, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "person" / "key"
    file.write_bytes({"app": issuer.app_lines(), "robot": issuer.key_file().encode()}[kind])
    ran = await apart(connect, admin, issuer, kind, "--secret-from", f"file:{file}")
    assert ran.code == 0, ran.err
    assert "read there whenever a token is needed" in ran.out
    assert sealed(place) == {"@reference": f"file:{file}", "secret": issuer.tokens[0]}
    assert forge(place).source == "file"
    shown = (await apart(admin, "connection", "show", "forge", "--json")).json
    assert (shown["reference"], shown["source"]) == (f"file:{file}", "file")
    content = file.read_bytes()
    file.unlink()
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok, "while the token works, nothing is read"
        run_out(place)
        with pytest.raises(NotRenewed):
            await read(parts, place)
        (entry,) = place.events("connection.renewed")
        assert "cannot be read here" in entry["reason"]
        file.write_bytes(b"4711\n77\nhunter2")
        execute(place, "UPDATE oauth_token SET retry_at = NULL")
        with pytest.raises(NotRenewed):
            await read(parts, place)
        assert "hunter2" not in repr(place.events())
        assert len(issuer.exchanges) == 1
        file.write_bytes(content)
        execute(place, "UPDATE oauth_token SET retry_at = NULL")
        assert (await read(parts, place)).ok
    assert sealed(place) == {"@reference": f"file:{file}", "secret": issuer.tokens[1]}
    assert (await apart(admin, "connection", "test", "forge")).code == 0
    copied = await apart(
        connect, admin, issuer, kind, "--name", "copied", "--secret-from", f"file:{file}", "--copy", "--json"
    )
    assert copied.json["source"] == "vault"
    for piece in pieces(issuer.pem):
        assert [found for found in files_holding(tmp_path, piece.encode()) if found != file] == []


async def test_the_lease_outlasts_reading_the_key_too(admin: CommandLine, place: Place, issuer: Issuer) -> None:
    from server.sqlite import _BUSY_MS

    await apart(connect, admin, issuer, "app")
    async with running(place.installation) as parts:
        renewals: Renewals = parts.renewals
        stored, elsewhere = forge(place), Connection(**{**forge_fields(place), "source": "file"})
        assert renewals._lease_ms(stored) == LEASE_MS
        reading = (parts.references.seconds + GRACE_S) * 1000
        assert renewals._lease_ms(elsewhere) == LEASE_MS + reading, "however long the operator lets it take"
        assert LIMITS.total_s * 1000 + TRIES_TO_STORE * _BUSY_MS < LEASE_MS


def forge_fields(place: Place) -> dict[str, Any]:
    found = forge(place)
    return {
        name: getattr(found, name) for name in Connection.__dataclass_fields__ if name not in ("networks", "origin")
    }


async def test_a_reference_that_was_put_in_the_place_of_a_key_is_not_followed(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    await apart(connect, admin, issuer, "app")
    execute(place, "UPDATE connection SET source = 'file' WHERE name = 'forge'")
    execute(place, "UPDATE org SET revision = revision + 1")
    async with running(place.installation) as parts:
        assert not (await read(parts, place)).ok
        run_out(place)
        with pytest.raises(NotRenewed):
            await read(parts, place)
    assert len(issuer.exchanges) == 1


# -- removed


def test_a_removed_apps_token_ends_at_its_provider_and_the_key_is_said_to_live_on(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    connect(admin, issuer, "app")
    ran = admin("connection", "remove", "forge", "--yes")
    assert ran.code == 0
    assert issuer.revoked == issuer.tokens
    assert "Its provider has ended its tokens" in ran.out
    assert "private key itself is good until it is deleted" in everything(ran)
    connect(admin, issuer, "app")
    issuer.expire()
    ran = admin("connection", "remove", "forge", "--yes")
    assert (ran.code, "Its provider has ended its tokens" in ran.out) == (0, True), "what has ended needs no end"


def test_a_removed_service_account_is_asked_about_nowhere_and_its_key_is_said_to_live_on(
    admin: CommandLine, place: Place, issuer: Issuer
) -> None:
    connect(admin, issuer, "robot")
    raw = len(issuer.raw)
    ran = admin("connection", "remove", "forge", "--yes")
    assert (ran.code, "private key itself is good until it is deleted" in everything(ran)) == (0, True)
    assert len(issuer.raw) == raw


# -- nowhere


def echo(shape: str, status: int) -> Any:
    def answering(request: Received, _answer: Answer) -> Answer:
        said = f"{request.headers.get('authorization', '')} {request.body.decode()}"
        forms = {"json": {"error": said, "message": said, "token": said, "access_token": said}, "page": said.encode()}
        return Answer(forms[shape], status, {"X-Echo": said.replace("\n", " ")})

    return answering


@pytest.mark.parametrize(
    ("kind", "shape", "status"),
    [
        *[("app", "json", 400), ("robot", "json", 401), ("app", "json", 200)],
        *[("robot", "page", 500), ("app", "page", 302), ("robot", "json", 400)],
    ],
)
async def test_no_part_of_a_key_and_nothing_that_it_signed_is_shown(
    admin: CommandLine, place: Place, issuer: Issuer, ears: Ears, kind: str, shape: str, status: int
) -> None:
    await apart(connect, admin, issuer, kind)
    run_out(place)
    issuer.answering = echo(shape, status)
    said = [everything(await apart(connect, admin, issuer, kind, "--name", "two")), "looked at"]
    async with running(place.installation) as parts:
        with pytest.raises((KeyRefused, NotRenewed)) as refused:
            await read(parts, place)
        said += rendered(refused.value)
        first, *more = secrets_of(issuer)
        assert_nowhere(first, place, *more, said="\n".join(said), logs=ears.text + " ", vault=repr(vars(parts)))


def test_the_canary_of_a_key_is_really_in_it() -> None:
    """The test above looks for these: each is in the PEM, or in what its base64 holds."""
    text = pem(key())
    raw = base64.b64decode("".join(line for line in text.splitlines() if "-----" not in line))
    *lines, middle = pieces(text)
    assert len(lines) > 3
    assert all(line in text for line in lines)
    assert bytes.fromhex(middle) in raw
    assert ACCOUNT not in "".join(lines)
