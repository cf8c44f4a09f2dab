"""Keep what was left of a long answer for a while, so that its agent can read on without the call being made again.

In this process's memory only: nothing of it is written down, and it is gone with the process. Each is for the agent
that made the call, and is read on only while that agent may still make it.
"""

import json
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from connectors.catalogue import MORE
from connectors.definition import Call
from connectors.portions import ASK_FOR_LESS, Portion, portion
from server.clock import running_s
from server.errors import BadArguments
from server.identity import Caller, new_id

KEPT_S = 600.0
EACH_AGENT = 4
MOST_BYTES = 32 * 1024 * 1024
"""Of all answers together, as they are kept; beyond it, the oldest goes of the agent that has most of it."""


@dataclass(frozen=True)
class Kept:
    """The whole answer to a call, and whose it is."""

    org: str
    agent: str
    name: str
    arguments: Mapping[str, Any] = field(repr=False)
    connection: str
    definition: str
    until: float
    packed: bytes = field(repr=False)

    def told(self, handle: str, start: int) -> Portion:
        """The part that begins at `start`. Raises BadArguments past the end."""
        try:
            return portion(json.loads(zlib.decompress(self.packed)), start, how=_how(handle))
        except IndexError:
            raise BadArguments("answer: there is nothing after that place.") from None


class Rests:
    """What is kept at present; bounded in time, in number for each agent, and in bytes."""

    def __init__(self, clock: Callable[[], float] = running_s) -> None:
        self._clock, self._lock = clock, Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, caller: Caller, of: Call, connection: str, whole: dict[str, Any]) -> Portion:
        """The first part of this call's answer, which says how the next one is had."""
        packed = zlib.compress(json.dumps(whole).encode(), 1)
        if len(packed) > MOST_BYTES // EACH_AGENT:
            return portion(whole)
        handle, until = new_id("ans"), self._clock() + KEPT_S
        kept = Kept(caller.org, caller.agent, of.name, of.arguments, connection, of.tool.definition_hash, until, packed)
        with self._lock:
            self._kept[handle] = kept
            own = [each for each, one in self._kept.items() if (one.org, one.agent) == (caller.org, caller.agent)]
            for each in own[:-EACH_AGENT]:
                del self._kept[each]
            self._make_room()
        return portion(whole, how=_how(handle))

    def find(self, caller: Caller, place: str) -> tuple[str, int, Kept]:
        """What is kept under this handle, and where to read on. Raises BadArguments, the same for another's."""
        handle, _, start = place.partition("-")
        with self._lock:
            self._make_room()
            kept = self._kept.get(handle)
        if kept is None or (kept.org, kept.agent) != (caller.org, caller.agent) or not _is_place(start):
            raise BadArguments(_GONE)
        return handle, int(start), kept

    def _make_room(self) -> None:
        now = self._clock()
        for handle in [handle for handle, one in self._kept.items() if one.until <= now]:
            del self._kept[handle]
        while sum(len(one.packed) for one in self._kept.values()) > MOST_BYTES:
            taken = Counter[tuple[str, str]]()
            for one in self._kept.values():
                taken[one.org, one.agent] += len(one.packed)
            whose = max(taken, key=lambda each: taken[each])
            del self._kept[next(at for at, one in self._kept.items() if (one.org, one.agent) == whose)]


def _how(handle: str) -> Callable[[int], str]:
    minutes = f"{KEPT_S / 60:.0f} minutes"
    return lambda place: f"The rest is kept for {minutes}: call {MORE} with answer {handle}-{place}."


def _is_place(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


_GONE = (
    f"answer: there is no such answer here, or it is no longer kept. {ASK_FOR_LESS} Repeat only a call that reads: one "
    "that changes something has done so."
)
