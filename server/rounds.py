"""What a server does by itself, now and every so often, beside the calls that it answers."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable


@contextlib.asynccontextmanager
async def rounds(go: Callable[[], Awaitable[None]], *, every_s: float) -> AsyncGenerator[None]:
    """Go at once, and again `every_s` seconds after each end, while the block runs; what has begun then is finished.

    `go` says itself what stood in its way, and raises nothing.
    """
    stop = asyncio.Event()
    task = asyncio.create_task(_go_on(go, stop, every_s))
    try:
        yield
    finally:
        stop.set()  # and not cancelled: what has begun on a thread is over in a moment
        await task


async def _go_on(go: Callable[[], Awaitable[None]], stop: asyncio.Event, every_s: float) -> None:
    while not stop.is_set():
        await go()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_s)
