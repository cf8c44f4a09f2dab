"""Take in what an upstream sends without trusting its size, density or depth.

Everything here works piece by piece and stops at the first byte too many: a compressed bomb is never unpacked.
"""

import zlib
from dataclasses import dataclass
from typing import Protocol

from connectors.errors import ResponseTooLarge, Unreachable


@dataclass(frozen=True, slots=True)
class Limits:
    """What a call may take: seconds, bytes after decoding, decoded bytes per byte on the wire, levels of JSON."""

    connect_s: float = 10
    total_s: float = 30
    max_body: int = 10 * 1024 * 1024
    max_ratio: int = 100
    max_values: int = 50_000  # in JSON, about: each costs far more in memory than on the wire
    max_depth: int = 64


DEFAULT_LIMITS = Limits()


class _Stream(Protocol):
    """What `zlib.decompressobj` makes; zlib has no public name for it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class Inflate:
    """gzip (RFC 1952, several members too) or deflate (RFC 1950, or the bare RFC 1951 that some send).

    Raises Unreachable, naming the host, for an encoding that is neither and for a stream that cannot be decoded.
    """

    def __init__(self, encoding: str, host: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise Unreachable(f"{host} sent an answer in an encoding that was not asked for.")
        self._host = host
        self._gzip = encoding != "deflate"
        self._stream: _Stream | None = None

    def decode(self, chunk: bytes, most: int) -> bytes:
        """At most `most` decoded bytes, which must be 1 or more; getting that many means that there may be more."""
        out: list[bytes] = []
        try:
            while chunk and most > 0:
                if self._stream is None or self._stream.eof:
                    self._stream = self._next(chunk)
                piece = self._stream.decompress(chunk, most)
                out.append(piece)
                most -= len(piece)
                chunk = self._stream.unused_data
        except zlib.error:
            raise Unreachable(f"{self._host} sent an answer that cannot be decompressed.") from None
        return b"".join(out)

    def check_whole(self) -> None:
        """Raises Unreachable where the stream stopped before its end."""
        if self._stream is None or not self._stream.eof:
            raise Unreachable(f"{self._host} broke off in the middle of its answer.")

    def _next(self, chunk: bytes) -> _Stream:
        bare = not self._gzip and chunk[0] & 0x0F != 8
        return zlib.decompressobj(wbits=31 if self._gzip else -15 if bare else 15)


def check_json(body: bytes, host: str, limits: Limits) -> None:
    """Raises ResponseTooLarge, naming the host, for JSON of more values or levels than are taken in."""
    if body.count(b",") > limits.max_values and body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{"):
        raise ResponseTooLarge(f"{host} sent more than {limits.max_values} values. Ask for less: a smaller page.")
    if deeper_than(body, limits.max_depth):
        raise ResponseTooLarge(f"{host} sent JSON that is nested more than {limits.max_depth} deep.")


def deeper_than(body: bytes, depth: int) -> bool:
    """Whether JSON text nests deeper than this; decides before anything is parsed, and never recurses.

    Only brackets and quotes are kept. Two quotes side by side can go, since that moves nothing into or out of a string;
    what still stands in quotes is cut out. Then each pass removes the innermost brackets. What is not JSON may get
    either answer.
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    brackets = _brackets(body)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets


def level(before: bytes) -> int | None:
    """In how many objects and lists of a JSON text the place after `before` stands; None within a string."""
    if b"\\" in before:
        before = before.replace(rb"\\", b"").replace(rb"\"", b"")
    if before.count(b'"') % 2:
        return None
    brackets = _brackets(before)
    return brackets.count(b"[") - brackets.count(b"]")


def _brackets(body: bytes) -> bytes:
    """The brackets of a JSON text that stand in no string, all of them square."""
    if b"\\" in body:
        body = body.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = body.translate(_SQUARE, _THE_REST).replace(b'""', b"")
    return b"".join(brackets.split(b'"')[::2]) if b'"' in brackets else brackets


_SQUARE = bytes.maketrans(b"{}", b"[]")
_THE_REST = bytes(byte for byte in range(256) if byte not in b'[]{}"')
