"""What was removed is gone from the database's files, or stands on a list and is tried again until it is.

The transaction that removes something sealed also puts it on the list. What is on it has been deleted: nothing opens it
any more. But its bytes may still stand in the files, in the write-ahead log for as long as another process reads an
older state.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from server.audit import AuditError, Event, append
from server.clock import iso, now_ms
from server.database import PATIENCE_S, Database, DatabaseProblem, Rows
from server.rounds import rounds

log = logging.getLogger("keyleash")

SEALED = ("vault_field", "vault_credential", "vault_derived", "vault_org_key", "vault_root")
"""The tables whose rows leave nothing behind: every sealed secret, and every wrapped key that could open one."""

RETRY_S = 30.0
"""How often a server looks whether something is to be tried again."""
_GLANCE_S = 0.2

EXCLUDED = "PostgreSQL's own log, replicas and dead rows"
"""What is on record with an erasure where the files are not ours: nobody looked into these."""

What = Literal["connection", "secret", "channel", "address", "org", "key"]
"""A secret is one that a connection, which stays and is named, had before; an address, with its secret, a channel."""


@dataclass(frozen=True)
class Pending:
    """Something removed whose bytes may still stand in the files. `requested_at` is in milliseconds."""

    org: str
    id: str
    what: str
    name: str
    requested_at: int


def request(rows: Rows, org: str, identifier: str, what: What, name: str) -> None:
    """Put what this transaction deletes on the list; asked again for the same, the newer request counts."""
    rows.execute(
        "INSERT INTO erasure (org, id, what, requested_at) VALUES (?, ?, ?, ?) ON CONFLICT (org, id) DO UPDATE SET "
        "what = excluded.what, requested_at = CASE WHEN excluded.requested_at > erasure.requested_at "
        "THEN excluded.requested_at ELSE erasure.requested_at + 1 END",
        (org, identifier, f"{what} {name}", now_ms()),
    )


def pending(database: Database) -> list[Pending]:
    """Everything on the list, longest waiting first. Raises DatabaseProblem."""
    found: list[Pending] = []
    for org in database.orgs():
        listed = database.of(org).read("SELECT id, what, requested_at FROM erasure WHERE org = ?", (org,))
        for identifier, text, requested_at in listed:
            what, _, name = text.partition(" ")
            found.append(Pending(org, identifier, what, name, requested_at))
    return sorted(found, key=lambda one: (one.requested_at, one.org, one.id))


def attempt(database: Database, *, patience_s: float = PATIENCE_S) -> list[Pending]:
    """Try to erase what is on the list; returns what still is on it. What is gone is on record in its org's log.

    Waits for readers at most twice `patience_s`. Raises DatabaseProblem where not even the list can be read.
    """
    waiting = pending(database)
    if not waiting:
        return []
    try:
        # What was on the list before this began was deleted before it, too; what is put on it meanwhile stays.
        if not database.erase(SEALED, patience_s=patience_s):
            return waiting
    except DatabaseProblem as problem:
        log.warning("what was removed could not be erased from the files yet: %s", problem)
        return waiting
    try:
        for one in waiting:
            database.of(one.org).write_now(partial(_done, one=one, files=database.files))
    except DatabaseProblem as problem:
        log.warning("what was erased could not be taken off the list: %s", problem)
    return pending(database)


def _done(rows: Rows, one: Pending, *, files: bool = True) -> None:
    """On record, and off the list. Several processes may try at once: one of them records it."""
    place = (one.org, one.id, one.requested_at)
    if not rows.execute("SELECT 1 FROM erasure WHERE org = ? AND id = ? AND requested_at = ?", place).fetchone():
        return
    # Under `connection`, it is found with everything else that is on record about that connection.
    fields: dict[str, Any] = {"connection" if one.what in ("connection", "secret") else "name": one.name}
    if not files:
        fields["excluded"] = EXCLUDED
    try:
        append(
            rows,
            one.org,
            Event.ERASURE_COMPLETED,
            erased=one.what,
            id=one.id,
            requested_at=iso(one.requested_at),
            **fields,
        )
    except AuditError as problem:
        log.error("an erasure could not be recorded, and stays on the list: %s", problem)
        return
    rows.execute("DELETE FROM erasure WHERE org = ? AND id = ? AND requested_at = ?", place)


@contextlib.asynccontextmanager
async def retrying(database: Database, *, every_s: float = RETRY_S) -> AsyncGenerator[None]:
    """Try again now and every so often while the block runs, without keeping anybody waiting."""

    async def retry() -> None:
        try:
            await asyncio.to_thread(attempt, database, patience_s=_GLANCE_S)
        except DatabaseProblem as problem:
            log.warning("whether something is still to be erased could not be read: %s", problem)

    async with rounds(retry, every_s=every_s):
        yield
