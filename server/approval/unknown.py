"""Calls of which nobody knows what became of them: found on the record, shown to people, and settled by their word.

An attempt without an outcome is lost once it is older than a call can take: the process that made it is gone.
"""

import json
from dataclasses import dataclass
from typing import Any, cast

from connectors.definition import Call, Effect
from server.approval.decisions import Decisions, as_of_now, require_one_who_may, resolution, write_resolution
from server.approval.eligible import in_circle
from server.approval.record import LOST_MS, Approval, ApprovalProblem, Asked, Before, Clearance, one, sweep
from server.audit import Event, append
from server.clock import now_ms
from server.database import Database, Rows
from server.identity import Actor, new_id
from server.policy import ANYONE

PAGE = 500
_ENDS = ("call.outcome", "call.unknown")


@dataclass(frozen=True)
class LostCall:
    """A call without an approval of its own that may have changed something. `grant` is what it ran under, if any."""

    org: str
    id: str
    attempt: int
    agent: str
    agent_name: str
    connection: str
    tool: str
    effect: str
    grant: str | None
    at: int


@dataclass(frozen=True)
class Look:
    """What a look through the log came to: what was lost, how far it went, and how far nothing is open any more."""

    before: int
    lost: dict[int, dict[str, Any]]
    read: int
    settled: int


def unsure(call: Call, before: Before | None) -> bool:
    """Whether the call may change something that an earlier one just like it may have changed already."""
    return before is not None and not before.known and call.tool.effect not in _HARMLESS


class Unknown:
    """The lost calls of an installation."""

    def __init__(self, database: Database, decisions: Decisions) -> None:
        self._database = database
        self._decisions = decisions

    # -- under way

    def begun(self, rows: Rows, asked: Asked, clearance: Clearance, attempt: int) -> str | None:
        """Note a call under a grant, in its attempt's transaction, until `ended`; None for what changes nothing."""
        caller, call = asked.caller, asked.call
        if clearance.grant is None or call.tool.effect in _HARMLESS:
            return None
        name = new_id("lst")
        rows.execute(
            _INSERT,
            (
                *(caller.org, name, attempt, caller.agent, caller.agent_name, call.connection, call.name),
                *(call.tool.effect.value, clearance.grant, clearance.call_hash, True, now_ms()),
            ),
        )
        return name

    def ended(self, rows: Rows, org: str, begun: str, *, known: bool) -> None:
        """What became of it is on record now, in this transaction; where that is not `known`, it waits for a look."""
        if known:
            rows.execute("DELETE FROM lost_call WHERE org = ? AND id = ?", (org, begun))
        else:
            rows.execute(
                "UPDATE lost_call SET under_way = ?, at = ? WHERE org = ? AND id = ? AND under_way = ?",
                (False, now_ms(), org, begun, True),
            )

    # -- found

    def look(self, org: str, now: int) -> Look:
        """Read what was written since the last look: which attempts came to no end?"""
        database = self._database.of(org)
        found = database.read("SELECT seq FROM log_mark WHERE org = ?", (org,))
        before = last = int(found[0][0]) if found else 0
        open_ones: dict[int | None, tuple[int, str]] = {}
        while True:
            page = database.read(
                "SELECT seq, at, event, body FROM audit_entry WHERE org = ? AND seq > ? ORDER BY seq LIMIT ?",
                (org, last, PAGE),
            )
            for seq, at, event, body in page:
                if event == Event.CALL_ATTEMPT.value:
                    open_ones[seq] = (at, body)
                elif event in _ENDS:
                    open_ones.pop(_attempt(body), None)
            if len(page) < PAGE:
                break
            last = page[-1][0]
        last = page[-1][0] if page else last
        attempts = [(seq, at, body) for seq, (at, body) in open_ones.items() if seq is not None]
        lost = {seq: _parsed(body) for seq, at, body in attempts if at <= now - LOST_MS}
        running = [seq for seq, at, _ in attempts if at > now - LOST_MS]
        return Look(before, lost, last, min(running) - 1 if running else last)

    def write_down(self, rows: Rows, org: str, look: Look, now: int) -> bool:
        """Give every lost attempt its end on record, once; False where another process has looked meanwhile."""
        if look.before == 0:
            rows.execute("INSERT INTO log_mark (org, seq) VALUES (?, 0) ON CONFLICT (org) DO NOTHING", (org,))
        moved = rows.execute("UPDATE log_mark SET seq = ? WHERE org = ? AND seq = ?", (look.settled, org, look.before))
        if moved.rowcount != 1:
            return False
        since = rows.execute(
            "SELECT event, body FROM audit_entry WHERE org = ? AND seq > ? AND event IN (?, ?)",
            (org, look.read, *_ENDS),
        ).fetchall()
        ended = {_attempt(body) for _, body in since}
        for seq, body in look.lost.items():
            if seq not in ended:
                self._write_down(rows, org, seq, body, now)
        return True

    def _write_down(self, rows: Rows, org: str, seq: int, body: dict[str, Any], now: int) -> None:
        kept = {name: body.get(name) for name in _KEPT}
        append(rows, org, Event.CALL_UNKNOWN, attempt=seq, attempted_at=body.get("at"), outcome="unknown", **kept)
        effect = str(body.get("effect"))
        if body.get("approval") is not None or effect in _HARMLESS:
            return  # an approval is itself unknown
        noted = rows.execute(
            "UPDATE lost_call SET under_way = ?, at = ? WHERE org = ? AND attempt = ? AND under_way = ?",
            (False, now, org, seq, True),
        )
        if noted.rowcount:
            return
        rows.execute(
            _INSERT,
            (
                org,
                new_id("lst"),
                seq,
                str(body.get("agent_id")),
                str(body.get("agent")),
                str(body.get("connection")),
                str(body.get("tool")),
                effect,
                body.get("grant"),
                None,
                False,
                now,
            ),
        )

    # -- shown

    def approvals(self, org: str, *, limit: int = 200) -> list[str]:
        """The ids of approvals whose outcome nobody has looked into, oldest first."""
        rows = self._database.of(org).read(
            "SELECT id FROM approval WHERE org = ? AND resolution IS NULL "
            "AND (state = 'unknown' OR (state = 'executing' AND changed_at <= ?)) ORDER BY changed_at, id LIMIT ?",
            (org, now_ms() - LOST_MS, limit),
        )
        return [str(row[0]) for row in rows]

    def calls(self, org: str, *, limit: int = 200) -> list[LostCall]:
        """Lost calls without an approval of their own into which nobody has looked, oldest first."""
        rows = self._database.of(org).read(
            f"SELECT {_COLUMNS} FROM lost_call WHERE org = ? AND resolution IS NULL AND under_way = ? "
            "ORDER BY at, id LIMIT ?",
            (org, False, limit),
        )
        return [LostCall(*row) for row in rows]

    # -- settled

    def resolve(
        self, rows: Rows, org: str, identifier: str, *, happened: bool, actor: Actor, note: str | None = None
    ) -> None:
        """Write down what a person says became of a lost call, an approved one or another. Raises ApprovalProblem."""
        sweep(rows, org, now_ms())
        record = one(rows, org, identifier)
        if record is not None:
            self._decisions.resolve(rows, record, happened=happened, actor=actor, note=note)
            return
        found = rows.execute(
            f"SELECT {_COLUMNS} FROM lost_call WHERE org = ? AND id = ? AND resolution IS NULL AND under_way = ?",
            (org, identifier, False),
        ).fetchone()
        if found is None:
            raise ApprovalProblem(
                f"There is nothing to look into under {identifier!r}. `keyleash approvals list` shows it."
            )
        lost, actor = LostCall(*found), as_of_now(rows, org, actor)
        _require_one_who_may(rows, lost, actor)
        said = resolution(actor, happened=happened, note=note)
        moved = rows.execute(
            "UPDATE lost_call SET resolution = ? WHERE org = ? AND id = ? AND resolution IS NULL",
            (json.dumps(said), org, lost.id),
        )
        if moved.rowcount != 1:
            raise ApprovalProblem(f"{lost.id} was looked at by somebody else just now.")
        write_resolution(
            rows, org, said, lost=lost.id, attempt=lost.attempt, agent=lost.agent_name, tool=lost.tool, grant=lost.grant
        )


