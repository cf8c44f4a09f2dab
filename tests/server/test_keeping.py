"""A kept conversation is one agent's by one connection as both were when it began, and ends with any of that."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from connectors.definition import OAuth
from connectors.upstream import Returned
from server.app import running
from server.call import call
from server.clock import running_s
from server.connections import Plan, connection_named, remove, rotate
from server.database import DatabaseProblem
from server.errors import AtLimit, CallRefused
from server.identity import narrow_agent, remove_agent, rotate_agent, set_frozen
from server.keeping import OLDEST_S, Conversations
from server.narrowing import Narrowing
from tests import postgres
from tests.agents import ERAS, Nobody, answering, connected, execute, with_connector
from tests.installed import SECRET, Place, add_org, files_holding
from tests.keeping import Clock, Serving, command, connector_text, kept, serving
from tests.wrapped import Wrapped
from tests.wrapping import connector_text as world_text
from vault import Secret, to_reference

pytestmark = pytest.mark.anyio

NEVER = 1e9


def there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(true: Callable[[], bool]) -> None:
    """What another process does has no event."""
    with anyio.fail_after(20):  # less than a call may take
        while not true():  # noqa: ASYNC110 - see above
            await anyio.sleep(0.01)


async def gone(pid: int) -> None:
    await until(lambda: not there(pid))


def conversations(place: Place) -> list[Any]:
    return [body.get("conversation") for body in place.events("call.outcome")]


# -- what is kept


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_what_a_server_keeps_is_there_at_the_agents_next_call(place: Place, era: str) -> None:
    kept(place, era)
    async with serving(place) as served:
        first = await served.said("remember", "a")
        second = await served.said("remember", "b")
        assert (second["kept"], second["pid"]) == (["a", "b"], first["pid"])
        assert there(first["pid"])
    assert not there(first["pid"]), "it ends with the server"
    assert conversations(place) == ["begun", "went on"]
    assert "note_on_conversation" not in second


async def test_without_a_word_in_the_file_each_call_has_its_own(place: Place) -> None:
    kept(place, keep=None)
    async with serving(place) as served:
        first, second = await served.said("remember", "a"), await served.said("remember", "b")
        assert served.open == 0
        assert not there(first["pid"])
    assert second["kept"] == ["b"]
    assert conversations(place) == [None, None]


async def test_where_nothing_keeps_them_each_call_has_its_own(place: Place) -> None:
    kept(place)
    async with serving(place) as served:
        conversation = served.parts.conversations
    outside = Serving(place, replace(served.parts, conversations=conversation))
    first = await outside.said("remember", "a")
    assert not there(first["pid"])


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_over_http_one_session_serves_all_calls_and_is_said_goodbye_to(place: Place, era: str) -> None:
    with Wrapped(SECRET, era=era) as wrapped:
        with_connector(place, "world", world_text(keep="10m"))
        place.connect(wrapped.url, connector="world", secret=SECRET)
        async with running(place.installation) as parts:
            for text in ("a", "b", "c"):
                assert (await call(parts, place.caller(), "world_echo", {"text": text}, Nobody())).ok
            began = [method for method, _, headers in wrapped.requests if "mcp-session-id" not in headers]
            assert parts.conversations.open == 1
        sessions = {headers.get("mcp-session-id") for _, _, headers in wrapped.requests} - {None}
        left = [method for method, _, _ in wrapped.requests].count("DELETE")
        assert (len(sessions), left) == ((1, 1) if era == "handshake" else (0, 0))
        assert len(wrapped.world.calls) == 3
        again = 0 if era == "handshake" else 3  # for itself, a modern server lists at each call over HTTP
        assert wrapped.world.lists == 3 * 3 + again, "pins are looked at before each call: three pages"
        if era == "handshake":
            assert began == ["POST", "POST"], "it is greeted once"


# -- whose it is


async def test_two_agents_at_once_never_see_each_others_state(place: Place) -> None:
    kept(place)
    place.agent("other")
    async with serving(place) as served:

        async def talk(agent: str) -> None:
            for number in range(5):
                said = await served.said("remember", f"{agent}{number}", agent=agent)
                assert said["kept"] == [f"{agent}{each}" for each in range(number + 1)]

        async with anyio.create_task_group() as group:
            group.start_soon(talk, "reconciler")
            group.start_soon(talk, "other")
        assert served.open == 2


async def test_two_connections_and_two_orgs_share_nothing(place: Place) -> None:
    kept(place)
    place.connect(None, connector="state", name="state_two", secret=SECRET)
    other = add_org(place.installation, "globex")
    other.agent()
    other.connect(None, connector="state", secret=SECRET)
    async with serving(place) as served:
        await served.said("remember", "ours")
        second = await call(served.parts, place.caller(), "state_two_recall", {}, Nobody())
        theirs = await Serving(other, served.parts).said()
        assert second.structured is not None
        assert (second.structured["kept"], theirs["kept"], served.open) == ([], [], 3)


def rotated(place: Place, secret: str = f"{SECRET}2") -> None:
    connection = connection_named(place.database, place.org, "state")
    vault, connector = place.installation.vault, place.installation.catalogue.connectors["state"]
    same = Plan(connector, connector.credentials[0], "state", connection.base_url, connection.private)
    given = {"secret": secret}
    place.database.write_now(
        lambda rows: rotate(rows, vault, connection, same, fields=given, account=None, verified=False, by="alice")
    )


def rotated_to_the_same(place: Place) -> None:
    rotated(place, SECRET)


def removed(place: Place) -> None:
    connection = connection_named(place.database, place.org, "state")
    place.database.write_now(lambda rows: remove(rows, place.installation.vault, connection, by="alice"))


def agent_of(place: Place) -> Any:
    return place.installation.directory.agent(place.org, "reconciler")


def agent_removed(place: Place) -> None:
    place.database.write_now(lambda rows: remove_agent(rows, place.org, agent_of(place), by="alice"))


def token_rotated(place: Place) -> None:
    place.database.write_now(lambda rows: rotate_agent(rows, place.org, agent_of(place), by="alice"))


def frozen(place: Place) -> None:
    place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))


def narrowed(place: Place) -> None:
    less = Narrowing(tools=("state.recall", "state.remember"))
    place.database.write_now(
        lambda rows: narrow_agent(rows, place.org, agent_of(place), narrowing=less, expires_at=None, by="alice")
    )


def file_changed(place: Place) -> None:
    """As a review does: the file is written, and the org's revision moves."""
    file = place.installation.settings.connectors / "state.yaml"
    file.write_text(connector_text(command(), keep="11m"), encoding="utf-8")
    os.utime(file, ns=(1, 1))
    place.rule(who="everyone", tools=["other.*"], then="deny")


