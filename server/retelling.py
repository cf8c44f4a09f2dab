"""An outcome that is stored is told again only once that is on record, and only to who could make the call now.

Nothing is sent: neither where an approved call was carried out before, nor where a long answer is read on.
"""

import anyio

from server.approval import Clearance
from server.audit import AuditError, Event, append
from server.binding import bind, bind_again
from server.bound import Bound
from server.database import DatabaseProblem, Rows
from server.errors import BadArguments, KeysAway, Refused, Unrecorded
from server.identity import Caller, Moved, require_unmoved, used
from server.onrecord import by_leave_of, hashed, refuse_bound, what, who
from server.outcome import Outcome
from server.parts import Parts, one_more, require_open
from vault import VaultError

TRIES = 3
RESTLESS = "the organisation's rules or connections keep changing"


async def told_again(parts: Parts, bound: Bound, clearance: Clearance, how: str = "replayed") -> None:
    """Put on record that a stored outcome is told again. Raises CallRefused."""
    for _ in range(TRIES):
        try:
            await _write(parts, bound, clearance, how)
        except Moved:
            bound = await bind_again(parts, bound)
        else:
            return
    raise Refused(RESTLESS)


async def _write(parts: Parts, bound: Bound, clearance: Clearance, how: str) -> None:
    def change(rows: Rows) -> None:
        require_unmoved(rows, bound.caller)
        append(
            rows,
            bound.caller.org,
            Event.CALL_REPLAYED,
            **who(bound.caller),
            **what(bound),
            **by_leave_of(clearance),
            **hashed(parts, rows, bound),
            outcome=how,
        )
        used(rows, bound.caller)

    try:
        await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError):
        raise Unrecorded(sent=False) from None


async def read_more(parts: Parts, caller: Caller, place: str) -> Outcome:
    """The next part of a long answer, to the agent whose call it was, while it may still make that call.

    Nothing is sent. It is on record before it is told. Raises CallRefused.
    """
    with one_more(parts, caller):
        require_open(parts, caller)
        handle, start, kept = parts.rests.find(caller, place)
        try:
            await parts.keys.at_hand(caller.org)
        except VaultError:
            raise KeysAway from None
        bound = await bind(parts, caller, kept.name, kept.arguments)
        if (bound.connection.id, bound.call.tool.definition_hash) != (kept.connection, kept.definition):
            refusal = BadArguments("answer: its connection or tool has changed since; what is left of it is not shown.")
            await refuse_bound(parts, bound, refusal)
            raise refusal
        async with parts.readers[caller.agent]:  # one at a time: no agent has all the threads for long answers
            told = await anyio.to_thread.run_sync(kept.told, handle, start, limiter=parts.long_answers)
        await told_again(parts, bound, Clearance(), "continued")
        return Outcome(True, told.structured, told.text)
