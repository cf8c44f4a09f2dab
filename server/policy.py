"""Say what becomes of a call: allowed, confirmed by a person, approved by a named one, or denied. No rule means no.

Pure and total: the verdict follows from its arguments alone, and every call gets one. What a rule cannot judge,
because an argument is absent, of another kind, or spelt in another letter case, never counts toward `allow` and
always counts toward everything stricter.
"""

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from connectors.definition import Effect

__all__ = [
    "ANYONE",
    "APPROVING",
    "OPERATORS",
    "PRESETS",
    "ROLES",
    "Condition",
    "Holds",
    "Request",
    "Rule",
    "RuleError",
    "RuleSet",
    "Ruling",
    "Subject",
    "Verdict",
    "Who",
    "all_circles",
    "decide",
    "dump_rule",
    "load_preset",
    "parse_rule",
    "possible",
    "presets_folder",
    "prospects",
    "reach",
    "within",
]

ROLES = ("owner", "admin", "approver", "auditor", "member")
PRESETS = ("default", "solo", "strict")
_NAMELESS = ("everyone", "acting")
_NAMED = ("role", "member", "agent", "group")
_WHO_FORMS = "everyone, acting, role:NAME, member:ID, agent:ID or group:NAME"


class RuleError(ValueError):
    """A rule that cannot mean anything. The message says how to mend it and is meant for the person who wrote it."""


class Ruling(StrEnum):
    """What becomes of a call, from the loosest to the strictest. They compare by strictness, not by spelling."""

    ALLOW = "allow"
    CONFIRM = "confirm"
    APPROVE = "approve"
    DENY = "deny"

    strictness: int

    def __new__(cls, value: str) -> "Ruling":
        """Give each its rank, in the order of this page."""
        ruling = str.__new__(cls, value)
        ruling._value_ = value
        ruling.strictness = len(cls.__members__)
        return ruling

    def __lt__(self, other: str) -> bool:
        """Looser than."""
        return self.strictness < Ruling(other).strictness

    def __le__(self, other: str) -> bool:
        """As strict at most."""
        return self.strictness <= Ruling(other).strictness

    def __gt__(self, other: str) -> bool:
        """Stricter than."""
        return self.strictness > Ruling(other).strictness

    def __ge__(self, other: str) -> bool:
        """As strict at least."""
        return self.strictness >= Ruling(other).strictness


class Holds(Enum):
    """Whether a condition holds; UNKNOWN where the argument does not let us say."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


_YES, _NO, _UNKNOWN = Holds  # an attribute of an Enum class costs as much as a call
_DENY = Ruling.DENY

Value = str | float | bool
_Test = Callable[[Any], Holds]


@dataclass(frozen=True)
class Who:
    """Whom a rule is about: `everyone`, `acting` (agents that act for a member), or a role, member, agent or group."""

    kind: str
    name: str | None = None

    def __post_init__(self) -> None:
        """Raise RuleError for a kind we do not know, or one without the name it needs."""
        if self.kind in _NAMELESS:
            if self.name is not None:
                raise RuleError(f"who: {self.kind} takes no name. Write `{self.kind}`.")
            return
        if self.kind not in _NAMED:
            raise RuleError(f"who: there is no {self.kind!r}. Write one of {_WHO_FORMS}.")
        if not self.name:
            raise RuleError(f"who: {self.kind} needs a name. Write `{self.kind}:NAME`.")
        if self.kind == "role" and self.name not in ROLES:
            raise RuleError(f"who: there is no role {self.name!r}. Roles are {', '.join(ROLES)}.")

    @classmethod
    def parse(cls, text: str) -> "Who":
        """Read `everyone`, `acting` or `KIND:NAME`. Raises RuleError."""
        kind, colon, name = text.partition(":")
        return cls(kind, name if colon else None)

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return self.kind if self.name is None else f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Condition:
    """One demand on one argument: `argument` is a name, or a dotted path into an object."""

    argument: str
    op: str
    value: Value | tuple[Value, ...]
    _path: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _test: _Test = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compile the demand. Raises RuleError."""
        if not self.argument or not all(self.argument.split(".")):
            raise RuleError(f"when: {self.argument!r} names no argument. Write its name, or a path such as `a.b`.")
        if self.op not in OPERATORS:
            raise RuleError(f"when: there is no operator {self.op!r}. Operators are {', '.join(OPERATORS)}.")
        object.__setattr__(self, "_path", tuple(self.argument.split(".")))
        object.__setattr__(self, "_test", OPERATORS[self.op](self.value))

    def holds(self, arguments: Mapping[str, Any]) -> Holds:
        """Whether these arguments meet the demand. Never raises."""
        return self._test(_look_up(arguments, self._path))


