"""Read the held calls of an org, and open what is sealed in them."""

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

from connectors.definition import Call, canonical
from server.approval.record import COLUMNS, LOST_MS, Approval, State, approval_of, over
from server.clock import now_ms
from server.database import Database, Rows
from server.errors import Refused
from vault import Vault, VaultError


class Register:
    """The records of an installation. Every method takes the org, or a record that carries it."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def find(self, org: str, approval: str) -> Approval | None:
        """One record of this org, or None: another org's id is not found."""
        rows = self._database.of(org).read(f"SELECT {COLUMNS} FROM approval WHERE org = ? AND id = ?", (org, approval))
        return approval_of(rows[0]) if rows else None

    def list(
        self, org: str, *, state: State | None = None, member: str | None = None, limit: int = 200
    ) -> list[Approval]:
        """The newest records of an org; with `member` (an id), those that were asked for them or that they decided.

        Pending ones that have expired are shown as such.

        Of one state, all there are, the oldest first: none is to be hidden behind newer ones.
        """
        given: dict[str, tuple[str, ...]] = {" AND state = ?": (state.value,)} if state else {}
        if member is not None:
            given[" AND (member = ? OR decisions LIKE ?)"] = (member, f'%"by_id": "{member}"%')
        where, values = "".join(given), [value for each in given.values() for value in each]
        order = "created_at, id" if state else "created_at DESC, id LIMIT ?"
        rows = self._database.of(org).read(
            f"SELECT {COLUMNS} FROM approval WHERE org = ?{where} ORDER BY {order}",
            (org, *values, *(() if state else (limit,))),
        )
        aged = (self.aged(approval_of(row)) for row in rows)
        return [record for record in aged if state is None or record.state is state]

    def prompt(self, record: Approval) -> str:
        """The whole prompt, as it was rendered when the call was held."""
        return self._database.of(record.org).snapshot(
            lambda rows: self._open(rows, record, "sealed_prompt", "approval-prompt") or ""
        )

    def details(self, record: Approval) -> dict[str, Any]:
        """The stored call: `arguments`, `keeps` (what a grant would keep fixed) and `summary`."""
        return self._database.of(record.org).snapshot(lambda rows: self.details_in(rows, record))

    def outcome(self, record: Approval) -> dict[str, Any] | None:
        """What came of it, as the client was told; None while there is nothing to tell."""
        text = self._database.of(record.org).snapshot(
            lambda rows: self._open(rows, record, "sealed_outcome", "approval-outcome")
        )
        return None if text is None else json.loads(text)

    # -- as time has left them

    def again(self, record: Approval) -> Approval:
        current = self.find(record.org, record.id)
        return self.aged(current) if current else replace(record, state=State.CANCELLED)

    def aged(self, record: Approval) -> Approval:
        """The record as time has left it, whether or not its row has been swept yet."""
        now = now_ms()
        if record.state in (State.PENDING, State.APPROVED) and over(record, now):
            return replace(record, state=State.EXPIRED)
        if record.state is State.EXECUTING and record.changed_at + LOST_MS <= now:
            return replace(record, state=State.UNKNOWN)
        return record

    # -- hashes and seals

    def call_hash(self, org: str, call: Call) -> str:
        """A keyed hash of the tool and its canonical arguments: equal calls of one org give equal hashes."""
        return self.keyed(org, "call-hash", canonical([call.name, call.canonical]))

    def keyed(self, org: str, purpose: str, text: str) -> str:
        try:
            key = self._database.of(org).query(lambda rows: self._vault.derive(rows, org, purpose))
        except VaultError:
            if self._database.of(org).read("SELECT 1 FROM org WHERE id = ?", (org,)):
                raise
            raise Refused("the organisation was removed just now") from None
        return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def details_in(self, rows: Rows, record: Approval) -> dict[str, Any]:
        details: dict[str, Any] = json.loads(self._open(rows, record, "sealed_call", "approval-call") or "{}")
        return details

    def _open(self, rows: Rows, record: Approval, column: str, purpose: str) -> str | None:
        """A sealed text of a record, None where there is none; in one snapshot with the key that it is under."""
        row = rows.execute(
            f"SELECT {column} FROM approval WHERE org = ? AND id = ?", (record.org, record.id)
        ).fetchone()
        if row is None or row[0] is None:
            return None
        return self._vault.unseal_text(rows, record.org, purpose, record.id, row[0])
