"""Why a call is decided as it is, and what would have to change for a looser outcome. For people, never for a model.

Every way that is suggested was tried: `decide` gives the promised ruling for exactly those arguments, or without
exactly those rules. Where no way is found, it is said whether none can exist.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from server.policy import (
    Condition,
    Holds,
    Request,
    Rule,
    Ruling,
    Subject,
    decide,
    dump_rule,
    prospects,
)

MOST_WAYS, MOST_CHANGES, MOST_TRIALS = 3, 3, 4000
"""How many ways to one outcome are shown, how many arguments a way changes at most, and how much is tried."""

Arguments = Mapping[str, Any]
Fit = Callable[[Arguments], Arguments | None]
"""Arguments as the tool takes them, or None for those that it does not take."""


def explain(
    subject: Subject,
    request: Request,
    rules: Sequence[Rule],
    preset: Sequence[Rule],
    *,
    fit: Fit = lambda arguments: arguments,
) -> dict[str, Any]:
    """The verdict of `decide`, with every rule that was looked at, and the ways to each looser one. JSON-ready."""
    verdict = decide(subject, request, rules, preset)
    marks, target = subject.marks(), f"{request.connection}.{request.tool}"
    sure = any(
        rule.concerns(marks, target, request.effect) and rule.holds(request.arguments) is Holds.YES for rule in rules
    )
    considered = [("org", rule) for rule in rules] + [("preset", rule) for rule in preset if not sure]
    return {
        "tool": target,
        "effect": str(request.effect),
        "ruling": str(verdict.ruling),
        "reason": verdict.reason,
        "rules": list(verdict.rules),
        "count": verdict.count,
        "approvers": list(verdict.approvers),
        "second_person": verdict.second_person,
        "preset_asked": not sure,
        "considered": [
            {"source": source, **_account(rule, marks, target, request), "rule": dump_rule(rule)}
            for source, rule in considered
        ],
        "looser": [_Search(subject, request, rules, preset, fit).to(ruling) for ruling in _looser(verdict.ruling)],
    }


def _looser(ruling: Ruling) -> list[Ruling]:
    return [other for other in Ruling if other < ruling]


def _account(rule: Rule, marks: frozenset[str], target: str, request: Request) -> dict[str, Any]:
    """What one rule says to one call, and the first thing that keeps it from saying more."""
    if not rule.concerns(marks, target, request.effect):
        if str(rule.who) not in marks:
            return {"matches": "no", "because": f"it is about {rule.who}"}
        if rule.effects and request.effect not in rule.effects:
            return {"matches": "no", "because": f"it is not about the effect {request.effect}"}
        return {"matches": "no", "because": f"it does not name {target}"}
    holds = rule.holds(request.arguments)
    if holds is Holds.YES:
        return {"matches": "yes", "because": "who, tool and every condition match"}
    open_ones = [f"{c.argument} must {_demand(c)}" for c in rule.when if c.holds(request.arguments) is holds]
    if holds is Holds.NO:
        return {"matches": "no", "because": f"not met: {', '.join(open_ones)}"}
    counts = "so it does not allow" if rule.then is Ruling.ALLOW else "so it applies"
    return {"matches": "unknown", "because": f"cannot be judged: {', '.join(open_ones)}; {counts}"}


# -- the ways


class _Search:
    """Looks for changes of the arguments, the fewest first, that lead from this request to another ruling."""

    def __init__(
        self, subject: Subject, request: Request, rules: Sequence[Rule], preset: Sequence[Rule], fit: Fit
    ) -> None:
        marks, target = subject.marks(), f"{request.connection}.{request.tool}"
        self.subject, self.request, self.fit = subject, request, fit
        self.rules = [rule for rule in rules if rule.concerns(marks, target, request.effect)]
        self.preset = [rule for rule in preset if rule.concerns(marks, target, request.effect)]

    def to(self, ruling: Ruling) -> dict[str, Any]:
        """The nearest ways to one ruling, or why there is none."""
        found = self._ways(ruling) if ruling in self._prospects() else []
        way_out = {"outcome": str(ruling), "ways": found, "without_rules": self._without(ruling)}
        return way_out if found else {**way_out, "because": self._in_the_way(ruling)}

    def _prospects(self) -> frozenset[Ruling]:
        request = self.request
        return prospects(self.subject, request.connection, request.tool, request.effect, self.rules, self.preset)

    def _ruling(self, arguments: Arguments, rules: Sequence[Rule] | None = None) -> Ruling:
        request = self.request
        asked = Request(request.connection, request.tool, request.effect, arguments)
        return decide(self.subject, asked, self.rules if rules is None else rules, self.preset).ruling

    def _ways(self, ruling: Ruling) -> list[dict[str, Any]]:
        candidates = self._candidates()
        trials = itertools.count()
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for size in range(1, min(MOST_CHANGES, len(candidates)) + 1):
            for paths in itertools.combinations(candidates, size):
                for values in itertools.product(*(candidates[path] for path in paths)):
                    if next(trials) >= MOST_TRIALS:
                        return list(found.values())
                    self._try(ruling, dict(zip(paths, values, strict=True)), found)
                    if len(found) == MOST_WAYS:
                        return list(found.values())
            if found:
                break
        return list(found.values())

    def _try(self, ruling: Ruling, changes: Mapping[str, Any], found: dict[tuple[Any, ...], dict[str, Any]]) -> None:
        """Keep these changes as a way, if they lead there and differ in more than their values from those found."""
        changed: Arguments | None = self.request.arguments
        for path, value in changes.items():
            changed = None if changed is None else _with(changed, path.split("."), value)
        if changed is None or self._ruling(changed) is not ruling:
            return
        fitting = self.fit(changed)
        if fitting is None or self._ruling(fitting) is not ruling:
            return
        told = [self._told(path, value, fitting) for path, value in changes.items()]
        key = tuple((change["argument"], *change["must"]) for change in told)
        found.setdefault(key, {"changes": told, "arguments": dict(fitting)})

    def _told(self, path: str, value: Any, arguments: Arguments) -> dict[str, Any]:
        """One change in words: what each rule that turns on it demands."""
        before = self.request.arguments
        must: list[str] = []
        for rule in (*self.rules, *self.preset):
            if rule.holds(before) is rule.holds(arguments):
                continue
            for condition in rule.when:
                after = condition.holds(arguments)
                if condition.argument == path and condition.holds(before) is not after and after is not Holds.UNKNOWN:
                    words = _demand(condition) if after is Holds.YES else _opposite(condition)
                    must.append(f"{words} ({rule.id}: {rule.then})")
        given = {} if value is _LEFT_OUT else {"value": value}
        return {"argument": path, "must": must, **given}

    def _candidates(self) -> dict[str, list[Any]]:
        """For each argument that a rule looks at, the values around which something changes; the nearest first."""
        found: dict[str, list[Any]] = {}
        for rule in (*self.rules, *self.preset):
            for condition in rule.when:
                values = found.setdefault(condition.argument, [])
                values += [value for value in _around(condition) if not _among(value, values)]
        for path, values in found.items():
            if not _among(_LEFT_OUT, values):
                values.append(_LEFT_OUT)
            values.sort(key=lambda value, path=path: _distance(self.request.arguments, path, value))
        return found

    # -- where no argument helps

    def _in_the_way(self, ruling: Ruling) -> str:
        """Why no arguments were found, in a sentence."""
        if ruling in self._prospects():
            return "No arguments were found that lead there, though some may."
        fixed = [rule.id for rule in self.rules if not rule.when and rule.then > ruling]
        if not fixed and all(rule.when for rule in self.rules):
            fixed = [rule.id for rule in self.preset if not rule.when and rule.then > ruling]
        if fixed:
            return f"No argument can: {', '.join(fixed)} applies whatever the arguments are."
        return f"No argument can: no rule says {ruling} for this agent and this tool."

    def _without(self, ruling: Ruling) -> list[str]:
        """The org's own rules without which this very call would come to the ruling; none where they do not decide."""
        kept, gone = list(self.rules), list[str]()
        while self._ruling(self.request.arguments, kept) > ruling:
            verdict = decide(self.subject, self.request, kept, self.preset)
            deciding = [rule.id for rule in kept if rule.id in verdict.rules]
            if not deciding:
                return []
            gone += deciding
            kept = [rule for rule in kept if rule.id not in deciding]
        return gone if self._ruling(self.request.arguments, kept) is ruling else []


