"""The root keys of one database, by generation: which wraps what, where each is kept, and that each is the right one.

A rotation makes the next generation and moves the org keys under it while others work. So a process may meet a row
under a generation that it did not start with: that root key is then found where the database says, and checked.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, final

from vault.errors import CannotOpen, RootKeyProblem, VaultError, WrongRootKey
from vault.root import RootKey
from vault.secret import Opaque

ROOT_CHECK = ("root-check",)
INSTALLATION_KEY = ("installation-key",)

Find = Callable[[str, str], RootKey]
"""Loads the root key of a provider and location. Raises RootKeyProblem."""


class Rows(Protocol):
    """What the vault needs of a database; a `sqlite3.Connection` is one. Rows index by position."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any: ...


@final
class Generations(Opaque):
    """The root keys that rows of this database are under. `given` is the one that the process was started with."""

    __slots__ = ("_find", "_known", "given")

    def __init__(self, given: RootKey, find: Find | None = None) -> None:
        self.given = given
        self._find = find or _nowhere
        self._known: dict[tuple[str, str, bytes], RootKey] = {}

    def newest(self, db: Rows) -> tuple[int, RootKey]:
        """The generation that wraps what is new, and its root key. VaultError before `keyleash init`."""
        generation = db.execute("SELECT MAX(id) FROM vault_root WHERE check_blob IS NOT NULL").fetchone()[0]
        if generation is None:
            raise VaultError("This database has no vault yet. Run `keyleash init`.")
        return int(generation), self.of(db, int(generation))

    def of(self, db: Rows, generation: int) -> RootKey:
        """The root key of a generation. CannotOpen where there is none, RootKeyProblem or WrongRootKey at its place."""
        row = db.execute("SELECT provider, location, check_blob FROM vault_root WHERE id = ?", (generation,)).fetchone()
        if row is None:
            raise CannotOpen
        return self.of_row(*row)

    def of_row(self, provider: object, location: object, check: object) -> RootKey:
        """The root key of a row that was read already. Found by the row itself: one that was replaced is looked at."""
        place = (text(provider), text(location), blob(check))
        root = self._known.get(place)
        if root is None:
            root = self._known[place] = self._load(*place)
        return root

    def forget(self) -> None:
        """Drop every root key but the one that the process was started with."""
        self._known.clear()

    def _load(self, provider: str, location: str, check: bytes) -> RootKey:
        if fits(self.given, provider, location, check):
            return self.given
        found = self._find(provider, location)
        if not fits(found, provider, location, check):
            raise wrong_root(found, provider, location)
        return found


def fits(root: RootKey, provider: str, location: str, check: bytes) -> bool:
    """Whether this is the root key of that generation: a local one opens the check, a remote one is of that place.

    A remote key is not asked, so that an unreachable service is no wrong key: what it did not wrap it does not unwrap.
    """
    if root.remote:
        return (root.provider, root.location) == (provider, location)
    try:
        root.unwrap(check, context=ROOT_CHECK)
    except CannotOpen:
        return False
    return True


def blob(value: object) -> bytes:
    """A column's bytes. One that was overwritten with something else opens no more than an altered one."""
    if not isinstance(value, bytes):
        raise CannotOpen
    return value


def text(value: object) -> str:
    """A column's text, as `blob` is its bytes."""
    if not isinstance(value, str):
        raise CannotOpen
    return value


def wrong_root(found: RootKey, provider: str, location: str) -> WrongRootKey:
    """The refusal of a root key that is not the one it should be."""
    return WrongRootKey(
        f"The root key from {found.provider} ({found.location}) is not the one that this database was made with, "
        f"which was kept in {provider} ({location}). Put that key back, or point Keyleash at it; no other key opens "
        "what is stored."
    )


def _nowhere(provider: str, location: str) -> RootKey:
    raise RootKeyProblem(
        f"A root key is kept in {provider} ({location}), and this process was not told how to load it. Start it again."
    )
