"""What time brings is written down by whichever server runs: what has expired, was lost, or is not kept any more.

Nothing here needs a key.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from server.approval.record import due, sweep
from server.audit import AuditError, Event, append
from server.clock import now_ms
from server.database import Database, DatabaseProblem, Rows
from server.rounds import rounds

if TYPE_CHECKING:
    from server.approval.gate import Approvals

log = logging.getLogger("keyleash")

EVERY_S = 30.0
DAY_MS = 24 * 60 * 60 * 1000
BATCH = 200
_EMPTY_EVERY = 120
"""What is old is looked for once in so many turns: every hour."""
_MARK_EVERY = 500
"""The mark in a log is moved when so many entries lie behind it, or something was lost: not for every call."""


@contextlib.asynccontextmanager
async def tending(
    database: Database, approvals: "Approvals", *, keep_days: int, every_s: float = EVERY_S
) -> AsyncGenerator[None]:
    """Tend every org now and every so often while the block runs."""
    turns = itertools.count()

    async def go() -> None:
        old_ones = next(turns) % _EMPTY_EVERY == 0
        try:
            for org in database.orgs():
                if not database.of(org).query(partial(_if_there, org=org)):
                    continue
                await tend(database, approvals, org)
                if old_ones:
                    await empty_old(database, org, keep_days=keep_days)
        except (DatabaseProblem, AuditError) as problem:
            log.warning("what has expired or was lost could not be written down: %s", problem)

    async with rounds(go, every_s=every_s):
        yield


async def tend(database: Database, approvals: "Approvals", org: str) -> None:
    """Write down what time has brought to one org. Raises DatabaseProblem or AuditError."""
    now, own = now_ms(), database.of(org)
    if own.query(lambda rows: due(rows, org, now)):
        await own.write(lambda rows: _if_there(rows, org) and sweep(rows, org, now))
    look = await asyncio.to_thread(approvals.unknown.look, org, now)  # the first one reads the whole log
    if look.lost or look.settled - look.before >= _MARK_EVERY:
        await own.write(lambda rows: _if_there(rows, org) and approvals.unknown.write_down(rows, org, look, now))


async def empty_old(database: Database, org: str, *, keep_days: int) -> None:
    """Empty, some at a time, all that ended longer ago than it is kept. Raises DatabaseProblem or AuditError."""
    own, now = database.of(org), now_ms()
    before = now - keep_days * DAY_MS
    while own.query(lambda rows: _old(rows, org, before)):
        await own.write(lambda rows: _if_there(rows, org) and empty(rows, org, now, keep_days))


def empty(rows: Rows, org: str, now: int, keep_days: int) -> None:
    """Empty some of what is sealed of calls and grants that ended longer ago.

    The row stays, with who decided and how they were known. What still waits or runs is kept, however old.
    """
    found = _old(rows, org, now - keep_days * DAY_MS)
    for table, identifier in found:
        columns = ", ".join(f"{column} = NULL" for column in _SEALED[table])
        rows.execute(f"UPDATE {table} SET {columns} WHERE org = ? AND id = ?", (org, identifier))
    if found:
        append(rows, org, Event.APPROVALS_EMPTIED, count=len(found), keep_days=keep_days)


def _old(rows: Rows, org: str, before: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for table, columns in _SEALED.items():
        kept = " OR ".join(f"{column} IS NOT NULL" for column in columns)
        ids = rows.execute(
            f"SELECT id FROM {table} WHERE org = ? AND ({kept}) AND {_OVER[table]} ORDER BY id LIMIT ?",
            (org, *[before] * _OVER[table].count("?"), BATCH - len(found)),
        ).fetchall()
        found += [(table, str(identifier)) for (identifier,) in ids]
    return found


_OVER = {
    "approval": "created_at < ? AND changed_at < ? AND state NOT IN ('pending', 'approved', 'executing')",
    "call_grant": "(expires_at < ? OR revoked_at < ?)",
    "work": "(expires_at < ? OR revoked_at < ?)",
}
_SEALED = {
    "approval": ("sealed_call", "sealed_prompt", "sealed_outcome"),
    "call_grant": ("sealed_bounds",),
    "work": ("sealed_bounds",),
}


def _if_there(rows: Rows, org: str) -> bool:
    """Whether the org is still there: it may have been removed since it was listed."""
    return rows.execute("SELECT 1 FROM org WHERE id = ?", (org,)).fetchone() is not None
