"""`keyleash approvals watch`: a live list of what waits; each held call is shown whole, and one key decides it.

A key counts only for what stands on the screen: what was typed before a call appeared is thrown away. And it counts
only by itself: what a paste brings, or a key that sends several characters (an arrow sends `A` among others), is none.
"""

import os
import select
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from server.cli.acting import Desk
from server.cli.output import console_on, plain
from server.cli.terminal import NoTerminal, terminal

if TYPE_CHECKING:
    from rich.console import Console

    from server.approval import Approval, Decision

LOOK_S = 0.3
"""How often the database is asked whether anything has changed."""
SETTLE_S = 0.7
"""How long keys are not heeded after a call has appeared: nobody reads faster."""

REST_S = 0.05
"""How long the rest of a key that sends several characters may take."""
LISTED = 15
"""How many of the calls that wait are listed at most, beside the one that is shown."""
LEAVE = ("q", "", "\x03", "\x04")

WITHOUT = "Use `keyleash approvals list`, `show` and `approve` instead."


@dataclass
class Screen:
    """The terminal in a mode in which each key arrives by itself."""

    console: "Console"
    keyboard: TextIO
    forget_typed: Callable[[], None]
    now: Callable[[], float] = time.monotonic

    def key(self, seconds: float) -> str | None:
        """The next key within so many seconds; an empty text where the terminal has gone.

        None, too, for several characters at once, and for capitals, in which such keys end.
        """
        ready, _, _ = select.select([self.keyboard], [], [], seconds)
        if not ready:
            return None
        typed = os.read(self.keyboard.fileno(), 1024)
        while typed.startswith(b"\x1b") and select.select([self.keyboard], [], [], REST_S)[0]:
            more = os.read(self.keyboard.fileno(), 1024)
            typed += more
            if not more:
                break
        if len(typed) > 1:
            return None
        return typed.decode("ascii", "replace")

    def line(self, text: str, style: str = "", *, cut: bool = False) -> None:
        """Print it; `cut` at the end of one line."""
        from rich.text import Text

        shown = Text(plain(text, lines=not cut), style=style)
        self.console.print(shown, no_wrap=cut, overflow="ellipsis" if cut else None, soft_wrap=not cut)


def watch_approvals(desk: Desk) -> None:
    """Show and decide held calls until the person leaves. Raises NoTerminal."""
    with _screen() as screen:
        screen.line(f"Held calls of {desk.org.name}, for {desk.actor.member.name}. q leaves.", "bold")
        passed: set[str] = set()
        looked: set[str] = set()
        shown, idle = "", False
        while True:
            _say_what_was_lost(desk, screen, looked)
            waiting = _waiting(desk, passed)
            if waiting:
                idle = False
                after = _one(desk, screen, waiting, passed, shown)
                if after is None:
                    return
                shown = after
                continue
            if not idle:
                screen.line("Nothing waits for you." if not passed else "Nothing else waits for you.", "dim")
                idle = True
            if screen.key(LOOK_S) in LEAVE:
                return


def _say_what_was_lost(desk: Desk, screen: Screen, looked: set[str]) -> None:
    """Each call of which nobody knows what became of it is told of once: it takes a look into the account."""
    from server.cli.approvals import LOOK, lost_calls

    new = [one for one in lost_calls(desk) if one["id"] not in looked]
    for one in new:
        looked.add(one["id"])
        what = one["summary"] or one["tool"]
        screen.line(f"{one['id']} (agent {one['agent']}): {what}: nobody knows what became of it.", "yellow")
    if new:
        screen.line(LOOK + "\n", "yellow")


def _one(desk: Desk, screen: Screen, waiting: "list[Approval]", passed: set[str], wanted: str = "") -> str | None:
    """Show one held call, the `wanted` one or the first, until it is decided, here or elsewhere, or passed over.

    Returns the id of the call to show after it, empty for whichever is first then, and None to leave.
    """
    from server.cli.approvals import hour_terms, whole_prompt
    from vault import VaultError

    record = next((one for one in waiting if one.id == wanted), waiting[0])
    try:
        text, terms = whole_prompt(desk, record), hour_terms(desk, record)
    except VaultError as problem:
        passed.add(record.id)
        screen.line(f"{record.id}: {problem}", "red")
        return ""
    _list(desk, screen, waiting, record)
    _show(screen, record, text, terms)
    screen.forget_typed()  # before the keys are named: what answers them is heeded
    _offer_keys(screen, record, for_hour=terms is not None, several=len(waiting) > 1)
    return _heeded(desk, screen, record, waiting, passed, for_hour=terms is not None)


