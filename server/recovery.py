"""The root key out of its recovery file, and back in a place that keeps it."""

from typing import NamedTuple

from server.audit import Event, append
from server.database import Database, Rows
from vault import RootKey, RootKeyRef, Secret, VaultError
from vault import generations as roots
from vault.errors import RecoveryProblem
from vault.recovery import RecoveryFile, mark, taking


class Generation(NamedTuple):
    """The generation of the root key that a database's newest rows are under, and where it was kept."""

    id: int
    provider: str
    location: str
    check: bytes


def newest_generation(rows: Rows) -> Generation | None:
    """The generation that wraps what is new; None where there is none, or its row is not as it was written."""
    row = rows.execute(
        "SELECT id, provider, location, check_blob FROM vault_root WHERE check_blob IS NOT NULL "
        "ORDER BY id DESC LIMIT 1"
    ).fetchone()
    return Generation(*row) if row is not None and isinstance(row[3], bytes) else None


def require_fitting(recovery: RecoveryFile, wanted: Generation) -> None:
    """Refuse a recovery file of another root key, before its passphrase is asked for. Raises RecoveryProblem."""
    if recovery.fits == mark(wanted.check):
        return
    raise RecoveryProblem(
        f"The recovery file is for another root key. It was made on {recovery.made_at}, for generation "
        f"{recovery.generation} of its installation's; wanted is generation {wanted.id} of the one that was kept in "
        f"{wanted.provider} ({wanted.location}). Use the recovery file of that one. Nothing was changed."
    )


def keep(recovered: Secret, wanted: Generation, place: RootKeyRef) -> RootKey:
    """The root key at this place, put there where it is not; over no other. Raises VaultError."""
    return place.load() if _holds(place, wanted) else taking(place).keep(recovered)


def _holds(place: RootKeyRef, wanted: Generation) -> bool:
    """Whether this very key is at the place already."""
    try:
        return roots.fits(place.load(), wanted.provider, wanted.location, wanted.check)
    except VaultError:
        return False


def recover_root(
    database: Database, wanted: Generation, recovered: Secret, place: RootKeyRef, *, by: str, noted: bool = True
) -> RootKey:
    """Put the root key of the database that is here back, with an entry in each org's log. Raises VaultError.

    Where it is already, where the database says and where it was to go, nothing is written. Unless `noted`, where the
    database says that it is stays as it was, for the other servers.
    """
    there = (wanted.provider, wanted.location) == (place.provider, place.location) and _holds(place, wanted)
    root = keep(recovered, wanted, place)
    if there:
        return root

    def change(rows: Rows) -> None:
        if noted:
            moved = "UPDATE vault_root SET provider = ?, location = ? WHERE id = ?"
            rows.execute(moved, (root.provider, root.location, wanted.id))
        for (org,) in rows.execute("SELECT id FROM org ORDER BY id").fetchall():
            append(rows, org, Event.VAULT_ROOT_RECOVERED, generation=wanted.id, provider=root.provider, by=by)

    database.write_now(change)
    return root
