"""An org's own rules and its preset, as rows: every change is an entry, moves the org's revision, and is a version.

A version is the whole set as it was after a change, with who and when; the entry carries its number and its hash.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.audit import Event, append
from server.clock import now_ms
from server.database import Database, Rows
from server.identity import new_id, touch
from server.policy import Rule, dump_rule, load_preset, parse_rule


class RuleProblem(Exception):
    """A rule cannot be found or kept; the message says how to mend it."""


@dataclass(frozen=True)
class Rulebook:
    """An org's own rules, oldest first, and the name of its preset."""

    preset: str
    rules: tuple[Rule, ...]

    @property
    def body(self) -> str:
        """The whole set as one line of JSON; the order of rules means nothing, so equal sets are equal texts."""
        return _canonical(self.preset, [dump_rule(rule) for rule in self.rules])

    @property
    def hash(self) -> str:
        """SHA-256 of the body, in hex: what entries name, and what two admins at once are told apart by."""
        return _hash(self.body)

    @classmethod
    def parse(cls, body: str) -> "Rulebook":
        """Read a body. Raises policy.RuleError."""
        shape = json.loads(body)
        return cls(shape["preset"], tuple(parse_rule(rule) for rule in shape["rules"]))


@dataclass(frozen=True)
class Version:
    """One version of an org's rules, without the rules themselves."""

    number: int
    hash: str
    change: str
    made_by: str
    made_at: int


def _canonical(preset: str, rules: Sequence[dict[str, Any]]) -> str:
    ordered = sorted(rules, key=lambda rule: rule["id"])
    return json.dumps({"preset": preset, "rules": ordered}, sort_keys=True, separators=(",", ":"))


def _hash(body: str) -> str:
    return hashlib.sha256(b"keyleash/rules/v1\n" + body.encode()).hexdigest()


# -- changes


def add(rows: Rows, org: str, body: dict[str, Any], *, by: str) -> Rule:
    """Check a rule and keep it. Raises policy.RuleError."""
    rule = parse_rule({**body, "id": new_id("rul")})
    before = _begin(rows, org)
    kept = _insert(rows, org, rule, by=by, at=now_ms())
    version = _remember(rows, org, before, f"added {rule.id}", by=by)
    append(rows, org, Event.RULE_ADDED, rule=rule.id, body=kept, **version, by=by)
    return rule


def remove(rows: Rows, org: str, rule: str, *, by: str) -> None:
    """Take a rule away."""
    before = _begin(rows, org)
    if rows.execute("DELETE FROM rule WHERE org = ? AND id = ?", (org, rule)).rowcount == 0:
        raise RuleProblem(f"There is no rule {rule!r}. `keyleash policy list` shows them.")
    version = _remember(rows, org, before, f"removed {rule}", by=by)
    append(rows, org, Event.RULE_REMOVED, rule=rule, **version, by=by)


def set_preset(rows: Rows, org: str, preset: str, *, by: str) -> None:
    """Choose what is asked where no rule of the org matches. Raises policy.RuleError for an unknown one."""
    load_preset(preset)
    before = _begin(rows, org)
    rows.execute("UPDATE org SET preset = ? WHERE id = ?", (preset, org))
    version = _remember(rows, org, before, f"preset {preset}", by=by)
    append(rows, org, Event.PRESET_CHANGED, preset=preset, **version, by=by)


def apply(rows: Rows, org: str, wanted: Rulebook, *, over: str, source: str, by: str) -> int | None:
    """Replace the whole set by another, if it still is the one whose hash is `over`; returns the version.

    None where there is nothing to change. Raises RuleProblem where somebody was faster: then nothing is changed.
    """
    load_preset(wanted.preset)
    before = _begin(rows, org)
    if _hash(before) != over:
        last = _newest(rows, org)
        whose = f" by {last.made_by} (version {last.number})" if last else ""
        raise RuleProblem(
            f"The rules were changed meanwhile{whose}: they are no longer those that the difference was shown for. "
            "Nothing was done. Look at the difference again."
        )
    if before == wanted.body:
        return None
    changes = _replace(rows, org, Rulebook.parse(before), wanted, by=by)
    version = _remember(rows, org, before, f"applied {source}", by=by)
    append(rows, org, Event.RULES_APPLIED, read_from=source, **changes, **version, by=by)
    number: int = version["version"]
    return number


