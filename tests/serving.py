"""A real HTTP server in this process: uvicorn on a free port of loopback."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from server.app import Installation, http_door, running
from server.http import AGENT_PATH

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients that speak with what `serving` serves: they trust nobody, and read no certificates for that."""


@asynccontextmanager
async def serving(installation: Installation, *, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """Serve the installation; yields the URL for agents."""
    with socket.create_server((host, 0)) as listening:
        # asyncio sees to this for sockets of its own making; without it each answer waits 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listening.getsockname()[1]
        async with running(installation) as parts:
            door = http_door(installation, parts, host=host)
            server = uvicorn.Server(uvicorn.Config(door, log_config=None, access_log=False, proxy_headers=False))  # type: ignore[arg-type]
            task = asyncio.create_task(server.serve(sockets=[listening]))
            while not server.started:  # noqa: ASYNC110 - uvicorn has a flag and no event
                await asyncio.sleep(0)
            try:
                yield f"http://127.0.0.1:{port}{AGENT_PATH}"
            finally:
                server.should_exit = True
                await task
