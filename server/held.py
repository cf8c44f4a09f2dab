"""Tools of wrapped servers that are held: what their upstream says of them is not what a person has reviewed.

A hold counts against one pin. Once the connector's file pins something else, because a person has reviewed what was
found, it counts no more, in whichever org. Until then the tool is listed to no agent and never called.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connectors.definition import Connector, Tool
from connectors.errors import DefinitionChanged
from server.audit import Event, append
from server.clock import now_ms
from server.connections import Connection
from server.database import Database, Rows
from server.identity import touch

if TYPE_CHECKING:
    from connectors.upstream import Definition  # at run time it would load the protocol

MOST_BYTES = 256 * 1024
"""Of a definition that is kept to be shown; of a longer one there is only its hash."""


@dataclass(frozen=True)
class Found:
    """What a wrapped server says now of a tool whose pin it no longer fits. Without a definition the tool is gone."""

    tool: str
    pinned: str
    hash: str = ""
    definition: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Held:
    """A tool that is held, as it was noted. `definition` is None where the tool is gone, or is too long to be kept."""

    org: str
    connection: str
    name: str
    connector: str
    tool: str
    pinned: str
    found: str
    definition: dict[str, Any] | None
    found_at: int

    @property
    def gone(self) -> bool:
        """Whether the upstream has no such tool any more."""
        return not self.found


def compared(connector: Connector, definitions: Iterable["Definition"]) -> tuple[list[Found], list[str]]:
    """Of a connector's tools, those that its server no longer defines as pinned; and the names of the others."""
    now = {each.name: each for each in definitions}
    changed, same = list[Found](), list[str]()
    for tool in connector.tools.values():
        found = now.get(tool.upstream)
        if found is not None and found.hash == tool.pinned:
            same.append(tool.name)
        else:
            changed.append(Found(tool.name, tool.pinned, found.hash if found else "", found.raw if found else None))
    return changed, same


def note(connectors: Mapping[str, Connector], rows: Rows, connection: Connection, changed: DefinitionChanged) -> None:
    """Hold what a call has found to be something else than its file pins, under each name that it is offered by."""
    connector = connectors.get(connection.connector)
    tools = connector.tools.values() if connector is not None else ()
    found = [
        Found(tool.name, tool.pinned, changed.hash or "", changed.found)
        for tool in tools
        if tool.upstream == changed.tool and tool.pinned == changed.pinned
    ]
    hold(rows, connection, found)


def looked_at(
    rows: Rows, connection: Connection, connector: Connector, definitions: Iterable["Definition"], *, by: str | None
) -> None:
    """Hold what a server has changed of a connection's tools, and let go of what it says again as it was reviewed.

    `by` is who looked; None where a server did by itself.
    """
    changed, same = compared(connector, definitions)
    hold(rows, connection, changed, by=by)
    for each in [_held(row) for row in rows.execute(SELECTED, (connection.org,)).fetchall()]:
        if each.connection == connection.id and each.tool in same:
            let_go(rows, each, Event.TOOL_RETURNED, by=by)


def hold(rows: Rows, connection: Connection, found: Sequence[Found], *, by: str | None = None) -> list[str]:
    """Hold these tools of a connection, each on record; returns those that are held for something new.

    Whoever watches the org's tools is told, and no approval or grant for them is used while they are held.
    """
    new = [each for each in found if _note(rows, connection, each)]
    for each in new:
        append(
            rows,
            connection.org,
            Event.TOOL_HELD,
            connection=connection.name,
            connector=connection.connector,
            tool=f"{connection.name}_{each.tool}",
            pinned=each.pinned,
            found=each.hash or None,
            outcome="gone" if not each.hash else "changed",
            by=by,
        )
    if new:
        touch(rows, connection.org)
    return [each.tool for each in new]


def _note(rows: Rows, connection: Connection, found: Found) -> bool:
    key = (connection.org, connection.id, found.tool)
    there = rows.execute(
        "SELECT pinned, found FROM held_definition WHERE org = ? AND connection = ? AND tool = ?", key
    ).fetchone()
    if there is not None and tuple(there) == (found.pinned, found.hash):
        return False
    rows.execute("DELETE FROM held_definition WHERE org = ? AND connection = ? AND tool = ?", key)
    rows.execute(
        "INSERT INTO held_definition (org, connection, tool, pinned, found, definition, found_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*key, found.pinned, found.hash, _kept(found.definition), now_ms()),
    )
    return True


def _kept(definition: Mapping[str, Any] | None) -> str:
    text = json.dumps(definition) if definition is not None else ""  # in ASCII: any database can store it
    return text if len(text) <= MOST_BYTES else ""


def let_go(rows: Rows, held: Held, event: Event, *, by: str | None = None, **more: Any) -> bool:
    """A tool is no longer held, which is on record as `event`; False where it was not, or is for something else now."""
    gone = rows.execute(
        "DELETE FROM held_definition WHERE org = ? AND connection = ? AND tool = ? AND pinned = ? AND found = ?",
        (held.org, held.connection, held.tool, held.pinned, held.found),
    )
    if gone.rowcount != 1:
        return False
    append(
        rows,
        held.org,
        event,
        connection=held.name,
        connector=held.connector,
        tool=f"{held.name}_{held.tool}",
        pinned=held.pinned,
        found=held.found or None,
        by=by,
        **more,
    )
    touch(rows, held.org)
    return True


def held_of(database: Database, org: str) -> list[Held]:
    """Everything of an org that was noted and not let go, by connection and tool."""
    return [_held(row) for row in database.of(org).read(SELECTED, (org,))]


def pinned_by(held: Held, connectors: Mapping[str, Connector]) -> Tool | None:
    """The tool that is held, as its file has it now; None where that pins something else, or has it no more."""
    connector = connectors.get(held.connector)
    tool = connector.tools.get(held.tool) if connector is not None else None
    return tool if tool is not None and tool.pinned == held.pinned else None


SELECTED = (
    "SELECT h.org, h.connection, c.name, c.connector, h.tool, h.pinned, h.found, h.definition, h.found_at "
    "FROM held_definition h JOIN connection c ON c.org = h.org AND c.id = h.connection WHERE h.org = ? "
    "ORDER BY c.name, h.tool"
)


def _held(row: Sequence[Any]) -> Held:
    org, connection, name, connector, tool, pinned, found, definition, found_at = row
    kept: dict[str, Any] | None = json.loads(definition) if definition else None
    return Held(org, connection, name, connector, tool, pinned, found, kept, found_at)
