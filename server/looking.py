"""Look, by itself and every so often, whether wrapped servers still say of their tools what was reviewed.

A change is held and on record as at a call. Of several servers one looks: whoever writes first that it does. Nobody is
told of a server that cannot be asked; the log is, and the next look comes in its turn.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from connectors.definition import Connector
from connectors.errors import ConnectorError
from server.audit import AuditError
from server.clock import now_ms
from server.connections import Connection, connections_of, credential_kind, open_credential, verify
from server.credential import resolved, stays_elsewhere
from server.database import Database, DatabaseProblem, Rows
from server.errors import CallRefused
from server.held import looked_at
from server.parts import Parts
from vault import Secret, VaultError

if TYPE_CHECKING:
    from connectors.upstream import Definition  # at run time it would load the protocol

log = logging.getLogger("keyleash")

GLANCE_S = 60.0
"""How often it is looked whether a look is due."""
ORG_S = 60.0
"""After so long no further look at an org's servers is begun before others have had theirs."""


@dataclass(frozen=True)
class Looking:
    """The looks of one process."""

    parts: Parts
    connectors: Mapping[str, Connector]
    every_s: float

    async def go(self) -> None:
        """Make every look that is due, one after the other; what stands in its way is logged."""
        if self.parts.vault.sealed is not None:
            return
        database = self.parts.database
        try:
            for org in database.orgs():
                await self._of(org)
        except (DatabaseProblem, AuditError) as problem:
            log.warning("what wrapped servers say could not be looked at: %s", problem)

    async def _of(self, org: str) -> None:
        """Those of an org, for as long as others may be held up by it; the rest with the next glance."""
        began = time.monotonic()
        await asyncio.sleep(0)  # to ask a database for each of many takes a while, in which others are served
        for connection, connector in wrapped_of(self.parts.database, self.connectors, org):
            if time.monotonic() - began > ORG_S:
                return
            await asyncio.sleep(0)
            if await self._claimed(connection):
                await self._look(connection, connector)

    async def _claimed(self, connection: Connection) -> bool:
        """Whether a look is due, and this process is to make it."""
        own, every_ms = self.parts.database.of(connection.org), int(self.every_s * 1000)
        if own.query(lambda rows: _waits(rows, connection, every_ms)):
            return False
        return await own.write(lambda rows: _may_be(rows, connection) and claim(rows, connection, every_ms))

    async def _look(self, connection: Connection, connector: Connector) -> None:
        """Raises DatabaseProblem or AuditError."""
        try:
            await self.parts.keys.at_hand(connection.org)
            await self.parts.renewals.current(connection, connector, {})
            with await self._opened(connection, connector) as secret:
                found: list[Definition] = []
                await verify(self.parts.egress, connection, connector, secret, seen=found.extend)
        except (ConnectorError, VaultError, CallRefused) as problem:
            log.warning("what the server of %s says could not be looked at: %s", connection.name, problem)
            return
        except (DatabaseProblem, AuditError):
            raise
        except Exception as error:  # its text may hold anything; the others are to be looked at all the same
            log.error("a look at the server of %s failed inside Keyleash: %s", connection.name, type(error).__name__)
            return

        def change(rows: Rows) -> None:
            if _there(rows, connection):  # else it was removed, or is another account's, since
                looked_at(rows, connection, connector, found, by=None)

        await self.parts.database.of(connection.org).write(change)

    async def _opened(self, connection: Connection, connector: Connector) -> Secret:
        """Raises DatabaseProblem or VaultError."""
        kind, own = credential_kind(connection, connector), self.parts.database.of(connection.org)
        sealed = own.snapshot(lambda rows: open_credential(rows, self.parts.vault, connection))
        if not stays_elsewhere(connection, kind, sealed):
            return sealed
        with sealed:
            return await anyio.to_thread.run_sync(resolved, self.parts.references, kind, sealed)


@contextlib.asynccontextmanager
async def looking(looks: Looking, *, glance_s: float = GLANCE_S) -> AsyncGenerator[None]:
    """Look while the block runs; not at all where that is to be every 0 seconds."""

    async def go_on() -> None:
        while looks.every_s:
            await looks.go()
            await asyncio.sleep(glance_s)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        task.cancel()  # what was found and not written down is found again
        with contextlib.suppress(asyncio.CancelledError):
            await task


def wrapped_of(database: Database, connectors: Mapping[str, Connector], org: str) -> list[tuple[Connection, Connector]]:
    """The connections of an org to servers whose tools a person has reviewed; none while its agents are stopped."""
    if not database.of(org).read("SELECT 1 FROM org WHERE id = ? AND frozen_at IS NULL", (org,)):
        return []
    known = [(each, connectors.get(each.connector)) for each in connections_of(database, org)]
    return [
        (connection, connector)
        for connection, connector in known
        if connector is not None
        and connector.server is not None
        and connector.reviewed
        and connection.needs_consent_at is None
        and not connection.managed
    ]


def claim(rows: Rows, connection: Connection, every_ms: int) -> bool:
    """Whether a look is due, and nobody else makes it: from now on none is for so long.

    A connection that is seen for the first time was looked at when it was made.
    """
    key, now, before = (connection.org, connection.id), now_ms(), _last(rows, connection)
    if before is None:
        rows.execute("INSERT INTO definition_look (org, connection, looked_at) VALUES (?, ?, ?)", (*key, now))
        return False
    if _waits(rows, connection, every_ms):
        return False
    set_to = "UPDATE definition_look SET looked_at = ? WHERE org = ? AND connection = ? AND looked_at = ?"
    return rows.execute(set_to, (now, *key, before)).rowcount == 1


def _waits(rows: Rows, connection: Connection, every_ms: int) -> bool:
    """Whether the last look is not so long ago. One of the time to come was written by a clock that was wrong."""
    last, now = _last(rows, connection), now_ms()
    return last is not None and now - every_ms < last <= now


def _last(rows: Rows, connection: Connection) -> int | None:
    key = (connection.org, connection.id)
    found = rows.execute("SELECT looked_at FROM definition_look WHERE org = ? AND connection = ?", key).fetchone()
    return None if found is None else int(found[0])


def _there(rows: Rows, connection: Connection) -> bool:
    same = "SELECT 1 FROM connection WHERE org = ? AND id = ? AND credential_version = ?"
    key = (connection.org, connection.id, connection.credential_version)
    return rows.execute(same, key).fetchone() is not None


def _may_be(rows: Rows, connection: Connection) -> bool:
    """Whether it is still to be looked at, by its turn: the looks before it may have taken long."""
    frozen = "SELECT 1 FROM org WHERE id = ? AND frozen_at IS NOT NULL"
    unsigned = "SELECT 1 FROM connection WHERE org = ? AND id = ? AND needs_consent_at IS NOT NULL"
    return (
        _there(rows, connection)
        and rows.execute(frozen, (connection.org,)).fetchone() is None
        and rows.execute(unsigned, (connection.org, connection.id)).fetchone() is None
    )
