"""What ends with an agent or connection: its waiting approvals and its grants, each on record; with an org: all.

With a restore: every waiting approval and running grant, for they may have been used since the backup.
"""

from collections.abc import Sequence
from typing import Any, Literal

from server.audit import Event, append
from server.clock import now_ms
from server.database import Rows


def end_with(rows: Rows, org: str, what: Literal["agent", "connection"], identifier: str, *, by: str) -> None:
    """Cancel the pending and approved calls, and revoke the running grants, of an agent or connection (its id).

    Work that was prepared ahead ends with the one agent that runs it, and with any connection that it covers.
    """
    now = now_ms()
    _end_approvals(rows, org, now, f"{what} = ?", (identifier,), by=by)
    _end_grants(rows, org, now, "call_grant", f"{what} = ?", (identifier,), by=by)
    works = {
        "agent": ("runner = ?", (f"agent:{identifier}",)),
        "connection": ("id IN (SELECT work FROM work_tool WHERE org = ? AND connection = ?)", (org, identifier)),
    }
    where, values = works[what]
    decided = f"work IN (SELECT id FROM work WHERE org = ? AND {where})"
    _end_approvals(rows, org, now, decided, (org, *values), by=by)
    _end_grants(rows, org, now, "work", where, values, by=by)


def end_all(rows: Rows, org: str, *, by: str) -> tuple[int, int]:
    """Cancel every pending and approved call of an org, and revoke its running grants; returns how many of each."""
    now = now_ms()
    approvals = _end_approvals(rows, org, now, "1 = 1", (), by=by)
    return approvals, sum(_end_grants(rows, org, now, table, "1 = 1", (), by=by) for table in ("call_grant", "work"))


def _end_approvals(rows: Rows, org: str, now: int, whose: str, values: Sequence[Any], *, by: str) -> int:
    found = rows.execute(
        f"SELECT id FROM approval WHERE org = ? AND {whose} AND state IN ('pending', 'approved')", (org, *values)
    ).fetchall()
    for (approval,) in found:
        rows.execute(
            "UPDATE approval SET state = 'cancelled', changed_at = ? WHERE org = ? AND id = ?", (now, org, approval)
        )
        append(rows, org, Event.APPROVAL_CANCELLED, approval=approval, by=by)
    return len(found)


def _end_grants(  # noqa: PLR0917 - like the one above, of a table
    rows: Rows, org: str, now: int, table: str, whose: str, values: Sequence[Any], *, by: str
) -> int:
    found = rows.execute(
        f"SELECT id FROM {table} WHERE org = ? AND {whose} AND revoked_at IS NULL AND expires_at > ?",
        (org, *values, now),
    ).fetchall()
    for (grant,) in found:
        rows.execute(f"UPDATE {table} SET revoked_at = ? WHERE org = ? AND id = ?", (now, org, grant))
        append(rows, org, Event.GRANT_REVOKED, grant=grant, by=by)
    return len(found)


OF_AN_ORG = (
    *("oauth_token", "oauth_revocation", "held_definition", "definition_look", "managed_offer"),
    *("vault_field", "vault_credential", "vault_derived", "vault_org_key"),
    *("work_tool", "work", "lost_call", "log_mark"),
    *("call_grant", "approval", "recorded_call", "rule_version", "rule", "connection", "agent", "member"),
    *("notice", "channel"),
    *("usage_cost", "usage_day", "usage_quota", "budget", "connection_limit", "connection_pace"),
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
    end_all(rows, org, by=by)
    for table in OF_AN_ORG:
        rows.execute(f"DELETE FROM {table} WHERE org = ?", (org,))
    return had
