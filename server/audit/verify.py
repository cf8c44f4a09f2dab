"""Find what was changed in a log, without trusting who hands it over, in one pass and constant memory.

A report names the first bad entry, or says in words what cannot be excluded: hashes without a key prove that a log
is whole in itself, and whoever can write the whole database can write another whole log. Heads noted outside it
close that gap as far as they reach: hand them in as `known`. Imports nothing but the standard library; nothing here
needs a key.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from server.audit.entry import (
    MAX_BODY,
    VERSION,
    CannotRead,
    Event,
    Head,
    canonical,
    column,
    entry_hash,
    iso,
    log_hash,
    parse,
)
from server.audit.export import FORMAT
from server.audit.reading import Reader, rows


class Status(StrEnum):
    INTACT = "intact"
    ALTERED = "altered"
    UNVERIFIABLE = "unverifiable"

    @property
    def exit_code(self) -> int:
        return {Status.INTACT: 0, Status.ALTERED: 1, Status.UNVERIFIABLE: 3}[self]


@dataclass(frozen=True, slots=True)
class Report:
    """What one verification found.

    `entries` were checked and good, up to `head`; 0 and None where a hash was made anew, for then those before may
    have been as well. `first_bad` is the sequence number of the first entry that is
    changed, missing or out of place, and `line` its line in an export (the header is line 1). `unknown` counts
    attempts without an outcome: cut off while they ran, or still running; `unknown_at` has the first of them.
    """

    status: Status
    org: str | None = None
    entries: int = 0
    head: Head | None = None
    first_bad: int | None = None
    line: int | None = None
    problem: str = ""
    cannot_exclude: tuple[str, ...] = ()
    unknown: int = 0
    unknown_at: tuple[int, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 intact, 1 altered, 3 cannot be verified."""
        return self.status.exit_code

    def __bool__(self) -> NoReturn:
        raise TypeError("a report has three outcomes: ask for its status")

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        return {**shown, "status": str(self.status), "head": self.head and self.head._asdict()}


class Written(NamedTuple):
    """One entry as found: the body's bytes, the two hashes in hex, and what else was stored beside them."""

    body: bytes
    previous: str
    hash: str
    line: int | None = None
    columns: tuple[Any, ...] | None = None
    """seq, at, event, agent, connection, tool, outcome of the database's row; None for an export."""


def verify_database(
    db: Reader, org: str, *, known: Sequence[Head] = (), progress: Callable[[int], object] | None = None
) -> Report:
    """Verify the org's log where it is. `known` are heads that were noted outside this database."""
    try:
        return verify(_from_rows(db, org), org=org, known=known, progress=progress)
    except CannotRead as error:
        return Report(Status.UNVERIFIABLE, org=org, problem=str(error))


