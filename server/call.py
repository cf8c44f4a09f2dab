"""The path of a tool call: bind, decide, require, record, open, send, scrub, record.

A star, not a chain: this module calls each part once, and no part knows the next. Read `call` first.
"""

import contextlib
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from connectors.answer import Result, interpret
from connectors.auth import attaching
from connectors.bounded import DEFAULT_LIMITS
from connectors.definition import Call, CredentialKind, Pace
from connectors.elicitation import ASKING_S
from connectors.errors import (
    ConnectorError,
    CredentialRejected,
    DefinitionChanged,
    InvalidArguments,
    RateLimited,
    ResponseTooLarge,
    Unreachable,
    Unsendable,
    UpstreamError,
)
from connectors.request import Prepared, prepare
from server.approval import (
    CLOCKS_APART_MS,
    LOST_MS,
    Approvals,
    Asked,
    Clearance,
    Lost,
    Person,
    State,
    last_done,
    still_enough,
)
from server.audit import AUDIT_VALUES, AuditError, Event, append, argument_fields
from server.budgets import Budget
from server.clock import iso, now_ms, running_s
from server.connections import Connection, Workspaces, credential_kind, take_credential
from server.credential import resolved, stays_elsewhere
from server.database import Database, DatabaseProblem, Rows
from server.errors import (
    ApprovalRequired,
    AskFirst,
    AtLimit,
    BadArguments,
    Busy,
    CallRefused,
    DefinitionHeld,
    Denied,
    KeysAway,
    LimitReached,
    NoLongerValid,
    NoSuchTool,
    OutcomeUnknown,
    Refused,
    Unrecorded,
    VaultSealed,
)
from server.identity import Caller, Directory, Frozen, Moved, new_id, require_unmoved, used
from server.keeping import Conversations
from server.keys import Keys
from server.managed import count_call, require_left
from server.oauth.renewal import Renewals
from server.oauth.tokens import rejected
from server.outside import AskThrough, Questions, may_ask
from server.outside import send as send_to_server
from server.pacing import Full, Turns, count
from server.policy import Request, Ruling, Verdict, decide
from server.prompt import Prompt, render
from server.reach import shown, subject
from server.recorded import Decided, decided, keep, text_of
from server.rest import Rests
from server.spending import raised, reserve, spend, used_up
from server.telemetry import Seen, Telemetry
from server.usage import Slot, attempted, ended, turned_down
from vault import CannotOpen, CannotResolve, Resolver, Secret, Vault, VaultError

if TYPE_CHECKING:
    from connectors.egress import Attach, Egress  # at run time it would load the HTTP library

log = logging.getLogger("keyleash")


@dataclass(frozen=True)
class Parts:
    """The rooms that a call passes through."""

    database: Database
    directory: Directory
    workspaces: Workspaces
    vault: Vault
    egress: "Egress"
    approvals: Approvals
    keys: Keys
    references: Resolver
    renewals: Renewals
    conversations: Conversations
    telemetry: Telemetry = field(default_factory=Telemetry, compare=False)
    long_answers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4), compare=False)
    """How many long answers are taken apart at once."""
    readers: defaultdict[str, anyio.CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: anyio.CapacityLimiter(1)), compare=False
    )
    """Which agents read on in a long answer."""
    under_way: Counter[str] = field(default_factory=Counter[str], compare=False)
    """How many calls each agent has under way in this process."""
    turns: defaultdict[str, anyio.CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: anyio.CapacityLimiter(REFERENCES_AT_ONCE)), compare=False
    )
    """How many calls of each connection read its secret from where it stays: a slow place holds up nobody else's."""
    pace: Turns = field(default_factory=lambda: Turns(10.0), compare=False)
    """Whose turn it is, where a connection takes so many calls and no more."""
    rests: Rests = field(default_factory=Rests, compare=False)
    """What was left of long answers."""
    clock: Callable[[], float] = field(default=running_s, compare=False)
    """Seconds, by which a call is too old to be sent."""
    changed: Callable[[Rows, Connection, DefinitionChanged], None] = field(
        default=lambda _rows, _connection, _changed: None, compare=False
    )
    """What is noted of a wrapped server's tool that is not what was agreed to, with the outcome's entry."""


REFERENCES_AT_ONCE = 4


@dataclass(frozen=True)
class Outcome:
    """What the client hears: `ok` is False where the upstream refused or failed."""

    ok: bool
    structured: dict[str, Any] | None
    text: str


@dataclass(frozen=True)
class _Judged:
    """A call whose arguments are in form, with what the rules say of it."""

    caller: Caller
    call: Call
    connection: Connection
    verdict: Verdict


@dataclass(frozen=True)
class _Bound(_Judged):
    """A call with everything that was found for it."""

    request: Prepared
    ruled: Verdict
    """What the rules alone say: `verdict` is stricter where a budget is used up."""
    budgets: tuple[Budget, ...]
    pace: Pace
    over: str = ""
    """Which budget is used up."""


