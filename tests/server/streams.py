"""What the tests of streams share: streams of one place's log, and a receiver that keeps numbers."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.audit import Entry, Event, append
from server.audit.streaming import Place as Noted
from server.audit.streaming import Position, Stream, Taken, beginning
from tests.installed import Place


class Killed(BaseException):
    """The process is gone."""


class Done(Exception):
    """The stream waits, and the test has seen enough."""


class Kept:
    """A receiver that keeps numbers; `before` and `after` run before and after it has taken a batch."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.before: Callable[[Sequence[Entry]], object] = lambda _: None
        self.after: Callable[[Sequence[Entry]], object] = lambda _: None

    def resume(self, mark: list[int]) -> None:
        del mark

    def mark(self) -> list[int]:
        return []

    def send(self, entries: Sequence[Entry]) -> Taken:
        self.before(entries)
        self.seqs += [entry.seq for entry in entries]
        self.after(entries)
        return Taken(len(entries))

    def close(self) -> None:
        pass


class Streams:
    """Streams of one place's log, all under one note."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.noted = Noted(folder / "noted.json")
        self.said: list[str] = []
        self.opened: list[Any] = []
        self.waited: list[float] = []
        self.time = 0.0
        self.on_wait: Callable[[float], object] = self._done

    def close(self) -> None:
        for receiver in self.opened:
            receiver.close()

    def add(self, count: int = 1, **fields: Any) -> None:
        def change(rows: Any) -> None:
            for _ in range(count):
                append(rows, self.place.org, Event.CALL_OUTCOME, **fields)

        self.place.database.of(self.place.org).write_now(change)

    def delete(self, which: str) -> None:
        self.place.unlock_the_log()
        self.place.database.write_now(lambda rows: rows.execute(f"DELETE FROM audit_entry WHERE {which}"))

    @property
    def last(self) -> int:
        ((seq,),) = self.place.database.of(self.place.org).read(
            "SELECT MAX(seq) FROM audit_entry WHERE org = ?", (self.place.org,)
        )
        return int(seq)

    def run(
        self, receiver: Any, *, once: bool = True, db: Any = None, patience_s: float = math.inf, **filters: Any
    ) -> Stream:
        start = beginning(self.place.org)
        new = Position(self.place.org, "there", "jsonl", dict(filters), start.seq, start.hash)
        reader = db or self.place.installation.database.of(self.place.org)
        stream = Stream(
            reader, self.noted, self.noted.read() or new, receiver, self.said.append, self._wait, lambda: self.time
        )
        stream.begin()
        stream.follow(once=once, patience_s=patience_s, **filters)
        return stream

    def run_until_done(self, receiver: Any) -> None:
        with pytest.raises(Done):
            self.run(receiver, once=False)

    def _wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.time += seconds
        self.on_wait(seconds)

    @staticmethod
    def _done(_: float) -> None:
        raise Done
