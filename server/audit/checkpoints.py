"""Signed checkpoints of each log, kept outside the database: none is smaller than the last one, or of another log.

`KEYLEASH_HOME/checkpoints/ORG/` holds `latest.txt` (the newest checkpoint), `history.txt` (every one, only added to),
`key.txt` (the verifier key) and `frontier.json`. That one only saves work: it is used where its root is the one that
was signed, and otherwise the tree is computed anew from the log. Before anything is signed each entry since the last
checkpoint is hashed anew, and the first of them must follow the entry at which the last checkpoint ended.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from server.audit.entry import AuditError, Head, entry_hash, log_hash
from server.audit.note import Checkpoint, NoteProblem, Signs, VerifierKey, as_line, read_note, signed
from server.audit.proof import stub_in
from server.audit.reading import Reader, rows
from server.audit.tree import Frontier
from server.clock import iso, now_ms
from vault.newfile import replace_private

BATCH = 1000
_ORG = re.compile(r"[A-Za-z0-9_-]{1,100}")


class NotedProblem(AuditError):
    """What is kept outside cannot be read or written, or the database is behind it; the message says what to do."""


class Refused(NotedProblem):
    """No checkpoint is made of this log: it is not the one that was signed before, or does not verify."""


class Broken(Refused):
    """An entry that is newer than the last checkpoint does not verify."""


@dataclass(frozen=True)
class Signer:
    """The key of one log, and the log's name."""

    origin: str
    key: Signs

    @property
    def verifier(self) -> VerifierKey:
        return VerifierKey(self.origin, self.key.public)


@dataclass
class Grown:
    """A log as far as it was looked through: its tree, and its last entry."""

    tree: Frontier
    head: Head


def begun(org: str, stub: Checkpoint | None) -> Grown:
    """Before a log's first entry; or after the last one that was pruned."""
    if stub is None or stub.head is None:
        return Grown(Frontier(), Head(0, log_hash(org)))
    return Grown(Frontier(stub.size, stub.frontier.nodes), stub.head)


def grow(db: Reader, org: str, log: Grown, *, to: int | None = None) -> None:
    """Go on through the log, hashing every entry anew. Raises Broken at the first that does not verify."""
    where = [("seq > ?", log.head.seq), *([("seq <= ?", to)] if to is not None else [])]
    leaves: list[bytes] = []
    for seq, _, _, body, previous, own, *_ in rows(db, org, where=where, page=BATCH):
        last = log.head
        whole = seq == last.seq + 1 and previous == last.hash and isinstance(body, str)
        found = entry_hash(bytes.fromhex(last.hash), body.encode("utf-8", "surrogatepass")) if whole else b""
        if found.hex() != own:
            raise Broken(
                f"Entry {last.seq + 1} of the log of {org} is not the one that was written there, so no checkpoint is "
                "made of it. Run `keyleash audit verify`, and find out who can write to the database."
            )
        leaves.append(found)
        log.head = Head(seq, own)
        if len(leaves) == BATCH:
            log.tree.extend(leaves)
            leaves.clear()
    log.tree.extend(leaves)


def statement(log: Grown, signer: Signer, **more: str) -> Checkpoint:
    """What is signed of a log as it is now."""
    extensions = {"head": log.head.hash, "time": iso(now_ms()), **more}
    return signed(signer.origin, log.tree, signer.key, extensions)


def stub_of(log: Grown, signer: Signer, *, first: int, size: int, by: str) -> Checkpoint:
    """What is to stand in the place of the entries up to here; `size` is how many bytes of bodies go."""
    frontier, said = as_line(log.tree.nodes), json.dumps(by)
    return statement(log, signer, frontier=frontier, pruned=f"{first}-{log.head.seq}", bytes=str(size), by=said)


