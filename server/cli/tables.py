"""Lay rows out for a terminal or a pipe; an id, a path and a name come out whole at any width, to be copied.

Where a table is too wide it loses columns in which nothing stands, then its prose is wrapped between words, and where
that is not enough each row becomes a record of lines. What is longer than the terminal even so is left to the terminal,
which copies it whole. Without a terminal (`width` is None) a row is one line.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

GAP = "  "
LEAST = 20
"""Columns that prose gets at the least; below, it is a ladder of words."""

Line = tuple[tuple[str, str], ...]
"""Pieces of text, each with its style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Cells as they are shown, under heads; `prose` are the columns whose words may stand on several lines.

    Those in `right` end in one line, where they are a table.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: frozenset[int]
    right: frozenset[int] = frozenset()
    headed: bool = True
    styles: tuple[str, ...] = ()
    """Of the first cell of each row."""

    def widths(self) -> list[int]:
        shown = ((self.heads, *self.rows) if self.headed else self.rows) or (self.heads,)
        return [max(map(wide, column)) for column in zip(*shown, strict=True)]

    def without_empty(self) -> "Sheet":
        kept = [at for at, _ in enumerate(self.heads) if any(row[at] for row in self.rows)]
        return replace(
            self,
            heads=tuple(self.heads[at] for at in kept),
            rows=tuple(tuple(row[at] for at in kept) for row in self.rows),
            prose=frozenset(new for new, old in enumerate(kept) if old in self.prose),
            right=frozenset(new for new, old in enumerate(kept) if old in self.right),
        )


def laid_out(sheet: Sheet, width: int | None) -> Iterator[Line]:
    """The lines of a sheet, for so many columns."""
    for tried in (sheet, sheet.without_empty()):
        if width is None or _sum(tried.widths()) <= width:
            return _table(tried, tried.widths())
    narrow = sheet.without_empty()
    widths = _narrowed(narrow, width or 0)
    return _records(narrow, width or 0) if widths is None else _table(narrow, widths)


def fields_laid_out(fields: Sequence[tuple[str, Sequence[str]]], width: int | None) -> Iterator[Line]:
    """Names, and beside each its value: parts between which, and at whose own line ends alone, a line may end."""
    edge = max((wide(name) for name, _ in fields), default=0)
    room = None if width is None else max(width - edge - len(GAP), LEAST)
    for name, parts in fields:
        lines = [line for whole in _filled(parts, room) for line in whole.split("\n")]
        for at, line in enumerate(lines):
            yield ((_padded("" if at else name, edge) + GAP, "bold"), (line, ""))


def wide(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def words_in(text: str, room: int) -> list[str]:
    """The text on lines of at most so many columns, or of one word that is longer."""
    return [text] if wide(text) <= room else _filled([f"{word} " for word in text.split()], room)


def _filled(parts: Sequence[str], room: int | None) -> list[str]:
    """As many parts to a line as fit; none is cut."""
    lines = [""]
    for part in parts:
        if room is not None and lines[-1] and wide(lines[-1] + part.rstrip()) > room:
            lines.append("")
        lines[-1] += part
    return [line.rstrip(" ") for line in lines]


def _narrowed(sheet: Sheet, width: int) -> list[int] | None:
    """Widths of columns that fit, taken from the prose, the widest first; None where there is no such."""
    widths = [min(wanted, width) if at in sheet.prose else wanted for at, wanted in enumerate(sheet.widths())]
    last = len(widths) - 1
    least = {
        at: min(widths[at], max([LEAST, *(0 if at == last else _longest_word(row[at]) for row in sheet.rows)]))
        for at in sheet.prose
    }
    while _sum(widths) > width:
        able = [at for at in sheet.prose if widths[at] > least[at]]
        if not able:
            return None
        widths[max(able, key=lambda at: widths[at])] -= 1
    return widths


def _longest_word(text: str) -> int:
    return max(map(wide, text.split()), default=0)


def _table(sheet: Sheet, widths: Sequence[int]) -> Iterator[Line]:
    if sheet.headed:
        yield ((_joined(_sided(sheet, sheet.heads, widths), widths), "bold"),)
    for at, row in enumerate(sheet.rows):
        cells = [words_in(cell, widths[i]) if i in sheet.prose else [cell] for i, cell in enumerate(row)]
        style = sheet.styles[at] if sheet.styles else ""
        for number in range(max(map(len, cells), default=0)):
            parts = _sided(sheet, [cell[number] if number < len(cell) else "" for cell in cells], widths)
            first = _padded(parts[0], widths[0])
            rest = _joined(parts, widths)[len(first) :]
            yield ((first if rest else parts[0], style), (rest, ""))


def _records(sheet: Sheet, width: int) -> Iterator[Line]:
    for number, row in enumerate(sheet.rows):
        if number:
            yield ()
        named = [(head, at, cell) for at, (head, cell) in enumerate(zip(sheet.heads, row, strict=True)) if cell]
        yield from fields_laid_out(
            [
                (head, [f"{word} " for word in cell.split()] if at in sheet.prose else [cell])
                for head, at, cell in named
            ],
            width,
        )


def _sided(sheet: Sheet, cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The cells, with those that end in one line filled up to it."""
    return [
        " " * (widths[at] - wide(cell)) + cell if at in sheet.right and cell else cell for at, cell in enumerate(cells)
    ]


def _joined(cells: Collection[str], widths: Sequence[int]) -> str:
    return GAP.join(_padded(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip(" ")


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - wide(cell))


def _sum(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * max(0, len(widths) - 1)
