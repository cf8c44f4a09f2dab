"""Whatever ends the process that started servers, kill -9 included, these servers end with it.

A small program is told of each of their process groups, and kills what is left of them once nobody can tell it any
more. Run as a program, this file is that program.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable
from pathlib import Path

PATIENCE_S = 2.0
"""How long the watch may take to end, which takes it no time; it may have been stopped."""


class Lifeline:
    """Holds the servers that are started over it; nothing is started before the first of them. `close` it."""

    def __init__(self) -> None:
        self._watch: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    @contextlib.contextmanager
    def over(self, group: int) -> Generator[None]:
        """The process group of a server that runs in this block."""
        self._groups.add(group)
        try:
            self._tell(f"+{group}")
            yield
        finally:
            self._groups.discard(group)
            with contextlib.suppress(OSError):  # what is told is an end
                self._tell(f"-{group}")

    def look(self) -> None:
        """Begin the watch anew where somebody has killed it."""
        if self._groups and (self._watch is None or self._watch.poll() is not None):
            with contextlib.suppress(OSError):  # the next look tries again
                self._begin()

    def close(self) -> None:
        """Let go: every server over it has ended."""
        watch, self._watch = self._watch, None
        if watch is not None and watch.stdin is not None:
            with contextlib.suppress(OSError):
                watch.stdin.close()
            try:
                watch.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                watch.kill()
                watch.wait()

    def _tell(self, line: str) -> None:
        if self._watch is not None and self._watch.poll() is None and self._written(line):
            return
        self._begin()

    def _begin(self) -> None:
        """The first, or somebody has killed the one before."""
        self.close()
        if self._groups:
            command = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
            nowhere = subprocess.DEVNULL
            self._watch = subprocess.Popen(  # noqa: S603 - this Python, and this file
                command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, env={}, cwd="/", start_new_session=True
            )
            self._written("\n".join(f"+{group}" for group in self._groups))

    def _written(self, line: str) -> bool:
        watch = self._watch
        if watch is None or watch.stdin is None:
            return False
        try:
            watch.stdin.write(f"{line}\n".encode())
            watch.stdin.flush()
        except (OSError, ValueError):  # it reads no more, or was let go
            return False
        return True


def hold(lines: Iterable[str]) -> None:
    """Kill, at the end of the lines, each group that was begun (`+`) in them and not ended (`-`)."""
    groups: set[int] = set()
    for line in lines:
        change = groups.add if line.startswith("+") else groups.discard
        change(int(line[1:]))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    hold(sys.stdin)
