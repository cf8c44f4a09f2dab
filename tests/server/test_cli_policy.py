"""Rules are added by name and kept by id, listed, explained and removed; what makes no sense is refused."""

import json

import pytest
import typer

from server.cli.policy import parse_condition
from server.rules import rules_of
from tests.commandline import CommandLine
from tests.installed import Place

REFUND = ("policy", "explain", "--agent", "reconciler", "--tool", "stripe_create_refund", "--json", "--args")


def test_the_rule_of_the_readme_lets_a_refund_through(owner: CommandLine) -> None:
    before = owner(*REFUND, '{"charge":"ch_1"}').json
    assert (before["ruling"], before["rules"]) == ("confirm", ["preset:default#2"])
    ran = owner("policy", "add", "--who", "everyone", "--tools", "stripe.*", "--then", "allow", "--json")
    assert ran.code == 0, ran.err
    after = owner(*REFUND, '{"charge":"ch_1"}').json
    assert (after["ruling"], after["rules"]) == ("allow", [ran.json["id"]])
    assert after["reason"]
    assert (
        owner(
            "policy",
            "explain",
            "--agent",
            "reconciler",
            "--tool",
            "stripe_create_refund",
            "--args",
            '{"charge":"ch_1"}',
        ).code
        == 0
    )


def test_a_rule_is_kept_by_id_and_shown_by_name(owner: CommandLine, place: Place) -> None:
    for who in ("agent:reconciler", "member:alice", "role:admin", "group:finance", "acting"):
        ran = owner("policy", "add", "--who", who, "--tools", "stripe.get_*", "--then", "deny", "--json")
        assert ran.json["who"] == who
    kept = [str(rule.who) for rule in rules_of(place.database, place.org)]
    agent = place.installation.directory.agent(place.org, "reconciler")
    assert kept == [f"agent:{agent.id}", f"member:{place.owner.id}", "role:admin", "group:finance", "acting"]
    shown = owner("policy", "list", "--json").json
    assert [rule["who"] for rule in shown["rules"]][:2] == ["agent:reconciler", "member:alice"]
    assert shown["preset"] == "default"
    assert shown["preset_rules"][0]["id"] == "preset:default#1"
    assert "agent:reconciler" in owner("policy", "list").out


def test_every_part_of_a_rule_can_be_given(owner: CommandLine) -> None:
    ran = owner(
        *("policy", "add", "--who", "everyone", "--tools", "stripe.create_refund,stripe.get_*", "--tools", "github.*"),
        *("--effects", "spend,read", "--effects", "write", "--when", "amount min 5000"),
        *("--when", '{"argument": "reason", "op": "in", "value": ["fraudulent"]}'),
        *("--then", "approve", "--count", "2", "--approvers", "approver", "--second-person", "--json"),
    )
    assert ran.code == 0, ran.err
    assert {key: value for key, value in ran.json.items() if key != "id"} == {
        "who": "everyone",
        "tools": ["stripe.create_refund", "stripe.get_*", "github.*"],
        "effects": ["spend", "read", "write"],
        "when": [
            {"argument": "amount", "op": "min", "value": 5000},
            {"argument": "reason", "op": "in", "value": ["fraudulent"]},
        ],
        "then": "approve",
        "count": 2,
        "approvers": "approver",
        "second_person": True,
    }


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("amount max 5000", ("amount", "max", 5000)),
        ("amount max 12.5", ("amount", "max", 12.5)),
        ("reason equals duplicate", ("reason", "equals", "duplicate")),
        ('charge equals "123"', ("charge", "equals", "123")),
        ("livemode equals true", ("livemode", "equals", True)),
        ("currency in eur, usd", ("currency", "in", ["eur", "usd"])),
        ('currency in ["eur"]', ("currency", "in", ["eur"])),
        ("path prefix 2026", ("path", "prefix", "2026")),
        ("text glob a * b", ("text", "glob", "a * b")),
        ("reason present", ("reason", "present", True)),
        ("reason present false", ("reason", "present", False)),
        ('{"argument": "a.b", "op": "max", "value": 1}', ("a.b", "max", 1)),
    ],
)
def test_conditions_read_as_they_are_written(text: str, condition: tuple[str, str, object]) -> None:
    argument, op, value = condition
    assert parse_condition(text) == {"argument": argument, "op": op, "value": value}


