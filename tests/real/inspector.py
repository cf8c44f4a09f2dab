"""The MCP Inspector's command line, a client that we have not written, against `keyleash serve` over HTTP and stdio.

It cannot answer a question, so what it shows of a call that needs a person is that the call is held.
"""

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.commandline import MAIN
from tests.real.fetching import Cache, node
from tests.real.governed import AGENT, Org, org
from tests.real.report import Report, expect
from tests.upstream import Answer, Received, Upstream

VERSION = "2.12.0"
KEY = "rk_test_canary8Jq2vXw0Zr5TnYb7LdKe"
ERAS = ("modern", "legacy")
PATIENCE_S = 60.0
TOOL_FAILED = 5  # the Inspector's exit code for a result that is an error


async def check(report: Report, cache: Cache) -> None:
    """Both eras over both transports."""
    script = cache.npm("@modelcontextprotocol/inspector", VERSION) / "clients/launcher/build/index.js"
    with Upstream(KEY) as upstream, org() as made:
        upstream.answer = _answer
        for connector in ("stripe", "github", "slack", "openai", "anthropic", "notion"):
            made.connect(connector, upstream.url, KEY if connector == "stripe" else FAKE[connector], verify=False)
        with made.serving() as address:
            header = f"Authorization: Bearer {made.token}"
            over_http = Inspector(script, ("--transport", "http", "--header", header, "--server-url", address))
            for era in ERAS:
                await _reads(report, over_http, f"HTTP, {era}", era)
                await _waits(report, over_http, f"HTTP, {era}", era, upstream)
        for era in ERAS:
            await _reads(report, Inspector(script, (), _command(made)), f"stdio, {era}", era)


FAKE = {
    "github": "github_pat_1234567890",
    "slack": "xoxb-1234567890-abcdefghij",
    "openai": "sk-proj-1234567890abcdefghij",
    "anthropic": "sk-ant-api03-1234567890abcdefghij",
    "notion": "ntn_1234567890abcdefghij",
}


def _answer(request: Received) -> Answer:
    return Answer({"data": [{"id": "ch_1", "amount": 1200}], "has_more": False})


@dataclass(frozen=True)
class Ran:
    """What the Inspector came to."""

    code: int
    result: Any
    err: str


@dataclass(frozen=True)
class Inspector:
    """Its command line, pointed at a server."""

    script: Path
    where: tuple[str, ...]
    command: tuple[str, ...] = ()

    async def __call__(self, era: str, *arguments: str) -> Ran:
        """Run one method; `result` is what the server answered."""
        with tempfile.TemporaryDirectory() as home:
            process = await asyncio.create_subprocess_exec(
                *(node(), str(self.script), "--cli", *self.where),
                *("--protocol-era", era, "--format", "json", "--quiet", *arguments),
                *(("--", *self.command) if self.command else ()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "HOME": home},
            )
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        return Ran(process.returncode or 0, json.loads(out)["result"] if out.strip() else None, err.decode())


def _command(made: Org) -> tuple[str, ...]:
    """`keyleash serve --agent`, with its environment: the Inspector passes on only what it is told."""
    environment = [f"{name}={value}" for name, value in made.line.environment.items()]
    return ("env", "-i", *environment, sys.executable, "-c", MAIN, "serve", "--agent", AGENT)


async def _reads(report: Report, inspector: Inspector, how: str, era: str) -> None:
    with report.line(f"lists the tools of all six connectors, and finds no fault in a schema ({how})"):
        ran = await inspector(era, "--method", "tools/list", "--strict")
        expect(ran.code == 0, f"exit {ran.code}: {ran.err}")
        names = {tool["name"] for tool in ran.result["tools"]}
        expect({"stripe_create_refund", "github_get_issue", "notion_search"} <= names, f"{len(names)} tools: {names}")
    with report.line(f"reads ({how})"):
        ran = await inspector(
            era, "--method", "tools/call", "--tool-name", "stripe_list_charges", "--tool-arg", "limit=1"
        )
        expect(ran.code == 0, f"exit {ran.code}: {ran.err}")
        expect(ran.result["structuredContent"]["charges"][0]["id"] == "ch_1", str(ran.result))


async def _waits(report: Report, inspector: Inspector, how: str, era: str, upstream: Upstream) -> None:
    with report.line(f"is told that a refund waits for a person ({how})"):
        before = len(upstream.requests)
        refund = ("--tool-name", "stripe_create_refund", "--tool-arg", "charge=ch_1")
        ran = await inspector(era, "--method", "tools/call", *refund)
        expect(ran.code == TOOL_FAILED, f"exit {ran.code}: {ran.err}")
        expect(ran.result["structuredContent"]["approval"]["status"] == "pending", str(ran.result))
        expect(len(upstream.requests) == before, "something was sent")
