"""Keep a conversation with a wrapped server open between calls, in a task of its own.

One call at a time. Whatever goes wrong in one ends the conversation: none is gone on with of which it is not known how
it stands.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from connectors.errors import ConnectorError, Unreachable

if TYPE_CHECKING:
    from connectors.upstream import Upstream  # at run time it would load the protocol

log = logging.getLogger("keyleash")

R = TypeVar("R")


@dataclass(eq=False)
class _Job(Generic[R]):
    """What one caller wants done, and what came of it."""

    run: "Callable[[Upstream], Awaitable[R]]"
    done: anyio.Event = field(default_factory=anyio.Event)
    came: list[R] = field(default_factory=list[R])
    failed: ConnectorError | None = None


class Lasting:
    """A conversation that is begun with its first call, and goes on until it is ended or something goes wrong."""

    def __init__(self, title: str, opening: "Callable[[], AbstractAsyncContextManager[Upstream]]") -> None:
        self._title, self._opening = title, opening
        self._job: _Job[object] | None = None
        self._wake = anyio.Event()
        self._ending = False
        self._upstream: Upstream | None = None
        self._scope = anyio.CancelScope()
        self._task: asyncio.Task[None] | None = None
        self.ended = anyio.Event()
        """Set once nothing is left of it: no process, no connection."""

    @property
    def alive(self) -> bool:
        """Whether a call can be made in it, as far as is known; one that is just being begun counts."""
        if self._ending or self.ended.is_set():
            return False
        return self._upstream is None or self._upstream.alive

    @property
    def busy(self) -> bool:
        """Whether a call is under way in it."""
        return self._job is not None

    def begin(self) -> None:
        """Have it live, once; nothing is opened before a call wants it."""
        # An empty context: whose call happened to begin it is nothing that the calls after it should see.
        self._task = asyncio.get_running_loop().create_task(self._live(), context=contextvars.Context())

    async def call(self, run: "Callable[[Upstream], Awaitable[R]]") -> R:
        """What `run` comes to in this conversation. Raises a ConnectorError; the conversation is over then."""
        if not self.alive or self.busy:
            raise Unreachable(f"{self._title} takes no call in this conversation.", maybe_sent=False)
        job: _Job[R] = _Job(run)
        self._job = job  # pyright: ignore[reportAttributeAccessIssue] - what comes of it is given back to this caller alone
        self._wake.set()
        try:
            await job.done.wait()
        except BaseException:
            self.cut()
            raise
        if job.failed is not None:
            raise job.failed
        return job.came[0]

    def end(self) -> None:
        """End it once no call is under way in it."""
        self._ending = True
        self._wake.set()

    def cut(self) -> None:
        """End it now, whatever is under way."""
        self._ending = True
        self._scope.cancel()

    async def _live(self) -> None:
        failed: ConnectorError | None = None
        try:
            with self._scope:
                await self._next()
                if self._job is not None:
                    await self._talk()
        except ConnectorError as error:
            failed = error
        except Exception as error:
            log.error("a conversation with %s failed inside Keyleash: %s", self._title, type(error).__name__)
        finally:
            self._ending, job = True, self._job
            if job is not None:
                job.failed = failed or Unreachable(f"The conversation with {self._title} was ended.")
                self._over(job)
            self.ended.set()

    async def _talk(self) -> None:
        async with self._opening() as upstream:
            self._upstream = upstream
            while (job := self._job) is not None:
                if not upstream.alive:
                    raise Unreachable(f"{self._title} has ended.", maybe_sent=False)
                job.came.append(await job.run(upstream))
                self._over(job)
                del job  # what came of it is its caller's alone, and not to be kept until the next one
                await self._next()

    def _over(self, job: _Job[object]) -> None:
        self._job = None
        job.done.set()

    async def _next(self) -> None:
        """Return once there is a next call, or is to be none."""
        while self._job is None and not self._ending:
            await self._wake.wait()
            self._wake = anyio.Event()
