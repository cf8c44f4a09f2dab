"""What a person or a script reads: results on standard output, everything said beside them on standard error.

Text from agents, upstreams and files is shown as text: nothing in it is markup, and no control character arrives.
"""

import json
import shutil
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from server.cli.tables import Line, Sheet, fields_laid_out, laid_out, words_in
from server.visible import seen

if TYPE_CHECKING:
    from rich.console import Console


class Cell(NamedTuple):
    """A cell of a table, and what may stand in its place where there is little room."""

    whole: object
    short: object


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
    prose: Collection[str] = (),
    right: Collection[str] = (),
    under: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a table; where there is nothing to show, say `empty` beside it.

    Cells stay whole, whatever the width, but those in the columns `prose`, which may be wrapped between words, and a
    `Cell`, which has a shorter form. Those in the columns `right`, such as numbers, end in one line. On a terminal that
    is too narrow, the columns `under` go under their row, the last first, and those in `spare` are left out, the first
    first, which is said.
    """
    cells = tuple(tuple(each if isinstance(each, Cell) else Cell(each, each) for each in row) for row in rows)
    if not cells:
        say(empty)
        return
    place = {column: at for at, column in enumerate(columns)}
    sheet = Sheet(
        heads=tuple(columns),
        rows=tuple(tuple(_shown(cell.whole) for cell in row) for row in cells),
        short=tuple(tuple(_shown(cell.short) for cell in row) for row in cells),
        prose=frozenset(place[column] for column in prose),
        right=frozenset(place[column] for column in right if column in place),
        under=tuple(place[column] for column in under),
        spare=tuple(place[column] for column in spare),
    )
    missing: list[str] = []
    show_lines(laid_out(sheet, width_of(sys.stdout), left_out=missing.extend))
    if missing:
        note(f"Not shown, for want of room: {', '.join(missing)}. --json has everything.")


def moment(iso: str | None) -> Cell | None:
    """A time in a table; where there is little room, without its seconds, and without its year if that is this one.

    >>> moment("2001-02-03T04:05:06.789Z")
    Cell(whole='2001-02-03T04:05:06.789Z', short='2001-02-03')
    """
    if iso is None:
        return None
    this_year = iso.startswith(f"{datetime.now(UTC).year}-")
    return Cell(iso, f"{iso[5:10]} {iso[11:16]}Z" if this_year else iso[:10])


def _shown(value: object) -> str:
    return "" if value is None else plain(value)


def show_fields(fields: Mapping[str, object], *, prose: Collection[str] = ()) -> None:
    """Print names and values under one another; what is None is left out.

    A value stays whole, but a list may be wrapped between its items and one named in `prose` between its words.
    """
    parts = [(name, _parts(value, wrapped=name in prose)) for name, value in fields.items() if value is not None]
    show_lines(fields_laid_out(parts, width_of(sys.stdout)))


def show_lines(lines: Iterable[Line]) -> None:
    """Print lines of styled pieces as they are; a terminal wraps by itself what is longer than it is wide."""
    if not sys.stdout.isatty():
        sys.stdout.writelines("".join(text for text, _ in line) + "\n" for line in lines)
        return
    from rich.text import Text

    console = console_on(sys.stdout)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)


def width_of(stream: TextIO) -> int | None:
    """The columns of the terminal behind it; None where there is none."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str) -> None:
    """A note beside the result."""
    sys.stderr.write(plain(text, lines=True) + "\n")


def note(text: str) -> None:
    """A sentence of ours beside the result, wrapped between words on a terminal."""
    width = width_of(sys.stderr)
    say(text if width is None else "\n".join(words_in(text, width)))


def warn(text: str) -> None:
    """A note that should not be overlooked."""
    _coloured("warning: ", "yellow", text)


def complain(text: str) -> None:
    """Say in one line why nothing was done."""
    _coloured("keyleash: ", "red", text)


def console_on(stream: TextIO) -> "Console":
    """A console of rich on this stream, that reads no markup, guesses no emoji and colours no words by itself."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


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

    shown = Text(label, style=f"bold {colour}") + Text(plain(text, lines=True), style=colour)
    console_on(sys.stderr).print(shown, soft_wrap=True)


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


def _parts(value: object, *, wrapped: bool) -> list[str]:
    """A value in words, as the parts between which a line may end."""
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, list | tuple):
        items = [plain(item, lines=True) for item in cast("Sequence[object]", value)] or ["none"]
        return [f"{item}, " for item in items[:-1]] + items[-1:]
    text = plain(value, lines=True)
    return [f"{word} " for word in text.split()] if wrapped else [text]
