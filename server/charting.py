"""Bars of text, as wide as they are told: for terminals, and for files that nobody looks at in one."""

from collections.abc import Sequence

FULL, PLAIN = "█", "#"


def bars(rows: Sequence[tuple[str, int, str]], *, width: int, block: str = FULL) -> list[str]:
    """A line for each label, number and its words; no line is wider than `width` cells, and none of zero has a bar.

    The longest bar is the largest number's, and any other in proportion; what is not zero has at least one block.
    """
    from rich.cells import cell_len, set_cell_size

    most = max((number for _, number, _ in rows), default=0)
    said = max((cell_len(words) for _, _, words in rows), default=0)
    named = min(max((cell_len(label) for label, _, _ in rows), default=0), max(width // 3, 8))
    room = max(width - named - said - 3, 1)
    lines: list[str] = []
    for label, number, words in rows:
        long = max(1, number * room // most) if number > 0 else 0
        shown = label if cell_len(label) <= named else f"{set_cell_size(label, named - 1).rstrip()}…"
        lines.append(f"{set_cell_size(shown, named)}  {block * long} {words}"[: width if block == PLAIN else None])
    return [line.rstrip() for line in lines]
