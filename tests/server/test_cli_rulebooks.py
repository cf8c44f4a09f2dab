"""The rules as a file: written, compared, applied whole or not at all, and every change a version to go back to."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.difference import STRICTNESS, difference
from server.policy import Ruling, decide, load_preset, parse_rule
from server.rulefile import read_rulebook, written
from server.rules import Rulebook, RuleProblem, apply, rulebook_of, rules_of, versions_of
from tests.commandline import CommandLine
from tests.installed import Place
from tests.server.test_policy import PRESET, REQUESTS, SUBJECTS, shapes

SMALL = """\
preset: default
rules:
  - who: agent:reconciler
    tools: [stripe.create_refund]
    when:
      - {argument: amount, op: max, value: 5000}
    then: allow
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def given_file(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


def book(place: Place) -> Rulebook:
    return rulebook_of(place.database, place.org)


# -- the file


def test_what_is_exported_applies_as_nothing_to_change(owner: CommandLine, place: Place, file: Path) -> None:
    place.rule(
        who="everyone", tools=["stripe.*", "*"], when=[{"argument": "a", "op": "equals", "value": "no"}], then="deny"
    )
    place.rule(who=f"member:{place.owner.id}", effects=["spend"], then="approve", count=2, second_person=True)
    before, versions = book(place), len(versions_of(place.database, place.org))
    text = owner("policy", "export").out
    assert "who: member:alice" in text
    assert place.owner.id not in text
    ran = owner("policy", "apply", given_file(file, text), "--json")
    assert (ran.code, ran.json["changes"], ran.json["applied"]) == (0, [], False)
    assert book(place) == before
    assert len(versions_of(place.database, place.org)) == versions
    assert place.events("rules.applied") == []


def test_a_rule_of_the_file_is_added_by_name_and_found_again_without_its_id(
    owner: CommandLine, place: Place, file: Path
) -> None:
    ran = owner("policy", "apply", given_file(file, SMALL), "--yes")
    assert ran.code == 0, ran.err
    (rule,) = rules_of(place.database, place.org)
    assert str(rule.who) == f"agent:{place.installation.directory.agent(place.org, 'reconciler').id}"
    assert owner("policy", "apply", str(file), "--json").json["changes"] == []
    assert [one.id for one in rules_of(place.database, place.org)] == [rule.id]
    twice = SMALL + SMALL.partition("rules:\n")[2]
    (added,) = owner("policy", "apply", given_file(file, twice), "--dry-run", "--json").json["changes"]
    assert added["kind"] == "added"


def test_rules_keep_their_ids_and_places_and_new_ones_come_after(owner: CommandLine, place: Place, file: Path) -> None:
    first = place.rule(who="everyone", tools=["a.*"], then="deny")
    text = owner("policy", "export").out
    more = "".join(
        f"  - {{id: {name}, who: everyone, tools: [{name}.*], then: deny}}\n" for name in ("zeta", "beta", "eta")
    )
    assert owner("policy", "apply", given_file(file, text + more), "--yes").code == 0
    assert [rule.id for rule in rules_of(place.database, place.org)] == [first, "zeta", "beta", "eta"]
    again = owner("policy", "export").out
    assert again == owner("policy", "export").out
    changed = again.replace("beta.*", "gamma.*")
    assert owner("policy", "apply", given_file(file, changed), "--yes").code == 0
    assert owner("policy", "export").out == changed, "one rule was changed, and the file differs in one line"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("rules: []\n", ":1: The file lacks 'preset'"),
        ("preset: lax\nrules: []\n", ":1: preset cannot be 'lax'"),
        ("preset: solo\nrules: []\nmore: 1\n", ":3: The file has no key 'more'"),
        (SMALL.replace("reconciler", "nobody"), ":3: There is no agent called 'nobody'"),
        (
            SMALL.replace("agent:reconciler", "member:alicia"),
            ":3: There is no member called 'alicia'. Did you mean 'alice'",
        ),
        (SMALL.replace("agent:reconciler", "role:king"), ":3: who: there is no role 'king'"),
        (SMALL.replace("max", "near"), ":6: when: there is no operator 'near'"),
        (SMALL.replace("5000", "much"), ":6: when: max takes a number"),
        (SMALL.replace("then: allow", "then: maybe"), ":7: then: there is no 'maybe'"),
        (SMALL.replace("then: allow", "then: allow\n    count: 2"), "then: allow takes no count"),
        (SMALL.replace("[stripe.create_refund]", "[Stripe!]"), ":4: tools: 'Stripe!' can match no tool"),
        (
            SMALL + "  - {id: x, who: everyone, tools: ['*'], then: deny}\n" * 2,
            ":9: There are two rules 'x', the first in line 8",
        ),
        (SMALL + "    then: deny\n", ":8: The key 'then' is there twice"),
        (SMALL.replace("then: allow", "than: allow"), ":7: A rule has no key 'than'"),
        (SMALL + "  - {id: 'preset:x', who: everyone, tools: ['*'], then: deny}\n", ":8: id cannot be 'preset:x'"),
        ("preset: [\n", "This is not YAML"),
        ("", "The file is empty"),
    ],
)
def test_a_file_that_is_wrong_anywhere_changes_nothing(
    owner: CommandLine, place: Place, file: Path, wrong: str, says: str
) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="deny")
    before, entries = book(place), len(place.events())
    ran = owner("policy", "apply", given_file(file, wrong), "--yes")
    assert (ran.code, ran.out) == (1, "")
    assert says in ran.err
    assert "Traceback" not in ran.err
    assert book(place) == before
    assert len(place.events()) == entries