@dataclass(frozen=True)
class _Attempt:
    """A call that is on record and has not been sent. `taken` opens its credential as that was at that moment."""

    number: int
    taken: Callable[[], Secret]
    begun: float
    """By the clock of `Parts`, no later than the record says."""
    unsettled: str | None
    """What it stands under among the calls whose outcome is not known, where it runs by a grant."""
    slot: Slot
    """Where its usage is added up."""


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
    with parts.telemetry.call(caller) as seen, _one_more(parts, caller):
        return await _counted(parts, caller, name, arguments, person, pointer, seen)


async def _counted(  # noqa: PLR0917 - the arguments of `call`
    parts: Parts,
    caller: Caller,
    name: str,
    arguments: Mapping[str, Any],
    person: Person,
    pointer: str | None,
    seen: Seen,
) -> Outcome:
    try:
        if parts.vault.sealed is not None:
            raise VaultSealed(parts.vault.sealed)
        if parts.under_way[caller.agent] > MOST_AT_ONCE:
            raise Busy(MOST_AT_ONCE)
        await parts.keys.at_hand(caller.org)
        return await _call(parts, caller, name, arguments, person, pointer, seen)
    except VaultError as problem:
        log.error("the keys of %s cannot be had, nothing was sent: %s", caller.org_name, problem)
        away = KeysAway()
        await _refuse(parts, caller, name, away)
        raise away from None
    except CallRefused as refusal:
        sent = isinstance(refusal, Unrecorded) and refusal.sent  # then the attempt stands alone, and is `unknown`
        if not refusal.on_record and not sent:
            await _refuse(parts, caller, name, refusal)
        raise


@contextlib.contextmanager
def _one_more(parts: Parts, caller: Caller) -> Generator[None]:
    """One more call of the agent is under way."""
    parts.under_way[caller.agent] += 1
    try:
        yield
    finally:
        parts.under_way[caller.agent] -= 1
        if not parts.under_way[caller.agent]:
            del parts.under_way[caller.agent]


LONG_BODY = 128 * 1024
MOST_AT_ONCE = 100
"""Calls of one agent under way at once, held ones included: no agent can use up what others need."""


async def _call(  # noqa: PLR0917 - the arguments of `call`
    parts: Parts,
    caller: Caller,
    name: str,
    arguments: Mapping[str, Any],
    person: Person,
    pointer: str | None,
    seen: Seen,
) -> Outcome:
    bound = await _bind(parts, caller, name, arguments, new_id("idm"), seen)
    clearance = Clearance()
    await _require_left(parts, bound)
    if bound.connection.needs_consent_at is not None:  # nobody is asked about a call that cannot be carried out
        await _renew(parts, bound)
    if bound.verdict.ruling is not Ruling.ALLOW or pointer is not None:
        bound, clearance = await _require(parts, bound, person, pointer)
        if clearance.outcome is not None:
            return Outcome(**clearance.outcome)
    for _ in range(_TRIES):
        await _renew(parts, bound)
        try:
            return await _in_turn(parts, bound, clearance, person, seen)
        except Moved:
            bound, clearance = await _anew(parts, bound, clearance, person)
            if clearance.outcome is not None:
                return Outcome(**clearance.outcome)
    raise Refused(_RESTLESS)


_TRIES = 3
_RESTLESS = "the organisation's rules or connections keep changing"


async def _require_left(parts: Parts, bound: _Bound) -> None:
    """Nobody is asked about a call for which the operator's account takes no more today. Raises LimitReached."""
    try:
        require_left(parts.database, bound.connection)
    except LimitReached as refusal:
        await _refuse(parts, bound.caller, bound.call.name, refusal, bound)
        raise


async def _renew(parts: Parts, bound: _Bound) -> None:
    """Have a token that works, where the account is signed in to by OAuth. Raises CallRefused, on record."""
    try:
        await parts.renewals.current(bound.connection, bound.call.connector, _who(bound.caller))
    except CallRefused as refusal:
        await _refuse(parts, bound.caller, bound.call.name, refusal, bound)
        raise


async def _in_turn(parts: Parts, bound: _Bound, clearance: Clearance, person: Person, seen: Seen) -> Outcome:
    """Carry it out once the connection takes one more call. Raises AtLimit, on record, and Moved; nothing was sent."""
    try:
        alone = parts.conversations.alone(bound.caller, bound.connection, bound.call.connector)
        async with parts.pace.taken(bound.connection.id, bound.connection.name, bound.pace, alone=alone) as turn:
            while True:
                await turn.come()
                try:
                    return await _shielded(parts, bound, clearance, person, seen)
                except Full as full:
                    most = f"it has had the {bound.pace.per_minute} calls that it takes in a minute"
                    await turn.wait(full.seconds, most)
    except AtLimit as refusal:
        await _refuse(parts, bound.caller, bound.call.name, refusal, bound)
        raise


