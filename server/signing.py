"""Whose hand an org's log is signed with: a key that the vault derives, and under which name it signs.

The public key stands in the database (`audit_key`), is on record in the log itself, and stays when the org is removed.
There is one key for each org, and none after it: a rotation of the org's key or the root key carries it over.

The name is `keyleash/ORG`; where a loss was accepted (an older database was put back), the log that goes on from there
is another one, `keyleash/ORG/SEQ` by the entry that says so: under one name no two checkpoints contradict each other.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from server.audit import Event, append
from server.audit.checkpoints import NotedProblem, Signer, grow, statement
from server.audit.note import VerifierKey, origin_of
from server.audit.noted import NotedHeads
from server.audit.proof import key_in
from server.clock import now_ms
from server.database import Database, DatabaseProblem, Rows
from server.keys import have_at_hand
from server.settings import Settings
from vault import Vault, VaultError
from vault.signing import signing_key

log = logging.getLogger("keyleash")

PURPOSE = "audit-signing"
"""What the key is derived for."""

Sign = Callable[[str], Signer | None]
"""The signer of an org's log; None where there is none, or not now."""


def signer_of(database: Database, vault: Vault, org: str) -> Signer:
    """The signer of an org's log; its public key is put on record the first time. Raises VaultError, NotedProblem."""
    have_at_hand(database, vault, org)
    scoped = database.of(org)
    key = scoped.query(lambda rows: signing_key(vault, rows, org, PURPOSE))
    found = key_in(scoped, org)
    if found is None:
        scoped.write_now(lambda rows: _introduce(rows, org, key.public))
        found = key_in(scoped, org)
    if found is None or found.public != key.public:
        raise NotedProblem(
            f"The public key of the log of {org} in the database is not the one that the vault has: somebody has put "
            "another there. Nothing is signed. Compare it with the one that was handed on (`keyleash audit key`)."
        )
    return Signer(found.name, key)


def signing(database: Database, vault: Vault) -> Sign:
    """`signer_of` for whoever goes on without, which is logged."""

    def sign(org: str) -> Signer | None:
        if vault.sealed is not None or not database.of(org).read("SELECT 1 FROM org WHERE id = ?", (org,)):
            return None
        try:
            return signer_of(database, vault, org)
        except (VaultError, DatabaseProblem) as problem:
            log.warning("no checkpoint of %s can be signed now: %s", org, problem)
            return None

    return sign


def begin_anew(rows: Rows, org: str, seq: int) -> None:
    """Let the log that goes on after a loss have a name of its own, by the entry that says so."""
    rows.execute("UPDATE audit_key SET origin = ? WHERE org = ?", (f"{origin_of(org)}/{seq}", org))


def leaving(database: Database, vault: Vault, settings: Settings, org: str) -> Callable[[Rows], None]:
    """What signs a removed org's log for the last time, in the transaction that removes it and destroys its key.

    Raises VaultError or NotedProblem where it cannot be signed.
    """
    signer = signer_of(database, vault, org)
    noted = NotedHeads(settings.noted_heads)
    noted.checkpoint(database, org, signer, whole=False)
    so_far, _ = noted.signed.look(database.of(org), org, signer.key.public)

    def sign(rows: Rows) -> None:
        grow(_Reading(rows), org, so_far)
        rows.execute("UPDATE audit_key SET last = ? WHERE org = ?", (str(statement(so_far, signer)), org))

    return sign


class _Reading:
    """What a transaction sees, as a reader."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def read(self, sql: str, params: Sequence[Any] = (), /) -> list[tuple[Any, ...]]:
        return list(self._rows.execute(sql, params).fetchall())


def _says_behind(body: str) -> bool:
    try:
        return bool(json.loads(body).get("behind"))
    except (ValueError, AttributeError):
        return False  # altered, which whoever verifies is told


def _introduce(rows: Rows, org: str, public: bytes) -> None:
    """Write the public key down, once, and put it on record."""
    lost = rows.execute(
        "SELECT seq, body FROM audit_entry WHERE org = ? AND event IN (?, ?) ORDER BY seq DESC",
        (org, Event.VAULT_RESTORED.value, Event.VAULT_ROLLBACK_ACCEPTED.value),
    ).fetchall()
    since = next((seq for seq, body in lost if _says_behind(body)), None)
    origin = origin_of(org) if since is None else f"{origin_of(org)}/{since}"
    made = rows.execute(
        "INSERT INTO audit_key (org, origin, public, made_at, last) VALUES (?, ?, ?, ?, NULL) "
        "ON CONFLICT (org) DO NOTHING",
        (org, origin, public.hex(), now_ms()),
    )
    if made.rowcount == 1:
        append(rows, org, Event.AUDIT_KEY_MADE, key=str(VerifierKey(origin, public)))
