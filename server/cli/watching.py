"""`keyleash approvals watch`: each held call is shown whole, and one key decides it.

A key counts only for what stands on the screen: what was typed before a call appeared is thrown away.
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

WITHOUT = "Use `keyleash approvals list`, `show` and `approve` instead."


@dataclass
class Screen:
    """The terminal in a mode in which each key arrives by itself."""

    console: "Console"
    keyboard: TextIO
    forget_typed: Callable[[], None]
    now: Callable[[], float] = time.monotonic

    def key(self, seconds: float) -> str | None:
        """The next key within so many seconds; an empty text where the terminal has gone."""
        ready, _, _ = select.select([self.keyboard], [], [], seconds)
        return os.read(self.keyboard.fileno(), 1).decode("ascii", "replace").lower() if ready else None

    def line(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self.console.print(Text(plain(text, lines=True), style=style))


def watch_approvals(desk: Desk) -> None:
    """Show and decide held calls until the person leaves. Raises NoTerminal."""
    with _screen() as screen:
        screen.line(f"Held calls of {desk.org.name}, for {desk.actor.member.name}. q leaves.", "bold")
        passed: set[str] = set()
        looked: set[str] = set()
        idle = False
        while True:
            _say_what_was_lost(desk, screen, looked)
            waiting = [record for record in _pending(desk) if record.id not in passed]
            if waiting:
                idle = False
                if not _one(desk, screen, waiting, passed):
                    return
                continue
            if not idle:
                screen.line("Nothing waits for you." if not passed else "Nothing else waits for you.", "dim")
                idle = True
            if screen.key(LOOK_S) in ("q", "", "\x03", "\x04"):
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


def _one(desk: Desk, screen: Screen, waiting: "list[Approval]", passed: set[str]) -> bool:
    """Show one held call until it is decided, here or elsewhere, or passed over; False to leave."""
    from server.approval import ApprovalProblem, Decision
    from server.cli.approvals import hour_terms, settle, whole_prompt
    from vault import VaultError

    record = waiting[0]
    try:
        text, terms = whole_prompt(desk, record), hour_terms(desk, record)
    except VaultError as problem:
        passed.add(record.id)
        screen.line(f"{record.id}: {problem}", "red")
        return True
    _show(screen, record, text, terms, others=waiting[1:])
    decisions = {"a": Decision.APPROVE, "d": Decision.DENY, **({"h": Decision.APPROVE_HOUR} if terms else {})}
    screen.forget_typed()
    shown_at = screen.now()
    while True:
        key = screen.key(LOOK_S)
        if key in ("q", "", "\x03", "\x04"):
            return False
        current = desk.installation.approvals.find(desk.org.id, record.id)
        if current is None or current.state.value != "pending":
            screen.line(f"{record.id} is {current.state.value if current else 'gone'}: decided elsewhere.\n", "dim")
            return True
        if not any(one.id == record.id for one in _pending(desk)):
            screen.line(f"{record.id} has expired.\n", "dim")
            return True
        if key is None or screen.now() < shown_at + SETTLE_S:
            continue
        if key == "s":
            passed.add(record.id)
            screen.line(f"Passed over {record.id}; it stays open.\n", "dim")
            return True
        if key in decisions:
            try:
                _say(screen, record, decisions[key], settle(desk, record, decisions[key], unattended=False).value)
            except ApprovalProblem as problem:
                passed.add(record.id)
                screen.line(f"{problem}\n", "red")
            return True


def _show(screen: Screen, record: "Approval", text: str, terms: str | None, others: "list[Approval]") -> None:
    from server.clock import iso

    screen.console.bell()
    screen.console.rule(plain(f"{record.id} · until {iso(record.expires_at)}"))
    screen.line(text)
    if terms:
        screen.line(terms, "dim")
    if others:
        screen.line(f"{len(others)} more after this: {', '.join(one.tool for one in others[:5])}", "dim")
    hour = "  [h] approve for an hour" if terms else ""
    approve = "approve all of it" if record.work else "approve once"
    screen.line(f"[a] {approve}{hour}  [d] deny  [s] skip  [q] leave", "bold")


def _say(screen: Screen, record: "Approval", decision: "Decision", state: str) -> None:
    if state == "pending":
        screen.line(f"Noted. {record.id} waits for somebody else too.\n", "yellow")
    elif state == "denied":
        screen.line(f"Denied {record.id}. Nothing was sent.\n", "red")
    else:
        hour = ", and for an hour" if decision.value == "approve_for_one_hour" else ""
        screen.line(f"Approved {record.id}{hour}.\n", "green")


def _pending(desk: Desk) -> "list[Approval]":
    from server.cli.approvals import pending

    return pending(desk)


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
