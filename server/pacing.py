"""Send no more at once, and no faster, than an account takes; and nothing while its provider has asked for a pause.

What is under way at once, and a pause, are this process's to know. How many calls a minute has seen stands in the
database, for all processes: counted in the transaction of the attempt, and only for connections that have a limit.
"""

import contextlib
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from connectors.definition import Pace
from server.audit import Event, append
from server.clock import now_ms
from server.database import Rows
from server.errors import AtLimit
from server.identity import touch

T = TypeVar("T")

MINUTE_MS = 60_000
LONGEST_PAUSE_S = 3600.0
"""A provider may ask for a pause of days: once in an hour a call goes out and is told again."""


class Full(Exception):
    """A connection has had all the calls of this minute: the call has not begun, and may after so many `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"full for {seconds:g} s")
        self.seconds = seconds


def pace_of(stated: Pace, own: Pace | None, *, managed: bool) -> Pace:
    """What a connection takes: its own setting before its file's; of a managed account the stricter of both."""
    if own is None:
        return stated
    pick = _stricter if managed else _first
    return Pace(pick(own.concurrent, stated.concurrent), pick(own.per_minute, stated.per_minute))


def _first(own: int | None, stated: int | None) -> int | None:
    return stated if own is None else own


def _stricter(own: int | None, stated: int | None) -> int | None:
    return min((one for one in (own, stated) if one is not None), default=None)


@dataclass
class Turns:
    """The calls of this process that are under way or wait for their turn, and the connections that pause.

    `patience_s` is how long a call waits at most; after that it is refused, and nothing was sent.
    """

    patience_s: float
    clock: Callable[[], float] = time.monotonic
    _taken: dict[str, tuple[anyio.CapacityLimiter, list[object]]] = field(
        default_factory=dict[str, tuple[anyio.CapacityLimiter, list[object]]], init=False
    )
    _paused: dict[str, float] = field(default_factory=dict[str, float], init=False)

    def pause(self, connection: str, seconds: float | None) -> None:
        """The provider asks for no more calls of this connection (its id) for so long; None: it does not say."""
        if seconds:
            until = self.clock() + min(seconds, LONGEST_PAUSE_S)
            self._paused[connection] = max(until, self._paused.get(connection, 0.0))

    async def in_turn(
        self, connection: str, name: str, pace: Pace, carry_out: Callable[[], Awaitable[T]], *, alone: str = ""
    ) -> T:
        """What `carry_out` returns, once the connection (its id, and its name for the model) takes one more call.

        Of the calls with the same word `alone` there is one at a time. Where `carry_out` raises Full, it is tried again
        when the minute is over. Raises AtLimit.
        """
        if pace == _UNLIMITED and not alone and connection not in self._paused:
            return await carry_out()
        turn = Turn(self, connection, name, self.clock() + self.patience_s)
        async with contextlib.AsyncExitStack() as stack:
            if alone:
                why = "another call of this agent is under way in the conversation that is kept for it"
                await stack.enter_async_context(self._one_of(turn, alone, 1, why))
            if pace.concurrent is not None:
                why = f"{pace.concurrent} calls of it are under way, as many as it takes at once"
                await stack.enter_async_context(self._one_of(turn, connection, pace.concurrent, why))
            return await turn.taken(pace, carry_out)

    @contextlib.asynccontextmanager
    async def _one_of(self, turn: "Turn", word: str, most: int, why: str) -> AsyncGenerator[None]:
        limiter, waiting = self._taken.setdefault(word, (anyio.CapacityLimiter(most), []))
        limiter.total_tokens = most
        me = object()
        waiting.append(me)
        try:
            with anyio.move_on_after(turn.until - self.clock()) as scope:
                await limiter.acquire_on_behalf_of(me)
            if scope.cancelled_caught:
                raise AtLimit(turn.name, why, 1)
            try:
                yield
            finally:
                limiter.release_on_behalf_of(me)
        finally:
            waiting.remove(me)
            if not waiting:
                del self._taken[word]

    def paused_s(self, connection: str) -> float:
        """For how many seconds the connection pauses still."""
        left = self._paused.get(connection, 0.0) - self.clock()
        if left <= 0:
            self._paused.pop(connection, None)
        return max(left, 0.0)


_UNLIMITED = Pace()


@dataclass(frozen=True)
class Turn:
    """The turn of one call."""

    turns: Turns
    connection: str
    name: str
    until: float

    async def taken(self, pace: Pace, carry_out: Callable[[], Awaitable[T]]) -> T:
        """Carry a call out, after whatever it has to wait for. Raises AtLimit."""
        while True:
            await self.come()
            try:
                return await carry_out()
            except Full as full:
                most = f"it has had the {pace.per_minute} calls that it takes in a minute"
                await self.wait(full.seconds, most)

    async def come(self) -> None:
        """Return once the connection does not pause. Raises AtLimit where that is longer than a call waits."""
        while left := self.turns.paused_s(self.connection):
            await self.wait(left, "its provider has asked for a pause")

    async def wait(self, seconds: float, why: str) -> None:
        """Wait so long. Raises AtLimit at once where a call does not wait that long."""
        if self.turns.clock() + seconds > self.until:
            raise AtLimit(self.name, why, math.ceil(seconds))
        await anyio.sleep(seconds)


def count(rows: Rows, org: str, connection: str, pace: Pace) -> None:
    """Count a call of a connection (its name) in the transaction of its attempt. Raises Full where it is too many.

    The transaction holds the org's lock, so that what is read here is what is written.
    """
    if pace.per_minute is None:
        return
    now = now_ms()
    begin = now - now % MINUTE_MS
    row = rows.execute(
        "SELECT window_at, used FROM connection_pace WHERE org = ? AND connection = ?", (org, connection)
    ).fetchone()
    window_at, used = row if row is not None and begin <= row[0] <= begin + MINUTE_MS else (begin, 0)
    if used >= pace.per_minute:
        raise Full((window_at + MINUTE_MS - now) / 1000)
    rows.execute(
        "INSERT INTO connection_pace (org, connection, window_at, used) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (org, connection) DO UPDATE SET window_at = excluded.window_at, used = excluded.used",
        (org, connection, window_at, used + 1),
    )


# -- what an admin says of a connection


def paces_in(rows: Rows, org: str) -> Mapping[str, Pace]:
    """What the connections of an org take, by name, where an admin has said so."""
    found = rows.execute("SELECT connection, concurrent, per_minute FROM connection_limit WHERE org = ?", (org,))
    return {name: Pace(concurrent, per_minute) for name, concurrent, per_minute in found.fetchall()}


def set_pace(rows: Rows, org: str, connection: str, pace: Pace, *, by: str) -> None:
    """Say what a connection takes, in place of what was said before; nothing of it where both are None."""
    touch(rows, org)
    rows.execute("DELETE FROM connection_limit WHERE org = ? AND connection = ?", (org, connection))
    if pace != Pace():
        rows.execute(
            "INSERT INTO connection_limit (org, connection, concurrent, per_minute) VALUES (?, ?, ?, ?)",
            (org, connection, pace.concurrent, pace.per_minute),
        )
    append(
        rows,
        org,
        Event.CONNECTION_CHANGED,
        connection=connection,
        limits={"concurrent": pace.concurrent, "per_minute": pace.per_minute},
        by=by,
    )
