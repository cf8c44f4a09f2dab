"""MCP servers that others wrote, over stdio: imported by the command, reviewed, connected, called by a real client."""

import json
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.agents import ERAS
from tests.real.fetching import Cache, node
from tests.real.governed import Org, org, text_of
from tests.real.report import Report, expect
from tests.real.wrapped import EVERYTHING, GIT, TIME, program, repository


async def check(report: Report, cache: Cache) -> None:
    """Everything, git and time."""
    script = cache.npm(*EVERYTHING) / "dist" / "index.js"
    await _wrapped(report, "everything", [node(), str(script), "stdio"], "echo", {"message": "hello"}, "hello")
    clock = program(cache.pip(*TIME), "mcp_server_time")
    await _wrapped(report, "time", clock, "get_current_time", {"timezone": "Asia/Tokyo"}, "Asia/Tokyo")
    with tempfile.TemporaryDirectory(prefix="keyleash-real-") as folder:
        repository(Path(folder))
        git = program(cache.pip(*GIT), "mcp_server_git", "--repository", folder)
        await _wrapped(report, "git", git, "git_status", {"repo_path": folder}, "On branch")


async def _wrapped(
    report: Report, name: str, command: list[str], tool: str, arguments: dict[str, Any], expected: str
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


def _imported(made: Org, name: str, command: list[str]) -> str:
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