@dataclass(frozen=True)
class Rule:
    """Who × tools × effects × argument conditions → a ruling. An empty `tools` or `effects` is no constraint.

    `tools` are globs over `connection.tool`. With `then` APPROVE, `count` different people must agree; `approvers` is
    a role or `group:NAME` (None: anyone who may approve at all); `second_person` keeps out who the agent acts for.
    """

    id: str
    who: Who
    tools: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    when: tuple[Condition, ...] = ()
    then: Ruling = Ruling.DENY
    count: int = 1
    approvers: str | None = None
    second_person: bool = False
    _who: str = field(init=False, repr=False, compare=False)
    _names_tool: Callable[[str], object] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check and compile the rule. Raises RuleError."""
        if not self.id:
            raise RuleError("id: a rule needs one.")
        if not self.tools and not self.effects:
            raise RuleError("tools: name tools, effects, or both. Write `tools: ['*']` for every tool.")
        for glob in self.tools:
            _check_tool_glob(glob)
        _check_approval(self)
        object.__setattr__(self, "_who", str(self.who))
        object.__setattr__(self, "_names_tool", _any_glob(self.tools or ("*",)))

    def concerns(self, marks: frozenset[str], target: str, effect: Effect) -> bool:
        """Whether the rule is about this subject and this tool at all, whatever the arguments."""
        return (
            self._who in marks and (not self.effects or effect in self.effects) and self._names_tool(target) is not None
        )

    def holds(self, arguments: Mapping[str, Any]) -> Holds:
        """Whether all conditions hold: NO if one does not, else UNKNOWN if one cannot be judged, else YES."""
        verdict = _YES
        for condition in self.when:
            one = condition.holds(arguments)
            if one is _NO:
                return _NO
            if one is _UNKNOWN:
                verdict = _UNKNOWN
        return verdict


class RuleSet(tuple[Rule, ...]):
    """Rules in their order, indexed by whom and which tools they name: many cost little more than the few that count.

    The index only leaves out what could not concern a call; `Rule.concerns` still says what does.
    """

    _shelves: dict[str, "_Shelf"]

    def __new__(cls, rules: Iterable[Rule] = ()) -> "RuleSet":
        """Index these rules."""
        made = super().__new__(cls, rules)
        made._shelves = {}
        for place, rule in enumerate(made):
            made._shelves.setdefault(str(rule.who), _Shelf()).put(place, rule)
        return made

    def about(self, marks: frozenset[str], target: str, effect: Effect) -> list[Rule]:
        """The rules that concern this subject and this tool, in their order."""
        found: dict[int, Rule] = {}
        connection = target.partition(".")[0]
        for mark in marks:
            shelf = self._shelves.get(mark)
            if shelf is None:
                continue
            for there in (shelf.targets.get(target, ()), shelf.connections.get(connection, ()), shelf.others):
                for place, rule in there:
                    if rule.concerns(marks, target, effect):
                        found[place] = rule
        return [found[place] for place in sorted(found)]


@dataclass(slots=True)
class _Shelf:
    """The rules about one `who`, by how much of the tool's name their globs spell out, each with its place."""

    targets: dict[str, list[tuple[int, Rule]]] = field(default_factory=dict[str, list[tuple[int, Rule]]])
    connections: dict[str, list[tuple[int, Rule]]] = field(default_factory=dict[str, list[tuple[int, Rule]]])
    others: list[tuple[int, Rule]] = field(default_factory=list[tuple[int, Rule]])

    def put(self, place: int, rule: Rule) -> None:
        for glob in rule.tools or ("*",):
            connection, dot, _ = glob.partition(".")
            if not _WILD.search(glob):
                self.targets.setdefault(glob, []).append((place, rule))
            elif dot and not _WILD.search(connection):
                self.connections.setdefault(connection, []).append((place, rule))
            else:
                self.others.append((place, rule))


_WILD = re.compile(r"[*?]")


@dataclass(frozen=True)
class Subject:
    """Who is calling, as far as rules can tell people and agents apart. Ids, not names."""

    agent: str
    member: str | None
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    standalone: bool = False

    def marks(self) -> frozenset[str]:
        """Every form of `who` that means this subject."""
        return self._marks

    @cached_property
    def _marks(self) -> frozenset[str]:
        marks = {"everyone", f"agent:{self.agent}"}
        if self.member is not None and not self.standalone:
            marks |= {"acting", f"member:{self.member}"}
        marks.update([f"role:{role}" for role in self.roles])
        marks.update([f"group:{group}" for group in self.groups])
        return frozenset(marks)


