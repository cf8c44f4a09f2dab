"""A wrapped server's connector file in an installation, and what its server says of its tools, without the server."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from connectors.definition import WrappedServer
from connectors.importing_wrapped import Source, candidate, draft
from connectors.repinning import beside, written
from connectors.upstream import Definition
from server.connections import Connection
from server.held import Found, hold
from tests.agents import reopened
from tests.installed import Place

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
READ = Definition({"name": "read_it", "description": "Reads it.", "inputSchema": TEXT})
WRITE = Definition({"name": "change_it", "description": "Changes it.", "inputSchema": TEXT})


def with_file(place: Place, *tools: Definition, identifier: str = "things") -> Place:
    """The place with a reviewed connector file of these tools, as after a restart."""
    source = Source(WrappedServer(), "https://mcp.things.example/mcp", None)
    made = draft(source, [candidate(each) for each in tools], identifier=identifier, title="Things")
    file = file_of(place, identifier)
    file.parent.mkdir(exist_ok=True, mode=0o700)
    file.write_text(made.text.replace("reviewed: false", "reviewed: true"), encoding="utf-8")
    beside(file).write_bytes(written(tools))
    return reopened(place)


def file_of(place: Place, identifier: str = "things") -> Path:
    return place.installation.settings.connectors / f"{identifier}.yaml"


def changed(definition: Definition, **more: Any) -> Definition:
    """What the server says of the tool now."""
    return Definition({**definition.raw, **more})


def held(place: Place, connection: Connection, before: Definition, found: Definition | None) -> Sequence[str]:
    """What a server that notices it writes down."""
    now = (found.hash, found.raw) if found is not None else ()
    noted = Found(before.name, before.hash, *now)
    return place.database.write_now(lambda rows: hold(rows, connection, [noted]))
