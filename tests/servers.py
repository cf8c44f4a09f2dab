"""`keyleash serve --http` in processes of their own, over one database; each can be killed at a chosen point."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from server.http import AGENT_PATH
from tests.commandline import MAIN, CommandLine
from tests.installed import Place
from tests.ports import free_port

POINTS: dict[str, tuple[str, str]] = {
    "before the claim": ("server/approval/gate.py", "claim"),
    "claimed, and not durable": ("server/connections.py", "take_credential"),
    "claimed, and not sent": ("server/call.py", "_send"),
    "answered by the upstream, and not recorded": ("connectors/answer.py", "interpret"),
    "recorded, and not durable": ("server/approval/gate.py", "finish"),
    "recorded, and not told": ("server/protocol.py", "_result"),
}
"""Where a process can be made to kill itself: on entering this function of this file."""

ARMED = "from tests.servers import arm; arm(); " + MAIN
VARIABLE = "KEYLEASH_TEST_KILL"
PATIENCE_S = 60.0


def arm() -> None:
    """In the process to be killed: SIGKILL itself when it enters the function that it was told, for the n-th time."""
    for module in ("server.app", "server.http", "server.protocol", "uvicorn", "connectors.egress"):
        import_module(module)  # before it watches: that takes several times as long
    file, name, count = os.environ[VARIABLE].split(" ")
    left = int(count)
    suffix = str(Path(file))

    def entered(frame: object, event: str, _called: object) -> None:
        nonlocal left
        if event != "call":
            return
        code = frame.f_code  # type: ignore[attr-defined]
        if code.co_name == name and code.co_filename.endswith(suffix):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(entered)  # a database may do its work on threads
    sys.setprofile(entered)


@dataclass
class ServerProcess:
    """One replica; it listens at the same port whenever it is started again."""

    place: Place
    person: Path
    environ: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{AGENT_PATH}"

    async def start(self, kill_at: str | None = None, *, passing: int = 1) -> None:
        """Start it, and return when it listens or was killed; with `kill_at` it dies there, the `passing`-th time."""
        environment = environment_of(self.place, self.person) | self.environ
        program = MAIN
        if kill_at is not None:
            program = ARMED
            environment[VARIABLE] = " ".join([*POINTS[kill_at], str(passing)])
        self.process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time worth a thread
            [sys.executable, "-c", program, "serve", "--http", f"127.0.0.1:{self.port}"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        async with asyncio.timeout(PATIENCE_S):
            while not await self._listens():
                if self.process.poll() is not None:
                    if self.process.returncode == -signal.SIGKILL:
                        return  # others have called it, or killed it, before we saw it listen
                    assert self.process.stderr is not None
                    raise AssertionError(f"it ended with {self.process.returncode}: {self.process.stderr.read()!r}")
                await asyncio.sleep(0.02)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def ended(self) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait)

    def kill(self) -> bool:
        """SIGKILL; False where it had ended by itself before."""
        if self.process is None or self.process.poll() is not None:
            return False
        self.process.kill()
        return True

    def stop(self) -> None:
        """End it for good, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None


def environment_of(place: Place, person: Path) -> dict[str, str]:
    """The environment of another process over the same installation."""
    return CommandLine(place.home, person).environment
