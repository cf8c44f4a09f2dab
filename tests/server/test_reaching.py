"""A rule that asks for people whom nobody can ask is named where it is made, by doctor, and to the agent that waits."""

import asyncio
from typing import Any

import pytest

from server.approval.channels import reach
from server.approval.eligible import Wanted
from server.approval.reaching import Gap, Keeper, behind_one, gaps
from server.errors import ApprovalRequired, structured
from server.identity import system_user
from server.policy import Ruling, load_preset
from server.rules import rules_of
from tests.agents import execute
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.telling import called, hooked

HOOK = "https://hooks.example.com/x"
ADD = ("policy", "add", "--who", "everyone", "--tools", "stripe.*", "--then", "approve")


def found(place: Place, **body: Any) -> list[Gap]:
    """What is said of one rule of the org."""
    rule = place.rule(who=body.pop("who", "everyone"), tools=["stripe.*"], then="approve", **body)
    rules = [one for one in rules_of(place.installation.database, place.org) if one.id == rule]
    return place.installation.database.query(lambda rows: gaps(rows, place.org, rules))


def grave(place: Place, **body: Any) -> str:
    return "\n".join(one.text for one in found(place, **body) if one.grave)


def test_a_rule_that_reaches_somebody_is_not_named(place: Place) -> None:
    hooked(place, HOOK, private=())
    assert found(place) == []
    assert found(place, approvers="owner") == []
    place.member("bob", ("approver",), os_user="bob")
    assert found(place, count=2) == []
    assert found(place, second_person=True) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"approvers": "approver"}, "takes 1 person (approver), and there is nobody"),
        ({"approvers": "group:finance"}, "(group:finance), and there is nobody"),
        ({"count": 2}, "takes 2 people (approver, admin or owner), and there is only alice"),
        ({"second_person": True}, "who is not alice, for whom the agent asks, and there is nobody"),
        ({"count": 2, "second_person": True}, "who are not alice, for whom the agent asks, and there is nobody"),
    ],
)
def test_too_few_who_may_decide_are_named_with_how_to_mend_it(place: Place, body: dict[str, Any], said: str) -> None:
    text = grave(place, **body)
    assert said in text
    assert "keyleash member create" in text


def test_who_is_mapped_to_no_system_user_cannot_be_asked(place: Place) -> None:
    place.member("bob", ("approver",))
    assert "nobody can ask bob, who is mapped to no system user" in grave(place, approvers="approver")
    assert "`keyleash member change bob --os-user USER` maps them" in grave(place, approvers="approver")
    assert "member create" not in grave(place, approvers="approver")
    execute(place, "UPDATE member SET os_user = 'bob' WHERE name = 'bob'")
    assert grave(place, approvers="approver") == ""


def test_where_a_group_is_asked_for_the_mend_is_the_group(place: Place) -> None:
    text = grave(place, approvers="group:finance")
    assert "`keyleash member create NAME --group finance --os-user USER`" in text
    assert "`keyleash member change NAME --group finance`" in text
    assert "--role" not in text
    assert "--role approver --os-user" in grave(place, approvers="approver")
    assert "--role approver --os-user" in grave(place, second_person=True)


def test_a_second_person_is_missed_only_for_the_agents_that_the_rule_is_about(place: Place) -> None:
    bob = place.member("bob", ("member",), os_user="bob")
    place.agent("robot", standalone=True)
    robot = place.installation.directory.agent(place.org, "robot")
    assert grave(place, who=f"agent:{robot.id}", second_person=True) == ""  # nobody stands behind it
    assert grave(place, who=f"member:{bob.id}", second_person=True) == ""  # alice decides for bob's agents
    assert "not alice" in grave(place, who="role:owner", second_person=True)


def test_that_nobody_is_told_is_advice_and_no_more(place: Place) -> None:
    (advice,) = found(place)
    assert (advice.grave, "keyleash channel add webhook" in advice.text) == (False, True)
    hooked(place, HOOK, private=(), rulings=(Ruling.CONFIRM,))
    assert len(found(place)) == 1  # told of other calls only
    hooked(place, HOOK, "pager", private=())
    assert found(place) == []
    execute(place, "UPDATE channel SET disabled_at = 1")
    assert len(found(place)) == 1


def test_presets_count(place: Place) -> None:
    execute(place, "UPDATE member SET os_user = NULL")
    strict = place.installation.database.query(lambda rows: gaps(rows, place.org, load_preset("strict")))
    assert [one.grave for one in strict] == [True]
    for name in ("default", "solo"):
        assert place.installation.database.query(lambda rows, n=name: gaps(rows, place.org, load_preset(n))) == []


@pytest.mark.parametrize("body", [{"count": 2}, {"second_person": True}, {"approvers": "group:finance"}])
def test_who_cannot_open_the_root_key_is_no_second_person(place: Place, body: dict[str, Any]) -> None:
    place.member("bob", ("approver",), os_user="bob")
    execute(place, "UPDATE member SET groups = '[\"finance\"]' WHERE name = 'bob'")
    place.rule(who="everyone", tools=["stripe.*"], then="approve")  # alice alone can decide that
    rule = place.rule(who="everyone", tools=["stripe.*"], then="approve", **body)
    rules = rules_of(place.installation.database, place.org)
    database = place.installation.database

    def said(keeper: Keeper) -> list[str]:
        return [one.text for one in database.query(lambda rows: behind_one(rows, place.org, rules, keeper))]

    (text,) = said(Keeper("The root key", "alice"))
    assert "The root key opens for one system user alone (alice): only that one can decide at this machine" in text
    assert f"and {rule} waits for others. Keep the root key in AWS KMS or Transit" in text
    unknown = said(Keeper("The root key", ""))  # one of them it is
    assert (f"and {rule} waits" in "".join(unknown)) is ("count" in body)
    both = said(Keeper("The root key", "bob"))
    assert (rule in "".join(both)) is ("count" in body)


