"""A connection whose secret stays elsewhere: called as any other, and where that fails, nothing is sent."""

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import Decision, State
from server.call import Outcome, Parts, call
from server.connections import ConnectionProblem, connection_named, reencrypt, replan, rotate
from server.database import Rows
from server.parts import REFERENCES_AT_ONCE
from server.sqlite import SqliteDatabase
from tests.agents import Nobody, Person, execute
from tests.installed import SECRET, Place
from tests.places import SOURCES, Places
from tests.upstream import Answer, Upstream
from vault import REFERENCES, Secret, to_reference

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}


def point(place: Place, reference: str, *, secret: Secret | None = None) -> None:
    """The connection `stripe` reads its secret there from now on (or has this one)."""
    database = place.database
    connection = connection_named(database, place.org, "stripe")
    connector = place.installation.catalogue.connectors["stripe"]
    planned = replan(connection, connector, kind=None, base_url=None, private=None)
    database.write_now(
        lambda rows: rotate(
            rows,
            place.installation.vault,
            connection,
            planned,
            fields=secret or to_reference(reference),
            account="acct_test",
            verified=False,
            by="alice",
        )
    )


@asynccontextmanager
async def resolving(place: Place, places: Places, **changed: Any) -> AsyncIterator[Parts]:
    async with running(place.installation) as parts:
        yield replace(parts, references=places.resolver(home=place.home, **changed))


async def look(parts: Parts, place: Place, tool: str = "stripe_list_charges", **arguments: Any) -> Outcome:
    return await call(parts, place.caller(), tool, arguments, Nobody())


@pytest.mark.parametrize("source", SOURCES)
async def test_the_secret_is_read_where_it_stays_for_every_call(
    place: Place, places: Places, upstream: Upstream, source: str
) -> None:
    upstream.secret = None
    point(place, places.keep(source, f"{SECRET}\n"))
    async with resolving(place, places) as parts:
        assert (await look(parts, place)).ok
        places.keep(source, "rk_test_changed_there_meanwhile\n")
        assert (await look(parts, place)).ok
    given = [request.headers["authorization"] for request in upstream.requests]
    assert given == [f"Bearer {SECRET}", "Bearer rk_test_changed_there_meanwhile"]
    entries = place.events("call.attempt", "call.outcome", "connection.rotated")
    assert [entry["source"] for entry in entries] == [source] * 5


async def test_a_stored_secret_is_on_record_as_one(place: Place, places: Places) -> None:
    async with resolving(place, places) as parts:
        await look(parts, place)
    entries = place.events("connection.created", "call.attempt", "call.outcome")
    assert [entry["source"] for entry in entries] == ["vault"] * 3


