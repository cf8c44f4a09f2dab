"""Who is calling: a token is one agent's of one org, and stops when it should."""

from collections.abc import AsyncIterator, Callable

import pytest

from server.app import running
from server.call import Parts, call
from server.connections import connections_of
from server.errors import NoSuchTool
from server.identity import (
    Frozen,
    IdentityProblem,
    Narrowing,
    create_agent,
    create_member,
    create_org,
    remove_agent,
    remove_member,
    rotate_agent,
    set_frozen,
    token_hash,
)
from server.protocol import tools_for
from tests.agents import Nobody, execute
from tests.installed import Place, add_org
from tests.upstream import Upstream

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]


@pytest.fixture
def other(place: Place, upstream: Upstream) -> Place:
    """A second org of the same installation, with an agent and a connection of the same names."""
    org = add_org(place.installation, "globex")
    org.connect(upstream.url)
    org.agent()
    return org


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


# -- tokens


def test_a_token_is_its_own_agents_in_its_own_org(place: Place, other: Place) -> None:
    for each in (place, other):
        caller = place.installation.directory.by_token(each.tokens["reconciler"])
        assert caller is not None
        assert (caller.org, caller.agent) == (each.org, each.caller().agent)
        assert caller.member == each.owner.id
    assert place.caller().agent != other.caller().agent


def parts_of(token: str) -> tuple[str, str]:
    _, org, secret = token.split("_", 2)
    return org, secret


FORGERIES: dict[str, Callable[[str, str], str]] = {
    "another org's id": lambda mine, theirs: f"kla_{parts_of(theirs)[0]}_{parts_of(mine)[1]}",
    "no org": lambda mine, _: f"kla__{parts_of(mine)[1]}",
    "an org that does not exist": lambda mine, _: f"kla_{'a' * 16}_{parts_of(mine)[1]}",
    "a wildcard for an org": lambda mine, _: f"kla_%_{parts_of(mine)[1]}",
    "capitals in the secret": lambda mine, _: f"kla_{parts_of(mine)[0]}_{parts_of(mine)[1].swapcase()}",
    "capitals in the org": lambda mine, _: f"kla_{parts_of(mine)[0].upper()}_{parts_of(mine)[1]}",
    "capitals in the prefix": lambda mine, _: mine.replace("kla_", "KLA_"),
    "without its end": lambda mine, _: mine[:-1],
    "another end": lambda mine, _: mine[:-1] + ("A" if mine[-1] != "A" else "B"),
    "a newline": lambda mine, _: mine + "\n",
    "a space": lambda mine, _: f" {mine}",
    "its hash": lambda mine, _: token_hash(mine),
    "its hash in a token's form": lambda mine, _: f"kla_{parts_of(mine)[0]}_{token_hash(mine)[:43]}",
    "SQL": lambda mine, _: mine[:-11] + "' OR '1'='1",
    "nothing": lambda *_: "",
}


def test_what_is_not_exactly_a_token_is_nobody(place: Place, other: Place) -> None:
    mine, theirs = place.tokens["reconciler"], other.tokens["reconciler"]
    for name, forge in FORGERIES.items():
        forged = forge(mine, theirs)
        assert forged not in (mine, theirs)
        assert place.installation.directory.by_token(forged) is None, name


def test_a_token_is_kept_as_a_hash_and_a_new_one_ends_the_old(place: Place) -> None:
    directory, database = place.installation.directory, place.database
    old = place.tokens["reconciler"]
    assert database.read("SELECT token_hash FROM agent") == [(token_hash(old),)]
    mark = place.caller().token_mark
    new = database.write_now(
        lambda rows: rotate_agent(rows, place.org, directory.agent(place.org, "reconciler"), by="alice")
    )
    assert directory.by_token(old) is None
    assert directory.by_token(new) is not None
    assert place.caller().token_mark != mark


