"""What changes between two sets of rules, and what of it may loosen: where nothing is marked, nothing gets looser.

A mark says that a call may be treated more mildly than before, not that one will be. `openings` says what it means for
the agents and tools that there are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from connectors.catalogue import Offered
from server.policy import ANYONE, Rule, RuleSet, Ruling, Subject, dump_rule, load_preset, prospects, within
from server.rules import Rulebook, same

STRICTNESS = ("solo", "default", "strict")
"""The presets, from the loosest to the strictest: each says at least what the one before says to any call."""

Kind = Literal["added", "removed", "changed", "preset"]


@dataclass(frozen=True)
class Change:
    """One thing that differs. `fields` are those of a changed rule, each with before and after."""

    kind: Kind
    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    loosens: str = ""
    """Why it may loosen; empty: it cannot."""

    @property
    def fields(self) -> dict[str, tuple[Any, Any]]:
        """What differs in a rule that stays."""
        if self.before is None or self.after is None:
            return {}
        keys = [*self.before, *(key for key in self.after if key not in self.before)]
        pairs = {key: (self.before.get(key), self.after.get(key)) for key in keys}
        return {key: pair for key, pair in pairs.items() if not same({"": pair[0]}, {"": pair[1]})}


def difference(before: Rulebook, after: Rulebook) -> list[Change]:
    """Every change from one set to the other: the preset first, then in the order of the sets."""
    changes: list[Change] = []
    if before.preset != after.preset:
        looser = STRICTNESS.index(after.preset) < STRICTNESS.index(before.preset)
        why = "this preset says less where no rule matches" if looser else ""
        changes.append(Change("preset", after.preset, {"preset": before.preset}, {"preset": after.preset}, why))
    old = {rule.id: rule for rule in before.rules}
    kept = {rule.id for rule in after.rules}
    for rule in before.rules:
        if rule.id not in kept:
            changes.append(Change("removed", rule.id, dump_rule(rule), None, _by_going(rule)))
    for rule in after.rules:
        earlier = old.get(rule.id)
        if earlier is None:
            changes.append(Change("added", rule.id, None, dump_rule(rule), _by_coming(rule)))
        elif not same(dump_rule(earlier), dump_rule(rule)):
            changes.append(Change("changed", rule.id, dump_rule(earlier), dump_rule(rule), _by_changing(earlier, rule)))
    return changes


def _by_going(rule: Rule) -> str:
    """A rule that only allowed leaves nothing looser behind: what decides instead is no milder."""
    if rule.then is Ruling.ALLOW:
        return ""
    return f"what it held to {rule.then} is decided by other rules, or by the preset"


def _by_coming(rule: Rule) -> str:
    """A rule that denies can only tighten; any other also stands in for the preset, or for the no of no rule."""
    if rule.then is Ruling.DENY:
        return ""
    return f"where no other rule matched, {rule.then} takes the place of what the preset says"


def _by_changing(before: Rule, after: Rule) -> str:
    """What is wider in denying, narrower in allowing, or stricter for the very same calls, loosens nothing."""
    if after.then is Ruling.DENY and (before.then is Ruling.ALLOW or _covers(after, before)):
        return ""
    if before.then is after.then is Ruling.ALLOW:
        return "" if _covers(before, after) else "it allows what it did not allow"
    if after.then < before.then:
        return f"{after.then} in place of {before.then}"
    if not (_covers(before, after) and _covers(after, before)):
        return "it matches other calls than before, and the rest is decided by other rules, or by the preset"
    return _by_asking(before, after)


def _by_asking(before: Rule, after: Rule) -> str:
    """The same for two rules of the same scope, of which the later one is as strict at least."""
    if before.then is Ruling.ALLOW and before.when:
        return f"where it cannot be judged, it now says {after.then}, and not nothing"
    eased = after.then is before.then and (
        after.count < before.count
        or (before.second_person and not after.second_person)
        or not within(after.approvers or ANYONE, before.approvers or ANYONE)
    )
    return "it asks less of those who approve, or asks others" if eased else ""


def _covers(one: Rule, other: Rule) -> bool:
    """Whether one rule matches every call that the other matches: True is certain, False may only be for want of proof.

    Who may differ: the marks of a caller are not known here.
    """
    who = one.who == other.who or str(one.who) == "everyone"
    tools = not one.tools or "*" in one.tools or (bool(other.tools) and set(other.tools) <= set(one.tools))
    effects = not one.effects or (bool(other.effects) and set(other.effects) <= set(one.effects))
    return who and tools and effects and _demands(one) <= _demands(other)


def _demands(rule: Rule) -> set[str]:
    return {repr((c.argument, c.op, c.value)) for c in rule.when}


# -- what it means for those there are


@dataclass(frozen=True)
class Opening:
    """Tools of which an agent's mildest outcome gets milder."""

    agent: str
    before: Ruling
    after: Ruling
    tools: tuple[str, ...]


def openings(
    before: Rulebook,
    after: Rulebook,
    agents: Sequence[tuple[str, Subject]],
    tools: Iterable[Offered],
) -> list[Opening]:
    """For each agent, the tools that some arguments let it use more freely than any did. `tools` are an offer's."""
    old, new = RuleSet(before.rules), RuleSet(after.rules)
    old_preset, new_preset = load_preset(before.preset), load_preset(after.preset)
    offered = list(tools)
    found: list[Opening] = []
    for name, subject in agents:
        moved: list[tuple[Ruling, Ruling, str]] = []
        for each in offered:
            place = (subject, each.connection, each.tool.name, each.tool.effect)
            mildest, milder = min(prospects(*place, old, old_preset)), min(prospects(*place, new, new_preset))
            if milder < mildest:
                moved.append((mildest, milder, each.name))
        for (mildest, milder), group in groupby(sorted(moved), key=lambda move: move[:2]):
            found.append(Opening(name, mildest, milder, tuple(move[2] for move in group)))
    return found
