"""A token is renewed once, by one of all, and stored before it is used; when its provider has ended it, people hear."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from server.app import open_installation, running
from server.call import Outcome, Parts, call
from server.connections import open_credential, replan, rotate
from server.database import DatabaseProblem
from server.erasure import attempt as erase
from server.errors import ConsentNeeded, NotRenewed, VaultSealed
from server.oauth import renewal
from server.oauth.renewal import LEASE_MS
from server.oauth.tokens import standing
from tests.agents import Nobody, connected, execute
from tests.commandline import CommandLine, everything
from tests.consenting import due, ledger, run_out, signed_in, with_ledger
from tests.installed import Place, files_holding
from tests.provider import CLIENT_SECRET, Provider
from tests.remnants import remnants, sealed_of
from tests.upstream import Answer
from vault import Vault

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


async def read(parts: Parts, place: Place) -> Outcome:
    return await call(parts, place.caller(), "ledger_list_entries", {}, Nobody())


def bearers(provider: Provider) -> list[str]:
    return [request.headers["authorization"].removeprefix("Bearer ") for request in provider.calls]


def tokens(place: Place) -> dict[str, str]:
    """What is sealed for the ledger now."""
    installation = place.installation
    with place.database.snapshot(lambda rows: open_credential(rows, installation.vault, ledger(place))) as sealed:
        return {name: sealed.reveal(name) for name in sealed.fields}


# -- renewed


async def test_a_token_that_works_is_used_and_nobody_is_asked(place: Place, provider: Provider) -> None:
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
    assert provider.requests == []
    assert bearers(provider) == [provider.tokens[0]["access_token"]]


@pytest.mark.both_databases
async def test_a_token_that_has_ended_is_renewed_stored_and_then_used(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    before = ledger(place)
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
    old, new = provider.tokens
    assert bearers(provider) == [new["access_token"]]
    stored = tokens(place)
    assert (stored["secret"], stored["refresh_token"]) == (new["access_token"], new["refresh_token"])
    assert stored["client_secret"] == CLIENT_SECRET
    assert provider.requests == [
        ("/oauth/token", {"grant_type": "refresh_token", "refresh_token": old["refresh_token"]})
    ]
    assert ledger(place) == before, "the same version: approvals and grants stay good"
    (entry,) = place.events("connection.renewed")
    assert (entry["outcome"], entry["connection"], entry["agent"]) == ("succeeded", "ledger", "reconciler")
    assert entry["credential_version"] == before.credential_version
    attempts = [e["seq"] for e in place.events("call.attempt")]
    assert entry["seq"] < attempts[0], "on record, with its tokens, before the call that uses them"


async def test_a_token_near_its_end_is_renewed_while_it_still_works(place: Place, provider: Provider) -> None:
    due(place)
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert provider.refreshes() == 1
    assert bearers(provider) == [provider.tokens[1]["access_token"]] * 2


async def test_an_earlier_end_is_spread_by_chance_and_never_before_the_first_half(place: Place) -> None:
    from server.oauth.tokens import _ends

    seen = {_ends(0, 3600, renewable=True)[1] for _ in range(50)}
    assert len(seen) > 10
    assert all(3_600_000 - 450_000 <= (at or 0) <= 3_600_000 - 300_000 for at in seen)
    assert all(30_000 <= (_ends(0, 60, renewable=True)[1] or 0) <= 45_000 for _ in range(50))
    assert _ends(0, 60, renewable=False) == (60_000, 60_000)
    assert _ends(0, None, renewable=True) == (None, None)


async def test_a_provider_that_keeps_its_refresh_token_keeps_it(place: Place, provider: Provider) -> None:
    provider.rotates = False
    run_out(place, provider)
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
        run_out(place, provider)
        assert (await read(parts, place)).ok
    assert tokens(place)["refresh_token"] == provider.tokens[0]["refresh_token"]
    assert provider.refreshes() == 2


async def test_an_app_that_acts_for_itself_asks_for_its_next_token_itself(place: Place, provider: Provider) -> None:
    signed_in(place, provider, kind="machine", name="robot")
    run_out(place, provider)
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "robot_list_entries", {}, Nobody())).ok
    assert provider.requests == [("/oauth/token", {"grant_type": "client_credentials", "scope": "read", **APP})]
    assert provider.calls[0].headers["x-access-token"] == provider.tokens[-1]["access_token"]


APP = {"client_id": "app_of_acme", "client_secret": CLIENT_SECRET}


@pytest.mark.sqlite_only("erasure from files is its promise")
async def test_what_was_sealed_before_a_renewal_is_gone_from_the_files(place: Place, provider: Provider) -> None:
    installation = place.installation
    sealed = sealed_of(installation.database, place.org, ledger(place).id)
    assert remnants(place.home, sealed) != []
    run_out(place, provider)
    async with running(installation) as parts:
        assert (await read(parts, place)).ok
    installation.close()
    place.installation = open_installation(installation.settings)
    assert erase(place.database) == []
    assert remnants(place.home, sealed) == []
    assert [entry["connection"] for entry in place.events("erasure.completed")] == ["ledger"]


@pytest.mark.both_databases
async def test_a_token_that_its_upstream_refuses_before_its_end_is_renewed_at_the_next_call(
    place: Place, provider: Provider
) -> None:
    provider.expire()
    async with running(place.installation) as parts:
        assert not (await read(parts, place)).ok
        assert not (await read(parts, place)).ok, "one that is new is not refused for its age"
        assert provider.refreshes() == 0
        execute(place, "UPDATE oauth_token SET obtained_at = obtained_at - 120000")
        assert not (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert provider.refreshes() == 1


# -- one of all


@asynccontextmanager
async def processes(place: Place, count: int) -> AsyncIterator[list[Parts]]:
    """So many installations over one database, as processes are: nothing is shared but the files."""
    async with anyio.create_task_group() as group:
        ready: list[Parts] = []
        done = anyio.Event()
        all_there = anyio.Event()

        async def one() -> None:
            installation = open_installation(place.installation.settings)
            try:
                async with running(installation) as parts:
                    ready.append(parts)
                    if len(ready) == count:
                        all_there.set()
                    await done.wait()
            finally:
                installation.close()

        for _ in range(count):
            group.start_soon(one)
        await all_there.wait()
        yield ready
        done.set()


@pytest.mark.both_databases
async def test_many_calls_of_several_processes_make_one_renewal(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    outcomes: list[Outcome] = []

    async def one(parts: Parts) -> None:
        outcomes.append(await read(parts, place))

    async with processes(place, 3) as each, anyio.create_task_group() as group:
        for parts in each:
            for _ in range(15):
                group.start_soon(one, parts)
    assert len(outcomes) == 45
    assert all(outcome.ok for outcome in outcomes)
    assert (provider.refreshes(), provider.reused) == (1, [])
    assert set(bearers(provider)) == {provider.tokens[1]["access_token"]}
    assert len(place.events("connection.renewed")) == 1


async def test_who_waits_for_another_takes_the_token_that_it_got(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    provider.wait = threading.Event()
    async with processes(place, 2) as (first, second), anyio.create_task_group() as group:
        group.start_soon(read, first, place)
        await anyio.to_thread.run_sync(provider.asked.wait)
        waiting = asyncio.ensure_future(read(second, place))
        await anyio.lowlevel.checkpoint()
        assert not waiting.done()
        provider.wait.set()
        assert (await waiting).ok
    assert provider.refreshes() == 1


async def test_a_token_that_still_works_is_used_while_another_renews_it(place: Place, provider: Provider) -> None:
    due(place)
    provider.wait = threading.Event()
    async with processes(place, 2) as (first, second), anyio.create_task_group() as group:
        group.start_soon(read, first, place)
        await anyio.to_thread.run_sync(provider.asked.wait)
        assert (await read(second, place)).ok
        assert bearers(provider) == [provider.tokens[0]["access_token"]]
        provider.wait.set()


async def test_a_wait_for_another_is_bounded(place: Place, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    run_out(place, provider)
    execute(place, "UPDATE oauth_token SET lease = 'another', lease_until = obtained_at + 10000000")
    monkeypatch.setattr(renewal, "WAIT_S", 0.2)
    async with running(place.installation) as parts:
        with anyio.fail_after(10), pytest.raises(NotRenewed):
            await read(parts, place)
    assert provider.requests == []
    assert provider.calls == []


async def test_a_lease_whose_holder_never_came_back_is_taken_over_and_that_is_on_record(
    place: Place, provider: Provider
) -> None:
    run_out(place, provider)
    execute(place, "UPDATE oauth_token SET lease = 'dead', lease_until = obtained_at - 1")
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
    (entry,) = place.events("connection.renewed")
    assert entry["took_over"] is True


async def test_the_lease_outlasts_asking_and_storing() -> None:
    from server.oauth.tokens import LIMITS
    from server.sqlite import _BUSY_MS

    assert LIMITS.total_s * 1000 + renewal.TRIES_TO_STORE * _BUSY_MS < LEASE_MS


async def test_no_transaction_is_open_while_the_provider_is_asked(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    provider.wait = threading.Event()
    other = open_installation(place.installation.settings)
    async with running(place.installation) as parts, anyio.create_task_group() as group:
        group.start_soon(read, parts, place)
        await anyio.to_thread.run_sync(provider.asked.wait)
        await anyio.to_thread.run_sync(
            other.database.write_now, lambda rows: rows.execute("UPDATE org SET name = name")
        )
        provider.wait.set()
    other.close()


async def test_a_client_that_goes_away_does_not_lose_the_new_pair(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    provider.wait = threading.Event()
    async with running(place.installation) as parts:
        task = asyncio.ensure_future(read(parts, place))
        await anyio.to_thread.run_sync(provider.asked.wait)
        task.cancel()
        provider.wait.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert tokens(place)["refresh_token"] == provider.tokens[1]["refresh_token"]
    assert provider.calls == []


# -- not renewed


@pytest.mark.both_databases
async def test_a_consent_that_was_taken_back_leaves_the_tools_and_says_what_to_do(
    place: Place, provider: Provider
) -> None:
    run_out(place, provider)
    provider.end_consents()
    async with connected(place, "memory", "auto") as client:
        first = await client.call_tool("ledger_list_entries", {})
        names = [tool.name for tool in (await client.list_tools()).tools]
        second = await client.call_tool("ledger_list_entries", {})
    assert "ledger_list_entries" in names
    for result in (first, second):
        assert result.is_error
        said = result.content[0].text  # type: ignore[union-attr]
        assert "Tell the person you work for" in said
        assert "keyleash" not in said
        assert "rotate" not in said
    assert provider.refreshes() == 1, "a token that its provider has ended is not sent again"
    assert provider.calls == []
    assert ledger(place).needs_consent_at is not None
    (entry,) = place.events("connection.needs_consent")
    assert (entry["reason"], entry["connection"]) == ("invalid_grant", "ledger")
    assert [entry["reason"] for entry in place.events("call.refused")] == ["needs consent"] * 2
    assert place.events("call.attempt") == []


async def test_nobody_is_asked_to_approve_a_call_that_cannot_be_carried_out(place: Place, provider: Provider) -> None:
    execute(place, "UPDATE connection SET needs_consent_at = 1 WHERE name = 'ledger'")
    execute(place, "UPDATE org SET revision = revision + 1")
    async with running(place.installation) as parts:
        with pytest.raises(ConsentNeeded):
            await call(parts, place.caller(), "ledger_add_entry", {"text": "x"}, Nobody())
    assert place.events("approval.opened") == []
    assert provider.raw == []


@pytest.mark.both_databases
async def test_an_invalid_grant_is_believed_only_if_nobody_else_has_renewed(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    connection = ledger(place)
    installation = place.installation

    def overtaken(path: str, answer: Answer) -> Answer:
        if path != "/oauth/token":
            return answer
        provider.answering = lambda _path, answer: answer
        fresh = provider.issue()

        def change(rows: Any) -> None:
            with installation.vault.open(
                rows,
                org=connection.org,
                connection=connection.id,
                version=connection.credential_version,
                origin=connection.origin,
                scheme=connection.scheme,
            ) as sealed:
                from vault import Secret

                fields = {name: sealed.reveal(name) for name in sealed.fields} | {"secret": fresh["access_token"]}
                place_of = {"version": connection.credential_version, "origin": connection.origin}
                installation.vault.replace(
                    rows,
                    org=connection.org,
                    connection=connection.id,
                    scheme=connection.scheme,
                    fields=Secret(fields),
                    **place_of,
                )
            rows.execute(
                "UPDATE oauth_token SET generation = generation + 1, expires_at = expires_at + 9000000, "
                "due_at = due_at + 9000000, lease = NULL"
            )

        place.database.write_now(change)
        return Answer({"error": "invalid_grant"}, 400)

    provider.answering = overtaken
    async with running(installation) as parts:
        assert (await read(parts, place)).ok
    assert ledger(place).needs_consent_at is None
    assert place.events("connection.needs_consent") == []


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (503, {"error": "temporarily_unavailable"}, "temporarily_unavailable"),
        (500, b"<html>", "HTTP 500"),
        (200, b"<html>", "an answer that is not JSON"),
        (400, {"error": "invalid_request"}, "invalid_request"),
    ],
)
async def test_a_provider_in_trouble_ends_no_consent_and_is_left_alone_for_a_while(
    place: Place, provider: Provider, status: int, body: Any, reason: str
) -> None:
    run_out(place, provider)
    provider.answering = lambda _path, _answer: Answer(body, status)
    async with running(place.installation) as parts:
        for _ in range(3):
            with pytest.raises(NotRenewed):
                await read(parts, place)
    assert provider.refreshes() == 1
    assert provider.calls == []
    assert ledger(place).needs_consent_at is None
    (entry,) = place.events("connection.renewed")
    assert (entry["outcome"], entry["reason"]) == ("failed", reason)


async def test_a_failure_does_not_keep_a_token_that_still_works_from_being_used(
    place: Place, provider: Provider
) -> None:
    due(place)
    provider.answering = lambda path, answer: Answer({}, 503) if path == "/oauth/token" else answer
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
        assert (await read(parts, place)).ok
    assert provider.refreshes() == 1


async def test_an_answer_that_never_came_says_that_a_pair_may_be_lost(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    provider.answering = lambda _path, _answer: Answer(hang_up=True)
    async with running(place.installation) as parts:
        with pytest.raises(NotRenewed):
            await read(parts, place)
    (entry,) = place.events("connection.renewed")
    assert (entry["outcome"], entry["maybe_lost"]) == ("failed", True)
    assert provider.refreshes() == 1, "a token that is used once is not sent twice by itself"


async def test_a_pair_that_cannot_be_stored_is_not_used(
    place: Place, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_out(place, provider)

    def full(*_: Any, **__: Any) -> None:
        raise DatabaseProblem("the disk is full")

    async with running(place.installation) as parts:
        with monkeypatch.context() as patch:
            patch.setattr(Vault, "replace", full)
            with pytest.raises(NotRenewed):
                await read(parts, place)
    assert provider.calls == []
    assert tokens(place)["refresh_token"] == provider.tokens[0]["refresh_token"]
    assert place.events("connection.renewed") == []


async def test_a_renewal_that_was_overtaken_by_another_credential_stores_nothing(
    place: Place, provider: Provider
) -> None:
    run_out(place, provider)
    installation, connection = place.installation, ledger(place)

    def overtaken(path: str, answer: Answer) -> Answer:
        if path == "/oauth/token":
            planned = replan(
                connection, installation.catalogue.connectors["ledger"], kind="pasted", base_url=None, private=None
            )
            fresh = provider.issue()["access_token"]
            place.database.write_now(
                lambda rows: rotate(
                    rows,
                    installation.vault,
                    connection,
                    planned,
                    fields={"secret": fresh},
                    account=None,
                    verified=False,
                    by="alice",
                )
            )
        return answer

    provider.answering = overtaken
    async with running(installation) as parts:
        assert (await read(parts, place)).ok
    assert tokens(place).keys() == {"secret"}
    assert bearers(provider) == [tokens(place)["secret"]]
    assert standing(installation.database, ledger(place)) is None
    assert place.events("connection.renewed") == []


async def test_while_the_vault_is_sealed_nobody_is_asked(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    (place.home / "keys" / "root.key").rename(place.home / "away")
    place.installation.close()
    place.installation = open_installation(place.installation.settings)
    async with running(place.installation) as parts:
        with pytest.raises(VaultSealed):
            await read(parts, place)
    assert provider.raw == []


async def test_a_token_endpoint_that_the_file_now_names_gets_nothing(place: Place, provider: Provider) -> None:
    run_out(place, provider)
    file = place.installation.settings.connectors / "ledger.yaml"
    file.write_text(file.read_text().replace("token: /oauth/token\n      revoke", "token: /oauth/stolen\n      revoke"))
    place.installation.close()
    place.installation = open_installation(place.installation.settings)
    async with running(place.installation) as parts:
        outcome = await read(parts, place)
    assert not outcome.ok
    assert "connect it again" in outcome.text
    assert provider.raw == []


async def test_another_orgs_tokens_are_never_touched(place: Place, provider: Provider) -> None:
    """The rows of two orgs may have the same ids where a copy was made; only the caller's are renewed."""
    run_out(place, provider)
    execute(
        place,
        "INSERT INTO oauth_token (org, connection, app, asked, scopes, renewable, rotates, generation, obtained_at, "
        "failures) SELECT 'org_other', connection, app, asked, scopes, renewable, rotates, generation, 7, failures "
        "FROM oauth_token",
    )
    async with running(place.installation) as parts:
        assert (await read(parts, place)).ok
    assert place.database.read("SELECT generation, obtained_at FROM oauth_token WHERE org = 'org_other'") == [(1, 7)]


