"""Ask the person at the terminal itself, whatever standard input is: a pipe cannot answer for them."""

import contextlib
import sys
from collections.abc import Callable, Generator
from typing import TextIO

from server.cli.output import plain


class NoTerminal(Exception):
    """There is nobody to ask; the message names the option that stands in for an answer."""


class NotSure(Exception):
    """The person was asked and did not say yes."""


def require_yes(question: str, *, yes: bool) -> None:
    """Go on only if the person says yes, or `--yes` did. Raises NoTerminal or NotSure."""
    if not yes and not ask_yes(question, otherwise="Add `--yes` to do it unasked."):
        raise NotSure("Nothing was done.")


def ask_yes(question: str, *, otherwise: str) -> bool:
    """Whether the answer begins with y; anything else is no. Raises NoTerminal."""
    return ask_line(f"{question} [y/N] ", otherwise=otherwise).strip().lower() in ("y", "yes")


def ask_line(question: str, *, otherwise: str) -> str:
    """One line, typed in the open. Raises NoTerminal with `otherwise`."""
    with terminal(otherwise=otherwise) as (keyboard, screen):
        screen.write(plain(question, lines=True))
        screen.flush()
        line = keyboard.readline()
        if not line:
            raise NotSure("Nothing was done: the terminal was closed.")
        return line.rstrip("\r\n")


def ask_hidden(question: str, *, otherwise: str) -> str:
    """One line that is not shown while it is typed. Raises NoTerminal with `otherwise`.

    Without a terminal `getpass` would read standard input and show it; here that is refused.
    """
    import getpass

    with terminal(otherwise=otherwise):
        pass
    try:
        return getpass.getpass(plain(question))
    except EOFError:
        raise NotSure("Nothing was done: the terminal was closed.") from None


def ask_hidden_lines(question: str, *, whole: Callable[[str], bool], otherwise: str) -> str:
    """Lines that are not shown while they are typed or pasted, until they are `whole`. Raises NoTerminal."""
    with terminal(otherwise=otherwise) as (keyboard, screen), _unseen(keyboard, otherwise):
        screen.write(plain(question))
        screen.flush()
        lines: list[str] = []
        while sum(map(len, lines)) <= MOST_PASTED:
            line = keyboard.readline()
            if not line:
                raise NotSure("Nothing was done: the terminal was closed.")
            lines.append(line.rstrip("\r\n"))
            if whole("\n".join(lines)):
                screen.write("\n")
                return "\n".join(lines)
    raise NotSure(f"Nothing was done: that is more than {MOST_PASTED} characters, and no end of a key is in sight.")


MOST_PASTED = 64 * 1024


@contextlib.contextmanager
def _unseen(keyboard: TextIO, otherwise: str) -> Generator[None]:
    """Echo is off while the block runs, once for all lines: between two, what was pasted ahead would be lost."""
    if sys.platform == "win32":
        raise NoTerminal(f"A file of several lines cannot be typed unseen here. {otherwise}")
    import termios

    before = termios.tcgetattr(keyboard)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def terminal(*, otherwise: str) -> Generator[tuple[TextIO, TextIO]]:
    """The terminal to read from and to write to. Raises NoTerminal."""
    if sys.platform == "win32":
        names = ("CONIN$", "CONOUT$")
    else:
        names = ("/dev/tty", "/dev/tty")
    try:
        keyboard = open(names[0], encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115 - a device, closed below
    except OSError:
        raise NoTerminal(f"This asks a person, and there is no terminal to ask at. {otherwise}") from None
    with keyboard, open(names[1], "w", encoding="utf-8", errors="replace") as screen:  # noqa: PTH123 - a device
        yield keyboard, screen
