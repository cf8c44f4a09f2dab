"""Our rules as Cedar policies, from their JSON shape alone: nothing of the evaluator is used here.

Every rule becomes up to two `permit` policies. `sure` is satisfied where all its conditions hold; `counts`, for what is
stricter than `allow`, where none of them fails, so also where one cannot be judged. That third value comes of how
arguments are given to Cedar: each as a record that says its kind (`number`, `text` with its `folded` twin, `flag`,
`object`, `list`, `null`), so that `has` is the check of presence and of type, and no expression is ever in error.

Numbers are Cedar decimals: up to four places, between -922337203685477.5807 and 922337203685477.5807. Cedar's `like`
knows `*` and not `?`. What is outside is left to the property tests of `test_policy.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

STRICTEST_FIRST = ("deny", "approve", "confirm", "allow")


# -- rules


def policies(own: Sequence[Mapping[str, Any]], preset: Sequence[Mapping[str, Any]]) -> str:
    """All policies for both sets; each carries its set, its place there, what it says, and `sure` or `counts`."""
    return "\n".join([*_of_set("own", own), *_of_set("preset", preset)])


def _of_set(name: str, rules: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for place, rule in enumerate(rules):
        head, then = f"permit({_who(rule['who'])}, action, resource)", rule["then"]
        scope = f"{_tools(rule['tools'])} && {_effects(rule['effects'])}"
        conditions = rule["when"]
        sure = " && ".join(f"({_met(condition)})" for condition in conditions) or "true"
        fails = " || ".join(f"({_failed(condition)})" for condition in conditions) or "false"
        yield f'@id("{name} {place} {then} sure")\n{head} when {{ {scope} && {sure} }};'
        if then != "allow":
            yield f'@id("{name} {place} {then} counts")\n{head} when {{ {scope} && !({fails}) }};'


def _who(who: str) -> str:
    if who in ("everyone", "acting"):
        return f'principal in Mark::"{who}"'
    kind, _, name = who.partition(":")
    return f"principal in {kind.capitalize()}::{literal(name)}"


def _tools(globs: Sequence[str]) -> str:
    return "(" + (" || ".join(f"context.target like {_pattern(glob)}" for glob in globs) or "true") + ")"


def _effects(effects: Sequence[str]) -> str:
    return f"[{', '.join(literal(effect) for effect in effects)}].contains(context.effect)" if effects else "true"


# -- conditions: when one is met, and when it fails; neither is when it cannot be judged


def _met(condition: Mapping[str, Any]) -> str:
    path, wanted, value = _Path(condition["argument"]), condition["value"], _Path(condition["argument"]).value
    match condition["op"]:
        case "present":
            return path.given if wanted else path.absent
        case "min":
            return f"{path.is_a('number')} && {value}.number.greaterThanOrEqual({decimal(wanted)})"
        case "max":
            return f"{path.is_a('number')} && {value}.number.lessThanOrEqual({decimal(wanted)})"
        case "prefix":
            return f"{path.is_a('text')} && {value}.text like {_pattern(wanted, beginning=True)}"
        case "glob":
            return f"{path.is_a('text')} && {value}.text like {_pattern(wanted)}"
        case _:
            kind, equal = _equal(value, wanted)
            return f"{path.is_a(kind)} && ({equal})"


def _failed(condition: Mapping[str, Any]) -> str:
    path, wanted, value = _Path(condition["argument"]), condition["value"], _Path(condition["argument"]).value
    match condition["op"]:
        case "present":
            return path.absent if wanted else path.given
        case "min":
            return f"{path.is_a('number')} && {value}.number.lessThan({decimal(wanted)})"
        case "max":
            return f"{path.is_a('number')} && {value}.number.greaterThan({decimal(wanted)})"
        case "prefix":
            return f"{path.is_a('text')} && !({value}.folded like {_pattern(wanted.casefold(), beginning=True)})"
        case "glob":
            return f"{path.is_a('text')} && !({value}.folded like {_pattern(wanted.casefold())})"
        case _:
            kind, equal = _equal(value, wanted, folded=True)
            return f"{path.is_a(kind)} && !({equal})"


def _equal(value: str, wanted: Any, *, folded: bool = False) -> tuple[str, str]:
    """The kind that is compared, and the comparison with each of the values."""
    several = wanted if isinstance(wanted, list) else [wanted]
    if isinstance(several[0], str):
        field = "folded" if folded else "text"
        texts = [one.casefold() if folded else one for one in several]
        return "text", " || ".join(f"{value}.{field} == {literal(text)}" for text in texts)
    if isinstance(several[0], bool):
        return "flag", " || ".join(f"{value}.flag == {str(one).lower()}" for one in several)
    return "number", " || ".join(f"{value}.number == {decimal(one)}" for one in several)


class _Path:
    """A dotted path into the arguments, as expressions."""

    def __init__(self, dotted: str) -> None:
        steps = [literal(step) for step in dotted.split(".")]
        holder = "context.args"
        self.found, self.absent, open_ = "true", "", 0
        for place, step in enumerate(steps):
            self.value = f"{holder}[{step}]"
            last = place == len(steps) - 1
            self.found += f" && {holder} has {step}" + ("" if last else f" && {self.value} has object")
            self.absent += f"!({holder} has {step})" + ("" if last else f" || ({self.value} has object && (")
            open_ += 0 if last else 2
            holder = f"{self.value}.object"
        self.absent = f"({self.absent}{')' * open_})"
        self.given = f"{self.found} && !({self.value} has null)"

    def is_a(self, kind: str) -> str:
        return f"{self.found} && {self.value} has {kind}"


# -- requests


def entities(subjects: Iterable[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One principal for each subject, a child of everything that rules can call it."""
    return [
        {"uid": {"type": "Caller", "id": name}, "attrs": {}, "parents": list(_parents(subject))}
        for name, subject in subjects
    ]


