"""`python -m tests.bench.profile`: where the CPU of a governed call goes, by what it is spent for.

The server is looked at again and again as its CPU runs, while 50 callers keep it busy. What a library does is put down
to the file of ours that called it, and what none of ours called to the protocol, which carries the request in and the
answer out. What threads wait for on the disk is in no row. A quarter of a minute, on Linux.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from server.http import AGENT_PATH
from tests.bench.contest import (
    CONSOLE_SCRIPT,
    ROOT,
    START_S,
    BenchProblem,
    Server,
    install,
    one_job,
    process,
    scratch,
    started,
    wait_for,
)
from tests.bench.load import Job
from tests.bench.wire import HOST
from tests.ports import free_port

EVERY_S = 0.001
WATCHED = f"from tests.bench.profile import watch; watch(); {CONSOLE_SCRIPT}"
VARIABLE = "KEYLEASH_BENCH_PROFILE"

PROTOCOL, REST = "the protocol: HTTP, the SDK, JSON in and out", "the path itself, pace and telemetry"
PARTS: Mapping[str, tuple[str, ...]] = {
    PROTOCOL: ("server/protocol.py", "server/http.py", "server/cli/", "server/app.py"),
    "the call upstream: request, authentication, transport": (
        *("connectors/egress.py", "connectors/departure.py", "connectors/bounded.py", "connectors/request.py"),
        *("connectors/auth.py", "connectors/addresses.py"),
    ),
    "the record: two entries, usage, the call kept for replay": (
        *("server/audit/", "server/recording.py", "server/onrecord.py", "server/recorded.py", "server/usage.py"),
        *("server/sqlite.py", "server/postgres.py", "server/clock.py", "server/spending.py"),
    ),
    "the answer: scrubbed, selected, spelt": (
        *("connectors/answer.py", "connectors/scrub.py", "connectors/selecting.py", "connectors/portions.py"),
        *("connectors/loading.py", "connectors/definition.py"),
    ),
    "who calls, what, and what the rules say": (
        *("server/identity.py", "server/narrowing.py", "server/connections.py", "server/reach.py", "server/policy.py"),
        *("server/binding.py", "server/bound.py", "connectors/catalogue.py", "server/requiring.py"),
    ),
    "the vault": ("vault/", "server/keys.py", "server/credential.py"),
}
"""The files whose time each row is; `REST` is what is in none."""


@dataclass(frozen=True)
class Profile:
    """How often the server was seen in each file of ours, and what a call cost it."""

    seen: Mapping[str, int]
    cpu_us: float

    def shares(self) -> dict[str, float]:
        """The share of each row, the largest first."""
        rows: Counter[str] = Counter(dict.fromkeys((*PARTS, REST), 0))
        for file, times in self.seen.items():
            rows[next((part for part, files in PARTS.items() if file.startswith(files)), REST)] += times
        return {part: times / rows.total() for part, times in rows.most_common()}


def watch() -> None:
    """In the server: look where it is as its CPU runs. At SIGUSR1 begin anew, at SIGUSR2 write down what was seen."""
    seen: Counter[str] = Counter()

    def look(_number: int, frame: FrameType | None) -> None:
        seen[_file(frame)] += 1

    def begin(_number: int, _frame: FrameType | None) -> None:
        seen.clear()

    def write(_number: int, _frame: FrameType | None) -> None:
        target = Path(os.environ[VARIABLE])
        target.with_suffix(".part").write_text(json.dumps(seen))
        target.with_suffix(".part").rename(target)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, write)
    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)


def _file(frame: FrameType | None) -> str:
    """The innermost file of ours that the interpreter is busy for."""
    root = f"{ROOT}{os.sep}"
    while frame is not None:
        path = frame.f_code.co_filename.removeprefix(root)
        if path.startswith(("server/", "connectors/", "vault/")):
            return path
        frame = frame.f_back
    return PARTS[PROTOCOL][0]


def profile(folder: Path, callers: int, seconds: float) -> Profile:
    """Look at a server under that load. Raises BenchProblem."""
    with ExitStack() as stack:
        load = stack.enter_context(process("tests.bench.load"))
        upstream = stack.enter_context(process("tests.bench.upstream"))
        assert upstream.stdout is not None
        home, told = folder / "home", folder / "seen.json"
        token = install(home, f"http://{HOST}:{int(upstream.stdout.readline())}")
        where = f"{HOST}:{free_port()}"
        environment = {"KEYLEASH_HOME": str(home), VARIABLE: str(told)}
        running = stack.enter_context(started("-c", WATCHED, "serve", "--http", where, **environment))
        server = Server("keyleash", running, int(where.rpartition(":")[2]), AGENT_PATH, token)
        wait_for(server)
        job = Job(server.port, server.path, token, running.pid, callers, seconds / 4, seconds)
        one_job(load, job)  # so that nothing is looked at that happens once
        running.send_signal(signal.SIGUSR1)
        tally = one_job(load, job)
        if tally.problem or not tally.calls:
            raise BenchProblem(tally.problem or "no call was answered in the time given")
        running.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + START_S
        while not told.exists():
            if time.monotonic() > deadline:
                raise BenchProblem("the server has not said what was seen of it")
            time.sleep(0.02)
        return Profile(json.loads(told.read_text()), tally.cpu_s / tally.calls * 1e6)


def main() -> int:
    """Look, and print the rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description="Where a call's CPU goes.")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--files", action="store_true", help="file by file too")
    given = parser.parse_args()
    if sys.platform != "linux":
        print("bench: CPU is read as Linux has it. Run it there.", file=sys.stderr)
        return 1
    try:
        with scratch() as folder:
            found = profile(Path(folder), given.callers, given.seconds)
    except BenchProblem as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    print(f"{found.cpu_us:.0f} us of CPU a call with {given.callers} callers; seen {sum(found.seen.values())} times")
    for part, share in found.shares().items():
        print(f"  {share:5.1%}  {part}")
    for file, times in Counter(found.seen).most_common() if given.files else ():
        print(f"    {times / sum(found.seen.values()):5.1%}  {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