# -- values and words


_LEFT_OUT = object()


def _with(arguments: Arguments, path: Sequence[str], value: Any) -> Arguments | None:
    """The arguments with one value changed or left out; None where the path does not lead through objects."""
    step, rest = path[0], path[1:]
    copy = dict(arguments)
    if rest:
        inner = copy.get(step, {})
        if not isinstance(inner, Mapping):
            return None
        within = _with(cast("Arguments", inner), rest, value)
        if within is None:
            return None
        copy[step] = within
    elif value is _LEFT_OUT:
        copy.pop(step, None)
    else:
        copy[step] = value
    return copy


def _around(condition: Condition) -> Iterator[Any]:
    """Values for which the condition holds, and such for which it does not."""
    wanted: Any = condition.value
    match condition.op:
        case "min" | "max":
            low, high = math.floor(wanted), math.ceil(wanted)
            yield from (wanted, low, high, low - 1, high + 1)
        case "equals" | "in":
            values = cast("tuple[Any, ...]", wanted if isinstance(wanted, tuple) else (wanted,))
            yield from values[:20]
            yield from _other_than(values)
        case "prefix":
            yield from (wanted, f"other than {wanted}")
        case "glob":
            yield from (wanted.replace("*", "").replace("?", "x"), wanted.replace("?", "x"))
            yield from ("", "-", f"other than {wanted}")
        case _:
            yield from ("text", 1, True, [], {})


