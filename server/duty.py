"""While a server runs, nothing is restored under it, and how far each log goes is noted outside the database.

A server does not start on a database that is behind what was noted: an older one was put back, in which revoked tokens
are valid and used approvals are not used yet. A person looks first, and accepts it by name.
"""

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from server.audit import AuditError
from server.audit.noted import NotedHeads, rolled_back
from server.database import Database, DatabaseProblem
from server.locks import shared
from server.settings import Settings

log = logging.getLogger("keyleash")

EVERY_S = 60.0


class RolledBack(DatabaseProblem):
    """The database is not the newest that was here, and nobody has agreed to that."""


@contextmanager
def on_duty(database: Database, settings: Settings, *, every_s: float = EVERY_S) -> Generator[None]:
    """Serve inside this block. Raises DatabaseProblem or AuditError where nothing should be served."""
    make_room(settings)
    with shared(settings.serving_lock):
        require_current(database, settings)
        noted = NotedHeads(settings.noted_heads)
        noted.note(database)
        ended = threading.Event()
        watch = threading.Thread(target=_watch, args=(noted, database, ended, every_s), daemon=True)
        watch.start()
        try:
            yield
        finally:
            ended.set()
            watch.join()
            note(noted, database)


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
        log.error("how far the logs go could not be noted: %s", problem)


def _watch(noted: NotedHeads, database: Database, ended: threading.Event, every_s: float) -> None:
    while not ended.wait(every_s):
        note(noted, database)
