"""The Merkle tree over an org's log (RFC 6962, section 2.1), kept so that it can go on growing: O(log n) hashes.

The data of leaf n is the 32-byte hash of entry n. That hash covers the entry's body and, through the chain, its org,
its place and all before it, so a leaf says as much as the whole line would; and the tree can be grown, and one entry
shown to be in it, without a byte of any body. A leaf is SHA-256(0x00 + data), a node SHA-256(0x01 + left + right).
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256

EMPTY = sha256(b"").digest()


class Frontier:
    """A tree of `size` leaves, as the roots of its whole subtrees: one for each bit of its size, the largest first."""

    def __init__(self, size: int = 0, nodes: Sequence[bytes] = ()) -> None:
        """Raises ValueError for other than one node of 32 bytes for each bit."""
        levels = [level for level in reversed(range(size.bit_length())) if size >> level & 1]
        if size < 0 or len(levels) != len(nodes) or any(len(node) != 32 for node in nodes):
            raise ValueError("that is no frontier of a tree of this size")
        self.size = size
        self._nodes = dict(zip(levels, nodes, strict=True))

    @property
    def nodes(self) -> tuple[bytes, ...]:
        """What a tree of the same size is made of again."""
        return tuple(self._nodes[level] for level in sorted(self._nodes, reverse=True))

    def extend(self, entries: Iterable[bytes]) -> None:
        """Add the leaves of these entries' hashes: level by level, for many at once cost little more than hashing."""
        row = [sha256(b"\0" + entry).digest() for entry in entries]
        self.size += len(row)
        level = 0
        while row:
            left = self._nodes.pop(level, None)
            if left is not None:
                row.insert(0, left)
            if len(row) & 1:
                self._nodes[level] = row.pop()
            pairs = iter(row)
            row = [sha256(b"\1" + one + other).digest() for one, other in zip(pairs, pairs, strict=True)]
            level += 1

    def root(self) -> bytes:
        """The Merkle tree hash of all leaves."""
        levels = sorted(self._nodes)
        if not levels:
            return EMPTY
        root = self._nodes[levels[0]]
        for level in levels[1:]:
            root = sha256(b"\1" + self._nodes[level] + root).digest()
        return root
