"""Have an org's keys at hand before its call: a key service is asked outside of every transaction, once for all.

With a root key that is held here there is nothing to ask, and nothing is done.
"""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio

from server.database import Database
from vault import Vault, VaultError
from vault.orgkeys import Wanted

RETRY_SECONDS = 5.0
"""After a failure the service is left alone for so long: calls that wait in a row would each wait for it in vain."""
ASKED_AT_ONCE = 4


def have_at_hand(database: Database, vault: Vault, org: str) -> None:
    """As `Keys.at_hand`, for a command, before its transaction. Raises VaultError."""
    if vault.sealed is None:
        vault.fetch(database.of(org).query(lambda rows: vault.wanted(rows, org)))


class Keys:
    """Asks for the keys of orgs that have calls; many calls of one org ask once."""

    def __init__(self, database: Database, vault: Vault, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._asking: dict[str, AbstractAsyncContextManager[object]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._threads = anyio.CapacityLimiter(ASKED_AT_ONCE)

    async def at_hand(self, org: str) -> None:
        """Return once this org's keys can be used for a call. Raises VaultError, whose text names what is wrong."""
        if not self._wanted(org):
            return
        async with self._asking.setdefault(org, anyio.Lock()):
            wanted = self._wanted(org)  # whoever held the lock before has asked for these too
            if not wanted:
                return
            since, why = self._failed.get(org, (0.0, ""))
            if why and self._clock() - since < RETRY_SECONDS:
                raise VaultError(why)
            try:
                await anyio.to_thread.run_sync(self._vault.fetch, wanted, limiter=self._threads)
            except VaultError as problem:
                self._failed[org] = (self._clock(), str(problem))
                raise
            self._failed.pop(org, None)

    def _wanted(self, org: str) -> list[Wanted]:
        return self._database.of(org).query(lambda rows: self._vault.wanted(rows, org))
