"""Keyleash, the yardstick and the floor under the same load, in turns, so that a noisy machine is unfair to all alike.

Every part is a process of its own; all of them are gone when this returns, however it ends.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from server.http import AGENT_PATH
from tests.bench.load import Job, Tally
from tests.bench.wire import HOST, KEY
from tests.certificates import self_signed
from tests.installed import make
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_S = 30.0
CONSOLE_SCRIPT = "from server.cli import main; main()"
AGENT = "bench"


class BenchProblem(Exception):
    """The benchmark cannot be run here, or a server did not do its work; the message says which."""


@dataclass(frozen=True)
class Plan:
    """What to measure: `rounds` windows of `seconds` for each server, number of callers, and kind of upstream.

    Also `starts` of the server over stdio, and a search among `copies` connections of each connector that ships.

    Many short windows rather than a few long ones: what else runs on the machine then meets all servers alike.
    """

    callers: tuple[int, ...] = (1, 50)
    upstreams: tuple[str, ...] = ("http", "https")
    rounds: int = 6
    seconds: float = 0.5
    warm_s: float = 0.15
    starts: int = 3
    copies: int = 4
    key: str = KEY


@dataclass(frozen=True)
class Server:
    """A server under test."""

    name: str
    process: subprocess.Popen[bytes]
    port: int
    path: str
    token: str = "-"

    @property
    def memory(self) -> int:
        """Resident bytes, now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Rounds:
    """The tallies of one server, of one number of callers, in the order of the rounds."""

    tallies: list[Tally] = field(default_factory=list)

    @property
    def cpu_us(self) -> list[float]:
        """Microseconds of CPU per call, round by round."""
        return [tally.cpu_s / tally.calls * 1e6 for tally in self.tallies]

    def latency_ms(self, share: float) -> float:
        """The latency that this share of all calls stayed under."""
        every = sorted(seconds for tally in self.tallies for seconds in tally.latencies)
        return every[min(len(every) - 1, int(len(every) * share))] * 1e3

    def figures(self) -> dict[str, float]:
        return {
            "cpu_us_per_call": round(statistics.median(self.cpu_us), 1),
            "cpu_us_quietest": round(min(self.cpu_us), 1),
            "calls_per_second": round(statistics.median(t.calls / t.seconds for t in self.tallies), 1),
            "p50_ms": round(self.latency_ms(0.5), 3),
            "p99_ms": round(self.latency_ms(0.99), 3),
            "calls": sum(tally.calls for tally in self.tallies),
        }


