"""Write an org's log to a file, whole or not at all: JSONL that can be verified anywhere, and what other tools read.

**JSONL** is lossless. Its first line is a header, canonical JSON: ``{"entries":N,"format":"keyleash audit export",
"head":"<hash of entry N>","org":"…","v":1}``. A selection (any filter) has ``"selection":{…}`` in place of
``entries`` and ``head``. Then one line per entry, in exactly this layout, which any JSON reader understands and in
which the body stands byte for byte as it was hashed::

    {"hash":"<64 hex>","previous":"<64 hex>","entry":<body>}

An entry whose stored form was altered so that it no longer fits on such a line is written as ``{"damaged":{…}}``:
it is kept for the reader and fails verification.

**CSV** has fixed columns, every cell quoted, one physical line per entry. A cell is spelled as `fields.py` says; a text
that a spreadsheet could take for a formula has an apostrophe before it, as has one that begins with an apostrophe. It
cannot be verified.

The others are one line per entry too, without a first line: `ocsf.py`, `cef.py`, `syslog.py`, `otlp.py`.
"""

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from server.audit.cef import cef_line
from server.audit.entry import VERSION, Entry, ExportFailed, Head, canonical
from server.audit.fields import FIELDS, fields_of, spelled
from server.audit.ocsf import ocsf_line
from server.audit.otlp import otlp_line
from server.audit.reading import Filters, Reader, head, select
from server.audit.syslog import syslog_line

FORMAT = "keyleash audit export"


@dataclass(frozen=True, slots=True)
class Header:
    """What an export says of itself: whose log, and either how far it goes or what was selected."""

    org: str
    head: Head | None
    selection: dict[str, Any]

    @property
    def line(self) -> str:
        fields: dict[str, Any] = {"format": FORMAT, "v": VERSION, "org": self.org}
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
            lines, headings = _lines(FORMATS[format], header, entries), int(FORMATS[format].first is not None)
            count = _write(file, lines, progress, headings=headings)
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
    """The same, line by line, for a pipe. Line ends are included."""
    header, entries = _begin(db, org, filters)
    return _lines(FORMATS[format], header, entries)


def jsonl_line(entry: Entry) -> str:
    """Lossless and verifiable; the layout is in the module's text."""
    if entry.fits:
        return f'{{"hash":"{entry.hash}","previous":"{entry.previous}","entry":{entry.text}}}'
    stored = {name: str(getattr(entry, name)) for name in ("seq", "at", "event", "text", "previous", "hash")}
    return canonical({"damaged": stored})


def csv_line(entry: Entry) -> str:
    """For spreadsheets: no cell is a formula, and no value opens a second row."""
    fields = fields_of(entry)
    return _csv_line(cell(fields.get(name)) for name in CSV_COLUMNS)


@dataclass(frozen=True, slots=True)
class Format:
    """How an entry becomes one line, without its end; and the line that comes before the entries, if there is one.

    `columns`: that line says what stands where, so a stream has it too.
    """

    line: Callable[[Entry], str]
    first: Callable[[Header], str] | None = None
    columns: bool = False


FORMATS: dict[str, Format] = {
    "jsonl": Format(jsonl_line, first=lambda header: header.line),
    "csv": Format(csv_line, first=lambda _: _csv_line(CSV_COLUMNS), columns=True),
    "ocsf": Format(ocsf_line),
    "cef": Format(cef_line),
    "syslog": Format(syslog_line),
    "otlp": Format(otlp_line),
}

CSV_COLUMNS = FIELDS


def cell(value: Any) -> str:
    """A value as it stands in a CSV cell; the rules are in the module's text."""
    if value is None:
        return ""
    text = spelled(value)
    return f"'{text}" if text.lstrip()[:1] in _FORMULA else text


_FORMULA = frozenset("=+-@'＝＋－＠")


def _begin(db: Reader, org: str, filters: Filters) -> tuple[Header, Iterator[Entry]]:
    """The header and the entries that it speaks of; what is appended meanwhile is not among them."""
    end = head(db, org)
    selection = {name: value for name, value in filters.items() if value is not None}
    entries = select(db, org, **filters)
    return Header(org, end, selection), (entry for entry in entries if _is_before(entry, end))


def _is_before(entry: Entry, end: Head | None) -> bool:
    # A number that is none was written past Keyleash: it goes along, for the verifier to find.
    return end is not None and (type(entry.seq) is not int or entry.seq <= end.seq)


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(cells)
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


def _lines(format: Format, header: Header, entries: Iterable[Entry]) -> Iterator[str]:  # noqa: A002
    if format.first is not None:
        yield f"{format.first(header)}\n"
    for entry in entries:
        yield f"{format.line(entry)}\n"


def _write(
    file: io.TextIOWrapper,
    lines: Iterator[str],
    progress: Callable[[int], object] | None,
    *,
    headings: int,
    every: int = 1000,
) -> int:
    """Write every line; return the number of entries, of which the first lines are none."""
    count = -headings
    for line in lines:
        file.write(line)
        count += 1
        if progress and count > 0 and count % every == 0:
            progress(count)
    if progress:
        progress(count)
    return count
