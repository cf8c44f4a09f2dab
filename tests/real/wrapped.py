"""MCP servers that others wrote, wrapped, and called by a real client of both eras through `keyleash serve`."""

import contextlib
import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx2
import mcp_types as t
import yaml
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from connectors.definition import Effect
from connectors.effects import raised
from connectors.egress import Egress
from connectors.loading import parse
from connectors.upstream import Definition, opened
from tests.agents import ERAS
from tests.ports import free_port
from tests.real.emulators import HOST, started
from tests.real.fetching import Cache, node
from tests.real.governed import Org, org, text_of
from tests.real.report import Report, expect
from vault import Secret

GIT = ("mcp-server-git==2026.10.19", "GitPython==3.2.1", "gitdb==4.0.12", "smmap==5.0.3")
TIME = ("mcp-server-time==2026.10.19", "tzlocal==5.4.5", "tzdata==2026.6")
EVERYTHING = ("@modelcontextprotocol/server-everything", "2026.8.31")
SCHEMA = ("type", "properties", "required", "items", "enum", "description", "minimum", "maximum", "minItems")
WRITES = {"git_add": "write", "git_commit": "write", "git_reset": "destroy"}


async def check(report: Report, cache: Cache) -> None:
    """Git and time over stdio, and the server that has everything over both transports."""
    with org() as made:
        folder = made.line.person / "repository"
        repository(folder)
        git = program(cache.pip(*GIT), "mcp_server_git", "--repository", str(folder))
        clock = program(cache.pip(*TIME), "mcp_server_time", "--local-timezone", "UTC")
        everything = cache.npm(*EVERYTHING) / "dist" / "index.js"
        await _wrapped(report, made, "git", git)
        await _wrapped(report, made, "time", clock)
        await _wrapped(report, made, "everything", [node(), str(everything), "stdio"])
        port = free_port()
        command = [node(), str(everything), "streamableHttp"]
        with started(command, port, cwd=str(made.line.person), env={"PORT": str(port), "PATH": "/usr/bin:/bin"}) as url:
            await _reached(report, made, f"{url}/mcp")
            with made.serving() as address:
                for era in ERAS:
                    async with agent_at(made, address, era) as agent:
                        await _git(report, agent, folder, era)
                        await _time(report, agent, era)
                        for connection in ("everything", "everything_http"):
                            await _everything(report, agent, connection, era)
        with report.line("the record has every call, and verifies") as notes:
            record = made.record()
            attempts = [entry for entry in record if entry["event"] == "call.attempt"]
            outcomes = [entry for entry in record if entry["event"] == "call.outcome"]
            expect(len(attempts) == len(outcomes) > 0, f"{len(attempts)} attempts, {len(outcomes)} outcomes")
            notes.append(f"{len(attempts)} calls")


def program(folder: Path, module: str, *arguments: str) -> list[str]:
    """The server as a program of this Python: it inherits no PYTHONPATH, so its own folder is told to it."""
    run = f"import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"
    return [sys.executable, "-P", "-c", run, str(folder), *arguments]


def repository(folder: Path) -> None:
    for arguments in (
        ("init", "-q", str(folder)),
        ("-C", str(folder), "config", "user.email", "a@example.org"),
        ("-C", str(folder), "config", "user.name", "Ann"),
        ("-C", str(folder), "commit", "-q", "--allow-empty", "-m", "first"),
    ):
        subprocess.run(["git", *arguments], check=True, capture_output=True)


def _subjects(folder: Path) -> str:
    log = ["git", "-C", str(folder), "log", "--format=%s"]
    return subprocess.run(log, check=True, capture_output=True, text=True).stdout


# -- a file for it


def file_for(identifier: str, where: Mapping[str, Any], definitions: Sequence[Definition]) -> str:
    """A connector file with all of a server's tools; what a person would judge is judged by their names here."""
    tools = {}
    for each in definitions:
        annotations = {key: said for key, said in each.raw.get("annotations", {}).items() if key.endswith("Hint")}
        effect = raised(Effect(WRITES.get(each.name, "read")), {} if each.name in READS else annotations)
        schema = _plain(each.raw["inputSchema"])
        names = list(schema.get("properties", {}))
        tools[each.name.replace("-", "_")] = {
            "title": each.name,
            "description": str(each.raw.get("description", each.name)),
            "upstream": each.name,
            "pinned": each.hash,
            "annotations": {} if each.name in READS else annotations,
            "effect": effect.value,
            "because": "Its documentation says so.",
            "ask": f"Call {each.name}{f' with {{{names[0]}}}' if names else ''}",
            "input": schema,
        }
    whole = {"id": identifier, "title": identifier.title(), "kind": "mcp", "reviewed": True, **where, "tools": tools}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