@pytest.mark.parametrize("source", SOURCES)
async def test_a_secret_that_cannot_be_had_is_not_asked_of_the_agent_and_nothing_is_sent(
    place: Place, places: Places, upstream: Upstream, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    reference = places.keep(source, SECRET)
    point(place, reference)
    places.lose(source)
    where = reference.split(":", 1)[1].strip("/")
    async with resolving(place, places) as parts:
        outcome = await look(parts, place)
        refund = await call(parts, place.caller(), "stripe_create_refund", REFUND, Person(Decision.APPROVE))
    for said in (outcome, refund):
        assert not said.ok
        assert "An admin has to look at the connection stripe" in said.text
        assert "Nothing was sent" in said.text
        assert where not in said.text
    assert upstream.requests == []
    for entry in place.events("call.outcome"):
        assert (entry["outcome"], entry["error"]) == ("failed", f"credential reference {source}")
        assert where not in json.dumps(entry)
        assert len(entry["reason"]) > 20
    assert where not in caplog.text
    assert f"({source})" in caplog.text
    assert place.installation.approvals.list(place.org)[0].state is State.FAILED


async def test_a_variable_that_only_the_terminal_has_is_named_by_its_mend(place: Place, places: Places) -> None:
    point(place, "env:KEYLEASH_TEST_UNSET")
    async with resolving(place, places) as parts:
        await look(parts, place)
    (entry,) = place.events("call.outcome")
    assert "Set it where this process is started" in entry["reason"]
    assert "UNSET" not in json.dumps(entry)


@pytest.mark.parametrize(
    "value", ["xyzzy", f"{SECRET}\nand another line", f"{SECRET}\u20ac", "keyleash-root-key:v1:" + "A" * 44]
)
async def test_what_could_not_be_scrubbed_or_sent_is_not_sent(
    place: Place, places: Places, upstream: Upstream, value: str
) -> None:
    upstream.secret = None
    point(place, places.keep("file", value))
    async with resolving(place, places) as parts:
        assert not (await look(parts, place)).ok
    assert upstream.requests == []
    assert value not in json.dumps(place.events())


async def test_the_attempt_is_on_record_before_anybody_is_asked_for_the_secret(place: Place, places: Places) -> None:
    point(place, places.keep("vault_kv", SECRET))
    on_record: list[int] = []
    answer = places.kv.answer

    def noting(request: Any) -> Answer:
        on_record.append(len(place.events("call.attempt")))
        return answer(request)

    places.kv.answer = noting
    async with resolving(place, places) as parts:
        assert (await look(parts, place)).ok
    assert on_record == [1]


async def test_a_call_that_is_refused_or_held_asks_nobody_for_the_secret(place: Place, places: Places) -> None:
    point(place, places.keep("vault_kv", SECRET))
    async with resolving(place, places) as parts:
        for tool, arguments in {"stripe_create_refund": REFUND, "stripe_list_charges": {"limit": "many"}}.items():
            with pytest.raises(Exception, match=r".+"):
                await call(parts, place.caller(), tool, arguments, Nobody())
    assert places.kv.requests == []


# -- slow places


async def test_a_slow_place_holds_up_no_other_call(place: Place, places: Places, upstream: Upstream) -> None:
    """Neither one whose secret is stored, nor one whose secret stays somewhere faster, nor the event loop."""
    place.connect(upstream.url, name="stored")
    place.connect(upstream.url, name="fast", secret=to_reference(places.keep("file", SECRET)))
    point(place, places.keep("vault_kv", SECRET))
    places.slow("vault_kv")
    slow: list[Outcome] = []
    async with resolving(place, places, seconds=30) as parts, anyio.create_task_group() as group:

        async def wait() -> None:
            slow.append(await look(parts, place))

        for _ in range(3 * REFERENCES_AT_ONCE):
            group.start_soon(wait)
        with anyio.fail_after(20):
            while len(places.kv.requests) < REFERENCES_AT_ONCE:
                await anyio.lowlevel.checkpoint()
            assert (await look(parts, place, "stored_list_charges")).ok
            assert (await look(parts, place, "fast_list_charges")).ok
        assert slow == []
        assert len(places.kv.requests) == REFERENCES_AT_ONCE, "the others wait for their turn"
        places.gate.set()
    assert len(slow) == 3 * REFERENCES_AT_ONCE
    assert all(outcome.ok for outcome in slow)


@pytest.mark.parametrize("source", SOURCES)
async def test_a_place_that_does_not_answer_ends_every_call_in_time(
    place: Place, places: Places, upstream: Upstream, source: str
) -> None:
    places.keep(source, SECRET)
    reference = places.slow(source)
    if reference is None:
        pytest.skip("such a place answers at once")
    point(place, reference)
    outcomes: list[Outcome] = []
    started = time.monotonic()
    async with resolving(place, places, seconds=0.5) as parts, anyio.create_task_group() as group:

        async def one() -> None:
            outcomes.append(await look(parts, place))

        for _ in range(2 * REFERENCES_AT_ONCE + 1):
            group.start_soon(one)
    assert time.monotonic() - started < 15
    assert [outcome.ok for outcome in outcomes] == [False] * (2 * REFERENCES_AT_ONCE + 1)
    assert upstream.requests == []
    reasons = {entry["reason"] for entry in place.events("call.outcome")}
    assert any("0.5 seconds" in reason for reason in reasons)
    assert len(place.events("call.outcome")) == len(outcomes), "nothing is left unknown"


async def test_who_waits_for_a_turn_too_long_fails_and_who_has_it_goes_on(
    place: Place, places: Places, upstream: Upstream
) -> None:
    point(place, places.keep("vault_kv", SECRET))
    places.slow("vault_kv")
    ends: list[bool] = []
    started = time.monotonic()
    async with resolving(place, places, seconds=0.5) as parts, anyio.create_task_group() as group:
        for _ in range(REFERENCES_AT_ONCE):
            await parts.turns[connection_named(parts.database, place.org, "stripe").id].acquire_on_behalf_of(object())

        async def one() -> None:
            ends.append((await look(parts, place)).ok)

        group.start_soon(one)
    assert ends == [False]
    assert time.monotonic() - started < 15
    assert places.kv.requests == []
    (entry,) = place.events("call.outcome")
    assert entry["reason"].startswith("Other calls wait for the same secret")
    assert upstream.requests == []


async def test_who_gets_a_turn_late_has_all_the_time_for_it(place: Place, places: Places, upstream: Upstream) -> None:
    """The time for a turn runs out while the secret is being read: that makes no difference any more."""
    point(place, places.keep("vault_kv", SECRET))
    places.slow("vault_kv")
    outcomes: list[Outcome] = []
    async with resolving(place, places, seconds=3.0) as parts, anyio.create_task_group() as group:
        limiter = parts.turns[connection_named(parts.database, place.org, "stripe").id]
        others = [object() for _ in range(REFERENCES_AT_ONCE)]
        for other in others:
            await limiter.acquire_on_behalf_of(other)

        async def one() -> None:
            outcomes.append(await look(parts, place))

        group.start_soon(one)
        await anyio.sleep(1.2)
        limiter.release_on_behalf_of(others[0])
        while not places.kv.requests:
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(2.0)
        places.gate.set()
    assert [outcome.ok for outcome in outcomes] == [True]
    assert len(upstream.requests) == 1


async def test_a_client_that_hangs_up_does_not_cut_the_reading_of_a_secret_in_half(
    place: Place, places: Places, upstream: Upstream
) -> None:
    point(place, places.keep("vault_kv", SECRET))
    places.slow("vault_kv")
    async with resolving(place, places) as parts:
        with anyio.CancelScope() as client:
            async with anyio.create_task_group() as group:
                group.start_soon(look, parts, place)
                while not places.kv.requests:
                    await anyio.lowlevel.checkpoint()
                client.cancel()
                places.gate.set()
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["succeeded"]
    assert len(upstream.requests) == 1


async def test_a_place_that_hangs_in_the_system_does_not_hold_the_call(
    place: Place, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(REFERENCES["file"], "read", lambda *_: str(gate.wait(60)))  # as a dead disk would
    point(place, places.keep("file", SECRET))
    started = time.monotonic()
    async with resolving(place, places, seconds=0.1) as parts:
        assert not (await look(parts, place)).ok
    assert time.monotonic() - started < 10
    gate.set()
    assert "did not answer within 0.1 seconds" in place.events("call.outcome")[0]["reason"]


# -- what changes between the attempt and the sending


class Between(SqliteDatabase):
    """A database to which something happens right after each attempt has been written; notes what is opened then."""

    then: Callable[[], None] = staticmethod(lambda: None)

    async def write(self, change: Callable[[Rows], Any]) -> Any:
        result = await super().write(change)
        if not hasattr(result, "taken"):
            return result
        self.then()
        self.opened: list[Secret] = []

        def taken() -> Secret:
            self.opened.append(result.taken())
            return self.opened[0]

        return replace(result, taken=taken)


@pytest.mark.sqlite_only("its database is a kind of SQLite's")
@pytest.mark.parametrize("source", ["vault", *SOURCES])
@pytest.mark.parametrize("change", ["rotated", "encrypted anew", "removed"])
async def test_what_happens_to_the_credential_after_the_attempt_makes_no_call_fail(
    place: Place, places: Places, upstream: Upstream, source: str, change: str
) -> None:
    if source != "vault":
        point(place, places.keep(source, SECRET))
    connection = connection_named(place.database, place.org, "stripe")
    database = Between(place.installation.settings.database)

    def happen() -> None:
        match change:
            case "rotated":
                point(place, "", secret=Secret({"secret": "rk_test_another_one_altogether"}))
            case "encrypted anew":
                place.database.write_now(lambda rows: reencrypt(rows, place.installation.vault, connection, by="alice"))
            case _:
                for table in ("vault_field", "vault_credential", "connection"):
                    execute(place, f"DELETE FROM {table}")

    database.then = happen
    async with resolving(place, places) as parts:
        outcome = await call(replace(parts, database=database), place.caller(), "stripe_list_charges", {}, Nobody())
    database.close()
    assert outcome.ok
    assert [request.headers["authorization"] for request in upstream.requests] == [f"Bearer {SECRET}"]


async def test_a_rotated_credential_leaves_none_of_the_earlier_ones(
    place: Place, places: Places, upstream: Upstream
) -> None:
    sealed = place.database.read("SELECT sealed FROM vault_field")
    for _ in range(3):
        point(place, places.keep("env", SECRET))
    database = place.database
    assert database.read("SELECT version FROM vault_credential") == [(4,)]
    assert database.read("SELECT version, field FROM vault_field") == [(4, "@reference")]
    assert sealed[0] not in database.read("SELECT sealed FROM vault_field")


async def test_encrypted_anew_the_credential_is_the_same_and_what_was_approved_stays_good(
    place: Place, places: Places, upstream: Upstream
) -> None:
    from server.errors import ApprovalRequired

    async with resolving(place, places) as parts:
        with pytest.raises(ApprovalRequired) as held:
            await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
        approvals, database = place.installation.approvals, place.database
        record = approvals.find(place.org, held.value.approval)
        assert record is not None
        database.write_now(lambda rows: approvals.decide(rows, record, Decision.APPROVE, place.actor()))
        before = database.read("SELECT data_key, key_id FROM vault_credential")
        connection = connection_named(database, place.org, "stripe")
        database.write_now(lambda rows: reencrypt(rows, place.installation.vault, connection, by="alice"))
        after = database.read("SELECT data_key, key_id FROM vault_credential")
        assert not set(before[0]) & set(after[0])
        assert (await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())).ok
    assert len(upstream.requests) == 1
    (entry,) = place.events("connection.rotated")
    assert (entry["same_secret"], entry["credential_version"], entry["source"]) == (True, 1, "vault")


async def test_what_somebody_else_has_changed_meanwhile_is_not_encrypted_anew(place: Place, places: Places) -> None:
    before = connection_named(place.database, place.org, "stripe")
    point(place, places.keep("env", SECRET))
    rows = place.database.read("SELECT * FROM vault_credential")
    with pytest.raises(ConnectionProblem, match="meanwhile"):
        place.database.write_now(lambda rows: reencrypt(rows, place.installation.vault, before, by="alice"))
    assert place.database.read("SELECT * FROM vault_credential") == rows
    assert [entry.get("same_secret") for entry in place.events("connection.rotated")] == [None]


# -- the secret itself


@pytest.mark.sqlite_only("its database is a kind of SQLite's")
@pytest.mark.parametrize("source", SOURCES)
async def test_neither_the_secret_nor_the_reference_outlives_its_call(
    place: Place, places: Places, source: str
) -> None:
    from connectors.egress import Egress

    held: list[Any] = []

    def enclosed(function: Any) -> Iterator[Any]:
        for cell in getattr(function, "__closure__", None) or ():
            yield cell.cell_contents
            yield from enclosed(cell.cell_contents)

    class Noting(Egress):
        async def send(self, prepared: Any, *, attach: Any, **more: Any) -> Any:
            held.extend(enclosed(attach))
            return await super().send(prepared, attach=attach, **more)

    point(place, places.keep(source, SECRET))
    database = Between(place.installation.settings.database)
    async with Noting() as egress:
        parts = place.installation.parts(egress)
        parts = replace(parts, database=database, references=places.resolver(home=place.home))
        assert (await look(parts, place)).ok
    database.close()
    (secret,) = [each for each in held if isinstance(each, Secret)]
    (reference,) = database.opened
    assert (secret.fields, reference.fields) == (("secret",), ("@reference",))
    for each in (secret, reference):
        with pytest.raises(Exception, match="wiped"):
            each.reveal(each.fields[0])
