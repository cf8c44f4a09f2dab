"""An org's rules and preset as one YAML file for people and for git: what is written reads back as the same set.

People and agents stand in it by name and are kept by id. A file that is wrong anywhere is refused as a whole, with the
line and the mend.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, cast

from connectors.source import Spot, read_file, suggestion
from server.identity import new_id
from server.policy import PRESETS, Rule, RuleError, dump_rule, parse_rule
from server.rules import Rulebook, same

HEAD = """\
# The rules of an organisation, as `keyleash policy export` writes them and `keyleash policy apply FILE` takes them.
#
# preset: what is asked where none of the rules matches: solo, default or strict. Where that is silent: no.
# rules: among those that match a call, the strictest wins. Each one has
#   id       its name in the log; leave it out of a new rule, or give one of your own (a-z, 0-9, dot, dash, _)
#   who      everyone, acting (agents that act for a member), role:R, member:NAME, agent:NAME or group:G
#   tools    globs over CONNECTION.TOOL, such as stripe.* or stripe.create_refund
#   effects  read, metered, sensitive, write, send, spend, destroy, grant; tools, effects, or both
#   when     conditions on arguments, which must all hold: {argument: amount, op: max, value: 5000}
#            op is equals, in, min, max, prefix, glob or present; a.b reaches into an object
#   then     allow, confirm (the person at the client), approve (somebody signed in, elsewhere) or deny
#   count, approvers, second_person   with approve: how many people, of which role or group:G, and whether the member
#            that the agent acts for is kept out
# An argument that is missing, or not what a condition can judge, meets no allow and every stricter rule.
"""

_TOP = ("preset", "rules")
_KEYS = ("id", "who", "tools", "effects", "when", "then", "count", "approvers", "second_person")
_ID = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


# -- writing


def written(book: Rulebook, names: Mapping[str, str]) -> str:
    """The file. `names` turns `member:mem_…` and `agent:agt_…` into what people call them."""
    lines = [HEAD + f"preset: {book.preset}"]
    lines += ["rules:" if book.rules else "rules: []"]
    for rule in book.rules:
        lines += _lines(rule, names)
    return "\n".join(lines) + "\n"


def _lines(rule: Rule, names: Mapping[str, str]) -> list[str]:
    shape = dump_rule(rule)
    shown: list[str] = [f"id: {_flow(rule.id)}", f"who: {_flow(names.get(shape['who'], shape['who']))}"]
    shown += [f"{key}: {_flow(shape[key])}" for key in ("tools", "effects") if shape[key]]
    if shape["when"]:
        shown += ["when:", *(f"  - {_flow(condition)}" for condition in shape["when"])]
    shown.append(f"then: {shape['then']}")
    if shape.get("count", 1) != 1:
        shown.append(f"count: {shape['count']}")
    if shape.get("approvers") is not None:
        shown.append(f"approvers: {_flow(shape['approvers'])}")
    if shape.get("second_person"):
        shown.append("second_person: true")
    return [f"  - {shown[0]}", *(f"    {line}" for line in shown[1:])]


def _flow(value: Any) -> str:
    """One value on one line; as it is where every character can be seen, and escaped where one cannot."""
    text = _dumped(value, unicode=True)
    return text if text.isprintable() else _dumped(value, unicode=False)


def _dumped(value: Any, *, unicode: bool) -> str:
    import yaml

    options: dict[str, Any] = {"Dumper": _dumper(), "allow_unicode": unicode, "width": 10**9, "sort_keys": False}
    if isinstance(value, str):  # by itself it needs fewer quotes than in a list
        return cast("str", yaml.dump({"k": value}, default_flow_style=False, **options)).strip().removeprefix("k: ")
    return cast("str", yaml.dump([value], default_flow_style=True, **options)).strip()[1:-1]


@lru_cache(maxsize=1)
def _dumper() -> Any:
    """One that writes numbers in the form that is read again, plain digits, and no text on more than one line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def digits(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
        text = format(Decimal(repr(number)), "f")
        return dumper.represent_scalar("tag:yaml.org,2002:float", text if "." in text else f"{text}.0")  # pyright: ignore[reportUnknownMemberType]

    def one_line(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = None if text.isprintable() else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)  # pyright: ignore[reportUnknownMemberType]

    Dumper.add_representer(float, digits)
    Dumper.add_representer(str, one_line)
    return Dumper


# -- reading


def read_rulebook(file: Path, ids: Mapping[str, str], current: Rulebook) -> Rulebook:
    """The set that a file says. `ids` turns `member:NAME` and `agent:NAME` into the ids that rules keep.

    A rule without an id is that of an equal rule there is, or a new one. Raises connectors.errors.DefinitionError.
    """
    block = read_file(file).block("The file", _TOP, _TOP)
    preset = block["preset"].one_of("preset", PRESETS)
    rules: list[tuple[Rule, bool]] = []
    lines: dict[str, int] = {}
    known = {str(rule.who) for rule in current.rules}
    for spot in block["rules"].items("rules"):
        rule, named = _rule(spot, ids, known)
        if named and rule.id in lines:
            spot.fail(f"There are two rules {rule.id!r}, the first in line {lines[rule.id]}.", "Leave one `id` out.")
        lines[rule.id] = spot.line
        rules.append((rule, named))
    return Rulebook(preset, tuple(_with_ids(rules, current)))


def _rule(spot: Spot, ids: Mapping[str, str], known: set[str]) -> tuple[Rule, bool]:
    """A rule, and whether the file says its id."""
    block = spot.block("A rule", _KEYS, ("who", "then"))
    named = block["id"].matching("id", _ID, "Use up to 63 of a-z, 0-9, dot, dash and _.") if "id" in block else None
    shape = {key: value.plain() for key, value in block.items()}
    shape["who"] = _who(block["who"], ids, known)
    try:
        return parse_rule({**shape, "id": named or new_id("rul")}), named is not None
    except RuleError as error:
        _blame(spot, block, str(error))


def _who(spot: Spot, ids: Mapping[str, str], known: set[str]) -> str:
    """`member:ada` by id; one who was removed since may stay where a rule names them already."""
    spot.text("who")
    text = str(spot.value)  # as it is, blanks and all
    kind, _, name = text.partition(":")
    if kind not in ("member", "agent"):
        return text
    if text in ids or text in known:
        return ids.get(text, text)
    names = [other.partition(":")[2] for other in ids if other.startswith(f"{kind}:")]
    return spot.fail(
        f"There is no {kind} called {name!r}.", f"{suggestion(name, names)}`keyleash {kind} list` shows who there is."
    )


def _blame(spot: Spot, block: Mapping[str, Spot], said: str) -> NoReturn:
    """Say it with the line of the key that it is about."""
    for condition in block["when"].items("when") if "when" in block else ():
        if _is_wrong(condition):
            condition.fail(said)
    block.get(said.partition(":")[0], spot).fail(said)


def _is_wrong(condition: Spot) -> bool:
    try:
        parse_rule({"id": "x", "who": "everyone", "tools": ["*"], "when": [condition.plain()], "then": "deny"})
    except RuleError:
        return True
    return False


def _with_ids(rules: list[tuple[Rule, bool]], current: Rulebook) -> list[Rule]:
    """Give each rule without an id that of an equal one which nobody in the file claims."""
    claimed = {rule.id for rule, named in rules if named}
    free = [rule for rule in current.rules if rule.id not in claimed]
    found: list[Rule] = []
    for rule, named in rules:
        equal = None if named else next((one for one in free if _says_the_same(one, rule)), None)
        if equal is not None:
            free.remove(equal)
        found.append(equal or rule)
    return found


def _says_the_same(one: Rule, other: Rule) -> bool:
    return same({**dump_rule(one), "id": ""}, {**dump_rule(other), "id": ""})
