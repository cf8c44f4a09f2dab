"""Find what was changed in a log, without trusting who hands it over, in one pass and constant memory.

A report names the first bad entry, or says in words what cannot be excluded: hashes without a key prove that a log
is whole in itself, and whoever can write the whole database can write another whole log. Checkpoints that were kept
outside it, and heads noted there, close that gap as far as they reach (`server.audit.proof`). No secret is needed.
`server/audit/standalone.py` does the same by itself, for an auditor; one test holds both to the same verdicts.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Generic, NamedTuple, NoReturn, TypeVar

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
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, read_note
from server.audit.proof import NO_PROOFS, Proofs, Trusted, Untrusted, key_in, stub_in, trusted
from server.audit.reading import Reader, first_number, rows
from server.audit.tree import Frontier

T = TypeVar("T")


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
    pruned: int = 0
    """how many entries before the first one are gone, as a signed stub says"""
    checkpoints: tuple[int, ...] = ()
    """the sizes of the checkpoints whose roots were computed anew and are right"""

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
    db: Reader,
    org: str,
    *,
    known: Sequence[Head] = (),
    proofs: Proofs = NO_PROOFS,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify the org's log where it is. `known` and `proofs` come from outside this database."""
    try:
        begins = first_number(db, org)
        stub = stub_in(db, org) if type(begins) is int and begins > 1 else None
        own = key_in(db, org) if stub is not None or proofs.checkpoints else None
        trust = trusted(proofs, org, own, stub, place="the database")
    except (CannotRead, NoteProblem) as error:
        return Report(Status.UNVERIFIABLE, org=org, problem=str(error))
    except Untrusted as untrusted:
        return _untrusted(untrusted, org)
    try:
        return verify(_from_rows(db, org), ROWS, org=org, known=known, trust=trust, progress=progress)
    except CannotRead as error:
        return Report(Status.UNVERIFIABLE, org=org, problem=str(error))


