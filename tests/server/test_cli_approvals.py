"""Held calls are seen whole and decided outside the client, by who may, on the terminal itself or on the record."""

import asyncio
import io
import os
import pty
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from server.app import open_installation, running
from server.approval import Decision, State
from server.call import Outcome, call
from server.cli.acting import Desk
from server.cli.approvals import pending
from server.cli.output import console_on
from server.cli.watching import Screen, _one
from server.errors import ApprovalRequired
from server.identity import system_user
from tests.commandline import CommandLine, Ran
from tests.installed import Place
from tests.upstream import Upstream

REFUND = {"charge": "ch_1", "amount": 1200}
MESSAGE = {"channel": "C0123456789", "text": "hello"}


class Nobody:
    """No person at the client."""

    can_be_asked = False
    answers_later = False
    outside = None

    async def ask(self, _question: Any) -> Decision | None:
        raise AssertionError("nobody can be asked")


async def attempt(place: Place, tool: str, arguments: dict[str, Any], agent: str = "reconciler") -> Outcome:
    async with running(place.installation) as parts:
        return await call(parts, place.caller(agent), tool, arguments, Nobody())


def held(place: Place, arguments: dict[str, Any] = REFUND, tool: str = "stripe_create_refund", **more: Any) -> str:
    """The id of a call that waits for a person."""
    with pytest.raises(ApprovalRequired) as required:
        asyncio.run(attempt(place, tool, arguments, **more))
    return required.value.approval


def state(place: Place, approval: str) -> State:
    record = place.installation.approvals.find(place.org, approval)
    assert record is not None
    return record.state


def decisions(place: Place, approval: str) -> tuple[dict[str, Any], ...]:
    record = place.installation.approvals.find(place.org, approval)
    assert record is not None
    return record.decisions


def become(place: Place, name: str, *roles: str) -> None:
    """The person at the terminal is now a member of this name with these roles."""
    place.database.write_now(lambda rows: rows.execute("UPDATE member SET os_user = NULL"))
    place.member(name, roles, os_user=system_user())


# -- list and show


def test_what_waits_is_listed_with_what_a_script_needs(owner: CommandLine, place: Place) -> None:
    assert owner("approvals", "list", "--json").json == []
    approval = held(place)
    (shown,) = owner("approvals", "list", "--json").json
    assert shown == {
        "id": approval,
        "status": "pending",
        "tool": "stripe_create_refund",
        "agent": "reconciler",
        "connection": "stripe",
        "effect": "spend",
        "ruling": "confirm",
        "needed": 1,
        "decided": 0,
        "created_at": shown["created_at"],
        "expires_at": shown["expires_at"],
        "summary": shown["summary"],
        "resolution": None,
        "grant": None,
    }
    assert "ch_1" in shown["summary"]
    assert shown["created_at"].endswith("Z")
    assert approval in owner("approvals", "list").out
    owner("approvals", "deny", approval, "--yes")
    assert owner("approvals", "list", "--json").json == []
    assert [one["status"] for one in owner("approvals", "list", "--all", "--json").json] == ["denied"]


def test_one_is_shown_whole(owner: CommandLine, place: Place) -> None:
    approval = held(place, {**REFUND, "reason": "duplicate"})
    shown = owner("approvals", "show", approval, "--json").json
    assert shown["arguments"] == {**REFUND, "reason": "duplicate"}
    assert "MOVES MONEY" in shown["prompt"]
    text = owner("approvals", "show", approval).out
    assert all(part in text for part in ("ch_1", "1200", "duplicate", "MOVES MONEY", approval))
    assert owner("approvals", "show", "apr_nosuch").code == 1


def test_hostile_text_neither_colours_nor_clears_the_terminal(owner: CommandLine, place: Place) -> None:
    hostile = "[red]ch_1[/red]\x1b[2J\x1b]0;owned\x07\u202e:smile:"
    approval = held(place, {"charge": hostile})
    for command in (("approvals", "list"), ("approvals", "show", approval), ("approvals", "list", "--json")):
        ran = owner(*command)
        assert ran.code == 0
        assert "\x1b" not in ran.out
        assert "\x07" not in ran.out
        assert "\u202e" not in ran.out
        assert "[red]ch_1[/red]" in ran.out
        assert ":smile:" in ran.out