async def _shielded(parts: Parts, bound: _Bound, clearance: Clearance, person: Person, seen: Seen) -> Outcome:
    outcome: Outcome | Questions = _SILENT
    with anyio.CancelScope(shield=True):
        outcome = await _carry_out(parts, bound, clearance, person, seen)
    if isinstance(outcome, Questions):
        raise AskThrough(outcome.forms, outcome.onward, clearance.approval.id if clearance.approval else None)
    return outcome


async def _anew(parts: Parts, bound: _Bound, clearance: Clearance, person: Person) -> tuple[_Bound, Clearance]:
    """Decide again, with the caller, rules and connections of now; what was approved stays so if it is enough.

    A grant is looked up anew, under the verdict of now.
    """
    again = await _again(parts, bound, clearance if clearance.grant is None else Clearance())
    if clearance.approval is not None or again.verdict.ruling is Ruling.ALLOW:
        return again, Clearance(approval=clearance.approval, again=clearance.again)
    return await _require(parts, again, person, None)


async def _bind(  # noqa: PLR0917
    parts: Parts, caller: Caller, name: str, arguments: Mapping[str, Any], key: str, seen: Seen
) -> _Bound:
    """Name and arguments become a call with its verdict. Raises NoSuchTool, BadArguments or Refused, on record."""
    workspace = parts.workspaces.of(caller)
    if shown(caller, workspace, name) is None:
        raise await _out_of_reach(parts, caller, name, arguments)
    judged: _Judged | None = None
    refused: Decided | None = None
    try:
        if name in workspace.held:
            raise DefinitionHeld(name)
        bound_call = workspace.offer.bind(name, arguments)
        connection = workspace.connections[bound_call.connection]
        request = Request(bound_call.connection, bound_call.tool.name, bound_call.tool.effect, bound_call.arguments)
        verdict = decide(subject(caller), request, workspace.rules, workspace.preset)
        judged = _Judged(caller, bound_call, connection, verdict)
        seen.bound(bound_call, ownership=connection.ownership, ruling=verdict.ruling.value)
        if verdict.ruling is Ruling.DENY:
            refused = decided(bound_call, verdict)
            await parts.approvals.overrule(caller.org, caller.agent, bound_call)
            raise Refused(verdict.reason)
        prepared = prepare(bound_call, base_url=connection.base_url, idempotency_key=key)
        budgets = workspace.budgets_of(caller.agent_name, connection.name)
        over = used_up(parts.database, caller.org, budgets)
    except (InvalidArguments, Unsendable) as error:
        refusal: CallRefused = BadArguments(error.for_model)
    except (DefinitionHeld, Refused) as error:
        refusal = error
    else:
        return _Bound(
            caller,
            bound_call,
            connection,
            raised(verdict, over),
            prepared,
            ruled=verdict,
            budgets=budgets,
            pace=workspace.pace(connection, bound_call.connector),
            over=str(over) if over else "",
        )
    await _refuse(parts, caller, name, refusal, judged, kept=refused)
    raise refusal


async def _out_of_reach(parts: Parts, caller: Caller, name: str, arguments: Mapping[str, Any]) -> NoSuchTool:
    """A tool that the caller cannot call is refused exactly like one that does not exist; the record says which it was.

    What waits for a person under that name ends. Both take the same steps, so that time does not tell them apart.
    """
    workspace = parts.workspaces.of(caller)
    hidden, text = workspace.offer.find(name), text_of(arguments)
    await parts.approvals.overrule_all(caller.org, caller.agent, "" if hidden is None else name)
    refusal, kept = NoSuchTool(name[:80]), None
    if hidden is not None:
        connection, tool = hidden.connection, hidden.tool
        verdict = decide(
            subject(caller), Request(connection, tool.name, tool.effect, arguments), workspace.rules, workspace.preset
        )
        refusal = NoSuchTool(name[:80], because=f"hidden: {verdict.reason}")
        if caller.narrowing.admits(connection, tool.name, tool.effect.value):
            kept = Decided(connection, tool.name, tool.effect.value, text, verdict.ruling.value, verdict.rules)
        else:
            refusal = NoSuchTool(name[:80], because="hidden: this agent is narrowed to other tools")
    await _refuse(parts, caller, name, refusal, kept=kept)
    return refusal


async def _require(parts: Parts, bound: _Bound, person: Person, pointer: str | None) -> tuple[_Bound, Clearance]:
    """An approval, a grant, or the outcome there already is; what changed while the call was held is seen again."""
    for _ in range(_TRIES):
        try:
            return await _required(parts, bound, person, pointer)
        except Moved:
            bound = await _rebound(parts, bound, new_id("idm"))
            if bound.verdict.ruling is Ruling.ALLOW and pointer is None:
                return bound, Clearance()
    raise Refused(_RESTLESS)