def test_a_rule_about_somebody_who_was_removed_may_stay_and_no_new_one_may_name_them(
    owner: CommandLine, place: Place, file: Path
) -> None:
    bob = place.member("bob")
    place.rule(who=f"member:{bob.id}", tools=["stripe.*"], then="deny")
    owner("member", "remove", "bob", "--yes")
    text = owner("policy", "export").out
    assert f"who: member:{bob.id}" in text
    assert owner("policy", "apply", given_file(file, text), "--json").json["changes"] == []
    assert (
        owner("policy", "apply", given_file(file, SMALL.replace("agent:reconciler", "member:bob")), "--yes").code == 1
    )


@settings(max_examples=150, deadline=None)
@given(rules=st.lists(shapes(), max_size=3, unique_by=lambda shape: shape["id"]))
def test_every_set_of_rules_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, rules: list) -> None:
    kept = Rulebook("strict", tuple(parse_rule(shape) for shape in rules))
    names = {"member:m1": "member:a: b\n#\u2028", "agent:a1": "agent:no", "agent:a2": "agent:'ü"}
    file = tmp_path_factory.mktemp("file") / "rules.yaml"
    file.write_text(written(kept, names), encoding="utf-8")
    assert read_rulebook(file, {name: one for one, name in names.items()}, Rulebook("solo", ())).body == kept.body


# -- the difference


def test_the_difference_names_what_changes_and_what_may_loosen(owner: CommandLine, place: Place, file: Path) -> None:
    place.rule(who="everyone", tools=["stripe.create_refund"], then="deny")
    caps = (
        "  - {id: caps, who: acting, tools: [stripe.create_refund], when: [{argument: amount, op: min, value: 100}], "
        "then: approve}\n"
    )
    owner("policy", "apply", given_file(file, owner("policy", "export").out + caps), "--yes")
    (denies, _) = rules_of(place.database, place.org)
    text = owner("policy", "export").out
    lines = text.splitlines(keepends=True)
    start = next(n for n, line in enumerate(lines) if denies.id in line)
    end = next(n for n, line in enumerate(lines) if "id: caps" in line)
    wanted = (
        "".join(lines[:start] + lines[end:]).replace("value: 100", "value: 500")
        + "  - {id: no_keys, who: everyone, tools: [github.*], then: deny}\n"
    )
    ran = owner("policy", "apply", given_file(file, wanted), "--dry-run")
    assert ran.code == 0, ran.err
    assert f"- {denies.id}: everyone, stripe.create_refund: deny" in ran.out
    assert "~ caps:" in ran.out
    assert '"value": 100' in ran.out and '"value": 500' in ran.out
    assert "+ no_keys: everyone, github.*: deny" in ran.out
    assert ran.out.count("may loosen") == 2
    assert (
        "reconciler could then call stripe_create_refund when a person confirms it; now at best not at all." in ran.out
    )
    assert len(rules_of(place.database, place.org)) == 2, "a dry run changes nothing"
    shown = owner("policy", "apply", str(file), "--dry-run", "--json").json
    assert [(one["kind"], bool(one["may_loosen"])) for one in shown["changes"]] == [
        ("removed", True),
        ("changed", True),
        ("added", False),
    ]
    assert (shown["applied"], shown["version"]) == (False, None)