@dataclass(frozen=True)
class Request:
    """A call, as far as rules can see it."""

    connection: str
    tool: str
    effect: Effect
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What becomes of a call and why. `reason` names no argument value, so it may be shown to the model and logged.

    With APPROVE: `count` different people must agree, and each must be in every one of `approvers` (roles, `group:NAME`
    or ANYONE; by itself, that is left out).
    """

    ruling: Ruling
    reason: str
    rules: tuple[str, ...] = ()
    count: int = 1
    approvers: tuple[str, ...] = ()
    second_person: bool = False

    def stricter_than(self, earlier: "Verdict") -> bool:
        """Whether something agreed to under `earlier` no longer suffices."""
        if self.ruling is not earlier.ruling:
            return self.ruling > earlier.ruling
        return (
            self.count > earlier.count
            or not all(any(within(given, wanted) for given in earlier.circles) for wanted in self.circles)
            or (self.second_person and not earlier.second_person)
        )

    @property
    def circles(self) -> tuple[str, ...]:
        """Of every one of these must each who agrees be."""
        return self.approvers or (ANYONE,)


ANYONE = "role:any"
"""The circle of those who may approve at all: approvers, admins and owners."""
APPROVING = ("approver", "admin", "owner")


def within(circle: str, wanted: str) -> bool:
    """Whether everybody in one circle is certainly in the other."""
    return circle == wanted or (wanted == ANYONE and circle in APPROVING)


def all_circles(circles: Iterable[str | None]) -> tuple[str, ...]:
    """What rules or verdicts ask for together: who agrees must be in each circle, and None asks for ANYONE's.

    So that one more rule never lets in somebody whom the others keep out.
    """
    named = dict.fromkeys(circle or ANYONE for circle in circles)
    return () if list(named) == [ANYONE] else tuple(named)


def decide(subject: Subject, request: Request, rules: Sequence[Rule], preset: Sequence[Rule]) -> Verdict:
    """The verdict on a call. No rule means no.

    Among the org's own rules that match, the strictest wins. Only where none of them matches for certain is the
    preset asked too: a rule that merely may match can tighten what the preset says, never loosen it.
    """
    marks, target = subject.marks(), f"{request.connection}.{request.tool}"
    matches = _matches(rules, marks, target, request)
    if not any(holds is _YES for _, holds in matches):
        matches += _matches(preset, marks, target, request)
    if not matches:
        return Verdict(Ruling.DENY, f"No rule means no: nothing lets this agent call {target} ({request.effect}).")
    strictest = max([rule.then.strictness for rule, _ in matches])
    return _verdict([match for match in matches if match[0].then.strictness == strictest], target, request)


def possible(  # noqa: PLR0917 - read like the sentence it asks; rules and preset as in decide
    subject: Subject,
    connection: str,
    tool: str,
    effect: Effect,
    rules: Sequence[Rule],
    preset: Sequence[Rule],
) -> bool:
    """Whether any arguments could lead to something other than deny: False is certain, True is for `decide` to say."""
    return reach(subject, rules, preset)(connection, tool, effect)


def reach(subject: Subject, rules: Sequence[Rule], preset: Sequence[Rule]) -> Callable[[str, str, Effect], bool]:
    """`possible` for one subject and any number of tools, each as (connection, tool, effect)."""
    marks = subject.marks()

    def reaches(connection: str, tool: str, effect: Effect) -> bool:
        target = f"{connection}.{tool}"
        own = _opens(_about(rules, marks, target, effect))
        return bool(_opens(_about(preset, marks, target, effect))) if own is None else own

    return reaches


def _opens(rules: Sequence[Rule]) -> bool | None:
    """Whether these let anything through: not where one denies whatever the arguments are; None: they do not say."""
    opens = None
    for rule in rules:
        if rule.then is not _DENY:
            opens = True
        elif not rule.when:
            return False
    return opens


def prospects(  # noqa: PLR0917 - read like possible
    subject: Subject,
    connection: str,
    tool: str,
    effect: Effect,
    rules: Sequence[Rule],
    preset: Sequence[Rule],
) -> frozenset[Ruling]:
    """Every ruling that arguments could lead to. `decide` gives none that is not among these."""
    marks, target = subject.marks(), f"{connection}.{tool}"
    own = _about(rules, marks, target, effect)
    if any(not rule.when for rule in own):
        return _from_the_floor(own)
    fallback = _about(preset, marks, target, effect)
    return frozenset(rule.then for rule in own) | _from_the_floor(fallback)


def _from_the_floor(rules: Sequence[Rule]) -> frozenset[Ruling]:
    """What rules of one kind can come to: the strictest without conditions, or what is stricter under conditions."""
    floor = max((rule.then for rule in rules if not rule.when), default=None)
    if floor is None:
        return frozenset(rule.then for rule in rules) | {Ruling.DENY}
    return frozenset(rule.then for rule in rules if rule.then > floor) | {floor}


# -- what decide is made of


_Match = tuple[Rule, Holds]


def _about(rules: Sequence[Rule], marks: frozenset[str], target: str, effect: Effect) -> Sequence[Rule]:
    """The rules that concern this subject and this tool at all."""
    if isinstance(rules, RuleSet):
        return rules.about(marks, target, effect)
    return [rule for rule in rules if rule.concerns(marks, target, effect)]


def _matches(rules: Sequence[Rule], marks: frozenset[str], target: str, request: Request) -> list[_Match]:
    """The rules that count, with YES or, for what is stricter than `allow`, UNKNOWN."""
    effect, arguments = request.effect, request.arguments
    found: list[_Match] = []
    for rule in _about(rules, marks, target, effect):
        holds = rule.holds(arguments) if rule.when else _YES
        if holds is _YES or (holds is _UNKNOWN and rule.then is not Ruling.ALLOW):
            found.append((rule, holds))
    return found


def _verdict(deciding: Sequence[_Match], target: str, request: Request) -> Verdict:
    """Put the rules that agree on the strictest ruling together: the most people, all circles, any second person."""
    rules = [rule for rule, _ in deciding]
    ruling = rules[0].then
    ids = tuple([rule.id for rule in rules])
    reason = f"{target} ({request.effect}) {_SENTENCES[str(ruling)]} Decided by {', '.join(ids)}."
    unjudged = [rule for rule, holds in deciding if holds is _UNKNOWN]
    if unjudged:
        names = {c.argument: None for rule in unjudged for c in rule.when if _unclear(c, request.arguments)}
        listed = ", ".join(f"`{name}`" for name in names)
        reason += f" It applies because {listed} is absent or not in a form the rule can judge."
    if ruling is not Ruling.APPROVE:  # no other rule carries demands, see _check_approval
        return Verdict(ruling, reason, ids)
    return Verdict(
        ruling,
        reason,
        ids,
        count=max(rule.count for rule in rules),
        approvers=all_circles(rule.approvers for rule in rules),
        second_person=any(rule.second_person for rule in rules),
    )


_SENTENCES = {
    "allow": "is allowed.",
    "confirm": "must be confirmed by a person.",
    "approve": "must be approved by a person who is signed in.",
    "deny": "is denied.",
}


def _unclear(condition: Condition, arguments: Mapping[str, Any]) -> bool:
    return condition.holds(arguments) is _UNKNOWN


# -- conditions


_ABSENT = object()
_UNREADABLE = object()


def _look_up(arguments: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path; _ABSENT if it is not given; _UNREADABLE if it is null or the path leaves objects."""
    value = arguments.get(path[0], _ABSENT)
    for step in path[1:]:
        if value is _ABSENT:
            return _ABSENT
        if not isinstance(value, Mapping):
            return _UNREADABLE
        value = cast("Mapping[str, Any]", value).get(step, _ABSENT)
    return _UNREADABLE if value is None else value


