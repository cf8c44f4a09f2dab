"""Disconnecting ends the tokens at their provider; what cannot be ended yet is shown, tried again, and on record."""

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from server.app import open_installation, running
from server.call import call
from server.connections import ConnectionProblem
from server.errors import CallRefused
from server.oauth.apps import Apps
from server.oauth.revoking import WAITS_MS, BeingRenewed, Pending, attempt, pending, remove_and_keep
from tests.agents import Nobody, execute
from tests.commandline import CommandLine, everything
from tests.consenting import ledger, signed_in, with_ledger
from tests.installed import Place, files_holding
from tests.provider import Provider
from tests.remnants import remnants, sealed_of
from tests.upstream import Answer
from vault import Sealed

pytestmark = pytest.mark.anyio


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as made:
        yield made


@pytest.fixture
def place(place: Place, provider: Provider) -> Place:
    """The place with the ledger signed in to."""
    with_ledger(place)
    signed_in(place, provider)
    return place


def down(path: str, answer: Answer) -> Answer:
    return Answer({}, 503) if path == "/oauth/revoke" else answer


def kept(place: Place) -> Pending:
    """The ledger removed, and its tokens still to be ended; due at once."""
    installation, connection = place.installation, ledger(place)
    place.database.write_now(lambda rows: remove_and_keep(rows, installation.vault, connection, by="alice", wait=False))
    execute(place, "UPDATE oauth_revocation SET next_at = 0")
    (one,) = pending(place.database)
    return one


async def tried(place: Place, one: Pending) -> str | None:
    async with running(place.installation) as parts:
        connectors = place.installation.catalogue.connectors
        return await attempt(parts.database, parts.vault, parts.egress, connectors, one, apps=Apps())


# -- at the command line


@pytest.mark.sqlite_only("erasure from files is its promise")
def test_removing_ends_the_tokens_and_leaves_nothing(place: Place, owner: CommandLine, provider: Provider) -> None:
    sealed = sealed_of(place.database, place.org, ledger(place).id)
    place.installation.close()
    ran = owner("connection", "remove", "ledger", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["revoked"], ran.json["erased"], ran.json["retried"]) == (True, True, False)
    assert provider.revoked == [provider.tokens[0]["refresh_token"]]
    assert remnants(place.home, sealed) == []
    (gone,) = place.events("connection.removed")
    (ended,) = place.events("connection.revoked")
    assert gone["credential_kept"] is True
    assert (ended["connection"], ended["outcome"], ended["by"]) == ("ledger", "succeeded", "alice")
    assert place.database.read("SELECT * FROM oauth_token") == []
    assert pending(place.database) == []
    for secret in provider.secrets():
        assert secret not in everything(ran)
        assert files_holding(place.home, secret.encode()) == []


def test_a_provider_in_trouble_keeps_no_call_going_and_is_asked_again_later(
    place: Place, owner: CommandLine, provider: Provider
) -> None:
    provider.answering = down
    ran = owner("connection", "remove", "ledger", "--yes", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["revoked"], ran.json["retried"], ran.json["reason"]) == (False, True, "HTTP 503")
    assert [one["name"] for one in owner("connection", "list", "--json").json] == ["stripe"]
    listed = owner("connection", "list")
    assert "ledger was removed, and its provider has yet to end its tokens (HTTP 503)" in listed.err
    (found,) = [one for one in owner("doctor", "--json").json if one["check"] == "consents"]
    assert (found["status"], "HTTP 503" in found["message"]) == ("warn", True)
    assert place.events("connection.revoked") == []
    again = owner(
        "connect", "ledger", "--kind", "pasted", "--no-verify", "--base-url", provider.url, *MORE, stdin=TOKEN
    )
    assert again.code == 0, "its name is free again"


MORE, TOKEN = ("--allow-private", "127.0.0.1/32", "--secret-stdin"), b"x" * 20


def test_a_provider_that_refuses_for_good_is_not_asked_again_and_that_is_said(
    place: Place, owner: CommandLine, provider: Provider
) -> None:
    provider.answering = lambda _path, _answer: Answer({"error": "unsupported_token_type"}, 400)
    ran = owner("connection", "remove", "ledger", "--yes")
    assert ran.code == 0
    assert "end this app's access in the account's own settings" in ran.err
    (entry,) = place.events("connection.revoked")
    assert (entry["outcome"], entry["reason"]) == ("given up", "unsupported_token_type")
    assert place.database.read("SELECT COUNT(*) FROM vault_credential") == [(1,)]


def test_without_revoking_nobody_is_asked(place: Place, owner: CommandLine, provider: Provider) -> None:
    ran = owner("connection", "remove", "ledger", "--yes", "--no-revoke", "--json")
    assert (ran.code, ran.json["erased"]) == (0, True)
    assert provider.raw == []
    assert pending(place.database) == []


def test_a_sealed_vault_removes_and_keeps_the_ending_for_later(
    place: Place, owner: CommandLine, provider: Provider
) -> None:
    key = place.home / "keys" / "root.key"
    key.rename(place.home / "away")
    ran = owner("connection", "remove", "ledger", "--yes", "--json")
    (place.home / "away").rename(key)
    assert (ran.code, ran.json["revoked"], ran.json["retried"]) == (0, False, True)
    assert provider.raw == []
    assert len(pending(place.database)) == 1