def test_a_change_that_only_tightens_says_so(owner: CommandLine, file: Path) -> None:
    tight = "preset: strict\nrules:\n  - {who: everyone, tools: [github.*], then: deny}\n"
    ran = owner("policy", "apply", given_file(file, tight), "--dry-run")
    assert "~ preset: default -> strict" in ran.out
    assert "Nothing of this loosens" in ran.out
    assert "may loosen" not in ran.out


def test_without_yes_and_a_terminal_nothing_is_applied(owner: CommandLine, place: Place, file: Path) -> None:
    ran = owner.alone("policy", "apply", given_file(file, SMALL))
    assert ran.code == 1
    assert "+ rul_" in ran.out
    assert rules_of(place.database, place.org) == []


PRESETS = {name: load_preset(name) for name in STRICTNESS}
BOOKS = st.builds(
    lambda preset, rules: Rulebook(preset, tuple(parse_rule(shape) for shape in rules)),
    st.sampled_from(STRICTNESS),
    st.lists(shapes(), max_size=3, unique_by=lambda shape: shape["id"]),
)


@st.composite
def edited(draw: st.DrawFn) -> tuple[Rulebook, Rulebook]:
    """A set, and another that shares rules with it, some of them changed a little."""
    before, after = draw(BOOKS), draw(BOOKS)
    kept = []
    for rule in before.rules:
        match draw(st.sampled_from(["drop", "keep", "ruling", "scope"])):
            case "keep":
                kept.append(rule)
            case "ruling":
                shape = {"who": str(rule.who), "tools": list(rule.tools), "effects": [str(e) for e in rule.effects]}
                when = [{"argument": c.argument, "op": c.op, "value": c.value} for c in rule.when]
                kept.append(
                    parse_rule(
                        {"id": rule.id, **shape, "when": when, "then": draw(st.sampled_from([str(r) for r in Ruling]))}
                    )
                )
            case "scope":
                other = draw(shapes())
                kept.append(parse_rule({**other, "id": rule.id}))
            case _:
                pass
    taken = {rule.id for rule in kept}
    return before, Rulebook(after.preset, (*kept, *(rule for rule in after.rules if rule.id not in taken)))


@settings(max_examples=300, deadline=None)
@given(edited(), SUBJECTS, st.lists(REQUESTS, min_size=4, max_size=8))
def test_where_no_change_is_marked_no_call_gets_looser(books, subject, requests) -> None:
    before, after = books
    marked = [change for change in difference(before, after) if change.loosens]
    unmarked = {change.name for change in difference(before, after)} - {change.name for change in marked}
    # Only the unmarked changes, each from the one set to the other.
    old = {rule.id: rule for rule in before.rules}
    new = {rule.id: rule for rule in after.rules}
    mixed = [new.get(name) if name in unmarked else old.get(name) for name in dict.fromkeys([*old, *new])]
    preset = after.preset if after.preset in unmarked else before.preset
    quiet = [rule for rule in mixed if rule is not None]
    for request in requests:
        was = decide(subject, request, before.rules, PRESETS[before.preset])
        now = decide(subject, request, quiet, PRESETS[preset])
        assert not was.stricter_than(now)


@settings(max_examples=200, deadline=None)
@given(SUBJECTS, REQUESTS, PRESET)
def test_each_preset_says_at_least_what_the_milder_one_says(subject, request, rules) -> None:
    own = [parse_rule(shape) for shape in rules]
    rulings = [decide(subject, request, own, PRESETS[name]).ruling for name in STRICTNESS]
    assert rulings == sorted(rulings)


# -- versions


