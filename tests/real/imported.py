"""MCP servers that others wrote, over stdio: imported by the command, reviewed, connected, called by a real client."""

import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.real.fetching import Cache, node
from tests.real.governed import Org, org, text_of
from tests.real.report import Report, expect

EVERYTHING, REFERENCE = "2026.8.31", "2026.10.19"
ERAS = ("auto", "legacy")
_GIT = "import sys, git, pathlib; r = git.Repo.init(sys.argv[1]); pathlib.Path(sys.argv[1], 'new.txt').write_text('x')"


async def check(report: Report, cache: Cache) -> None:
    """Everything, git and time."""
    script = cache.npm("@modelcontextprotocol/server-everything", EVERYTHING) / "dist" / "index.js"
    echoed = {"message": "hello"}
    await _wrapped(report, "everything", (node(), str(script), "stdio"), "echo", echoed, "hello")
    time = cache.environment(f"mcp-server-time=={REFERENCE}") / "python"
    zone = {"timezone": "Asia/Tokyo"}
    await _wrapped(report, "time", (str(time), "-m", "mcp_server_time"), "get_current_time", zone, "Asia/Tokyo")
    git = cache.environment(f"mcp-server-git=={REFERENCE}") / "python"
    with tempfile.TemporaryDirectory(prefix="keyleash-real-") as folder:
        await anyio.run_process([str(git), "-c", _GIT, folder])
        command = (str(git), "-m", "mcp_server_git", "--repository", folder)
        await _wrapped(report, "git", command, "git_status", {"repo_path": folder}, "new.txt")


async def _wrapped(
    report: Report, name: str, command: tuple[str, ...], tool: str, arguments: dict[str, Any], expected: str
) -> None:
    with org() as made:
        with report.line(f"{name}: every tool is imported, or named with its reason") as notes:
            notes.append(_imported(made, name, command))
        with report.line(f"{name}: called by a real client, in both eras"):
            made.run("connect", name)
            made.run("policy", "add", "--who", "everyone", "--tools", f"{name}.*", "--then", "allow")
            with made.serving() as url:
                for era in ERAS:
                    async with _client(url, made.token, era) as client:
                        result = await client.call_tool(f"{name}_{tool}", arguments)
                        said = text_of(result)
                        expect(not result.is_error and expected in said, f"{tool} in {era}: {said}")
        with report.line(f"{name}: what is found is what was pinned"):
            expect('"held": []' in made.run("connection", "test", name, "--json"), "a tool is held")


def _imported(made: Org, name: str, command: tuple[str, ...]) -> str:
    found = json.loads(made.run("connector", "import-mcp", "--id", name, "--all", "--json", "--", *command))
    file = Path(found["file"])
    made.run("connector", "check", str(file))
    text = file.read_text(encoding="utf-8")
    expect("reviewed: false" in text, "it says that it was reviewed")
    file.write_text(text.replace("reviewed: false", "reviewed: true"), encoding="utf-8")
    left = "; ".join(f"{one['tool']} left out: {re.sub(r'[.]$', '', one['why'])}" for one in found["left_out"])
    return f"{len(found['tools'])} tools{f', {left}' if left else ''}"


@asynccontextmanager
async def _client(url: str, token: str, era: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http), mode=era) as client,
    ):
        yield client
