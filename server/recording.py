"""Record, twice: an attempt is durable before any secret is opened, its outcome before the client hears."""

import logging
from dataclasses import asdict

from server.allowance import count_call, count_tokens
from server.approval import Asked, Clearance, Lost, State
from server.audit import AUDIT_VALUES, AuditError, Event, append
from server.bound import Attempt, Bound
from server.connections import take_credential
from server.database import DatabaseProblem, Rows
from server.errors import LimitReached, NoLongerValid, OutcomeUnknown, Unrecorded
from server.identity import Moved, require_unmoved, used
from server.oauth.tokens import rejected
from server.onrecord import by_leave_of, hashed, refuse_bound, what, who
from server.outcome import Came, Outcome
from server.pacing import count
from server.parts import Parts
from server.policy import Ruling
from server.prompt import Prompt
from server.recorded import decided, keep
from server.retelling import told_again
from server.spending import reserve, spend
from server.usage import attempted, ended
from vault import VaultError

log = logging.getLogger("keyleash")


async def begin(parts: Parts, bound: Bound, clearance: Clearance) -> Attempt | Outcome:
    """Write the attempt, take the approval and the sealed credential in one transaction; nothing is opened or sent yet.

    Returns the outcome instead where another call took the same approval first. Raises Moved where the call has to be
    looked at again, Full where it has to wait, and CallRefused.
    """
    asked = Asked(bound.caller, bound.call, bound.connection, bound.verdict, _NO_PROMPT)

    def change(rows: Rows) -> Attempt:
        begun = parts.clock()
        require_unmoved(rows, bound.caller)
        parts.approvals.claim(rows, asked, clearance)  # first: what another call made of it is told, not a limit
        count_call(rows, bound.connection)
        reserve(rows, bound.caller.org, bound.budgets, agreed=_agreed(clearance))
        count(rows, bound.caller.org, bound.connection.name, bound.pace)
        taken = take_credential(rows, parts.vault, bound.connection)
        key, seal = parts.vault.derive_and_seal(rows, bound.caller.org, AUDIT_VALUES)
        said = {**who(bound.caller), **what(bound), **by_leave_of(clearance)}
        said["report_awaited"] = bound.report_awaited or None
        entry = append(
            rows,
            bound.caller.org,
            Event.CALL_ATTEMPT,
            **said,
            **hashed(key, bound),
            resent=clearance.again or None,
            method=bound.request.method,
            host=bound.request.origin,
        )
        if clearance.approval is None:  # else it was kept when it was held
            keep(rows, seal, bound.caller, decided(bound.call, bound.verdict))
        slot = attempted(rows, bound.caller.org, entry.at, said)
        used(rows, bound.caller)
        unsettled = parts.approvals.unknown.begun(rows, asked, clearance, entry.seq)
        return Attempt(entry.seq, taken, begun, unsettled, slot, said)

    try:
        return await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError) as error:
        log.error("an attempt could not be recorded, nothing was sent: %s", error)
        raise Unrecorded(sent=False) from None
    except NoLongerValid as refusal:
        if clearance.approval is not None:
            await parts.approvals.retire(clearance.approval, refusal.reason)
        await refuse_bound(parts, bound, refusal)
        raise
    except LimitReached as refusal:  # an approval stays for another day, within its time
        if clearance.approval is not None and clearance.again:  # it was sent before: nobody may hear that it was not
            raise OutcomeUnknown(clearance.approval.id) from None
        await refuse_bound(parts, bound, refusal)
        raise
    except Lost:
        if clearance.approval is None:  # the grant's last use was taken, or it ended
            raise Moved from None
        outcome = await parts.approvals.outcome_of(clearance.approval)
        await told_again(parts, bound, clearance)
        return Outcome(**outcome)


async def end(parts: Parts, bound: Bound, clearance: Clearance, attempt: Attempt, came: Came) -> None:
    """Write what came of an attempt, with all that follows from it. Raises Unrecorded: then nobody is told."""
    outcome, facts = came.outcome, came.facts

    def change(rows: Rows) -> None:
        org = bound.caller.org
        entry = append(
            rows,
            org,
            Event.CALL_OUTCOME,
            attempt=attempt.number,
            **attempt.said,
            method=bound.request.method,
            host=bound.request.origin,
            outcome="asked" if came.asked else came.state.value,
            **facts,
        )
        said = ended(rows, org, entry.at, attempt.slot, facts, outcome=came.state.value)
        spend(rows, org, bound.budgets, said)
        count_tokens(rows, bound.connection, said)
        if came.changed is not None:
            parts.changed(rows, bound.connection, came.changed)
        if facts.get("error") == "credential rejected" and facts.get("status") == 401:
            rejected(rows, bound.connection)
        if clearance.approval is not None:
            if isinstance(outcome, Outcome):
                parts.approvals.finish(rows, clearance.approval, came.state, asdict(outcome), again=clearance.again)
            else:
                parts.approvals.give_back(rows, clearance.approval)
        if attempt.unsettled is not None:
            parts.approvals.unknown.ended(rows, org, attempt.unsettled, known=came.state is not State.UNKNOWN)

    try:
        await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError, VaultError):
        log.error("the outcome of attempt %s could not be recorded; its result is withheld", attempt.number)
        raise Unrecorded(sent=True) from None


def _agreed(clearance: Clearance) -> bool:
    """Whether somebody who is signed in has agreed to exactly this call: then no budget holds it any more."""
    return clearance.approval is not None and clearance.approval.ruling is Ruling.APPROVE


_NO_PROMPT = Prompt("", whole=False)