class Checkpoints:
    """The checkpoints of one home. Who makes some has the home's lock meanwhile (`server.audit.noted`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def orgs(self) -> Iterator[str]:
        """The orgs of which there is a checkpoint."""
        if self.folder.is_dir():
            yield from (path.name for path in sorted(self.folder.iterdir()) if (path / "latest.txt").is_file())

    def heads(self) -> dict[str, Head]:
        """Where each log ended when its last checkpoint was made. Raises NotedProblem."""
        found = {org: note.head for org in self.orgs() if (note := self.latest(org)) is not None}
        return {org: head for org, head in found.items() if head is not None}

    def latest(self, org: str) -> Checkpoint | None:
        """The newest checkpoint, signed by the key beside it; None where there is none. Raises NotedProblem."""
        path = self.folder / org / "latest.txt"
        try:
            note = read_note(path.read_bytes())
            key = self.key(org)
            if key is None:
                raise NoteProblem("the key beside it is gone")
            note.require(key)
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, NoteProblem) as problem:
            raise self._unreadable(path, str(problem)) from None
        if note.org != org or (note.size and note.head is None):
            raise self._unreadable(path, "it is of another log")
        return note

    def make(self, db: Reader, org: str, signer: Signer, *, whole: bool = False) -> tuple[Checkpoint, bool]:
        """The checkpoint of the log as it is now, kept; and whether it is a new one.

        `whole`: compute the tree anew from the log's beginning, which the last checkpoint has to be part of. Raises
        Refused, and NotedProblem where it cannot be kept.
        """
        if not _ORG.fullmatch(org):
            raise Refused("That is no org's id. No checkpoint is made of its log.")
        log, last = self.look(db, org, signer.key.public, whole=whole)
        if last is not None and log.head.seq == last.size and last.origin == signer.origin:
            return last, False
        note = statement(log, signer)
        self.keep(org, note, signer.verifier, log.tree)
        return note, True

    def look(self, db: Reader, org: str, public: bytes, *, whole: bool = False) -> tuple[Grown, Checkpoint | None]:
        """The log as it is now, which goes on from the last checkpoint; and that one. Raises Refused, NotedProblem."""
        last, stub = self.latest(org), self._stub(db, org, public)
        if last is not None:
            _require_by(last, public)
        if last is not None and stub is not None and last.size < stub.size:
            last = None  # pruned elsewhere meanwhile: nothing can be compared any more
        log = self._begun(org, last, stub, whole=whole)
        if last is not None:
            grow(db, org, log, to=last.size)
            self._require_same(db, org, log, last)
        grow(db, org, log)
        return log, last

    def key(self, org: str) -> VerifierKey | None:
        """The public key beside the checkpoints of a log. Raises NotedProblem."""
        path = self.folder / org / "key.txt"
        try:
            return VerifierKey.parse(path.read_text("utf-8")) if path.exists() else None
        except (OSError, UnicodeDecodeError, NoteProblem) as problem:
            raise self._unreadable(path, str(problem)) from None

    def keep(self, org: str, note: Checkpoint, key: VerifierKey, tree: Frontier | None = None) -> None:
        """Keep a checkpoint: in the history first, last under its name. Raises NotedProblem."""
        folder = self.folder / org
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(folder / "history.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as history:  # noqa: PTH123
                history.write(f"{note}\n".encode())
                history.flush()
                os.fsync(history.fileno())
            if not (folder / "key.txt").exists() or (folder / "key.txt").read_bytes() != f"{key}\n".encode():
                replace_private(folder / "key.txt", f"{key}\n")
            if tree is not None:
                nodes = [node.hex() for node in tree.nodes]
                replace_private(folder / "frontier.json", json.dumps({"size": tree.size, "nodes": nodes}))
            replace_private(folder / "latest.txt", str(note))
        except OSError as error:
            raise NotedProblem(f"{folder} cannot be written: {error.strerror}. Look at its owner and disk.") from None

    def set_aside(self, org: str) -> None:
        """Go on without the last checkpoint of a log that was rolled back: it stays in the history."""
        for name in ("latest.txt", "frontier.json"):
            (self.folder / org / name).unlink(missing_ok=True)

    def _begun(self, org: str, last: Checkpoint | None, stub: Checkpoint | None, *, whole: bool) -> Grown:
        tree = None if whole or last is None else self._frontier(org, last)
        if tree is None or last is None or last.head is None:
            return begun(org, stub)
        return Grown(tree, last.head)

    def _frontier(self, org: str, last: Checkpoint) -> Frontier | None:
        try:
            kept = cast("dict[str, Any]", json.loads((self.folder / org / "frontier.json").read_bytes()))
            tree = Frontier(int(kept["size"]), [bytes.fromhex(node) for node in kept["nodes"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return tree if (tree.size, tree.root()) == (last.size, last.root) else None

    def _stub(self, db: Reader, org: str, public: bytes) -> Checkpoint | None:
        try:
            stub = stub_in(db, org)
            if stub is not None:
                stub.require(VerifierKey(stub.origin, public))
                stub.frontier  # noqa: B018 - raises where it does not fit the root
        except NoteProblem as problem:
            raise Refused(f"What stands in the log of {org} for pruned entries is not ours: {problem}.") from None
        return stub

    def _require_same(self, db: Reader, org: str, log: Grown, last: Checkpoint) -> None:
        """The log up to the last checkpoint is the one that was signed. Raises Refused."""
        end = next(rows(db, org, where=[("seq = ?", last.size)], page=1), None)
        stub = stub_in(db, org)
        there = last.head if stub is not None and stub.size == last.size else None
        if end is not None:
            there = Head(last.size, str(end[5]))
        if log.head != last.head or log.tree.root() != last.root or (last.size and there != last.head):
            raise Refused(
                f"The log of {org} is not the one of which a checkpoint was signed at entry {last.size} ({last.at}): "
                "it was cut off, or written anew. No checkpoint is made of it. Run `keyleash audit verify` with "
                f"`--checkpoint {self.folder / org / 'latest.txt'}`, and find out who can write to the database."
            )

    def _unreadable(self, path: Path, why: str) -> NotedProblem:
        return NotedProblem(
            f"{path} cannot be read, or is not what Keyleash wrote ({why.rstrip('.')}): it cannot tell whether an "
            "older database was put back. Find out why; history.txt beside it has the checkpoints before. Then remove "
            "that file, and the next server makes one anew."
        )


def _require_by(last: Checkpoint, public: bytes) -> None:
    try:
        last.require(VerifierKey(last.origin, public))
    except NoteProblem as problem:
        raise Refused(f"The kept checkpoint of {last.origin} is not by the log's own key: {problem}.") from None
