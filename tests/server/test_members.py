"""People change: roles, groups and the system user are given and taken, with effect on what comes next."""

import pytest

from server.app import running
from server.approval import ApprovalProblem, Decision, State
from server.call import call
from server.errors import ApprovalRequired, Refused
from server.identity import (
    Actor,
    Change,
    IdentityProblem,
    change_member,
    create_agent,
    remove_member,
    system_user,
)
from tests.agents import Nobody, decide, record
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.upstream import Upstream

REFUND = {"charge": "ch_1"}


def change(place: Place, name: str, *, by_owner: bool = True, **what: object) -> None:
    member = place.installation.directory.member(place.org, name)
    place.database.write_now(
        lambda rows: change_member(rows, place.org, member.id, Change(**what), by="alice", by_owner=by_owner)  # type: ignore[arg-type]
    )


@pytest.mark.both_databases
def test_roles_groups_and_the_system_user_are_given_and_taken_on_record(owner: CommandLine, place: Place) -> None:
    place.member("bob", ("member", "auditor"))
    changed = owner(
        *("member", "change", "bob", "--role", "approver", "--take-role", "auditor", "--group", "finance"),
        *("--os-user", "bob", "--json"),
    )
    assert changed.code == 0, changed.err
    assert (changed.json["roles"], changed.json["groups"], changed.json["os_user"]) == (
        ["member", "approver"],
        ["finance"],
        "bob",
    )
    shown = owner("member", "show", "bob", "--json").json
    assert {**changed.json, "agents": []} == shown
    (entry,) = place.events("member.changed")
    assert entry["before"] == {"roles": ["member", "auditor"], "groups": [], "os_user": None}
    assert entry["after"] == {"roles": ["member", "approver"], "groups": ["finance"], "os_user": "bob"}
    assert entry["by"] == "alice"
    back = owner("member", "change", "bob", "--take-group", "finance", "--no-os-user", "--json").json
    assert (back["groups"], back["os_user"]) == ([], None)
    assert owner("member", "change", "bob", "--group", "ops").out == "bob: roles member, approver; groups ops.\n"


def test_who_is_mapped_to_no_system_user_is_told_a_way_that_works(owner: CommandLine, place: Place) -> None:
    made = owner("member", "create", "bob", "--role", "owner")
    assert "`keyleash member change bob --os-user USER` maps one" in made.err
    assert "system user" not in owner("member", "change", "bob", "--no-os-user", "--group", "ops").err
    last = owner("member", "change", "alice", "--no-os-user")
    assert last.code == 0
    assert "No owner is known by a system user any more" in last.err
    lost = owner("member", "list")
    assert lost.code == 1
    mend = f"keyleash member change NAME --os-user {system_user()} --as NAME"
    assert f"`{mend}`" in lost.err
    assert owner(*mend.replace("NAME", "alice").split()[1:]).code == 0
    assert owner("member", "list").code == 0
    assert "No owner" not in owner("member", "change", "bob", "--os-user", "bob").err


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ((), 2, "Say what to change"),
        (("--os-user", "x", "--no-os-user"), 2, "not both"),
        (("--role", "king"), 1, "no role"),
        (("--take-role", "king"), 1, "no role"),
        (("--take-role", "member"), 1, "no role left"),
        (("--group", "Not A Group"), 1, "cannot name a group"),
        (("--os-user", " "), 1, "no system user"),
        (("--os-user", system_user()), 1, "already the member"),
        (("--role", "member"), 1, "already"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(
    owner: CommandLine, place: Place, given: tuple[str, ...], code: int, said: str
) -> None:
    place.member("bob")
    before = place.installation.directory.members(place.org), place.events()
    ran = owner("member", "change", "bob", *given)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert (place.installation.directory.members(place.org), place.events()) == before


@pytest.mark.both_databases
def test_the_last_owner_keeps_the_role_and_an_earlier_look_does_not_help(place: Place) -> None:
    place.member("carol", ("owner",))
    other = add_org(place.installation, "globex")
    change(place, "carol", roles=("member",), taken_roles=("owner",))
    with pytest.raises(IdentityProblem, match="only owner"):
        change(place, "alice", roles=("admin",), taken_roles=("owner",))
    with pytest.raises(IdentityProblem, match="only owner"):
        place.database.write_now(lambda rows: remove_member(rows, place.org, place.owner, by="x"))
    assert place.installation.directory.member(place.org, "alice").roles == ("owner",)
    assert other.installation.directory.member(other.org, "alice").roles == ("owner",)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("bob", {"roles": ("owner",)}),
        ("carol", {"taken_roles": ("owner",)}),
        ("carol", {"os_user": "bobs-own-user"}),  # who has that user would act as an owner from then on
        ("carol", {"groups": ("finance",)}),
    ],
)
def test_only_an_owner_makes_an_owner_or_changes_anything_of_one(
    place: Place, name: str, what: dict[str, object]
) -> None:
    place.member("bob", ("admin",))
    place.member("carol", ("owner", "member"))
    before = place.installation.directory.members(place.org), place.events()
    with pytest.raises(IdentityProblem, match="Only an owner"):
        change(place, name, by_owner=False, **what)
    assert (place.installation.directory.members(place.org), place.events()) == before
    change(place, name, by_owner=True, **what)


