"""`python -m tests.bench --json FILE`: what a governed call costs beside an ungoverned one.

Keyleash over HTTP with its durable record; the yardstick, a bare `mcp` server on httpx2; the floor, the same on
Keyleash's own transport. Same load, same upstream, same answers, taking turns. The ratios are the result: absolute
figures are this machine's. Under two minutes, on Linux (CPU and memory of a process are read from the kernel).
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tests.bench.contest import BenchProblem, Plan, contest, install, scratch
from tests.bench.finding import finding
from tests.bench.report import table
from tests.bench.startup import startup


def bench(plan: Plan) -> dict[str, Any]:
    """Run the plan and return the report. Raises BenchProblem."""
    if sys.platform != "linux":
        raise BenchProblem("The benchmark reads CPU time and memory of processes as Linux has them. Run it there.")
    with scratch() as folder:
        results = contest(plan, Path(folder))
        install(home := Path(folder) / "stdio", "https://api.stripe.com")
        return {
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "results": results,
            "start_up": startup(home, plan.starts) if plan.starts else None,
            "finding": finding(Path(folder) / "finding", plan.copies) if plan.copies else None,
        }


def main() -> int:
    """Run it, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What a governed call costs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each server's turn in a round")
    parser.add_argument("--callers", type=int, nargs="+", default=Plan.callers, help="at once; a race for each number")
    given = parser.parse_args()
    try:
        report = bench(Plan(callers=tuple(given.callers), rounds=given.rounds, seconds=given.seconds))
    except BenchProblem as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(table(report))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
