"""Take a person's decision: who may make it, what it settles, and what is written of it."""

import json
from typing import Any

from server.approval.channels import tell, through
from server.approval.eligible import CIRCLES
from server.approval.grants import Grants
from server.approval.outbox import Happening
from server.approval.record import Approval, ApprovalProblem, Decision, State, one, stands_in
from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Rows
from server.identity import Actor
from server.policy import Ruling


class Decisions:
    """Where records are decided; every decision runs in its caller's transaction."""

    def __init__(self, grants: Grants) -> None:
        self._grants = grants

    def decide(
        self, rows: Rows, approval: Approval, decision: Decision, actor: Actor, *, unattended: bool = False
    ) -> State:
        """Take a person's decision, made outside the client. Raises ApprovalProblem; returns the state it led to."""
        current = one(rows, approval.org, approval.id)
        if current is None or current.state is not State.PENDING or current.expires_at <= now_ms():
            state = current.state.value if current else "gone"
            raise ApprovalProblem(f"Approval {approval.id} is {state if state != 'pending' else 'expired'} already.")
        _require_eligible(current, decision, actor)
        how = {"unattended": True} if unattended else {}
        made = through("command line", by=actor.member.name, known_by=actor.known_by, **how)
        if decision is Decision.DENY or current.ruling is Ruling.CONFIRM:
            self.settle(rows, current, decision, made, signed_in=actor.signed_in, now=now_ms())
        else:
            self._count(rows, current, decision, made, signed_in=actor.signed_in)
        after = one(rows, approval.org, approval.id)
        return after.state if after else State.CANCELLED

    def _count(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], *, signed_in: bool
    ) -> None:
        """Add one of several required approvals; the last one settles it, for an hour only where all have said so."""
        if decision is Decision.APPROVE_HOUR and any(each["decision"] != decision.value for each in record.decisions):
            raise ApprovalProblem("Who approved before you agreed to this call only. Approve it, or deny it.")
        if len(record.decisions) + 1 >= record.needed:
            self.settle(rows, record, decision, made, signed_in=signed_in, now=now_ms())
            return
        now = now_ms()
        decisions = [*record.decisions, {**made, "decision": decision.value, "at": iso(now)}]
        rows.execute(
            "UPDATE approval SET decisions = ?, changed_at = ? WHERE org = ? AND id = ? AND state = 'pending'",
            (json.dumps(decisions), now, record.org, record.id),
        )
        _write_decision(rows, record, decision, made, State.PENDING)

    def settle(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], *, signed_in: bool, now: int
    ) -> None:
        """Pending to approved or denied, if it still is pending and in time; otherwise nothing happens."""
        grants = decision is Decision.APPROVE_HOUR
        if grants and not self._grants.may_be_given(rows, record, signed_in=signed_in):
            raise ApprovalProblem("This call can be approved by itself only, not for an hour.")
        state = State.DENIED if decision is Decision.DENY else State.APPROVED
        decisions = [*record.decisions, {**made, "decision": decision.value, "at": iso(now)}]
        moved = rows.execute(
            "UPDATE approval SET state = ?, decisions = ?, changed_at = ? "
            "WHERE org = ? AND id = ? AND state = 'pending' AND expires_at > ?",
            (state.value, json.dumps(decisions), now, record.org, record.id, now),
        )
        if moved.rowcount != 1:
            return
        _write_decision(rows, record, decision, made, state)
        if grants:
            self._grants.give(rows, record, made, now)


def _require_eligible(record: Approval, decision: Decision, actor: Actor) -> None:
    roles = set(actor.member.roles)
    if record.ruling is Ruling.CONFIRM:
        if actor.member.id != record.member and not roles & {"approver", "admin", "owner"}:
            raise ApprovalProblem(
                f"{actor.member.name} cannot decide this: it is for the member it was asked for, "
                "or an approver, admin or owner."
            )
        return
    if not actor.signed_in:
        raise ApprovalProblem(
            "This call needs an approver who is known as themselves; `--as` does not count. "
            "Let them decide from their own account on this machine."
        )
    for wanted in record.approvers or ("role:any",):
        if not stands_in(actor, wanted):
            raise ApprovalProblem(f"{actor.member.name} is not {CIRCLES.get(wanted, wanted)}.")
    if record.second_person and actor.member.id == record.member and decision is not Decision.DENY:
        raise ApprovalProblem("The rule asks for a second person: who asked cannot be who approves.")
    if any(made["by"] == actor.member.name for made in record.decisions):
        raise ApprovalProblem(f"{actor.member.name} has decided already; one person counts once.")


def _write_decision(rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], state: State) -> None:
    append(
        rows,
        record.org,
        Event.APPROVAL_DECIDED,
        approval=record.id,
        agent=record.agent_name,
        tool=record.tool,
        effect=record.effect,
        decision=decision.value,
        state=state.value,
        **{"approver" if key == "by" else key: value for key, value in made.items()},
    )
    tell(rows, record.org, record.id, Happening.DECIDED)