def test_a_member_sees_only_what_was_asked_for_them(owner: CommandLine, place: Place) -> None:
    theirs = held(place)
    become(place, "bob", "member")
    for command in (("show",), ("approve", "--yes"), ("deny", "--yes")):
        ran = owner("approvals", command[0], theirs, *command[1:])
        assert ran.code == 1
        assert "There is no approval" in ran.err
    assert owner("approvals", "list", "--all", "--json").json == []
    assert state(place, theirs) is State.PENDING


def in_finance(place: Place) -> None:
    """The person at the terminal is now bob: a member of the group finance, and of no role that approves."""
    become(place, "bob", "member")
    place.database.write_now(lambda rows: rows.execute("UPDATE member SET groups = '[\"finance\"]' WHERE name = 'bob'"))


def test_an_approver_by_group_sees_and_decides_what_the_rule_gives_them(
    owner: CommandLine, place: Place, upstream: Upstream
) -> None:
    others = held(place, {"charge": "ch_0"})
    place.rule(who="everyone", tools=["stripe.*"], then="approve", approvers="group:finance", second_person=True)
    first, second = held(place), held(place, {"charge": "ch_2"})
    in_finance(place)
    assert [one["id"] for one in owner("approvals", "list", "--json").json] == [first, second]
    assert "ch_1" in owner("approvals", "show", first).out
    ran = owner("approvals", "approve", first, "--yes")
    assert (ran.code, state(place, first)) == (0, State.APPROVED), ran.err
    with owner.at_terminal("approvals", "watch") as terminal:
        terminal.until(f"{second} · until")
        terminal.until("[q] leave")
        typed_until(terminal, "d", f"Denied {second}")
        assert terminal.leave() == 0
    assert [one["id"] for one in owner("approvals", "list", "--all", "--json").json] == [second, first]
    assert owner("approvals", "show", others).code == 1
    assert owner("approvals", "deny", others, "--yes").code == 1
    assert state(place, others) is State.PENDING
    assert upstream.requests == []


