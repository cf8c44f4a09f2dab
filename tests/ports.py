"""Ports for what starts to listen a while after they were chosen, or listens there again.

The system gives none of them to whoever asks for any (Linux gives 32768 and above, others 49152 and above), nor to a
connection that leaves; and each process of a run of tests takes its own.
"""

import contextlib
import itertools
import os
import socket

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST, _OWN = 20_000 + _WORKER % 12 * 1_000, 1_000
_NUMBERS = itertools.count(os.getpid())


def free_port() -> int:
    """One on which nobody listens."""
    for number in itertools.islice(_NUMBERS, _OWN):
        port = _FIRST + number % _OWN
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"every port from {_FIRST} on is taken")