def verify_export(
    source: Path | BinaryIO,
    *,
    org: str | None = None,
    known: Sequence[Head] = (),
    proofs: Proofs = NO_PROOFS,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify a JSONL export, offline. `org` is whose log it should be; None accepts any and the report names it."""
    if not isinstance(source, Path):
        return _verify_file(source, org, known, proofs, progress)
    try:
        with source.open("rb") as file:
            return _verify_file(file, org, known, proofs, progress)
    except OSError as error:
        return Report(Status.UNVERIFIABLE, problem=f"{source} cannot be read: {error.strerror or error}.")


def _untrusted(untrusted: Untrusted, org: str) -> Report:
    """A checkpoint that is not by the log's key proves nothing; a stub that is not is no reason for missing entries."""
    if untrusted.pruned:
        return Report(Status.ALTERED, org=org, first_bad=1, problem=str(untrusted))
    return Report(Status.UNVERIFIABLE, org=org, problem=str(untrusted))


def verify(
    entries: Iterable[T],
    source: "Source[T]",
    *,
    org: str,
    ends: Head | None = None,
    known: Sequence[Head] = (),
    selection: bool = False,
    trust: Trusted | None = None,
    progress: Callable[[int], object] | None = None,
) -> Report:
    """Verify entries in the order in which they were found, as they stand in their `source`.

    `ends` is where the source itself says that it ends. `known` are heads noted elsewhere, each of which the log
    must contain; `trust` has the checkpoints that it must agree with, and the stub that it goes on from. Of a
    `selection` only each entry by itself can be checked, and the report is at best unverifiable.
    """
    trust = trust or Trusted()
    walk = _Walk(org=org, known=_by_seq(known), ends=ends, selection=selection, trust=trust)
    try:
        walk.begin()
        for place, found in enumerate(entries, start=1):
            if not source.as_expected(walk, found):
                walk.step(source.written(walk, found, place))
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
    return walk.report(Status.INTACT, cannot_exclude=_limits(Head(walk.seq, walk.last.hex()), known, trust))


PROGRESS_EVERY = 1000
LEAVES = 1024
"""How many leaves are added to the tree at once."""
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


def _limits(end: Head, known: Sequence[Head], trust: Trusted) -> tuple[str, ...]:
    """What an intact chain does not prove, given what it was compared with."""
    removed = f"that entries after entry {end.seq} were removed"
    reach = max((seq for seq in (*(head.seq for head in known), *trust.sizes) if seq >= trust.after), default=0)
    if not reach:
        note = f"{removed}: note {end} elsewhere, or keep a checkpoint there, and the next verification will tell"
        return (REWRITTEN, note, *trust.limits)
    if reach < end.seq:
        others = f"that the entries after entry {reach}, the last one noted elsewhere, are new or other ones"
        return (others, removed, *trust.limits)
    return (removed, *trust.limits)


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
    """The state of one pass: the last good entry, the tree so far, and the attempts that are still open."""

    org: str
    known: dict[int, str]
    ends: Head | None
    selection: bool
    trust: Trusted
    seq: int = 0
    entries: int = 0
    last: bytes = b""
    last_hex: str = ""
    open: set[int] = field(default_factory=set[int])
    tree: Frontier = field(default_factory=Frontier)
    leaves: list[bytes] = field(default_factory=list[bytes])
    agreed: list[int] = field(default_factory=list[int])
    due: list[Checkpoint] = field(default_factory=list[Checkpoint])
    pause: int = 0
    """the entry after which there is more to do than to go on"""

    def __post_init__(self) -> None:
        self.last_hex, stub = log_hash(self.org), self.trust.stub
        if stub is not None:
            self.tree, self.seq = stub.frontier, stub.size
            self.last_hex = stub.head.hash if stub.head else ""
        self.last = bytes.fromhex(self.last_hex)
        self.due = sorted((one for one in self.trust.checkpoints if one.size >= self.seq), key=lambda one: -one.size)

    def begin(self) -> None:
        """Hold what is of the pruned entries, and of their end, to what can still be known of them."""
        roots: dict[int, bytes] = {}
        for one in sorted(self.trust.checkpoints, key=lambda one: one.size):
            if one.size < self.seq and roots.setdefault(one.size, one.root) != one.root:
                raise _Altered(f"Two checkpoints of size {one.size} contradict each other.", seq=max(one.size, 1))
        self._compare()

    def follows(self, own: bytes, text: str, body: bytes, columns: Sequence[Any] | None) -> bool:
        """Go on by an entry that fits the chain, where nothing else is wrong with it either; else False."""
        seq = self.seq + 1
        try:
            said = parse(body)
        except ValueError:
            return False
        if type(said.get("seq")) is not int or said["seq"] != seq or said.get("org") != self.org:
            return False
        if not _is_ours(said) or (self.known and self.known.get(seq, text) != text):
            return False
        if not (_is_moment(said.get("at")) and isinstance(said.get("event"), str)):
            return False
        if columns is not None and columns != _columns(said, seq):
            return False
        self.last_hex = text
        self._went(seq, own, said)
        return True

    @property
    def open_ended(self) -> bool:
        """Whether one more entry is nothing that should not be there."""
        return not self.selection and (self.ends is None or self.seq < self.ends.seq)

    def step(self, found: Written) -> None:
        """Check one entry against everything known so far; raise `_Altered` or `_Unreadable`."""
        line = found.line
        linked = found.previous == self.last_hex
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
        self.last_hex = found.hash
        self._went(seq, own, body)

    def end(self) -> None:
        """Check that the log goes as far as it is known to go."""
        if self.selection:
            return
        if self.ends is not None and self.ends != Head(self.seq, self.last_hex):
            self._ends_elsewhere(self.ends)
        known = [*self.known, *(one.size for one in self.due)]
        missing = min((seq for seq in known if seq > self.seq), default=None)
        if missing is not None:
            raise _Altered(f"The log ends with entry {self.seq}, and entry {missing} is known to have existed.")

    def _went(self, seq: int, own: bytes, body: dict[str, Any]) -> None:
        self.seq, self.last, self.entries = seq, own, self.entries + 1
        event = body["event"]
        if event == _ATTEMPT:
            self.open.add(seq)
        elif event == _OUTCOME:
            attempt = body.get("attempt")
            if isinstance(attempt, int):
                self.open.discard(attempt)
        if self.due:
            self.leaves.append(own)
            if seq == self.pause:
                self._compare()

    def _compare(self) -> None:
        """Compute the tree up to here, and hold the checkpoints of this size to it."""
        self.tree.extend(self.leaves)
        self.leaves.clear()
        while self.due and self.due[-1].size == self.seq:
            one = self.due.pop()
            if self.tree.root() != one.root:
                since = f" and after entry {self.agreed[-1]}" if self.agreed else ""
                raise _Altered(
                    f"The log up to entry {self.seq} is not the one that the checkpoint of {one.at or 'that size'} was "
                    f"made of: an entry before it{since}, or entry {self.seq} itself, was written anew.",
                    seq=self.seq,
                    rewritten=True,
                )
            self.agreed.append(one.size)
        self.pause = min(self.seq + LEAVES, self.due[-1].size) if self.due else 0

    def report(self, status: Status, problem: str = "", **more: Any) -> Report:
        at = Head(self.seq, self.last.hex()) if self.entries else None
        unknown = () if self.selection else tuple(sorted(self.open)[:20])
        count = 0 if self.selection else len(self.open)
        good: dict[str, Any] = {"org": self.org, "entries": self.entries, "head": at, "pruned": self.trust.after}
        good["checkpoints"] = tuple(dict.fromkeys(self.agreed))
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
        if self.entries == 0 and seq == self.trust.after + 1:
            begins = f"follow entry {seq - 1}, the last one that was pruned" if seq > 1 else "begin this org's log"
            raise _Altered(f"Entry {seq} does not {begins}.", seq=seq, line=line)
        if self.entries:
            problem = f"Entry {seq - 1} was replaced, alone or with those before it: entry {seq} follows another."
            raise _Altered(problem, seq=seq - 1, line=None if line is None else line - 1, rewritten=True)

    def _ends_elsewhere(self, ends: Head) -> NoReturn:
        if self.seq < ends.seq:
            raise _Altered(f"The log ends with entry {self.seq} and should go on to entry {ends.seq}.")
        problem = f"Entry {self.seq} is not the last entry that the export was made with."
        raise _Altered(problem, seq=self.seq, rewritten=True)


def _plausible(body: dict[str, Any], found: Written, seq: int) -> None:
    """The parts of a body that every entry has, and the columns beside it, which no hash covers."""
    if not _is_ours(body):
        raise _Unreadable(f"Entry {seq} was written by another version of Keyleash. Verify with that one.")
    at, event = body.get("at"), body.get("event")
    if not (_is_moment(at) and isinstance(event, str)):
        raise _Altered(f"Entry {seq} does not say when or what.", seq=seq, line=found.line)
    if found.columns is None:
        return
    said = _columns(body, seq)
    if found.columns != said:
        pairs = zip(_COLUMN_NAMES, found.columns, said, strict=True)
        wrong = next(name for name, stored, expected in pairs if stored != expected)
        raise _Altered(f"Entry {seq} was changed: its column `{wrong}` is not what its body says.", seq=seq)


def _is_ours(said: dict[str, Any]) -> bool:
    """Whether it is of the version that is read here: 1.0 and true are other spellings, which nobody writes."""
    version = said.get("v")
    return type(version) is int and version == VERSION


def _columns(body: dict[str, Any], seq: int) -> tuple[Any, ...]:
    """What the searchable columns beside a body should hold."""
    named = (column(body.get(name)) for name in ("agent", "connection", "tool", "outcome"))
    return (seq, body["at"], body["event"], *named)


def _is_moment(at: Any) -> bool:
    return isinstance(at, str) and _MOMENT.fullmatch(at) is not None


_ATTEMPT, _OUTCOME = Event.CALL_ATTEMPT.value, Event.CALL_OUTCOME.value
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


@dataclass(frozen=True)
class Source(Generic[T]):
    """Where entries are found. `as_expected` goes on by one that has nothing wrong, fast; `written` takes it apart."""

    as_expected: Callable[[_Walk, T], bool]
    written: Callable[[_Walk, T, int], Written]
    """its place is counted from the first one that is there; raises `_Altered`"""


def _from_rows(db: Reader, org: str) -> Iterator[tuple[Any, ...]]:
    """The database's rows up to its end at this moment, as found."""
    last = next(rows(db, org, newest_first=True, page=1), None)
    for row in rows(db, org):
        yield row
        if last is not None and last[0] == row[0]:
            return


def _row_as_expected(walk: _Walk, row: tuple[Any, ...]) -> bool:
    seq, at, event, text, previous, hashed, *named = row
    if previous != walk.last_hex or not isinstance(text, str) or not isinstance(hashed, str) or not walk.open_ended:
        return False
    body = text.encode("utf-8", "surrogatepass")
    own = entry_hash(walk.last, body)
    return own.hex() == hashed and walk.follows(own, hashed, body, (seq, _moment(at), event, *named))


def _row(walk: _Walk, row: tuple[Any, ...], place: int) -> Written:
    seq, at, event, body, previous, own, *named = row
    if not all(isinstance(value, str) for value in (event, body, previous, own)):
        raise _Altered(f"Entry {walk.trust.after + place} was changed: a text in it is not stored as a text.")
    return Written(body.encode(), previous, own, None, (seq, _moment(at), event, *named))


ROWS = Source(_row_as_expected, _row)


def _moment(at: Any) -> Any:
    """A stored time as a body says it; what is no time stays as it is and equals none."""
    try:
        return iso(at) if type(at) is int else at
    except (ValueError, OverflowError, OSError):
        return at


def _verify_file(
    file: BinaryIO, org: str | None, known: Sequence[Head], proofs: Proofs, progress: Callable[[int], object] | None
) -> Report:
    try:
        header = _header(file.readline(MAX_LINE))
        whose, ends = header["org"], _stated_end(header)
        key, stub = _stated_key(header), _stated_stub(header)
    except _Unreadable as unreadable:
        return Report(Status.UNVERIFIABLE, problem=str(unreadable))
    if org is not None and whose != org:
        return Report(Status.UNVERIFIABLE, org=whose, problem=f"This is the log of {whose}, not of {org}.")
    try:
        trust = trusted(proofs, whose, key, stub, place="this file")
    except NoteProblem as problem:
        return Report(Status.UNVERIFIABLE, org=whose, problem=str(problem))
    except Untrusted as untrusted:
        return _untrusted(untrusted, whose)
    lines, partly = _from_lines(file), ends is None
    return verify(lines, LINES, org=whose, ends=ends, known=known, selection=partly, trust=trust, progress=progress)


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
    if not _is_ours(header):
        raise _Unreadable("This export was made by another version of Keyleash. Verify with that one.")
    if not isinstance(header.get("org"), str):
        raise _Unreadable(NOT_AN_EXPORT)
    return header


def _stated_end(header: dict[str, Any]) -> Head | None:
    """Where the export says that it ends; None for a selection, which does not say."""
    names = header.keys() - {"format", "v", "org", "key", "pruned"}
    if names == {"selection"}:
        return None
    seq, own = header.get("entries"), header.get("head")
    if names != {"entries", "head"} or type(seq) is not int or seq < 0:
        raise _Unreadable(NOT_AN_EXPORT)
    if seq == 0 and own is None:
        return Head(0, log_hash(header["org"]))
    if seq == 0 or not isinstance(own, str):
        raise _Unreadable(NOT_AN_EXPORT)
    return Head(seq, own)


def _stated_key(header: dict[str, Any]) -> VerifierKey | None:
    """The log's public key as the export says it."""
    if "key" not in header:
        return None
    try:
        return VerifierKey.parse(str(header["key"]))
    except NoteProblem:
        raise _Unreadable(NOT_AN_EXPORT) from None


def _stated_stub(header: dict[str, Any]) -> Checkpoint | None:
    """What stands in the place of pruned entries; whether it is true is not judged yet."""
    if "pruned" not in header:
        return None
    try:
        return read_note(str(header["pruned"]).encode())
    except (NoteProblem, UnicodeEncodeError):
        raise _Unreadable(NOT_AN_EXPORT) from None


def _from_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines after the header, as found; no line is longer than `MAX_LINE` in memory."""
    return iter(partial(file.readline, MAX_LINE), b"")


def _line_as_expected(walk: _Walk, line: bytes) -> bool:
    body = line[_LAYOUT_SIZE:-2]
    own = entry_hash(walk.last, body)
    text = own.hex()
    begins = f'{{"hash":"{text}","previous":"{walk.last_hex}","entry":'.encode()
    if not (line.startswith(begins) and line.endswith(b"}\n") and walk.open_ended):
        return False
    return walk.follows(own, text, body, None)


def _line(_walk: _Walk, line: bytes, place: int) -> Written:
    number = place + 1  # after the header
    layout = _LAYOUT.match(line)
    if not line.endswith(b"}\n"):
        raise _Altered(f"Line {number} was cut off or changed.", line=number)
    if layout is None:
        raise _Altered(_not_an_entry(line, number), line=number)
    own, previous = layout.groups()
    return Written(line[_LAYOUT_SIZE:-2], previous.decode(), own.decode(), number)


LINES = Source(_line_as_expected, _line)


def _not_an_entry(line: bytes, number: int) -> str:
    if line.startswith(b'{"damaged":'):
        return f"Line {number} holds an entry that was altered in the database before the export."
    return f"Line {number} is not an entry as Keyleash writes it."
