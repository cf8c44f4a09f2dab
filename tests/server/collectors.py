"""A syslog receiver on loopback, over UDP, TCP or TLS, that can go away and come back."""

import contextlib
import ipaddress
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from syslogcef.parsers import parse_rfc5424

PATIENCE_S = 30.0


class Collector:
    """Reads messages until it is stopped; `seqs` are the entries' numbers, in the order in which they came."""

    def __init__(self, kind: str, port: int = 0, certificate: Path | None = None) -> None:
        self.messages: list[bytes] = []
        self._kind, self._certificate = kind, certificate
        self._changed = threading.Condition()
        self._lines: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        if kind != "udp":
            self._socket.listen()
        self._thread = threading.Thread(target=self._datagrams if kind == "udp" else self._accept, daemon=True)
        self._thread.start()

    @property
    def seqs(self) -> list[int]:
        return [int(self.data(message)["seq"]) for message in self.messages]

    @staticmethod
    def data(message: bytes) -> dict[str, Any]:
        read = parse_rfc5424(message.decode())
        assert read is not None
        return {name.partition("32473.")[2]: value for name, value in read.sd.items()}

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, PATIENCE_S)

    def stop(self) -> None:
        """End everything at once, as a process that dies does."""
        for line in (*self._lines, self._socket):
            with contextlib.suppress(OSError):  # over UDP there is no connection to end; the thread wakes all the same
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self._thread.join(PATIENCE_S)

    def __enter__(self) -> "Collector":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _took(self, message: bytes) -> None:
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()

    def _datagrams(self) -> None:
        while True:
            try:
                message = self._socket.recv(65_536)
            except OSError:
                return
            if not message:
                return
            self._took(message)

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            try:
                if self._certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(self._certificate)
                    line = context.wrap_socket(line, server_side=True)
            except OSError:
                line.close()
                continue
            self._lines.append(line)
            threading.Thread(target=self._read, args=(line,), daemon=True).start()

    def _read(self, line: socket.socket) -> None:
        """Messages by their length in octets, as RFC 6587 counts them."""
        try:
            with line.makefile("rb") as file:
                while True:
                    length = b""
                    while not length.endswith(b" "):
                        byte = file.read(1)
                        if not byte:
                            return
                        length += byte
                    message = file.read(int(length))
                    if len(message) < int(length):
                        return
                    self._took(message)
        except OSError:
            return


def certificate_in(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one file, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "collector")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "collector.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path