def verify_export(
    source: Path | BinaryIO,
    *,
    org: str | None = None,
    known: Sequence[Head] = (),
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify a JSONL export, offline. `org` is whose log it should be; None accepts any and the report names it."""
    if not isinstance(source, Path):
        return _verify_file(source, org, known, progress)
    try:
        with source.open("rb") as file:
            return _verify_file(file, org, known, progress)
    except OSError as error:
        return Report(Status.UNVERIFIABLE, problem=f"{source} cannot be read: {error.strerror or error}.")


def verify(
    entries: Iterable[Written],
    *,
    org: str,
    ends: Head | None = None,
    known: Sequence[Head] = (),
    selection: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify entries in the order in which they were found.

    `ends` is where the source itself says that it ends. `known` are heads noted elsewhere, each of which the log
    must contain. Of a `selection` only each entry by itself can be checked, and the report is at best unverifiable.
    """
    walk = _Walk(org=org, known=_by_seq(known), ends=ends, selection=selection)
    try:
        for found in entries:
            walk.step(found)
            if progress and walk.entries % PROGRESS_EVERY == 0:
                progress(walk.entries)
        walk.end()
    except _Unreadable as unreadable:
        return walk.report(Status.UNVERIFIABLE, problem=str(unreadable))
    except _Altered as altered:
        walk.entries = 0 if altered.rewritten else walk.entries
        return walk.report(Status.ALTERED, str(altered), first_bad=altered.seq or walk.seq + 1, line=altered.line)
    if selection:
        return walk.report(Status.UNVERIFIABLE, SELECTION, cannot_exclude=(MISSING_FROM_SELECTION, REWRITTEN))
    if not walk.entries:
        return walk.report(Status.UNVERIFIABLE, NO_ENTRIES, cannot_exclude=(REMOVED_WHOLLY,))
    return walk.report(Status.INTACT, cannot_exclude=_limits(Head(walk.seq, walk.last.hex()), known))


PROGRESS_EVERY = 1000
MAX_LINE = MAX_BODY + 1000
NO_ENTRIES = "There are no entries, so there is nothing to verify."
SELECTION = (
    "This export is a selection: each entry in it is whole, but the log cannot be verified. Export without filters."
)
MISSING_FROM_SELECTION = "that entries which belong to the selection were left out of it"
REMOVED_WHOLLY = "that all entries were removed"
REWRITTEN = (
    "that whoever can write the database, or this file, wrote all of it anew with fresh hashes or added entries at "
    "the end: nothing noted elsewhere was compared"
)


def _limits(end: Head, known: Sequence[Head]) -> tuple[str, ...]:
    """What an intact chain does not prove, given the heads that it was compared with."""
    removed = f"that entries after entry {end.seq} were removed"
    reach = max((head.seq for head in known), default=0)
    if not reach:
        return (REWRITTEN, f"{removed}: note {end} elsewhere, and the next verification will tell")
    if reach < end.seq:
        return (f"that the entries after entry {reach}, the last one noted elsewhere, are new or other ones", removed)
    return (removed,)


class _Altered(Exception):
    """`seq` is the first bad entry; None means the one that should have come next.

    `rewritten`: hashes were made anew, so nothing that came before can be vouched for either.
    """

    def __init__(
        self, problem: str, *, seq: int | None = None, line: int | None = None, rewritten: bool = False
    ) -> None:
        super().__init__(problem)
        self.seq, self.line, self.rewritten = seq, line, rewritten


class _Unreadable(Exception):
    """What was found cannot be judged."""


@dataclass(slots=True)
class _Walk:
    """The state of one pass: the last good entry, and the attempts that are still open."""

    org: str
    known: dict[int, str]
    ends: Head | None
    selection: bool
    seq: int = 0
    entries: int = 0
    last: bytes = b""
    open: set[int] = field(default_factory=set[int])

    def __post_init__(self) -> None:
        self.last = bytes.fromhex(log_hash(self.org))

    def step(self, found: Written) -> None:
        """Check one entry against everything known so far; raise `_Altered` or `_Unreadable`."""
        line = found.line
        linked = found.previous == self.last.hex()
        own = entry_hash(self.last if linked else self._followed(found), found.body)
        if own.hex() != found.hash:
            raise self._changed(found, "its hash is another")
        body = self._parsed(found)
        seq = body.get("seq")
        if type(seq) is not int:
            raise self._changed(found, "it has no number")
        if body.get("org") != self.org:
            raise self._changed(found, "it is of another org's log")
        self._in_order(seq, linked=linked, line=line)
        _plausible(body, found, seq)
        if self.known.get(seq, found.hash) != found.hash:
            problem = f"Entry {seq} is not the one that was noted elsewhere: the log was written anew up to there."
            raise _Altered(problem, seq=seq, line=line, rewritten=True)
        self.seq, self.last, self.entries = seq, own, self.entries + 1
        self._follow(body, seq)

    def end(self) -> None:
        """Check that the log goes as far as it is known to go."""
        if self.selection:
            return
        if self.ends is not None and self.ends != Head(self.seq, self.last.hex()):
            self._ends_elsewhere(self.ends)
        missing = min((seq for seq in self.known if seq > self.seq), default=None)
        if missing is not None:
            raise _Altered(f"The log ends with entry {self.seq}, and entry {missing} is known to have existed.")

    def report(self, status: Status, problem: str = "", **more: Any) -> Report:
        at = Head(self.seq, self.last.hex()) if self.entries else None
        unknown = () if self.selection else tuple(sorted(self.open)[:20])
        count = 0 if self.selection else len(self.open)
        good: dict[str, Any] = {"org": self.org, "entries": self.entries, "head": at}
        return Report(status, problem=problem, unknown=count, unknown_at=unknown, **good, **more)

    def _followed(self, found: Written) -> bytes:
        if not _HEX.fullmatch(found.previous):
            raise self._changed(found, "what it follows is not a hash")
        return bytes.fromhex(found.previous)

    def _parsed(self, found: Written) -> dict[str, Any]:
        try:
            return parse(found.body)
        except ValueError:
            raise self._changed(found, "its body is not one that Keyleash writes") from None

    def _changed(self, found: Written, what: str) -> "_Altered":
        """By the number that belongs here; in a selection, where any may follow, by the one that it claims."""
        seq = self.seq + 1
        if self.selection and (claimed := _CLAIMED.search(found.body)):
            seq = int(claimed[1])
        return _Altered(f"Entry {seq} was changed: {what}.", seq=seq, line=found.line)

    def _in_order(self, seq: int, *, linked: bool, line: int | None) -> None:
        if seq <= self.seq:
            place = seq if self.selection else self.seq + 1
            raise _Altered(f"Entry {seq} stands where entry {self.seq + 1} belongs.", seq=place, line=line)
        if seq == self.seq + 1 and not linked:
            self._unlinked(seq, line)
        if seq > self.seq + 1 and not self.selection:
            problem = f"Entry {self.seq + 1} is missing or out of place: entry {seq} stands there."
            raise _Altered(problem, line=line)
        if self.ends is not None and seq > self.ends.seq:
            problem = f"Entry {seq} was added: the log should end with entry {self.ends.seq}."
            raise _Altered(problem, seq=seq, line=line)

    def _unlinked(self, seq: int, line: int | None) -> None:
        """The entry is whole but follows another than the one before it."""
        if self.entries == 0 and seq == 1:
            raise _Altered("Entry 1 does not begin this org's log.", seq=1, line=line)
        if self.entries:
            problem = f"Entry {seq - 1} was replaced, alone or with those before it: entry {seq} follows another."
            raise _Altered(problem, seq=seq - 1, line=None if line is None else line - 1, rewritten=True)

    def _ends_elsewhere(self, ends: Head) -> NoReturn:
        if self.seq < ends.seq:
            raise _Altered(f"The log ends with entry {self.seq} and should go on to entry {ends.seq}.")
        problem = f"Entry {self.seq} is not the last entry that the export was made with."
        raise _Altered(problem, seq=self.seq, rewritten=True)

    def _follow(self, body: dict[str, Any], seq: int) -> None:
        event = body["event"]
        if event == Event.CALL_ATTEMPT:
            self.open.add(seq)
        elif event == Event.CALL_OUTCOME:
            attempt = body.get("attempt")
            if isinstance(attempt, int):
                self.open.discard(attempt)


def _plausible(body: dict[str, Any], found: Written, seq: int) -> None:
    """The parts of a body that every entry has, and the columns beside it, which no hash covers."""
    if body.get("v") != VERSION:
        raise _Unreadable(f"Entry {seq} was written by another version of Keyleash. Verify with that one.")
    at, event = body.get("at"), body.get("event")
    if not (isinstance(at, str) and _MOMENT.fullmatch(at) and isinstance(event, str)):
        raise _Altered(f"Entry {seq} does not say when or what.", seq=seq, line=found.line)
    if found.columns is None:
        return
    said = (seq, at, event, *(column(body.get(name)) for name in ("agent", "connection", "tool", "outcome")))
    if found.columns != said:
        pairs = zip(_COLUMN_NAMES, found.columns, said, strict=True)
        wrong = next(name for name, stored, expected in pairs if stored != expected)
        raise _Altered(f"Entry {seq} was changed: its column `{wrong}` is not what its body says.", seq=seq)


_COLUMN_NAMES = ("seq", "at", "event", "agent", "connection", "tool", "outcome")
_HEX = re.compile(r"[0-9a-f]{64}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_LAYOUT = re.compile(rb'\{"hash":"([0-9a-f]{64})","previous":"([0-9a-f]{64})","entry":')
_CLAIMED = re.compile(rb'"seq":([0-9]{1,18})[,}]')
_LAYOUT_SIZE = len('{"hash":"","previous":"","entry":') + 128


def _by_seq(known: Sequence[Head]) -> dict[int, str]:
    found = dict(known)
    if any(found[seq] != own for seq, own in known):
        raise ValueError("two heads with one number and different hashes were noted: only one can be true")
    return found


def _from_rows(db: Reader, org: str) -> Iterator[Written]:
    """The database's rows up to its end at this moment, as found."""
    last = next(rows(db, org, newest_first=True, page=1), None)
    for place, (seq, at, event, body, previous, own, *named) in enumerate(rows(db, org), start=1):
        if not all(isinstance(value, str) for value in (event, body, previous, own)):
            raise _Altered(f"Entry {place} was changed: a text in it is not stored as a text.")
        yield Written(body.encode(), previous, own, None, (seq, _moment(at), event, *named))
        if last is not None and last[0] == seq:
            return


def _moment(at: Any) -> Any:
    """A stored time as a body says it; what is no time stays as it is and equals none."""
    try:
        return iso(at) if type(at) is int else at
    except (ValueError, OverflowError, OSError):
        return at


def _verify_file(
    file: BinaryIO, org: str | None, known: Sequence[Head], progress: Callable[[int], object] | None
) -> Report:
    try:
        header = _header(file.readline(MAX_LINE))
        whose, ends = header["org"], _stated_end(header)
    except _Unreadable as unreadable:
        return Report(Status.UNVERIFIABLE, problem=str(unreadable))
    if org is not None and whose != org:
        return Report(Status.UNVERIFIABLE, org=whose, problem=f"This is the log of {whose}, not of {org}.")
    return verify(_from_lines(file), org=whose, ends=ends, known=known, selection=ends is None, progress=progress)


NOT_AN_EXPORT = (
    "This is not a JSONL export of an audit log, or its first line was changed. Only what `keyleash audit export "
    "--format jsonl` wrote, unchanged, can be verified: no CSV, no other line ends, no byte-order mark."
)


def _header(line: bytes) -> dict[str, Any]:
    """An export's first line; every byte of it is as the export wrote it, or it is none."""
    if not line:
        raise _Unreadable("This file is empty. " + NOT_AN_EXPORT)
    try:
        header = parse(line)
    except ValueError:
        raise _Unreadable(NOT_AN_EXPORT) from None
    if header.get("format") != FORMAT or line != f"{canonical(header)}\n".encode():
        raise _Unreadable(NOT_AN_EXPORT)
    if header.get("v") != VERSION:
        raise _Unreadable("This export was made by another version of Keyleash. Verify with that one.")
    if not isinstance(header.get("org"), str):
        raise _Unreadable(NOT_AN_EXPORT)
    return header


def _stated_end(header: dict[str, Any]) -> Head | None:
    """Where the export says that it ends; None for a selection, which does not say."""
    names = header.keys() - {"format", "v", "org"}
    if names == {"selection"}:
        return None
    seq, own = header.get("entries"), header.get("head")
    if names != {"entries", "head"} or type(seq) is not int or seq < 0:
        raise _Unreadable(NOT_AN_EXPORT)
    if seq == 0 and own is None:
        return Head(0, log_hash(header["org"]))
    if not isinstance(own, str):
        raise _Unreadable(NOT_AN_EXPORT)
    return Head(seq, own)


def _from_lines(file: BinaryIO) -> Iterator[Written]:
    """The lines after the header, as found; no line is longer than `MAX_LINE` in memory."""
    for number, line in enumerate(iter(partial(file.readline, MAX_LINE), b""), start=2):
        layout = _LAYOUT.match(line)
        if not line.endswith(b"}\n"):
            raise _Altered(f"Line {number} was cut off or changed.", line=number)
        if layout is None:
            raise _Altered(_not_an_entry(line, number), line=number)
        own, previous = layout.groups()
        yield Written(line[_LAYOUT_SIZE:-2], previous.decode(), own.decode(), number)


def _not_an_entry(line: bytes, number: int) -> str:
    if line.startswith(b'{"damaged":'):
        return f"Line {number} holds an entry that was altered in the database before the export."
    return f"Line {number} is not an entry as Keyleash writes it."
