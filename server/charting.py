"""Bars of text, as wide as they are told; the name before each stands whole."""

from collections.abc import Sequence

FULL, PLAIN = "█", "#"
LEAST = 10
"""Blocks of the longest bar; where there is less room beside the names, they stand above their bars."""
PAGE = 80


def bars(rows: Sequence[tuple[str, int, str]], *, width: int | None, block: str = FULL) -> list[str]:
    """A line for each label, number and its words, of at most `width` cells; two lines where the labels are too long.

    The longest bar is the largest number's, and any other in proportion; what is not zero has at least one block.
    Without a width, as in a pipe, each is one line, however long.
    """
    from rich.cells import cell_len

    most = max((number for _, number, _ in rows), default=0)
    said = max((cell_len(words) for _, _, words in rows), default=0)
    named = max((cell_len(label) for label, _, _ in rows), default=0)
    room = (width or PAGE) - named - said - 3
    above = width is not None and room < LEAST
    room = max((width or 0) - said - 3 if above else max(room, LEAST), 1)
    lines: list[str] = []
    for label, number, words in rows:
        long = max(1, number * room // most) if number > 0 else 0
        before = "" if above else label + " " * (named - cell_len(label))
        lines += [label] if above else []
        lines.append(f"{before}  {block * long} {words}".rstrip())
    return lines
