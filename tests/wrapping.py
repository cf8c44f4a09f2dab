"""The connector file of the server in `wrapped.py`, with the pins that its tools have, and an org that wraps it."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from connectors.definition import Effect
from connectors.upstream import Definition
from tests.agents import with_connector
from tests.installed import SECRET, Place
from tests.wrapped import TOOLS, command

EFFECTS = {"note": "write", "wipe": "destroy", "ask_twice": "write", "hang": "write", "die": "write", "huge": "write"}
"""What the file states; everything else reads."""


def definition(name: str, description: str = "") -> Definition:
    """What the server lists of a tool."""
    schema, annotations = TOOLS[name]
    raw = {"name": name, "description": description or f"It does {name}.", "inputSchema": schema}
    return Definition(raw | ({"annotations": annotations} if annotations else {}))


def tool_block(name: str) -> dict[str, Any]:
    effect = EFFECTS.get(name, "read")
    holes = "".join(f" {{{argument}}}" for argument in TOOLS[name][0]["properties"])
    block: dict[str, Any] = {
        "title": f"Do {name}",
        "description": f"It does {name}.",
        "upstream": name,
        "pinned": definition(name).hash,
        "input": TOOLS[name][0],
        "effect": effect,
        "ask": f"Do {name}{holes}",
    }
    if Effect(effect).strictness < Effect.WRITE.strictness:
        block["because"] = "It changes nothing that stays."
    return block


def connector_text(started: list[str] | None = None, *, signed: bool = True, **more: Any) -> str:
    """The file: over HTTP, or with a command."""
    place: Mapping[str, Any] = {"command": started} if started else {"base_url": "https://world.invalid/mcp"}
    scheme = {"scheme": "env", "name": "WORLD_SECRET"} if started else {"scheme": "bearer"}
    whole = {
        "id": "world",
        "title": "World",
        "kind": "mcp",
        "reviewed": True,
        **place,
        **({"credentials": {"key": {"label": "Key", "help": "In its settings.", **scheme}}} if signed else {}),
        "tools": {name: tool_block(name) for name in TOOLS},
        **more,
    }
    return yaml.safe_dump(json.loads(json.dumps(whole)), sort_keys=False)


def wrapping(place: Place, *, url: str | None = None, era: str = "modern", signed: bool = True) -> Place:
    """The same place with the server connected as `world`: at this URL, or started for each call."""
    text = connector_text(None if url else command(era), signed=signed)
    with_connector(place, "world", text)
    place.connect(url, connector="world", secret=SECRET)
    return place
