"""Try a draft of the rules on the calls that were decided: which would come out otherwise, and which nobody can tell.

Nothing is called. Who called is judged as they were then: their roles and groups of that moment, whether or not the
agent is still there. The tools are those of now.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.catalogue import Offer, Offered
from connectors.errors import InvalidArguments
from server.policy import Request, RuleSet, Ruling, Subject, decide, load_preset
from server.recorded import Recorded
from server.rules import Rulebook


@dataclass(frozen=True)
class Example:
    """One call of those that flip."""

    at: int
    agent: str
    arguments: Mapping[str, Any]


@dataclass
class Flip:
    """Calls of one tool that the same rules of the draft turn from one ruling into another."""

    tool: str
    before: Ruling
    after: Ruling
    rules: tuple[str, ...]
    count: int = 0
    already: int = 0
    """How many of them the rules of now turn just so: these are not the draft's doing."""
    examples: list[Example] = field(default_factory=list[Example])


@dataclass
class Replay:
    """What came of it. `unjudged` counts tools by the reason; `removed` and `changed` are calls whose agent is gone, or
    has other roles or groups by now.
    """

    calls: int = 0
    unchanged: int = 0
    flips: dict[tuple[Any, ...], Flip] = field(default_factory=dict[tuple[Any, ...], Flip])
    unjudged: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    removed: int = 0
    changed: int = 0


class _Unjudged(Exception):
    """Why a call cannot be judged."""


def replay(  # noqa: PLR0917 - the calls, what there is now, and the two sets to compare
    calls: Iterable[Recorded],
    offer: Offer,
    agents: Mapping[str, Subject],
    draft: Rulebook,
    current: Rulebook,
    examples: int,
) -> Replay:
    """Judge every call by the draft. `agents` are those of now, by id; `examples` is how many are kept of each flip."""
    tools = {(each.connection, each.tool.name): each for each in offer.tools}
    new, new_preset = RuleSet(draft.rules), load_preset(draft.preset)
    old, old_preset = RuleSet(current.rules), load_preset(current.preset)
    told = Replay()
    for call in calls:
        told.calls += 1
        try:
            request = _request(call, tools.get((call.connection, call.tool)), offer)
        except _Unjudged as problem:
            told.unjudged.setdefault(str(problem), Counter())[f"{call.connection}.{call.tool}"] += 1
            continue
        now = agents.get(call.agent)
        told.removed += now is None
        told.changed += now is not None and now.marks() != call.subject.marks()
        verdict, before = decide(call.subject, request, new, new_preset), Ruling(call.ruling)
        if verdict.ruling is before:
            told.unchanged += 1
            continue
        tool = f"{call.connection}.{call.tool}"
        key = (tool, before, verdict.ruling, verdict.rules)
        flip = told.flips.setdefault(key, Flip(*key))
        flip.count += 1
        flip.already += decide(call.subject, request, old, old_preset).ruling is verdict.ruling
        if len(flip.examples) < examples:
            flip.examples.append(Example(call.at, call.agent_name, request.arguments))
    return told


def _request(call: Recorded, offered: Offered | None, offer: Offer) -> Request:
    """The call as rules would see it now. Raises _Unjudged."""
    if offered is None:
        raise _Unjudged("the tool is gone")
    if offered.tool.effect.value != call.effect:
        raise _Unjudged(f"the tool's definition has changed: its effect was {call.effect}")
    if call.damaged:
        raise _Unjudged("its arguments cannot be opened")
    if call.arguments is None:
        raise _Unjudged("its arguments were too long to keep")
    try:
        bound = offer.bind(offered.name, call.arguments)
    except InvalidArguments:
        raise _Unjudged("its arguments do not fit the tool") from None
    return Request(call.connection, call.tool, offered.tool.effect, bound.arguments)
