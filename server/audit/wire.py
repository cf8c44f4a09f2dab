"""Send entries to the syslog receiver that the operator names: over UDP (RFC 5426), TCP (RFC 6587) or TLS (RFC 5425).

What a message holds is RFC 5424's structured data and the entry, or a CEF line, as receivers of CEF want it.

Syslog knows no acknowledgement. Over TCP and TLS, entries count as taken when the receiver's machine has acknowledged
their bytes, as far as this system can tell (Linux); and when a connection ends, the last batch goes again, because it
may have lain there unread. Over UDP nothing is known.
"""

import select
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from server.audit.entry import Entry
from server.audit.streaming import Away, StreamProblem, Taken
from server.audit.syslog import MESSAGES, datagram, framed

CONNECT_S = 10.0
SEND_S = 30.0
"""How long a batch may take until the receiver's machine has it."""


class Target(NamedTuple):
    """Where the receiver is. `kind` is udp, tcp or tls."""

    kind: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"


class Wire:
    """A connection to the receiver, made anew when it is gone."""

    def __init__(self, target: Target, authorities: Path | None = None, form: str = "syslog") -> None:
        self._target, self._message = target, MESSAGES[form]
        self._tls = trusting(authorities) if target.kind == "tls" else None
        self._socket: socket.socket | None = None

    def resume(self, mark: list[int]) -> None:
        del mark

    def mark(self) -> list[int]:
        return []

    def send(self, entries: Sequence[Entry]) -> Taken:
        connected = self._socket is not None
        try:
            line = self._connected()
            if self._target.kind == "udp":
                for entry in entries:
                    line.send(datagram(entry, self._message))
            else:
                line.sendall(b"".join(framed(entry, self._message) for entry in entries))
                _until_taken(line)
        except OSError as error:
            self.close()
            why = error.strerror or str(error) or type(error).__name__
            raise Away(f"the syslog receiver at {self._target} takes nothing: {why}", unsure=connected) from None
        return Taken(len(entries))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is not None and self._target.kind != "udp" and _ended(self._socket):
            raise ConnectionResetError(0, "it has ended the connection")
        if self._socket is None:
            self._socket = self._made()
        return self._socket

    def _made(self) -> socket.socket:
        kind, host, port = self._target
        if kind == "udp":
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
            line = socket.socket(family, socket.SOCK_DGRAM)
            line.connect(address)
            return line
        line = socket.create_connection((host, port), CONNECT_S)
        try:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if self._tls is not None:
                line = self._tls.wrap_socket(line, server_hostname=host)
            line.settimeout(SEND_S)
        except BaseException:
            line.close()
            raise
        return line


def trusting(authorities: Path | None) -> ssl.SSLContext:
    """Whose certificates are believed: the system's authorities, or those of this file. Raises StreamProblem."""
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise StreamProblem(f"{authorities} holds no certificates that can be read: {error.strerror}.") from None


def _ended(line: socket.socket, *, within_s: float = 0.0) -> bool:
    """Whether the other side has ended it; what it says is not listened to."""
    readable, _, _ = select.select([line], [], [], within_s)
    if not readable:
        return False
    line.settimeout(0)
    try:
        return line.recv(4096) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    finally:
        line.settimeout(SEND_S)


def _until_taken(line: socket.socket) -> None:
    """Wait until the other machine has acknowledged what was sent. Raises OSError where it does not in time."""
    until = time.monotonic() + SEND_S
    while _unacknowledged(line):
        if _ended(line, within_s=0.005):
            raise ConnectionResetError(0, "it has ended the connection")
        if time.monotonic() > until:
            raise TimeoutError(0, "it does not acknowledge what it is sent")
    failed = line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if failed or _ended(line):
        raise ConnectionResetError(failed, "it has ended the connection")


def _unacknowledged(line: socket.socket) -> int:
    """Bytes that were sent and not acknowledged; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    return int.from_bytes(fcntl.ioctl(line.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
