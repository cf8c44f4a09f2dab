"""Take a person's decision: who may make it, what it settles, and what is written of it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server.approval.channels import tell, through
from server.approval.eligible import CIRCLES, in_circle
from server.approval.grants import Grants
from server.approval.outbox import Happening
from server.approval.record import (
    CLOCKS_APART_MS,
    Approval,
    ApprovalProblem,
    Decision,
    State,
    one,
    over,
)
from server.approval.work import Works, acted_for, confirms
from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Rows
from server.identity import Actor, member_now, people_of
from server.policy import ANYONE, Ruling


class Decisions:
    """Where records are decided; every decision runs in its caller's transaction."""

    def __init__(self, grants: Grants, works: Works) -> None:
        self._grants = grants
        self._works = works

    def decide(
        self, rows: Rows, approval: Approval, decision: Decision, actor: Actor, *, unattended: bool = False
    ) -> State:
        """Take a person's decision, made outside the client. Raises ApprovalProblem; returns the state it led to."""
        current = one(rows, approval.org, approval.id)
        if current is None or current.state is not State.PENDING or over(current, now_ms()):
            state = current.state.value if current else "gone"
            raise ApprovalProblem(f"Approval {approval.id} is {state if state != 'pending' else 'expired'} already.")
        actor = as_of_now(rows, current.org, actor)
        require_eligible(rows, current, decision, actor)
        self._require_grantable(rows, current, decision, signed_in=actor.signed_in)
        how = {"unattended": True} if unattended else {}
        who = {"by": actor.member.name, "by_id": actor.member.id, "known_by": actor.known_by}
        made = through("command line", **who, **how)
        if decision is Decision.DENY or current.ruling is Ruling.CONFIRM:
            self.settle(rows, current, decision, made, signed_in=actor.signed_in, now=now_ms())
        else:
            self._count(rows, current, decision, made, signed_in=actor.signed_in)
        after = one(rows, approval.org, approval.id)
        return after.state if after else State.CANCELLED

    def _require_grantable(self, rows: Rows, record: Approval, decision: Decision, *, signed_in: bool) -> None:
        for_an_hour = decision is Decision.APPROVE_HOUR
        if for_an_hour and not self._grants.may_be_given(rows, record, signed_in=signed_in):
            raise ApprovalProblem("This call can be approved by itself only, not for an hour.")

    def _count(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], *, signed_in: bool
    ) -> None:
        """Add one of several required approvals; the last one settles it, for an hour only where all have said so.

        Who has been removed meanwhile, or is not of the circle any more, does not count.
        """
        counted = standing(rows, record)
        if decision is Decision.APPROVE_HOUR and any(each["decision"] != decision.value for each in counted):
            raise ApprovalProblem("Who approved before you agreed to this call only. Approve it, or deny it.")
        if len(counted) + 1 >= record.needed:
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
        self._require_grantable(rows, record, decision, signed_in=signed_in)
        state = State.DENIED if decision is Decision.DENY else State.APPROVED
        decisions = [*record.decisions, {**made, "decision": decision.value, "at": iso(now)}]
        moved = rows.execute(
            "UPDATE approval SET state = ?, decisions = ?, changed_at = ? "
            "WHERE org = ? AND id = ? AND state = 'pending' AND expires_at > ? AND changed_at <= ?",
            (state.value, json.dumps(decisions), now, record.org, record.id, now, now + CLOCKS_APART_MS),
        )
        if moved.rowcount != 1:
            return
        _write_decision(rows, record, decision, made, state)
        if grants:
            self._grants.give(rows, record, made, now)
        if record.work is not None and state is State.APPROVED:
            self._works.start(rows, record, made, now)

    def resolve(self, rows: Rows, approval: Approval, *, happened: bool, actor: Actor, note: str | None) -> None:
        """Write down what a person says became of an `unknown` call. Raises ApprovalProblem."""
        current = one(rows, approval.org, approval.id)
        if current is None or not current.needs_a_look:
            state = "gone" if current is None else current.state.value
            said = " and has been looked at" if current is not None and current.resolution is not None else ""
            later = current is not None and current.state is State.EXECUTING
            wait = " One that was lost becomes unknown three minutes after it set out." if later else ""
            raise ApprovalProblem(
                f"Approval {approval.id} is {state}{said}: only an unknown outcome can be resolved.{wait}"
            )
        actor = as_of_now(rows, current.org, actor)
        require_one_who_may(rows, current, actor)
        said = resolution(actor, happened=happened, note=note)
        moved = rows.execute(
            "UPDATE approval SET resolution = ? WHERE org = ? AND id = ? AND state = 'unknown' AND resolution IS NULL",
            (json.dumps(said), current.org, current.id),
        )
        if moved.rowcount != 1:
            raise ApprovalProblem(f"Approval {approval.id} was looked at by somebody else just now.")
        write_resolution(rows, current.org, said, approval=current.id, agent=current.agent_name, tool=current.tool)


