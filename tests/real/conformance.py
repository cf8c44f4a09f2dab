"""The official conformance suite against our real server, with a fixture connector in place of an account.

The suite calls tools by fixed names, sends no token, and asks for prompts, resources and much else that Keyleash does
not have. So it runs here scenario by scenario: those about what we have, each with an agent of its own, and the rest is
named. The tools that ask a person are ours: the suite gets the question that an approval asks.
"""

import asyncio
import json
import logging
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from server.app import Installation, http_door, open_installation, running
from server.http import AGENT_PATH
from server.settings import Settings
from tests.installed import Place
from tests.real.emulators import HOST
from tests.real.fetching import Cache, node
from tests.real.governed import org
from tests.real.report import CannotRun, Report, Wrong
from tests.upstream import Answer, Received, Upstream

VERSION = "0.2.0-alpha.12"
KEY = "fixture-canary8Jq2vXw0Zr5TnYb7LdKe"
PATIENCE_S = 60.0
READS = ("simple_text", "error_handling")
ASKS = tuple(f"input_required_result_{each}" for each in ("elicitation", "request_state", "tampered_state"))
APPLIES: dict[str, tuple[str, ...]] = {
    "2026-07-28": (
        "server-stateless",
        "tools-list",
        "tools-call-simple-text",
        "tools-call-error",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
        "caching",
        "http-header-validation",
        "input-required-result-request-state",
        "input-required-result-missing-input-response",
        "input-required-result-result-type",
        "input-required-result-unsupported-methods",
        "input-required-result-tampered-state",
        "input-required-result-ignore-extra-params",
        "input-required-result-validate-input",
    ),
    "2025-11-25": (
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "tools-call-simple-text",
        "tools-call-error",
        "server-sse-multiple-streams",
        "dns-rebinding-protection",
    ),
}
NOT_OURS = {
    "sep-2575-server-rejects-undeclared-capability": "no tool of ours needs sampling",
    "sep-2575-missing-capability-http-400": "no tool of ours needs sampling",
    "sep-2575-http-server-no-independent-requests-on-stream": "no tool of ours sends progress",
    "sep-2575-server-no-log-without-loglevel": "no tool of ours logs to the client",
    "sep-2549-prompts-list-caching-hints": "there are no prompts",
    "sep-2549-resources-list-caching-hints": "there are no resources",
    "sep-2549-resources-templates-list-caching-hints": "there are no resources",
}
"""Checks inside those scenarios that ask for something Keyleash does not have."""
REST = (
    "prompts, resources and completion",
    "images, audio and embedded resources in results",
    "progress, logging and sampling by a tool",
    "elicitation and input requests of a tool's own wording",
    "schemas with references and anchors, and x-mcp-header",
    "tasks",
)


async def check(report: Report, cache: Cache) -> None:
    """Each scenario that applies is a line."""
    logging.getLogger("mcp").setLevel(logging.ERROR)  # it warns of what the suite does on purpose
    suite = Suite(cache.npm("@modelcontextprotocol/conformance", VERSION) / "dist" / "index.js")
    with Upstream(KEY) as upstream, org() as made:
        upstream.answer = _answer
        folder = made.line.home / "data" / "connectors"
        folder.mkdir(exist_ok=True)
        (folder / "fixture.yaml").write_text(json.dumps(_fixture()))
        made.connect("fixture", upstream.url, KEY, verify=False, name="test")
        installation = open_installation(Settings(home=made.line.home, hold_seconds=0))
        directory = installation.directory
        organisation = directory.org(None).id
        place = Place(installation, organisation, directory.members(organisation)[0])
        async with _served(installation) as door:
            for revision, scenarios in APPLIES.items():
                for number, scenario in enumerate(scenarios):
                    door.token = place.agent(f"agent-{revision}-{number}")
                    with report.line(f"{revision}: {scenario}"):
                        await suite.run(door.url, revision, scenario)
        installation.close()
    for what in REST:
        with report.line(what):
            raise CannotRun("Keyleash does not have it")


def _fixture() -> dict[str, Any]:
    """A connector whose tools have the names that the suite calls, once they are connected as `test`."""
    common = {"title": "A fixture", "description": "A fixture of the conformance suite."}
    reads = {name: {**common, "call": f"GET /{name}", "effect": "read"} for name in READS}
    asks = {name: {**common, "call": f"POST /{name}", "effect": "write", "ask": "Run a fixture"} for name in ASKS}
    return {
        "id": "fixture",
        "title": "Fixture",
        "help": "https://fixture.example",
        "base_url": "https://fixture.example",
        "credentials": {"key": {"label": "key", "help": "Any.", "scheme": "bearer"}},
        "verify": {"call": "GET /"},
        "tools": reads | asks,
    }


def _answer(request: Received) -> Answer:
    if request.target == "/error_handling":
        return Answer({"message": "intended"}, status=500)
    return Answer({"text": "This is a simple text response for testing."})


@dataclass
class WithToken:
    """In front of the real door: the suite cannot send a token, so this adds one."""

    door: Any
    url: str = ""
    token: str = ""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            token = (b"authorization", f"Bearer {self.token}".encode())
            scope = {**scope, "headers": [*scope["headers"], token]}
        await self.door(scope, receive, send)


@asynccontextmanager
async def _served(installation: Installation) -> AsyncIterator[WithToken]:
    with socket.create_server((HOST, 0)) as listening:
        async with running(installation) as parts:
            door = WithToken(http_door(installation, parts, host=HOST))
            door.url = f"http://localhost:{listening.getsockname()[1]}{AGENT_PATH}"
            server = uvicorn.Server(uvicorn.Config(door, log_config=None, access_log=False))  # type: ignore[arg-type]
            task = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started:  # noqa: ASYNC110 - uvicorn has a flag and no event
                await asyncio.sleep(0)
            try:
                yield door
            finally:
                server.should_exit = True
                await task


@dataclass(frozen=True)
class Suite:
    """The suite's command line."""

    script: Path

    async def run(self, url: str, revision: str, scenario: str) -> None:
        """Run one scenario. Raises Wrong with the checks that failed, CannotRun where none was made."""
        with tempfile.TemporaryDirectory() as folder:
            process = await asyncio.create_subprocess_exec(
                *(node(), str(self.script), "server", "--url", url, "--scenario", scenario),
                *("--spec-version", revision, "--output-dir", folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
            checks = _checks(Path(folder))
        if not checks:
            raise Wrong(f"the suite made no checks: {out.decode(errors='replace')[-300:]}")
        failed = [each for each in checks if each["status"] == "FAILURE" and each["id"] not in NOT_OURS]
        if failed:
            raise Wrong("; ".join(f"{each['id']}: {each.get('errorMessage', '')}" for each in failed))


def _checks(folder: Path) -> list[dict[str, Any]]:
    return [each for file in folder.rglob("checks.json") for each in json.loads(file.read_bytes())]