async def test_tokens_that_were_replaced_are_not_renewed_for_who_still_has_the_old(
    place: Place, provider: Provider
) -> None:
    run_out(place, provider)
    stale = replace(ledger(place), credential_version=7)
    held = standing(place.database, stale)
    assert held is not None
    async with running(place.installation) as parts:
        await parts.renewals.current(stale, place.installation.catalogue.connectors["ledger"], {})
        assert await parts.renewals._take(stale, held) is None
        execute(place, "UPDATE connection SET needs_consent_at = 1 WHERE name = 'ledger'")
        assert await parts.renewals._take(ledger(place), held) is None
    assert provider.requests == []
    assert place.events("connection.renewed") == []


# -- people hear


def test_people_see_what_needs_consent(place: Place, owner: CommandLine, provider: Provider) -> None:
    run_out(place, provider)
    provider.end_consents()
    tested = owner("connection", "test", "ledger")
    assert (tested.code, "keyleash connection rotate ledger" in tested.err) == (1, True)
    listed = {one["name"]: one["needs_consent_at"] for one in owner("connection", "list", "--json").json}
    assert listed["stripe"] is None
    assert listed["ledger"] is not None
    shown = owner("connection", "show", "ledger")
    assert "needs consent again" in shown.err
    found = [one for one in owner("doctor", "--json").json if one["check"] == "consents"]
    assert [(one["status"], "keyleash connection rotate ledger --org acme" in one["message"]) for one in found] == [
        ("fail", True)
    ]


