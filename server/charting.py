"""Bars of text, as wide as they are told: for terminals, and for files that nobody looks at in one."""

from collections.abc import Sequence

FULL, PLAIN = "█", "#"


def bars(rows: Sequence[tuple[str, int, str]], *, width: int, block: str = FULL) -> list[str]:
    """A line for each label, number and its words; where there is room for the words, none is wider than `width` cells.

    The longest bar is the largest number's, and any other in proportion; what is not zero has at least one block.
    """
    from rich.cells import cell_len

    most = max((number for _, number, _ in rows), default=0)
    said = max((cell_len(words) for _, _, words in rows), default=0)
    longest = max((cell_len(label) for label, _, _ in rows), default=0)
    named = max(min(longest, width // 3, width - said - 4), 1)
    room = max(width - named - said - 3, 1)
    lines: list[str] = []
    for label, number, words in rows:
        long = max(1, number * room // most) if number > 0 else 0
        lines.append(f"{_fitted(label, named)}  {block * long} {words}".rstrip())
    return lines


def _fitted(label: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    shown = label if cell_len(label) <= width else f"{set_cell_size(label, width - 1).rstrip()}…"
    return set_cell_size(shown, width)