@pytest.mark.parametrize("text", ["", "amount", "amount max", "{", "[1]", "amount  "])
def test_what_is_no_condition_is_misuse(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_condition(text)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (("--who", "everyone", "--tools", "stripe.*"), 2),
        (("--who", "everyone", "--then", "allow"), 1),
        (("--who", "everyone", "--tools", "Stripe!", "--then", "allow"), 1),
        (("--who", "everyone", "--tools", "stripe.*", "--then", "maybe"), 1),
        (("--who", "agent:nobody", "--tools", "stripe.*", "--then", "allow"), 1),
        (("--who", "role:king", "--tools", "stripe.*", "--then", "allow"), 1),
        (("--who", "everyone", "--tools", "stripe.*", "--then", "allow", "--count", "2"), 1),
        (("--who", "everyone", "--tools", "stripe.*", "--then", "allow", "--when", "amount near 3"), 1),
        (("--who", "everyone", "--tools", "stripe.*", "--then", "allow", "--when", "amount"), 2),
        (("--who", "everyone", "--effects", "reading", "--then", "allow"), 1),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_and_not_kept(
    owner: CommandLine, place: Place, wrong: tuple[str, ...], code: int
) -> None:
    ran = owner("policy", "add", *wrong)
    assert (ran.code, ran.out) == (code, "")
    assert "Traceback" not in ran.err
    assert rules_of(place.database, place.org) == []
    assert place.events("rule.added") == []


def test_explaining_a_tool_that_there_is_not_names_where_to_look(owner: CommandLine) -> None:
    ran = owner("policy", "explain", "--agent", "reconciler", "--tool", "nope")
    assert (ran.code, ran.out) == (1, "")
    assert "`keyleash connector show CONNECTOR` lists a connector's tools." in ran.err
    near = owner("policy", "explain", "--agent", "reconciler", "--tool", "stripe_create_refunds")
    assert "Did you mean stripe_create_refund" in near.err


def test_a_rule_that_says_nothing_to_what_is_connected_is_warned_of(owner: CommandLine) -> None:
    add = ("policy", "add", "--who", "everyone", "--then", "allow", "--tools")
    assert "no tool" in owner(*add, "github.*").err
    assert "has an argument 'amuont'" in owner(*add, "stripe.create_refund", "--when", "amuont max 5000").err
    assert owner(*add, "stripe.create_refund", "--when", "amount max 5000").err == ""


def test_a_rule_is_removed_by_its_id(owner: CommandLine, place: Place) -> None:
    rule = place.rule(who="everyone", tools=["stripe.*"], then="allow")
    asked = owner.alone("policy", "remove", rule)
    assert asked.code == 1
    assert len(rules_of(place.database, place.org)) == 1
    assert owner("policy", "remove", rule, "--yes").code == 0
    assert rules_of(place.database, place.org) == []
    assert owner("policy", "remove", rule, "--yes").code == 1


def test_the_preset_is_shown_and_changed(owner: CommandLine, place: Place) -> None:
    assert owner("policy", "preset").out == "default\n"
    assert owner("policy", "preset", "strict", "--json").json == {"preset": "strict"}
    assert owner("policy", "preset", "--json").json == {"preset": "strict"}
    refused = owner("policy", "preset", "lax")
    assert refused.code == 1
    assert owner("policy", "preset").out == "strict\n"
    assert [entry["preset"] for entry in place.events("preset.changed")] == ["strict"]


def test_what_decides_before_any_rule_is_explained_too(owner: CommandLine, place: Place) -> None:
    owner("agent", "create", "narrow", "--effect", "read")
    explain = (
        "policy",
        "explain",
        "--tool",
        "stripe_create_refund",
        "--args",
        '{"charge":"ch_1"}',
        "--json",
        "--agent",
    )
    narrow = owner(*explain, "narrow").json
    assert (narrow["ruling"], narrow["rules"]) == ("deny", [])
    assert "narrowed" in narrow["reason"]
    owner("freeze")
    frozen = owner(*explain, "reconciler").json
    assert (frozen["ruling"], frozen["rules"]) == ("deny", [])
    owner("unfreeze")
    place.database.write_now(lambda rows: rows.execute("UPDATE agent SET expires_at = 1"))
    assert "expired" in owner(*explain, "reconciler").json["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--agent", "nobody", "--tool", "stripe_get_balance"), 1, "no agent called"),
        (("--agent", "reconciler", "--tool", "stripe_nosuch"), 1, "no tool"),
        (("--agent", "reconciler", "--tool", "stripe_create_refund", "--args", '{"chrage":"x"}'), 1, "Did you mean"),
        (("--agent", "reconciler", "--tool", "stripe_create_refund", "--args", "charge=ch_1"), 2, "JSON object"),
        (("--agent", "reconciler", "--tool", "stripe_create_refund", "--args", "[1]"), 2, "JSON object"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    owner: CommandLine, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ran = owner("policy", "explain", *arguments, "--json")
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err


def test_what_would_have_to_change_is_said_with_an_example_that_the_tool_takes(owner: CommandLine) -> None:
    for then, condition in (("allow", "amount max 5000"), ("approve", "amount min 90000")):
        owner(
            *("policy", "add", "--who", "everyone", "--tools", "stripe.create_refund"),
            *("--when", condition, "--then", then),
        )
    ran = owner(*REFUND[:-2], "--args", '{"charge":"ch_1","amount":90000}')
    assert ran.code == 0, ran.err
    assert "To be allowed:\n  amount would have to be at most 5000 (rul_" in ran.out
    assert '"amount": 5000' in ran.out
    assert "amount would have to be below 90000 (rul_" in ran.out
    shown = owner(*REFUND, '{"charge":"ch_1","amount":90000}').json
    for outcome in shown["looser"]:
        for way in outcome["ways"]:
            assert owner(*REFUND, json.dumps(way["arguments"])).json["ruling"] == outcome["outcome"]
    assert [outcome["outcome"] for outcome in shown["looser"]] == ["allow", "confirm"]
    owner("policy", "add", "--who", "everyone", "--tools", "stripe.create_refund", "--then", "deny")
    ran = owner(*REFUND[:-2], "--args", '{"charge":"ch_1","amount":1}')
    assert "applies whatever the arguments are." in ran.out
    assert "this very call would be." in ran.out


def test_explaining_calls_nothing_and_records_nothing(owner: CommandLine, place: Place, upstream: object) -> None:
    before = len(place.events())
    owner(*REFUND, '{"charge":"ch_1"}')
    assert len(place.events()) == before
    assert upstream.requests == []  # type: ignore[attr-defined]