def consent_needed(place: Place) -> None:
    execute(place, "UPDATE connection SET needs_consent_at = 1 WHERE name = 'state'")
    touched(place)


def touched(place: Place) -> None:
    """Something else of the org changes."""
    place.rule(who="everyone", tools=["other.*"], then="deny")


ENDS: dict[str, Callable[[Place], None]] = {
    "rotated": rotated,
    "rotated_to_the_same": rotated_to_the_same,
    "removed": removed,
    "agent_removed": agent_removed,
    "token_rotated": token_rotated,
    "frozen": frozen,
    "narrowed": narrowed,
    "file_changed": file_changed,
    "consent_needed": consent_needed,
}


@pytest.mark.parametrize("what", list(ENDS))
async def test_it_ends_without_any_further_call(place: Place, what: str) -> None:
    kept(place)
    reopen(place)
    async with serving(place) as served:
        pid = (await served.said("remember", "a"))["pid"]
        ENDS[what](place)
        await gone(pid)
        await until(lambda: not served.open)


@pytest.mark.parametrize("what", ["rotated", "rotated_to_the_same", "token_rotated", "narrowed", "file_changed"])
async def test_the_next_call_never_uses_the_one_from_before_even_where_nobody_looked(place: Place, what: str) -> None:
    kept(place)
    reopen(place)
    async with serving(place, look_s=NEVER) as served:
        before = await served.said("remember", "a")
        ENDS[what](place)
        after = await served.said("recall")
        assert (after["kept"], after["pid"] == before["pid"]) == ([], False)
        assert not there(before["pid"]), "the one before is gone when the new one begins"
        assert "may have no more" in after["note_on_conversation"]
        assert served.open == 1


