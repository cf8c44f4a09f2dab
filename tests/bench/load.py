"""Callers that each wait for an answer before they call again, in a process of their own that costs next to nothing.

One job is one line of JSON on standard input, its tally one line on standard output. Ends with its standard input.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

from tests.bench.wire import HOST, LAST, tool_call

_HELD = b'"isError":true'
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Job:
    """Load one server for `seconds`, after `warm_s` that do not count. `pid` is the server's.

    On a machine that is busy with other things it may take longer: until there are as many answers as callers.

    Before all that, each caller connects and is answered once: a busy server takes new connections one at a time.
    """

    port: int
    path: str
    token: str
    pid: int
    callers: int
    warm_s: float
    seconds: float


@dataclass
class Tally:
    """What was seen. `cpu_s` is user and system time of the server's whole process; `latencies` are in seconds."""

    calls: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    answer: str = ""
    problem: str = ""


def cpu_of(pid: int) -> float:
    """User and system seconds of a whole process, to the nanosecond: clock_getcpuclockid(3) of Linux."""
    return time.clock_gettime((~pid << 3) | 2)


class Caller(asyncio.Protocol):
    """One keep-alive connection, which is one caller."""

    def __init__(self, job: Job, tally: Tally, over: asyncio.Event) -> None:
        self._request = tool_call(job.port, job.path, job.token)
        self._tally, self._over = tally, over
        self.met = asyncio.get_running_loop().create_future()
        self._received = b""
        self._wanted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.call()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._wanted and b"\r\n\r\n" in self._received:
            head, _, body = self._received.partition(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            if not head.startswith(b"HTTP/1.1 200 ") or not length.strip().isdigit():
                self._stop(f"the server answered {head + body!r}")
                return
            self._wanted = len(head) + 4 + int(length)
        if self._wanted and len(self._received) >= self._wanted:
            self._answered()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.is_set():
            self._stop("the server closed the connection")

    def call(self) -> None:
        """Send the request; the answer is followed by the next call, but for the first one."""
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def _answered(self) -> None:
        took = time.perf_counter() - self._began
        if LAST not in self._received or _HELD in self._received:
            self._stop(f"the call did not go well: {self._received!r}")
            return
        tally = self._tally
        tally.calls += 1
        tally.latencies.append(took)
        tally.answer = tally.answer or self._received.partition(b"\r\n\r\n")[2].decode()
        self._received, self._wanted = b"", 0
        if not self.met.done():
            self.met.set_result(None)
        elif self._over.is_set():
            self._transport.close()
        else:
            self.call()

    def _stop(self, problem: str) -> None:
        self._tally.problem = self._tally.problem or problem[:2000]
        self._over.set()
        if not self.met.done():
            self.met.set_result(None)
        self._transport.close()


async def run(job: Job) -> Tally:
    """Connect the callers, let them warm up, then count."""
    loop = asyncio.get_running_loop()
    tally, over = Tally(), asyncio.Event()
    connected = [
        await loop.create_connection(lambda: Caller(job, tally, over), HOST, job.port) for _ in range(job.callers)
    ]
    _, unanswered = await asyncio.wait([caller.met for _, caller in connected], timeout=_PATIENCE_S)
    if unanswered:
        tally.problem = tally.problem or "a first call was never answered"
    if tally.problem:
        return tally
    for _, caller in connected:
        caller.call()
    await _unless(over, job.warm_s)
    tally.calls, tally.latencies = 0, []
    started, cpu = time.perf_counter(), cpu_of(job.pid)
    await _unless(over, job.seconds)
    late = started + job.seconds + _PATIENCE_S
    while tally.calls < job.callers and not over.is_set() and time.perf_counter() < late:
        await _unless(over, 0.01)
    tally.cpu_s, tally.seconds = cpu_of(job.pid) - cpu, time.perf_counter() - started
    calls, latencies = tally.calls, list(tally.latencies)
    over.set()
    deadline = loop.time() + _PATIENCE_S
    while any(not transport.is_closing() for transport, _ in connected):
        if loop.time() > deadline:
            tally.problem = tally.problem or "a call was never answered"
            break
        await asyncio.sleep(0.005)
    tally.calls, tally.latencies = calls, latencies
    return tally


async def _unless(over: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(over.wait(), seconds)
    except TimeoutError:
        return


async def main() -> None:
    """Do one job after the other."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await run(Job(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
