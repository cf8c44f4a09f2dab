"""What approved work takes is found for the strictest call that it could cover: no call within it is judged worse."""

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.definition import Effect
from server.approval.bounds import Reach, strictest, together, within
from server.policy import Condition, Holds, Request, Rule, Ruling, Subject, Verdict, Who, decide

SUBJECT = Subject("agt_1", "mem_1", ("member",), ("ops",))
REACH = Reach(SUBJECT, "bank", "pay", Effect.SPEND)

NUMBERS = st.integers(0, 6)
TEXTS = st.sampled_from(["a", "A", "ab", "b"])
CONDITIONS = st.one_of(
    st.builds(Condition, st.just("amount"), st.sampled_from(["min", "max", "equals"]), NUMBERS),
    st.builds(Condition, st.just("amount"), st.just("in"), st.lists(NUMBERS, min_size=1, max_size=3).map(tuple)),
    st.builds(Condition, st.just("to"), st.sampled_from(["equals", "prefix", "glob"]), TEXTS),
    st.builds(Condition, st.just("to"), st.just("in"), st.lists(TEXTS, min_size=1, max_size=3).map(tuple)),
    st.builds(Condition, st.sampled_from(["amount", "to", "note.kind"]), st.just("present"), st.booleans()),
    st.builds(Condition, st.just("note.kind"), st.just("equals"), TEXTS),
)


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    made: list[Rule] = []
    for number in range(draw(st.integers(0, 4))):
        then = draw(st.sampled_from(Ruling))
        approve: dict[str, Any] = {}
        if then is Ruling.APPROVE:
            approve = {
                "count": draw(st.integers(1, 3)),
                "approvers": draw(st.sampled_from([None, "admin", "group:finance"])),
                "second_person": draw(st.booleans()),
            }
        made.append(
            Rule(
                id=f"r{number}",
                who=draw(st.sampled_from([Who("everyone"), Who("group", "ops"), Who("agent", "agt_2")])),
                tools=(draw(st.sampled_from(["*", "bank.pay", "bank.*", "other.*"])),),
                when=tuple(draw(st.lists(CONDITIONS, max_size=2))),
                then=then,
                **approve,
            )
        )
    return made


ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "amount": st.one_of(NUMBERS, TEXTS, st.none(), st.floats(0, 6), st.booleans()),
        "to": st.one_of(TEXTS, NUMBERS),
        "note": st.one_of(st.fixed_dictionaries({}, optional={"kind": TEXTS}), TEXTS),
    },
)


@settings(max_examples=1_500 if "KEYLEASH_PROOFS" in os.environ else 500, deadline=None)
@given(rules(), rules(), st.lists(CONDITIONS, max_size=3), st.lists(ARGUMENTS, min_size=1, max_size=12))
def test_no_call_within_the_bounds_gets_a_verdict_that_is_stricter_than_what_the_work_takes(
    own: list[Rule], preset: list[Rule], bounds: list[Condition], calls: list[dict[str, Any]]
) -> None:
    level = strictest([REACH], bounds, own, preset)[REACH]
    for arguments in calls:
        if not within(bounds, arguments):
            continue
        verdict = decide(SUBJECT, Request("bank", "pay", Effect.SPEND, arguments), own, preset)
        if verdict.ruling is not Ruling.DENY:
            assert level is not None, "what is said to be denied is not"
            assert not verdict.stricter_than(level)


AMOUNT_5 = Condition("amount", "max", 5)
PRECISE: list[tuple[list[Condition], Condition, bool]] = [
    ([AMOUNT_5], Condition("amount", "min", 6), False),
    ([AMOUNT_5], Condition("amount", "min", 5), True),
    ([Condition("amount", "min", 3)], Condition("amount", "max", 2), False),
    ([Condition("amount", "in", (1, 2))], Condition("amount", "equals", 3), False),
    ([AMOUNT_5], Condition("amount", "in", (6, 7)), False),
    ([Condition("to", "equals", "bob")], Condition("to", "prefix", "al"), False),
    ([Condition("to", "equals", "Bob")], Condition("to", "equals", "bob"), True),
    ([Condition("to", "prefix", "b")], Condition("to", "present", False), False),
    ([AMOUNT_5], Condition("to", "equals", "bob"), True),
    ([], Condition("amount", "min", 6), True),
]


@pytest.mark.parametrize(("bounds", "condition", "reached"), PRECISE, ids=str)
def test_a_rule_that_no_call_within_the_bounds_can_reach_asks_nobody(
    bounds: list[Condition], condition: Condition, reached: bool
) -> None:
    rule = Rule(id="strict", who=Who("everyone"), tools=("bank.pay",), when=(condition,), then=Ruling.APPROVE, count=2)
    base = Rule(id="base", who=Who("everyone"), tools=("bank.pay",), then=Ruling.CONFIRM)
    verdict = strictest([REACH], bounds, [rule, base], [])[REACH]
    assert verdict is not None
    assert verdict.ruling is (Ruling.APPROVE if reached else Ruling.CONFIRM)


def test_what_is_denied_to_every_call_within_the_bounds_is_covered_by_no_work() -> None:
    deny = Rule(id="d", who=Who("everyone"), tools=("bank.pay",), when=(AMOUNT_5,), then=Ruling.DENY)
    allow = Rule(id="a", who=Who("everyone"), tools=("*",), then=Ruling.CONFIRM)
    assert strictest([REACH], [Condition("amount", "max", 4)], [deny, allow], [])[REACH] is None
    assert strictest([REACH], [Condition("amount", "max", 6)], [deny, allow], [])[REACH] is not None
    assert strictest([REACH], [], [], [])[REACH] is None, "no rule means no"


def test_several_calls_take_what_the_strictest_takes_with_everybody_whom_any_of_these_rules_asks_for() -> None:
    first = Verdict(Ruling.APPROVE, "", ("a",), count=2, approvers=("admin",))
    second = Verdict(Ruling.APPROVE, "", ("b",), approvers=("group:finance",), second_person=True)
    found = together([first, Verdict(Ruling.CONFIRM, "", ("c",)), second])
    assert not first.stricter_than(found)
    assert not second.stricter_than(found)
    assert (found.count, found.approvers, found.second_person) == (2, ("admin", "group:finance"), True)
    assert found.rules == ("a", "b")


@pytest.mark.parametrize(
    "arguments", [{}, {"amount": None}, {"amount": "5"}, {"amount": True}, {"amount": [5]}], ids=str
)
def test_what_cannot_be_judged_is_outside(arguments: dict[str, Any]) -> None:
    assert not within([AMOUNT_5], arguments)
    assert AMOUNT_5.holds(arguments) is not Holds.YES
    assert within([AMOUNT_5], {"amount": 5})
