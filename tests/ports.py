"""Ports of loopback that the system gives to nobody else while this process lasts.

A port that was only found free may be another's before the process it is meant for has started. Here a socket stays
bound to it and does not listen: whoever asks for it by number, as servers do, gets it, and until then it is refused.
"""

import socket

_HELD: list[socket.socket] = []


def free_port() -> int:
    """A new one."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _HELD.append(held)
    return int(held.getsockname()[1])
