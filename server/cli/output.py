"""What a person or a script reads: results on standard output, everything said beside them on standard error.

Text from agents, upstreams and files is shown as text: nothing in it is markup, and no control character arrives.
"""

import json
import sys
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from server.visible import seen

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 240
"""Columns of a table that no terminal bounds; wide enough that nothing a script greps for is folded."""


def plain(value: object, *, lines: bool = False) -> str:
    r"""A value as harmless text: what cannot be seen, or changes how the rest reads, is written as an escape.

    `lines` keeps line breaks, for text that was rendered by us.

    >>> plain("a" + chr(27) + "[31mb")
    'a\\x1b[31mb'
    """
    text = value if isinstance(value, str) else str(value)
    return "".join(char if seen(char) or (lines and char == "\n") else _escaped(char) for char in text)


def show_json(value: Any) -> None:
    """Print one JSON value, in ASCII, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def show_text(text: str) -> None:
    """Print a result in words."""
    sys.stdout.write(plain(text, lines=True) + "\n")


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    right: Container[str] = (),
    whole: Container[str] = (),
) -> None:
    """Print a table; where there is nothing to show, say `empty` beside it.

    Columns in `right` end in one line; those in `whole` are never broken, as what is copied out of them should not be.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        side = "right" if column in right else "left"
        table.add_column(column, overflow="fold", justify=side, no_wrap=column in whole)
    for row in rows:
        table.add_row(*(Text("" if value is None else plain(value)) for value in row))
    if table.row_count == 0:
        say(empty)
        return
    console_on(sys.stdout).print(table)


def show_fields(fields: Mapping[str, object]) -> None:
    """Print names and values under one another; what is None is left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in fields.items():
        if value is not None:
            table.add_row(name, Text(plain(_in_words(value), lines=True)))
    console_on(sys.stdout).print(table)


def say(text: str) -> None:
    """A note beside the result."""
    sys.stderr.write(plain(text, lines=True) + "\n")


def warn(text: str) -> None:
    """A note that should not be overlooked."""
    _coloured("warning: ", "yellow", text)


def complain(text: str) -> None:
    """Say in one line why nothing was done."""
    _coloured("keyleash: ", "red", text)


def console_on(stream: TextIO) -> "Console":
    """A console of rich on this stream, that reads no markup, guesses no emoji and colours no words by itself."""
    from rich.console import Console

    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, markup=False, emoji=False, highlight=False, width=width)


@contextmanager
def progress(title: str, total: int | None) -> Generator[Callable[[int], None]]:
    """A bar on standard error while the block runs; it gets the number of steps done. Silent without a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.progress import Progress

    with Progress(console=console_on(sys.stderr), transient=True) as bars:
        task = bars.add_task(title, total=total)
        yield lambda done: bars.update(task, completed=done)


def _coloured(label: str, colour: str, text: str) -> None:
    if not sys.stderr.isatty():
        sys.stderr.write(f"{label}{plain(text, lines=True)}\n")
        return
    from rich.text import Text

    console_on(sys.stderr).print(Text(label, style=f"bold {colour}") + Text(plain(text, lines=True), style=colour))


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def counted(number: int, thing: str) -> str:
    """So many of something, in words that agree.

    >>> counted(1, "credential"), counted(2, "credential")
    ('1 credential', '2 credentials')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, cast("Sequence[object]", value))) or "none"
    return str(value)
