"""The orgs' keys, unwrapped for a bounded time: after that the root key, or its key service, is asked again.

What is held is found by the wrapped key itself: one whose row is gone, was replaced, or whose transaction was rolled
back is never used.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from vault.errors import CannotOpen, VaultError
from vault.generations import INSTALLATION_KEY, Generations, Rows, blob
from vault.root import RootKey
from vault.seal import Key
from vault.secret import Opaque

KEEP_SECONDS = 300.0
GRACE_SECONDS = 60.0
"""How much longer than its time a key is held, for a call that has begun: nothing is fetched inside a transaction."""

Context = tuple[str, ...]

_KEYS_OF_ORG = """
SELECT k.version, k.wrapped, r.provider, r.location, r.check_blob
FROM vault_org_key k JOIN vault_root r ON r.id = k.root WHERE k.org = ?"""


MOST_MADE = 1024
"""How much of what a key was used for is held with it at once."""


class Held(NamedTuple):
    """An unwrapped key, when it was asked for (seconds of the clock), and what was made with it: gone when it is."""

    key: Key
    since: float
    made: dict[object, Any]

    def keep(self, name: object, made: Any) -> None:
        """Hold this too, under a name that has everything in it that it was made from."""
        if len(self.made) >= MOST_MADE:
            self.made.clear()
        self.made[name] = made


@dataclass(frozen=True)
class Wanted:
    """A key that a service has to be asked for."""

    wrapped: bytes
    context: Context
    root: RootKey


@final
class OrgKeys(Opaque):
    """The keys of every org of one database, each held for `seconds` after it was unwrapped."""

    __slots__ = ("_clock", "_held", "generations", "seconds")

    def __init__(
        self,
        generations: Generations,
        *,
        seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generations = generations
        self.seconds = seconds
        self._clock = clock
        self._held: dict[tuple[Context, bytes], Held] = {}

    def newest(self, db: Rows, org: str) -> tuple[int, Key]:
        """The version that seals what is new, and its key. VaultError for an org without a key."""
        row = db.execute(
            "SELECT version, wrapped, root FROM vault_org_key WHERE org = ? ORDER BY version DESC LIMIT 1", (org,)
        ).fetchone()
        if row is None:
            raise no_key(org)
        key = self.of_row(db, org, *row).key
        return int(row[0]), key

    def at(self, db: Rows, org: str, version: int) -> Key:
        """One version of an org's key. CannotOpen where there is none."""
        row = db.execute(
            "SELECT version, wrapped, root FROM vault_org_key WHERE org = ? AND version = ?", (org, version)
        ).fetchone()
        if row is None:
            raise CannotOpen
        return self.of_row(db, org, *row).key

    def of_row(self, db: Rows, org: str, version: int, wrapped: object, generation: int) -> Held:
        """The key of a row that was read already."""
        return self._unwrapped(db, wrapped, org_context(org, version), generation)

    def installation(self, db: Rows) -> Key:
        """The installation's own key."""
        generation, _ = self.generations.newest(db)
        row = db.execute("SELECT installation_key FROM vault_root WHERE id = ?", (generation,)).fetchone()
        return self._unwrapped(db, row[0], INSTALLATION_KEY, generation).key

    def fresh(self, since: float) -> bool:
        """Whether what was unwrapped then may still be used."""
        return self._clock() - since <= self.seconds + GRACE_SECONDS

    def wanted(self, db: Rows, org: str) -> list[Wanted]:
        """The keys of this org that a service should be asked for before a call; nothing where the root is local.

        A generation that cannot be loaded is left out: what is under it is refused when it is to be opened.
        """
        found: list[Wanted] = []
        for version, wrapped, *generation in db.execute(_KEYS_OF_ORG, (org,)).fetchall():
            with suppress(VaultError):
                root = self.generations.of_row(*generation)
                if root.remote:
                    found.append(Wanted(blob(wrapped), org_context(org, version), root))
        return [one for one in found if self._age(one.context, one.wrapped) > self.seconds]

    def fetch(self, wanted: Sequence[Wanted]) -> None:
        """Ask for these keys; may take seconds, and may run on any thread. Raises KeysUnavailable, CannotOpen."""
        for one in wanted:
            self._ask(one.root, one.wrapped, one.context)

    def forget(self) -> None:
        """Drop every key held in memory; each is unwrapped again when next needed."""
        self._held.clear()
        self.generations.forget()

    def _unwrapped(self, db: Rows, wrapped: object, context: Context, generation: int) -> Held:
        held = self._held.get((context, blob(wrapped)))
        if held is not None and self.fresh(held.since):
            return held
        return self._ask(self.generations.of(db, generation), blob(wrapped), context)

    def _ask(self, root: RootKey, wrapped: bytes, context: Context) -> Held:
        since = self._clock()
        for slot, held in list(self._held.items()):  # a copy: another thread may be fetching
            if not self.fresh(held.since):
                self._held.pop(slot, None)
        held = self._held[context, wrapped] = Held(Key(root.unwrap(wrapped, context=context)), since, {})
        return held

    def _age(self, context: Context, wrapped: bytes) -> float:
        held = self._held.get((context, wrapped))
        return float("inf") if held is None else self._clock() - held.since


def org_context(org: str, version: int) -> Context:
    """What the wrapping of an org's key binds."""
    return ("org-key", org, str(version))


def no_key(org: str) -> VaultError:
    """The refusal to work for an org whose key is gone."""
    return VaultError(f"The org {org!r} has no key, so nothing can be sealed for it. Create the org again.")
