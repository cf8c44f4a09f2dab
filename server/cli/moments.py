"""Read times and durations as people write them."""

import re
from datetime import UTC, datetime

import typer

from server.clock import now_ms

_DURATION = re.compile(r"(\d{1,5})([smhdw])")
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def duration(text: str) -> int:
    """`30d`, `12h`, `90m`, `2w` in milliseconds. Raises BadParameter."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a duration. Write a number and s, m, h, d or w, such as 30d.")
    return int(match[1]) * _MS[match[2]]


def moment(text: str) -> int:
    """`2026-11-23`, `2026-11-23T09:14Z` (UTC unless it says otherwise), or `2d` for two days ago; milliseconds."""
    if _DURATION.fullmatch(text.strip()):
        return now_ms() - duration(text)
    try:
        found = datetime.fromisoformat(text.strip())
        at = found if found.tzinfo else found.replace(tzinfo=UTC)
        return int(at.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time. Write one like 2026-11-23, 2026-11-23T09:14Z, or 2d for two days ago."
        ) from None