def test_a_removed_or_expired_agent_is_nobody_by_token_and_by_id(place: Place) -> None:
    directory, database = place.installation.directory, place.database
    place.agent("second")
    caller = place.caller("second")
    execute(place, "UPDATE agent SET expires_at = 1 WHERE name = 'second'")
    assert directory.by_token(place.tokens["second"]) is None
    assert directory.by_agent(place.org, caller.agent) is None
    agent = directory.agent(place.org, "reconciler")
    database.write_now(lambda rows: remove_agent(rows, place.org, agent, by="alice"))
    assert directory.by_token(place.tokens["reconciler"]) is None
    assert directory.by_agent(place.org, agent.id) is None


def test_an_agents_id_is_not_found_in_another_org(place: Place, other: Place) -> None:
    directory = place.installation.directory
    assert directory.by_agent(other.org, place.caller().agent) is None
    with pytest.raises(IdentityProblem, match="no agent called"):
        directory.agent(other.org, place.caller().agent)
    with pytest.raises(IdentityProblem, match="no member called"):
        directory.member(other.org, place.owner.id)


# -- members


async def test_the_agents_of_a_removed_member_stop_and_do_not_become_standalone(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    bob = place.member("bob")
    database, directory = place.database, place.installation.directory
    token = database.write_now(lambda rows: create_agent(rows, place.org, name="bobs", member=bob, by="bob"))
    place.rule(who="everyone", tools=["stripe.*"], then="allow")  # would cover a standalone agent as well
    before = place.caller("bobs")
    assert not before.standalone
    database.write_now(lambda rows: remove_member(rows, place.org, bob, by="alice"))
    assert directory.by_token(token) is None
    assert directory.by_agent(place.org, before.agent) is None
    assert place.caller().member == place.owner.id, "other members' agents go on"
    assert upstream.requests == []


def test_the_last_owner_cannot_be_removed(place: Place) -> None:
    database, directory = place.database, place.installation.directory
    place.member("bob", ("admin",))
    place.member("carol", ("owner", "approver"))
    carol = directory.member(place.org, "carol")
    database.write_now(lambda rows: remove_member(rows, place.org, carol, by="alice"))
    with pytest.raises(IdentityProblem, match="only owner"):
        database.write_now(lambda rows: remove_member(rows, place.org, place.owner, by="bob"))
    assert [member.name for member in directory.members(place.org)] == ["alice", "bob"]


def test_two_owners_who_remove_each_other_leave_one(place: Place) -> None:
    """Both were read while there were two; the count is taken in the transaction that removes."""
    database, directory = place.database, place.installation.directory
    carol = place.member("carol", ("owner",))
    database.write_now(lambda rows: remove_member(rows, place.org, place.owner, by="carol"))
    with pytest.raises(IdentityProblem, match="only owner"):
        database.write_now(lambda rows: remove_member(rows, place.org, carol, by="alice"))
    assert [member.name for member in directory.members(place.org)] == ["carol"]


def test_an_owner_of_another_org_does_not_count(place: Place, other: Place) -> None:
    with pytest.raises(IdentityProblem, match="only owner"):
        place.database.write_now(lambda rows: remove_member(rows, place.org, place.owner, by="alice"))
    assert other.owner.name == place.owner.name


# -- names


BAD_NAMES = (
    "",
    " ",
    "Bob",
    "bo b",
    "-bob",
    "bob\n",
    "bob\u200b",
    "b\u043eb",
    "../bob",
    "bob;",
    "b" * 64,
    "b\0",
    "\u017fam",
)


def test_a_name_is_plain_wherever_a_person_reads_it(place: Place) -> None:
    before = place.events()
    for name in BAD_NAMES:
        for make in (
            lambda rows, name=name: create_agent(rows, place.org, name=name, member=None, by="alice"),
            lambda rows, name=name: create_member(rows, place.org, name=name, roles=(), os_user=None, by="alice"),
            lambda rows, name=name: create_org(rows, name=name, preset="default", by="alice"),
        ):
            with pytest.raises(IdentityProblem, match="cannot name"):
                place.database.write_now(make)
    assert place.events() == before


def test_a_name_is_taken_once_in_an_org_and_is_free_in_another(place: Place) -> None:
    database = place.database
    with pytest.raises(IdentityProblem, match="already an agent"):
        place.agent("reconciler")
    with pytest.raises(IdentityProblem, match="already a member"):
        place.member("alice")
    with pytest.raises(IdentityProblem, match="already the member"):
        place.member("alice2", os_user="alice")
    with pytest.raises(IdentityProblem, match="already an org"):
        add_org(place.installation, "acme")
    with pytest.raises(IdentityProblem, match="no role"):
        place.member("root", ("superuser",))
    add_org(place.installation, "globex").agent("reconciler")
    assert database.read("SELECT COUNT(*) FROM agent") == [(2,)]


# -- narrowing


NARROWINGS: list[tuple[Narrowing, bool]] = [
    (Narrowing(), True),
    (Narrowing(tools=("stripe.*",)), True),
    (Narrowing(tools=("stripe.list_*",)), True),
    (Narrowing(tools=("github.*", "stripe.list_charges")), True),
    (Narrowing(effects=("read",)), True),
    (Narrowing(tools=("stripe.*",), effects=("read", "write")), True),
    (Narrowing(tools=("github.*",)), False),
    (Narrowing(tools=("stripe.list_charge",)), False),
    (Narrowing(tools=("STRIPE.*",)), False),
    (Narrowing(effects=("spend",)), False),
    (Narrowing(tools=("stripe.*",), effects=("write",)), False),
    (Narrowing(tools=("github.*",), effects=("read",)), False),
]


@pytest.mark.parametrize(("narrowing", "admitted"), NARROWINGS, ids=str)
async def test_a_narrowed_agent_sees_and_reaches_what_it_is_narrowed_to(
    place: Place, parts: Parts, upstream: Upstream, narrowing: Narrowing, admitted: bool
) -> None:
    place.rule(who="everyone", tools=["*"], then="allow")  # rules do not widen a leash
    place.database.write_now(
        lambda rows: create_agent(rows, place.org, name="narrow", member=place.owner, by="alice", narrowing=narrowing)
    )
    caller = place.caller("narrow")
    assert caller.narrowing == narrowing
    assert narrowing.admits("stripe", "list_charges", "read") is admitted
    assert ("stripe_list_charges" in [tool.name for tool in tools_for(parts, caller)]) is admitted
    if admitted:
        assert (await call(parts, caller, "stripe_list_charges", {}, Nobody())).ok
    else:
        with pytest.raises(NoSuchTool):
            await call(parts, caller, "stripe_list_charges", {}, Nobody())
    assert len(upstream.requests) == admitted


async def test_a_narrowing_by_effect_stops_a_tool_of_another_effect(place: Place, parts: Parts) -> None:
    place.rule(who="everyone", tools=["*"], then="allow")
    place.database.write_now(
        lambda rows: create_agent(
            rows, place.org, name="reader", member=place.owner, by="alice", narrowing=Narrowing(effects=("read",))
        )
    )
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller("reader"), "stripe_create_refund", {"charge": "ch_1"}, Nobody())
    offered = {tool.tool.effect.value for tool in tools_for(parts, place.caller("reader"))}
    assert offered == {"read"}


# -- orgs


async def test_a_freeze_stops_one_org_at_its_next_call_and_is_lifted(
    place: Place, other: Place, upstream: Upstream
) -> None:
    database, directory = place.database, place.installation.directory
    database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))
    with pytest.raises(Frozen, match="acme"):
        directory.by_token(place.tokens["reconciler"])
    with pytest.raises(Frozen):
        place.caller()
    assert directory.by_token(other.tokens["reconciler"]) is not None
    database.write_now(lambda rows: set_frozen(rows, place.org, frozen=False, by="alice"))
    assert directory.by_token(place.tokens["reconciler"]) is not None


async def test_tools_and_connections_of_another_org_are_not_there(
    place: Place, other: Place, parts: Parts, upstream: Upstream
) -> None:
    other.connect(upstream.url, name="theirs")
    assert {tool.connection for tool in tools_for(parts, place.caller())} == {"stripe"}
    assert [connection.name for connection in connections_of(place.database, place.org)] == ["stripe"]
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller(), "theirs_list_charges", {}, Nobody())
    assert upstream.requests == []
