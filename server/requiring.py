"""Require: somebody has agreed to exactly this call, where the rules ask for that; policy decides again afterwards.

What changed while a call was held, or since it was cleared, is seen before anything is recorded as attempted.
"""

from server.allowance import require_left
from server.approval import Asked, Clearance, Person, State, last_done, still_enough
from server.binding import bind_again
from server.bound import Bound
from server.clock import iso
from server.errors import (
    ApprovalRequired,
    AskFirst,
    CallRefused,
    LimitReached,
    NoLongerValid,
    OutcomeUnknown,
    Refused,
)
from server.identity import Moved
from server.onrecord import refuse_bound, who
from server.parts import Parts
from server.policy import Ruling
from server.prompt import render
from server.retelling import RESTLESS, TRIES, told_again


async def require_usable(parts: Parts, bound: Bound, pointer: str | None) -> None:
    """Nobody is asked about a call that cannot be carried out: its account takes no more today, or needs a consent.

    Where it was asked about before, and may have been carried out, what came of that is looked for first. Raises
    CallRefused, on record.
    """
    before = parts.approvals.find(bound.caller.org, pointer) if pointer is not None else None
    if before is not None and before.state is not State.PENDING:
        return
    try:
        require_left(parts.database, bound.connection)
    except LimitReached as refusal:
        await refuse_bound(parts, bound, refusal)
        raise
    if bound.connection.needs_consent_at is not None:
        await renew(parts, bound)


async def renew(parts: Parts, bound: Bound) -> None:
    """Have a token that works, where the account is signed in to by OAuth. Raises CallRefused, on record."""
    try:
        await parts.renewals.current(bound.connection, bound.call.connector, who(bound.caller))
    except CallRefused as refusal:
        await refuse_bound(parts, bound, refusal)
        raise


async def require(parts: Parts, bound: Bound, person: Person, pointer: str | None) -> tuple[Bound, Clearance]:
    """An approval, a grant, or the outcome there already is; nothing where the rules allow the call.

    What changed while the call was held is seen again. Raises CallRefused or AskFirst.
    """
    for _ in range(TRIES):
        if bound.verdict.ruling is Ruling.ALLOW and pointer is None:
            return bound, Clearance()
        try:
            return await _required(parts, bound, person, pointer)
        except Moved:
            bound = await bind_again(parts, bound)
    if bound.verdict.ruling is Ruling.ALLOW and pointer is None:
        return bound, Clearance()
    raise Refused(RESTLESS)


async def require_anew(parts: Parts, bound: Bound, clearance: Clearance, person: Person) -> tuple[Bound, Clearance]:
    """Decide again, with the caller, rules and connections of now; what was approved stays so if it is enough.

    A grant is looked up anew, under the verdict of now.
    """
    again = await _decided_again(parts, bound, clearance if clearance.grant is None else Clearance())
    if clearance.approval is not None or again.verdict.ruling is Ruling.ALLOW:
        return again, Clearance(approval=clearance.approval, again=clearance.again)
    return await require(parts, again, person, None)


async def _required(parts: Parts, bound: Bound, person: Person, pointer: str | None) -> tuple[Bound, Clearance]:
    """The same, once. Raises Moved where a person would be asked about a call that has to be looked at again."""
    try:
        clearance = await parts.approvals.clear(_asked(parts, bound), person, pointer)
    except AskFirst:
        raise
    except ApprovalRequired as held:
        refusal = ApprovalRequired(held.approval, held.expires_at, reaches_nobody=held.reaches_nobody, over=bound.over)
        await refuse_bound(parts, bound, refusal)
        raise refusal from None
    except CallRefused as refusal:
        await refuse_bound(parts, bound, refusal)
        raise
    if clearance.outcome is not None:
        await told_again(parts, bound, clearance)
        return bound, clearance
    return await _decided_again(parts, bound, clearance), clearance


def _asked(parts: Parts, bound: Bound) -> Asked:
    """What somebody would be asked about this call."""
    caller, call = bound.caller, bound.call
    before = last_done(parts.database, caller.org, caller.agent, parts.approvals.call_hash(caller.org, call))
    when = None if before is None else iso(before.at)
    prompt = render(
        caller,
        call,
        bound.request,
        account=bound.connection.account,
        ownership=bound.connection.ownership,
        done_before=when if before is not None and before.known else None,
        lost_before=when if before is not None and not before.known else None,
        over=bound.over,
    )
    return Asked(caller, call, bound.connection, bound.verdict, prompt, before, bound.ruled, bound.over)


async def _decided_again(parts: Parts, bound: Bound, clearance: Clearance) -> Bound:
    """Policy decides again at execution: the caller, the rules and the connection are those of now."""
    # One approval, one key: an upstream that honours it carries out an approved call once, whatever is sent again.
    approval = clearance.approval
    again = await bind_again(parts, bound, key=approval.id if approval else None)
    if clearance.grant is not None and again.verdict.stricter_than(bound.verdict):
        raise Refused("the rules have become stricter since the grant was looked up")
    if approval is None or still_enough(again.verdict, approval):
        return again
    if clearance.again:
        raise OutcomeUnknown(approval.id)
    await parts.approvals.retire(approval, "the rules have become stricter since")
    refusal = NoLongerValid(approval.id, "the rules have become stricter since")
    await refuse_bound(parts, again, refusal)
    raise refusal
