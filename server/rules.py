"""An org's own rules and its preset, as rows: every change moves the org's revision and is an entry."""

import json
from typing import Any

from server.audit import Event, append
from server.clock import now_ms
from server.database import Database, Rows
from server.identity import new_id, touch
from server.policy import Rule, dump_rule, load_preset, parse_rule


class RuleProblem(Exception):
    """A rule cannot be found or kept; the message says how to mend it."""


def add(rows: Rows, org: str, body: dict[str, Any], *, by: str) -> Rule:
    """Check a rule and keep it. Raises policy.RuleError."""
    rule = parse_rule({**body, "id": new_id("rul")})
    kept = {key: value for key, value in dump_rule(rule).items() if key != "id"}
    rows.execute(
        "INSERT INTO rule (org, id, body, created_by, created_at) VALUES (?, ?, ?, ?, ?)",
        (org, rule.id, json.dumps(kept), by, now_ms()),
    )
    touch(rows, org)
    append(rows, org, Event.RULE_ADDED, rule=rule.id, body=kept, by=by)
    return rule


def remove(rows: Rows, org: str, rule: str, *, by: str) -> None:
    """Take a rule away."""
    if rows.execute("DELETE FROM rule WHERE org = ? AND id = ?", (org, rule)).rowcount == 0:
        raise RuleProblem(f"There is no rule {rule!r}. `keyleash policy list` shows them.")
    touch(rows, org)
    append(rows, org, Event.RULE_REMOVED, rule=rule, by=by)


def set_preset(rows: Rows, org: str, preset: str, *, by: str) -> None:
    """Choose what is asked where no rule of the org matches. Raises policy.RuleError for an unknown one."""
    load_preset(preset)
    rows.execute("UPDATE org SET preset = ? WHERE id = ?", (preset, org))
    touch(rows, org)
    append(rows, org, Event.PRESET_CHANGED, preset=preset, by=by)


def rules_of(database: Database, org: str) -> list[Rule]:
    """The org's own rules, oldest first."""
    rows = database.of(org).read("SELECT id, body FROM rule WHERE org = ? ORDER BY created_at, id", (org,))
    return [parse_rule({"id": rule, **json.loads(body)}) for rule, body in rows]