def _equals(wanted: Any) -> _Test:
    return _one_of((wanted,))


def _in(wanted: Any) -> _Test:
    if not isinstance(wanted, tuple) or not wanted:
        _misfit("in", "a list of values", wanted)
    return _one_of(cast("tuple[Any, ...]", wanted))


def _one_of(wanted: tuple[Any, ...]) -> _Test:
    """Equality among values of one kind: text, numbers or booleans. True is no number here, unlike in Python."""
    if all(isinstance(value, str) for value in wanted):
        exact, folded = frozenset(wanted), frozenset(value.casefold() for value in wanted)
        return _text(lambda given: given in exact, lambda given: given in folded)
    if all(isinstance(value, bool) for value in wanted):
        return lambda given: _UNKNOWN if not isinstance(given, bool) else _yes_no(given in wanted)
    if all(_is_number(value) for value in wanted):
        return lambda given: _UNKNOWN if not _is_number(given) else _yes_no(given in wanted)
    return _misfit("equals and in", "text, numbers or booleans, all of one kind", wanted)


def _min(wanted: Any) -> _Test:
    if not _is_number(wanted):
        _misfit("min", "a number", wanted)
    return lambda given: _UNKNOWN if not _is_number(given) else _yes_no(given >= wanted)


def _max(wanted: Any) -> _Test:
    if not _is_number(wanted):
        _misfit("max", "a number", wanted)
    return lambda given: _UNKNOWN if not _is_number(given) else _yes_no(given <= wanted)


