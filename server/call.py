"""The path of a tool call: bind, decide, require, record, open, send, scrub, record.

A star, not a chain: this module calls each part once, and no part knows the next. Read `call` first.
"""

import logging
import time
from collections.abc import Mapping
from typing import Any

import anyio

from connectors.errors import ConnectorError, RateLimited
from server.approval import Clearance, Person
from server.audit import Event
from server.binding import bind
from server.bound import Attempt, Bound
from server.clock import now_ms
from server.errors import AtLimit, CallRefused, KeysAway, Refused, Unrecorded
from server.identity import Caller, Moved
from server.onrecord import refuse, refuse_bound
from server.outcome import Came, Outcome, failed, internal, without_credential
from server.outside import AskThrough, Questions
from server.parts import Parts, one_more, require_open
from server.recording import begin, end
from server.requiring import renew, require, require_anew, require_usable
from server.retelling import RESTLESS, TRIES
from server.sending import asked_of_server, came, heard, opened, scrubbed, sent
from server.telemetry import Seen
from vault import VaultError

log = logging.getLogger("keyleash")


async def call(
    parts: Parts,
    caller: Caller,
    name: str,
    arguments: Mapping[str, Any],
    person: Person,
    *,
    pointer: str | None = None,
) -> Outcome:
    """Carry out one tool call for `caller`, or raise CallRefused saying why not, or AskFirst, or AskThrough.

    `pointer` names the approval that an earlier answer to this call opened. From the attempt's record to the
    outcome's, nothing the client does can interrupt; egress bounds how long that takes.
    """
    with parts.telemetry.call(caller) as seen, one_more(parts, caller):
        try:
            require_open(parts, caller)
            await parts.keys.at_hand(caller.org)
            bound = await bind(parts, caller, name, arguments, seen=seen)  # and decide
            await require_usable(parts, bound, pointer)
            bound, clearance = await require(parts, bound, person, pointer)
            for tried in range(TRIES + 1):
                if clearance.outcome is not None:
                    return Outcome(**clearance.outcome)
                if tried == TRIES:
                    break
                await renew(parts, bound)
                try:
                    return await _in_turn(parts, bound, clearance, person, seen)
                except Moved:
                    bound, clearance = await require_anew(parts, bound, clearance, person)
            raise Refused(RESTLESS)
        except VaultError as problem:
            log.error("the keys of %s cannot be had, nothing was sent: %s", caller.org_name, problem)
            away = KeysAway()
            await refuse(parts, caller, name, away)
            raise away from None
        except CallRefused as refusal:
            was_sent = isinstance(refusal, Unrecorded) and refusal.sent  # the attempt stands alone, and is `unknown`
            if not refusal.on_record and not was_sent:
                await refuse(parts, caller, name, refusal)
            raise


async def _in_turn(parts: Parts, bound: Bound, clearance: Clearance, person: Person, seen: Seen) -> Outcome:
    """Carry it out once the connection takes one more call. Raises AtLimit, on record, and Moved; nothing was sent."""

    async def shielded() -> Outcome | Questions:
        with anyio.CancelScope(shield=True):
            return await _carry_out(parts, bound, clearance, person, seen)
        raise AssertionError("nobody cancels this scope")

    try:
        alone = parts.conversations.alone(bound.caller, bound.connection, bound.call.connector)
        connection, name = bound.connection.id, bound.connection.name
        outcome = await parts.pace.in_turn(connection, name, bound.pace, shielded, alone=alone)
    except AtLimit as refusal:
        await refuse_bound(parts, bound, refusal)
        raise
    if isinstance(outcome, Questions):
        raise AskThrough(outcome.forms, outcome.onward, clearance.approval.id if clearance.approval else None)
    return outcome


async def _carry_out(
    parts: Parts, bound: Bound, clearance: Clearance, person: Person, seen: Seen
) -> Outcome | Questions:
    """Record the attempt, send, record the outcome. Whatever happens in between, the outcome says what is known."""
    with parts.telemetry.recording(Event.CALL_ATTEMPT):
        attempt = await begin(parts, bound, clearance)
    if isinstance(attempt, Outcome):
        return attempt
    if clearance.approval is not None:
        parts.telemetry.waited(seen, now_ms() - clearance.approval.created_at)
    started = time.monotonic()
    with parts.telemetry.sending(seen, bound.request.origin, bound.request.method.partition(" ")[0]) as told:
        if bound.call.connector.server is not None:
            what_came = await asked_of_server(parts, bound, attempt, person)
        else:
            what_came = await _send(parts, bound, attempt, again=clearance.again)
        told.update(what_came.facts)
    what_came.facts["milliseconds"] = round((time.monotonic() - started) * 1000)
    with parts.telemetry.recording(Event.CALL_OUTCOME):
        await end(parts, bound, clearance, attempt, what_came)
    seen.outcome = what_came.state.value
    return what_came.outcome


async def _send(parts: Parts, bound: Bound, attempt: Attempt, *, again: bool) -> Came:
    """Open the credential, send, scrub; what goes wrong is told by what it means.

    With `again`, the call was lost on its way before: it may have taken effect, whatever becomes of this sending.
    """
    facts: dict[str, Any] = {}
    maybe_before = again
    try:
        try:
            kind, secret = await opened(parts, bound, attempt)
        except VaultError as error:
            return without_credential(error, bound, again=again)
        try:
            reply = await sent(parts, bound, attempt, kind, secret, facts)
        finally:
            secret.wipe()
        maybe_before = again or reply.maybe_before
        facts = {"status": reply.status, "bytes": reply.bytes_in}
        result = await scrubbed(parts, bound, reply)
    except ConnectorError as error:
        if isinstance(error, RateLimited):
            parts.pace.pause(bound.connection.id, error.retry_after)
        return failed(error, bound, facts, maybe_before=maybe_before)
    except Exception as error:
        return internal(error, bound, facts)
    facts |= {"request_id": result.request_id, "usage": result.usage, "quota": result.quota}
    return came(bound, result, await heard(parts, bound, result), facts)
