"""Tools of our own: three in place of a list that is too long, which find, describe and call the others; one reads on.

What is called through them is the very call that the tool's own name would have made: rules, approvals and the record
see that name and those arguments. Knows nothing of the protocol but how a tool is spelt on the wire.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, cast

from connectors.catalogue import CALL, DESCRIBE, MORE, OWN_NAMES, SEARCH, Offered
from connectors.definition import Effect
from connectors.finding import Found
from server.approval import Person
from server.call import call
from server.connections import Workspace
from server.errors import BadArguments, NoSuchTool, NotShown, VaultSealed
from server.identity import Caller
from server.listing import described, tools_for
from server.outcome import Outcome
from server.parts import Parts
from server.policy import Ruling, prospects
from server.reach import shown, subject
from server.retelling import read_more

LONGEST_REQUEST = 500
"""Characters of a request; searching costs time for each of its words."""
FOUND, MOST_FOUND = 5, 20
"""How many tools a search returns where nothing is said, and at most."""
LONGEST_LINE, LONGEST_NAMES = 160, 1_200
MOST_TWINS = 5


def folded(offered: Iterable[Offered]) -> list[dict[str, Any]]:
    """What stands for these, as it is spelt on the wire; under 6 kB however many there are."""
    where = _where(offered)
    return [
        {
            "name": CALL,
            "title": "Call a tool",
            "description": (
                f"Call a tool that {SEARCH} has found, with arguments as {DESCRIBE} shows them. What comes back is "
                "that tool's own result; some calls wait for a person, as when the tool is called by its own name."
            ),
            "inputSchema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "The tool's name, as it was found."},
                    "arguments": {"type": "object", "description": "Its arguments; left out where it has none."},
                },
                "required": ["name"],
                "additionalProperties": False,
            },
            "annotations": _hints(looks=False),
        },
        {
            "name": DESCRIBE,
            "title": "Read about a tool",
            "description": (
                f"Everything about one tool that {SEARCH} has found: its arguments as JSON Schema, what it does to "
                "the world, and whether a person will be asked. Look before the first call."
            ),
            "inputSchema": {
                "type": "object",
                "properties": {"name": {"type": "string", "description": "The tool's name, as it was found."}},
                "required": ["name"],
                "additionalProperties": False,
            },
            "outputSchema": _DESCRIPTION,
            "annotations": _hints(looks=True),
        },
        READ_ON,
        {
            "name": SEARCH,
            "title": "Find tools",
            "description": (
                "There are too many tools to list, so find the one you need: say in a few plain words what is to be "
                "done and to what, and name the service if you know it, for instance `refund a charge`. Try other "
                f"words if nothing fits.\n\n{where}"
            ),
            "inputSchema": {
                "type": "object",
                "properties": {
                    "query": {
                        "type": "string",
                        "minLength": 1,
                        "maxLength": LONGEST_REQUEST,
                        "description": "What is to be done, in plain words.",
                    },
                    "limit": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": MOST_FOUND,
                        "default": FOUND,
                        "description": "How many tools to return.",
                    },
                },
                "required": ["query"],
                "additionalProperties": False,
            },
            "outputSchema": _FINDINGS,
            "annotations": _hints(looks=True),
        },
    ]


def _hints(*, looks: bool) -> dict[str, bool]:
    return {"readOnlyHint": looks, "destructiveHint": not looks, "idempotentHint": looks, "openWorldHint": not looks}


_TEXT = {"type": "string"}
_FACTS = {
    "name": _TEXT,
    "title": _TEXT,
    "description": _TEXT,
    "effect": {**_TEXT, "enum": [effect.value for effect in Effect]},
    "asks_a_person": {**_TEXT, "enum": ["no", "yes", "depends on the arguments"]},
}
_FINDINGS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tools": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {**_FACTS, "same_elsewhere": {"type": "array", "items": _TEXT}},
                "required": list(_FACTS),
            },
        },
        "found": {"type": "integer"},
        "hint": _TEXT,
    },
    "required": ["tools", "found"],
}
_DESCRIPTION: dict[str, Any] = {
    "type": "object",
    "properties": {**_FACTS, "inputSchema": {"type": "object"}, "annotations": {"type": "object"}},
    "required": [*_FACTS, "inputSchema", "annotations"],
}


def _where(offered: Iterable[Offered]) -> str:
    """The connections that the tools are of, as many as there is room for."""
    titles = {each.connection: each.connector.title for each in offered}
    names = [name if name == title.lower() else f"{name} ({title[:40]})" for name, title in sorted(titles.items())]
    said: list[str] = []
    room = LONGEST_NAMES
    for name in names:
        room -= len(name.encode()) + 2
        if room < 0:
            return f"Connections: {', '.join(said)} and {len(names) - len(said)} more."
        said.append(name)
    return f"Connections: {', '.join(said)}." if said else "There is none at present."


READ_ON: dict[str, Any] = {
    "name": MORE,
    "title": "Read on",
    "description": (
        "The next part of an answer that was too long, where its note_on_length names one. Nothing is called again."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {"answer": {"type": "string", "description": "As note_on_length names it: ans_…-123."}},
        "required": ["answer"],
        "additionalProperties": False,
    },
    "annotations": _hints(looks=True),
}
"""It stands in every list."""


# -- what they do


def search(parts: Parts, caller: Caller, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The tools that fit a request, the likeliest first. Raises BadArguments."""
    _only(arguments, "query", "limit")
    request, limit = _text(arguments, "query", LONGEST_REQUEST), _limit(arguments)
    _require_unsealed(parts)
    offered = tools_for(parts, caller)
    workspace = parts.workspaces.of(caller)
    found = workspace.offer.index.search(request, offered)
    fit = islice((each for each in found if described(each.tool) is not None), limit)
    tools = [{**_facts(caller, workspace, each.tool), **_twins(each)} for each in fit]
    if tools:
        return {"tools": tools, "found": len(found)}
    hint = f"Nothing fits. Say what is to be done and to what, or name a service. {_where(offered)}"
    return {"tools": [], "found": 0, "hint": hint}