def contest(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """One result for each kind of upstream and number of callers. Raises BenchProblem."""
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(process("tests.bench.load"))
        certificate = self_signed(folder, HOST)
        for scheme in plan.upstreams:
            with contextlib.ExitStack() as round_stack:
                servers = start_servers(round_stack, folder, scheme, certificate, plan.key)
                for callers in plan.callers:
                    results.append(race(load, servers, plan, scheme, callers))
    return results


def race(load: subprocess.Popen[bytes], servers: list[Server], plan: Plan, scheme: str, callers: int) -> dict[str, Any]:
    """Round after round, each beginning with another server."""
    seen = {server.name: Rounds() for server in servers}
    answers: dict[str, Any] = {}
    for turn in range(plan.rounds):
        first = turn % len(servers)
        for server in (*servers[first:], *servers[:first]):
            job = Job(server.port, server.path, server.token, server.process.pid, callers, plan.warm_s, plan.seconds)
            tally = one_job(load, job)
            if tally.problem or not tally.calls:
                raise BenchProblem(f"{server.name}: {tally.problem or 'no call was answered in the time given'}")
            seen[server.name].tallies.append(tally)
            answers[server.name] = json.loads(tally.answer)["result"]["structuredContent"]
    require_same(answers)
    leashed = seen["keyleash"]
    return {
        "upstream": scheme,
        "callers": callers,
        "servers": {s.name: {**seen[s.name].figures(), "memory_bytes": s.memory} for s in servers},
        "keyleash_to": {name: ratios(leashed, seen[name]) for name in seen if name != "keyleash"},
    }


def require_same(answers: dict[str, Any]) -> None:
    """Refuse to compare servers that gave their client different results: they did not do the same work."""
    if any(answer != answers["floor"] for answer in answers.values()):
        raise BenchProblem(f"the servers gave different results, so they did not do the same work: {answers}")


def ratios(ours: Rounds, theirs: Rounds) -> dict[str, float]:
    """Ours to theirs. The CPU of each round is compared with that of the same round; the median of these is given.

    `cpu_quietest` compares each server's cheapest round: what else runs can only add to the others.
    """
    cpu = sorted(mine / other for mine, other in zip(ours.cpu_us, theirs.cpu_us, strict=True))
    return {
        "cpu": round(statistics.median(cpu), 3),
        "cpu_lowest": round(cpu[0], 3),
        "cpu_highest": round(cpu[-1], 3),
        "cpu_quietest": round(min(ours.cpu_us) / min(theirs.cpu_us), 3),
        "p50": round(ours.latency_ms(0.5) / theirs.latency_ms(0.5), 3),
        "p99": round(ours.latency_ms(0.99) / theirs.latency_ms(0.99), 3),
    }


def one_job(load: subprocess.Popen[bytes], job: Job) -> Tally:
    assert load.stdin is not None and load.stdout is not None
    load.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    load.stdin.flush()
    line = load.stdout.readline()
    if not line:
        raise BenchProblem("the load generator has ended")
    return Tally(**json.loads(line))


# -- processes


def start_servers(
    stack: contextlib.ExitStack, folder: Path, scheme: str, certificate: Path, key: str = KEY
) -> list[Server]:
    """An upstream and the three servers that call it; they trust its certificate."""
    upstream = stack.enter_context(process("tests.bench.upstream", *([str(certificate)] if scheme == "https" else [])))
    assert upstream.stdout is not None
    base = f"{scheme}://{HOST}:{int(upstream.stdout.readline())}"
    trust = {"SSL_CERT_FILE": str(certificate)}
    home = folder / scheme
    token = install(home, base, key)
    servers: list[Server] = []

    def start(name: str, path: str, *command: str, token: str = "-", **environment: str) -> None:
        running = stack.enter_context(started(*command, **trust, **environment))
        servers.append(Server(name, running, int(command[-1].rpartition(":")[2]), path, token))

    where = f"{HOST}:{free_port()}"
    start("keyleash", AGENT_PATH, "-c", CONSOLE_SCRIPT, "serve", "--http", where, token=token, KEYLEASH_HOME=str(home))
    for name, client in (("yardstick", "httpx2"), ("floor", "egress")):
        start(name, "/mcp", "-m", "tests.bench.bare", client, base, str(free_port()), STRIPE_KEY=key)
    for server in servers:
        wait_for(server)
    return servers


def install(home: Path, base: str, key: str = KEY) -> str:
    """An installation with one org, a connection to the upstream, rules and an agent, whose token is returned."""
    place = make(home, org="acme")
    try:
        place.connect(base, secret=key)
        place.rule(who="everyone", effects=["destroy"], then="deny")
        place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
        place.rule(who="everyone", tools=["stripe.list_*", "stripe.get_*"], then="allow")
        return place.agent(AGENT)
    finally:
        place.installation.close()


@contextlib.contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process of this checkout, with its standard streams at our end; it is stopped on leaving."""
    running = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with running:
        try:
            yield running
        finally:
            running.terminate()


def process(module: str, *arguments: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """One of the benchmark's own parts."""
    return started("-m", module, *arguments)


def wait_for(server: Server) -> None:
    """Until the server takes connections."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((HOST, server.port), timeout=1).close()
        except OSError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise BenchProblem(f"{server.name} did not start; what it says is above") from None
            time.sleep(0.02)
        else:
            return


def scratch() -> contextlib.AbstractContextManager[str]:
    """A folder that goes when the benchmark does."""
    return tempfile.TemporaryDirectory(prefix="keyleash-bench-")
