"""Where the record cannot be written, nothing is sent; where it cannot be written any more, nothing is told.

The faults are the system's and the database's own: files that cannot grow, a file that is moved away, a lock that
another process keeps, a server that takes nobody in, or that has become read-only.
"""

import os
import random
import resource
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import anyio
import pytest

from server.app import running
from server.approval.unknown import LOST_MS
from server.audit import Status, verify_database
from server.call import Parts, call
from server.clock import now_ms
from server.database import DatabaseProblem
from server.errors import CallRefused, Unrecorded
from tests import postgres
from tests.agents import Nobody
from tests.installed import Place
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
PROOFS = bool(os.environ.get("KEYLEASH_PROOFS"))
CALLS = 10_000 if PROOFS else 600
AT_ONCE = 50
Fault = Callable[[Place], AbstractContextManager[None]]


@contextmanager
def no_room(_place: Place) -> Iterator[None]:
    """No file of this process can be written any more: the system says so as it does where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def moved_away(place: Place) -> Iterator[None]:
    """The database's file is no longer where it was, which SQLite does not mind."""
    file = place.installation.settings.database
    file.rename(file.with_name("elsewhere"))
    try:
        yield
    finally:
        file.with_name("elsewhere").rename(file)


@contextmanager
def replaced(place: Place) -> Iterator[None]:
    """Another file is in its place, as where somebody puts an older one back while the server runs."""
    file = place.installation.settings.database
    copy = file.read_bytes()
    with moved_away(place):
        file.write_bytes(copy)
        yield


