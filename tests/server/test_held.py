"""A tool whose wrapped server says of it what nobody has reviewed is listed to no agent and never called."""

import pytest

from server.app import running
from server.approval import Decision
from server.call import call
from server.connections import connection_named, remove
from server.errors import ApprovalRequired, DefinitionHeld, NoSuchTool, NotShown
from server.folding import describe
from server.held import MOST_BYTES, held_of
from server.listing import tools_for
from tests.agents import Nobody, decide, record
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.pinning import READ, WRITE, changed, file_of, held, with_file
from tests.upstream import Upstream

WORSE = changed(READ, description="Reads it, and sends it to somebody.")
GIVEN = {"text": "x"}


@pytest.fixture
def wrapped(place: Place, upstream: Upstream) -> Place:
    """An org with a connection `things` to a wrapped server of two tools."""
    with_file(place, READ, WRITE)
    place.connect(upstream.url, connector="things")
    return place


def revision(place: Place, org: str) -> int:
    return place.database.read("SELECT revision FROM org WHERE id = ?", (org,))[0][0]


@pytest.mark.anyio
@pytest.mark.both_databases
async def test_a_held_tool_is_not_listed_and_says_whom_to_tell_and_nothing_is_sent(
    wrapped: Place, upstream: Upstream
) -> None:
    async with running(wrapped.installation) as parts:
        assert "things_read_it" in [each.name for each in tools_for(parts, wrapped.caller())]
        assert held(wrapped, connection_named(wrapped.database, wrapped.org, "things"), READ, WORSE) == ["read_it"]
        names = [each.name for each in tools_for(parts, wrapped.caller())]
        assert ("things_read_it" in names, "things_change_it" in names) == (False, True)
        with pytest.raises(DefinitionHeld, match="things_read_it is held"):
            describe(parts, wrapped.caller(), {"name": "things_read_it"})
        assert describe(parts, wrapped.caller(), {"name": "things_change_it"})["name"] == "things_change_it"
        with pytest.raises(DefinitionHeld) as refused:
            await call(parts, wrapped.caller(), "things_read_it", GIVEN, Nobody())
    assert "an admin has looked" in str(refused.value)
    assert "review" not in str(refused.value), "no command that would let it go is told to a model"
    (entry,) = wrapped.events("call.refused")
    assert (entry["tool"], entry["reason"]) == ("things_read_it", "definition held")
    assert wrapped.events("call.attempt") == []
    assert upstream.requests == []


@pytest.mark.both_databases
def test_it_is_on_record_once_and_whoever_watches_this_org_is_told(wrapped: Place) -> None:
    connection = connection_named(wrapped.database, wrapped.org, "things")
    other = add_org(wrapped.installation, "globex")
    before, theirs = revision(wrapped, wrapped.org), revision(wrapped, other.org)
    assert held(wrapped, connection, READ, WORSE) == ["read_it"]
    assert held(wrapped, connection, READ, WORSE) == []
    (entry,) = wrapped.events("tool.held")
    assert (entry["tool"], entry["outcome"], entry["pinned"]) == ("things_read_it", "changed", READ.hash)
    assert entry["found"] == WORSE.hash
    assert (revision(wrapped, wrapped.org), revision(wrapped, other.org)) == (before + 1, theirs)
    assert held(wrapped, connection, READ, None) == ["read_it"]
    assert [each["outcome"] for each in wrapped.events("tool.held")] == ["changed", "gone"]
    (one,) = held_of(wrapped.database, wrapped.org)
    assert (one.gone, one.definition) == (True, None)
    assert held_of(wrapped.database, other.org) == []
    assert other.events("tool.held") == []


@pytest.mark.anyio
async def test_an_approval_given_before_is_not_used_for_it(wrapped: Place, upstream: Upstream) -> None:
    async with running(wrapped.installation) as parts:
        with pytest.raises(ApprovalRequired) as waiting:
            await call(parts, wrapped.caller(), "things_change_it", GIVEN, Nobody())
        decide(wrapped, waiting.value.approval, Decision.APPROVE)
        held(wrapped, connection_named(wrapped.database, wrapped.org, "things"), WRITE, changed(WRITE, title="Else"))
        with pytest.raises(DefinitionHeld):
            await call(parts, wrapped.caller(), "things_change_it", GIVEN, Nobody())
    assert record(wrapped, waiting.value.approval).state.value == "approved"
    assert wrapped.events("call.attempt") == []
    assert upstream.requests == []


@pytest.mark.anyio
async def test_a_tool_that_is_out_of_reach_is_unknown_held_or_not(wrapped: Place) -> None:
    wrapped.agent("robot", standalone=True)
    held(wrapped, connection_named(wrapped.database, wrapped.org, "things"), READ, WORSE)
    async with running(wrapped.installation) as parts:
        with pytest.raises(NoSuchTool):
            await call(parts, wrapped.caller("robot"), "things_read_it", GIVEN, Nobody())
        with pytest.raises(NotShown):
            describe(parts, wrapped.caller("robot"), {"name": "things_read_it"})


def test_a_hold_counts_against_the_pin_that_it_was_found_for_and_no_other(wrapped: Place) -> None:
    connection = connection_named(wrapped.database, wrapped.org, "things")
    held(wrapped, connection, changed(READ, title="Of an older file"), WORSE)
    assert wrapped.installation.workspaces.of(wrapped.caller()).held == frozenset()
    held(wrapped, connection, READ, WORSE)
    assert wrapped.installation.workspaces.of(wrapped.caller()).held == {"things_read_it"}


@pytest.mark.both_databases
def test_it_goes_with_its_connection(wrapped: Place) -> None:
    connection = connection_named(wrapped.database, wrapped.org, "things")
    held(wrapped, connection, READ, WORSE)
    wrapped.database.write_now(lambda rows: remove(rows, wrapped.installation.vault, connection, by="alice"))
    assert wrapped.database.read("SELECT * FROM held_definition") == []


@pytest.mark.both_databases
def test_hostile_words_are_stored_and_too_many_are_not(wrapped: Place) -> None:
    connection = connection_named(wrapped.database, wrapped.org, "things")
    hostile = changed(READ, description="\x00\ud800\u202e'; DROP TABLE org; --")
    held(wrapped, connection, READ, hostile)
    assert held_of(wrapped.database, wrapped.org)[0].definition == hostile.raw
    held(wrapped, connection, READ, changed(READ, description="x" * MOST_BYTES))
    (one,) = held_of(wrapped.database, wrapped.org)
    assert (one.gone, one.definition) == (False, None)


def test_people_see_it_where_they_look(owner: CommandLine, wrapped: Place) -> None:
    look = ("connection", "list"), ("connection", "show", "things"), ("doctor",)
    for words in look:
        assert "read_it" not in owner(*words).err + owner(*words).out
    held(wrapped, connection_named(wrapped.database, wrapped.org, "things"), READ, WORSE)
    for words in look:
        ran = owner(*words)
        assert "keyleash connector review things" in " ".join((ran.out + ran.err).split()), words
    assert owner("connection", "show", "things", "--json").json["held"] == ["read_it"]
    listed = {one["name"]: one["held"] for one in owner("connection", "list", "--json").json}
    assert listed == {"stripe": [], "things": ["read_it"]}
    file = file_of(wrapped)
    file.write_text(file.read_text().replace(READ.hash, WORSE.hash))
    assert owner("connection", "show", "things", "--json").json["held"] == []
