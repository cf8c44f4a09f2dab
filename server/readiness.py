"""Whether calls can be carried out just now, in words that say nothing about any org.

It is looked at once a second at most, however often strangers ask, and never for longer than two.
"""

import time
from collections.abc import Callable

import anyio

from server.database import SCHEMA, Database, DatabaseProblem, schema_of
from vault import Vault

FRESH_S = 1.0
PATIENCE_S = 2.0
READY = "ok"


class Readiness:
    """What stands in the way of calls."""

    def __init__(self, database: Database, vault: Vault, clock: Callable[[], float] = time.monotonic) -> None:
        self._database, self._vault, self._clock = database, vault, clock
        self._looked: float | None = None
        self._found: dict[str, str] = {}
        self._lock = anyio.Lock()

    async def look(self) -> dict[str, str]:
        """What was looked at, and `ok` or a word on what is wrong with it; all `ok` means ready."""
        async with self._lock:
            if self._looked is None or self._clock() - self._looked >= FRESH_S:
                self._found = {
                    "database": await self._database_word(),
                    "vault": READY if self._vault.sealed is None else "sealed",
                }
                self._looked = self._clock()
            return self._found

    async def _database_word(self) -> str:
        with anyio.move_on_after(PATIENCE_S):
            return await anyio.to_thread.run_sync(self._read, abandon_on_cancel=True)
        return "does not answer"

    def _read(self) -> str:
        try:
            found = schema_of(self._database)
        except DatabaseProblem:
            return "cannot be read"
        return READY if found == SCHEMA else "another schema"
