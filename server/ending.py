"""What ends with an agent or connection: its waiting approvals and its grants, each on record; with an org: all.

With a restore: every waiting approval and running grant, for they may have been used since the backup.
"""

from collections.abc import Sequence
from typing import Any, Literal

from server.audit import Event, append
from server.clock import now_ms
from server.database import Rows


def end_with(rows: Rows, org: str, what: Literal["agent", "connection"], identifier: str, *, by: str) -> None:
    """Cancel the pending and approved calls, and revoke the running grants, of an agent or connection (its id)."""
    _end(rows, org, f"org = ? AND {what} = ?", (org, identifier), by=by)


def end_all(rows: Rows, org: str, *, by: str) -> tuple[int, int]:
    """Cancel every pending and approved call of an org, and revoke its running grants; returns how many of each."""
    return _end(rows, org, "org = ?", (org,), by=by)


def _end(rows: Rows, org: str, whose: str, values: Sequence[Any], *, by: str) -> tuple[int, int]:
    now = now_ms()
    approvals = rows.execute(
        f"SELECT id FROM approval WHERE {whose} AND state IN ('pending', 'approved')", values
    ).fetchall()
    for (approval,) in approvals:
        rows.execute(
            "UPDATE approval SET state = 'cancelled', changed_at = ? WHERE org = ? AND id = ?", (now, org, approval)
        )
        append(rows, org, Event.APPROVAL_CANCELLED, approval=approval, by=by)
    grants = rows.execute(
        f"SELECT id FROM call_grant WHERE {whose} AND revoked_at IS NULL AND expires_at > ?", (*values, now)
    ).fetchall()
    for (grant,) in grants:
        rows.execute("UPDATE call_grant SET revoked_at = ? WHERE org = ? AND id = ?", (now, org, grant))
        append(rows, org, Event.GRANT_REVOKED, grant=grant, by=by)
    return len(approvals), len(grants)


OF_AN_ORG = (
    *("vault_field", "vault_credential", "vault_derived", "vault_org_key"),
    *("call_grant", "approval", "recorded_call", "rule_version", "rule", "connection", "agent", "member"),
    *("notice", "channel"),
)
"""Every table whose rows end with their org, those that refer to others first; its log and its erasures stay."""

_COUNTED = {
    "members": "member",
    "agents": "agent",
    "connections": "connection",
    "rules": "rule",
    "approvals": "approval",
    "grants": "call_grant",
    "channels": "channel",
    "keys": "vault_org_key",
}


def belongings(rows: Rows, org: str) -> dict[str, int]:
    """How much an org has of each kind that a person knows."""
    return {
        kind: rows.execute(f"SELECT COUNT(*) FROM {table} WHERE org = ?", (org,)).fetchone()[0]
        for kind, table in _COUNTED.items()
    }


def end_org(rows: Rows, org: str, *, by: str) -> dict[str, int]:
    """Delete everything that belongs to an org, its key included, but for its log; returns how much that was."""
    had = belongings(rows, org)
    for (agent,) in rows.execute("SELECT id FROM agent WHERE org = ?", (org,)).fetchall():
        end_with(rows, org, "agent", agent, by=by)
    for table in OF_AN_ORG:
        rows.execute(f"DELETE FROM {table} WHERE org = ?", (org,))
    return had
