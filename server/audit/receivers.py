"""Where a stream of entries can go on this machine: the end of a file, or standard output."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from server.audit.entry import Entry
from server.audit.export import Format, Header
from server.audit.streaming import Away, StreamProblem, Taken
from vault.newfile import sync_folder


class AppendedFile:
    """Lines at the end of a file, on the disk before `send` returns. Others may move or empty the file at any time."""

    def __init__(self, path: Path, format: Format, org: str) -> None:  # noqa: A002 - the word that the command uses
        self.path = path
        self._format = format
        self._first = _columns(format, org)
        self._file: int | None = None
        self._ours: list[int] = []

    def resume(self, mark: list[int]) -> None:
        """A line that was cut off by a kill is removed, where this is the file that was written to then."""
        self._ours = mark
        try:
            self._opened()
        except OSError as error:
            raise StreamProblem(f"{self.path} cannot be written: {error.strerror}. Name another file.") from None

    def mark(self) -> list[int]:
        return self._ours

    def send(self, entries: Sequence[Entry]) -> Taken:
        text = "".join(f"{self._format.line(entry)}\n" for entry in entries).encode()
        try:
            file = self._opened()
            end = os.fstat(file).st_size
            if end and _read_at(file, end - 1, 1) not in (b"", b"\n"):
                text = b"\n" + text  # somebody has cut the file off within a line
            try:
                _write(file, text)
                os.fsync(file)
            except OSError:
                if os.fstat(file).st_size > end:  # not where somebody has emptied the file meanwhile
                    os.ftruncate(file, end)
                raise
        except OSError as error:
            raise Away(f"{self.path} cannot be written: {error.strerror}") from None
        return Taken(len(entries))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        """The file that has this name now; another one than before where somebody moved that."""
        if self._file is not None and _identity(self._file) != _identity(self.path):
            self.close()
        if self._file is None:
            new = not self.path.exists()
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            status = os.fstat(self._file)
            if not stat.S_ISREG(status.st_mode):
                self.close()
                raise StreamProblem(f"{self.path} is not a regular file. Name a file to write, or - for a pipe.")
            if new:
                sync_folder(self.path.parent)
            _make_whole(self._file, status, ours=self._ours)
        if self._first and os.fstat(self._file).st_size == 0:
            _write(self._file, self._first)
        self._ours = list(_identity(self._file) or ())
        return self._file


class Pipe:
    """Lines on standard output. What a pipe has taken and nobody read is lost with it."""

    def __init__(self, output: BinaryIO, format: Format, org: str) -> None:  # noqa: A002 - the word that the command uses
        self._output = output
        self._line: Callable[[Entry], str] = format.line
        self._first = _columns(format, org)

    def resume(self, mark: list[int]) -> None:
        del mark
        self._output.write(self._first)

    def mark(self) -> list[int]:
        return []

    def send(self, entries: Sequence[Entry]) -> Taken:
        for entry in entries:
            self._output.write(f"{self._line(entry)}\n".encode())
        self._output.flush()
        return Taken(len(entries))

    def close(self) -> None:
        """It is not ours to close."""


def _make_whole(file: int, status: os.stat_result, *, ours: list[int]) -> None:
    """See to it that what comes next begins a line. Only of what this stream wrote itself is anything removed."""
    size = status.st_size
    if size == 0 or _read_at(file, size - 1, 1) == b"\n":
        return
    if ours != [status.st_dev, status.st_ino]:
        _write(file, b"\n")
        return
    os.ftruncate(file, _end_of_last_line(file, size))


def _columns(format: Format, org: str) -> bytes:  # noqa: A002 - the word that the command uses
    return f"{format.first(Header(org, None, {}))}\n".encode() if format.first and format.columns else b""


def _identity(file: int | Path) -> tuple[int, int] | None:
    try:
        status = os.fstat(file) if isinstance(file, int) else file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _write(file: int, text: bytes) -> None:
    left = memoryview(text)
    while left:
        left = left[os.write(file, left) :]


def _read_at(file: int, place: int, size: int) -> bytes:
    os.lseek(file, place, os.SEEK_SET)  # what is written goes to the end all the same
    return os.read(file, size)


def _end_of_last_line(file: int, size: int) -> int:
    step = 64 * 1024
    while size > 0:
        start = max(0, size - step)
        found = _read_at(file, start, size - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0
