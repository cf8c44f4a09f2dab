"""Lay rows out for a terminal or a pipe; an id, a path and a name come out whole at any width, to be copied.

Where a table is too wide it loses columns in which nothing stands, then times become short, then its prose is wrapped
between words, then columns go under their row, then those that can be spared are left out; and where all that is not
enough each row becomes a record of lines. What is longer than the terminal even so is left to the terminal, which
copies it whole. Without a terminal (`width` is None) a row is one line.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

GAP = "  "
EDGE = "    "
"""Before what stands under a row."""
LEAST = 20
"""Columns that prose gets, before a table is changed any further; with less it is a ladder of words."""
TIGHT = 12
"""Columns that it gets at the least."""

Line = tuple[tuple[str, str], ...]
"""Pieces of text, each with its style."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Cells as they are shown, under heads; `prose` are the columns whose words may stand on several lines.

    Those in `right` end in one line, where they are a table. Where there is no room, those in `under` go under their
    row, the last of them first, and those in `spare` are left out, in this order. `short` has the same rows with
    cells that take less room.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: frozenset[int]
    right: frozenset[int] = frozenset()
    under: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()
    short: tuple[tuple[str, ...], ...] = ()
    headed: bool = True
    styles: tuple[str, ...] = ()
    """Of the first cell of each row."""

    def widths(self) -> list[int]:
        shown = ((self.heads, *self.rows) if self.headed else self.rows) or (self.heads,)
        return [max(map(wide, column)) for column in zip(*shown, strict=True)]

    def without_empty(self) -> "Sheet":
        return self.having([at for at, _ in enumerate(self.heads) if any(row[at] for row in self.rows)])

    def having(self, kept: Sequence[int]) -> "Sheet":
        new = {old: at for at, old in enumerate(kept)}
        return replace(
            self,
            heads=tuple(self.heads[at] for at in kept),
            rows=tuple(tuple(row[at] for at in kept) for row in self.rows),
            short=tuple(tuple(row[at] for at in kept) for row in self.short),
            prose=frozenset(new[at] for at in self.prose if at in new),
            right=frozenset(new[at] for at in self.right if at in new),
            under=tuple(new[at] for at in self.under if at in new),
            spare=tuple(new[at] for at in self.spare if at in new),
        )

    def shortened(self) -> "Sheet":
        return replace(self, rows=self.short) if self.short else self


def laid_out(
    sheet: Sheet, width: int | None, *, left_out: Callable[[Sequence[str]], None] = lambda heads: None
) -> Iterator[Line]:
    """The lines of a sheet, for so many columns; `left_out` hears which heads there was no room for."""
    for tried in (sheet, sheet.without_empty(), sheet.without_empty().shortened()):
        if width is None or _sum(tried.widths()) <= width:
            return _table(tried, tried.widths())
    full = sheet.without_empty()
    narrow = full.shortened()
    for number in range(len(narrow.spare) + 1):
        gone = narrow.spare[:number]
        kept = narrow.having([at for at, _ in enumerate(narrow.heads) if at not in gone])
        for below, least in [(0, LEAST), *((below, TIGHT) for below in range(1, len(kept.under) + 1) or (0,))]:
            widths = _narrowed(_split(kept, below)[0], width or 0, least)
            if widths is not None:
                if gone:
                    left_out([narrow.heads[at] for at in gone])
                return _table(kept, widths, below=below, width=width)
    return _records(full, width or 0)


def _split(sheet: Sheet, below: int) -> tuple[Sheet, Sheet]:
    """The columns of a row, and the last so many of `under`, which go below it."""
    under = sheet.under[len(sheet.under) - below :]
    return sheet.having([at for at, _ in enumerate(sheet.heads) if at not in under]), sheet.having(under)


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


def _narrowed(sheet: Sheet, width: int, wanted_least: int) -> list[int] | None:
    """Widths of columns that fit, taken from the prose, the widest first; None where there is no such."""
    widths = [min(wanted, width) if at in sheet.prose else wanted for at, wanted in enumerate(sheet.widths())]
    last = len(widths) - 1
    least = {
        at: min(widths[at], max([wanted_least, *(min(_longest_word(row[at]), longest) for row in sheet.rows)]))
        for at, longest in ((at, LEAST if at == last else width) for at in sheet.prose)
    }
    while _sum(widths) > width:
        able = [at for at in sheet.prose if widths[at] > least[at]]
        if not able:
            return None
        widths[max(able, key=lambda at: widths[at])] -= 1
    return widths


def _longest_word(text: str) -> int:
    return max(map(wide, text.split()), default=0)


def _table(sheet: Sheet, widths: Sequence[int], *, below: int = 0, width: int | None = None) -> Iterator[Line]:
    upper, lower = _split(sheet, below)
    if upper.headed:
        yield ((_joined(_sided(upper, upper.heads, widths), widths), "bold"),)
        if below:
            yield ((EDGE + GAP.join(lower.heads), "bold"),)
    for at, row in enumerate(upper.rows):
        cells = [words_in(cell, widths[i]) if i in upper.prose else [cell] for i, cell in enumerate(row)]
        style = upper.styles[at] if upper.styles else ""
        for number in range(max(map(len, cells), default=0)):
            parts = _sided(upper, [cell[number] if number < len(cell) else "" for cell in cells], widths)
            first = _padded(parts[0], widths[0])
            rest = _joined(parts, widths)[len(first) :]
            yield ((first if rest else parts[0], style), (rest, ""))
        for line in _beneath(lower, lower.rows[at], max((width or 0) - len(EDGE), LEAST)) if below else ():
            yield ((EDGE + line, ""),)


def _beneath(sheet: Sheet, row: Sequence[str], room: int) -> list[str]:
    """What stands below a row: cell after cell, on as many lines as it takes."""
    parts: list[str] = []
    for at, cell in enumerate(row):
        parts += [f"{word} " for word in cell.split()] if at in sheet.prose else [cell] if cell else []
        if cell and parts:
            parts[-1] = parts[-1].rstrip() + GAP
    return _filled(parts, room) if parts else []


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
