"""Other processes: one that reads the database and lets go when it is told, and one that is killed in the middle."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0

_OTHER = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute(sys.argv[2])
other.execute("SELECT COUNT(*) FROM org").fetchall()
print("holds", flush=True)
sys.stdin.readline()
other.execute("ROLLBACK")
print("lets go", flush=True)
sys.stdin.readline()
"""


@contextmanager
def holding(database: Path, begin: str = "BEGIN") -> Iterator[Callable[[], None]]:
    """Another process inside a transaction; it ends that when what is yielded is called, and stays connected."""
    other = subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(database), begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    stdin, stdout = other.stdin, other.stdout

    def let_go() -> None:
        stdin.write("\n")
        stdin.flush()
        assert stdout.readline() == "lets go\n"

    try:
        assert stdout.readline() == "holds\n"
        yield let_go
    finally:
        other.kill()
        other.wait()
        stdin.close()
        stdout.close()


_FORKS = multiprocessing.get_context("forkserver")  # a fork of this process, with its threads, could hang


def killed_before(statement: int, act: Callable[..., Any], *arguments: Any) -> bool:
    """Run `act` in a process of its own; SIGKILL before its n-th SQL statement. False where it had fewer than that."""
    _FORKS.set_forkserver_preload([act.__module__])  # or every process would import it for itself
    process = _FORKS.Process(target=_until, args=(statement, act, arguments))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _until(statement: int, act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    left = statement

    def count(_frame: Any, event: str, called: Any) -> None:
        nonlocal left
        if event == "c_call" and getattr(called, "__name__", "") == "execute":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    act(*arguments)