@pytest.mark.both_databases
def test_every_change_is_a_version_and_its_entry_carries_number_and_hash(
    owner: CommandLine, place: Place, file: Path
) -> None:
    rule = place.rule(who="everyone", tools=["stripe.*"], then="deny")
    owner("policy", "preset", "strict")
    owner("policy", "remove", rule, "--yes")
    ran = owner("policy", "apply", given_file(file, SMALL), "--yes", "--json")
    assert ran.json["version"] == 5
    shown = owner("policy", "versions", "--json").json
    assert [one["version"] for one in shown] == [5, 4, 3, 2, 1]
    assert [one["by"] for one in shown] == ["alice", "alice", "alice", "test", None]
    assert shown[0]["change"] == f"applied {file}"
    entries = place.events("rule.added", "preset.changed", "rule.removed", "rules.applied")
    assert [entry["version"] for entry in entries] == [2, 3, 4, 5]
    assert [entry["rules_hash"] for entry in entries] == [one["rules_hash"] for one in reversed(shown[:-1])]
    assert entries[-1]["rules_hash_before"] == entries[-2]["rules_hash"]
    body = book(place).body
    assert entries[-1]["rules_hash"] == hashlib.sha256(b"keyleash/rules/v1\n" + body.encode()).hexdigest()
    assert "5000" in str(entries[-1]["added"])


@pytest.mark.both_databases
def test_an_earlier_version_is_shown_and_gone_back_to(owner: CommandLine, place: Place, file: Path) -> None:
    rule = place.rule(who="everyone", tools=["stripe.*"], then="deny")
    earlier, text = book(place), owner("policy", "export").out
    owner("policy", "apply", given_file(file, SMALL.replace("default", "solo")), "--yes")
    assert owner("policy", "export", "--version", "2").out == text
    assert owner("policy", "export", "--version", "1", "--json").json == {"preset": "default", "rules": []}
    ran = owner("policy", "apply", "--version", "2", "--yes", "--json")
    assert (ran.code, ran.json["version"]) == (0, 4)
    assert book(place).hash == earlier.hash
    assert [one.id for one in rules_of(place.database, place.org)] == [rule]
    assert owner("policy", "apply", "--version", "9", "--yes").code == 1
    assert owner("policy", "apply", "--yes").code == 2
    assert owner("policy", "apply", str(file), "--version", "1", "--yes").code == 2


@pytest.mark.both_databases
def test_of_two_admins_at_once_the_second_is_told_and_changes_nothing(place: Place) -> None:
    seen = book(place)
    place.rule(who="everyone", tools=["stripe.*"], then="deny")
    after, entries = book(place), len(place.events())
    wanted = Rulebook("solo", ())
    with pytest.raises(RuleProblem, match=r"changed meanwhile by test \(version 2\)"):
        place.database.of(place.org).write_now(
            lambda rows: apply(rows, place.org, wanted, over=seen.hash, source="x", by="alice")
        )
    assert book(place) == after
    assert len(place.events()) == entries
    same = place.database.of(place.org).write_now(
        lambda rows: apply(rows, place.org, after, over=after.hash, source="x", by="alice")
    )
    assert same is None, "there was nothing to change, so nothing is a version"
    assert len(place.events()) == entries


def test_one_may_not_apply_who_may_not_change_rules(owner: CommandLine, place: Place, file: Path) -> None:
    place.member("carol", ("auditor", "approver", "member"))
    for command in (("apply", given_file(file, SMALL), "--yes"), ("replay", str(file))):
        ran = owner("policy", *command, "--as", "carol")
        assert ran.code == 1
        assert "may not" in ran.err
    assert owner("policy", "export", "--as", "carol").code == 0
    assert rules_of(place.database, place.org) == []


def test_no_rule_is_loosened_for_true_where_it_said_one(owner: CommandLine, place: Place, file: Path) -> None:
    place.rule(who="everyone", tools=["*"], when=[{"argument": "a", "op": "equals", "value": 1}], then="deny")
    text = owner("policy", "export").out
    (change,) = owner(
        "policy", "apply", given_file(file, text.replace("value: 1", "value: true")), "--dry-run", "--json"
    ).json["changes"]
    assert (change["kind"], bool(change["may_loosen"])) == ("changed", True)