def _parents(subject: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    yield {"type": "Mark", "id": "everyone"}
    yield {"type": "Agent", "id": subject["agent"]}
    yield from ({"type": "Role", "id": role} for role in subject["roles"])
    yield from ({"type": "Group", "id": group} for group in subject["groups"])
    if subject["member"] is not None and not subject["standalone"]:
        yield from ({"type": "Mark", "id": "acting"}, {"type": "Member", "id": subject["member"]})


def request(name: str, connection: str, tool: str, effect: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call by the principal of that name."""
    return {
        "principal": {"type": "Caller", "id": name},
        "action": {"type": "Action", "id": "call"},
        "resource": {"type": "Tool", "id": "any"},
        "context": {"target": f"{connection}.{tool}", "effect": effect, "args": _record(arguments)},
    }


def _record(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _tagged(value) for name, value in arguments.items()}


def _tagged(value: Any) -> dict[str, Any]:
    match value:
        case None:
            return {"null": True}
        case bool():
            return {"flag": value}
        case int() | float():
            return {"number": {"__extn": {"fn": "decimal", "arg": _digits(value)}}}
        case str():
            return {"text": value, "folded": value.casefold()}
        case dict():
            return {"object": _record(value)}
        case _:
            return {"list": True}


# -- the verdict


def ruling(satisfied: Iterable[str]) -> tuple[str, set[tuple[str, int]]]:
    """What the satisfied policies come to, asked strictest first; and which rules said it."""
    said = [identifier.split() for identifier in satisfied]
    own = [(name, int(place), then) for name, place, then, how in said if name == "own" and _counts(then, how)]
    sure = any(name == "own" and how == "sure" for name, _, _, how in said)
    preset = [(name, int(place), then) for name, place, then, how in said if name == "preset" and _counts(then, how)]
    asked = own if sure else own + preset
    for level in STRICTEST_FIRST:
        deciding = {(name, place) for name, place, then in asked if then == level}
        if deciding:
            return level, deciding
    return "deny", set()


def _counts(then: str, how: str) -> bool:
    return how == ("sure" if then == "allow" else "counts")


# -- Cedar's spelling


def literal(text: str) -> str:
    """A string of Cedar, every character of it by its number."""
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _pattern(glob: str, *, beginning: bool = False) -> str:
    """A pattern for `like`: a star is any run, unless a beginning is meant, where it is a star."""
    star = "\\*" if beginning else "*"
    return '"' + "".join(star if char == "*" else _escaped(char) for char in glob) + ("*" if beginning else "") + '"'


def _escaped(char: str) -> str:
    return char if char.isascii() and (char.isalnum() or char in "_.:") else f"\\u{{{ord(char):x}}}"


def decimal(number: float) -> str:
    return f'decimal("{_digits(number)}")'


def _digits(number: float) -> str:
    text = format(Decimal(number), "f")
    return text if "." in text else f"{text}.0"
