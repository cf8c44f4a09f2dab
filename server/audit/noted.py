"""How far each log went, kept outside the database: it tells when an older database was put back.

Signed checkpoints say it (`server.audit.checkpoints`), in `KEYLEASH_HOME/checkpoints/ORG`. What cannot be signed, while
the root key is away or because an org was removed before there were checkpoints, is noted without a signature in
`KEYLEASH_HOME/checkpoints/heads.json`, one JSON object: `format` ("keyleash-heads"), `version` (1) and `heads` (org →
`seq`, `hash` and `at`, when it was noted). Only a rollback that an operator has agreed to moves a head back (`settle`).

Both lie on this machine. Without the root key nobody forges a checkpoint; whoever can write to this disk can still put
an older one back together with an older database. What finds that is a checkpoint that was taken elsewhere.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from server.audit.checkpoints import Broken, Checkpoints, NotedProblem, Refused, Signer
from server.audit.entry import Head
from server.audit.note import Checkpoint, NoteProblem, read_note
from server.audit.proof import key_in, stub_in
from server.audit.reading import Reader, first_number, head
from server.clock import iso, now_ms
from server.locks import waiting
from vault.newfile import replace_private

FORMAT = "keyleash-heads"
VERSION = 1
MAX_BYTES = 64 * 1024 * 1024


class Gap(NamedTuple):
    """A log that does not go as far as it is known to have gone, or goes elsewhere (`forked`).

    `kept` is the last entry that is certainly the same; None where that cannot be told.
    """

    org: str
    known: Head
    kept: int | None
    forked: bool

    @property
    def lost(self) -> int | None:
        """How many entries are not there."""
        return None if self.kept is None else self.known.seq - self.kept

    def __str__(self) -> str:
        if self.kept is None:
            return f"another log than the one that was noted, or one written anew: entry {self.known.seq} differs"
        entries = "1 entry" if self.lost == 1 else f"{self.lost} entries"
        other = ", and goes on otherwise" if self.forked else ""
        return f"{entries} behind (known up to {self.known.seq}, the same up to {self.kept}{other})"


class Behind(NotedProblem):
    """The database is behind what was noted."""

    def __init__(self, found: "list[Gap]") -> None:
        super().__init__(f"The database is behind what was noted: {rolled_back(found)}")
        self.gaps = found


class Logs(Reader, Protocol):
    """The logs of a database, one for each org, removed ones as well."""

    def of(self, org: str) -> Reader: ...

    def orgs(self) -> list[str]: ...


def heads(db: Logs) -> dict[str, Head]:
    """How far each log goes now. Raises AuditError where a last entry was altered."""
    found = {org: head(db.of(org), org) for org in db.orgs()}
    return {org: end for org, end in found.items() if end is not None}


def hash_at(db: Reader, org: str, seq: int) -> str | None:
    """The hash of one entry, be it the last one that was pruned; None where there is no such entry."""
    found = db.read("SELECT hash FROM audit_entry WHERE org = ? AND seq = ?", (org, seq))
    if found:
        return str(found[0][0])
    stub = _stub(db, org)
    return stub.head.hash if stub is not None and stub.head is not None and stub.size == seq else None


def pruned(db: Reader, org: str) -> int:
    """The number of the last entry that was pruned; 0 where none was."""
    stub = _stub(db, org)
    return stub.size if stub is not None else 0


def _stub(db: Reader, org: str) -> Checkpoint | None:
    """What stands for pruned entries, where some are gone."""
    begins = first_number(db, org)
    try:
        return stub_in(db, org) if type(begins) is int and begins > 1 else None
    except NoteProblem:
        return None


def gaps(db: Logs, known: Iterable[tuple[str, Head]]) -> list[Gap]:
    """Where the logs of this database do not contain what is known of them."""
    return [gap for org, end in known if (gap := _gap(db.of(org), org, end)) is not None]


def _gap(db: Reader, org: str, known: Head) -> Gap | None:
    found = hash_at(db, org, known.seq)
    if found == known.hash:
        return None
    if found is not None:
        return Gap(org, known, None, forked=True)
    if known.seq < pruned(db, org):
        return None  # whether it was there cannot be told any more, and nothing says that it was not
    end = head(db, org)
    return Gap(org, known, end.seq if end else 0, forked=False)


class NotedHeads:
    """The noted heads of one installation. Any number of processes may use the same folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.signed = Checkpoints(path.parent)

    @property
    def told(self) -> Path | None:
        """What tells of an installation; None where nothing does."""
        if self.path.exists():
            return self.path
        return next((self.signed.folder / org / "latest.txt" for org in self.signed.orgs()), None)

    def read(self) -> dict[str, Head]:
        """What is known, by org; nothing where there is nothing. Raises NotedProblem."""
        return self._further(self._unsigned())

    def missing(self, db: Logs) -> list[Gap]:
        """What was noted and is not in this database. Raises NotedProblem."""
        return gaps(db, self.read().items())

    def note(self, db: Logs, sign: Callable[[str], Signer | None] | None = None) -> list[Checkpoint]:
        """Note how far the logs go, signed where `sign` knows a signer; returns the checkpoints that are new.

        Raises NotedProblem, and moves nothing, for each log that is behind, or in which an entry does not verify; the
        others are noted first.
        """
        with self._alone():
            unsigned = self._unsigned()
            noted = self._further(unsigned)
            behind = gaps(db, noted.items())
            now = heads(db)
            for gap in behind:
                now.pop(gap.org, None)
            made, problems = self._signed(db, now, noted, sign)
            signed = self.signed.heads()
            left = {org: end for org, end in now.items() if org not in signed or signed[org].seq < end.seq}
            left |= {gap.org: unsigned[gap.org] for gap in behind if gap.org in unsigned}
            if left != unsigned:
                self._write(left)
            if behind:
                raise Behind(behind)
            if problems:
                raise min(problems, key=lambda problem: isinstance(problem, Broken))
        return made

    def doubts(self, db: Logs) -> list[str]:
        """What is wrong with the logs since their last checkpoints; changes nothing. Raises NotedProblem."""
        found: list[str] = []
        for org in self.signed.orgs():
            key = self.signed.key(org)
            try:
                if key is not None:
                    self.signed.look(db.of(org), org, key.public)
            except Refused as problem:
                found.append(str(problem))
        return found

    def checkpoint(self, db: Logs, org: str, signer: Signer, *, whole: bool = True) -> tuple[Checkpoint, bool]:
        """A checkpoint of one log now, and whether it is a new one. Raises NotedProblem."""
        with self._alone():
            return self.signed.make(db.of(org), org, signer, whole=whole)

    def keep_last(self, db: Logs, org: str) -> None:
        """Keep the checkpoint with which an org was removed. Raises NotedProblem."""
        with self._alone():
            self._keep_last(db.of(org), org)

    def settle(self, db: Logs) -> None:
        """Take this database as it is, whatever was noted before; what was signed of a log that is gone is history."""
        with self._alone():
            for gap in gaps(db, self.signed.heads().items()):
                self.signed.set_aside(gap.org)
            self._write(heads(db))

    def _signed(
        self, db: Logs, now: Mapping[str, Head], noted: Mapping[str, Head], sign: Callable[[str], Signer | None] | None
    ) -> tuple[list[Checkpoint], list[NotedProblem]]:
        """Make the checkpoints that are due."""
        made: list[Checkpoint] = []
        problems: list[NotedProblem] = []
        signed = self.signed.heads()
        for org in (org for org, end in now.items() if sign is not None and signed.get(org) != end):
            try:
                signer = sign(org) if sign is not None else None
                if signer is not None:
                    note, new = self.signed.make(db.of(org), org, signer)
                    made += [note] if new else []
                else:
                    self._keep_last(db.of(org), org)
            except NotedProblem as problem:
                problems.append(problem)
        return made, problems

    def _keep_last(self, db: Reader, org: str) -> None:
        """Keep the checkpoint with which an org was removed, should it have been cut off before that."""
        found = db.read("SELECT last FROM audit_key WHERE org = ? AND last IS NOT NULL", (org,))
        key = key_in(db, org)
        if not found or key is None:
            return
        try:
            note = read_note(str(found[0][0]).encode())
            note.require(key)
        except NoteProblem as problem:
            raise Refused(f"The last checkpoint of {org}, which was removed, was altered: {problem}.") from None
        if self.signed.latest(org) != note:
            self.signed.keep(org, note, key)

    def _unsigned(self) -> dict[str, Head]:
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_BYTES)
            given = cast("dict[str, Any]", json.loads(raw))
            if (given["format"], given["version"]) != (FORMAT, VERSION):
                raise ValueError
            return {str(org): Head.parse(f"{one['seq']}:{one['hash']}") for org, one in given["heads"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise NotedProblem(
                f"{self.path} cannot be read, or is not what Keyleash wrote: nothing tells whether an older database "
                "was put back. Find out why; then remove that file, and the next server notes the heads anew."
            ) from None

    def _further(self, unsigned: Mapping[str, Head]) -> dict[str, Head]:
        """Of what was signed and what was not, whichever goes further."""
        found = self.signed.heads()
        return {**found, **{org: end for org, end in unsigned.items() if org not in found or end.seq > found[org].seq}}

    def _alone(self) -> Any:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritten(error) from None
        return waiting(self.path.with_name("heads.lock"))

    def _write(self, ends: Mapping[str, Head]) -> None:
        if not ends:
            self.path.unlink(missing_ok=True)
            return
        at = iso(now_ms())
        shown = {org: {"seq": end.seq, "hash": end.hash, "at": at} for org, end in sorted(ends.items())}
        try:
            replace_private(self.path, json.dumps({"format": FORMAT, "version": VERSION, "heads": shown}, indent=1))
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> NotedProblem:
        return NotedProblem(f"{self.path} cannot be written: {error.strerror}. Look at its folder's owner and disk.")


def rolled_back(found: Iterable[Gap]) -> str:
    """The gaps in words, one org after another."""
    return "; ".join(f"{gap.org}: {gap}" for gap in found) + "."


def gap_fields(place: str, gap: Gap) -> dict[str, Any]:
    """A gap as an entry holds it; `place` is where it is known from."""
    said = {"known_from": place, "known": str(gap.known), "lost": gap.lost, "forked": gap.forked or None}
    return {name: value for name, value in said.items() if value is not None}
