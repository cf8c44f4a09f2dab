"""Orgs, members and agents: who may make whom, what is shown once, and what stops when somebody goes."""

from datetime import UTC, datetime, timedelta

import pytest

from server.identity import system_user
from tests.commandline import CommandLine, Ran, everything
from tests.installed import Place, files_holding


def test_a_stranger_is_told_how_to_be_known(place: Place, owner: CommandLine) -> None:
    place.database.write_now(lambda rows: rows.execute("UPDATE member SET os_user = 'nobody-here'"))
    ran = owner("connection", "list")
    assert (ran.code, ran.out) == (1, "")
    assert system_user() in ran.err


def test_acting_for_another_is_the_operators_and_on_record(place: Place, owner: CommandLine) -> None:
    place.member("bob", ("admin",))
    ran = owner("policy", "preset", "strict", "--as", "bob")
    assert ran.code == 0, ran.err
    (entry,) = place.events("preset.changed")
    assert entry["by"] == f"bob (by the operator's word; system user {system_user()})"
    place.member("carol")
    assert owner("policy", "preset", "solo", "--as", "carol").code == 1
    (owner.home / "keys" / "root.key").unlink()
    sealed = owner("policy", "preset", "solo", "--as", "bob")
    assert sealed.code == 1
    assert "operator" in sealed.err
    assert len(place.events("preset.changed")) == 1


# -- orgs


def test_another_org_has_its_own_owner_key_and_log(owner: CommandLine, place: Place) -> None:
    ran = owner("org", "create", "other", "--preset", "strict", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["name"], ran.json["preset"], ran.json["frozen"]) == ("other", "strict", False)
    assert [org["name"] for org in owner("org", "list", "--json").json] == ["acme", "other"]
    assert [org["org"] for org in owner("vault", "status", "--json").json["orgs"]] == ["acme", "other"]
    unclear = owner("connection", "list")
    assert unclear.code == 1
    assert "--org" in unclear.err
    assert owner("connection", "list", "--org", "other", "--json").json == []
    assert len(owner("connection", "list", "--org", "acme", "--json").json) == 1
    assert owner("org", "show", "other", "--json").json["members"] == 1
    assert owner("org", "show", "nosuch").code == 1


def test_an_org_that_cannot_be_made_leaves_nothing(owner: CommandLine, place: Place) -> None:
    before = place.database.read("SELECT COUNT(*) FROM vault_org_key")
    for wrong in (("acme",), ("Bad Name",), ("fine", "--preset", "lax")):
        assert owner("org", "create", *wrong).code == 1
    assert [org["name"] for org in owner("org", "list", "--json").json] == ["acme"]
    assert place.database.read("SELECT COUNT(*) FROM vault_org_key") == before


def test_without_the_root_key_no_org_is_made(owner: CommandLine) -> None:
    (owner.home / "keys" / "root.key").unlink()
    ran = owner("org", "create", "other")
    assert ran.code == 1
    assert "Only the operator" in ran.err
    assert [org["name"] for org in owner("org", "list", "--json").json] == ["acme"]


# -- members


def test_members_are_added_listed_and_removed(owner: CommandLine, place: Place) -> None:
    ran = owner(
        "member",
        "create",
        "bob",
        "--role",
        "admin",
        "--role",
        "approver",
        "--os-user",
        "bob",
        "--group",
        "finance",
        "--json",
    )
    assert ran.json == {
        "name": "bob",
        "id": ran.json["id"],
        "roles": ["admin", "approver"],
        "os_user": "bob",
        "groups": ["finance"],
    }
    assert [member["name"] for member in owner("member", "list", "--json").json] == ["alice", "bob"]
    assert "finance" in owner("member", "list").out
    assert owner("member", "remove", "bob", "--yes").code == 0
    assert [member["name"] for member in owner("member", "list", "--json").json] == ["alice"]
    assert [entry["by"] for entry in place.events("member.created", "member.removed")[1:]] == ["alice", "alice"]


@pytest.mark.parametrize(
    "wrong", [("alice",), ("bob", "--role", "king"), ("Bad Name",), ("bob", "--os-user", system_user())]
)
def test_a_member_that_cannot_be_is_refused(owner: CommandLine, wrong: tuple[str, ...]) -> None:
    assert owner("member", "create", *wrong).code == 1
    assert [member["name"] for member in owner("member", "list", "--json").json] == ["alice"]


def test_the_only_owner_stays(owner: CommandLine) -> None:
    ran = owner("member", "remove", "alice", "--yes")
    assert ran.code == 1
    assert "only owner" in ran.err


def test_agents_of_a_removed_member_stop_and_are_shown_as_such(owner: CommandLine, place: Place) -> None:
    place.member("bob")
    token = owner("agent", "create", "bobs", "--for", "bob", "--json").json["token"]
    owner("member", "remove", "bob", "--yes")
    assert place.installation.directory.by_token(token) is None
    shown = {agent["name"]: agent for agent in owner("agent", "list", "--json").json}
    assert (shown["bobs"]["stopped"], shown["bobs"]["standalone"]) == (True, False)
    assert "stopped" in owner("agent", "list").out


