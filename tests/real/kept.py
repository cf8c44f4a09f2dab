"""Servers that keep a state and that others wrote, in kept conversations: a browser, and a chain of thoughts."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import anyio

from tests.agents import ERAS
from tests.installed import files_holding
from tests.real.fetching import Cache, node
from tests.real.governed import Org, org, text_of
from tests.real.report import CannotRun, Report, expect
from tests.real.wrapped import Agent, agent_at, definitions_of, file_for, write

THINKING = ("@modelcontextprotocol/server-sequential-thinking", "2026.8.31")
BROWSER = ("@playwright/mcp", "0.0.83")
CANARY = "thinking_canary_nobody_may_read_this_53"
TIMES = 7
"""Of how many calls the middle one is taken."""


async def check(report: Report, cache: Cache) -> None:
    """State is kept for one agent, for no other, and ends with what it belongs to."""
    with org() as made:
        thinking = [node(), str(cache.npm(*THINKING) / "dist" / "index.js")]
        signed = {"key": {"label": "Key", "help": "None.", "scheme": "env", "name": "THINKING_KEY"}}
        for name, more in (("thinking", {"keep": "10m"}), ("thinking_new", {})):
            found = await definitions_of({"command": thinking})
            write(made, name, file_for(name, {"command": thinking, "credentials": signed, **more}, found))
            made.run("connect", name, "--secret-stdin", stdin=f"{CANARY}\n")
        browser = await _browser(report, made, cache)
        second = replace(made, token=json.loads(made.run("agent", "create", "second", "--json"))["token"])
        heard: list[str] = []
        with _site() as site, made.serving() as address:
            for era in ERAS:
                async with agent_at(made, address, era) as agent, agent_at(second, address, era) as other:
                    await _thoughts(report, agent, other, era, heard)
                    if browser:
                        await _pages(report, agent, other, site, era)
            async with agent_at(made, address, "auto") as agent:
                await _killed(report, agent, thinking[-1])
                await _ratio(report, agent)
                await _removed(report, made, agent, thinking[-1])
        with report.line("nothing that was started is left, and the secret is nowhere"):
            await _until(lambda: not _running(thinking[-1]) and not _running(str(cache.folder)))
            expect(not any(CANARY in text for text in heard), "an answer holds it")
            expect(files_holding(made.line.home, CANARY.encode()) == [], "a file holds it")


async def _browser(report: Report, made: Org, cache: Cache) -> bool:
    with report.line("browser: every tool is listed, pinned and offered") as notes:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        if chromium is None:
            raise CannotRun("there is no chromium on this machine")
        cli = cache.npm(*BROWSER) / "cli.js"
        command = [node(), str(cli), "--headless", "--isolated", "--no-sandbox", "--executable-path", chromium]
        found = await definitions_of({"command": command})
        wanted = [each for each in found if each.name in ("browser_navigate", "browser_snapshot", "browser_click")]
        write(made, "browser", file_for("browser", {"command": command, "keep": "10m"}, wanted))
        made.run("connect", "browser")
        notes.append(f"{len(found)} tools")
        return True
    return False


async def _thoughts(report: Report, agent: Agent, other: Agent, era: str, heard: list[str]) -> None:
    with report.line(f"thinking: each agent's thoughts are counted for it alone, both at once ({era})"):
        lengths: dict[str, list[int]] = {"one": [], "two": []}

        async def think(who: str, at: Agent) -> None:
            for number in range(1, 4):
                said = await _thought(at, "thinking", number)
                heard.append(said)
                lengths[who].append(_length(said))

        async with anyio.create_task_group() as group:
            group.start_soon(think, "one", agent)
            group.start_soon(think, "two", other)
        for got in lengths.values():
            first = got[0]
            expect(got == [first, first + 1, first + 2], str(lengths))
    with report.line(f"thinking: without `keep` each thought is the first ({era})"):
        said = [_length(await _thought(agent, "thinking_new", 1)) for _ in range(2)]
        expect(said == [1, 1], str(said))


async def _thought(agent: Agent, connection: str, number: int) -> str:
    given = {"thought": "x", "nextThoughtNeeded": True, "thoughtNumber": number, "totalThoughts": 9}
    result = await agent(f"{connection}_sequentialthinking", **given)
    expect(not result.is_error, text_of(result))
    return text_of(result)


def _length(said: str) -> int:
    found = re.search(r"thoughtHistoryLength\W+(\d+)", said)
    expect(found, said)
    return int(found[1]) if found else 0


async def _pages(report: Report, agent: Agent, other: Agent, site: str, era: str) -> None:
    with report.line(f"browser: a page stays open from call to call, for its agent alone ({era})") as notes:
        opened = await agent("browser_browser_navigate", url=f"{site}/first")
        expect(not opened.is_error, text_of(opened))
        began = time.monotonic()
        seen = text_of(await agent("browser_browser_snapshot"))
        notes.append(f"{time.monotonic() - began:.1f} s for a look at it")
        expect("First page" in seen, seen)
        theirs = text_of(await other("browser_browser_snapshot"))
        expect("First page" not in theirs, theirs)
        await other("browser_browser_navigate", url=f"{site}/second")
        again = text_of(await agent("browser_browser_snapshot"))
        expect("First page" in again and "Second page" not in again, again)


async def _killed(report: Report, agent: Agent, program: str) -> None:
    with report.line("thinking: killed between two calls, it is begun anew, and the model is told"):
        await _thought(agent, "thinking", 1)
        for pid in _running(program):
            os.kill(pid, signal.SIGKILL)
        said = await _thought(agent, "thinking", 1)
        expect(_length(said) == 1, said)
        expect("A new conversation with Thinking was begun" in said, said)


async def _ratio(report: Report, agent: Agent) -> None:
    with report.line("a call in a kept conversation, against one that has its own") as notes:
        took: Mapping[str, list[float]] = {"thinking": [], "thinking_new": []}
        for _ in range(TIMES):
            for connection, times in took.items():
                began = time.monotonic()
                await _thought(agent, connection, 1)
                times.append(time.monotonic() - began)
        kept, new = (statistics.median(times) for times in took.values())
        expect(kept < new, f"{kept:.3f} s and {new:.3f} s")
        notes.append(
            f"{kept / new:.3f} of its time ({kept * 1000:.0f} ms and {new * 1000:.0f} ms, the middle of {TIMES})"
        )


async def _removed(report: Report, made: Org, agent: Agent, program: str) -> None:
    with report.line("thinking: it ends with its connection, without a further call"):
        await _thought(agent, "thinking", 1)
        expect(_running(program), "it runs")
        made.run("connection", "remove", "thinking", "--yes")
        await _until(lambda: not _running(program))


def _running(text: str) -> list[int]:
    """The processes with this in their command line, other than this one."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 1) for line in listed.splitlines()[1:] if text in line]
    return [int(pid) for pid, _ in found if int(pid) != os.getpid()]


async def _until(true: Callable[[], Any]) -> None:
    with anyio.fail_after(30):
        while not true():  # noqa: ASYNC110 - what other processes do has no event here
            await anyio.sleep(0.05)


class _Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"<h1>{'First' if self.path == '/first' else 'Second'} page</h1>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Nothing: who looks is seen by what it says."""


@contextlib.contextmanager
def _site() -> Iterator[str]:
    """Two pages on loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
