"""What ends with an agent or a connection: its waiting approvals and its grants, each on record."""

from typing import Literal

from server.audit import Event, append
from server.clock import now_ms
from server.database import Rows


def end_with(rows: Rows, org: str, what: Literal["agent", "connection"], identifier: str, *, by: str) -> None:
    """Cancel the pending and approved calls, and revoke the running grants, of an agent or connection (its id)."""
    now = now_ms()
    for (approval,) in rows.execute(
        f"SELECT id FROM approval WHERE org = ? AND {what} = ? AND state IN ('pending', 'approved')", (org, identifier)
    ).fetchall():
        rows.execute(
            "UPDATE approval SET state = 'cancelled', changed_at = ? WHERE org = ? AND id = ?", (now, org, approval)
        )
        append(rows, org, Event.APPROVAL_CANCELLED, approval=approval, by=by)
    for (grant,) in rows.execute(
        f"SELECT id FROM call_grant WHERE org = ? AND {what} = ? AND revoked_at IS NULL AND expires_at > ?",
        (org, identifier, now),
    ).fetchall():
        rows.execute("UPDATE call_grant SET revoked_at = ? WHERE org = ? AND id = ?", (now, org, grant))
        append(rows, org, Event.GRANT_REVOKED, grant=grant, by=by)