def _heeded(
    desk: Desk, screen: Screen, record: "Approval", waiting: "list[Approval]", passed: set[str], *, for_hour: bool
) -> str | None:
    """Do what keys say about the call that is on the screen; returns as `_one` does."""
    shown_at = screen.now()
    while True:
        key = screen.key(LOOK_S)
        if key in LEAVE:
            return None
        still = _waiting(desk, passed)
        if not any(one.id == record.id for one in still):
            screen.line(f"{record.id} {_why_gone(desk, record)}.\n", "dim")
            return ""
        waiting = _announced(screen, waiting, still)
        if key is None or screen.now() < shown_at + SETTLE_S:
            continue
        after = _moved_to(key, waiting, record)
        if after is not None:
            return after
        if key == "s":
            passed.add(record.id)
            screen.line(f"Passed over {record.id}; it stays open.\n", "dim")
            return ""
        if key in ("a", "d") or (key == "h" and for_hour):
            _decide(desk, screen, record, key, passed)
            return ""


def _why_gone(desk: Desk, record: "Approval") -> str:
    current = desk.installation.approvals.find(desk.org.id, record.id)
    if current is not None and current.state.value == "pending":
        return "has expired"
    return f"is {current.state.value if current else 'gone'}: decided elsewhere"


def _decide(desk: Desk, screen: Screen, record: "Approval", key: str, passed: set[str]) -> None:
    from server.approval import ApprovalProblem, Decision
    from server.cli.approvals import settle

    decision = {"a": Decision.APPROVE, "d": Decision.DENY, "h": Decision.APPROVE_HOUR}[key]
    try:
        _say(screen, record, decision, settle(desk, record, decision, unattended=False).value)
    except ApprovalProblem as problem:
        passed.add(record.id)
        screen.line(f"{problem}\n", "red")
        return
    if record.needed > 1:
        passed.add(record.id)  # it may wait for somebody else, and this person has had their say


def _moved_to(key: str, waiting: "list[Approval]", record: "Approval") -> str | None:
    """The id of the call to which a key leads; None for a key that leads to none, or to where one is."""
    if len(waiting) < 2:
        return None
    here = [one.id for one in waiting].index(record.id)
    steps = {"n": here + 1, "p": here - 1} | {str(number + 1): number for number in range(min(len(waiting), 9))}
    if key not in steps or steps[key] == here:
        return None
    return waiting[steps[key] % len(waiting)].id


def _announced(screen: Screen, known: "list[Approval]", still: "list[Approval]") -> "list[Approval]":
    """What waits now; whatever has come since is said, below the call that is shown."""
    for one in still:
        if all(one.id != before.id for before in known):
            screen.console.bell()
            screen.line(f"Now waiting, too: {one.tool}, by {one.agent_name}. [n] shows the next.", "dim")
    return still


def _list(desk: Desk, screen: Screen, waiting: "list[Approval]", shown: "Approval") -> None:
    """Everything that waits, where that is more than one: what, who, until when."""
    from server.cli.approvals import in_short

    if len(waiting) < 2:
        return
    screen.line(f"{len(waiting)} calls wait:", "bold")
    for number, one in enumerate(waiting, 1):
        if number > LISTED and one.id != shown.id:
            continue
        what, who, until = in_short(desk, one)
        key = f"{number}" if number < 10 else " "
        mark = ">" if one.id == shown.id else " "
        screen.line(f"{mark} {key}  {until}  {who}: {what}", "bold" if one.id == shown.id else "", cut=True)
    if len(waiting) > LISTED:
        screen.line(f"  and more, oldest first, {len(waiting)} in all", "dim")


def _show(screen: Screen, record: "Approval", text: str, terms: str | None) -> None:
    from server.clock import iso

    screen.console.bell()
    screen.console.rule(plain(f"{record.id} · until {iso(record.expires_at)}"))
    screen.line(text)
    if terms:
        screen.line(terms, "dim")


def _offer_keys(screen: Screen, record: "Approval", *, for_hour: bool, several: bool) -> None:
    hour = "  [h] approve for an hour" if for_hour else ""
    approve = "approve all of it" if record.work else "approve once"
    move = "  [n] next  [p] previous  [1-9] that one" if several else ""
    screen.line(f"[a] {approve}{hour}  [d] deny  [s] skip{move}  [q] leave", "bold")


def _say(screen: Screen, record: "Approval", decision: "Decision", state: str) -> None:
    if state == "pending":
        screen.line(f"Noted. {record.id} waits for somebody else too.\n", "yellow")
    elif state == "denied":
        screen.line(f"Denied {record.id}. Nothing was sent.\n", "red")
    else:
        hour = ", and for an hour" if decision.value == "approve_for_one_hour" else ""
        screen.line(f"Approved {record.id}{hour}.\n", "green")


def _waiting(desk: Desk, passed: set[str]) -> "list[Approval]":
    """What waits and was not passed over, oldest first."""
    from server.cli.approvals import pending

    return [record for record in pending(desk) if record.id not in passed]


@contextmanager
def _screen() -> Generator[Screen]:
    if sys.platform == "win32":
        raise NoTerminal(f"Watching needs a POSIX terminal. {WITHOUT}")
    import termios
    import tty

    with terminal(otherwise=WITHOUT) as (keyboard, screen):
        before = termios.tcgetattr(keyboard)
        tty.setcbreak(keyboard)
        try:
            yield Screen(
                console=console_on(screen),
                keyboard=keyboard,
                forget_typed=lambda: termios.tcflush(keyboard, termios.TCIFLUSH),
            )
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