async def _required(parts: Parts, bound: _Bound, person: Person, pointer: str | None) -> tuple[_Bound, Clearance]:
    """The same, once. Raises Moved where a person would be asked about a call that has to be looked at again."""
    caller, bound_call = bound.caller, bound.call
    before = last_done(parts.database, caller.org, caller.agent, parts.approvals.call_hash(caller.org, bound_call))
    when = None if before is None else iso(before.at)
    prompt = render(
        caller,
        bound_call,
        bound.request,
        account=bound.connection.account,
        ownership=bound.connection.ownership,
        done_before=when if before is not None and before.known else None,
        lost_before=when if before is not None and not before.known else None,
        over=bound.over,
    )
    asked = Asked(caller, bound_call, bound.connection, bound.verdict, prompt, before, bound.ruled, bound.over)
    try:
        clearance = await parts.approvals.clear(asked, person, pointer)
    except AskFirst:
        raise
    except ApprovalRequired as held:
        refusal = ApprovalRequired(held.approval, held.expires_at, reaches_nobody=held.reaches_nobody, over=bound.over)
        await _refuse(parts, caller, bound_call.name, refusal, bound)
        raise refusal from None
    except CallRefused as refusal:
        await _refuse(parts, caller, bound_call.name, refusal, bound)
        raise
    if clearance.outcome is not None:
        await _replayed(parts, bound, clearance)
        return bound, clearance
    return await _again(parts, bound, clearance), clearance


async def read_more(parts: Parts, caller: Caller, place: str) -> Outcome:
    """The next part of a long answer, to the agent whose call it was, while it may still make that call.

    Nothing is sent. It is on record before it is told. Raises CallRefused.
    """
    with _one_more(parts, caller):
        return await _read_more(parts, caller, place)


async def _read_more(parts: Parts, caller: Caller, place: str) -> Outcome:
    if parts.vault.sealed is not None:
        raise VaultSealed(parts.vault.sealed)
    if parts.under_way[caller.agent] > MOST_AT_ONCE:
        raise Busy(MOST_AT_ONCE)
    handle, start, kept = parts.rests.find(caller, place)
    try:
        await parts.keys.at_hand(caller.org)
    except VaultError:
        raise KeysAway from None
    bound = await _bind(parts, caller, kept.name, kept.arguments, new_id("idm"), Seen())
    if (bound.connection.id, bound.call.tool.definition_hash) != (kept.connection, kept.definition):
        refusal = BadArguments("answer: its connection or tool has changed since; what is left of it is not shown.")
        await _refuse(parts, caller, kept.name, refusal, bound)
        raise refusal
    async with parts.readers[caller.agent]:  # one at a time: no agent has all the threads for long answers
        told = await anyio.to_thread.run_sync(kept.told, handle, start, limiter=parts.long_answers)
    await _replayed(parts, bound, Clearance(), "continued")
    return Outcome(True, told.structured, told.text)


async def _replayed(parts: Parts, bound: _Bound, clearance: Clearance, what: str = "replayed") -> None:
    """A stored outcome is told again only once that is on record, and only to who could make the call now."""
    for _ in range(_TRIES):
        try:
            await _write_replay(parts, bound, clearance, what)
        except Moved:
            bound = await _rebound(parts, bound, new_id("idm"))
        else:
            return
    raise Refused(_RESTLESS)


async def _write_replay(parts: Parts, bound: _Bound, clearance: Clearance, what: str) -> None:
    def change(rows: Rows) -> None:
        require_unmoved(rows, bound.caller)
        append(
            rows,
            bound.caller.org,
            Event.CALL_REPLAYED,
            **_who(bound.caller),
            **_what(bound),
            **_by_leave_of(clearance),
            **_arguments(parts.vault.derive(rows, bound.caller.org, AUDIT_VALUES), bound),
            outcome=what,
        )
        used(rows, bound.caller)

    try:
        await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError):
        raise Unrecorded(sent=False) from None


async def _again(parts: Parts, bound: _Bound, clearance: Clearance) -> _Bound:
    """Policy decides again at execution: the caller, the rules and the connection are those of now."""
    # One approval, one key: an upstream that honours it carries out an approved call once, whatever is sent again.
    key = clearance.approval.id if clearance.approval else new_id("idm")
    again = await _rebound(parts, bound, key)
    approval = clearance.approval
    if clearance.grant is not None and again.verdict.stricter_than(bound.verdict):
        raise Refused("the rules have become stricter since the grant was looked up")
    if approval is not None and clearance.again and not still_enough(again.verdict, approval):
        raise OutcomeUnknown(approval.id)
    if approval is not None and not still_enough(again.verdict, approval):
        await parts.approvals.retire(approval, "the rules have become stricter since")
        refusal = NoLongerValid(approval.id, "the rules have become stricter since")
        await _refuse(parts, again.caller, bound.call.name, refusal, again)
        raise refusal
    return again


