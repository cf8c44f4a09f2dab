"""Which tools a caller is shown, and the list of them in pages that misses none.

A tool that the caller could never call looks here exactly like one that does not exist.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from connectors.catalogue import Offered
from connectors.definition import Effect
from server.identity import Caller
from server.parts import Parts
from server.reach import within_reach

PAGE = 100


class StaleCursor(Exception):
    """The cursor is not one of ours, not this caller's, or from before the list changed."""


def tools_for(parts: Parts, caller: Caller) -> list[Offered]:
    """The tools that some arguments could let this caller use, by name; none while the vault is sealed."""
    if parts.vault.sealed is not None:
        return []
    workspace = parts.workspaces.of(caller)
    return list(within_reach(caller, workspace, workspace.offer.tools))


def described(offered: Offered) -> dict[str, Any] | None:
    """One tool as it stands in the list; None for one that would break the list for everyone."""
    tool = offered.tool
    if tool.input_schema.get("type") != "object":
        return None
    return {
        "name": offered.name,
        "title": tool.title,
        "description": f"{tool.description}\n\nActs on {offered.connector.title}, connection `{offered.connection}`.",
        "inputSchema": dict(tool.input_schema),
        "annotations": {
            "readOnlyHint": tool.effect in (Effect.READ, Effect.SENSITIVE),
            "destructiveHint": tool.effect in (Effect.SPEND, Effect.DESTROY, Effect.GRANT),
            "idempotentHint": tool.safe or tool.method in ("PUT", "DELETE"),
            "openWorldHint": True,
        },
    }


def page(offered: Sequence[Offered], caller: Caller, cursor: str | None) -> tuple[Sequence[Offered], str | None]:
    """The tools from the cursor on, and the cursor of the next page. Raises StaleCursor.

    A cursor is good for one caller and one list: once tools have come or gone, the client begins again and misses none.
    """
    mark = _mark(offered, caller)
    start = 0 if cursor is None else _start(cursor, mark)
    following = start + PAGE
    more = following < len(offered)
    return offered[start:following], _cursor(mark, following) if more else None


def _mark(offered: Sequence[Offered], caller: Caller) -> bytes:
    names = json.dumps([caller.org, caller.agent, [each.name for each in offered]])
    return hashlib.sha256(names.encode()).digest()[:16]


def _cursor(mark: bytes, start: int) -> str:
    return base64.urlsafe_b64encode(mark + start.to_bytes(4, "big")).decode().rstrip("=")


def _start(cursor: str, mark: bytes) -> int:
    try:
        given = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        raise StaleCursor from None
    if len(given) != len(mark) + 4 or given[: len(mark)] != mark:
        raise StaleCursor
    return int.from_bytes(given[len(mark) :], "big")