async def test_a_new_one_waits_for_the_one_before_also_where_that_is_just_ending(place: Place) -> None:
    """What the one before holds, such as a lock, the new one may want."""
    kept(place, "stubborn", keep="1m")
    clock = Clock()
    async with serving(place, clock) as served:
        pid = (await served.said("remember", "a"))["pid"]
        clock.now += 61
        await until(lambda: not served.parts.conversations._kept)
        assert there(pid), "it takes a second to end"
        after = await served.said("recall")
        assert not there(pid)
        assert (after["kept"], after["pid"] == pid) == ([], False)


async def test_what_concerns_something_else_does_not_end_it(place: Place) -> None:
    kept(place)
    reopen(place)
    async with serving(place) as served:
        pid = (await served.said("remember", "a"))["pid"]
        touched(place)
        await anyio.sleep(0.2)
        after = await served.said("recall")
    assert (after["kept"], after["pid"]) == (["a"], pid)


def reopen(place: Place) -> None:
    """The files are read as a server does, which sees when they change."""
    from tests.agents import reopened

    reopened(place)


# -- when it ends


async def test_it_ends_once_nobody_has_called_for_so_long_and_not_before(place: Place) -> None:
    kept(place, keep="1m")
    clock = Clock()
    async with serving(place, clock) as served:
        pid = (await served.said("remember", "a"))["pid"]
        clock.now += 59
        assert (await served.said("remember", "b"))["pid"] == pid
        clock.now += 59
        await anyio.sleep(0.1)
        assert there(pid)
        clock.now += 2
        await gone(pid)
        after = await served.said("recall")
        assert after["kept"] == []
        assert "nothing was called in it for 60 s" in after["note_on_conversation"]
        assert "note_on_conversation" not in await served.said("recall"), "it is told once"