async def _rebound(parts: Parts, bound: _Bound, key: str) -> _Bound:
    """The same call, bound and decided again with the caller, rules and connections of now. Raises CallRefused."""
    caller = _still_there(parts, bound.caller)
    if caller is None:
        raise Refused("the agent was removed, or its access ended, while its call was held")
    return await _bind(parts, caller, bound.call.name, bound.call.arguments, key, Seen())


def _still_there(parts: Parts, caller: Caller) -> Caller | None:
    try:
        return parts.directory.again(caller)
    except Frozen as frozen:
        raise Refused(str(frozen)) from None


async def _carry_out(
    parts: Parts, bound: _Bound, clearance: Clearance, person: Person, seen: Seen
) -> Outcome | Questions:
    """Attempt, send, outcome. Whatever happens in between, the outcome says what is known."""
    with parts.telemetry.recording(Event.CALL_ATTEMPT):
        attempt = await _attempt(parts, bound, clearance)
    if isinstance(attempt, Outcome):
        return attempt
    if clearance.approval is not None:
        parts.telemetry.waited(seen, now_ms() - clearance.approval.created_at)
    started = time.monotonic()
    # Bounded in time: by the resolver, by egress, and a wrapped server's questions by how long they may be open.
    changed: list[DefinitionChanged] = []
    with parts.telemetry.sending(seen, bound.request.origin, bound.request.method.partition(" ")[0]) as told:
        if bound.call.connector.server is not None:
            state, outcome, facts = await _send_to_server(parts, bound, attempt, person, changed)
        else:
            state, outcome, facts = await _send(parts, bound, attempt, again=clearance.again)
        told.update(facts)
    facts["milliseconds"] = round((time.monotonic() - started) * 1000)

    def change(rows: Rows) -> None:
        entry = append(
            rows,
            bound.caller.org,
            Event.CALL_OUTCOME,
            attempt=attempt.number,
            **_who(bound.caller),
            **_what(bound),
            **_by_leave_of(clearance),
            method=bound.request.method,
            host=bound.request.origin,
            outcome=_ASKED if isinstance(outcome, Questions) else state.value,
            **facts,
        )
        said = ended(rows, bound.caller.org, entry.at, attempt.slot, facts, outcome=state.value)
        spend(rows, bound.caller.org, bound.budgets, said)
        for each in changed:
            parts.changed(rows, bound.connection, each)
        if facts.get("error") == "credential rejected" and facts.get("status") == 401:
            rejected(rows, bound.connection)
        if clearance.approval is not None and isinstance(outcome, Questions):
            parts.approvals.give_back(rows, clearance.approval)
        elif clearance.approval is not None:
            parts.approvals.finish(rows, clearance.approval, state, asdict(outcome), again=clearance.again)
        if attempt.unsettled is not None:
            parts.approvals.unknown.ended(rows, bound.caller.org, attempt.unsettled, known=state is not State.UNKNOWN)

    try:
        with parts.telemetry.recording(Event.CALL_OUTCOME):
            await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError, VaultError):
        log.error("the outcome of attempt %s could not be recorded; its result is withheld", attempt.number)
        raise Unrecorded(sent=True) from None
    seen.outcome = state.value
    return outcome


async def _attempt(parts: Parts, bound: _Bound, clearance: Clearance) -> _Attempt | Outcome:
    """Write the attempt, take the approval and the sealed credential in one transaction; nothing is opened or sent yet.

    Returns the outcome instead where another call took the same approval first.
    """
    asked = Asked(bound.caller, bound.call, bound.connection, bound.verdict, _NO_PROMPT)

    def change(rows: Rows) -> _Attempt:
        begun = parts.clock()
        require_unmoved(rows, bound.caller)
        count_call(rows, bound.connection)
        parts.approvals.claim(rows, asked, clearance)
        reserve(rows, bound.caller.org, bound.budgets, agreed=_agreed(clearance))
        count(rows, bound.caller.org, bound.connection.name, bound.pace)
        taken = take_credential(rows, parts.vault, bound.connection)
        said = {**_who(bound.caller), **_what(bound), **_by_leave_of(clearance)}
        entry = append(
            rows,
            bound.caller.org,
            Event.CALL_ATTEMPT,
            **said,
            **_arguments(parts.vault.derive(rows, bound.caller.org, AUDIT_VALUES), bound),
            resent=clearance.again or None,
            method=bound.request.method,
            host=bound.request.origin,
        )
        if clearance.approval is None:  # else it was kept when it was held
            keep(rows, parts.vault, bound.caller, decided(bound.call, bound.verdict))
        slot = attempted(rows, bound.caller.org, entry.at, said)
        used(rows, bound.caller)
        unsettled = parts.approvals.unknown.begun(rows, asked, clearance, entry.seq)
        return _Attempt(entry.seq, taken, begun, unsettled, slot)

    try:
        return await parts.database.of(bound.caller.org).write(change)
    except (DatabaseProblem, AuditError) as error:
        log.error("an attempt could not be recorded, nothing was sent: %s", error)
        raise Unrecorded(sent=False) from None
    except NoLongerValid as refusal:
        if clearance.approval is not None:
            await parts.approvals.retire(clearance.approval, refusal.reason)
        await _refuse(parts, bound.caller, bound.call.name, refusal, bound)
        raise
    except LimitReached as refusal:  # an approval stays for another day, within its time
        await _refuse(parts, bound.caller, bound.call.name, refusal, bound)
        raise
    except Lost:
        if clearance.approval is None:  # the grant's last use was taken, or it ended
            raise Moved from None
        outcome = await parts.approvals.outcome_of(clearance.approval)
        await _replayed(parts, bound, clearance)
        return Outcome(**outcome)