def _other_than(values: Sequence[Any]) -> Iterable[Any]:
    first = values[0]
    if isinstance(first, str):
        return (f"other than {first}",)
    if isinstance(first, bool):
        return (not first,)
    return (max(values) + 1, min(values) - 1)


def _among(value: Any, values: Sequence[Any]) -> bool:
    return any(other is value or (type(other) is type(value) and other == value) for other in values)


def _distance(arguments: Arguments, path: str, value: Any) -> tuple[int, float]:
    """The nearest number first, then what else may be given, then leaving it out."""
    if value is _LEFT_OUT:
        return (2, 0)
    now: Any = arguments
    for step in path.split("."):
        now = cast("Arguments", now).get(step) if isinstance(now, Mapping) else None
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (now, value))
    try:
        return (0, float(abs(now - value))) if numbers else (1, 0)
    except OverflowError:
        return (0, math.inf)


def _demand(condition: Condition) -> str:
    """What a condition asks for, after `must`."""
    wanted = _shown(condition.value)
    if condition.op == "present":
        return "be given" if condition.value else "be left out"
    return f"{_WORDS[condition.op][0]} {wanted}"


def _opposite(condition: Condition) -> str:
    wanted = _shown(condition.value)
    if condition.op == "present":
        return "be left out" if condition.value else "be given"
    return f"{_WORDS[condition.op][1]} {wanted}"


_WORDS = {
    "min": ("be at least", "be below"),
    "max": ("be at most", "be above"),
    "equals": ("be", "be other than"),
    "in": ("be one of", "be none of"),
    "prefix": ("begin with", "not begin with"),
    "glob": ("fit", "not fit"),
}


def _shown(value: Any) -> str:
    import json

    return ", ".join(map(_shown, cast("Sequence[Any]", value))) if isinstance(value, tuple) else json.dumps(value)
