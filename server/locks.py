"""Who may use an installation at the same time: any number of servers and backups, or one restore.

A lock of the operating system on a file: it ends with the process that holds it, however that ends. On Windows there is
none, and nothing is refused.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from server.database import DatabaseProblem

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def shared(path: Path) -> Generator[None]:
    """Hold the installation against a restore while the block runs. Raises DatabaseProblem where one is at work."""
    with _held(path, exclusive=False) as alone:
        if not alone:
            raise DatabaseProblem("A restore is at work on this installation. Let it end, then try again.")
        yield


@contextmanager
def exclusive(path: Path) -> Generator[None]:
    """Have the installation alone while the block runs. Raises DatabaseProblem that says which server to stop."""
    with _held(path, exclusive=True) as alone:
        if not alone:
            pids = _holders(path)
            which = f" (process {', '.join(map(str, pids))})" if pids else ""
            raise DatabaseProblem(
                f"This installation is being served{which}. Stop that first: the service, or the MCP client that "
                "started `keyleash serve --agent`. Nothing was changed."
            )
        yield


@contextmanager
def waiting(path: Path) -> Generator[None]:
    """Be the only one for the length of the block; waits for whoever is, and nobody holds it for long."""
    with _held(path, exclusive=True, wait=True):
        yield


@contextmanager
def alone(path: Path) -> Generator[bool]:
    """Whether nobody else holds this file; while the block runs, nobody else does."""
    with _held(path, exclusive=True) as first:
        yield first


@contextmanager
def _held(path: Path, *, exclusive: bool, wait: bool = False) -> Generator[bool]:
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DatabaseProblem(f"{path} cannot be opened: {error.strerror}. Look at its folder's owner.") from None
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _holders(path: Path) -> list[int]:
    """The processes that hold a lock on this file, where the system says so (Linux)."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        status = path.stat()
    except OSError:
        return []
    where = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    fields = (line.split() for line in lines)
    held = (found for found in fields if len(found) > 5 and found[1] == "FLOCK" and found[5] == where)
    return sorted({int(found[4]) for found in held} - {os.getpid()})