def test_an_id_of_another_org_is_no_member_here(place: Place) -> None:
    other = add_org(place.installation, "globex")
    with pytest.raises(IdentityProblem, match="removed meanwhile"):
        place.database.write_now(
            lambda rows: change_member(
                rows, place.org, other.owner.id, Change(groups=("x",)), by="alice", by_owner=True
            )
        )
    assert other.installation.directory.member(other.org, "alice") == other.owner


# -- what comes next


@pytest.mark.anyio
@pytest.mark.parametrize("what", [{"taken_groups": ("finance",)}, {"roles": ("auditor",), "taken_roles": ("member",)}])
async def test_a_members_agents_have_their_new_roles_and_groups_at_the_next_call(
    place: Place, upstream: Upstream, what: dict[str, object]
) -> None:
    place.member("bob")
    change(place, "bob", groups=("finance",))
    bob = place.installation.directory.member(place.org, "bob")
    place.database.write_now(lambda rows: create_agent(rows, place.org, name="bobs", member=bob, by="bob"))
    named = "group:finance" if "taken_groups" in what else "role:member"
    place.rule(who=named, tools=["stripe.create_refund"], then="allow")
    async with running(place.installation) as parts:
        before = place.caller("bobs")
        assert (await call(parts, before, "stripe_create_refund", REFUND, Nobody())).ok
        change(place, "bob", **what)
        with pytest.raises(ApprovalRequired):
            await call(parts, place.caller("bobs"), "stripe_create_refund", {"charge": "ch_2"}, Nobody())
        with pytest.raises((ApprovalRequired, Refused)):  # looked up before, and carried out after
            await call(parts, before, "stripe_create_refund", {"charge": "ch_3"}, Nobody())
    assert len(upstream.requests) == 1


@pytest.mark.anyio
@pytest.mark.both_databases
async def test_who_decides_has_the_roles_of_now_and_not_those_of_when_they_sat_down(
    place: Place, upstream: Upstream
) -> None:
    """`approvals watch` sits for hours."""
    bob = place.member("bob", ("approver", "member"), os_user="bob")
    seated = Actor(bob, "os user")
    held = await hold(place)
    change(place, "bob", taken_roles=("approver",))
    with pytest.raises(ApprovalProblem, match="cannot decide"):
        decide(place, held, Decision.APPROVE, seated)
    change(place, "bob", roles=("approver",), os_user="robert")
    with pytest.raises(ApprovalProblem, match="another system user"):
        decide(place, held, Decision.APPROVE, seated)
    place.database.write_now(lambda rows: remove_member(rows, place.org, bob, by="alice"))
    with pytest.raises(ApprovalProblem, match="no member"):
        decide(place, held, Decision.APPROVE, seated)
    assert record(place, held).state is State.PENDING
    assert upstream.requests == []


@pytest.mark.anyio
@pytest.mark.both_databases
async def test_nobody_of_another_org_decides_here(place: Place, upstream: Upstream) -> None:
    other = add_org(place.installation, "globex")
    held = await hold(place)
    with pytest.raises(ApprovalProblem, match="no member"):
        decide(place, held, Decision.APPROVE, Actor(other.owner, "os user"))
    assert record(place, held).state is State.PENDING


async def hold(place: Place) -> str:
    async with running(place.installation) as parts:
        with pytest.raises(ApprovalRequired) as held:
            await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    return held.value.approval
