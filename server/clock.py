"""Now, in the two forms that this project uses."""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Milliseconds since the epoch, UTC: the form that tables hold."""
    return time.time_ns() // 1_000_000


def running_s() -> float:
    """Seconds from some moment on, for what must not depend on the clock that people set.

    On Linux they go on while the machine is suspended; elsewhere they may stand still with it.
    """
    return time.clock_gettime(_GOES_ON) if _GOES_ON is not None else time.monotonic()


_GOES_ON: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def iso(at_ms: int) -> str:
    """`2026-11-23T09:14:48.123Z` (RFC 3339): the form that people and exports see."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z"