# -- agents


def test_a_token_is_shown_once_and_kept_nowhere(owner: CommandLine, place: Place) -> None:
    ran = owner("agent", "create", "robot", "--json")
    token = ran.json["token"]
    assert ran.json == {"name": "robot", "token": token, "org": "acme", "acts_for": "alice", "expires_at": None}
    caller = place.installation.directory.by_token(token)
    assert caller is not None
    assert (caller.agent_name, caller.member_name) == ("robot", "alice")
    later = [owner("agent", "list", "--json"), owner("agent", "list"), owner("audit", "list", "--json")]
    assert token not in everything(*later)
    assert files_holding(owner.home, token.encode()) == []


def test_without_json_the_token_alone_is_on_standard_output(owner: CommandLine, place: Place) -> None:
    ran = owner("agent", "create", "robot")
    assert place.installation.directory.by_token(ran.out.strip()) is not None
    assert "keyleash client add" in ran.err


def test_a_standalone_agent_is_told_which_rule_to_add(owner: CommandLine, place: Place) -> None:
    ran = owner("agent", "create", "robot", "--standalone", "--json")
    assert ran.json["acts_for"] is None
    assert "policy add --who agent:robot" in ran.err
    assert place.caller("robot").standalone


def test_an_agent_can_be_narrowed_and_expire(owner: CommandLine, place: Place) -> None:
    ran = owner(
        "agent",
        "create",
        "robot",
        "--expires",
        "30d",
        "--tool",
        "stripe.get_*",
        "--tool",
        "stripe.list_*",
        "--effect",
        "read",
        "--json",
    )
    expires = datetime.fromisoformat(ran.json["expires_at"])
    assert timedelta(days=29) < expires - datetime.now(UTC) <= timedelta(days=30)
    narrowing = place.caller("robot").narrowing
    assert (narrowing.tools, narrowing.effects) == (("stripe.get_*", "stripe.list_*"), ("read",))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (("--expires", "soon"), 2),
        (("--expires", "0d"), 2),
        (("--effect", "reading"), 2),
        (("--for", "alice", "--standalone"), 2),
        (("--tool", "Stripe"), 1),
        (("--for", "nobody"), 1),
    ],
)
def test_an_agent_that_makes_no_sense_is_refused(owner: CommandLine, wrong: tuple[str, ...], code: int) -> None:
    ran = owner("agent", "create", "robot", *wrong)
    assert (ran.code, ran.out) == (code, "")
    assert len(owner("agent", "list", "--json").json) == 1


def test_a_rotated_token_replaces_the_one_before(owner: CommandLine, place: Place) -> None:
    old = place.tokens["reconciler"]
    new = owner("agent", "rotate", "reconciler", "--yes", "--json").json["token"]
    assert place.installation.directory.by_token(old) is None
    assert place.installation.directory.by_token(new) is not None


def test_a_removed_agent_is_gone(owner: CommandLine, place: Place) -> None:
    assert owner("agent", "remove", "reconciler", "--yes").code == 0
    assert place.installation.directory.by_token(place.tokens["reconciler"]) is None
    assert owner("agent", "remove", "reconciler", "--yes").code == 1


def test_what_cannot_be_undone_asks_and_a_no_changes_nothing(owner: CommandLine, place: Place) -> None:
    with owner.at_terminal("agent", "remove", "reconciler") as terminal:
        terminal.until("[y/N] ")
        terminal.type("\n")
        assert terminal.end() == 1
    assert "Nothing was done." in terminal.shown
    with owner.at_terminal("agent", "remove", "reconciler") as terminal:
        terminal.until("[y/N] ")
        terminal.type("y\n")
        assert terminal.end() == 0
    assert owner("agent", "list", "--json").json == []


def test_a_pipe_cannot_say_yes(owner: CommandLine) -> None:
    for command in (
        ("agent", "remove", "reconciler"),
        ("agent", "rotate", "reconciler"),
        ("connection", "remove", "stripe"),
    ):
        ran: Ran = owner.alone(*command, stdin=b"y\ny\n")
        assert (ran.code, ran.out) == (1, "")
        assert "--yes" in ran.err
    assert len(owner("agent", "list", "--json").json) == 1


def test_freezing_stops_agents_and_unfreezing_lets_them_go_on(owner: CommandLine, place: Place) -> None:
    from server.identity import Frozen

    assert owner("freeze").code == 0
    with pytest.raises(Frozen):
        place.caller()
    assert owner("org", "show", "--json").json["frozen"] is True
    assert owner("unfreeze").code == 0
    assert place.caller().agent_name == "reconciler"
    assert [entry["event"] for entry in place.events("org.frozen", "org.unfrozen")] == ["org.frozen", "org.unfrozen"]
