"""Run `keyleash` as a person or a script does: in this process for speed, or in another, with a terminal or without."""

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests import postgres

ROOT = Path(__file__).parent.parent
MAIN = "from server.cli import main; main()"
ON_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(int(sys.argv.pop(1)), termios.TIOCSCTTY, 0); " + MAIN
)
PATIENCE_S = 60.0
BUILT = cache(typer.main.get_command)
"""The commands are put together once: a process does so for each that it runs, and most of a test's time went there."""


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON; fails where it holds anything else."""
        return json.loads(self.out)


@dataclass
class CommandLine:
    """`keyleash` with this environment; `home` is KEYLEASH_HOME, `person` the home of the person at the terminal."""

    home: Path
    person: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        # No service of the desktop, no configuration and no identity of whoever runs the tests.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.person),
            "KEYLEASH_HOME": str(self.home),
            "KEYLEASH_HOLD_SECONDS": "0",
            "PYTHONPATH": str(ROOT),
            "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
            **postgres.environment(self.home),
            **self.environ,
        }

    def __call__(
        self, *arguments: str, stdin: bytes | None = None, cwd: Path | None = None, columns: int | None = None
    ) -> Ran:
        """Run in this process. Nothing may be asked here: a developer's own terminal would be.

        With `columns`, what is printed takes itself to be on a terminal so wide.
        """
        out, err = _captured(terminal=columns is not None), _captured(terminal=columns is not None)
        given = io.TextIOWrapper(io.BytesIO(stdin or b""), encoding="utf-8")
        code = 0
        environment = self.environment | ({} if columns is None else {"TERM": "xterm", "COLUMNS": str(columns)})
        with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd or self.person):
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["keyleash", *arguments])
            patch.setattr(typer.main, "get_command", BUILT)
            for name, stream in {"stdin": given, "stdout": out, "stderr": err}.items():
                patch.setattr(sys, name, stream)
            try:
                from server.cli import main

                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        return Ran(code, _text(out), _text(err))

    def alone(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """Run in a process of its own that has no terminal."""
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd=self.person,
            timeout=PATIENCE_S,
            start_new_session=True,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextlib.contextmanager
    def at_terminal(self, *arguments: str, columns: int = 200) -> Iterator["Terminal"]:
        """Run in a process of its own, at a terminal that the test types on; standard input is empty."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (50, columns))
        running = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, str(theirs), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**self.environment, "TERM": "xterm"},
            cwd=self.person,
            pass_fds=(theirs,),
        )
        os.close(theirs)
        terminal = Terminal(ours, running)
        try:
            yield terminal
        finally:
            running.kill()
            running.wait()
            os.close(ours)


@dataclass
class Terminal:
    """The other side of a terminal: `shown` is everything that has appeared on it."""

    descriptor: int
    running: "subprocess.Popen[bytes]"
    shown: str = ""
    seen: int = 0

    def type(self, keys: str) -> None:
        os.write(self.descriptor, keys.encode())

    def until(self, text: str) -> str:
        """Wait until `text` appears after what was waited for before; returns what came up to its end."""
        deadline = time.monotonic() + PATIENCE_S
        start = self.seen
        while text not in self.shown[start:]:
            if not self._more(deadline):
                raise AssertionError(f"{text!r} never appeared in {self.shown[start:]!r}")
        self.seen = self.shown.index(text, start) + len(text)
        return self.shown[start : self.seen]

    def glance(self, seconds: float) -> None:
        """Take in what appears within so many seconds."""
        self._more(time.monotonic() + seconds)

    def end(self) -> int:
        """Wait for the command to end; returns its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._more(deadline):
            pass
        return self.running.wait(PATIENCE_S)

    def leave(self) -> int:
        """Press q until it is heeded: with another key it is none. Returns the exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self.running.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # it has ended
                self.type("q")
            self.glance(0.2)
        return self.end()

    def _more(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            found = os.read(self.descriptor, 65536)
        except OSError:  # the other side has closed
            return False
        self.shown += found.decode(errors="replace")
        return bool(found)


def everything(*runs: Ran) -> str:
    """All that these commands have printed."""
    return "".join(ran.out + ran.err for ran in runs)


def with_environment(line: CommandLine, more: Mapping[str, str]) -> CommandLine:
    """The same with more variables."""
    return CommandLine(line.home, line.person, {**line.environ, **more})


class _Shown(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def _captured(*, terminal: bool = False) -> io.TextIOWrapper:
    return (_Shown if terminal else io.TextIOWrapper)(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