@contextmanager
def log_removed(place: Place) -> Iterator[None]:
    """The write-ahead log was taken away: what is committed now is in a file without a name."""
    log = place.installation.settings.database.with_name("keyleash.db-wal")
    log.rename(log.with_name("elsewhere"))
    try:
        yield
    finally:
        log.with_name("elsewhere").rename(log)


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Another process keeps the lock for longer than anybody waits."""
    with place.in_the_way(lambda _rows: None):
        yield


@contextmanager
def read_only(place: Place) -> Iterator[None]:
    """Whoever serves may still read the log, and write nothing to it."""
    with postgres.server().superuser(postgres.name_of(place.home)) as db:
        db.execute(f"REVOKE INSERT ON audit_entry FROM {postgres.APP}".encode())
        try:
            yield
        finally:
            db.execute(f"GRANT INSERT ON audit_entry TO {postgres.APP}".encode())


@contextmanager
def gone(place: Place) -> Iterator[None]:
    """The database takes nobody in any more, and whoever was there is turned out."""
    name = postgres.name_of(place.home)
    with postgres.server().superuser() as db:
        db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        end_sessions(db, name)
        try:
            yield
        finally:
            db.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def end_sessions(db: Any, name: str) -> None:
    db.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))


FAULTS: dict[str, dict[str, Fault]] = {
    "sqlite": {
        "no room": no_room,
        "moved away": moved_away,
        "replaced": replaced,
        "log removed": log_removed,
        "locked": locked,
    },
    "postgres": {"gone": gone, "read-only": read_only, "locked": locked},
}
SLOW = () if PROOFS else (locked,)
"""Nobody waits for a lock for less than ten seconds: only in the long form."""
KEPT = (moved_away, replaced, log_removed)
"""What was written meanwhile is found once the file is back; nobody knew that it would be."""


def each_fault(*but: Fault) -> pytest.MarkDecorator:
    chosen = [(kind, name, fault) for kind in FAULTS for name, fault in FAULTS[kind].items() if fault not in but]
    given = [pytest.param(kind, fault, id=f"{kind}-{name}") for kind, name, fault in chosen]
    return pytest.mark.parametrize(("database_kind", "fault"), given, indirect=["database_kind"])


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")
    async with running(place.installation) as opened:
        await call(opened, place.caller(), "stripe_list_charges", {}, Nobody())  # every connection stands
        yield opened


@each_fault(*SLOW)
async def test_what_cannot_be_recorded_before_is_not_sent(
    place: Place, parts: Parts, upstream: Upstream, fault: Fault
) -> None:
    upstream.requests.clear()
    before = place.events()
    caller = place.caller()
    with fault(place), pytest.raises((CallRefused, DatabaseProblem)):
        await call(parts, caller, "stripe_create_refund", REFUND, Nobody())
    assert upstream.requests == []
    if fault not in KEPT:
        assert [entry for entry in place.events("call.attempt") if entry not in before] == []
    assert (await call(parts, caller, "stripe_create_refund", REFUND, Nobody())).ok, "and it goes on after"
    assert verify_database(place.database.of(place.org), place.org).status is Status.INTACT


@each_fault(*SLOW)
async def test_what_cannot_be_recorded_after_is_withheld_and_unknown(
    place: Place, parts: Parts, upstream: Upstream, fault: Fault
) -> None:
    upstream.requests.clear()
    arrived, broken = threading.Event(), threading.Event()

    def answer(_request: Received) -> Answer:
        arrived.set()
        return Answer({"id": "re_withheld_canary"}, wait=broken)

    upstream.answer = answer
    over, caller, told = anyio.Event(), place.caller(), ""

    async def refund() -> None:
        nonlocal told
        try:
            with pytest.raises(Unrecorded) as withheld:
                await call(parts, caller, "stripe_create_refund", REFUND, Nobody())
            assert withheld.value.sent
            told = str(withheld.value)
        finally:
            over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(refund)
        await anyio.to_thread.run_sync(arrived.wait)
        with fault(place):
            broken.set()
            await over.wait()
    assert told
    assert "re_withheld_canary" not in told
    assert len(upstream.requests) == 1
    if fault in KEPT:
        return
    attempt = place.events("call.attempt")[-1]
    assert all(entry["attempt"] != attempt["seq"] for entry in place.events("call.outcome"))
    later = now_ms() + LOST_MS + 1
    unknown = place.installation.approvals.unknown
    look = unknown.look(place.org, later)
    assert place.database.write_now(lambda rows: unknown.write_down(rows, place.org, look, later))
    assert [entry["attempt"] for entry in place.events("call.unknown")] == [attempt["seq"]]
    assert verify_database(place.database.of(place.org), place.org).status is Status.INTACT


@dataclass
class Came:
    """What became of the calls, by the charge that each was about."""

    heard: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    unsent: list[str] = field(default_factory=list)


class Storm:
    """An upstream whose answers come while the database fails, now here and now there."""

    def __init__(self, place: Place) -> None:
        self.place, self.struck, self._left = place, 0, 0
        self._lock, self._random = threading.Lock(), random.Random(20_261_126)
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def answer(self, _request: Received) -> Answer:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.over()
            elif self._left < 0 and self._random.random() < 0.01:
                self._strike()
        return Answer({"id": "re_1", "object": "refund"})

    def over(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)

    def _strike(self) -> None:
        """On SQLite nothing can be written until some more answers have gone out; on PostgreSQL every session ends."""
        self.struck += 1
        if postgres.wanted():
            with postgres.server().superuser() as db:
                end_sessions(db, postgres.name_of(self.place.home))
        else:
            self._left = 8
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limit[1]))


def fail_now_and_then(place: Place) -> None:
    """From now on one entry in 25 fails as it is written, and on SQLite one in 100 takes its whole commit with it."""
    if postgres.wanted():
        body = (
            "RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN IF random() < 0.04 THEN RAISE 'disk full'; END IF; RETURN NEW; END $$"
        )
        place.database.write_now(lambda rows: rows.execute(f'CREATE FUNCTION "full"() {body}'))
        does = ['"full" BEFORE INSERT ON audit_entry FOR EACH ROW EXECUTE FUNCTION "full"()']
    else:
        does = [
            f'"{how}" BEFORE INSERT ON audit_entry WHEN abs(random()) % {rare} = 0 '
            f"BEGIN SELECT RAISE({how}, 'database or disk is full'); END"
            for how, rare in (("ABORT", 25), ("ROLLBACK", 100))
        ]
    for each in does:
        place.database.write_now(lambda rows, trigger=each: rows.execute(f"CREATE TRIGGER {trigger}"))


@pytest.mark.both_databases
@pytest.mark.slow
async def test_no_request_is_unrecorded_whatever_fails(place: Place, parts: Parts, upstream: Upstream) -> None:
    """Of many calls at once, many meet a database that fails at an entry, at a commit, or altogether."""
    upstream.requests.clear()
    came, storm = Came(), Storm(place)
    upstream.answer = storm.answer
    caller = place.caller()
    fail_now_and_then(place)

    async def one(charge: str) -> None:
        try:
            outcome = await call(parts, caller, "stripe_create_refund", {"charge": charge, "amount": 1}, Nobody())
        except Unrecorded as told:
            (came.withheld if told.sent else came.unsent).append(charge)
        except (CallRefused, DatabaseProblem):
            came.unsent.append(charge)
        else:
            assert outcome.ok, outcome.text
            came.heard.append(charge)

    try:
        for first in range(0, CALLS, AT_ONCE):
            async with anyio.create_task_group() as group:
                for number in range(first, first + AT_ONCE):
                    group.start_soon(one, f"ch_{number}")
            storm.over()
    finally:
        storm.over()
    attempts = {entry["seq"]: entry["plain"]["charge"] for entry in place.events("call.attempt") if "plain" in entry}
    ended = {entry["attempt"] for entry in place.events("call.outcome")}
    sent = Counter(parse_qs(request.body.decode())["charge"][0] for request in upstream.requests)
    assert sent.keys() <= set(attempts.values()), "a request without an attempt on record"
    assert max(sent.values()) == 1
    assert sent.keys() == set(came.heard) | set(came.withheld)
    assert sorted(came.heard) == sorted(charge for seq, charge in attempts.items() if seq in ended)
    assert set(came.withheld) <= {charge for seq, charge in attempts.items() if seq not in ended}
    assert len(came.heard) + len(came.withheld) + len(came.unsent) == CALLS
    assert storm.struck > 0
    assert min(len(came.withheld), len(came.unsent)) > CALLS / 100, "the faults were met"
    assert verify_database(place.database.of(place.org), place.org).status is Status.INTACT
