"""Random rules and requests, each with what Cedar says; and how many of them an evaluator answers otherwise."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import cedarpy

from tests.cedar import translated

REQUESTS_PER_SET = 12


@dataclass(frozen=True)
class Pair:
    """One request under one set of rules and preset, with Cedar's ruling and the rules that made it."""

    own: list[dict[str, Any]]
    preset: list[dict[str, Any]]
    subject: dict[str, Any]
    call: tuple[str, str, str, dict[str, Any]]
    ruling: str
    rules: set[str]


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """So many pairs, the same for the same seed. Raises AssertionError where Cedar could not judge."""
    chance = random.Random(seed)
    made = 0
    while made < count:
        own = [_rule(chance, f"rul_{n}") for n in range(chance.randrange(6))]
        preset = [_rule(chance, f"preset_{n}") for n in range(chance.randrange(4))]
        subjects = [_subject(chance) for _ in range(REQUESTS_PER_SET)]
        calls = [_call(chance, own + preset) for _ in range(REQUESTS_PER_SET)]
        for subject, call, answer in zip(subjects, calls, _answers(own, preset, subjects, calls), strict=True):
            if made < count:
                made += 1
                yield Pair(own, preset, subject, call, *answer)


def _answers(
    own: list[dict[str, Any]],
    preset: list[dict[str, Any]],
    subjects: Sequence[dict[str, Any]],
    calls: Sequence[tuple[str, str, str, dict[str, Any]]],
) -> Iterator[tuple[str, set[str]]]:
    named = [(f"c{n}", subject) for n, subject in enumerate(subjects)]
    asked = [translated.request(name, *call) for (name, _), call in zip(named, calls, strict=True)]
    answers = cedarpy.is_authorized_batch(asked, translated.policies(own, preset), translated.entities(named))
    sets = {"own": own, "preset": preset}
    for answer in answers:
        assert answer.decision is not cedarpy.Decision.NoDecision, answer.diagnostics.errors
        assert not answer.diagnostics.errors, answer.diagnostics.errors
        ruling, deciding = translated.ruling(answer.diagnostics.id_annotations_by_reason.values())
        yield ruling, {sets[name][place]["id"] for name, place in deciding}


# -- an evaluator beside it


def mismatches(evaluator: ModuleType, given: Sequence[Pair], *, most: int = 1) -> list[tuple[Pair, str]]:
    """The pairs of which this evaluator (`server.policy`, or a mutant of it) says something else; `most` at most."""
    found: list[tuple[Pair, str]] = []
    kept: dict[int, tuple[Any, Any]] = {}
    for pair in given:
        if id(pair.own) not in kept:
            kept[id(pair.own)] = _parsed(evaluator, pair.own), _parsed(evaluator, pair.preset)
        try:
            verdict = _decided(evaluator, pair, *kept[id(pair.own)])
            said, rules = str(verdict.ruling), set(verdict.rules)
        except Exception as error:  # a mutant may not even answer
            said, rules = type(error).__name__, set()
        if said != pair.ruling or rules != pair.rules:
            found.append((pair, f"{said} {sorted(rules)}"))
            if len(found) >= most:
                break
    return found


def _parsed(evaluator: ModuleType, rules: list[dict[str, Any]]) -> Any:
    return evaluator.RuleSet(evaluator.parse_rule(rule) for rule in rules)


def _decided(evaluator: ModuleType, pair: Pair, own: Any, preset: Any) -> Any:
    connection, tool, effect, arguments = pair.call
    subject = evaluator.Subject(**pair.subject)
    asked = evaluator.Request(connection, tool, evaluator.Effect(effect), arguments)
    return evaluator.decide(subject, asked, own, preset)


# -- chance, from a vocabulary small enough that rules and requests meet