def _prefix(wanted: Any) -> _Test:
    if not isinstance(wanted, str) or not wanted:
        _misfit("prefix", "the beginning of a text", wanted)
    folded = wanted.casefold()
    return _text(lambda given: given.startswith(wanted), lambda given: given.startswith(folded))


def _glob(wanted: Any) -> _Test:
    if not isinstance(wanted, str) or not wanted:
        _misfit("glob", "a pattern of text, * and ?", wanted)
    exact, folded = _any_glob((wanted,)), _any_glob((wanted.casefold(),))
    return _text(lambda given: exact(given) is not None, lambda given: folded(given) is not None)


def _present(wanted: Any) -> _Test:
    """The one operator for which an absent argument is an answer. null is neither present nor absent."""
    if not isinstance(wanted, bool):
        _misfit("present", "true or false", wanted)
    return lambda given: _UNKNOWN if given is _UNREADABLE else _yes_no((given is not _ABSENT) is wanted)


OPERATORS: dict[str, Callable[[Any], _Test]] = {
    "equals": _equals,
    "in": _in,
    "min": _min,
    "max": _max,
    "prefix": _prefix,
    "glob": _glob,
    "present": _present,
}


def _text(exact: Callable[[str], bool], folded: Callable[[str], bool]) -> _Test:
    """Compare text exactly to allow; what differs in letter case alone cannot be judged.

    Many services read `Acme/Prod` and `acme/prod` as one: a rule that denies the one must not let the other pass.
    """

    def test(given: Any) -> Holds:
        if not isinstance(given, str):
            return _UNKNOWN
        if exact(given):
            return _YES
        return _UNKNOWN if folded(given.casefold()) else _NO

    return test


def _yes_no(met: bool) -> Holds:
    return _YES if met else _NO


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _misfit(op: str, wanted: str, given: Any) -> NoReturn:
    raise RuleError(f"when: {op} takes {wanted}, not {given!r}.")


# -- globs


_TOOL_GLOB = re.compile(r"[a-z0-9_*?]+\.[a-z0-9_*?]+")


def _check_tool_glob(glob: str) -> None:
    if glob != "*" and not _TOOL_GLOB.fullmatch(glob):
        raise RuleError(
            f"tools: {glob!r} can match no tool. Write CONNECTION.TOOL in lower case, "
            "such as `stripe.create_refund` or `stripe.*`, or `*` for every tool."
        )


def _any_glob(globs: Iterable[str]) -> Callable[[str], object]:
    """A test for whole texts: `*` is any run of characters, `?` is one, all else is itself. Linear in the text."""
    return re.compile("|".join(fnmatch.translate(glob.replace("[", "[[]")) for glob in globs)).match


# -- rules as data


_KEYS = ("id", "who", "tools", "effects", "when", "then", "count", "approvers", "second_person")
_CONDITION_KEYS = ("argument", "op", "value")


def parse_rule(raw: object, *, rule_id: str | None = None) -> Rule:
    """Read the JSON shape that `dump_rule` writes; `rule_id` supplies the id where the shape has none.

    Raises RuleError, which says how to mend it: for unknown keys too, so that no constraint is ever skipped.
    """
    shape = _object(raw, "rule", _KEYS)
    if rule_id is not None and shape.get("id", rule_id) != rule_id:
        raise RuleError(f"id: the rule calls itself {shape['id']!r}, not {rule_id!r}. Leave `id` out.")
    return Rule(
        id=_string(shape.get("id", rule_id), "id"),
        who=Who.parse(_string(shape.get("who"), "who")),
        tools=tuple(_string(glob, "tools") for glob in _list(shape, "tools")),
        effects=tuple(_choice(Effect, effect, "effects") for effect in _list(shape, "effects")),
        when=tuple(_condition(condition) for condition in _list(shape, "when")),
        then=_choice(Ruling, shape.get("then"), "then"),
        count=shape.get("count", 1),
        approvers=shape.get("approvers"),
        second_person=shape.get("second_person", False),
    )


