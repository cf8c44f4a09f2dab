"""What work prepared ahead is bounded by: which calls are within, and the strictest that the rules say to any of them.

Total: an argument that is absent, of another kind or spelt in another letter case is outside.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from connectors.definition import Effect
from server.policy import Condition, Holds, Rule, Ruling, Subject, Verdict, all_circles


def within(bounds: Iterable[Condition], arguments: Mapping[str, Any]) -> bool:
    """Whether a call with these arguments is inside all bounds, for certain."""
    return all(bound.holds(arguments) is Holds.YES for bound in bounds)


@dataclass(frozen=True)
class Reach:
    """What may call what: one tool, one subject."""

    subject: Subject
    connection: str
    tool: str
    effect: Effect


def strictest(
    reaches: Iterable[Reach], bounds: Sequence[Condition], rules: Sequence[Rule], preset: Sequence[Rule]
) -> dict[Reach, Verdict | None]:
    """For each, the strictest verdict short of `deny` that a call within the bounds could get; None where all are.

    Where it cannot be told, what is stricter is taken: a call's own verdict is never stricter than this one, unless it
    is `deny`.
    """
    return {reach: _strictest(reach, bounds, rules, preset) for reach in reaches}


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict that is as strict as each of these."""
    found = list(verdicts)
    ruling = max(found, key=lambda verdict: verdict.ruling.strictness).ruling
    deciding = [verdict for verdict in found if verdict.ruling is ruling]
    return Verdict(
        ruling,
        "",
        tuple(dict.fromkeys(rule for verdict in deciding for rule in verdict.rules)),
        count=max(verdict.count for verdict in deciding),
        approvers=all_circles(circle for verdict in deciding for circle in verdict.circles),
        second_person=any(verdict.second_person for verdict in deciding),
    )


def _strictest(
    reach: Reach, bounds: Sequence[Condition], rules: Sequence[Rule], preset: Sequence[Rule]
) -> Verdict | None:
    marks, target = reach.subject.marks(), f"{reach.connection}.{reach.tool}"
    found = [rule for rule in rules if rule.concerns(marks, target, reach.effect) and _may_hold(rule, bounds)]
    if _denied(found, bounds):
        return None
    if not any(_holds(rule, bounds) for rule in found):
        asked = [rule for rule in preset if rule.concerns(marks, target, reach.effect) and _may_hold(rule, bounds)]
        found += [] if _denied(asked, bounds) else asked
    possible = [rule for rule in found if rule.then is not Ruling.DENY]
    if not possible:
        return None
    ruling = max(possible, key=lambda rule: rule.then.strictness).then
    deciding = [rule for rule in possible if rule.then is ruling]
    return Verdict(
        ruling,
        "",
        tuple(rule.id for rule in deciding),
        count=max(rule.count for rule in deciding),
        approvers=all_circles(rule.approvers for rule in deciding),
        second_person=any(rule.second_person for rule in deciding),
    )


def _denied(rules: Iterable[Rule], bounds: Sequence[Condition]) -> bool:
    return any(rule.then is Ruling.DENY and _holds(rule, bounds) for rule in rules)


def _may_hold(rule: Rule, bounds: Sequence[Condition]) -> bool:
    return all(_judged(condition, bounds) is not Holds.NO for condition in rule.when)


def _holds(rule: Rule, bounds: Sequence[Condition]) -> bool:
    return all(_judged(condition, bounds) is Holds.YES for condition in rule.when)


def _judged(condition: Condition, bounds: Sequence[Condition]) -> Holds:
    """What a rule's condition says to every call within the bounds; UNKNOWN where it may differ or cannot be told."""
    same = [bound for bound in bounds if bound.argument == condition.argument]
    if condition.op == "present" and any(bound.op != "present" for bound in same):
        return Holds.YES if condition.value else Holds.NO
    for values in (_values(bound) for bound in same):
        said = {condition.holds(_nested(condition.argument, value)) for value in values}
        if len(said) == 1:
            return said.pop()
    return _compared(condition, *_interval(same)) if same else Holds.UNKNOWN


def _values(bound: Condition) -> tuple[Any, ...]:
    """Every value that the bound lets through, where they are listed."""
    if bound.op == "equals":
        return (bound.value,)
    return cast("tuple[Any, ...]", bound.value) if bound.op == "in" else ()


def _interval(bounds: Iterable[Condition]) -> tuple[float, float]:
    least, most = -math.inf, math.inf
    for bound in bounds:
        if bound.op == "min":
            least = max(least, cast("float", bound.value))
        if bound.op == "max":
            most = min(most, cast("float", bound.value))
    return least, most


def _compared(condition: Condition, least: float, most: float) -> Holds:
    if (least, most) == (-math.inf, math.inf):
        return Holds.UNKNOWN
    value: Any = condition.value
    if condition.op == "min":
        return Holds.YES if least >= value else Holds.NO if most < value else Holds.UNKNOWN
    if condition.op == "max":
        return Holds.YES if most <= value else Holds.NO if least > value else Holds.UNKNOWN
    values = [value] if condition.op == "equals" else value if condition.op == "in" else None
    numbers = values is not None and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    if values is not None and numbers and not any(least <= one <= most for one in values):
        return Holds.NO
    return Holds.UNKNOWN


def _nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: _nested(rest, value) if rest else value}
