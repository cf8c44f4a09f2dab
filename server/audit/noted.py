"""How far each log went, noted outside the database: it tells when an older database was put back.

The file is `KEYLEASH_HOME/checkpoints/heads.json`, one JSON object: `format` ("keyleash-heads"), `version` (1) and
`heads` (org → `seq`, `hash` and `at`, when it was noted). Only a rollback that an operator has agreed to moves a head
back (`settle`).

It is not signed, and lies on the same disk: it finds a mistake, not whoever can write to that disk.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from server.audit.entry import AuditError, Head
from server.audit.reading import Reader, head
from server.clock import iso, now_ms
from server.locks import waiting
from vault.newfile import create_private, sync_folder, unfinished

FORMAT = "keyleash-heads"
VERSION = 1
MAX_BYTES = 64 * 1024 * 1024


class NotedProblem(AuditError):
    """The noted heads cannot be read or written, or the database is behind them; the message says what to do."""


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


class Logs(Reader, Protocol):
    """The logs of a database, one for each org, removed ones as well."""

    def of(self, org: str) -> Reader: ...

    def orgs(self) -> list[str]: ...


def heads(db: Logs) -> dict[str, Head]:
    """How far each log goes now. Raises AuditError where a last entry was altered."""
    found = {org: head(db.of(org), org) for org in db.orgs()}
    return {org: end for org, end in found.items() if end is not None}


def hash_at(db: Reader, org: str, seq: int) -> str | None:
    """The hash of one entry, or None where there is no such entry."""
    found = db.read("SELECT hash FROM audit_entry WHERE org = ? AND seq = ?", (org, seq))
    return str(found[0][0]) if found else None


def gaps(db: Logs, known: Iterable[tuple[str, Head]]) -> list[Gap]:
    """Where the logs of this database do not contain what is known of them."""
    return [gap for org, end in known if (gap := _gap(db.of(org), org, end)) is not None]


def _gap(db: Reader, org: str, known: Head) -> Gap | None:
    found = hash_at(db, org, known.seq)
    if found == known.hash:
        return None
    if found is not None:
        return Gap(org, known, None, forked=True)
    end = head(db, org)
    return Gap(org, known, end.seq if end else 0, forked=False)


class NotedHeads:
    """The noted heads of one installation. Any number of processes may use the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Head]:
        """What was noted, by org; nothing where there is no file. Raises NotedProblem."""
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

    def missing(self, db: Logs) -> list[Gap]:
        """What was noted and is not in this database. Raises NotedProblem."""
        return gaps(db, self.read().items())

    def note(self, db: Logs) -> None:
        """Note how far the logs go. Raises NotedProblem, and moves nothing, where this database is behind."""
        with self._alone():
            noted = self.read()
            behind = gaps(db, noted.items())
            if behind:
                raise NotedProblem(f"The database is behind what was noted: {rolled_back(behind)}")
            now = heads(db)
            if now != noted:
                self._write(now)

    def settle(self, db: Logs) -> None:
        """Take this database as it is, whatever was noted before."""
        with self._alone():
            self._write(heads(db))

    def _alone(self) -> Any:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritten(error) from None
        return waiting(self.path.with_name("heads.lock"))

    def _write(self, ends: Mapping[str, Head]) -> None:
        at = iso(now_ms())
        shown = {org: {"seq": end.seq, "hash": end.hash, "at": at} for org, end in sorted(ends.items())}
        half = unfinished(self.path)
        try:
            try:
                with os.fdopen(create_private(half), "w", encoding="utf-8") as file:
                    json.dump({"format": FORMAT, "version": VERSION, "heads": shown}, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                half.replace(self.path)
            finally:
                half.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> NotedProblem:
        return NotedProblem(f"{self.path} cannot be written: {error.strerror}. Look at its folder's owner and disk.")


def rolled_back(found: Iterable[Gap]) -> str:
    """The gaps in words, one org after another."""
    return "; ".join(f"{gap.org}: {gap}" for gap in found) + "."