def test_a_test_of_the_connection_renews_first(place: Place, owner: CommandLine, provider: Provider) -> None:
    run_out(place, provider)
    ran = owner("connection", "test", "ledger", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["account"] == "Acme Inc."
    (entry,) = place.events("connection.renewed")
    assert entry["by"] == "alice"
    shown = owner("connection", "show", "ledger", "--json").json
    assert shown["oauth"]["renewed_by_itself"] is True
    assert shown["oauth"]["scopes"] == ["read", "write"]
    assert all(secret not in everything(ran) for secret in provider.secrets())


def test_doctor_says_what_could_not_be_renewed_and_what_cannot_be(
    place: Place, owner: CommandLine, provider: Provider
) -> None:
    execute(place, "UPDATE oauth_token SET failures = 3")
    (found,) = [one for one in owner("doctor", "--json").json if one["check"] == "consents"]
    assert (found["status"], "3 times" in found["message"]) == ("warn", True)
    execute(place, "UPDATE oauth_token SET failures = 0, renewable = 0")
    (found,) = [one for one in owner("doctor", "--json").json if one["check"] == "consents"]
    assert "has no refresh token" in found["message"]


async def test_no_secret_of_a_renewal_is_anywhere(
    place: Place, provider: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    run_out(place, provider)
    texts: list[str] = []
    async with running(place.installation) as parts:
        texts.append((await read(parts, place)).text)
        run_out(place, provider)
        provider.answering = lambda _path, _answer: Answer({"error": f"no_{CLIENT_SECRET}"}, 400)
        with pytest.raises(NotRenewed) as refused:
            await read(parts, place)
    texts += [str(refused.value), caplog.text, repr(place.events())]
    for secret in provider.secrets():
        assert secret not in "".join(texts)
        assert files_holding(place.home, secret.encode()) == []
