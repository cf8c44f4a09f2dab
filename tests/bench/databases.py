"""`python -m tests.bench.databases --json FILE`: what a governed call costs on PostgreSQL, beside SQLite.

The same server, load and upstream on both, taking turns; both commit to disk before a call is answered. PostgreSQL 18
runs beside the server and is reached over a socket: over a network each of a call's round trips takes that much longer.
What PostgreSQL itself works is not in the CPU of a call. Half a minute, on Linux.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from server.http import AGENT_PATH
from tests import postgres
from tests.bench.contest import (
    CONSOLE_SCRIPT,
    BenchProblem,
    Plan,
    Rounds,
    Server,
    install,
    one_job,
    process,
    ratios,
    scratch,
    started,
    wait_for,
)
from tests.bench.load import Job
from tests.bench.wire import HOST
from tests.ports import free_port

KINDS = ("sqlite", "postgres")


def compare(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """One result for each number of callers. Raises BenchProblem."""
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(process("tests.bench.load"))
        upstream = stack.enter_context(process("tests.bench.upstream"))
        assert upstream.stdout is not None
        base = f"http://{HOST}:{int(upstream.stdout.readline())}"
        servers = [_start(stack, kind, folder / kind, base) for kind in KINDS]
        return [_race(load, servers, plan, callers) for callers in plan.callers]


def _start(stack: contextlib.ExitStack, kind: str, home: Path, base: str) -> Server:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYLEASH_TEST_DATABASE", kind)
        token, environment = install(home, base), postgres.environment(home)
    environment.pop("KEYLEASH_DATABASE_OWNER", None)
    where = f"{HOST}:{free_port()}"
    running = stack.enter_context(
        started("-c", CONSOLE_SCRIPT, "serve", "--http", where, KEYLEASH_HOME=str(home), **environment)
    )
    server = Server(kind, running, int(where.rpartition(":")[2]), AGENT_PATH, token)
    wait_for(server)
    return server


def _race(load: Any, servers: list[Server], plan: Plan, callers: int) -> dict[str, Any]:
    seen = {server.name: Rounds() for server in servers}
    for turn in range(plan.rounds):
        for server in servers if turn % 2 else reversed(servers):
            job = Job(server.port, server.path, server.token, server.process.pid, callers, plan.warm_s, plan.seconds)
            tally = one_job(load, job)
            if tally.problem or not tally.calls:
                raise BenchProblem(f"{server.name}: {tally.problem or 'no call was answered in the time given'}")
            seen[server.name].tallies.append(tally)
    return {
        "callers": callers,
        "servers": {server.name: {**seen[server.name].figures(), "memory_bytes": server.memory} for server in servers},
        "postgres_to_sqlite": ratios(seen["postgres"], seen["sqlite"]),
    }


def main() -> int:
    """Run it, print what came of it, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.databases", description="PostgreSQL beside SQLite.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each database's turn in a round")
    given = parser.parse_args()
    postgres.durable()
    try:
        with scratch() as folder:
            results = compare(Plan(rounds=given.rounds, seconds=given.seconds), Path(folder))
    except BenchProblem as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    for result in results:
        print(f"{result['callers']} callers")
        for name, figures in result["servers"].items():
            shown = ("cpu_us_per_call", "calls_per_second", "p50_ms", "p99_ms")
            print(f"  {name:10}" + "".join(f"{figure:>18}: {figures[figure]:<9}" for figure in shown))
        print(f"  to SQLite: {result['postgres_to_sqlite']}")
    if given.json:
        given.json.write_text(json.dumps({"results": results}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
