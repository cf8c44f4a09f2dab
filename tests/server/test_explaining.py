"""What would have to change: every way that is suggested leads where it says, and where there is none, none is said."""

import pytest
from hypothesis import given, settings

from connectors.definition import Effect
from server.explaining import explain
from server.policy import Request, Ruling, decide, load_preset, parse_rule
from tests.server.test_policy import ALICE, PRESET, REQUESTS, RULES, SUBJECTS, parsed, rule

DEFAULT = load_preset("default")


def refund(**arguments):
    return Request("stripe", "create_refund", Effect.SPEND, arguments)


def looser(request, *rules, preset=DEFAULT, **more):
    return {one["outcome"]: one for one in explain(ALICE, request, rules, preset, **more)["looser"]}


def test_a_threshold_is_named_with_its_rule_and_an_amount_that_would_do():
    small = rule("allow", name="small", when=[("amount", "max", 5000)])
    told = looser(refund(charge="ch_1", amount=9000), small)["allow"]
    (way,) = told["ways"]
    assert way["changes"] == [{"argument": "amount", "must": ["be at most 5000 (small: allow)"], "value": 5000}]
    assert way["arguments"] == {"charge": "ch_1", "amount": 5000}
    assert decide(ALICE, refund(**way["arguments"]), [small], DEFAULT).ruling is Ruling.ALLOW


def test_an_argument_that_is_absent_would_have_to_be_given():
    strict = rule("approve", name="big", when=[("amount", "min", 5000)])
    told = looser(refund(charge="ch_1"), strict)
    assert [way["changes"] for way in told["confirm"]["ways"]] == [
        [{"argument": "amount", "must": ["be below 5000 (big: approve)"], "value": 4999}]
    ]
    assert told["allow"]["ways"] == []
    assert told["allow"]["because"] == "No argument can: preset:default#2 applies whatever the arguments are."


def test_two_arguments_are_changed_only_where_one_is_not_enough():
    both = rule("allow", name="both", when=[("amount", "max", 10), ("currency", "in", ["eur", "usd"])])
    (way, *_) = looser(refund(amount=20, currency="gbp"), both)["allow"]["ways"]
    assert {change["argument"]: change["must"] for change in way["changes"]} == {
        "amount": ["be at most 10 (both: allow)"],
        "currency": ['be one of "eur", "usd" (both: allow)'],
    }
    (way, *_) = looser(refund(amount=20, currency="eur"), both)["allow"]["ways"]
    assert [change["argument"] for change in way["changes"]] == ["amount"]


def test_a_rule_without_conditions_stands_in_the_way_of_every_argument():
    rules = [rule("deny", name="never"), rule("allow", name="small", when=[("amount", "max", 5)])]
    told = looser(refund(amount=1), *rules)
    for outcome in ("allow", "confirm", "approve"):
        assert told[outcome]["ways"] == []
        assert told[outcome]["because"] == "No argument can: never applies whatever the arguments are."
    assert told["allow"]["without_rules"] == ["never"]
    assert told["approve"]["without_rules"] == []


def test_where_no_rule_says_so_nothing_leads_there():
    assert looser(refund(), preset=())["allow"] == {
        "outcome": "allow",
        "ways": [],
        "without_rules": [],
        "because": "No argument can: no rule says allow for this agent and this tool.",
    }


def test_only_arguments_that_the_tool_takes_are_suggested():
    small = rule("allow", name="small", when=[("amount", "max", 4.5)])
    whole = looser(
        refund(amount=9),
        small,
        fit=lambda arguments: arguments if isinstance(arguments.get("amount"), int) else None,
    )
    assert whole["allow"]["ways"][0]["arguments"] == {"amount": 4}
    assert looser(refund(amount=9), small, fit=lambda _arguments: None)["allow"]["ways"] == []


def test_arguments_that_the_tool_changes_must_lead_there_as_they_are_changed():
    small = rule("allow", name="small", when=[("amount", "max", 5)])
    told = looser(refund(amount=9), small, fit=lambda arguments: {**arguments, "amount": 6})["allow"]
    assert told["ways"] == []
    assert told["because"].startswith("No arguments were found")


def test_a_path_into_an_object_is_made_where_it_leads_through_objects_only():
    inner = rule("allow", name="inner", when=[("to.name", "equals", "ops")])
    (way,) = looser(refund(), inner)["allow"]["ways"]
    assert way["arguments"] == {"to": {"name": "ops"}}
    assert looser(refund(to="ops"), inner)["allow"]["ways"] == []


def test_what_is_allowed_has_nothing_looser():
    assert looser(refund(), rule("allow")) == {}


@pytest.mark.parametrize("op", ["equals", "in", "min", "max", "prefix", "glob", "present"])
@pytest.mark.parametrize("then", ["allow", "deny"])
def test_every_operator_can_be_met_and_avoided(op, then):
    values = {"equals": "x", "in": [1, 2], "min": 3, "max": 3, "prefix": "ab", "glob": "a*?b", "present": True}
    one = rule(then, name="one", when=[("a", op, values[op])])
    missing = {"a": {"min": 0, "max": 9}.get(op, "none of it")} if op != "present" else {}
    met = {"a": {"equals": "x", "in": 1, "min": 3, "max": 3, "prefix": "abc", "glob": "axxb", "present": 1}[op]}
    told = looser(refund(**(missing if then == "allow" else met)), one)
    wanted = "allow" if then == "allow" else "confirm"
    assert told[wanted]["ways"], told
    for way in told[wanted]["ways"]:
        assert str(decide(ALICE, refund(**way["arguments"]), [one], DEFAULT).ruling) == wanted


@settings(max_examples=60, deadline=None)
@given(SUBJECTS, REQUESTS, RULES, PRESET)
def test_every_way_leads_to_what_it_promises(subject, request, rules, preset):
    own, fallback = parsed(rules), parsed(preset)
    told = explain(subject, request, own, fallback)
    assert told["ruling"] == str(decide(subject, request, own, fallback).ruling)
    for one in told["looser"]:
        for way in one["ways"]:
            changed = Request(request.connection, request.tool, request.effect, way["arguments"])
            assert str(decide(subject, changed, own, fallback).ruling) == one["outcome"]
        if one["without_rules"]:
            left = [each for each in own if each.id not in one["without_rules"]]
            assert str(decide(subject, request, left, fallback).ruling) == one["outcome"]


@settings(max_examples=60, deadline=None)
@given(SUBJECTS, REQUESTS, RULES, PRESET)
def test_no_arguments_lead_where_none_are_said_to(subject, request, rules, preset):
    own, fallback = parsed(rules), parsed(preset)
    never = {
        one["outcome"]
        for one in explain(subject, request, own, fallback)["looser"]
        if one.get("because", "").startswith("No argument can")
    }
    for other in ({}, {"a": 1}, {"a": "x", "b": "x"}, {"a": True, "o": {"a": "x"}}, {"b": 2, "o": {"a": 1}}):
        asked = Request(request.connection, request.tool, request.effect, other)
        assert str(decide(subject, asked, own, fallback).ruling) not in never


def test_a_rule_is_read_for_explaining_as_it_is_kept():
    kept = parse_rule({"id": "r", "who": "everyone", "tools": ["*"], "when": [], "then": "deny"})
    assert explain(ALICE, refund(), [kept], [])["considered"][0]["because"] == "who, tool and every condition match"
