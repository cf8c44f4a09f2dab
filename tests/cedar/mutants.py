"""The evaluator, broken in one place each: what the comparison with Cedar must not let pass."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from server import policy


@dataclass(frozen=True)
class Mutant:
    """A text of the evaluator's source, and what stands in its place."""

    name: str
    right: str
    wrong: str


MUTANTS = (
    Mutant("min is greater, not at least", "given >= wanted", "given > wanted"),
    Mutant("max is less, not at most", "given <= wanted", "given < wanted"),
    Mutant(
        "equals and in of text compare folded",
        "lambda given: given in exact,",
        "lambda given: given.casefold() in folded,",
    ),
    Mutant(
        "in of numbers is turned around",
        "if not _is_number(given) else _yes_no(given in wanted)",
        "if not _is_number(given) else _yes_no(given not in wanted)",
    ),
    Mutant(
        "equals of booleans takes 1 for true",
        "_UNKNOWN if not isinstance(given, bool) else",
        "_UNKNOWN if not isinstance(given, (bool, int)) else",
    ),
    Mutant("true is a number", "isinstance(value, int) and not isinstance(value, bool)", "isinstance(value, int)"),
    Mutant("prefix finds it anywhere", "lambda given: given.startswith(wanted)", "lambda given: wanted in given"),
    Mutant("glob need not cover the whole text", "_any_glob((wanted,))", "_any_glob((wanted + '*',))"),
    Mutant("present is turned around", "(given is not _ABSENT) is wanted", "(given is not _ABSENT) is not wanted"),
    Mutant(
        "null is absent", "return _UNREADABLE if value is None else value", "return _ABSENT if value is None else value"
    ),
    Mutant(
        "a path that leaves objects is absent",
        "return _UNREADABLE\n        value = cast",
        "return _ABSENT\n        value = cast",
    ),
    Mutant("another letter case does not match", "return _UNKNOWN if folded(given.casefold()) else _NO", "return _NO"),
    Mutant(
        "a text of another kind does not match",
        "if not isinstance(given, str):\n            return _UNKNOWN",
        "if not isinstance(given, str):\n            return _NO",
    ),
    Mutant("the mildest wins", "strictest = max(", "strictest = min("),
    Mutant(
        "approve is milder than confirm",
        '    CONFIRM = "confirm"\n    APPROVE = "approve"',
        '    APPROVE = "approve"\n    CONFIRM = "confirm"',
    ),
    Mutant("the preset is asked always", "if not any(holds is _YES for _, holds in matches):", "if True:"),
    Mutant("the preset is never asked", "if not any(holds is _YES for _, holds in matches):", "if False:"),
    Mutant(
        "the preset is asked only where nothing may match",
        "if not any(holds is _YES for _, holds in matches):",
        "if not matches:",
    ),
    Mutant("no rule means yes", 'return Verdict(Ruling.DENY, f"No rule', 'return Verdict(Ruling.ALLOW, f"No rule'),
    Mutant("unknown allows", "(holds is _UNKNOWN and rule.then is not Ruling.ALLOW)", "holds is _UNKNOWN"),
    Mutant("unknown does not tighten", "or (holds is _UNKNOWN and rule.then is not Ruling.ALLOW)", ""),
    Mutant(
        "one unknown condition hides that another fails",
        "            if one is _UNKNOWN:\n                verdict = _UNKNOWN",
        "            if one is _UNKNOWN:\n                return _UNKNOWN",
    ),
    Mutant(
        "any condition is enough",
        "verdict = _YES\n        for condition in self.when:",
        "verdict = _YES\n        for condition in self.when[:1]:",
    ),
    Mutant(
        "standalone agents act for somebody",
        "if self.member is not None and not self.standalone:",
        "if self.member is not None:",
    ),
    Mutant(
        "acting is everyone", '{"everyone", f"agent:{self.agent}"}', '{"everyone", "acting", f"agent:{self.agent}"}'
    ),
    Mutant("roles are forgotten", 'marks.update([f"role:{role}" for role in self.roles])', ""),
    Mutant("groups are roles", 'f"group:{group}" for group', 'f"role:{group}" for group'),
    Mutant("effects are forgotten", "(not self.effects or effect in self.effects) and", ""),
    Mutant("only the first glob counts", '_any_glob(self.tools or ("*",))', '_any_glob(self.tools[:1] or ("*",))'),
    Mutant(
        "the index misses what names a connection",
        "shelf.connections.get(connection, ())",
        "shelf.connections.get(target, ())",
    ),
    Mutant("the index misses what names a tool", "shelf.targets.get(target, ())", "shelf.targets.get(connection, ())"),
)
"""None is about `?` in globs, which Cedar lacks, or numbers beyond its decimals: `test_policy.py` sees to these."""


def broken(mutant: Mutant) -> ModuleType:
    """The evaluator with this one fault."""
    source = Path(policy.__file__).read_text(encoding="utf-8")
    assert source.count(mutant.right) >= 1, f"the evaluator does not read like this any more: {mutant.right!r}"
    module = ModuleType(f"mutant_{abs(hash(mutant.name))}")
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        code = compile(source.replace(mutant.right, mutant.wrong), mutant.name, "exec")
        exec(code, module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module