def _agreed(clearance: Clearance) -> bool:
    """Whether somebody who is signed in has agreed to exactly this call: then no budget holds it any more."""
    return clearance.approval is not None and clearance.approval.ruling is Ruling.APPROVE


async def _send(
    parts: Parts, bound: _Bound, attempt: _Attempt, *, again: bool
) -> tuple[State, Outcome, dict[str, Any]]:
    """Open the credential, send, scrub. Returns the state, what the client hears, and facts for the record.

    With `again`, the call was lost on its way before: it may have taken effect, whatever becomes of this sending.
    """
    connection, bound_call = bound.connection, bound.call
    facts: dict[str, Any] = {}
    maybe_before = again
    try:
        try:
            kind, secret = await _opened(parts, bound, attempt.taken)
        except VaultError as error:
            return _without_credential(error, bound, again=again)
        try:
            reply = await parts.egress.send(
                bound.request,
                attach=_in_time(parts, attempt, attaching(kind, secret, bound.request)),
                private=connection.networks,
            )
        finally:
            secret.wipe()
        maybe_before = again or reply.maybe_before
        facts = {"status": reply.status, "bytes": reply.bytes_in}
        if len(reply.body) > LONG_BODY:  # seconds of work for the largest: others are served meanwhile
            result = await anyio.to_thread.run_sync(interpret, bound_call, reply, limiter=parts.long_answers)
        else:
            result = interpret(bound_call, reply)
    except ConnectorError as error:
        if isinstance(error, RateLimited):
            parts.pace.pause(connection.id, error.retry_after)
        return _failed(error, bound, facts, maybe_before=maybe_before)
    except Exception as error:
        log.error("a call failed inside Keyleash: %s", type(error).__name__)
        return State.UNKNOWN, _SILENT, {**facts, "error": "internal"}
    facts |= {"request_id": result.request_id, "usage": result.usage, "quota": result.quota}
    return State.SUCCEEDED if result.ok else State.FAILED, await _heard(parts, bound, result), facts


async def _send_to_server(
    parts: Parts, bound: _Bound, attempt: _Attempt, person: Person, changed: list[DefinitionChanged]
) -> tuple[State, Outcome | Questions, dict[str, Any]]:
    """The same for a wrapped server; what it wants to know before it does anything is no failure."""
    connection, bound_call = bound.connection, bound.call
    try:
        try:
            kind, secret = await _opened(parts, bound, attempt.taken)
        except VaultError as error:
            return _without_credential(error, bound, again=False)
        try:
            sent = await send_to_server(
                bound_call,
                partial(parts.conversations.talk, bound.caller, connection, bound_call.connector, kind, secret),
                before=_server_in_time(parts, attempt),
                outside=may_ask(bound.caller, person.outside),
                long_answers=parts.long_answers,
            )
        finally:
            secret.wipe()
    except DefinitionChanged as error:
        changed.append(error)
        return _failed(error, bound, {"definition_found": error.hash or "gone"}, maybe_before=False)
    except ConnectorError as error:
        return _failed(error, bound, {}, maybe_before=False)
    except Exception as error:
        log.error("a call failed inside Keyleash: %s", type(error).__name__)
        return State.UNKNOWN, _SILENT, {"error": "internal"}
    if isinstance(sent, Questions):
        return State.APPROVED, sent, {}
    heard = await _heard(parts, bound, sent.result)
    return State.SUCCEEDED if sent.result.ok else State.FAILED, heard, dict(sent.facts)


