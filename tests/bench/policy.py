"""`python -m tests.bench.policy`: deciding a call beside Cedar, on the same rules and the same requests, taking turns.

Both have their rules read beforehand: Cedar a parsed policy set and parsed entities, ours an indexed set. Cedar is
asked for what it takes to tell the four rulings apart in one question: every rule is one permit policy, its ruling an
annotation, and the satisfied ones are the answer. The rules have no unknown to judge, so that one policy is enough. The
answers are compared before anything is measured. And listing: 500 tools in one go, beside 500 single decisions.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cedarpy

from connectors.definition import Effect
from server.policy import Request, RuleSet, Subject, decide, load_preset, parse_rule, reach
from tests.cedar import translated

SIZES = (100, 1000)
ROUNDS = 7
REQUESTS = 200
TOOLS = 500


def rules(count: int, chance: random.Random) -> list[dict[str, Any]]:
    """An org's rules as they come about: by role, group, member and agent, of a tool, a connection or an effect."""
    found: list[dict[str, Any]] = []
    for place in range(count):
        connection = f"service{chance.randrange(20)}"
        who = chance.choice(("acting", "role:member", "role:admin", f"group:g{chance.randrange(30)}"))
        who = chance.choice((who, f"agent:a{chance.randrange(60)}", f"member:m{chance.randrange(40)}"))
        tools = [chance.choice((f"{connection}.tool{chance.randrange(25)}", f"{connection}.*", f"{connection}.tool1*"))]
        when = [] if chance.random() < 0.5 else [{"argument": "amount", "op": "max", "value": chance.randrange(10_000)}]
        found.append(
            {
                "id": f"rul_{place}",
                "who": who,
                "tools": tools,
                "effects": [] if chance.random() < 0.6 else [chance.choice(("read", "write", "spend"))],
                "when": when,
                "then": chance.choice(("allow", "confirm", "approve", "deny")),
            }
        )
    return found


def contest(count: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Microseconds of a decision with so many rules, ours and Cedar's, and how often the one goes into the other."""
    chance = random.Random(count)
    own, subject = (
        rules(count, chance),
        {"agent": "a1", "member": "m1", "roles": ("member",), "groups": ("g1", "g2"), "standalone": False},
    )
    calls = [_call(chance) for _ in range(REQUESTS)]
    preset = load_preset("default")
    # Ours.
    kept, caller = RuleSet(parse_rule(rule) for rule in own), Subject(**subject)
    asked = [Request(connection, tool, Effect(effect), arguments) for connection, tool, effect, arguments in calls]
    # Cedar's: the preset's rules stand beside the org's.
    shapes = [
        {"who": "acting", "tools": [], "when": [], "effects": list(map(str, one.effects)), "then": str(one.then)}
        for one in preset
    ]
    policies = cedarpy.PolicySet.from_str(_sure(translated.policies(own, shapes)))
    entities = cedarpy.Entities.from_json_str(json.dumps(translated.entities([("c", subject)])))
    questions = [translated.request("c", *call) for call in calls]
    for request, question in zip(asked, questions, strict=True):
        answer = cedarpy.is_authorized(question, policies, entities)
        satisfied = answer.diagnostics.id_annotations_by_reason.values()
        ruling, _ = translated.ruling([*satisfied, *(said.replace("sure", "counts") for said in satisfied)])
        verdict = decide(caller, request, kept, preset)
        assert str(verdict.ruling) == ruling, f"they differ on {question}"
    ours, theirs = _turns(
        rounds,
        lambda: [decide(caller, request, kept, preset) for request in asked],
        lambda: [cedarpy.is_authorized(question, policies, entities) for question in questions],
    )
    return {
        "rules": count,
        "ours_us": round(ours / REQUESTS * 1e6, 1),
        "cedar_us": round(theirs / REQUESTS * 1e6, 1),
        "times_faster": round(theirs / ours, 1),
    }


def _sure(policies: str) -> str:
    """One policy a rule: without anything unknown `sure` and `counts` are the same, so `sure` stands for both."""
    return "\n".join(f"@id{one}" for one in policies.split("@id") if ' sure")' in one)


def _call(chance: random.Random) -> tuple[str, str, str, dict[str, Any]]:
    tool = f"tool{chance.randrange(25)}"
    return (
        f"service{chance.randrange(20)}",
        tool,
        chance.choice(("read", "write", "spend")),
        {"amount": chance.randrange(10_000), "note": "x"},
    )


def listing(count: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds to say which of 500 tools are within a caller's reach, and to decide one call of each."""
    chance = random.Random(count + 1)
    kept, preset = RuleSet(parse_rule(rule) for rule in rules(count, chance)), load_preset("default")
    caller = Subject("a1", "m1", ("member",), ("g1", "g2"))
    effects = (Effect.READ, Effect.WRITE, Effect.SPEND)
    tools = [(f"service{n // 25}", f"tool{n % 25}", effects[n % 3]) for n in range(TOOLS)]

    def listed() -> list[bool]:
        reaches = reach(caller, kept, preset)
        return [reaches(*tool) for tool in tools]

    together, single = _turns(
        rounds, listed, lambda: [decide(caller, Request(*tool, {"amount": 1}), kept, preset) for tool in tools]
    )
    return {
        "rules": count,
        "tools": TOOLS,
        "listing_ms": round(together * 1e3, 2),
        "decisions_ms": round(single * 1e3, 2),
        "ratio": round(together / single, 2),
    }


def _turns(rounds: int, one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of each, the median of the rounds; they take turns, so that a busy machine is busy for both."""
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, times in zip((one, other), taken, strict=True):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
    return statistics.median(taken[0]), statistics.median(taken[1])


def bench(rounds: int = ROUNDS) -> dict[str, Any]:
    """The whole report."""
    return {
        "python": platform.python_version(),
        "cedarpy": version("cedarpy"),
        "decisions": [contest(count, rounds) for count in SIZES],
        "listing": [listing(count, rounds) for count in SIZES],
    }


def main() -> int:
    """Print the figures; 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.policy", description="Deciding a call beside Cedar.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    given = parser.parse_args()
    report = bench()
    for one in report["decisions"]:
        figures = f"{one['ours_us']} us a decision, Cedar {one['cedar_us']} us: {one['times_faster']} times faster"
        print(f"{one['rules']:>5} rules: {figures}")
    for one in report["listing"]:
        figures = f"{one['listing_ms']} ms, as many decisions {one['decisions_ms']} ms: ratio {one['ratio']}"
        print(f"{one['rules']:>5} rules: listing {one['tools']} tools {figures}")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    fine = all(one["times_faster"] >= 5 for one in report["decisions"]) and all(
        one["ratio"] < 1 for one in report["listing"]
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