READS = ("trigger-elicitation-request",)
"""What is called freely here to see a question of its own, and not ours."""


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a schema that a file takes."""
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key in SCHEMA}
    if "properties" in kept:
        kept["properties"] = {name: _plain(cast("dict[str, Any]", part)) for name, part in kept["properties"].items()}
    return kept


async def definitions_of(where: Mapping[str, Any], base_url: str | None = None) -> tuple[Definition, ...]:
    nothing = {"go": {"title": "x", "description": "x", "upstream": "x", "pinned": "0" * 64, "effect": "write"}}
    nothing["go"] |= {"ask": "x", "input": {"type": "object"}}  # type: ignore[dict-item]
    stub = parse(yaml.safe_dump({"id": "x", "title": "x", "kind": "mcp", **where, "tools": nothing}))
    async with (
        Egress() as egress,
        opened(
            stub,
            base_url=base_url or stub.base_url,
            kind=stub.credentials[0],
            secret=Secret({"nothing": "nothing"}),
            egress=egress,
            private=LOOPBACK if base_url else (),
        ) as upstream,
    ):
        return await upstream.definitions()


LOOPBACK = (ipaddress.ip_network(f"{HOST}/32"),)


def write(made: Org, identifier: str, text: str) -> None:
    folder = made.line.home / "data" / "connectors"
    folder.mkdir(exist_ok=True, mode=0o700)
    (folder / f"{identifier}.yaml").write_text(text, encoding="utf-8")


async def _wrapped(report: Report, made: Org, identifier: str, command: list[str]) -> None:
    with report.line(f"{identifier}: every tool is listed, pinned and offered, over stdio") as notes:
        began = time.monotonic()
        found = await definitions_of({"command": command})
        notes.append(f"{len(found)} tools, {time.monotonic() - began:.1f} s to start and list")
        write(made, identifier, file_for(identifier, {"command": command}, found))
        made.run("connect", identifier)


async def _reached(report: Report, made: Org, url: str) -> None:
    with report.line("everything: every tool is listed, pinned and offered, over HTTP") as notes:
        found = await definitions_of({"base_url": "https://everything.invalid/mcp"}, url)
        notes.append(f"{len(found)} tools")
        write(
            made, "everything_http", file_for("everything_http", {"base_url": "https://everything.invalid/mcp"}, found)
        )
        made.run("connect", "everything_http", "--base-url", url, "--allow-private", f"{HOST}/32")


# -- at work


@dataclass
class Agent:
    client: Client
    asked: list[str] = field(default_factory=list)

    async def __call__(self, tool: str, **arguments: Any) -> t.CallToolResult:
        return await self.client.call_tool(tool, arguments)


@asynccontextmanager
async def agent_at(made: Org, address: str, era: str) -> AsyncIterator[Agent]:
    asked: list[str] = []

    async def answer(_context: Any, params: t.ElicitRequestParams) -> t.ElicitResult:
        asked.append(params.message)
        properties = getattr(params, "requested_schema", {}).get("properties", {})
        given = {"decision": "approve"} if "decision" in properties else _filled(properties)
        return t.ElicitResult(action="accept", content=given)  # pyright: ignore[reportArgumentType]

    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {made.token}"}, timeout=60) as http,
        Client(streamable_http_client(address, http_client=http), mode=era, elicitation_callback=answer) as client,
    ):
        yield Agent(client, asked)


def _filled(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Something for each field of a server's form."""
    samples = {"string": "2026-01-01", "integer": 42, "number": 4.5, "boolean": True}
    filled = {}
    for name, part in properties.items():
        sample = "ann@example.org" if part.get("format") == "email" else samples[part["type"]]
        sample = "https://example.org/" if part.get("format") == "uri" else sample
        filled[name] = part["enum"][0] if "enum" in part else sample
    return filled


@contextlib.contextmanager
def _asks(agent: Agent, times: int) -> Iterator[None]:
    before = len(agent.asked)
    yield
    expect(len(agent.asked) - before == times, f"asked {len(agent.asked) - before} times: {agent.asked[before:]}")


async def _git(report: Report, agent: Agent, folder: Path, era: str) -> None:
    with report.line(f"git: reads freely, and a commit waits for a person ({era})") as notes:
        with _asks(agent, 0):
            log = await agent("git_git_log", repo_path=str(folder), max_count=5)
        expect("first" in text_of(log), text_of(log))
        (folder / f"{era}.txt").write_text(era)
        with _asks(agent, 2):
            await agent("git_git_add", repo_path=str(folder), files=[f"{era}.txt"])
            began = time.monotonic()
            done = await agent("git_git_commit", repo_path=str(folder), message=f"by {era}")
            notes.append(f"{time.monotonic() - began:.1f} s a call, the server's start included")
        expect(not done.is_error, text_of(done))
        said = _subjects(folder)
        expect(f"by {era}" in said, said)
    with report.line(f"git: what fails there is told so that it can be mended ({era})"):
        failed = await agent("git_git_show", repo_path=str(folder), revision="nosuch")
        expect(failed.is_error, text_of(failed))
        expect("nosuch" in text_of(failed), text_of(failed))


async def _time(report: Report, agent: Agent, era: str) -> None:
    with report.line(f"time: converts ({era})"), _asks(agent, 0):
        found = await agent("time_convert_time", source_timezone="UTC", time="12:00", target_timezone="Asia/Tokyo")
        expect("21:00" in text_of(found), text_of(found))


async def _everything(report: Report, agent: Agent, connection: str, era: str) -> None:
    with report.line(f"{connection}: text, numbers, structured content and a picture ({era})"), _asks(agent, 0):
        echo = await agent(f"{connection}_echo", message="hello")
        expect("hello" in text_of(echo), text_of(echo))
        total = await agent(f"{connection}_get_sum", a=2, b=40)
        expect("42" in text_of(total), text_of(total))
        weather = await agent(f"{connection}_get_structured_content", location="Chicago")
        expect("temperature" in json.dumps(weather.structured_content), text_of(weather))
        image = await agent(f"{connection}_get_tiny_image")
        expect("image/png" in text_of(image) and len(text_of(image)) < 5_000, text_of(image))
    with report.line(f"{connection}: gives away nothing of the environment around it ({era})"):
        environment = text_of(await agent(f"{connection}_get_env"))
        expect("KEYLEASH" not in environment, environment)
    asks = 1 if era == "legacy" else 0
    with report.line(f"{connection}: its own question {'reaches the person' if asks else 'is declined'} ({era})"):
        before = len(agent.asked)
        result = await agent(f"{connection}_trigger_elicitation_request")
        expect(len(agent.asked) - before == asks, text_of(result))
        if asks:
            expect("an outside server" in agent.asked[-1], agent.asked[-1])
        else:
            expect("could not be put to a person" in text_of(result), text_of(result))
