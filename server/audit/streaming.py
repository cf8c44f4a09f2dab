"""Follow an org's log and hand on each entry at least once: how far it got is noted only when that is safe elsewhere.

Killed at any moment, it begins again after the last note: entries may come twice then, none is left out, and each
carries its number. What was pruned before it was handed on cannot be, and that is said. A log that is not the one that
was followed so far, because an older database was put back, is refused.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack, cast

from server.audit.entry import AuditError, CannotRead, Entry, Head, log_hash
from server.audit.reading import Filters, Reader, first_number, head, rows, select
from vault.newfile import replace_private

FORMAT = "keyleash-stream"
VERSION = 1
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends where it has this many entries or bytes; then how far it got is noted."""
LOOK_S = 1.0
"""How often the log is looked at."""
AGAIN_S, AT_MOST_S = 0.5, 60.0
"""How long to wait before another try when the receiver or the database is away: doubled each time."""


class Away(Exception):
    """The receiver takes nothing just now; the message says why.

    `unsure`: what it took last may not have been read. `after_s`: it asks not to be tried again before.
    """

    def __init__(self, why: str, *, unsure: bool = False, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.unsure, self.after_s = unsure, after_s


class StreamProblem(AuditError):
    """The stream cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream got, and what it is of; `mark` is the receiver's own."""

    org: str
    to: str
    form: str
    selection: dict[str, Any]
    seq: int
    hash: str
    mark: list[int] = field(default_factory=list[int])


class Taken(NamedTuple):
    """So many of what was sent, from its beginning, need not be sent again; `refused` of them it never takes."""

    number: int
    refused: int = 0


class Receiver(Protocol):
    """Where entries go."""

    def resume(self, mark: list[int]) -> None:
        """Be told, before anything is sent, what `mark` was when the last position was noted."""
        ...

    def send(self, entries: Sequence[Entry]) -> Taken:
        """Returns when the first of them or all are safe there, but for those that it has refused for good.

        Raises Away, or StreamProblem where no wait would help; then it has taken none.
        """
        ...

    def mark(self) -> list[int]:
        """What to note beside the position."""
        ...

    def close(self) -> None: ...


class Place:
    """The file that says how far one stream got."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Position | None:
        """Raises StreamProblem where there is something else than what was written."""
        try:
            given = cast("dict[str, Any]", json.loads(self.path.read_bytes()))
            if (given.pop("format"), given.pop("version")) != (FORMAT, VERSION):
                raise ValueError
            found = Position(**given)
            if type(found.seq) is not int:
                raise ValueError
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise StreamProblem(
                f"{self.path} cannot be read, or is not what Keyleash wrote. Remove it, and the stream begins anew "
                "with the first entry; or use another --name."
            ) from None
        return found

    def write(self, position: Position) -> None:
        """Durable when it returns. Raises StreamProblem."""
        try:
            replace_private(self.path, json.dumps({"format": FORMAT, "version": VERSION, **asdict(position)}))
        except OSError as error:
            raise StreamProblem(f"{self.path} cannot be written: {error.strerror}. Nothing is lost.") from None


@dataclass
class Stream:
    """One stream of one org's log. `say` hears in a sentence what people should know, `wait` waits so many seconds."""

    db: Reader
    place: Place
    position: Position
    receiver: Receiver
    say: Callable[[str], object]
    wait: Callable[[float], object]
    clock: Callable[[], float] = time.monotonic
    sent: int = 0
    refused: int = 0
    """How many the receiver was handed and did not take, for good."""
    _before: Position | None = None
    """Where the last batch began that was handed on."""
    _tries: int = 0
    _since: float = 0.0
    """When the first of these tries began."""
    _furthest: int = 0

    def begin(self) -> None:
        """Note where it begins. Raises StreamProblem where this is not the log that was followed so far."""
        self._require_same_log()
        self.receiver.resume(self.position.mark)
        self._note(replace(self.position, mark=self.receiver.mark()))

    def follow(self, *, once: bool = False, patience_s: float = math.inf, **filters: Unpack[Filters]) -> None:
        """Hand on what there is and what comes; with `once`, return at the log's present end.

        Raises StreamProblem where it came no further for `patience_s`.
        """
        while True:
            if not self._tries:
                self._since = self.clock()
            try:
                end = self._hand_on(filters)
            except (Away, CannotRead) as problem:
                if isinstance(problem, Away) and problem.unsure and self._before is not None:
                    self._note(self._before)
                self._later(problem, patience_s, filters)
                continue
            if once:
                return
            if end.seq <= self.position.seq:
                self.wait(LOOK_S)

    def _hand_on(self, filters: Filters) -> Head:
        """Everything up to the log's end, batch by batch: first it is safe there, then it is noted here."""
        end = head(self.db, self.position.org) or Head(0, "")
        if end != Head(self.position.seq, self.position.hash):
            self._require_same_log()
        found = select(self.db, self.position.org, after=self.position.seq, **filters)
        entries = self._told_of_gaps(found, end) if not filters else _up_to(found, end)
        for batch in batches(entries):
            left = batch
            while left:
                before = self.position
                number, refused = self.receiver.send(left)
                self._reached(left[number - 1].head)
                self._before = before
                self.sent += number - refused
                self.refused += refused
                left = left[number:]
                if self.position.seq > self._furthest:  # one that ends each connection gets the same over and over
                    self._works()
        if end.seq > self.position.seq:
            self._reached(end)
        self._works()
        return end

    def _reached(self, at: Head) -> None:
        self._note(replace(self.position, seq=at.seq, hash=at.hash, mark=self.receiver.mark()))

    def _note(self, position: Position) -> None:
        self.place.write(position)
        self.position = position

    def _told_of_gaps(self, entries: Iterable[Entry], end: Head) -> Iterator[Entry]:
        expected = self.position.seq + 1
        for entry in _up_to(entries, end):
            if entry.seq > expected:
                self.say(f"Entries {expected} to {entry.seq - 1} are not in the log any more, and were not handed on.")
            yield entry
            expected = entry.seq + 1

    def _works(self) -> None:
        self._furthest = self.position.seq
        self._since = self.clock()
        if self._tries:
            self.say("It works again.")
            self._tries = 0

    def _later(self, problem: Away | CannotRead, patience_s: float, filters: Filters) -> None:
        """Wait before the next try. Raises StreamProblem where none is left."""
        why = str(problem).rstrip(".")
        asked = problem.after_s if isinstance(problem, Away) else 0.0
        left = self._since + patience_s - self.clock()
        if left <= 0 or asked > left:
            over = f"after {patience_s:g} seconds in which it came no further"
            if left > 0:
                over = f"because it asks for {asked:.0f} seconds, more than are left of {patience_s:g}"
            raise StreamProblem(
                f"{why}. Given up {over}: {self._left(filters)} not delivered. The next run goes on there."
            )
        if not self._tries:
            until = "until it works" if patience_s == math.inf else f"for {patience_s:g} seconds"
            self.say(f"{why}. It is tried again {until}; nothing is lost meanwhile.")
        self.wait(min(max(asked, min(AGAIN_S * 2 ** min(self._tries, 10), AT_MOST_S)), left))
        self._tries += 1

    def _left(self, filters: Filters) -> str:
        org, at = self.position.org, self.position.seq
        try:
            end = (head(self.db, org) or Head(0, "")).seq
            first = first_number(self.db, org)
            if filters:
                count = sum(1 for _ in select(self.db, org, after=at, **filters))
            else:
                count = max(0, end - max(at, (first if isinstance(first, int) else 1) - 1))
        except AuditError:
            return f"the entries after {at} are"
        return f"1 entry after {at} is" if count == 1 else f"{count} entries after {at} are"

    def _require_same_log(self) -> None:
        org, seq, own = self.position.org, self.position.seq, self.position.hash
        if seq == 0:
            return
        found, end = next(rows(self.db, org, where=[("seq = ?", seq)], page=1), None), head(self.db, org)
        if found is not None and found[5] == own:
            return
        if found is None and end is not None and end.seq > seq:
            return  # it was pruned
        raise StreamProblem(
            f"This log is not the one that was followed up to entry {seq}: an older database was put back, or the log "
            f"was altered. Run `keyleash audit verify`. To begin anew with the first entry, remove {self.place.path}."
        )


def beginning(org: str) -> Head:
    """Where a stream of the whole log begins: before its first entry."""
    return Head(0, log_hash(org))


def batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries in batches of bounded number and size."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.text or "")
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _up_to(entries: Iterable[Entry], end: Head) -> Iterator[Entry]:
    for entry in entries:
        if entry.seq > end.seq:
            return
        yield entry