def dump_rule(rule: Rule) -> dict[str, Any]:
    """The rule as JSON: what `parse_rule` reads. The last three keys stand only beside `then: approve`."""
    shape: dict[str, Any] = {
        "id": rule.id,
        "who": str(rule.who),
        "tools": list(rule.tools),
        "effects": [str(effect) for effect in rule.effects],
        "when": [
            {"argument": c.argument, "op": c.op, "value": list(c.value) if isinstance(c.value, tuple) else c.value}
            for c in rule.when
        ],
        "then": str(rule.then),
    }
    if rule.then is Ruling.APPROVE:
        shape |= {"count": rule.count, "approvers": rule.approvers, "second_person": rule.second_person}
    return shape


def _check_approval(rule: Rule) -> None:
    """Raise RuleError unless how many and who make sense, and stand beside `approve` alone."""
    if not isinstance(rule.count, int) or isinstance(rule.count, bool) or not 1 <= rule.count <= 100:  # pyright: ignore[reportUnnecessaryIsInstance] - rules come from files
        raise RuleError(f"count: {rule.count!r} is not a number of people from 1 to 100.")
    if not isinstance(rule.second_person, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - rules come from files
        raise RuleError(f"second_person: {rule.second_person!r} is neither true nor false.")
    if rule.approvers is not None:
        circle = _string(rule.approvers, "approvers")
        if circle not in ROLES and not (circle.startswith("group:") and circle != "group:"):
            raise RuleError(f"approvers: {circle!r} is no role ({', '.join(ROLES)}). Write a role or `group:NAME`.")
    if rule.then is not Ruling.APPROVE and (rule.count != 1 or rule.approvers is not None or rule.second_person):
        raise RuleError(f"then: {rule.then} takes no count, approvers or second_person. Write `then: approve`.")


def _condition(raw: object) -> Condition:
    shape = _object(raw, "when", _CONDITION_KEYS)
    if "value" not in shape:
        raise RuleError("when: a condition is {argument: NAME, op: OPERATOR, value: VALUE}.")
    value = tuple(_list(shape, "value")) if isinstance(shape["value"], list) else shape["value"]
    return Condition(_string(shape.get("argument"), "argument"), _string(shape.get("op"), "op"), value)


def _object(raw: object, what: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise RuleError(f"{what}: write an object with {', '.join(keys)}.")
    shape = cast("dict[str, Any]", raw)
    for key in shape:
        if key not in keys:
            raise RuleError(f"{what}: there is no key {key!r}. Keys are {', '.join(keys)}.")
    return shape


def _list(shape: dict[str, Any], key: str) -> list[Any]:
    value = shape.get(key, [])
    if not isinstance(value, list | tuple):
        raise RuleError(f"{key}: write a list, such as `{key}: [...]`.")
    return list(cast("Sequence[Any]", value))


def _string(value: object, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise RuleError(f"{key}: write a text, not {value!r}.")
    return value


_Choice = TypeVar("_Choice", bound=StrEnum)


def _choice(kind: type[_Choice], value: object, key: str) -> _Choice:
    try:
        return kind(cast("str", value))
    except ValueError:
        raise RuleError(f"{key}: there is no {value!r}. Write one of {', '.join(kind)}.") from None


# -- presets


def load_preset(name: str, folder: Path | None = None) -> RuleSet:
    """The rules of a preset, with ids such as `preset:default#2`. Reads a file: load once, not per call.

    Raises RuleError for a name that is none of PRESETS, and for a file that is not what we ship.
    """
    if name not in PRESETS:
        raise RuleError(f"preset: there is no {name!r}. Presets are {', '.join(PRESETS)}.")
    import yaml

    file = (folder or presets_folder()) / f"{name}.yaml"
    try:
        shape = _object(yaml.safe_load(file.read_text(encoding="utf-8")), "preset", ("title", "rules"))
        rules = _list(shape, "rules")
        return RuleSet(parse_rule(raw, rule_id=f"preset:{name}#{n}") for n, raw in enumerate(rules, start=1))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise RuleError(f"{file}: {said}. Restore the file, or install Keyleash again.") from None


def presets_folder(room: Path | None = None) -> Path:
    """Where the preset files are: beside this module in a wheel, else in the checkout's `configs/presets`."""
    room = room or Path(__file__).parent
    packed = room / "_presets"
    return packed if packed.is_dir() else room.parent / "configs" / "presets"
