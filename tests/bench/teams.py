"""`python -m tests.bench.teams --json FILE`: what one org costs where a hundred others are, beside one alone.

Two servers take turns: one has a single org, the other many of the same size (ten accounts, twenty people with an agent
each, twenty rules). Asked for are lists of tools and calls, by one agent of each org in turn. Two minutes, on Linux.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import httpx2

from server.http import AGENT_PATH
from tests.bench.contest import CONSOLE_SCRIPT, BenchProblem, Server, process, scratch, started, wait_for
from tests.bench.load import cpu_of
from tests.bench.wire import HOST, KEY, LAST, LIMIT, TOOL, VERSION, message
from tests.installed import Place, add_org, make
from tests.ports import free_port

ACCOUNTS = (
    *("stripe", "github", "openai", "notion", "pagerduty"),
    *("linear", "anthropic", "sendgrid", "hubspot", "airtable"),
)
PEOPLE = 20
RULES = 20


@dataclass
class Crowd:
    """An installation of so many orgs, its server, and one agent's token for each org."""

    orgs: int
    home: Path
    server: Server
    tokens: Sequence[str]
    cpu_us: dict[str, list[float]] = field(default_factory=dict)


def settle(home: Path, orgs: int, base: str) -> list[str]:
    """Make the installation; returns a token for each org, of its last agent."""
    first = make(home, org="org-0")
    try:
        places = [first, *(add_org(first.installation, f"org-{number}") for number in range(1, orgs))]
        return [_furnish(place, base) for place in places]
    finally:
        first.installation.close()


def _furnish(place: Place, base: str) -> str:
    for connector in ACCOUNTS:
        place.connect(base, connector=connector, secret=KEY)
    for number in range(RULES):
        place.rule(who="everyone", tools=[f"stripe.create_{number}*"], then="approve")
    token = ""
    for number in range(PEOPLE):
        place.owner, owner = place.member(f"person-{number}"), place.owner
        token = place.agent(f"agent-{number}")
        place.owner = owner
    return token


@contextlib.contextmanager
def serving(home: Path, orgs: int, base: str) -> Iterator[Crowd]:
    """The installation, made and served."""
    tokens = settle(home, orgs, base)
    where = f"{HOST}:{free_port()}"
    with started("-c", CONSOLE_SCRIPT, "serve", "--http", where, KEYLEASH_HOME=str(home)) as running:
        server = Server(f"{orgs}", running, int(where.rpartition(":")[2]), AGENT_PATH, tokens[0])
        wait_for(server)
        yield Crowd(orgs, home, server, tokens)


ASKED = {
    "list": (message("tools/list"), {"Mcp-Method": "tools/list"}, b'"search_tools"'),
    "call": (
        message("tools/call", name=TOOL, arguments={"limit": LIMIT}),
        {"Mcp-Method": "tools/call", "Mcp-Name": TOOL},
        LAST,
    ),
}
"""The message, the headers that go with it, and what stands in an answer to it."""


def ask(crowd: Crowd, client: httpx2.Client, kind: str, times: int) -> None:
    """So many requests, by the orgs in turn; the server's CPU for each is noted. Raises BenchProblem."""
    body, headers, there = ASKED[kind]
    url = f"http://{HOST}:{crowd.server.port}{AGENT_PATH}"
    common = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
    }
    before = cpu_of(crowd.server.process.pid)
    for token in islice(cycle(crowd.tokens), times):
        answer = client.post(url, content=body, headers={**common, **headers, "Authorization": f"Bearer {token}"})
        if there not in answer.content:
            raise BenchProblem(f"a {kind} did not go well: {answer.content[:500]!r}")
    crowd.cpu_us.setdefault(kind, []).append((cpu_of(crowd.server.process.pid) - before) / times * 1e6)


def doctor(crowd: Crowd) -> float:
    """Seconds of CPU of `keyleash doctor`."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-c", CONSOLE_SCRIPT, "doctor"],
        env={**os.environ, "KEYLEASH_HOME": str(crowd.home)},
        stdout=subprocess.DEVNULL,
        check=False,  # what it finds is not the point
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def compare(folder: Path, orgs: int, *, rounds: int, times: int) -> dict[str, Any]:
    """The figures of one org alone and of many, and their ratios. Raises BenchProblem."""
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(process("tests.bench.upstream"))
        assert upstream.stdout is not None
        base = f"http://{HOST}:{int(upstream.stdout.readline())}"
        crowds = [stack.enter_context(serving(folder / str(each), each, base)) for each in (1, orgs)]
        client = stack.enter_context(httpx2.Client(timeout=60))
        for kind in ASKED:
            for crowd in crowds:
                ask(crowd, client, kind, max(times, len(crowd.tokens)))  # every org once, which does not count
                crowd.cpu_us[kind].clear()
            for _ in range(rounds):
                for crowd in crowds:
                    ask(crowd, client, kind, times)
        figures = [
            {
                "orgs": crowd.orgs,
                "memory_mb": round((crowd.server.memory or 0) / 1e6),
                **{f"cpu_us_per_{kind}": round(median(found)) for kind, found in crowd.cpu_us.items()},
                "doctor_cpu_s": round(doctor(crowd), 2),
            }
            for crowd in crowds
        ]
    one, many = figures
    return {"figures": figures, "ratios": {name: round(many[name] / one[name], 2) for name in one if name != "orgs"}}


def main() -> int:
    """Run it, print what came of it, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.teams", description="Many orgs beside one.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--orgs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--times", type=int, default=200, help="requests to each server in a round")
    given = parser.parse_args()
    try:
        with scratch() as folder:
            found = compare(Path(folder), given.orgs, rounds=given.rounds, times=given.times)
    except BenchProblem as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    for figures in found["figures"]:
        print("  ".join(f"{name}: {value}" for name, value in figures.items()))
    print(f"to one alone: {found['ratios']}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
