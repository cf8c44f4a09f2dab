"""While a server runs, nothing is restored under it, and how far each log goes is signed and kept outside the database.

A server does not start on a database that is behind what was noted: an older one was put back, in which revoked tokens
are valid and used approvals are not used yet. A person looks first, and accepts it by name.
"""

import logging
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from server.approval.outbox import put_checkpoint
from server.audit import AuditError, Event, Head, append
from server.audit.checkpoints import Broken
from server.audit.note import Checkpoint
from server.audit.noted import Behind, Gap, NotedHeads, gap_fields, heads, rolled_back
from server.database import Database, DatabaseProblem
from server.locks import shared
from server.settings import Settings
from server.signing import signing
from vault import Vault

log = logging.getLogger("keyleash")

LOOK_S = 5.0
"""How often it is looked whether enough is new."""


class RolledBack(DatabaseProblem):
    """The database is not the newest that was here, and nobody has agreed to that."""


@contextmanager
def on_duty(
    database: Database,
    settings: Settings,
    vault: Vault | None = None,
    *,
    every_s: float | None = None,
    look_s: float = LOOK_S,
) -> Generator[None]:
    """Serve inside this block. Raises DatabaseProblem or AuditError where nothing should be served.

    With an open vault, checkpoints of the logs are signed meanwhile. A log in which a newer entry does not verify has
    none made and is served; one that is not the log that was signed before is not served, and where that comes about
    while a server runs, it is said and put on record, and what runs goes on.
    """
    make_room(settings)
    with shared(settings.serving_lock):
        require_current(database, settings)
        rounds = _Rounds(database, settings, vault, settings.checkpoint_seconds if every_s is None else every_s)
        rounds.begin()
        ended = threading.Event()
        watch = threading.Thread(target=rounds.go_on, args=(ended, look_s), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            rounds.note()


class _Rounds:
    """What a server notes: at its start, when enough is new or enough time has passed, and at its end."""

    def __init__(self, database: Database, settings: Settings, vault: Vault | None, every_s: float) -> None:
        self._noted = NotedHeads(settings.noted_heads)
        self._database = database
        self._entries = settings.checkpoint_entries
        self._every_s = every_s
        self._sign = None if vault is None or vault.sealed is not None else signing(database, vault)
        self._since = 0.0
        self._told: set[tuple[str, Head]] = set()

    def begin(self) -> None:
        """The first time. Raises what forbids serving."""
        try:
            self._tell(self._noted.note(self._database, self._sign))
        except Broken as problem:
            _say(problem)
        self._since = time.monotonic()

    def go_on(self, ended: threading.Event, look_s: float) -> None:
        while not ended.wait(min(look_s, self._every_s)):
            if self._due():
                self.note()

    def note(self) -> None:
        """What stands in the way is logged, on record where that can be, and stops nothing."""
        self._since = time.monotonic()
        try:
            self._tell(self._noted.note(self._database, self._sign))
        except Behind as problem:
            _say(problem)
            for gap in problem.gaps:
                self._put_on_record(gap)
        except (AuditError, DatabaseProblem) as problem:
            _say(problem)

    def _due(self) -> bool:
        if time.monotonic() - self._since >= self._every_s:
            return True
        try:
            noted = self._noted.read()
            grown = (end.seq - noted[org].seq for org, end in heads(self._database).items() if org in noted)
            return any(more >= self._entries for more in grown)
        except (AuditError, DatabaseProblem):
            return False  # which is said when the time has come

    def _tell(self, made: Sequence[Checkpoint]) -> None:
        """Have the org's webhooks told, if they want to be; the file has it already."""
        for note in made:
            self._database.of(note.org).write_now(lambda rows, note=note: put_checkpoint(rows, note.org, note))

    def _put_on_record(self, gap: Gap) -> None:
        """Say in the log itself, once, that it is not the one that was noted."""
        if (gap.org, gap.known) in self._told:
            return
        self._told.add((gap.org, gap.known))
        facts = gap_fields("the checkpoints outside the database", gap)
        try:
            self._database.of(gap.org).write_now(
                lambda rows: append(rows, gap.org, Event.AUDIT_CHECKPOINT_REFUSED, **facts)
            )
        except (AuditError, DatabaseProblem) as problem:
            _say(problem)


def _say(problem: Exception) -> None:
    log.error("how far the logs go could not be noted: %s", problem)


def make_room(settings: Settings) -> None:
    """The folders of a server's own, where a database that others made is all that it was given. On SQLite the
    installation is in them, and is not begun by serving it. Raises DatabaseProblem."""
    if settings.database_url is None:
        return
    try:
        for folder in (settings.home, settings.serving_lock.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseProblem(f"{error.filename} cannot be made: {error.strerror}. Look at KEYLEASH_HOME.") from None


def require_current(database: Database, settings: Settings) -> None:
    """Refuse a database that was rolled back, or a restore that was cut off. Raises RolledBack or AuditError."""
    require_finished(database)
    missing = NotedHeads(settings.noted_heads).missing(database)
    if missing:
        raise RolledBack(
            f"An older database was put back. {rolled_back(missing)} What was revoked or used since is valid in it "
            "again. Put the newer one back; or, if there is none, `keyleash vault accept-rollback` freezes all agents "
            "for you to look at them, and goes on from here."
        )


def require_finished(database: Database) -> None:
    """Refuse where a restore was cut off. Raises RolledBack."""
    if unfinished_restore(database):
        raise RolledBack(
            "A restore was cut off before its end. `keyleash vault restore`, without anything more, finishes it."
        )


def unfinished_restore(database: Database) -> bool:
    """Whether the database came out of a backup whose restore was cut off after it was put in place."""
    return any(table.startswith("backup_") for table in database.tables())


def note(noted: NotedHeads, database: Database) -> None:
    """Note the heads; what stands in the way is logged, and stops nothing."""
    try:
        noted.note(database)
    except (AuditError, DatabaseProblem) as problem:
        _say(problem)
