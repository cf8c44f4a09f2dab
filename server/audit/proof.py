"""What a log is held to besides itself: checkpoints from outside, the key that signs them, the stub of what was pruned.

Whose word the key is decides what a checkpoint proves. A *pinned* key was handed to the auditor some other way. One
that was taken from the database or the export is the word of whoever can write that, and the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from server.audit.entry import CannotRead
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, read_note
from server.audit.reading import Reader


@dataclass(frozen=True)
class Proofs:
    """What an auditor brings along: checkpoints that were kept elsewhere, and the log's pinned key."""

    checkpoints: tuple[Checkpoint, ...] = ()
    key: VerifierKey | None = None


NO_PROOFS = Proofs()


@dataclass(frozen=True)
class Trusted:
    """What of it is signed as it should be."""

    checkpoints: tuple[Checkpoint, ...] = ()
    stub: Checkpoint | None = None
    limits: tuple[str, ...] = ()
    """what cannot be excluded because of where the key is from, or of what was pruned"""

    @property
    def after(self) -> int:
        """The number of the last entry that was pruned; 0 where none was."""
        return self.stub.size if self.stub else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(one.size for one in self.checkpoints)


class Untrusted(Exception):
    """Something is not signed by the log's key. `pruned`: it is the stub."""

    def __init__(self, problem: str, *, pruned: bool = False) -> None:
        super().__init__(problem)
        self.pruned = pruned


def trusted(proofs: Proofs, org: str, own: VerifierKey | None, stub: Checkpoint | None, *, place: str) -> Trusted:
    """Hold checkpoints and stub to the pinned key, or to the log's `own`, found in `place`.

    Raises Untrusted, and NoteProblem where there is no key for this log.
    """
    if not proofs.checkpoints and stub is None:
        if proofs.key is not None:
            _require_of(org, proofs.key)
        return Trusted()
    key = proofs.key or own
    if key is None:
        raise NoteProblem(f"There is no key in {place} to check signatures with. Give the log's own with --key.")
    _require_of(org, key)
    if stub is not None:
        _require_stub(stub, org, key)
    for one in proofs.checkpoints:
        try:
            one.require(key)
        except NoteProblem as problem:
            raise Untrusted(f"The checkpoint of size {one.size} proves nothing about this log: {problem}.") from None
    limits = () if proofs.key else (_TAKEN.format(place=place, key=key),)
    return Trusted(proofs.checkpoints, stub, (*limits, *_pruned(proofs.checkpoints, stub)))


_TAKEN = (
    "that whoever can write {place} made this log and signed it with a key of their own: the key was taken from it "
    "({key}). Compare it with the one that you were handed, or give that with --key"
)


def _require_of(org: str, key: VerifierKey) -> None:
    if key.name.split("/")[:2] != ["keyleash", org]:
        raise NoteProblem(f"The key is that of {key.name}, and this is the log of {org}.")


def _require_stub(stub: Checkpoint, org: str, key: VerifierKey) -> None:
    """The same key has signed it, be it under the name that the log had then."""
    gone = f"The entries up to {stub.size} are gone, and what stands for them is not to be trusted"
    if stub.org != org or stub.head is None:
        raise Untrusted(f"{gone}: it is of another log.", pruned=True)
    try:
        stub.require(VerifierKey(stub.origin, key.public))
        stub.frontier  # noqa: B018 - raises where it does not fit the root
    except NoteProblem as problem:
        raise Untrusted(f"{gone}: {problem}.", pruned=True) from None


def _pruned(checkpoints: Sequence[Checkpoint], stub: Checkpoint | None) -> tuple[str, ...]:
    before = [str(one.size) for one in checkpoints if stub and one.size < stub.size]
    if stub is None or not before:
        return ()
    return (
        f"that the pruned entries up to {stub.size} were others than those that the checkpoints of size "
        f"{', '.join(before)} are of: they are signed, and their roots cannot be computed anew",
    )


def key_in(db: Reader, org: str) -> VerifierKey | None:
    """The public key of an org's log as its database says it. Raises CannotRead, NoteProblem."""
    try:
        found = db.read("SELECT origin, public FROM audit_key WHERE org = ?", (org,))
    except Exception as error:
        raise _cannot_read(error) from None
    if not found:
        return None
    try:
        return VerifierKey(str(found[0][0]), bytes.fromhex(str(found[0][1])))
    except ValueError:
        raise NoteProblem(
            "The log's public key in the database was altered. Give the one you have with --key."
        ) from None


def stub_in(db: Reader, org: str) -> Checkpoint | None:
    """What stands in the database in the place of pruned entries, not judged yet. Raises CannotRead, NoteProblem."""
    try:
        found = db.read("SELECT note FROM audit_stub WHERE org = ? ORDER BY seq DESC LIMIT 1", (org,))
    except Exception as error:
        raise _cannot_read(error) from None
    return read_note(str(found[0][0]).encode("utf-8", "replace")) if found else None


def _cannot_read(why: Exception) -> CannotRead:
    return CannotRead(f"The audit log cannot be read: {str(why).rstrip('.')}. Run `keyleash doctor`.")