def test_whoever_is_of_no_group_of_the_rule_sees_nothing_of_it(owner: CommandLine, place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", approvers="group:finance")
    approval = held(place)
    become(place, "carol", "member")
    assert owner("approvals", "list", "--json").json == owner("approvals", "list", "--all", "--json").json == []
    for command in (("show",), ("approve", "--yes"), ("deny", "--yes")):
        assert "There is no approval" in owner("approvals", command[0], approval, *command[1:]).err
    assert state(place, approval) is State.PENDING


def test_an_auditor_sees_and_does_not_decide(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    become(place, "eve", "auditor")
    assert [one["id"] for one in owner("approvals", "list", "--json").json] == [approval]
    for decision in ("approve", "deny"):
        ran = owner("approvals", decision, approval, "--yes")
        assert ran.code == 1
        assert "cannot decide" in ran.err
    assert state(place, approval) is State.PENDING


def test_a_sealed_vault_still_lists_without_what_is_sealed(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    (owner.home / "keys" / "root.key").unlink()
    (shown,) = owner("approvals", "list", "--json").json
    assert (shown["id"], shown["summary"]) == (approval, None)
    assert owner("approvals", "show", approval).code == 1


# -- approve and deny


def test_an_approved_call_runs_once_when_it_is_made_again(owner: CommandLine, place: Place, upstream: Upstream) -> None:
    approval = held(place)
    assert upstream.requests == []
    ran = owner("approvals", "approve", approval, "--yes")
    assert ran.code == 0, ran.err
    assert upstream.requests == []
    assert asyncio.run(attempt(place, "stripe_create_refund", REFUND)).ok
    assert len(upstream.requests) == 1
    (made,) = decisions(place, approval)
    assert made["unattended"] is True
    assert (made["by"], made["channel"], made["known_by"]) == ("alice", "command line", "os user")
    assert place.events("approval.decided")[0]["unattended"] is True


def test_a_denied_call_stays_denied(owner: CommandLine, place: Place, upstream: Upstream) -> None:
    approval = held(place)
    assert owner("approvals", "deny", approval, "--yes").code == 0
    late = owner("approvals", "approve", approval, "--yes")
    assert late.code == 1
    assert "denied" in late.err
    assert state(place, approval) is State.DENIED
    assert upstream.requests == []


def test_an_expired_one_cannot_be_approved(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    place.database.write_now(lambda rows: rows.execute("UPDATE approval SET expires_at = 1"))
    ran = owner("approvals", "approve", approval, "--yes")
    assert ran.code == 1
    assert "expired" in ran.err
    assert owner("approvals", "list", "--json").json == []


def test_the_person_is_shown_everything_and_asked_on_the_terminal(owner: CommandLine, place: Place) -> None:
    approval = held(place, {**REFUND, "reason": "duplicate"})
    with owner.at_terminal("approvals", "approve", approval) as terminal:
        shown = terminal.until("[y/N] ")
        assert all(part in shown for part in ("ch_1", "1200", "duplicate", "MOVES MONEY", "Approve this call?"))
        assert state(place, approval) is State.PENDING
        terminal.type("y\n")
        assert terminal.end() == 0
    assert state(place, approval) is State.APPROVED
    assert "unattended" not in decisions(place, approval)[0]


@pytest.mark.parametrize("answer", ["\n", "n\n", "approve\n", "\x04"])
def test_anything_but_yes_decides_nothing(owner: CommandLine, place: Place, answer: str) -> None:
    approval = held(place)
    with owner.at_terminal("approvals", "approve", approval) as terminal:
        terminal.until("[y/N] ")
        terminal.type(answer)
        assert terminal.end() == 1
    assert state(place, approval) is State.PENDING
    assert decisions(place, approval) == ()


def test_a_pipe_cannot_answer(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    for decision in ("approve", "deny"):
        ran = owner.alone("approvals", decision, approval, stdin=b"y\ny\n")
        assert (ran.code, ran.out) == (1, "")
        assert "recorded as unattended" in ran.err
    assert state(place, approval) is State.PENDING


def test_who_is_not_signed_in_does_not_count_where_an_approver_is_required(owner: CommandLine, place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", second_person=True)
    approval = held(place)
    place.member("bob", ("approver",))
    by_word = owner("approvals", "approve", approval, "--yes", "--as", "bob")
    assert by_word.code == 1
    assert "`--as` does not count" in by_word.err
    own = owner("approvals", "approve", approval, "--yes")
    assert own.code == 1
    assert "second person" in own.err
    become(place, "carol", "approver")
    assert owner("approvals", "approve", approval, "--yes").code == 0
    assert state(place, approval) is State.APPROVED


def test_the_first_of_two_does_not_let_it_run(owner: CommandLine, place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", count=2)
    approval = held(place)
    first = owner("approvals", "approve", approval, "--yes")
    assert (first.code, state(place, approval)) == (0, State.PENDING)
    assert "waits for 1 more" in first.out
    assert owner("approvals", "approve", approval, "--yes").code == 1
    become(place, "carol", "approver")
    assert owner("approvals", "approve", approval, "--yes").code == 0
    assert state(place, approval) is State.APPROVED


# -- grants


@pytest.fixture
def slack(owner: CommandLine, place: Place, upstream: Upstream) -> CommandLine:
    """A connection whose messages may be approved for an hour."""
    place.connect(upstream.url, connector="slack")
    return owner


def test_an_answer_for_an_hour_makes_a_grant_that_can_be_revoked(slack: CommandLine, place: Place) -> None:
    tool = next(
        offered
        for offered in place.installation.catalogue.offer({"slack": "slack"}).tools
        if offered.tool.grant
        and offered.tool.effect.value == "send"
        and "text" in offered.tool.input_schema["properties"]
    )
    approval = held(place, MESSAGE, tool.name)
    assert slack("approvals", "approve", approval, "--yes", "--for-hour").code == 0
    (grant,) = slack("grant", "list", "--json").json
    assert (grant["tool"], grant["agent"], grant["decided_by"]) == (tool.name, "reconciler", "alice")
    assert grant["id"] in slack("grant", "list").out
    become(place, "bob", "member")
    assert slack("grant", "list", "--json").json == []
    assert slack("grant", "revoke", grant["id"]).code == 1
    become(place, "carol", "approver")
    assert slack("grant", "revoke", grant["id"]).code == 0
    assert slack("grant", "list", "--json").json == []
    assert slack("grant", "revoke", grant["id"]).code == 1


def test_what_offers_no_grant_is_not_approved_for_an_hour(owner: CommandLine, place: Place) -> None:
    tools = place.installation.catalogue.connectors["stripe"].tools
    assert tools["create_refund"].grant == ()
    approval = held(place)
    ran = owner("approvals", "approve", approval, "--yes", "--for-hour")
    assert ran.code == 1
    assert state(place, approval) is State.PENDING


# -- watch


@contextmanager
def calling(place: Place, arguments: dict[str, Any]) -> Iterator[list[Any]]:
    """A call that is held for a decision while the block runs; what came of it is in the list afterwards."""
    came: list[Any] = []
    patient = open_installation(replace(place.installation.settings, hold_seconds=45.0))

    def run() -> None:
        try:
            came.append(asyncio.run(attempt(Place(patient, place.org, place.owner), "stripe_create_refund", arguments)))
        except Exception as error:
            came.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield came
    finally:
        thread.join(60)
        patient.close()


def test_watching_decides_a_held_call_with_one_key(owner: CommandLine, place: Place, upstream: Upstream) -> None:
    with owner.at_terminal("approvals", "watch") as terminal:
        terminal.until("Nothing waits for you.")
        with calling(place, REFUND) as came:
            shown = terminal.until("[q] leave")
            assert all(part in shown for part in ("ch_1", "1200", "MOVES MONEY"))
            typed_until(terminal, "a", "Approved apr_")
        terminal.until("Nothing waits for you.")
        assert terminal.leave() == 0
    assert came[0].ok
    assert len(upstream.requests) == 1


def test_watching_denies_skips_and_leaves(owner: CommandLine, place: Place) -> None:
    first, second = held(place), held(place, {"charge": "ch_2"})
    with owner.at_terminal("approvals", "watch") as terminal:
        terminal.until(first)
        terminal.until("[q] leave")
        typed_until(terminal, "d", f"Denied {first}")
        terminal.until("[q] leave")
        typed_until(terminal, "s", f"Passed over {second}")
        terminal.until("Nothing else waits for you.")
        assert terminal.leave() == 0
    assert [state(place, one) for one in (first, second)] == [State.DENIED, State.PENDING]


def test_watching_lists_what_waits_and_moves_through_it(owner: CommandLine, place: Place) -> None:
    first, second, third = (held(place, {"charge": f"ch_{number}"}) for number in (1, 2, 3))
    with owner.at_terminal("approvals", "watch") as terminal:
        shown = terminal.until("[q] leave")
        assert "3 calls wait:" in shown
        assert all(f"ch_{number}" in shown for number in (1, 2, 3))
        assert "reconciler" in shown
        assert first in terminal.shown
        assert second not in terminal.shown
        for key, leads_to in (("n", second), ("n", third), ("n", first), ("p", third), ("2", second)):
            typed_until(terminal, key, f"{leads_to} · until")
            terminal.until("[q] leave")
        typed_until(terminal, "d", f"Denied {second}")
        assert "2 calls wait:" in terminal.until("[q] leave")
        fourth = held(place, {"charge": "ch_4"})
        terminal.until("Now waiting, too: stripe_create_refund, by reconciler.")
        assert terminal.leave() == 0
    states = [state(place, one) for one in (first, second, third, fourth)]
    assert states == [State.PENDING, State.DENIED, State.PENDING, State.PENDING]


@pytest.mark.parametrize("typed", ["\x1b[A", "\x1b[D", "\x1bOA", "banana", "A", "D", "\x1b[200~a\x1b[201~", "aa"])
def test_what_is_no_single_key_decides_nothing(owner: CommandLine, place: Place, typed: str) -> None:
    """An arrow sends A or D among other characters, and a paste whatever was copied."""
    approval = held(place)
    desk = Desk(place.installation, place.installation.directory.org("acme"), place.actor())
    ours, theirs = pty.openpty()

    class Left(Screen):
        def key(self, seconds: float) -> str | None:
            found = super().key(seconds)
            if found is None:  # no key, or what was typed: the next one leaves
                os.write(ours, b"q")
            return found

    try:
        tty.setraw(theirs)
        with os.fdopen(theirs, "r", encoding="ascii") as keyboard:
            screen = Left(console_on(io.StringIO()), keyboard, forget_typed=lambda: os.write(ours, typed.encode()))
            screen.now = iter(range(0, 1000, 10)).__next__
            assert _one(desk, screen, pending(desk), set()) is None
    finally:
        os.close(ours)
    assert state(place, approval) is State.PENDING


def test_one_who_has_had_their_say_is_not_asked_again(owner: CommandLine, place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", count=2)
    approval = held(place)
    desk = Desk(place.installation, place.installation.directory.org("acme"), place.actor())
    passed = set[str]()
    assert _one(desk, Pressed((0.8, "a")), pending(desk), passed) == ""
    assert (passed, state(place, approval)) == ({approval}, State.PENDING)


def test_what_is_decided_elsewhere_goes_from_the_screen(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    with owner.at_terminal("approvals", "watch") as terminal:
        terminal.until("[q] leave")
        assert owner("approvals", "deny", approval, "--yes").code == 0
        terminal.until("decided elsewhere")
        assert terminal.leave() == 0


class Pressed(Screen):
    """A screen on which keys are pressed at set moments, in seconds after the call appeared."""

    def __init__(self, *presses: tuple[float, str]) -> None:
        self.time, self.presses = 0.0, list(presses)
        self.forgotten: list[str] = []
        self.written = io.StringIO()
        keyboard = io.StringIO()
        super().__init__(console_on(self.written), keyboard, forget_typed=self._forget, now=lambda: self.time)

    def _forget(self) -> None:
        self.forgotten.append(self.written.getvalue())

    def key(self, seconds: float) -> str | None:
        self.time, key = self.presses.pop(0)
        return key


def test_a_key_pressed_as_a_call_appears_does_not_decide_it(owner: CommandLine, place: Place) -> None:
    approval = held(place)
    desk = Desk(place.installation, place.installation.directory.org("acme"), place.actor())
    screen = Pressed((0.1, "a"), (0.6, "d"), (0.8, "s"))
    passed: set[str] = set()
    assert _one(desk, screen, pending(desk), passed) == ""
    (before,) = screen.forgotten
    assert ("ch_1" in before, "[q] leave" in before) == (True, False), "what answers the offered keys is heeded"
    assert (passed, state(place, approval)) == ({approval}, State.PENDING)
    assert _one(desk, Pressed((0.8, "a")), pending(desk), set()) == ""
    assert state(place, approval) is State.APPROVED


def test_one_who_may_not_decide_is_told_and_goes_on(owner: CommandLine, place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="approve", second_person=True)
    approval = held(place)
    desk = Desk(place.installation, place.installation.directory.org("acme"), place.actor())
    screen, passed = Pressed((0.8, "a")), set[str]()
    assert _one(desk, screen, pending(desk), passed) == ""
    assert "second person" in screen.written.getvalue()
    assert (passed, state(place, approval)) == ({approval}, State.PENDING)


def test_watching_without_a_terminal_says_so(owner: CommandLine) -> None:
    ran: Ran = owner.alone("approvals", "watch")
    assert (ran.code, ran.out) == (1, "")
    assert "approvals list" in ran.err


def typed_until(terminal: Any, key: str, text: str) -> None:
    """Press a key, as often as a person who waits for it to be heeded, until `text` appears."""
    before = len(terminal.shown)
    while text not in terminal.shown[before:]:
        terminal.type(key)
        terminal.glance(0.2)
    terminal.until(text)