def test_who_has_agreed_already_is_not_counted_again(place: Place) -> None:
    place.member("bob", ("approver",), os_user="bob")
    wanted = Wanted(Ruling.APPROVE, needed=2, decided=(place.owner.id,))
    reached = place.installation.database.query(lambda rows: reach(rows, place.org, wanted))
    assert (reached.asked, reached.needed, reached.enough) == (("bob",), 1, True)


# -- where it is said


def test_policy_add_and_preset_say_so_and_do_it_all_the_same(owner: CommandLine, place: Place) -> None:
    ran = owner(*ADD, "--approvers", "approver", "--json")
    assert ran.code == 0
    assert "What it holds waits in vain" in ran.err
    assert ran.json["then"] == "approve"
    fine = owner(*ADD, "--json")
    assert "in vain" not in fine.err
    assert "keyleash channel add webhook" in fine.err
    assert "warning" not in fine.err
    allowed = owner("policy", "add", "--who", "everyone", "--tools", "stripe.*", "--then", "deny")
    assert "keyleash channel" not in allowed.err
    execute(place, "UPDATE member SET roles = '[\"admin\"]'")
    assert "keyleash channel add" in owner("policy", "preset", "strict").err
    assert owner("policy", "preset", "solo").err == ""


def test_doctor_names_every_such_rule_the_presets_too(owner: CommandLine, place: Place) -> None:
    def said() -> list[tuple[str, str]]:
        return [
            (one["status"], one["message"]) for one in owner("doctor", "--json").json if one["check"] == "approvers"
        ]

    assert said() == [("ok", "acme: every rule that asks for an approval reaches somebody.")]
    place.rule(who="everyone", tools=["stripe.*"], then="approve", count=2)
    place.rule(who="everyone", tools=["stripe.*"], then="approve")
    (named, advice) = said()
    assert (named[0], "there is only alice" in named[1]) == ("warn", True)
    assert (advice[0], "keyleash channel add" in advice[1]) == ("ok", True)


def test_doctor_says_once_what_is_the_same_in_many_orgs(owner: CommandLine, place: Place) -> None:
    for number in range(4):
        other = add_org(place.installation, f"org{number}")
        other.rule(who="everyone", tools=["stripe.*"], then="approve")
    said = [one["message"] for one in owner("doctor", "--json").json if one["check"] == "approvers"]
    assert "acme: every rule that asks for an approval reaches somebody." in said
    (told,) = (message for message in said if "is told of nothing" in message)
    assert told.startswith("org0, org1, org2 and 1 more: Who may approve is told of nothing")


def test_many_rules_are_named_by_the_first_of_them(place: Place) -> None:
    rules = [place.rule(who="everyone", tools=["stripe.*"], then="approve", count=2) for _ in range(5)]
    place.member("bob", ("approver",), os_user="bob")
    own = rules_of(place.installation.database, place.org)
    (gap,) = place.database.snapshot(lambda rows: behind_one(rows, place.org, own, Keeper("The root key", "bob")))
    assert sum(rule in gap.text for rule in rules) == 3
    assert "and 2 more wait for others" in gap.text


def test_policy_add_and_doctor_say_that_one_system_user_alone_can_decide(owner: CommandLine, place: Place) -> None:
    def said() -> str:
        return "".join(one["message"] for one in owner("doctor", "--json").json if one["check"] == "approvers")

    place.member("bob", ("approver",), os_user="bob")
    assert "one system user" not in owner(*ADD).err + said()
    warned = owner(*ADD, "--count", "2").err
    for text in (warned, said()):
        assert f"The root key opens for one system user alone ({system_user()})" in " ".join(text.split())
    assert "every rule that asks for an approval reaches somebody" not in said()


def held(place: Place) -> ApprovalRequired:
    with pytest.raises(ApprovalRequired) as waiting:
        asyncio.run(called(place, "stripe_create_refund", {"charge": "ch_1"}))
    return waiting.value


def test_an_agent_whose_call_nobody_can_approve_is_told_so_and_whom_to_tell(place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", second_person=True)
    waiting = held(place)
    assert "nobody can decide it" in str(waiting)
    assert "let an admin of your organisation know" in str(waiting)
    assert "keyleash" not in str(waiting).lower()
    shown = structured(waiting)
    assert shown is not None
    assert shown["approval"]["nobody_can_decide"] is True
    assert place.events("call.held")[0]["reason"] == "approval required, and nobody can give it"
    place.member("bob", ("approver",), os_user="bob")
    again = held(place)
    assert "nobody can decide" not in str(again)
    assert again.approval == waiting.approval
    assert structured(again) == {
        "approval": {"id": again.approval, "status": "pending", "expires_at": again.expires_at}
    }