# -- tried again


@pytest.mark.both_databases
async def test_a_running_server_tries_again_until_it_is_done(place: Place, provider: Provider) -> None:
    provider.answering = down
    one = kept(place)
    assert await tried(place, one) == "HTTP 503"
    (waiting,) = pending(place.database)
    assert (waiting.attempts, waiting.reason, waiting.next_at > one.next_at) == (1, "HTTP 503", True)
    provider.answering = lambda _path, answer: answer
    execute(place, "UPDATE oauth_revocation SET next_at = 0")
    async with running(place.installation):
        while pending(place.database):  # noqa: ASYNC110 - what it does is what is waited for
            await anyio.sleep(0.01)
    assert provider.revoked == [provider.tokens[0]["refresh_token"]] * 2
    (entry,) = place.events("connection.revoked")
    assert (entry["outcome"], entry["attempts"]) == ("succeeded", 2)
    assert place.database.read("SELECT COUNT(*) FROM vault_credential") == [(1,)]


async def test_what_fails_long_enough_is_given_up_with_an_entry(place: Place, provider: Provider) -> None:
    provider.answering = down
    kept(place)
    for _ in WAITS_MS:
        (one,) = pending(place.database)
        await tried(place, one)
    assert pending(place.database) == []
    (entry,) = place.events("connection.revoked")
    assert (entry["outcome"], entry["attempts"]) == ("given up", len(WAITS_MS))
    assert place.database.read("SELECT COUNT(*) FROM vault_credential") == [(1,)]


@pytest.mark.both_databases
async def test_of_several_servers_one_asks(place: Place, provider: Provider) -> None:
    one = kept(place)
    assert await tried(place, one) is None
    assert await tried(place, one) == "another process is at it"
    assert len(provider.revoked) == 1
    assert len(place.events("connection.revoked")) == 1


async def test_while_the_vault_is_sealed_nobody_is_asked(place: Place, provider: Provider) -> None:
    one = kept(place)
    (place.home / "keys" / "root.key").rename(place.home / "away")
    place.installation.close()
    place.installation = open_installation(place.installation.settings)
    with pytest.raises(Sealed):
        await tried(place, one)
    assert provider.raw == []
    assert pending(place.database) == [one], "that was no try"


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("oauth_revocation", "base_url", "https://evil.example"),
        ("oauth_revocation", "private", "[]"),
        ("oauth_revocation", "scheme", "bearer"),
        ("oauth_revocation", "credential_version", 2),
        ("vault_credential", "key_id", "key_0000000000000000"),
    ],
)
async def test_a_row_that_was_changed_sends_nothing_anywhere(
    place: Place, provider: Provider, table: str, column: str, value: Any
) -> None:
    kept(place)
    execute(place, f"UPDATE {table} SET {column} = ?", value)
    (one,) = pending(place.database)
    assert await tried(place, one) is not None
    assert provider.raw == []


async def test_a_revocation_address_that_the_file_now_names_gets_nothing(place: Place, provider: Provider) -> None:
    kept(place)
    file = place.installation.settings.connectors / "ledger.yaml"
    file.write_text(file.read_text().replace("{url: /oauth/revoke}", "{url: /oauth/token}"))
    place.installation.close()
    place.installation = open_installation(place.installation.settings)
    (one,) = pending(place.database)
    assert await tried(place, one) == "its connector's file no longer says how"
    assert provider.raw == []
    (entry,) = place.events("connection.revoked")
    assert entry["outcome"] == "given up"


# -- beside what else goes on


@pytest.mark.both_databases
def test_a_renewal_under_way_is_waited_for(place: Place, provider: Provider) -> None:
    installation, connection = place.installation, ledger(place)
    execute(place, "UPDATE oauth_token SET lease = 'another', lease_until = obtained_at + 10000000")

    def gone(*, wait: bool) -> Pending:
        return place.database.write_now(
            lambda rows: remove_and_keep(rows, installation.vault, connection, by="alice", wait=wait)
        )

    with pytest.raises(BeingRenewed):
        gone(wait=True)
    assert ledger(place) == connection, "nothing was removed yet"
    assert gone(wait=False).name == "ledger"
    with pytest.raises(ConnectionProblem):
        gone(wait=False)


async def test_no_call_uses_tokens_that_wait_to_be_ended(place: Place, provider: Provider) -> None:
    provider.answering = down
    kept(place)
    async with running(place.installation) as parts:
        with pytest.raises(CallRefused):
            await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())
    assert provider.calls == []


def test_the_tokens_that_wait_go_with_their_org(place: Place, owner: CommandLine, provider: Provider) -> None:
    kept(place)
    ran = owner("org", "remove", "acme", "--yes")
    assert ran.code == 0, ran.err
    assert pending(place.database) == []
    assert place.database.read("SELECT COUNT(*) FROM vault_credential") == [(0,)]
