"""A key service is asked outside of transactions and once for all; when it is down, calls fail closed and say so."""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import Approvals
from server.call import Outcome, call
from server.errors import ApprovalRequired, KeysAway
from server.keys import RETRY_SECONDS
from tests.agents import Nobody
from tests.installed import Place, add_org
from tests.upstream import Upstream
from vault import KeysUnavailable, LocalRootKey, Mend, RootKey, Vault, root_key_spec

pytestmark = pytest.mark.anyio
KEEP = 300.0


class Service:
    """A root key behind a network, as far as callers can tell: it is slow, can be down, and counts what it is asked."""

    provider, remote = "file", True

    def __init__(self, key: RootKey, location: str) -> None:
        assert isinstance(key, LocalRootKey)
        self.location = location
        self.asked: list[Sequence[str]] = []
        self.down = False
        self.transactions: list[sqlite3.Connection] = []
        self.threads: set[int] = set()
        self.wait: threading.Event | None = None
        self._key = key

    def wrap(self, key: bytes, *, context: Sequence[str]) -> bytes:
        return self._key.wrap(key, context=context)

    def unwrap(self, blob: bytes, *, context: Sequence[str]) -> bytes:
        self.asked.append(context)
        self.threads.add(threading.get_ident())
        if self.wait:
            self.wait.wait(20)
        if self.down:
            raise KeysUnavailable("The key service does not answer.", mend=Mend.REACH, how="Wait.")
        return self._key.unwrap(blob, context=context)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(place: Place, clock: Clock) -> Service:
    """Puts the installation of `place` on a root key that is asked over a network."""
    location = str(place.home / "keys" / "root.key")
    found = Service(root_key_spec("file", place.home).load(), location)
    vault = Vault(found, keep_seconds=KEEP, clock=clock)
    installation = place.installation
    place.installation = replace(
        installation, vault=vault, approvals=Approvals(installation.database, vault, hold_seconds=0)
    )
    return found


async def charges(parts: Any, place: Place) -> Outcome:
    return await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())


async def test_calls_at_once_ask_once_and_never_on_the_loops_thread(
    place: Place, service: Service, upstream: Upstream
) -> None:
    async with running(place.installation) as parts, anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(charges, parts, place)
    assert len(upstream.requests) == 30
    assert [context[0] for context in service.asked] == ["org-key"]
    assert threading.get_ident() not in service.threads


async def test_a_service_that_does_not_answer_holds_up_its_own_org_only(
    place: Place, service: Service, upstream: Upstream
) -> None:
    other = add_org(place.installation, "other")
    other.connect(upstream.url)
    other.agent("theirs")
    async with running(place.installation) as parts:
        assert (await call(parts, other.caller("theirs"), "stripe_list_charges", {}, Nobody())).ok
        service.wait = threading.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(charges, parts, place)
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(10):
                assert (await call(parts, other.caller("theirs"), "stripe_list_charges", {}, Nobody())).ok
            assert len(upstream.requests) == 2
            service.wait.set()
    assert len(upstream.requests) == 3


async def test_keys_are_asked_for_again_when_their_time_is_over(place: Place, service: Service, clock: Clock) -> None:
    async with running(place.installation) as parts:
        for later, asked in [(0.0, 1), (KEEP - 1, 1), (2.0, 2), (KEEP, 2), (1.0, 3)]:
            clock.now += later
            assert (await charges(parts, place)).ok
            assert len(service.asked) == asked


async def test_while_the_service_is_down_calls_go_on_until_their_keys_time_is_over_and_then_fail_closed(
    place: Place, service: Service, clock: Clock, upstream: Upstream
) -> None:
    async with running(place.installation) as parts:
        assert (await charges(parts, place)).ok
        service.down = True
        clock.now += KEEP - 1
        assert (await charges(parts, place)).ok
        clock.now += 2
        sent = len(upstream.requests)
        with pytest.raises(KeysAway, match="nothing was sent"):
            await charges(parts, place)
        with pytest.raises(KeysAway):
            await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
        assert len(upstream.requests) == sent
        assert place.database.read("SELECT COUNT(*) FROM approval") == [(0,)]
        refused = [entry["reason"] for entry in place.events("call.refused")]
        assert refused == ["keys unavailable"] * 2
        assert len(place.events("call.attempt")) == 2


async def test_a_service_that_is_down_is_left_alone_for_a_moment_and_then_asked_again(
    place: Place, service: Service
) -> None:
    async with running(place.installation) as parts:
        now = Clock()
        keys = replace(parts, keys=type(parts.keys)(place.database, place.installation.vault, now))
        service.down = True
        for _ in range(5):
            with pytest.raises(KeysAway):
                await charges(keys, place)
        assert len(service.asked) == 1
        service.down = False
        now.now += RETRY_SECONDS + 1
        assert (await charges(keys, place)).ok
        assert len(service.asked) == 2


async def test_a_call_that_was_held_is_carried_out_with_the_keys_it_began_with(
    place: Place, service: Service, clock: Clock
) -> None:
    """What is needed inside the attempt's transaction is not asked for there."""
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    async with running(place.installation) as parts:
        assert (await charges(parts, place)).ok
        clock.now += KEEP
        asked = len(service.asked)
        service.down = True
        assert (await charges(parts, place)).ok  # its time is over at this very moment, and it was at hand
        assert len(service.asked) == asked


@pytest.mark.sqlite_only("it looks into SQLite's own connection")
async def test_a_held_call_waits_without_any_key_being_asked_for_inside_a_transaction(
    place: Place, service: Service
) -> None:
    seen: list[bool] = []
    asked = service.unwrap

    def watched(blob: bytes, *, context: Sequence[str]) -> bytes:
        writer = place.database._writer
        seen.append(writer is not None and writer.in_transaction)
        return asked(blob, context=context)

    service.unwrap = watched  # type: ignore[method-assign]
    async with running(place.installation) as parts:
        with pytest.raises(ApprovalRequired):
            await call(parts, place.caller(), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
        assert (await charges(parts, place)).ok
    assert seen == [False]
