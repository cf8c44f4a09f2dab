"""An org with hundreds of tools: a connector with a tool for each shelf, and what an operator may set about lists."""

import json
from dataclasses import replace
from typing import Any

from tests.installed import Place


def warehouse(shelves: int) -> str:
    """A connector with a reading tool for each shelf, and one that changes something."""
    head = {
        "id": "warehouse",
        "title": "Warehouse",
        "base_url": "https://warehouse.example",
        "credentials": {"key": {"label": "Key", "help": "There.", "scheme": "bearer"}},
        "verify": {"call": "GET /me"},
    }
    tools: dict[str, Any] = {
        f"look_at_{number:04}": {
            "title": f"Look at shelf {number}",
            "description": "What stands on a shelf, and since when. " * 5,
            "call": f"GET /shelves/{number}",
            "effect": "read",
            "arguments": {"since": {"type": "string", "description": "A day. " * 20}},
        }
        for number in range(shelves)
    }
    tools["pin_note"] = {
        "title": "Pin a note",
        "description": "Pin a note to a shelf. Nobody is told.",
        "call": "POST /notes",
        "effect": "write",
        "ask": "Pin {text} to {shelf}",
        "grant": ["shelf"],
        "arguments": {"shelf": {"type": "string", "required": True}, "text": {"type": "string", "required": True}},
    }
    return json.dumps({**head, "tools": tools})


def limited(place: Place, limit: int) -> Place:
    """The same place with this many tools listed at most."""
    settings = replace(place.installation.settings, list_limit=limit)
    place.installation = replace(place.installation, settings=settings)
    return place


def all_names(place: Place, agent: str = "reconciler") -> list[str]:
    """Every tool of the org, by name."""
    caller = place.caller(agent)
    workspace = place.installation.workspaces.of(caller)
    return [offered.name for offered in workspace.offer.tools]
