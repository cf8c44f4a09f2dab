"""Write an org's log to a file, whole or not at all: JSONL that can be verified anywhere, CSV for people.

**JSONL** is lossless. Its first line is a header, canonical JSON: ``{"entries":N,"format":"keyleash audit export",
"head":"<hash of entry N>","org":"…","v":1}``. A selection (any filter) has ``"selection":{…}`` in place of
``entries`` and ``head``. Where there are, it also has ``key`` (the log's verifier key) and ``pruned`` (the signed stub
of the entries that are gone; see `server.audit.note`). Then one line per entry, in exactly this layout, which any JSON
reader understands and in which the body stands byte for byte as it was hashed::

    {"hash":"<64 hex>","previous":"<64 hex>","entry":<body>}

An entry whose stored form was altered so that it no longer fits on such a line is written as ``{"damaged":{…}}``:
it is kept for the reader and fails verification.

**CSV** has fixed columns, every cell quoted, one physical line per entry. A cell that begins with a quotation mark,
a bracket or a brace is JSON (a text with control characters, a list, an object); a text that a spreadsheet could
take for a formula has an apostrophe before it, as has one that begins with an apostrophe. It cannot be verified.
"""

import contextlib
import csv
import io
import os
import re
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from server.audit.entry import VERSION, Entry, ExportFailed, Head, canonical, parse
from server.audit.note import Checkpoint, VerifierKey
from server.audit.proof import key_in, stub_in
from server.audit.reading import Filters, Reader, head, select

FORMAT = "keyleash audit export"


@dataclass(frozen=True, slots=True)
class Header:
    """What an export says of itself: whose log, and either how far it goes or what was selected."""

    org: str
    head: Head | None
    selection: dict[str, Any]
    key: VerifierKey | None = None
    stub: Checkpoint | None = None

    @property
    def line(self) -> str:
        fields: dict[str, Any] = {"format": FORMAT, "v": VERSION, "org": self.org}
        signed = {"key": self.key, "pruned": self.stub}
        fields |= {name: str(value) for name, value in signed.items() if value is not None}
        if self.selection:
            return canonical({**fields, "selection": self.selection})
        seq, own = self.head or (0, None)
        return canonical({**fields, "entries": seq, "head": own})


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. `head` is where the log ended when the export began; None for an empty log."""

    path: Path
    entries: int
    head: Head | None


def export_file(
    db: Reader,
    org: str,
    path: Path,
    *,
    format: str = "jsonl",  # noqa: A002 -- the word that the command uses
    progress: Callable[[int], object] | None = None,
    **filters: Unpack[Filters],
) -> Exported:
    """Write the org's log, as it is now, to `path`, readable by this user only.

    The file appears under its name when it is complete, replacing a regular file that was there; until then, and
    after any failure, `path` is as it was. `progress` is called with the number of entries written so far.

    Raises `ExportFailed`.
    """
    if path.exists() and not path.is_file():
        raise ExportFailed(f"{path} is not a regular file. Name a file to write.")
    header, entries = _begin(db, org, filters)
    try:
        with _appearing_whole(path) as file:
            count = _write(file, FORMATS[format](header, entries), progress)
    except OSError as error:
        raise ExportFailed(f"{path} could not be written: {error.strerror or error}. Name another place.") from None
    return Exported(path=path, entries=count, head=header.head)


def export_lines(
    db: Reader,
    org: str,
    *,
    format: str = "jsonl",  # noqa: A002 -- the word that the command uses
    **filters: Unpack[Filters],
) -> Iterator[str]:
    """The same, line by line (the first is the header), for a pipe. Line ends are included."""
    return FORMATS[format](*_begin(db, org, filters))


def jsonl(header: Header, entries: Iterable[Entry]) -> Iterator[str]:
    """Lossless and verifiable; the layout is in the module's text."""
    yield f"{header.line}\n"
    for entry in entries:
        yield f"{_jsonl_line(entry)}\n"


def csv_lines(header: Header, entries: Iterable[Entry]) -> Iterator[str]:
    """For spreadsheets: no cell is a formula, and no value opens a second row."""
    yield _csv_line(CSV_COLUMNS)
    for entry in entries:
        yield _csv_line([cell(value) for value in _csv_values(entry)])


FORMATS: dict[str, Callable[[Header, Iterable[Entry]], Iterator[str]]] = {
    "jsonl": jsonl,
    "csv": csv_lines,
}

CSV_COLUMNS = (
    *("seq", "at", "event", "org", "member", "agent", "agent_id", "by", "client", "client_version"),
    *("transport", "connection", "account", "credential_version", "ownership", "tool", "definition", "effect"),
    *("verdict", "rules", "reason", "approval", "grant", "approver", "channel", "known_by", "arguments", "plain"),
    *("host", "method", "status", "bytes", "milliseconds", "request_id", "attempt", "outcome", "other"),
    *("previous", "hash"),
)


def cell(value: Any) -> str:
    """A value as it stands in a CSV cell; the rules are in the module's text."""
    if value is None:
        return ""
    as_json = not isinstance(value, str) or value[:1] in _READS_AS_JSON or _CONTROL.search(value)
    text = canonical(value) if as_json else value
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


_READS_AS_JSON = frozenset('"[{')
_FORMULA = frozenset("=+-@'＝＋－＠")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HEX = re.compile(r"[0-9a-f]{64}")


def _begin(db: Reader, org: str, filters: Filters) -> tuple[Header, Iterator[Entry]]:
    """The header and the entries that it speaks of; what is appended meanwhile is not among them."""
    end = head(db, org)
    selection = {name: value for name, value in filters.items() if value is not None}
    entries = select(db, org, **filters)
    header = Header(org, end, selection, key_in(db, org), stub_in(db, org))
    return header, (entry for entry in entries if _is_before(entry, end))


def _is_before(entry: Entry, end: Head | None) -> bool:
    # A number that is none was written past Keyleash: it goes along, for the verifier to find.
    return end is not None and (type(entry.seq) is not int or entry.seq <= end.seq)


def _jsonl_line(entry: Entry) -> str:
    if _fits(entry):
        return f'{{"hash":"{entry.hash}","previous":"{entry.previous}","entry":{entry.text}}}'
    stored = {name: str(getattr(entry, name)) for name in ("seq", "at", "event", "text", "previous", "hash")}
    return canonical({"damaged": stored})


def _fits(entry: Entry) -> bool:
    try:
        parse(entry.text)
    except (ValueError, AttributeError):
        return False
    return "\n" not in entry.text and all(_HEX.fullmatch(str(own)) for own in (entry.previous, entry.hash))


def _csv_values(entry: Entry) -> list[Any]:
    body = entry.body
    own = {"seq": entry.seq, "org": entry.org, "previous": entry.previous, "hash": entry.hash}
    other = {name: value for name, value in body.items() if name not in _NAMED}
    return [{**body, **own, "other": other or None}.get(name) for name in CSV_COLUMNS]


_NAMED = frozenset(CSV_COLUMNS) | {"v"}


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)
    return line.getvalue()


@contextlib.contextmanager
def _appearing_whole(path: Path) -> Generator[io.TextIOWrapper]:
    """A new 0600 file beside `path` that takes its name when the block ends well, and is removed when it does not."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 -- it is open already
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write(
    file: io.TextIOWrapper, written: Iterator[str], progress: Callable[[int], object] | None, every: int = 1000
) -> int:
    """Write every line; return the number of entries, which is one less."""
    count = -1
    for line in written:
        file.write(line)
        count += 1
        if progress and count and count % every == 0:
            progress(count)
    if progress:
        progress(count)
    return count
