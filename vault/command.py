"""Run a program of the operator's and take what it prints: it inherits nothing, and it ends in time.

No shell, a fixed environment, `/` as its folder, no input; what it says beside its output goes nowhere. It gets a
session of its own, all of which is killed at the time limit; only what it starts in yet another session is not found.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from vault.errors import CannotResolve

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
if sys.platform == "darwin":
    SYSTEM_PATH += ":/opt/homebrew/bin"


def printed(
    words: Sequence[str], *, what: str, most: int, seconds: float, path: str, more: Mapping[str, str] | None = None
) -> bytes:
    """What the program printed: at most `most` bytes, and one more where there were more.

    `what` begins the messages, `path` is where programs are looked for, and `more` is all of the environment besides
    that, HOME and LANG. Raises CannotResolve also where it failed, or did not end within `seconds`.
    """
    if sys.platform == "win32":
        raise CannotResolve(f"{what} is not run on Windows. Keep the secret elsewhere.")
    deadline = time.monotonic() + seconds
    try:
        running = subprocess.Popen(  # noqa: S603 - the operator's own program, without a shell
            words,
            env={"PATH": path, "HOME": _home(), "LANG": "C.UTF-8", **(more or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its name or an argument cannot be one"
        raise CannotResolve(f"{what} cannot be run: {why}. Only {path} is searched; else give its full path.") from None
    try:
        output = _output(running, most, deadline)
        code = 0 if len(output) > most else running.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise CannotResolve(f"{what} did not end within {seconds:g} seconds, and was stopped.") from None
    finally:
        _end(running)
    if code != 0:
        raise CannotResolve(f"{what} failed with exit code {code}. Run it by hand as the server's user to see why.")
    return output


def _output(running: "subprocess.Popen[bytes]", most: int, deadline: float) -> bytes:
    """Raises TimeoutError, also where the program has ended and something that it started still holds its output."""
    assert running.stdout is not None  # noqa: S101 - it was asked for
    output = b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(running.stdout, selectors.EVENT_READ)
        while len(output) <= most:
            if not waiting.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(running.stdout.fileno(), most + 1 - len(output))
            if not piece:
                break
            output += piece
    return output


def _end(running: "subprocess.Popen[bytes]") -> None:
    """End the program with its group, unless it has ended by itself; its number is nobody else's until then."""
    if running.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of it but its number
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    if running.stdout is not None:
        running.stdout.close()


def _home() -> str:
    """The user's folder as the system has it, whatever HOME says here."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"
