"""Start a server as a process of its own, talk to it line by line, and leave nothing of it behind.

It inherits no environment and no folder: PATH, a language, a fresh empty folder as HOME, TMPDIR and working directory,
and the variables that it is given. No shell. It has a session of its own, all of which is killed at the end; only what
it starts in yet another session is not found.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import anyio
from anyio.abc import ByteReceiveStream, Process

from connectors.bounded import Limits, check_json
from connectors.errors import ConnectorError, ResponseTooLarge, Unreachable
from connectors.lifeline import Lifeline

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
GRACE_S = 1.0
"""How long a server may take to end by itself once its input is closed."""
MOST_SAID = 16_000
"""The last bytes of what it says on its error stream that are kept."""


class Started:
    """A running server. `said` is the end of its error stream, which may hold anything, its secret included."""

    def __init__(self, process: Process, name: str, limits: Limits) -> None:
        self._process, self._name, self._limits = process, name, limits
        self._said: deque[int] = deque(maxlen=MOST_SAID)
        self.bytes_in = 0

    @property
    def said(self) -> str:
        return bytes(self._said).decode("utf-8", "replace")

    @property
    def said_more(self) -> bool:
        """Whether what it said began earlier than what is kept of it."""
        return len(self._said) == MOST_SAID

    @property
    def running(self) -> bool:
        """Whether its end has not been noticed."""
        return self._process.returncode is None

    async def send(self, line: bytes) -> None:
        """Write one line; raises Unreachable where it reads no more."""
        if self._process.stdin is None:
            raise AssertionError("a server is started with pipes")
        failed = False
        try:
            await self._process.stdin.send(line + b"\n")
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            failed = True
        if failed:
            raise Unreachable(f"{self._name} reads no more: it has ended, or is about to.")

    async def lines(self) -> AsyncGenerator[bytes]:
        """What it writes, line by line, until it ends. Raises ResponseTooLarge for more than is taken in."""
        rest = bytearray()
        async for chunk in _chunks(self._process.stdout):
            self.bytes_in += len(chunk)
            rest += chunk
            if self.bytes_in > self._limits.max_body:
                raise ResponseTooLarge(
                    f"{self._name} sent more than {self._limits.max_body / 1048576:g} MiB. Ask for less."
                )
            if b"\n" not in chunk:
                continue
            *whole, left = bytes(rest).split(b"\n")
            rest = bytearray(left)
            for line in whole:
                if not line.strip():  # millions of them are a few megabytes
                    continue
                check_json(line, self._name, self._limits)
                yield line

    async def listen(self) -> None:
        """Keep the end of its error stream; without this, a server that says much would stand still."""
        async for chunk in _chunks(self._process.stderr):
            self._said.extend(chunk)


async def _chunks(stream: ByteReceiveStream | None) -> AsyncGenerator[bytes]:
    if stream is None:
        raise AssertionError("a server is started with pipes")
    with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for chunk in stream:
            yield chunk


@contextlib.asynccontextmanager
async def started(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    name: str,
    limits: Limits,
    lifeline: Lifeline | None = None,
) -> AsyncGenerator[Started]:
    """A server that runs until the block ends, with whatever it started; raises Unreachable where it cannot be run.

    `name` is what messages call it; none quotes the command or a variable. With a `lifeline` it ends as well where the
    process that holds that is killed.
    """
    if sys.platform == "win32":
        raise Unreachable(f"{name} is started as a process, which is not done on Windows.", maybe_sent=False)
    folder = await anyio.to_thread.run_sync(_folder)
    try:
        process = await _run(command, variables, folder, name)
        running = Started(process, name, limits)
        with contextlib.ExitStack() as held:
            try:
                if lifeline is not None:
                    held.enter_context(lifeline.over(process.pid))
                yield running
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_removed, folder)


def _folder() -> str:
    return tempfile.mkdtemp(prefix="keyleash-server-")


def _removed(folder: str) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # it is deeper than Python goes, and holds what the server has written
        subprocess.run(["rm", "-rf", "--", folder], env={"PATH": SYSTEM_PATH}, stderr=subprocess.DEVNULL, check=False)  # noqa: S603, S607 - this folder


async def _run(command: Sequence[str], variables: Mapping[str, str], folder: str, name: str) -> Process:
    failed: ConnectorError | None = None
    process: Process | None = None
    try:
        process = await anyio.open_process(
            list(command),
            env={
                "PATH": os.environ.get("PATH", SYSTEM_PATH),
                "HOME": folder,
                "TMPDIR": folder,
                "LANG": "C.UTF-8",
                **variables,
            },
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = _not_found(command[0]) if isinstance(error, FileNotFoundError) else "it cannot be run"
        failed = Unreachable(
            f"{name} was not started: {why}. Nothing was sent; the operator has to look at its command.",
            maybe_sent=False,
        )
    if failed is not None or process is None:
        raise failed or AssertionError("started, or failed")
    return process


def _not_found(program: str) -> str:
    """The PATH itself would tell a model of the host: whose it is has to do."""
    if "/" in program:
        return "there is no such program"
    return (
        "there is no such program on the PATH of the process that starts it, which is that of whatever started "
        "Keyleash (a client's is often shorter than a terminal's). Its whole path in the command does without"
    )


async def _end(process: Process) -> None:
    """Let it end by itself for a moment, then kill all of its group."""
    if process.stdin is not None:
        with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.aclose()
    await _ended(process)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left of the group
        os.killpg(process.pid, signal.SIGKILL)
    await _ended(process)
    with anyio.move_on_after(GRACE_S), contextlib.suppress(OSError, anyio.BrokenResourceError):
        await process.aclose()  # its pipes, which a child of another session may still hold


async def _ended(process: Process) -> None:
    """Wait for its end, not for that of its pipes, which a child of it may hold."""
    with anyio.move_on_after(GRACE_S):
        while process.returncode is None:  # noqa: ASYNC110 - what changes it is the loop's own watcher
            await anyio.sleep(0.005)


def program(command: Sequence[str]) -> str:
    """What a command is called in few words: the name of its program."""
    return Path(command[0]).name
