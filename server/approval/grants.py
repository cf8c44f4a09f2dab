"""A decision that covers more than one call: same tool, same target, at most an hour and so many uses."""

import json
from typing import Any

from connectors.definition import Call, Effect, canonical
from server.approval.record import CLOCKS_APART_MS, Approval, ApprovalProblem, Asked, still_enough
from server.approval.register import Register
from server.approval.work import Found, Works, status
from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Database, Rows
from server.identity import new_id
from vault import Vault

GRANT_MS = 60 * 60 * 1000
GRANT_USES = 20
IN_CLIENT = (Effect.SENSITIVE, Effect.WRITE, Effect.SEND)
"""The effects for which the person at the client may give a grant; for the rest, only someone signed in."""

DENIED_NOW = "a rule denies it now"


class Grants:
    """The grants of an installation."""

    def __init__(self, database: Database, vault: Vault, register: Register, works: Works) -> None:
        self._database = database
        self._vault = vault
        self._register = register
        self._works = works

    def match(self, asked: Asked) -> Found | None:
        """The grant that covers this call now, if there is one; `take` counts it down."""
        keeps = asked.call.tool.grant
        if not keeps:
            return None
        now = now_ms()
        rows = self._database.of(asked.caller.org).read(
            "SELECT id, approval FROM call_grant WHERE org = ? AND agent = ? AND tool = ? AND connection = ? "
            "AND credential_version = ? AND definition = ? AND bounds_hash = ? AND uses_left > 0 "
            "AND revoked_at IS NULL AND expires_at > ? AND created_at <= ? ORDER BY expires_at",
            (
                asked.caller.org,
                asked.caller.agent,
                asked.call.name,
                asked.connection.id,
                asked.connection.credential_version,
                asked.call.tool.definition_hash,
                self._bounds_hash(asked.caller.org, asked.call),
                now,
                now + CLOCKS_APART_MS,
            ),
        )
        for grant, approval in rows:
            given = self._register.find(asked.caller.org, approval)
            if given is not None and still_enough(asked.verdict, given):
                return Found(str(grant), None, given)
        return None

    def take(self, rows: Rows, org: str, grant: str) -> bool:
        """Take one use, in the same transaction as the attempt; False where none is left."""
        now = now_ms()
        taken = rows.execute(
            "UPDATE call_grant SET uses_left = uses_left - 1 WHERE org = ? AND id = ? AND uses_left > 0 "
            "AND revoked_at IS NULL AND expires_at > ? AND created_at <= ?",
            (org, grant, now, now + CLOCKS_APART_MS),
        )
        return bool(taken.rowcount == 1)

    def may_be_given(self, rows: Rows, record: Approval, *, signed_in: bool) -> bool:
        """Whether a decision about this record may cover more than its one call."""
        if not signed_in and Effect(record.effect) not in IN_CLIENT:
            return False
        return bool(self._register.details_in(rows, record)["keeps"])

    def give(self, rows: Rows, record: Approval, made: dict[str, Any], now: int) -> None:
        """Write the grant that a decision gives, with the record's own arguments as its bounds."""
        details = self._register.details_in(rows, record)
        bounds = {name: details["arguments"].get(name) for name in details["keeps"]}
        grant = new_id("grt")
        rows.execute(
            "INSERT INTO call_grant (org, id, agent, agent_name, connection, credential_version, tool, definition, "
            "ruling, bounds_hash, sealed_bounds, uses, uses_left, approval, decided_by, channel, created_at, "
            "expires_at) "
            f"VALUES ({', '.join('?' * 18)})",
            (
                record.org,
                grant,
                record.agent,
                record.agent_name,
                record.connection,
                record.credential_version,
                record.tool,
                record.definition,
                record.ruling.value,
                self._register.keyed(record.org, "grant-bounds", canonical([record.tool, bounds])),
                self._vault.seal_text(rows, record.org, "grant-bounds", grant, json.dumps(bounds)),
                GRANT_USES,
                GRANT_USES,
                record.id,
                made["by"] or "",
                made["channel"],
                now,
                now + GRANT_MS,
            ),
        )
        append(
            rows,
            record.org,
            Event.GRANT_CREATED,
            grant=grant,
            approval=record.id,
            agent=record.agent_name,
            tool=record.tool,
            keeps=details["keeps"],
            uses=GRANT_USES,
            expires_at=iso(now + GRANT_MS),
            approver=made["by"],
            channel=made["channel"],
            known_by=made["known_by"],
        )

    def revoke(self, rows: Rows, org: str, grant: str, *, by: str) -> None:
        """End a grant at once. Raises ApprovalProblem where there is none to end."""
        ended = rows.execute(
            "UPDATE call_grant SET revoked_at = ? WHERE org = ? AND id = ? AND revoked_at IS NULL",
            (now_ms(), org, grant),
        )
        if ended.rowcount == 1:
            append(rows, org, Event.GRANT_REVOKED, grant=grant, by=by)
        elif not self._works.revoke(rows, org, grant, by=by):
            raise ApprovalProblem(f"There is no running grant {grant!r}. `keyleash grant list` shows them.")

    async def overrule(self, org: str, agent: str, tool: str) -> None:
        """A rule now denies the agent a call of this tool: its grants end, and do not come back with the rule."""
        mine, now = (org, agent, tool), now_ms()
        running = "SELECT id FROM call_grant WHERE org = ? AND agent = ? AND tool = ? AND revoked_at IS NULL AND "
        running += "uses_left > 0 AND expires_at > ?"
        if not self._database.of(org).read(running, (*mine, now)):
            return

        def change(rows: Rows) -> None:
            for (grant,) in rows.execute(running, (*mine, now)).fetchall():
                rows.execute("UPDATE call_grant SET revoked_at = ? WHERE org = ? AND id = ?", (now, org, grant))
                append(rows, org, Event.GRANT_REVOKED, grant=grant, tool=tool, reason=DENIED_NOW)

        await self._database.of(org).write(change)

    def running(self, org: str, *, every: bool = False) -> list[dict[str, Any]]:
        """Every grant that has not ended, oldest first, with its bounds in clear: for people of this org only.

        `every`: the ended ones too. Bounds that are not kept any more are None.
        """

        def read(rows: Rows) -> list[dict[str, Any]]:
            now = now_ms()
            found = [*self._given(rows, org, now, every=every), *self._works.shown(rows, org, now, every=every)]
            return sorted(found, key=lambda one: (one["created_at"], one["id"]))

        return self._database.of(org).snapshot(read)

    def _given(self, rows: Rows, org: str, now: int, *, every: bool) -> list[dict[str, Any]]:
        running = "" if every else "AND revoked_at IS NULL AND expires_at > ? AND uses_left > 0 "
        found = rows.execute(
            "SELECT id, agent_name, tool, sealed_bounds, uses, uses_left, approval, decided_by, channel, created_at, "
            f"expires_at, revoked_at, agent FROM call_grant WHERE org = ? {running}ORDER BY created_at",
            (org,) if every else (org, now),
        ).fetchall()
        return [
            {
                "id": row[0],
                "agent": row[1],
                "agent_id": row[12],
                "tool": row[2],
                "bounds": None
                if row[3] is None
                else json.loads(self._vault.unseal_text(rows, org, "grant-bounds", row[0], row[3])),
                "uses": row[4],
                "uses_left": row[5],
                "approval": row[6],
                "decided_by": row[7],
                "channel": row[8],
                "created_at": iso(row[9]),
                "expires_at": iso(row[10]),
                "status": status(now, row[5], row[10], row[11]),
            }
            for row in found
        ]

    def _bounds_hash(self, org: str, call: Call) -> str:
        bounds = {name: call.arguments.get(name) for name in call.tool.grant}
        return self._register.keyed(org, "grant-bounds", canonical([call.name, bounds]))
