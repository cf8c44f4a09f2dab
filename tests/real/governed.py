"""The whole of Keyleash, as people run it: its commands, its server in a process of its own, and a real MCP client."""

import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as t
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from connectors.catalogue import Catalogue, shipped_folder
from server.http import AGENT_PATH
from tests.commandline import MAIN, CommandLine
from tests.installed import files_holding
from tests.ports import free_port
from tests.real.emulators import HOST, started
from tests.real.report import CannotRun, Wrong, expect
from tests.upstream import Upstream

AGENT = "reconciler"


@dataclass
class Person:
    """Who sits at the client: answers every question in the same way, and remembers them."""

    decision: str | None = "approve"
    asked: list[str] = field(default_factory=list)

    async def answer(self, _context: Any, params: t.ElicitRequestParams) -> t.ElicitResult:
        self.asked.append(params.message)
        if self.decision is None:
            return t.ElicitResult(action="decline")
        return t.ElicitResult(action="accept", content={"decision": self.decision})


@dataclass(frozen=True)
class Org:
    """An org with one agent."""

    line: CommandLine
    token: str

    def run(self, *arguments: str, stdin: str = "") -> str:
        """What the command prints; raises Wrong where it fails."""
        ran = self.line.alone(*arguments, stdin=stdin.encode())
        expect(ran.code == 0, f"keyleash {' '.join(arguments[:3])}: {ran.err or ran.out}")
        return ran.out

    def connect(self, connector: str, url: str, secret: str, *, verify: bool = True, name: str = "") -> dict[str, Any]:
        """`keyleash connect`, with the credential tried before it is stored."""
        more = [*(() if verify else ("--no-verify",)), *(("--name", name) if name else ())]
        where = ["--secret-stdin", "--base-url", url, "--allow-private", f"{HOST}/32", "--json"]
        made: dict[str, Any] = json.loads(self.run("connect", connector, *where, *more, stdin=secret))
        return made

    def record(self) -> list[dict[str, Any]]:
        """Every entry of the audit log, from an export that has been verified."""
        file = self.line.home / f"{time.monotonic_ns()}.jsonl"
        self.run("audit", "export", "--format", "jsonl", "--output", str(file))
        self.run("audit", "verify", "--export", str(file))
        return [json.loads(line)["entry"] for line in file.read_text().splitlines()[1:]]

    @contextmanager
    def serving(self) -> Iterator[str]:
        """`keyleash serve --http`; yields the address for agents."""
        port = free_port()
        command = [sys.executable, "-c", MAIN, "serve", "--http", f"{HOST}:{port}"]
        with started(command, port, cwd=str(self.line.person), env=self.line.environment) as url:
            yield url + AGENT_PATH


@contextmanager
def org() -> Iterator[Org]:
    """A new installation in a temporary folder, made by the commands of the README."""
    with tempfile.TemporaryDirectory(prefix="keyleash-real-") as folder:
        person = Path(folder) / "person"
        person.mkdir()
        line = CommandLine(Path(folder) / "home", person)
        made = Org(line, "")
        made.run("init", "--org", "acme", "--root", "file")
        token = json.loads(made.run("agent", "create", AGENT, "--json"))["token"]
        yield Org(line, token)


@dataclass
class Agent:
    """An MCP client at work, and what it has called."""

    client: Client
    connection: str
    person: Person
    upstream: Upstream
    called: set[str] = field(default_factory=set)
    heard: list[str] = field(default_factory=list)
    already: int = 0

    def __post_init__(self) -> None:
        self.already = len(self.upstream.requests)

    @property
    def sent(self) -> int:
        """How many requests have reached the service since this client came."""
        return len(self.upstream.requests) - self.already

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> t.CallToolResult:
        """Call a tool of the connection."""
        self.called.add(tool)
        result = await self.client.call_tool(f"{self.connection}_{tool}", dict(arguments or {}))
        self.heard.append(result.model_dump_json())
        return result

    async def get(self, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call a tool that has to work; its structured answer."""
        result = await self.call(tool, arguments)
        if result.is_error:
            raise Wrong(f"{tool}: {text_of(result)}")
        return result.structured_content or {}

    async def refused(self, tool: str, arguments: Mapping[str, Any] | None = None) -> str:
        """Call a tool that has to fail; what the model reads."""
        result = await self.call(tool, arguments)
        expect(result.is_error, f"{tool}: it went through")
        return text_of(result)

    async def if_there(self, service: str, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call a tool that the service may not have; raises CannotRun with what it said."""
        before = self.sent
        result = await self.call(tool, arguments)
        expect(self.sent == before + 1, f"{tool}: it was not sent, and the agent reads: {text_of(result)}")
        if result.is_error:
            raise CannotRun(f"{service} does not do this; the agent reads: {text_of(result)}")
        return result.structured_content or {}


@asynccontextmanager
async def agent(
    url: str, token: str, connection: str, upstream: Upstream, *, era: str = "auto"
) -> AsyncIterator[Agent]:
    """A real MCP client of this era over HTTP, with a person who approves."""
    person = Person()
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http,
        Client(streamable_http_client(url, http_client=http), mode=era, elicitation_callback=person.answer) as client,
    ):
        yield Agent(client, connection, person, upstream)


def kept(made: Org, at_work: Agent, secret: str) -> None:
    """Raise Wrong unless the key was in every request and nowhere else, and the record has all calls and verifies."""
    keys = {request.headers.get("authorization") for request in at_work.upstream.requests}
    expect(keys == {f"Bearer {secret}"}, "a request came without the key, or with another")
    expect(not any(secret in heard for heard in at_work.heard), "the client has heard the key")
    found = files_holding(made.line.home, secret.encode())
    expect(not found, f"the key is in {', '.join(map(str, found))}")
    record = made.record()
    expect(secret not in json.dumps(record), "the key is in the record")
    attempts = [entry for entry in record if entry["event"] == "call.attempt"]
    outcomes = [entry for entry in record if entry["event"] == "call.outcome"]
    expect(
        len(attempts) == len(outcomes) == at_work.sent,
        f"{len(attempts)} attempts, {len(outcomes)} outcomes, {at_work.sent} sent",
    )


def all_called(at_work: Agent) -> None:
    """Raise Wrong unless every tool that is shipped for the account has been called."""
    shipped = Catalogue.load(shipped_folder()).connectors[at_work.connection].tools
    expect(at_work.called >= set(shipped), f"not called: {', '.join(sorted(set(shipped) - at_work.called))}")


def text_of(result: t.CallToolResult) -> str:
    """The first text of a result."""
    return next((part.text for part in result.content if isinstance(part, t.TextContent)), "")
