"""A random walk over many orgs: after every operation, nothing of another org stands in anything that was heard."""

import asyncio
import contextlib
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.app import http_door, running
from tests.commandline import CommandLine
from tests.installed import make
from tests.provider import Provider
from tests.upstream import Upstream
from tests.walk.agents import ACTS, Agents
from tests.walk.canary import CANARY
from tests.walk.hours import HOURS
from tests.walk.people import COMMANDS, ROOMS, People, ends, thaws
from tests.walk.world import Making, Org, World, build, judge

SHARES = {"agents": 0.70, "rooms": 0.21, "hours": 0.04, "commands": 0.05}
"""How much of the walk agents do, people in the rooms, time and the servers, and people at the command line."""
ENDS = 0.0005
"""How often an org is removed, and another begins."""


@dataclass
class Walked:
    """What came of a walk."""

    operations: int
    orgs: int
    heard: int = 0
    """how many answers, errors, lists, exports and lines of the log were looked at"""
    sent: int = 0
    told: int = 0
    """how many webhooks were told of held calls"""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    done: Counter[str] = field(default_factory=Counter[str])
    recorded: Counter[str] = field(default_factory=Counter[str])
    """what is on record in all the logs, by event"""


class Log(logging.Handler):
    """Every line that the server logs, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def taken(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


def walk(
    operations: int,
    orgs: int,
    *,
    seed: int,
    making: Making = make,
    environ: dict[str, str] | None = None,
    tell: Callable[[int], None] = lambda _done: None,
) -> Walked:
    """Walk. Raises Leaked or AssertionError at the first operation that shows an org anything of another.

    `making` makes the place at a home, on whichever database; `environ` is what the command line needs to find it.
    """
    walked, began, used = Walked(operations, orgs), time.monotonic(), time.process_time()
    with (
        tempfile.TemporaryDirectory(prefix="keyleash-walk-") as folder,
        Upstream() as upstream,
        Provider() as provider,
        _logged() as log,
        asyncio.Runner() as runner,
    ):
        world = build(Path(folder) / "home", upstream, provider, orgs=orgs, seed=seed, making=making)
        person = Path(folder) / "person"
        person.mkdir()
        people = People(world, CommandLine(world.installation.settings.home, person, environ or {}))
        for org in world.orgs:
            where = f"{upstream.url}/hook-{org.mark.canary()}"
            people.add_channel(org, where)
        with _open_door(runner, world) as agents:
            steps = _Steps(world, agents, people, runner, random.Random(seed))
            for number in range(operations):
                org = world.chance.choice(world.orgs)
                name, heard = steps.take(org)
                walked.done[name] += 1
                for text in (*heard, *log.taken()):
                    walked.heard += 1
                    try:
                        judge(world, org, text)
                    except AssertionError as error:
                        error.add_note(f"operation {number} of the walk with seed {seed}: {name}")
                        raise
                tell(number + 1)
            runner.run(_all_told(world))
        walked.told = _judge_what_was_told(world)
        walked.sent = len(upstream.requests) - walked.told
        rows = world.operators.read("SELECT event, COUNT(*) FROM audit_entry GROUP BY event")
        walked.recorded = Counter(dict(rows))
        world.installation.close()
    walked.seconds, walked.cpu_seconds = time.monotonic() - began, time.process_time() - used
    return walked


async def _all_told(world: World) -> None:
    """Every notice was tried once, as far as it was wanted; or ten seconds are over, where a receiver is in trouble."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while world.operators.read(  # noqa: ASYNC110 - a receiver's thread has no event of ours
                "SELECT 1 FROM notice n JOIN channel c ON c.org = n.org AND c.id = n.channel "
                "WHERE n.tries = 0 AND c.disabled_at IS NULL LIMIT 1"
            ):
                await asyncio.sleep(0.1)


def _judge_what_was_told(world: World) -> int:
    """Every webhook was told of its own org's calls only; returns how often one was."""
    whose = {org.mark.letters: org for org in (*world.orgs, *world.removed)}
    told = [request for request in world.upstream.requests if "/hook-" in request.target]
    for request in told:
        (letters,) = CANARY.findall(request.target)
        judge(world, whose[letters], f"{request.target} {request.headers} {request.body.decode()}")
    return len(told)


@dataclass
class _Steps:
    """Chooses operations, and carries them out."""

    world: World
    agents: Agents
    people: People
    runner: asyncio.Runner
    chance: random.Random

    def take(self, org: Org) -> tuple[str, list[str]]:
        thaws(self.people, org)
        if self.chance.random() < ENDS:
            return ends.__name__, ends(self.people, org)
        (who,) = self.chance.choices(list(SHARES), list(SHARES.values()))
        if who in ("agents", "hours"):
            acts = ACTS if who == "agents" else HOURS
            (act,) = self.chance.choices(list(acts), list(acts.values()))
            return act.__name__, self.runner.run(_bounded(act(self.agents, org)))
        table = ROOMS if who == "rooms" else COMMANDS
        (done,) = self.chance.choices(list(table), list(table.values()))
        return done.__name__, done(self.people, org)


async def _bounded(act: Any) -> list[str]:
    return await asyncio.wait_for(act, 60)


@contextmanager
def _open_door(runner: asyncio.Runner, world: World) -> Iterator[Agents]:
    """The server's own ASGI application, in this process; it lives in one task, as it does in a server."""
    opened: list[Agents] = []
    stop = asyncio.Event()

    async def live() -> None:
        async with running(world.installation) as parts:
            door = http_door(world.installation, parts, host="127.0.0.1")
            async with door._face.run():  # the lifespan of the application, without a server to send it
                opened.append(Agents(world, door, parts))
                await stop.wait()

    async def begin() -> "asyncio.Task[None]":
        task = asyncio.create_task(live())
        while not opened and not task.done():  # noqa: ASYNC110 - it opens in a moment, or has failed
            await asyncio.sleep(0)
        if task.done():
            task.result()
        return task

    async def end(task: "asyncio.Task[None]") -> None:
        stop.set()
        await task

    task = runner.run(begin())
    try:
        yield opened[0]
    finally:
        runner.run(end(task))


@contextmanager
def _logged() -> Iterator[Log]:
    root, log = logging.getLogger(), Log()
    level = root.level
    root.addHandler(log)
    try:
        yield log
    finally:
        root.removeHandler(log)
        root.setLevel(level)
