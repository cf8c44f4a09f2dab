"""What the server keeps sealed under an org's key, in one list: a rotation seals all of it anew and misses nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.database import Rows
from vault import Vault
from vault.rotation import reseal_text
from vault.store import TEXT_VERSION_BYTES

DERIVED = ("audit-values", "call-hash", "grant-bounds", "audit-signing")
"""What keys are derived for. Their values stand in the log and in records, so they outlive a rotation."""


@dataclass(frozen=True)
class SealedColumn:
    """A column of texts that the vault sealed for `purpose`, each with its row's id as the subject."""

    table: str
    column: str
    purpose: str


SEALED = (
    SealedColumn("approval", "sealed_call", "approval-call"),
    SealedColumn("approval", "sealed_prompt", "approval-prompt"),
    SealedColumn("approval", "sealed_outcome", "approval-outcome"),
    SealedColumn("call_grant", "sealed_bounds", "grant-bounds"),
    SealedColumn("work", "sealed_bounds", "work-bounds"),
    SealedColumn("recorded_call", "sealed_arguments", "recorded-arguments"),
)


@dataclass(frozen=True)
class DueText:
    """A sealed text that is not under the newest version of its org's key."""

    place: SealedColumn
    id: str
    sealed: bytes


def due_texts(rows: Rows, org: str, version: int, *, most: int) -> list[DueText]:
    """Up to `most` texts of an org that are under an earlier version of its key."""
    found: list[DueText] = []
    for place in SEALED:
        found += [
            DueText(place, identifier, sealed)
            for identifier, sealed in rows.execute(
                f"SELECT id, {place.column} FROM {place.table} WHERE org = ? AND {place.column} IS NOT NULL "
                f"AND substr({place.column}, 1, {TEXT_VERSION_BYTES}) < ? LIMIT ?",
                (org, version.to_bytes(TEXT_VERSION_BYTES, "big"), most - len(found)),
            ).fetchall()
        ]
        if len(found) >= most:
            break
    return found


def reseal(rows: Rows, vault: Vault, org: str, due: DueText) -> None:
    """Seal a text anew, unless it has changed meanwhile. CannotOpen where it was altered."""
    place = due.place
    rows.execute(
        f"UPDATE {place.table} SET {place.column} = ? WHERE org = ? AND id = ? AND {place.column} = ?",
        (reseal_text(rows, vault, org, place.purpose, due.id, due.sealed), org, due.id, due.sealed),
    )


def texts_under(rows: Rows) -> Iterator[tuple[str, int, int]]:
    """How many texts are under each version of each org's key: (org, version, how many)."""
    counts: dict[tuple[str, int], int] = {}
    for place in SEALED:
        for org, version, count in rows.execute(
            f"SELECT org, substr({place.column}, 1, {TEXT_VERSION_BYTES}), COUNT(*) FROM {place.table} "
            f"WHERE {place.column} IS NOT NULL GROUP BY 1, 2"
        ).fetchall():
            slot = (org, int.from_bytes(version, "big"))
            counts[slot] = counts.get(slot, 0) + count
    yield from ((org, version, count) for (org, version), count in sorted(counts.items()))
