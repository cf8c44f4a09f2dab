"""Many approved calls on two replicas that are killed meanwhile, and what each agent was told. See `test_kills.py`."""

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.commandline import ROOT
from tests.installed import Place
from tests.raw import Raw, Reply
from tests.servers import PATIENCE_S, POINTS, ServerProcess, environment_of

IN_FLIGHT = "sent, and not answered"
ANY_TIME = "at any time"
PLANS = (*POINTS, IN_FLIGHT, ANY_TIME)
LINGERS_S = 2.0
"""How long an agent waits for one answer: of a call that was lost, it would hear only after the time of a loss."""


@dataclass
class Told:
    """What the agent of one operation has heard in the end."""

    arguments: dict[str, Any]
    agent: str
    state: str | None = None
    outcome: dict[str, Any] | None = None
    status: str | None = None


@dataclass
class Run:
    """At least `operations` refunds; each is asked for, approved by someone else, and repeated until it is answered."""

    place: Place
    person: Path
    log: Path
    operations: int
    kills: int
    workers: int
    rng: random.Random
    told: list[Told] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.servers = [ServerProcess(self.place, self.person) for _ in range(2)]
        plans = [PLANS[at % len(PLANS)] for at in range(self.kills)]
        self.rng.shuffle(plans)
        self._plans = plans
        self._killed_otherwise: set[int] = set()

    async def run(self) -> None:
        try:
            async with (
                httpx2.AsyncClient(trust_env=False, timeout=LINGERS_S, limits=_LIMITS) as http,
                asyncio.TaskGroup() as replicas,
            ):
                keepers = [replicas.create_task(self._keep_up(server)) for server in self.servers]
                async with asyncio.TaskGroup() as agents:
                    for _ in range(self.workers):
                        agents.create_task(self._work(http))
                for keeper in keepers:
                    keeper.cancel()
        finally:
            for server in self.servers:
                server.stop()

    # -- the replicas

    async def _keep_up(self, server: ServerProcess) -> None:
        """Start the replica whenever it is dead, each time with another way to die, while there are any."""
        while True:
            plan = self._plans.pop() if self._plans else None
            self._killed_otherwise.discard(server.port)
            if plan in POINTS:
                await server.start(plan, passing=self.rng.randint(1, 6))
            else:
                await server.start()
            if plan == ANY_TIME:
                await asyncio.sleep(self.rng.uniform(0.05, 0.6))
                server.kill()
            elif plan == IN_FLIGHT:
                await self._arrival()
                for each in self.servers:  # whichever of them has sent it
                    if each.kill() and each is not server:
                        self._killed_otherwise.add(each.port)
            assert await server.ended() == -signal.SIGKILL
            server.stop()
            if server.port not in self._killed_otherwise:
                self.killed[str(plan)] += 1
            elif plan is not None:
                self._plans.append(plan)

    async def _arrival(self) -> None:
        """The moment at which a request has arrived at the upstream."""
        before = self.log.stat().st_size
        while self.log.stat().st_size == before:  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.001)

    # -- the agents

    async def _work(self, http: httpx2.AsyncClient) -> None:
        """One operation after another, until there were enough of them, and of kills among them."""
        names = list(self.place.tokens)
        while (number := len(self.told)) < self.operations or self.killed.total() < self.kills:
            told = Told({"charge": f"ch_{number}", "amount": number + 1}, names[number % len(names)])
            self.told.append(told)
            await self._insist(http, told, points=number % 2 == 0)

    async def _insist(self, http: httpx2.AsyncClient, told: Told, *, points: bool) -> None:
        """Repeat the call, often on both replicas at once, until an answer is final; `points`: with its state."""
        while told.outcome is None and told.status is None:
            chosen = self.rng.sample(self.servers, self.rng.choice((1, 2)))
            replies = await asyncio.gather(*(ask(http, server.url, self.place, told, points) for server in chosen))
            for reply in replies:
                if reply == LOST and told.state is not None:
                    told.status = "not heard"  # and asked again in the end
                elif isinstance(reply, Reply):
                    self._heard(told, reply)
            await asyncio.sleep(0.05)

    @staticmethod
    def _heard(told: Told, reply: Reply) -> None:
        if reply.asks:
            told.state = told.state or reply.state
        elif reply.ran:
            told.outcome = reply.result["structuredContent"]
        elif reply.status_of_approval not in ("pending", None):
            told.status = reply.status_of_approval


LOST = "lost"
_LIMITS = httpx2.Limits(max_connections=100)


async def ask(http: httpx2.AsyncClient, url: str, place: Place, told: Told, points: bool) -> Reply | str | None:
    """One call; None where nobody listens or the connection broke, LOST where no answer came in time."""
    agent = Raw(url, place.tokens[told.agent], http, elicits=points)
    try:
        return await agent.call("stripe_create_refund", told.arguments, state=told.state)
    except httpx2.ReadTimeout:
        return LOST
    except httpx2.HTTPError:
        return None


@asynccontextmanager
async def deciding(place: Place, person: Path) -> AsyncIterator[None]:
    """Someone in another process who approves whatever waits."""
    script = [sys.executable, "-m", "tests.server.deciding", place.org, place.owner.name]
    with _process(script, environment_of(place, person)) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"decides\n"
        yield
        assert process.poll() is None, "who decides has failed"


@asynccontextmanager
async def durable_upstream(log: Path) -> AsyncIterator[str]:
    """An upstream that keeps what it was sent; yields its URL."""
    with _process([sys.executable, "-m", "tests.durable", str(log)], _BARE) as process:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, "the upstream has failed"


_BARE = {"PYTHONPATH": str(ROOT)}


class _process:
    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> "subprocess.Popen[bytes]":
        return self.process

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def logged(log: Path) -> list[dict[str, Any]]:
    """Every request that the upstream has ever been sent."""
    return [json.loads(line) for line in log.read_text().splitlines()]
