"""One approved call, replayed many times at once on two replicas, runs once; all others are told what came of it.

The long form, with a thousand: `KEYLEASH_PROOFS=1 pytest tests/server/test_replays.py`.
"""

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.approval import Decision, State
from server.audit import Status, verify_database
from server.database import Rows
from server.http import AGENT_PATH
from tests.agents import decide
from tests.installed import Place
from tests.raw import Raw, Reply, approving
from tests.servers import ServerProcess
from tests.serving import NO_TLS
from tests.upstream import Answer, Upstream

REPLAYS = 1_000 if "KEYLEASH_PROOFS" in os.environ else 100
BUSY = "are under way already"
"""An agent may have so many calls under way in one process; it is told so, and comes again."""

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.both_databases]


@pytest.fixture
async def replicas(place: Place, tmp_path: Path) -> AsyncIterator[list[ServerProcess]]:
    """Two servers over one database."""
    (tmp_path / "person").mkdir()
    servers = [ServerProcess(place, tmp_path / "person") for _ in range(2)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield servers
    finally:
        for server in servers:
            server.stop()


async def test_all_replays_of_what_was_approved_elsewhere_are_one_request(
    place: Place, upstream: Upstream, replicas: list[ServerProcess]
) -> None:
    await replayed(place, upstream, replicas, {"charge": "ch_1", "amount": 1200}, answer=None)
    # And as many that each bring the person's answer to what is still pending.
    await replayed(place, upstream, replicas, {"charge": "ch_2", "amount": 1200}, answer=approving())
    assert verify_database(place.database.of(place.org), place.org).status is Status.INTACT


async def replayed(
    place: Place, upstream: Upstream, replicas: list[ServerProcess], refund: dict[str, Any], *, answer: Any
) -> None:
    before = len(upstream.requests)
    upstream.answer = lambda request: Answer({"id": f"re_{len(upstream.requests)}", "status": "succeeded"})
    limits = httpx2.Limits(max_connections=REPLAYS + 1)
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=60, limits=limits) as http:
        agents = [Raw(server.url, place.tokens["reconciler"], http) for server in replicas]
        first = await agents[0].call("stripe_create_refund", refund)
        assert first.asks
        (record,) = place.installation.approvals.list(place.org, state=State.PENDING)
        if answer is None:
            decide(place, record.id, Decision.APPROVE)

        async def replay(number: int) -> Reply:
            while True:
                agent = agents[number % 2]
                reply = await agent.call("stripe_create_refund", refund, state=first.state, answers=answer)
                if BUSY not in reply.text:
                    return reply
                await asyncio.sleep(0.05)

        async with held_back(place, record.id):
            replays = [asyncio.create_task(replay(number)) for number in range(REPLAYS)]
            for _ in range(30):  # answered in turn: by then, what was sent before is under way
                for server in replicas:
                    assert (await http.get(server.url.removesuffix(AGENT_PATH) + "/health")).status_code == 200
        told = await asyncio.gather(*replays)
    assert len(upstream.requests) == before + 1
    assert Counter(reply.ran for reply in told) == {True: REPLAYS}, next(each for each in told if not each.ran)
    assert {reply.result["structuredContent"]["id"] for reply in told} == {f"re_{before + 1}"}
    assert [each.id for each in place.installation.approvals.list(place.org, state=State.SUCCEEDED)].count(record.id)
    of = {name: [each for each in place.events(name) if each["approval"] == record.id] for name in EVENTS}
    assert {name: len(events) for name, events in of.items()} == EVENTS


@asynccontextmanager
async def held_back(place: Place, approval: str) -> AsyncIterator[None]:
    """Nobody can change this record meanwhile, and everybody read it: many see it as it is before one has taken it."""
    holds, let_go = threading.Event(), threading.Event()

    def change(rows: Rows) -> None:
        rows.execute("UPDATE approval SET needed = needed WHERE org = ? AND id = ?", (place.org, approval))
        holds.set()
        let_go.wait(5)

    holding = asyncio.create_task(asyncio.to_thread(place.database.of(place.org).write_now, change))
    await asyncio.to_thread(holds.wait)
    try:
        yield
    finally:
        let_go.set()
        await holding


EVENTS = {"approval.decided": 1, "call.attempt": 1, "call.outcome": 1, "call.replayed": REPLAYS - 1}