def _replace(rows: Rows, org: str, before: Rulebook, wanted: Rulebook, *, by: str) -> dict[str, Any]:
    """Make the rows those of the wanted set; a rule that stays keeps its place, new ones come after in their order."""
    old, now = {rule.id: dump_rule(rule) for rule in before.rules}, now_ms()
    changes: dict[str, Any] = {"added": {}, "changed": {}, "removed": []}
    for place, rule in enumerate(wanted.rules):
        if rule.id not in old:
            changes["added"][rule.id] = _insert(rows, org, rule, by=by, at=now + place)
        elif not same(old.pop(rule.id), dump_rule(rule)):
            kept = changes["changed"][rule.id] = _kept(rule)
            rows.execute("UPDATE rule SET body = ? WHERE org = ? AND id = ?", (json.dumps(kept), org, rule.id))
    for identifier in old:
        rows.execute("DELETE FROM rule WHERE org = ? AND id = ?", (org, identifier))
        changes["removed"].append(identifier)
    if wanted.preset != before.preset:
        rows.execute("UPDATE org SET preset = ? WHERE id = ?", (wanted.preset, org))
        changes["preset"] = wanted.preset
    return changes


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two dumped rules say the same; unlike `==`, which takes true for 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _insert(rows: Rows, org: str, rule: Rule, *, by: str, at: int) -> dict[str, Any]:
    kept = _kept(rule)
    rows.execute(
        "INSERT INTO rule (org, id, body, created_by, created_at) VALUES (?, ?, ?, ?, ?)",
        (org, rule.id, json.dumps(kept), by, at),
    )
    return kept


def _kept(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in dump_rule(rule).items() if key != "id"}


# -- versions


def _begin(rows: Rows, org: str) -> str:
    """Move the org's revision, which holds up anyone else who changes its rules, and return the set as it is."""
    touch(rows, org)
    return _body_of(rows, org)


def _body_of(rows: Rows, org: str) -> str:
    found = rows.execute("SELECT preset FROM org WHERE id = ?", (org,)).fetchone()
    rules = rows.execute("SELECT id, body FROM rule WHERE org = ? ORDER BY created_at, id", (org,)).fetchall()
    return _canonical(found[0] if found else "strict", [{"id": rule, **json.loads(body)} for rule, body in rules])


def _remember(rows: Rows, org: str, before: str, change: str, *, by: str) -> dict[str, Any]:
    """Keep the set as it is now as the next version; returns what the change's entry says of it."""
    last, now = _newest(rows, org), now_ms()
    number = 1 if last is None else last.number
    if last is None:  # what there was before anything was changed is the first one
        _keep(rows, org, Version(1, _hash(before), "as it was first", "", now), before)
    body = _body_of(rows, org)
    version = Version(number + 1, _hash(body), change, by, now)
    _keep(rows, org, version, body)
    return {"version": version.number, "rules_hash": version.hash, "rules_hash_before": _hash(before)}


def _keep(rows: Rows, org: str, version: Version, body: str) -> None:
    rows.execute(
        f"INSERT INTO rule_version ({_COLUMNS}, body, org) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (version.number, version.hash, version.change, version.made_by, version.made_at, body, org),
    )


_COLUMNS = "version, hash, change, made_by, made_at"


def _newest(rows: Rows, org: str) -> Version | None:
    row = rows.execute(
        f"SELECT {_COLUMNS} FROM rule_version WHERE org = ? ORDER BY version DESC LIMIT 1", (org,)
    ).fetchone()
    return None if row is None else Version(*row)


def versions_of(database: Database, org: str) -> list[Version]:
    """Every version of an org's rules, the newest first."""
    rows = database.of(org).read(f"SELECT {_COLUMNS} FROM rule_version WHERE org = ? ORDER BY version DESC", (org,))
    return [Version(*row) for row in rows]


def version_named(database: Database, org: str, number: int) -> Rulebook:
    """The whole set as it was in a version. Raises RuleProblem."""
    found = database.of(org).read("SELECT body FROM rule_version WHERE org = ? AND version = ?", (org, number))
    if not found:
        raise RuleProblem(f"There is no version {number} of the rules. `keyleash policy versions` shows them.")
    return Rulebook.parse(found[0][0])


# -- as they are


def rules_of(database: Database, org: str) -> list[Rule]:
    """The org's own rules, oldest first."""
    rows = database.of(org).read("SELECT id, body FROM rule WHERE org = ? ORDER BY created_at, id", (org,))
    return [parse_rule({"id": rule, **json.loads(body)}) for rule, body in rows]


def rulebook_of(database: Database, org: str) -> Rulebook:
    """The org's rules and preset, of one moment."""

    def read(rows: Rows) -> tuple[str, list[Any]]:
        (preset,) = rows.execute("SELECT preset FROM org WHERE id = ?", (org,)).fetchone()
        rules = rows.execute("SELECT id, body FROM rule WHERE org = ? ORDER BY created_at, id", (org,))
        return preset, rules.fetchall()

    preset, rules = database.of(org).snapshot(read)
    return Rulebook(preset, tuple(parse_rule({"id": rule, **json.loads(body)}) for rule, body in rules))