async def test_what_is_too_long_idle_is_not_used_even_where_nobody_looked(place: Place) -> None:
    kept(place, keep="1m")
    clock = Clock()
    async with serving(place, clock, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        clock.now += 61
        assert (await served.said("recall"))["pid"] != pid


async def test_it_ends_at_its_highest_age_however_busy(place: Place) -> None:
    kept(place, keep="1h")
    clock = Clock()
    async with serving(place, clock, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        while clock.now + 3_000 < 1_000 + OLDEST_S:
            clock.now += 3_000
            assert (await served.said("recall"))["pid"] == pid
        clock.now += 3_000
        after = await served.said("recall")
        assert after["pid"] != pid
        assert "8 hours" in after["note_on_conversation"]


async def test_of_too_many_the_longest_idle_one_goes(place: Place) -> None:
    kept(place)
    for name in ("second", "third"):
        place.agent(name)
    clock = Clock()
    async with serving(place, clock, most=2) as served:
        pids = {}
        for agent in ("reconciler", "second", "reconciler", "third"):
            clock.now += 1
            pids[agent] = (await served.said("remember", agent, agent=agent))["pid"]
        assert served.open == 2
        assert [there(pids[agent]) for agent in ("reconciler", "second", "third")] == [True, False, True]
        assert "too many others" in (await served.said(agent="second"))["note_on_conversation"]


async def test_an_org_with_many_pushes_out_its_own_and_nobody_elses(place: Place) -> None:
    kept(place)
    place.agent("second")
    other = add_org(place.installation, "globex")
    other.agent()
    other.connect(None, connector="state", secret=SECRET)
    clock = Clock()
    async with serving(place, clock, most=2) as served:
        theirs = await Serving(other, served.parts).said("remember", "theirs")
        clock.now += 1
        ours = await served.said("remember", "ours")
        clock.now += 1
        await served.said("remember", "more", agent="second")
        assert (there(theirs["pid"]), there(ours["pid"])) == (True, False)


async def test_where_all_are_in_use_a_call_fails_and_nothing_is_sent(place: Place) -> None:
    kept(place)
    place.agent("second")
    async with serving(place, most=1) as served, anyio.create_task_group() as group:
        group.start_soon(served, "hang")
        await under_way(place, 1)
        outcome = await served("recall", agent="second")
        assert not outcome.ok
        assert "All 1 conversations" in outcome.text
        for one in list(served.parts.conversations._kept.values()):
            one.lasting.cut()
    assert place.events("call.outcome")[0]["outcome"] == "failed"


async def test_an_org_whose_calls_never_end_leaves_room_for_others(place: Place) -> None:
    kept(place)
    for name in ("second", "third", "fourth"):
        place.agent(name)
    other = add_org(place.installation, "globex")
    other.agent()
    other.connect(None, connector="state", secret=SECRET)
    async with serving(place, most=4) as served, anyio.create_task_group() as group:
        for agent in ("reconciler", "second", "third"):
            await served.said("remember", "a", agent=agent)
            group.start_soon(partial(served, "hang", agent=agent))
        await under_way(place, 6)
        outcome = await served("recall", agent="fourth")
        assert "All 3 conversations in which calls of one org" in outcome.text
        assert (await Serving(other, served.parts).said())["kept"] == []
        for one in list(served.parts.conversations._kept.values()):
            one.lasting.cut()


async def test_one_that_does_not_come_to_its_end_holds_up_no_call_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(place)
    place.agent("second")
    monkeypatch.setattr("server.keeping.END_S", 0.1)
    async with serving(place, most=1) as served:
        await served.said("remember", "a")
        (one,) = served.parts.conversations._kept.values()
        never: Any = SimpleNamespace(wait=anyio.sleep_forever, is_set=lambda: False, set=lambda: None)
        one.lasting.ended = never
        with anyio.fail_after(20):
            outcome = await served("recall", agent="second")
        assert "All 1 conversations" in outcome.text


async def test_where_the_database_does_not_answer_it_is_asked_once_for_all_of_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question could take seconds, in which nobody else is served."""
    kept(place)
    place.agent("second")
    asked: list[str] = []

    def away(_org: str, agent: str) -> None:
        asked.append(agent)
        raise DatabaseProblem("It does not answer.")

    async with serving(place, look_s=NEVER) as served:
        await served.said("remember", "a")
        await served.said("remember", "b", agent="second")
        with monkeypatch.context() as patch:
            patch.setattr(served.parts.conversations._directory, "by_agent", away)
            await served.parts.conversations._look()
        assert (len(asked), served.open) == (1, 2)
        assert (await served.said("recall"))["kept"] == ["a"]


async def under_way(place: Place, number: int) -> None:
    """So many calls have been sent, as far as anybody here can see."""
    await until(lambda: len(place.events("call.attempt")) == number)
    await anyio.sleep(0.3)


# -- one call at a time


async def test_a_second_call_of_the_same_agent_waits_and_is_refused_when_it_has_waited_long_enough(
    place: Place,
) -> None:
    settings = replace(place.installation.settings, wait_seconds=0.3)
    place = replace(place, installation=replace(place.installation, settings=settings))
    kept(place)
    async with serving(place) as served:
        await served.said("remember", "a")
        async with anyio.create_task_group() as group:
            group.start_soon(served, "hang")
            await under_way(place, 2)
            with pytest.raises(AtLimit, match="another call of this agent is under way"):
                await served("recall")
            assert len(place.events("call.attempt")) == 2
            for one in list(served.parts.conversations._kept.values()):
                one.lasting.cut()


async def test_calls_of_one_agent_at_once_are_made_one_after_the_other_in_one_conversation(place: Place) -> None:
    kept(place)
    said: list[dict[str, Any]] = []
    async with serving(place) as served:

        async def one(number: int) -> None:
            said.append(await served.said("remember", str(number)))

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(one, number)
    assert len({each["pid"] for each in said}) == 1
    assert sorted(len(each["kept"]) for each in said) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("era", ["modern", "handshake"])
async def test_calls_at_once_over_http_share_one_session_one_after_the_other(place: Place, era: str) -> None:
    with Wrapped(SECRET, era=era) as wrapped:
        with_connector(place, "world", world_text(keep="10m"))
        place.connect(wrapped.url, connector="world", secret=SECRET)
        async with running(place.installation) as parts:

            async def one(number: int) -> None:
                assert (await call(parts, place.caller(), "world_echo", {"text": str(number)}, Nobody())).ok

            async with anyio.create_task_group() as group:
                for number in range(4):
                    group.start_soon(one, number)
            assert parts.conversations.open == 1
    assert sorted(conversations(place)) == ["begun", "went on", "went on", "went on"]


# -- what goes wrong


@pytest.mark.parametrize("tool", ["refuse", "babble", "die"])
async def test_a_conversation_in_which_something_went_wrong_is_not_gone_on_with(place: Place, tool: str) -> None:
    kept(place)
    async with serving(place, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        assert not (await served(tool)).ok
        assert not there(pid)
        after = await served.said("recall")
        assert (after["kept"], served.open) == ([], 1)
        assert "a call in it failed" in after["note_on_conversation"]
    assert len(place.events("call.attempt")) == 3


async def test_a_tool_that_says_that_it_failed_is_no_reason_to_end_it(place: Place) -> None:
    kept(place)
    async with serving(place) as served:
        pid = (await served.said("remember", "a"))["pid"]
        assert not (await served("fail")).ok
        assert (await served.said("recall"))["pid"] == pid


async def test_a_call_that_is_cut_off_ends_its_conversation(place: Place) -> None:
    kept(place)
    async with serving(place, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        one = next(iter(served.parts.conversations._kept.values()))
        with anyio.move_on_after(0.3):
            await one.lasting.call(lambda upstream: upstream.call("hang", {}, pinned=pinned(place, "hang")))
        await gone(pid)
        assert (await served.said("recall"))["kept"] == []


def pinned(place: Place, tool: str) -> str:
    return place.installation.catalogue.connectors["state"].tools[tool].pinned


async def test_a_server_that_was_killed_between_calls_is_begun_anew_before_the_call(place: Place) -> None:
    kept(place)
    async with serving(place, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        os.kill(pid, signal.SIGKILL)
        after = await served.said("recall")
        assert (after["kept"], after["pid"] == pid) == ([], False)
        assert "its server ended it" in after["note_on_conversation"]


async def test_a_server_whose_end_is_seen_only_when_it_is_spoken_to_is_begun_anew_once(place: Place) -> None:
    kept(place)
    async with serving(place, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        one = next(iter(served.parts.conversations._kept.values()))
        type(one.lasting).alive, alive = property(lambda _self: True), type(one.lasting).alive
        try:
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
            after = await served.said("recall")
        finally:
            type(one.lasting).alive = alive
        assert (after["kept"], len(place.events("call.attempt"))) == ([], 2)


def kept_that_writes(place: Place) -> None:
    """With a tool of which it matters whether it was called."""
    reads = "effect: read\n    because: It changes nothing that stays.\n    ask: Do write_and_die"
    text = connector_text(command()).replace(reads, "effect: write\n    ask: Do write_and_die")
    with_connector(place, "state", text)
    place.connect(None, connector="state", secret=SECRET)
    place.rule(who="everyone", tools=["state.*"], then="allow")


@pytest.mark.parametrize("before", [True, False])
async def test_a_server_that_ended_in_mid_call_is_not_sent_the_call_again(
    place: Place, tmp_path: Path, before: bool
) -> None:
    kept_that_writes(place)
    witness = tmp_path / "witness"
    async with serving(place, look_s=NEVER) as served:
        if before:
            await served.said("remember", "a")
        assert not (await served("write_and_die", str(witness))).ok
        assert place.events("call.outcome")[-1]["outcome"] == "unknown"
        assert witness.read_text() == "written\n"
        assert served.open == 0, "and none was begun for it"
        assert (await served.said("recall"))["kept"] == []


async def test_a_server_that_says_nothing_more_and_goes_on_hearing_has_heard_the_call(
    place: Place, tmp_path: Path
) -> None:
    kept_that_writes(place)
    witness = tmp_path / "witness"
    async with serving(place, look_s=NEVER) as served:
        await served("hush")
        assert not (await served("write_and_die", str(witness))).ok
        assert (place.events("call.outcome")[-1]["outcome"], witness.read_text()) == ("unknown", "written\n")


async def test_a_server_that_was_killed_in_mid_call_is_noticed_at_once(place: Place) -> None:
    kept(place)
    async with serving(place, look_s=NEVER) as served:
        pid = (await served.said("remember", "a"))["pid"]
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(served, "hang")
                await under_way(place, 2)
                os.kill(pid, signal.SIGKILL)
        assert served.open == 0
        assert (await served.said("recall"))["kept"] == []


async def test_one_that_ends_by_itself_is_noticed_without_a_call(place: Place) -> None:
    kept(place)
    async with serving(place) as served:
        assert (await served("leave")).ok
        await until(lambda: not served.open)


async def test_a_definition_that_changes_without_notice_is_held_and_nothing_is_sent(place: Place) -> None:
    kept(place)
    async with serving(place) as served:
        await served.said("remember", "a")
        assert (await served("shift")).ok
        outcome = await served("recall")
        assert not outcome.ok
        assert "is held" in outcome.text
        with pytest.raises(CallRefused):
            await served("recall")
    assert [body["tool"] for body in place.events("tool.held")] == ["state_recall"]


# -- what it asks and says


@pytest.mark.parametrize(
    ("client_era", "server_era"), [("legacy", "handshake"), ("legacy", "modern"), ("auto", "modern")]
)
async def test_a_question_goes_to_the_person_of_the_call_under_way(
    place: Place, client_era: str, server_era: str
) -> None:
    kept(place, server_era)
    answer, asked = answering("accept", {"colour": "blue"})
    async with connected(place, "memory", client_era, answer) as client:
        first = await client.call_tool("state_remember", {"text": "a"})
        result = await client.call_tool("state_ask", {"text": "x"})
        again = await client.call_tool("state_ask", {"text": "x"})
    assert first.structured_content is not None
    assert again.structured_content is not None
    assert len(asked) == 2
    assert again.structured_content["pid"] == first.structured_content["pid"]
    assert [each["content"] for each in again.structured_content["answers"]] == [{"colour": "blue"}] * 2
    assert place.events("call.outcome")[-1]["asked"] == ["accept"], "each call says what was asked in it alone"
    assert not result.is_error


@pytest.mark.parametrize("era", ERAS)
async def test_what_a_server_asks_between_calls_is_declined_and_nobody_is_asked(place: Place, era: str) -> None:
    kept(place, "handshake")
    answer, asked = answering("accept", {"colour": "blue"})
    async with connected(place, "memory", era, answer) as client:
        assert not (await client.call_tool("state_ask_late", {})).is_error
        with anyio.fail_after(20):
            while True:
                said = (await client.call_tool("state_recall", {})).structured_content
                assert said is not None
                if said["answers"]:
                    break
    assert [each["action"] for each in said["answers"]] == ["decline"]
    assert asked == []
    assert all("asked" not in body for body in place.events("call.outcome"))


async def test_a_person_who_is_asked_when_the_call_ends_is_not_heard_any_more(place: Place) -> None:
    """The answer to a question of a call that is over goes nowhere."""
    kept(place, "handshake")
    async with serving(place, look_s=NEVER) as served:
        await served.said("remember", "a")
        upstream = next(iter(served.parts.conversations._kept.values())).lasting._upstream
        assert upstream is not None
        upstream._begin_call(None)
        from connectors.elicitation import Answer, vetted
        from tests.stateful import FORM

        answered: list[str] = []

        async def slowly(_ask: Any) -> Answer:
            await anyio.sleep(30)
            answered.append("too late")
            return Answer("accept", {"colour": "red"})

        upstream._relay = slowly
        ask = vetted("Which?", FORM)
        assert ask is not None
        got: list[Answer] = []

        async def put() -> None:
            got.append(await upstream._put(ask))

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            await anyio.sleep(0.1)
            upstream._end_call()
        assert [each.action for each in got] == ["decline"]
        assert (answered, upstream._asked) == ([], [])


async def test_what_a_server_says_between_calls_is_not_kept_and_too_much_of_it_ends_the_conversation(
    place: Place,
) -> None:
    kept(place)
    async with serving(place) as served:
        first = await served.said("chatter", "3000")
        assert (await served.said("chatter", "3000"))["pid"] == first["pid"]
        await served("grow", "6")
        assert (await served.said("recall"))["pid"] == first["pid"]
        await served("grow", "6")
        assert (await served.said("recall"))["pid"] == first["pid"], "each time counts by itself"
        await served("grow", "12")
        await gone(first["pid"])
        assert (await served.said("recall"))["pid"] != first["pid"]


# -- the secret


async def test_the_secret_is_in_nothing_that_comes_back_or_stays(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    kept(place)
    with caplog.at_level("DEBUG"):
        async with serving(place) as served:
            outcomes = [await served("remember", SECRET), await served("recall"), await served("refuse")]
            outcomes += [await served("recall")]
            (one,) = served.parts.conversations._kept.values()
            assert SECRET not in repr(one) + repr(one.whose) + repr(vars(one)) + repr(one.lasting)
            os.kill(outcomes[-1].structured["pid"], signal.SIGKILL)  # type: ignore[index]
            outcomes += [await served("recall")]
            (last,) = served.parts.conversations._kept.values()
        assert last.secret._kept() == {}, "its copy is wiped when it has ended"
        assert one.secret._kept() == {}
    for outcome in outcomes:
        assert SECRET not in outcome.text + json.dumps(outcome.structured)
    assert "[removed by Keyleash]" in outcomes[1].text
    assert not any(SECRET in record.getMessage() for record in caplog.records)
    assert files_holding(place.home, SECRET.encode()) == []


async def test_a_reference_that_leads_to_another_secret_ends_it(place: Place, tmp_path: Path) -> None:
    """The version is the same: what stands at the place has changed."""
    held = tmp_path / "held"
    held.write_text(SECRET)
    with_connector(place, "state", connector_text(command()))
    place.connect(None, connector="state", secret=to_reference(f"file:{held}"))
    async with serving(place, look_s=NEVER) as served:
        before = await served.said("remember", "a")
        assert (await served.said("recall"))["pid"] == before["pid"]
        held.write_text(f"{SECRET}2")
        after = await served.said("recall")
        assert (after["kept"], after["pid"] == before["pid"]) == ([], False)
        assert "its credential is another one now" in after["note_on_conversation"]


@pytest.mark.parametrize("by_oauth", [True, False])
async def test_over_http_a_renewed_token_goes_on_in_the_same_session_and_another_secret_does_not(
    place: Place, by_oauth: bool
) -> None:
    with Wrapped(SECRET, era="handshake") as wrapped:
        with_connector(place, "world", world_text(keep="10m"))
        connection = place.connect(wrapped.url, connector="world", secret=SECRET)
        connector = place.installation.catalogue.connectors["world"]
        oauth = OAuth(authorize="/authorize", token="/token") if by_oauth else None
        kind = replace(connector.credentials[0], oauth=oauth)
        pin = connector.tools["echo"].pinned
        async with running(place.installation) as parts:
            for secret in (SECRET, f"{SECRET}-renewed"):
                wrapped._secret = secret
                with Secret({"secret": secret, "refresh_token": "of_no_use_to_a_call"}) as given:
                    came, _told = await parts.conversations.talk(
                        place.caller(),
                        connection,
                        connector,
                        kind,
                        given,
                        lambda upstream, before: upstream.call("echo", {"text": "x"}, pinned=pin, before=before),
                        lambda: None,
                    )
                (one,) = parts.conversations._kept.values()
                assert one.fields == (("secret",) if by_oauth else ("secret", "refresh_token"))
            assert isinstance(came, Returned)
            before = {SECRET} if by_oauth else set[str]()
            assert {f"{SECRET}-renewed"} | before <= set(came.reply.secrets), "what it may still repeat is scrubbed"
        sessions = {headers.get("mcp-session-id") for _, _, headers in wrapped.requests} - {None}
        assert len(sessions) == (1 if by_oauth else 2)
        assert len(wrapped.world.calls) == 2


async def test_none_is_begun_once_all_are_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waited for room while the server was stopped."""
    kept(place)
    async with serving(place) as served:
        conversations = served.parts.conversations

        async def meanwhile(_org: str) -> None:
            conversations._lifeline = None

        monkeypatch.setattr(conversations, "_make_room", meanwhile)
        outcome = await served("recall")
        assert (outcome.ok, served.open) == (False, 0)
    assert place.events("call.outcome")[-1]["outcome"] == "failed"


# -- the whole server


async def test_a_program_that_is_started_for_one_call_does_not_outlive_a_killed_server_either(place: Place) -> None:
    kept(place, keep=None)
    async with serving(place) as served, anyio.create_task_group() as group:
        lifeline = served.parts.conversations._lifeline
        assert lifeline is not None
        group.start_soon(served, "hang")
        await until(lambda: len(lifeline._groups) == 1)
        assert lifeline._watch is not None
        (pid,) = lifeline._groups
        os.kill(pid, signal.SIGKILL)
    assert lifeline._groups == set()


def test_what_a_machine_sleeps_counts_as_idle(place: Place) -> None:
    egress: Any = None
    own = place.installation
    assert Conversations(egress, own.directory, own.workspaces)._clock is running_s


@pytest.mark.parametrize("how", ["closed", signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_a_server_no_program_of_its_stays_behind(place: Place, how: Any) -> None:
    """One that ends neither when its input does nor when it is asked to, in a server in a process of its own."""
    kept(place, "stubborn")
    serve = subprocess.Popen(
        [sys.executable, "-c", "from server.cli import main; main()", "serve", "--agent", "reconciler"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **postgres.environment(place.home), "KEYLEASH_HOME": str(place.home)},
    )
    with serve:
        assert serve.stdin is not None
        assert serve.stdout is not None
        for message in HELLO:
            serve.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        serve.stdin.flush()
        answers = (json.loads(line) for line in serve.stdout)
        said = next(answer for answer in answers if answer.get("id") == 2)["result"]["structuredContent"]
        assert there(said["pid"])
        if how == "closed":
            serve.stdin.close()
        else:
            serve.send_signal(how)
        serve.wait(60)
        until = time.monotonic() + 30
        while there(said["pid"]):
            assert time.monotonic() < until
            time.sleep(0.01)


ABOUT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
HELLO: list[dict[str, Any]] = [
    {"id": 1, "method": "initialize", "params": ABOUT},
    {"method": "notifications/initialized"},
    {"id": 2, "method": "tools/call", "params": {"name": "state_remember", "arguments": {"text": "a"}}},
]
