"""Checkpoints as others read them: C2SP tlog-checkpoint, which is a C2SP signed note with an Ed25519 signature.

The text of a note is the origin (``keyleash/`` and the org's id), the size of the tree, its root in base64, and two
extension lines::

    head <hash of the last entry, 64 hex digits>
    time <when it was made, 2026-01-31T08:05:09.123Z>

A *stub* is a checkpoint that stands in the log in the place of entries that were pruned. It has four lines more, so
that the chain and the tree go on from it: ``frontier`` (the roots of the whole subtrees in base64, the largest first),
``pruned FROM-TO``, ``bytes N`` (of the bodies that are gone) and ``by`` (a JSON string).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from server.audit.entry import AuditError, Head
from server.audit.tree import Frontier

ED25519 = b"\x01"
MAX_NOTES = 64 * 1024 * 1024
MAX_SIGNATURES = 16


class NoteProblem(AuditError):
    """What should be a checkpoint, or a verifier key, is none, or is not signed as it has to be."""


class Signs(Protocol):
    """A private key: `vault.signing.SigningKey`."""

    @property
    def public(self) -> bytes: ...

    def sign(self, text: bytes) -> bytes: ...


@dataclass(frozen=True)
class VerifierKey:
    """A public key and its name, as people hand it on: ``name+keyid+base64``."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """The four bytes that its signatures begin with."""
        return hashlib.sha256(self.name.encode() + b"\n" + ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(ED25519 + self.public)}"

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """What `str` wrote. Raises NoteProblem."""
        found = re.fullmatch(r"([^\s+\ud800-\udfff]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)", text.strip())
        raw = _decoded(found[3]) if found else b""
        if found is None or len(raw) != 33 or raw[:1] != ED25519:
            raise NoteProblem("That is no verifier key. It reads NAME+KEYID+BASE64, as `keyleash audit key` prints it.")
        key = cls(found[1], raw[1:])
        if key.id.hex() != found[2]:
            raise NoteProblem("This verifier key was altered: its parts do not fit each other. Copy it again.")
        return key


@dataclass(frozen=True)
class Checkpoint:
    """A log's size and root as a note says them; `require` says whether it was signed."""

    origin: str
    size: int
    root: bytes
    extensions: dict[str, str]
    text: str
    """what is signed"""
    signatures: tuple[tuple[str, bytes], ...]
    """name and, after four bytes of the key's id, the signature"""

    @property
    def org(self) -> str:
        """The org whose log it is of."""
        return self.origin.split("/")[1] if self.origin.startswith(ORIGIN) else ""

    @property
    def head(self) -> Head | None:
        """Where the chain ended; None where it does not say."""
        own = self.extensions.get("head", "")
        return Head(self.size, own) if self.size and re.fullmatch(r"[0-9a-f]{64}", own) else None

    @property
    def at(self) -> str:
        return self.extensions.get("time", "")

    @property
    def signer(self) -> str:
        """The name and id of the keys that it says it was signed by."""
        return " and ".join(f"{name}+{raw[:4].hex()}" for name, raw in self.signatures)

    @cached_property
    def frontier(self) -> Frontier:
        """The tree of a stub. Raises NoteProblem where it has none, or another one than its root says."""
        try:
            tree = Frontier(self.size, [_decoded(node) for node in self.extensions.get("frontier", "").split()])
        except ValueError:
            raise NoteProblem("its tree cannot be read") from None
        if tree.root() != self.root:
            raise NoteProblem("its tree is not the one that its root says")
        return tree

    def __str__(self) -> str:
        lines = "".join(f"— {name} {_base64(raw)}\n" for name, raw in self.signatures)
        return f"{self.text}\n{lines}"

    def require(self, key: VerifierKey) -> None:
        """Raises NoteProblem unless this key signed it, for the log that bears the key's name."""
        from vault.signing import NotSigned, require_signed

        mine = [raw[4:] for name, raw in self.signatures if name == key.name and raw[:4] == key.id]
        if self.origin != key.name or not mine:
            raise NoteProblem(f"it is of {self.origin}, signed by {self.signer}, and not by {key.name}+{key.id.hex()}")
        try:
            for signature in mine:
                require_signed(key.public, self.text.encode(), signature)
        except NotSigned:
            raise NoteProblem(f"it bears the name of {key.name}+{key.id.hex()} and was altered, or forged") from None