_PATHS = ("amount", "amount", "text", "flag", "to", "to.name", "to.deep.x")
_TEXTS = ("", "x", "X", "xy", "xY", "Acme/Prod", "acme/prod", "acme/", "ß", "ss", "SS", "*", "x*y", "a\nb", '"', "\\")
_TEXTS += ("\u0131", "I", "\u0130", "\u03c3", "\u03c2", "\u0430cme/prod", "\U0001f511", "\u00e9", "e\u0301", "\ufb01")
_NUMBERS = (-1, 0, 1, 1.0, 2, 2.5, 0.0625, -0.25, 5000, 4999.75, 10**12, -(10**14))
_GLOBS = ("*", "x*", "*y", "x*y", "Acme/*", "*/prod", "*ß*", "a*b*c", "x")
_WHO = ("everyone", "everyone", "acting", "acting", "role:member", "role:admin", "member:m1", "agent:a1", "group:g1")
_TOOLS = ("*", "s.*", "*.t", "s.t", "s2.*", "*.tt", "s*.t*", "s.t*", "st.*")
_EFFECTS = ("read", "metered", "sensitive", "write", "send", "spend", "destroy", "grant")


def _rule(chance: random.Random, identifier: str) -> dict[str, Any]:
    tools = chance.sample(_TOOLS, chance.randrange(3))
    effects = chance.sample(_EFFECTS[:4] * 2, chance.randrange(4))
    return {
        "id": identifier,
        "who": chance.choice(_WHO),
        "tools": tools or ([] if effects else ["*"]),
        "effects": sorted(set(effects)),
        "when": [_condition(chance) for _ in range(chance.choice((0, 0, 1, 1, 1, 2)))],
        "then": chance.choice(translated.STRICTEST_FIRST),
    }


def _condition(chance: random.Random) -> dict[str, Any]:
    op = chance.choice(("equals", "in", "min", "max", "prefix", "glob", "present"))
    kind = chance.choice((_TEXTS, _NUMBERS, (True, False)))
    match op:
        case "equals":
            value: Any = chance.choice(kind)
        case "in":
            value = [chance.choice(kind) for _ in range(chance.randrange(1, 4))]
        case "min" | "max":
            value = chance.choice(_NUMBERS)
        case "prefix":
            value = chance.choice([text for text in _TEXTS if text])
        case "glob":
            value = chance.choice(_GLOBS)
        case _:
            value = chance.random() < 0.5
    return {"argument": chance.choice(_PATHS), "op": op, "value": value}


def _subject(chance: random.Random) -> dict[str, Any]:
    return {
        "agent": chance.choice(("a1", "a2")),
        "member": chance.choice((None, "m1", "m2")),
        "roles": tuple(chance.sample(("member", "admin"), chance.randrange(3))),
        "groups": chance.choice(((), ("g1",), ("g2", "g1"))),
        "standalone": chance.random() < 0.2,
    }


def _call(chance: random.Random, rules: Sequence[dict[str, Any]]) -> tuple[str, str, str, dict[str, Any]]:
    arguments: dict[str, Any] = {}
    wanted = [condition for rule in rules for condition in rule["when"]]
    for path in ("amount", "text", "flag", "to"):
        if chance.random() < 0.7:
            arguments[path] = _value(chance)
    if chance.random() < 0.5:
        arguments["to"] = {"name": _value(chance), "deep": chance.choice(({}, {"x": _value(chance)}, "x"))}
    for condition in wanted:
        if chance.random() < 0.4:
            _put(arguments, condition["argument"].split("."), _near(chance, condition["value"]))
    return chance.choice(("s", "s2")), chance.choice(("t", "tt")), chance.choice(_EFFECTS[:4]), arguments


def _put(arguments: dict[str, Any], path: list[str], value: Any) -> None:
    for step in path[:-1]:
        inner = arguments.get(step)
        arguments[step] = dict(inner) if isinstance(inner, dict) else {}
        arguments = arguments[step]
    arguments[path[-1]] = value


def _near(chance: random.Random, value: Any) -> Any:
    """A value that a condition is about, or one beside it."""
    one = chance.choice(value) if isinstance(value, list) else value
    if isinstance(one, bool):
        return chance.choice((one, not one, 1, "true"))
    if isinstance(one, str):
        return chance.choice(
            (one, one, one.swapcase(), one.upper(), f"{one}x", f"x{one}", one.replace("*", "q"), [one])
        )
    return chance.choice((one, one, one + 0.25, one - 0.25, float(one), str(one), one > 0))


def _value(chance: random.Random) -> Any:
    return chance.choice((chance.choice(_TEXTS), chance.choice(_NUMBERS), chance.random() < 0.5, None, [], ["x"], {}))
