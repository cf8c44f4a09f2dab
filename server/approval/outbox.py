"""What has still to be told, written in the transaction of what happened, until it is delivered or a day has passed.

A notice holds facts about a record: never an argument's value, nor the prompt, nor the summary that quotes arguments.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.clock import iso, now_ms
from server.database import Rows
from server.identity import new_id
from server.policy import Ruling


class Happening(StrEnum):
    """What can happen to a held call that people are told of."""

    OPENED = "opened"
    DECIDED = "decided"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    BUDGET = "budget"  # of no call: how much of a budget is used


@dataclass(frozen=True)
class Listening:
    """A webhook that wants to know."""

    id: str
    name: str


def listening(rows: Rows, org: str, happening: Happening, ruling: Ruling) -> list[Listening]:
    """The webhooks of an org that are told of this. Some things concern them all, whatever the ruling was."""
    found = rows.execute(
        "SELECT id, name, events, rulings FROM channel WHERE org = ? AND disabled_at IS NULL ORDER BY name", (org,)
    ).fetchall()
    return [
        Listening(identifier, name)
        for identifier, name, events, rulings in found
        if happening in json.loads(events) and (happening in _OF_ALL or ruling in json.loads(rulings))
    ]


def put_budget(rows: Rows, org: str, event: str, budget: dict[str, Any]) -> None:
    """Write a notice for each webhook that wants to know how much of a budget is used."""
    hooks = listening(rows, org, Happening.BUDGET, Ruling.APPROVE)
    if not hooks:
        return
    (org_name,) = rows.execute("SELECT name FROM org WHERE id = ?", (org,)).fetchone()
    facts = {"event": event, "time": iso(now_ms()), "org": org_name, "approval": None, "budget": budget}
    _put(rows, org, hooks, facts, turn=0)


def put(rows: Rows, org: str, approval: str, happening: Happening) -> None:
    """Write a notice for each webhook that wants to know what this transaction does to a record."""
    record = rows.execute(
        "SELECT a.state, a.effect, a.ruling, a.needed, a.decisions, a.approvers, a.second_person, a.tool, "
        "a.agent_name, a.expires_at, c.name, o.name FROM approval a JOIN org o ON o.id = a.org "
        "LEFT JOIN connection c ON c.org = a.org AND c.id = a.connection WHERE a.org = ? AND a.id = ?",
        (org, approval),
    ).fetchone()
    if record is None:
        return
    state, effect, ruling, needed, decisions, approvers, second_person, tool, agent, expires_at, *names = record
    hooks = listening(rows, org, happening, Ruling(ruling))
    if not hooks:
        return
    connection, org_name = names
    facts: dict[str, Any] = {
        "event": f"approval.{happening}",
        "time": iso(now_ms()),
        "org": org_name,
        "approval": {
            "id": approval,
            "state": state,
            "expires_at": iso(expires_at),
            "effect": effect,
            "ruling": ruling,
            "needed": needed,
            "decided": len(json.loads(decisions)),
            "approvers": json.loads(approvers),
            "second_person": bool(second_person),
            "connection": connection,
            "tool": tool,
            "agent": agent,
        },
    }
    _put(rows, org, hooks, facts, turn=0 if ruling == Ruling.APPROVE or happening is Happening.UNKNOWN else 1)


_OF_ALL = (Happening.UNKNOWN, Happening.BUDGET)


def _put(rows: Rows, org: str, hooks: list[Listening], facts: dict[str, Any], *, turn: int) -> None:
    now = now_ms()
    for hook in hooks:
        rows.execute(
            "INSERT INTO notice (org, id, channel, facts, created_at, due_at, turn, tries, lease, leased_until) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, 0, NULL, 0)",
            (org, new_id("ntf"), hook.id, json.dumps(facts), now, now, turn),
        )