ORIGIN = "keyleash/"


def origin_of(org: str) -> str:
    """The name of an org's log, and of the key that signs for it."""
    return f"{ORIGIN}{org}"


def signed(origin: str, tree: Frontier, key: Signs, extensions: dict[str, str]) -> Checkpoint:
    """A checkpoint of this tree."""
    lines = [origin, str(tree.size), _base64(tree.root()), *(f"{name} {said}" for name, said in extensions.items())]
    text = "".join(f"{line}\n" for line in lines)
    raw = VerifierKey(origin, key.public).id + key.sign(text.encode())
    return Checkpoint(origin, tree.size, tree.root(), extensions, text, ((origin, raw),))


def as_line(nodes: tuple[bytes, ...]) -> str:
    """A frontier as an extension line holds it."""
    return " ".join(map(_base64, nodes))


def read_notes(raw: bytes) -> list[Checkpoint]:
    """Every checkpoint in a file, which may hold several one after another. Raises NoteProblem."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    found = list(_notes(text))
    if not found:
        raise NoteProblem("There is no checkpoint in it.")
    return found


def notes_in(path: Path) -> list[Checkpoint]:
    """Every checkpoint in a file, or in a pipe. Raises NoteProblem, also for more than is held at once; OSError."""
    with path.open("rb") as file:
        raw = file.read(MAX_NOTES + 1)
    if len(raw) > MAX_NOTES:
        raise NoteProblem(
            f"It is larger than {MAX_NOTES >> 20} MiB, and none of it was left out unseen. Give its newest part alone: "
            f"a checkpoint has eight lines, so `tail -n 80000 {path.name} > newest.txt` keeps ten thousand."
        )
    return read_notes(raw)


def read_note(raw: bytes) -> Checkpoint:
    """The one checkpoint that this is. Raises NoteProblem."""
    found = read_notes(raw)
    if len(found) != 1 or str(found[0]).encode() != raw:
        raise NoteProblem("That is not one checkpoint and nothing else.")
    return found[0]


def _notes(text: str) -> Iterator[Checkpoint]:
    """A note is a text without an empty line, an empty line, and signatures; empty lines may stand between notes."""
    if re.search(r"[\x00-\x09\x0b-\x1f]", text) or (text and not text.endswith("\n")):
        raise NoteProblem("It is cut off, or holds what no checkpoint does.")
    lines = text.split("\n")[:-1]
    place = 0
    while place < len(lines):
        if not lines[place]:
            place += 1
            continue
        blank = next((at for at in range(place, len(lines)) if not lines[at]), len(lines))
        last = blank + 1
        while last < len(lines) and lines[last].startswith("— "):
            last += 1
        yield _note(lines[place:blank], lines[blank + 1 : last])
        place = last


def _note(body: list[str], signatures: list[str]) -> Checkpoint:
    size = re.fullmatch(r"0|[1-9][0-9]{0,17}", body[1]) if len(body) >= 3 else None
    root = _decoded(body[2]) if size else b""
    if size is None or len(root) != 32 or not 0 < len(signatures) <= MAX_SIGNATURES:
        raise NoteProblem("It is no checkpoint: an origin, a size, a root of 32 bytes, an empty line and signatures.")
    named: list[tuple[str, bytes]] = []
    for line in signatures:
        name, _, encoded = line.removeprefix("— ").partition(" ")
        raw = _decoded(encoded)
        if not name or "+" in name or len(raw) <= 4:
            raise NoteProblem("One of its signatures cannot be read.")
        named.append((name, raw))
    parts = [line.partition(" ") for line in body[3:]]
    text = "".join(f"{line}\n" for line in body)
    return Checkpoint(body[0], int(size[0]), root, {name: said for name, _, said in parts}, text, tuple(named))


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: str) -> bytes:
    """Nothing for what is no base64, or is another spelling of some."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if _base64(raw) == text else b""
