"""Ask the person at the terminal itself, whatever standard input is: a pipe cannot answer for them."""

import contextlib
import sys
from collections.abc import Generator
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