def _twins(found: Found) -> dict[str, Any]:
    return {"same_elsewhere": [twin.name for twin in found.twins[:MOST_TWINS]]} if found.twins else {}


def describe(parts: Parts, caller: Caller, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything about one tool. Raises BadArguments or NotShown."""
    _only(arguments, "name")
    name = _name(arguments)
    _require_unsealed(parts)
    workspace = parts.workspaces.of(caller)
    offered = shown(caller, workspace, name)
    whole = None if offered is None else described(offered)
    if offered is None or whole is None:
        raise NotShown(name)
    return {**_facts(caller, workspace, offered), **whole}


async def call_through(
    parts: Parts, caller: Caller, arguments: Mapping[str, Any], person: Person, *, pointer: str | None
) -> Outcome:
    """The call of the tool that the arguments name: the very call that its own name would have made.

    Raises what `call` raises, but NotShown for any tool that the caller has not, whatever keeps it from it.
    """
    _only(arguments, "name", "arguments")
    name, inner = _name(arguments), arguments.get("arguments", {})
    if name in OWN_NAMES:
        raise BadArguments(f"{CALL} calls the tools that {SEARCH} finds, not {name}: use that directly.")
    if not isinstance(inner, dict):
        raise BadArguments("arguments: give an object, for instance {}; not text that holds one.")
    try:
        return await call(parts, caller, name, cast("dict[str, Any]", inner), person, pointer=pointer)
    except NoSuchTool:
        raise NotShown(name) from None


async def read_on(parts: Parts, caller: Caller, arguments: Mapping[str, Any]) -> Outcome:
    """The next part of a long answer. Raises CallRefused."""
    _only(arguments, "answer")
    return await read_more(parts, caller, _text(arguments, "answer", 64))


def _facts(caller: Caller, workspace: Workspace, offered: Offered) -> dict[str, Any]:
    tool = offered.tool
    rulings = prospects(subject(caller), offered.connection, tool.name, tool.effect, workspace.rules, workspace.preset)
    held = rulings & {Ruling.CONFIRM, Ruling.APPROVE}
    asks = "no" if not held else "depends on the arguments" if Ruling.ALLOW in rulings else "yes"
    return {
        "name": offered.name,
        "title": tool.title,
        "description": _line(tool.description),
        "effect": tool.effect.value,
        "asks_a_person": asks,
    }


def _line(text: str) -> str:
    """The first sentence of a description, cut where it is long."""
    first = " ".join(text.split()).split(". ")[0]
    return first if len(first) <= LONGEST_LINE else f"{first[:LONGEST_LINE].rstrip()}…"


def _require_unsealed(parts: Parts) -> None:
    if parts.vault.sealed is not None:
        raise VaultSealed(parts.vault.sealed)


def _only(arguments: Mapping[str, Any], *allowed: str) -> None:
    for name in arguments:
        if name not in allowed:
            raise BadArguments(f"There is no argument {name[:80]!a}. Allowed arguments: {', '.join(allowed)}.")


def _text(arguments: Mapping[str, Any], name: str, longest: int) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadArguments(f"{name}: give a text.")
    if len(value) > longest:
        raise BadArguments(f"{name}: {longest} characters at most.")
    return value


def _name(arguments: Mapping[str, Any]) -> str:
    return _text(arguments, "name", 64)


def _limit(arguments: Mapping[str, Any]) -> int:
    limit = arguments.get("limit", FOUND)
    whole = isinstance(limit, int | float) and not isinstance(limit, bool) and limit == limit // 1
    if not whole or not 1 <= limit <= MOST_FOUND:
        raise BadArguments(f"limit: give a whole number from 1 to {MOST_FOUND}.")
    return int(limit)