_HARMLESS = (Effect.READ.value, Effect.METERED.value, Effect.SENSITIVE.value)
_COLUMNS = "org, id, attempt, agent, agent_name, connection, tool, effect, call_grant, at"
_INSERT = (
    "INSERT INTO lost_call (org, id, attempt, agent, agent_name, connection, tool, effect, call_grant, call_hash, "
    "under_way, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_KEPT = (
    *("agent", "agent_id", "member", "member_id", "client", "client_version", "transport", "address"),
    *("connection", "account", "ownership", "credential_version", "source", "tool", "definition", "effect"),
    *("verdict", "rules", "approval", "grant", "work", "approver", "channel", "known_by", "host", "method"),
)


def _require_one_who_may(rows: Rows, lost: LostCall, actor: Actor) -> None:
    """Where a grant let it pass, whoever could decide on that; else who it was for, or an approver, admin or owner."""
    record = _granted_by(rows, lost)
    if record is not None:
        require_one_who_may(rows, record, actor)
        return
    agent = rows.execute("SELECT member FROM agent WHERE org = ? AND id = ?", (lost.org, lost.agent)).fetchone()
    if not (agent and agent[0] == actor.member.id) and not in_circle(actor.member, ANYONE):
        raise ApprovalProblem(
            f"{actor.member.name} cannot say this: it is for the member that the agent acts for, "
            "or an approver, admin or owner."
        )


def _granted_by(rows: Rows, lost: LostCall) -> Approval | None:
    for table in ("call_grant", "work"):
        row = rows.execute(f"SELECT approval FROM {table} WHERE org = ? AND id = ?", (lost.org, lost.grant)).fetchone()
        if row is not None:
            return one(rows, lost.org, str(row[0]))
    return None


def _parsed(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _attempt(body: str) -> int | None:
    number = _parsed(body).get("attempt")
    return number if isinstance(number, int) else None
