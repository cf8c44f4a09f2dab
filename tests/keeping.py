"""A connector file of the server in `stateful.py` that keeps its conversations, and an org that wraps it."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from connectors.upstream import Definition
from server.app import running
from server.call import call
from server.keeping import Conversations
from server.outcome import Outcome
from server.parts import Parts
from tests import stateful
from tests.agents import Nobody, with_connector
from tests.installed import SECRET, Place


def command(*words: str) -> list[str]:
    """What starts the server as a program of its own."""
    return [sys.executable, "-I", "-S", str(Path(stateful.__file__).resolve()), *words]


def connector_text(started: list[str] | None = None, *, keep: str | None = "10m", **more: Any) -> str:
    """The file, in which everything reads, so that nobody is asked; without a command it is reached over HTTP."""
    place = {"command": started} if started else {"base_url": "https://state.invalid/mcp"}
    scheme = {"scheme": "env", "name": "STATE_KEY"} if started else {"scheme": "bearer"}
    tools = {
        name: {
            "title": f"Do {name}",
            "description": f"It does {name}.",
            "upstream": name,
            "pinned": Definition(stateful.definition(name)).hash,
            "input": schema,
            "effect": "read",
            "because": "It changes nothing that stays.",
            "ask": f"Do {name}" + "".join(f" {{{each}}}" for each in schema["properties"]),
        }
        for name, schema in stateful.TOOLS.items()
    }
    whole = {
        "id": "state",
        "title": "State",
        "kind": "mcp",
        "reviewed": True,
        **place,
        **({"keep": keep} if keep else {}),
        "credentials": {"key": {"label": "Key", "help": "In its settings.", **scheme}},
        "tools": tools,
        **more,
    }
    return yaml.safe_dump(json.loads(json.dumps(whole)), sort_keys=False)


def kept(place: Place, *words: str, keep: str | None = "10m", **more: Any) -> Place:
    """The same place with the server connected as `state`."""
    with_connector(place, "state", connector_text(command(*words), keep=keep, **more))
    place.connect(None, connector="state", secret=SECRET)
    return place


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Serving:
    """A server's parts, and calls through them."""

    place: Place
    parts: Parts

    async def __call__(
        self, tool: str, text: str | None = None, *, agent: str = "reconciler", person: Any = None
    ) -> Outcome:
        arguments = {} if text is None else {"text": text}
        caller = self.place.caller(agent)
        return await call(self.parts, caller, f"state_{tool}", arguments, person or Nobody())

    async def said(self, tool: str = "recall", text: str | None = None, **more: Any) -> dict[str, Any]:
        outcome = await self(tool, text, **more)
        assert outcome.ok, outcome.text
        assert outcome.structured is not None
        return outcome.structured

    @property
    def open(self) -> int:
        return self.parts.conversations.open


@asynccontextmanager
async def serving(place: Place, clock: Any = None, *, most: int = 32, look_s: float = 0.02) -> AsyncIterator[Serving]:
    """A server that looks more often than a real one whether its conversations may go on, and by this clock."""
    async with running(place.installation) as parts:
        installation = place.installation
        conversations = Conversations(
            parts.egress,
            installation.directory,
            installation.workspaces,
            clock=clock or Clock(),
            most=most,
            look_s=look_s,
        )
        async with conversations.keeping():
            yield Serving(place, replace(parts, conversations=conversations))