def resolution(actor: Actor, *, happened: bool, note: str | None) -> dict[str, Any]:
    """What a row keeps of a person's word on an unknown outcome."""
    return {
        "happened": happened,
        "by": actor.member.name,
        "by_id": actor.member.id,
        "known_by": actor.known_by,
        "at": iso(now_ms()),
        "note": note,
        "told": False,
    }


def write_resolution(rows: Rows, org: str, said: dict[str, Any], **what: Any) -> None:
    append(
        rows,
        org,
        Event.APPROVAL_RESOLVED,
        **what,
        happened=said["happened"],
        note=said["note"],
        approver=said["by"],
        known_by=said["known_by"],
        channel="command line",
    )


# -- who may


def as_of_now(rows: Rows, org: str, actor: Actor) -> Actor:
    """Whoever decides, with the roles and groups that they have now in the record's own org. Raises ApprovalProblem."""
    member = member_now(rows, org, actor.member.id)
    if member is None:
        raise ApprovalProblem(f"{actor.member.name} is no member of this org any more, and decides nothing.")
    if actor.signed_in and member.os_user != actor.member.os_user:
        raise ApprovalProblem(f"{actor.member.name} is known by another system user now. Start again as that one.")
    return replace(actor, member=member)


def require_one_who_may(rows: Rows, record: Approval, actor: Actor) -> None:
    """Refuse whoever could have no say about such a call. Raises ApprovalProblem."""
    if record.ruling is Ruling.CONFIRM:
        own = {record.member} if record.work is None else confirms(rows, record.org, record.work)
        if own != {actor.member.id} and not in_circle(actor.member, ANYONE):
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
    for wanted in circles(record):
        if not in_circle(actor.member, wanted):
            raise ApprovalProblem(f"{actor.member.name} is not {CIRCLES.get(wanted, wanted)}.")


def require_eligible(rows: Rows, record: Approval, decision: Decision, actor: Actor) -> None:
    """Refuse whoever may not make this decision on this record. Raises ApprovalProblem."""
    require_one_who_may(rows, record, actor)
    if record.work is not None and decision is not Decision.DENY and not actor.signed_in:
        raise ApprovalProblem(
            "Work that is prepared ahead is agreed to by a person who is known as themselves; `--as` does not count."
        )
    if record.ruling is Ruling.CONFIRM:
        return
    if decision is not Decision.DENY and actor.member.id in kept_out(rows, record):
        raise ApprovalProblem("The rule asks for a second person: who asked cannot be who approves.")
    if any(made.get("by_id") == actor.member.id for made in record.decisions):
        raise ApprovalProblem(f"{actor.member.name} has decided already; one person counts once.")


def standing(rows: Rows, record: Approval) -> list[dict[str, Any]]:
    """The agreements to a pending record that count today: their people are still there, and still of the circles."""
    people, out = {one.id: one for one in people_of(rows, record.org)}, kept_out(rows, record)
    return [
        made
        for made in record.decisions
        if (who := people.get(str(made.get("by_id")))) is not None
        and who.id not in out
        and all(in_circle(who, circle) for circle in circles(record))
    ]


def circles(record: Approval) -> Sequence[str]:
    """Of every one of these must each approver be."""
    return record.approvers or (ANYONE,)


def kept_out(rows: Rows, record: Approval) -> set[str | None]:
    """The ids of members who asked, where the rule wants others to agree."""
    if not record.second_person:
        return set()
    asked = {record.member} - {None}
    return asked if record.work is None else asked | acted_for(rows, record.org, record.work)


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
        **{_NAMED.get(key, key): value for key, value in made.items()},
    )
    tell(rows, record.org, record.id, Happening.DECIDED)


_NAMED = {"by": "approver", "by_id": "approver_id"}