def _server_in_time(parts: Parts, attempt: _Attempt) -> Callable[[], None]:
    """Sooner than others, since a person may be asked in mid-call."""

    def in_time() -> None:
        if parts.clock() - attempt.begun > SENT_WITHIN_S - ASKING_S:
            raise _TooLate

    return in_time


class _TooLate(Unreachable):
    """This process stood still: whoever looked meanwhile took the call for lost, and may have settled it since."""

    def __init__(self) -> None:
        super().__init__(
            "Keyleash stood still after it began this call, for so long that it is not sent any more. Nothing was "
            "sent. If it is still wanted, make the call anew.",
            maybe_sent=False,
        )


SENT_WITHIN_S = (LOST_MS - CLOCKS_APART_MS) / 1000 - DEFAULT_LIMITS.total_s
"""How long after its attempt a call may still be sent: it is to be over before another replica takes it for lost."""


def _in_time(parts: Parts, attempt: _Attempt, attach: "Attach") -> "Attach":
    """The same, before each try, unless the attempt is so old that the call may have been taken for lost."""

    def attach_in_time(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        if parts.clock() - attempt.begun > SENT_WITHIN_S:
            raise _TooLate
        return attach(headers, query)

    return attach_in_time


async def _opened(parts: Parts, bound: _Bound, taken: Callable[[], Secret]) -> tuple[CredentialKind, Secret]:
    """The credential, and how it is used; read from where it stays if that is elsewhere.

    Raises CannotOpen or CannotResolve, in time.
    """
    connection = bound.connection
    kind = credential_kind(connection, bound.call.connector)
    sealed = taken()
    if not stays_elsewhere(connection, kind, sealed):
        return kind, sealed
    with sealed, anyio.move_on_after(parts.references.seconds):  # for its turn; from then on the resolver keeps time
        return kind, await anyio.to_thread.run_sync(
            resolved, parts.references, kind, sealed, limiter=parts.turns[connection.id]
        )
    raise CannotResolve("Other calls wait for the same secret. Look at why it takes so long where it stays.")


def _without_credential(error: VaultError, bound: _Bound, *, again: bool) -> tuple[State, Outcome, dict[str, Any]]:
    """Nothing was sent. Why a secret cannot be had where it stays is for the logs, and not for the agent."""
    name = bound.call.connection
    state, sent = (State.UNKNOWN, f"{_NOT_THIS_TIME} {_LOOK_FIRST}") if again else (State.FAILED, "Nothing was sent.")
    if isinstance(error, CannotResolve):
        source = bound.connection.source
        log.error("the secret of connection %s could not be had from where it stays (%s): %s", name, source, error)
        text = (
            f"The credential of {name} could not be had from where it is kept. {sent} An admin has to look "
            f"at the connection {name}: tell the person you work for."
        )
        return state, _failure(text), {"error": f"credential reference {source}", "reason": str(error)}
    if isinstance(error, CannotOpen):
        text = f"The credential of {name} cannot be opened. {sent} An admin has to connect it again."
        return state, _failure(text), {"error": "credential cannot be opened"}
    log.error("the secret of connection %s cannot be opened just now: %s", name, error)
    text = f"The credential of {name} cannot be opened just now. {sent} Tell an admin, or try again later."
    return state, _failure(text), {"error": "vault cannot open"}


def _failed(
    error: ConnectorError, bound: _Bound, facts: dict[str, Any], *, maybe_before: bool
) -> tuple[State, Outcome, dict[str, Any]]:
    """What a failure means: a call that may have changed something, and of which we cannot tell, is `unknown`.

    `maybe_before`: an earlier sending of it, under the same key, may have arrived.
    """
    said, maybe_done = _SAID.get(type(error), type(error).__name__), isinstance(error, ResponseTooLarge)
    if isinstance(error, UpstreamError):
        said = "upstream"
        maybe_done = error.maybe_done or error.status >= 500 or error.status == 408 or 300 <= error.status < 400
        facts |= {"status": error.status or None, "code": error.code, "request_id": error.request_id}
    elif isinstance(error, Unreachable):
        maybe_done = error.maybe_sent
    elif isinstance(error, CredentialRejected) and error.status is not None:
        facts |= {"status": error.status}
    facts |= {"error": said}
    if bound.request.safe or not (maybe_done or (maybe_before and _of_this_sending_alone(error))):
        return State.FAILED, _failure(error.for_model), facts
    left = maybe_done or isinstance(error, (CredentialRejected, UpstreamError))
    text = error.for_model if left else _NOT_THIS_TIME
    return State.UNKNOWN, _failure(f"{text} {_LOOK_FIRST}"), facts


def _of_this_sending_alone(error: ConnectorError) -> bool:
    """Whether it never came to what knows the key, which repeats what came of the first sending: a door in front of it
    was shut, or the first is still at work (409). Any other refusal is the call's own.
    """
    return not isinstance(error, UpstreamError) or isinstance(error, RateLimited) or error.status == 409


_SAID: dict[type[ConnectorError], str] = {
    CredentialRejected: "credential rejected",
    Unreachable: "unreachable",
    _TooLate: "too late",
    DefinitionChanged: "definition changed",
}
_ASKED = "asked"
"""The outcome of an attempt that its server has not begun: it wants answers from a person first."""
_NOT_THIS_TIME = "This call was lost on its way before, and this time it could not be sent."
_LOOK_FIRST = "It is not known whether the call took effect; look before you repeat it."


async def _heard(parts: Parts, bound: _Bound, result: Result) -> Outcome:
    if result.whole is None:
        return Outcome(result.ok, result.structured, result.text)
    told = await anyio.to_thread.run_sync(
        parts.rests.keep, bound.caller, bound.call, bound.connection.id, result.whole, limiter=parts.long_answers
    )
    return Outcome(result.ok, told.structured, told.text)


def _failure(text: str) -> Outcome:
    return Outcome(False, None, text)


_SILENT = _failure(
    "What came of this call is not known. It will not be sent again by itself; look before you repeat it."
)


_NO_PROMPT = Prompt("", whole=False)


async def refused(parts: Parts, caller: Caller, name: str, refusal: CallRefused) -> None:
    """Write down a call that was refused before it came to `call`, unless that is on record already."""
    if not refusal.on_record:
        await _refuse(parts, caller, name, refusal)


async def _refuse(
    parts: Parts,
    caller: Caller,
    name: str,
    refusal: CallRefused,
    judged: _Judged | None = None,
    *,
    kept: Decided | None = None,
) -> None:
    """Write down that a call did not run. A refusal that cannot be written stays a refusal."""
    refusal.on_record = True
    held = isinstance(refusal, ApprovalRequired)
    approval = getattr(refusal, "approval", None)
    known: dict[str, Any] = {"tool": name[:200]} if judged is None else _what(judged)
    if judged is None and kept is not None:  # hidden from the agent: its arguments were looked at by nobody
        known |= {"connection": kept.connection, "effect": kept.effect}
        known |= {"verdict": kept.ruling, "rules": list(kept.rules)}
    said = {**_who(caller), **known}

    def change(rows: Rows) -> None:
        hashes: dict[str, Any] = {}
        if judged is not None:
            with contextlib.suppress(VaultError):  # without its keys the refusal is on record all the same
                hashes = _arguments(parts.vault.derive(rows, caller.org, AUDIT_VALUES), judged)
        entry = append(
            rows,
            caller.org,
            Event.CALL_HELD if held else Event.CALL_REFUSED,
            **said,
            **hashes,
            approval=approval,
            reason=refusal.reason,
            outcome="held" if held else "denied" if isinstance(refusal, Denied) else "refused",
        )
        if kept is not None:
            with contextlib.suppress(VaultError):  # without its arguments' seal it is on record all the same
                keep(rows, parts.vault, caller, kept)
        turned_down(rows, caller.org, entry.at, said, held=held)
        used(rows, caller)

    try:
        await parts.database.of(caller.org).write(change)
    except (DatabaseProblem, AuditError) as error:
        log.error("a refusal could not be recorded: %s", error)


def _who(caller: Caller) -> dict[str, Any]:
    return {
        "agent": caller.agent_name,
        "agent_id": caller.agent,
        "member": caller.member_name,
        "member_id": caller.member,
        "client": caller.client or None,
        "client_version": caller.client_version or None,
        "transport": caller.transport or None,
        "address": caller.address,
    }


def _what(judged: _Judged) -> dict[str, Any]:
    return {
        "connection": judged.connection.name,
        "account": judged.connection.account,
        "ownership": judged.connection.ownership,
        "credential_version": judged.connection.credential_version,
        "source": judged.connection.source,
        "tool": judged.call.name,
        "definition": judged.call.tool.definition_hash,
        "effect": judged.call.tool.effect.value,
        "verdict": judged.verdict.ruling.value,
        "rules": list(judged.verdict.rules),
    }


def _arguments(key: bytes, judged: _Judged) -> dict[str, Any]:
    """The names with hashes under the org's key for these."""
    return argument_fields(key, judged.call.arguments, plain=judged.call.tool.plain)


def _by_leave_of(clearance: Clearance) -> dict[str, Any]:
    """Who agreed, to this call or to the grant that covers it."""
    decided_on = clearance.approval or clearance.given
    last = decided_on.decisions[-1] if decided_on is not None and decided_on.decisions else {}
    return {
        "approval": None if clearance.approval is None else clearance.approval.id,
        "grant": clearance.grant,
        "work": clearance.work,
        "approver": last.get("by"),
        "channel": last.get("channel"),
        "known_by": last.get("known_by"),
    }
