"""Hold a call until a person agrees to exactly that call.

The record in the database is the authority: it moves by compare-and-set only, and one approval executes at most once,
whatever is replayed, on however many processes.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol

import anyio

from connectors.definition import Call, Effect, canonical
from server.audit import Event, append
from server.clock import iso, now_ms
from server.connections import Connection
from server.database import Database, Rows
from server.errors import (
    ApprovalRequired,
    Denied,
    NoLongerValid,
    OutcomeUnknown,
    Question,
    Refused,
)
from server.identity import Actor, Caller, new_id
from server.policy import Ruling, Verdict
from server.prompt import Prompt, quote, summary
from vault import Vault

APPROVAL_MS = 60 * 60 * 1000
"""How long a call may wait for a decision, and an approved one to be carried out."""
STATE_TTL_S = 2 * 60 * 60
"""How long a client's pointer to a record lives: longer than any record."""
GRANT_MS = 60 * 60 * 1000
GRANT_USES = 20
PENDING_PER_AGENT = 20
LOST_MS = 3 * 60 * 1000
"""A call still `executing` after this long was lost: longer than a call can take."""
ASK_S = 50.0
"""How long a client may take over its question, and a call wait for another that runs the same approval. Several
hosts give up on a call at about 60 seconds, dialog or not."""
SHARE_PROMPT_MS = 10_000
_POLL_S = 0.1

GRANTABLE_IN_CLIENT = (Effect.SENSITIVE, Effect.WRITE, Effect.SEND)


class State(StrEnum):
    """Where a record stands. The last six are final."""

    PENDING = "pending"
    APPROVED = "approved"
    EXECUTING = "executing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Decision(StrEnum):
    """What a person can answer."""

    APPROVE = "approve"
    APPROVE_HOUR = "approve_for_one_hour"
    DENY = "deny"


class Person(Protocol):
    """Whoever sits at the client, as far as the protocol lets us reach them."""

    @property
    def can_be_asked(self) -> bool:
        """Whether a form can be put to them at all."""
        ...

    @property
    def answers_later(self) -> bool:
        """Whether the answer comes with a later request, so that nobody here knows of a prompt still open."""
        ...

    async def ask(self, question: Question) -> Decision | None:
        """Their decision; None where they declined, cancelled, or answered nothing that approves or denies.

        Raises AskFirst where the answer comes with a later request.
        """
        ...


@dataclass(frozen=True)
class Approval:
    """One held call, as its row says. What is sealed is opened on demand."""

    org: str
    id: str
    state: State
    agent: str
    agent_name: str
    member: str | None
    connection: str
    credential_version: int
    tool: str
    definition: str
    effect: str
    call_hash: str
    ruling: Ruling
    needed: int
    approvers: tuple[str, ...]
    second_person: bool
    rules: tuple[str, ...]
    decisions: tuple[dict[str, Any], ...]
    whole: bool
    declined_at: int | None
    created_at: int
    expires_at: int
    changed_at: int


@dataclass(frozen=True)
class Asked:
    """A call that needs someone's agreement, with all that was decided about it so far."""

    caller: Caller
    call: Call
    connection: Connection
    verdict: Verdict
    prompt: Prompt


@dataclass(frozen=True)
class Clearance:
    """What lets a call go on: an approved record, a grant, or the outcome that the record already has."""

    approval: Approval | None = None
    grant: str | None = None
    outcome: dict[str, Any] | None = None


class ApprovalProblem(Exception):
    """A person's decision cannot be taken; the message says why and what to do."""


class Lost(Exception):
    """Somebody else moved the record first."""


class Approvals:
    """The approvals and grants of an installation."""

    def __init__(self, database: Database, vault: Vault, *, hold_seconds: float) -> None:
        self._database = database
        self._vault = vault
        self._hold_seconds = hold_seconds
        self._asking: set[tuple[str, str]] = set()

    # -- on the path of a call

    async def clear(self, asked: Asked, person: Person, pointer: str | None) -> Clearance:
        """Return once this call may go on. Raises CallRefused in one of its forms, or AskFirst."""
        call_hash = self.call_hash(asked.caller.org, asked.call)
        record = self._pointed_at(asked, call_hash, pointer) if pointer else self._approved(asked, call_hash)
        joined = False
        if record is None:
            grant = self._grant_for(asked)
            if grant is not None:
                return Clearance(grant=grant)
            record, joined = await self._join_or_open(asked, call_hash)
        if record.state is State.PENDING:
            record = await self._decided(asked, record, person, joined=joined)
        if record.state is State.EXECUTING:
            record = await self._ended(record)
        return self._clearance(record)

    def _clearance(self, record: Approval) -> Clearance:
        match record.state:
            case State.APPROVED:
                return Clearance(approval=record)
            case State.SUCCEEDED | State.FAILED:
                return Clearance(approval=record, outcome=self.outcome(record))
            case State.PENDING:
                raise ApprovalRequired(record.id, iso(record.expires_at))
            case State.DENIED:
                raise Denied(record.id)
            case State.UNKNOWN | State.EXECUTING:
                raise OutcomeUnknown(record.id)
            case State.EXPIRED | State.CANCELLED:
                raise NoLongerValid(record.id, record.state.value)

    async def outcome_of(self, record: Approval) -> dict[str, Any]:
        """Wait for what another call makes of this record. Raises CallRefused where that ends without an outcome."""
        outcome = self._clearance(await self._ended(self._again(record))).outcome
        if outcome is None:
            raise OutcomeUnknown(record.id)
        return outcome

    def claim(self, rows: Rows, asked: Asked, clearance: Clearance) -> None:
        """Take the approval, or one use of the grant, for this call; in the same transaction as the attempt.

        Raises Lost where another call took it, and NoLongerValid where the credential or definition has changed.
        """
        if clearance.approval is not None:
            self._claim_approval(rows, asked, clearance.approval)
        elif clearance.grant is not None:
            taken = rows.execute(
                "UPDATE call_grant SET uses_left = uses_left - 1 WHERE org = ? AND id = ? AND uses_left > 0 "
                "AND revoked_at IS NULL AND expires_at > ?",
                (asked.caller.org, clearance.grant, now_ms()),
            )
            if taken.rowcount != 1:
                raise Lost

    def _claim_approval(self, rows: Rows, asked: Asked, approval: Approval) -> None:
        now = now_ms()
        current = rows.execute(
            "SELECT credential_version FROM connection WHERE org = ? AND id = ?", (approval.org, approval.connection)
        ).fetchone()
        why = None
        if current is None or current[0] != approval.credential_version:
            why = "the connection's credential has changed since"
        elif asked.call.tool.definition_hash != approval.definition:
            why = "the tool's definition has changed since"
        elif approval.expires_at <= now:
            why = "it has expired"
        if why is not None:
            raise NoLongerValid(approval.id, why)
        if not _move(rows, approval, State.APPROVED, State.EXECUTING, now):
            raise Lost

    def finish(self, rows: Rows, approval: Approval, state: State, outcome: Mapping[str, Any]) -> None:
        """Write what came of an executing approval, in the same transaction as the outcome's entry."""
        sealed = self._vault.seal_text(rows, approval.org, "approval-outcome", approval.id, json.dumps(outcome))
        rows.execute(
            "UPDATE approval SET state = ?, sealed_outcome = ?, changed_at = ? "
            "WHERE org = ? AND id = ? AND state = 'executing'",
            (state.value, sealed, now_ms(), approval.org, approval.id),
        )

    async def retire(self, approval: Approval, why: str) -> None:
        """Mark an approved record stale: it can no longer be used for anything."""

        def change(rows: Rows) -> None:
            if _move(rows, approval, State.APPROVED, State.CANCELLED, now_ms()):
                append(rows, approval.org, Event.APPROVAL_STALE, approval=approval.id, reason=why)

        await self._database.write(change)

    # -- which record is it

    def _pointed_at(self, asked: Asked, call_hash: str, pointer: str) -> Approval:
        record = self.find(asked.caller.org, pointer)
        mine = record is not None and record.agent == asked.caller.agent and record.call_hash == call_hash
        if record is None or not mine:
            raise NoLongerValid(pointer, "it belongs to another call")
        return self._aged(record)

    def _approved(self, asked: Asked, call_hash: str) -> Approval | None:
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM approval WHERE org = ? AND agent = ? AND call_hash = ? AND state = 'approved' "
            "AND expires_at > ? ORDER BY created_at LIMIT 1",
            (asked.caller.org, asked.caller.agent, call_hash, now_ms()),
        )
        return _approval(rows[0]) if rows else None

    def _grant_for(self, asked: Asked) -> str | None:
        keeps = asked.call.tool.grant
        if not keeps:
            return None
        rows = self._database.read(
            "SELECT id, ruling FROM call_grant WHERE org = ? AND agent = ? AND tool = ? AND connection = ? "
            "AND credential_version = ? AND definition = ? AND bounds_hash = ? AND uses_left > 0 "
            "AND revoked_at IS NULL AND expires_at > ? ORDER BY expires_at",
            (
                asked.caller.org,
                asked.caller.agent,
                asked.call.name,
                asked.connection.id,
                asked.connection.credential_version,
                asked.call.tool.definition_hash,
                self._bounds_hash(asked.caller.org, asked.call),
                now_ms(),
            ),
        )
        for grant, ruling in rows:
            if asked.verdict.ruling.strictness <= Ruling(ruling).strictness:
                return str(grant)
        return None

    async def _join_or_open(self, asked: Asked, call_hash: str) -> tuple[Approval, bool]:
        caller = asked.caller

        def change(rows: Rows) -> tuple[Approval, bool]:
            now = now_ms()
            sweep(rows, caller.org, now)
            found = rows.execute(
                f"SELECT {_COLUMNS} FROM approval WHERE org = ? AND agent = ? AND call_hash = ? AND state = 'pending'",
                (caller.org, caller.agent, call_hash),
            ).fetchone()
            if found is not None:
                record = _approval(found)
                if not (still_enough(asked.verdict, record) and _same_target(asked, record)):
                    _move(rows, record, State.PENDING, State.CANCELLED, now)
                    append(rows, caller.org, Event.APPROVAL_STALE, approval=record.id, reason="rules or connection")
                else:
                    return record, True
            waiting = rows.execute(
                "SELECT COUNT(*) FROM approval WHERE org = ? AND agent = ? AND state = 'pending'",
                (caller.org, caller.agent),
            ).fetchone()[0]
            if waiting >= PENDING_PER_AGENT:
                raise Refused(f"{waiting} calls of this agent already wait for a person")
            return self._insert(rows, asked, call_hash, now), False

        return await self._database.write(change)

    def _insert(self, rows: Rows, asked: Asked, call_hash: str, now: int) -> Approval:
        caller, call, verdict = asked.caller, asked.call, asked.verdict
        record = Approval(
            org=caller.org,
            id=new_id("apr"),
            state=State.PENDING,
            agent=caller.agent,
            agent_name=caller.agent_name,
            member=caller.member,
            connection=asked.connection.id,
            credential_version=asked.connection.credential_version,
            tool=call.name,
            definition=call.tool.definition_hash,
            effect=call.tool.effect.value,
            call_hash=call_hash,
            ruling=verdict.ruling,
            needed=verdict.count,
            approvers=verdict.approvers,
            second_person=verdict.second_person,
            rules=verdict.rules,
            decisions=(),
            whole=asked.prompt.whole,
            declined_at=None,
            created_at=now,
            expires_at=now + APPROVAL_MS,
            changed_at=now,
        )
        details = {"arguments": dict(call.arguments), "keeps": list(call.tool.grant), "summary": summary(call)}
        rows.execute(
            f"INSERT INTO approval ({_COLUMNS}, sealed_call, sealed_prompt) VALUES ({', '.join('?' * 25)})",
            (
                *_values(record),
                self._vault.seal_text(rows, record.org, "approval-call", record.id, json.dumps(details)),
                self._vault.seal_text(rows, record.org, "approval-prompt", record.id, asked.prompt.text),
            ),
        )
        append(
            rows,
            record.org,
            Event.APPROVAL_OPENED,
            approval=record.id,
            agent=caller.agent_name,
            member=caller.member_name,
            connection=call.connection,
            tool=call.name,
            effect=record.effect,
            verdict=verdict.ruling.value,
            rules=list(verdict.rules),
        )
        return record

    # -- deciding

    async def _decided(self, asked: Asked, record: Approval, person: Person, *, joined: bool) -> Approval:
        askable = (
            person.can_be_asked
            and not asked.caller.standalone
            and record.ruling is Ruling.CONFIRM
            and record.whole
            and record.declined_at is None
        )
        key = (record.org, record.id)
        shared = joined and person.answers_later and record.created_at + SHARE_PROMPT_MS > now_ms()
        if not askable or shared or key in self._asking:
            return await self._held(record)
        self._asking.add(key)
        try:
            return await self._asked(asked, record, person)
        finally:
            self._asking.discard(key)

    async def _asked(self, asked: Asked, record: Approval, person: Person) -> Approval:
        """Ask at the client, while someone may decide elsewhere; whoever is first has decided."""
        answer: list[Decision | None] = []

        async def ask() -> None:
            answer.append(await person.ask(self.question(record, asked.prompt)))
            scope.cancel()

        async def watch() -> None:
            await self._until(record, lambda state: state is not State.PENDING)
            scope.cancel()

        raised: list[Exception] = []

        async def guarded() -> None:
            try:
                await ask()
            except Exception as error:  # an exception group would hide AskFirst from the protocol
                raised.append(error)
                scope.cancel()

        with anyio.move_on_after(ASK_S) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(guarded)
                group.start_soon(watch)
        if raised:
            raise raised[0]
        if answer:
            await self._answered(asked, record, answer[0])
        return self._again(record)

    async def _answered(self, asked: Asked, record: Approval, decision: Decision | None) -> None:
        caller = asked.caller

        def change(rows: Rows) -> None:
            now = now_ms()
            if decision is None:
                marked = rows.execute(
                    "UPDATE approval SET declined_at = ?, changed_at = ? "
                    "WHERE org = ? AND id = ? AND state = 'pending' AND declined_at IS NULL",
                    (now, now, record.org, record.id),
                )
                if marked.rowcount:
                    append(
                        rows,
                        record.org,
                        Event.APPROVAL_DECLINED_IN_CLIENT,
                        approval=record.id,
                        agent=caller.agent_name,
                        member=caller.member_name,
                    )
                return
            made = {"by": caller.member_name, "channel": "client", "known_by": "the client's word"}
            self._settle(rows, record, decision, made, signed_in=False, now=now)

        await self._database.write(change)

    def decide(
        self, rows: Rows, approval: Approval, decision: Decision, actor: Actor, *, unattended: bool = False
    ) -> State:
        """Take a person's decision, made outside the client. Raises ApprovalProblem; returns the state it led to."""
        current = _one(rows, approval.org, approval.id)
        if current is None or current.state is not State.PENDING or current.expires_at <= now_ms():
            state = current.state.value if current else "gone"
            raise ApprovalProblem(f"Approval {approval.id} is {state if state != 'pending' else 'expired'} already.")
        self._require_eligible(current, decision, actor)
        made = {
            "by": actor.member.name,
            "channel": "command line",
            "known_by": actor.known_by,
            **({"unattended": True} if unattended else {}),
        }
        if decision is Decision.DENY or current.ruling is Ruling.CONFIRM:
            self._settle(rows, current, decision, made, signed_in=actor.signed_in, now=now_ms())
        else:
            self._count(rows, current, decision, made, signed_in=actor.signed_in)
        after = _one(rows, approval.org, approval.id)
        return after.state if after else State.CANCELLED

    def _require_eligible(self, record: Approval, decision: Decision, actor: Actor) -> None:
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
            if not _stands_in(actor, wanted):
                raise ApprovalProblem(f"{actor.member.name} is not {_ELIGIBLE.get(wanted, wanted)}.")
        if record.second_person and actor.member.id == record.member and decision is not Decision.DENY:
            raise ApprovalProblem("The rule asks for a second person: who asked cannot be who approves.")
        if any(made["by"] == actor.member.name for made in record.decisions):
            raise ApprovalProblem(f"{actor.member.name} has decided already; one person counts once.")

    def _count(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], *, signed_in: bool
    ) -> None:
        """Add one of several required approvals; the last one settles it."""
        if len(record.decisions) + 1 >= record.needed:
            self._settle(rows, record, decision, made, signed_in=signed_in, now=now_ms())
            return
        now = now_ms()
        decisions = [*record.decisions, {**made, "decision": decision.value, "at": iso(now)}]
        rows.execute(
            "UPDATE approval SET decisions = ?, changed_at = ? WHERE org = ? AND id = ? AND state = 'pending'",
            (json.dumps(decisions), now, record.org, record.id),
        )
        self._write_decision(rows, record, decision, made, State.PENDING)

    def _settle(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], *, signed_in: bool, now: int
    ) -> None:
        """Pending to approved or denied, if it still is pending and in time; otherwise nothing happens."""
        grants = decision is Decision.APPROVE_HOUR
        if grants and not self._may_grant(rows, record, signed_in=signed_in):
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
        self._write_decision(rows, record, decision, made, state)
        if grants:
            self._grant(rows, record, made, now)

    def _write_decision(
        self, rows: Rows, record: Approval, decision: Decision, made: dict[str, Any], state: State
    ) -> None:
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

    # -- grants

    def _may_grant(self, rows: Rows, record: Approval, *, signed_in: bool) -> bool:
        if not signed_in and Effect(record.effect) not in GRANTABLE_IN_CLIENT:
            return False
        return bool(self._details(rows, record)["keeps"])

    def _grant(self, rows: Rows, record: Approval, made: dict[str, Any], now: int) -> None:
        details = self._details(rows, record)
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
                self._keyed(record.org, "grant-bounds", canonical([record.tool, bounds])),
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
        )

    def revoke(self, rows: Rows, org: str, grant: str, *, by: str) -> None:
        """End a grant at once. Raises ApprovalProblem where there is none to end."""
        ended = rows.execute(
            "UPDATE call_grant SET revoked_at = ? WHERE org = ? AND id = ? AND revoked_at IS NULL",
            (now_ms(), org, grant),
        )
        if ended.rowcount != 1:
            raise ApprovalProblem(f"There is no running grant {grant!r}. `keyleash grant list` shows them.")
        append(rows, org, Event.GRANT_REVOKED, grant=grant, by=by)

    def grants(self, org: str) -> list[dict[str, Any]]:
        """Every grant that has not ended, with its bounds in clear: for people of this org only."""
        rows = self._database.read(
            "SELECT id, agent_name, tool, sealed_bounds, uses, uses_left, approval, decided_by, channel, created_at, "
            "expires_at FROM call_grant WHERE org = ? AND revoked_at IS NULL AND expires_at > ? AND uses_left > 0 "
            "ORDER BY created_at",
            (org, now_ms()),
        )
        return [
            {
                "id": row[0],
                "agent": row[1],
                "tool": row[2],
                "bounds": json.loads(self._unseal(org, "grant-bounds", row[0], row[3])),
                "uses": row[4],
                "uses_left": row[5],
                "approval": row[6],
                "decided_by": row[7],
                "channel": row[8],
                "created_at": iso(row[9]),
                "expires_at": iso(row[10]),
            }
            for row in rows
        ]

    # -- reading

    def find(self, org: str, approval: str) -> Approval | None:
        """One record of this org, or None: another org's id is not found."""
        rows = self._database.read(f"SELECT {_COLUMNS} FROM approval WHERE org = ? AND id = ?", (org, approval))
        return _approval(rows[0]) if rows else None

    def list(self, org: str, *, state: State | None = None, limit: int = 200) -> list[Approval]:
        """The newest records of an org; pending ones that have expired are shown as such."""
        where = "AND state = ?" if state else ""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM approval WHERE org = ? {where} ORDER BY created_at DESC, id LIMIT ?",
            (org, *((state.value,) if state else ()), limit),
        )
        aged = (self._aged(_approval(row)) for row in rows)
        return [record for record in aged if state is None or record.state is state]

    def prompt(self, record: Approval) -> str:
        """The whole prompt, as it was rendered when the call was held."""
        rows = self._database.read(
            "SELECT sealed_prompt FROM approval WHERE org = ? AND id = ?", (record.org, record.id)
        )
        return self._unseal(record.org, "approval-prompt", record.id, rows[0][0])

    def details(self, record: Approval) -> dict[str, Any]:
        """The stored call: `arguments`, `keeps` (what a grant would keep fixed) and `summary`."""
        return self._database.snapshot(lambda rows: self._details(rows, record))

    def outcome(self, record: Approval) -> dict[str, Any] | None:
        """What came of it, as the client was told; None while there is nothing to tell."""
        rows = self._database.read(
            "SELECT sealed_outcome FROM approval WHERE org = ? AND id = ?", (record.org, record.id)
        )
        if not rows or rows[0][0] is None:
            return None
        outcome: dict[str, Any] = json.loads(self._unseal(record.org, "approval-outcome", record.id, rows[0][0]))
        return outcome

    def question(self, record: Approval, prompt: Prompt) -> Question:
        """What the person at the client is asked."""
        choices = {Decision.APPROVE.value: "Approve this call", Decision.DENY.value: "Deny it"}
        text = prompt.text
        details = self.details(record)
        if details["keeps"] and Effect(record.effect) in GRANTABLE_IN_CLIENT:
            kept = " and ".join(f"{name} = {quote(details['arguments'].get(name))}" for name in details["keeps"])
            hour = (
                f"{Decision.APPROVE_HOUR.value} also lets this agent repeat {record.tool} with {kept}, whatever its "
                f"other arguments, up to {GRANT_USES} times within one hour."
            )
            same = " and ".join(details["keeps"])
            choices = {
                Decision.APPROVE.value: "Approve this call",
                Decision.APPROVE_HOUR.value: f"Approve, and with the same {same} for one hour",
                Decision.DENY.value: "Deny it",
            }
            text = f"{text}\n\n{hour}"
        return Question(record.id, text, choices)

    # -- waiting

    async def _held(self, record: Approval) -> Approval:
        with anyio.move_on_after(self._hold_seconds):
            return await self._until(record, lambda state: state is not State.PENDING)
        return self._again(record)

    async def _ended(self, record: Approval) -> Approval:
        with anyio.move_on_after(ASK_S):
            return await self._until(record, lambda state: state is not State.EXECUTING)
        return self._again(record)

    async def _until(self, record: Approval, reached: Callable[[State], bool]) -> Approval:
        while True:
            current = self._again(record)
            if reached(current.state):
                return current
            await anyio.sleep(_POLL_S)

    def _again(self, record: Approval) -> Approval:
        current = self.find(record.org, record.id)
        return self._aged(current) if current else replace(record, state=State.CANCELLED)

    def _aged(self, record: Approval) -> Approval:
        """The record as time has left it, whether or not its row has been swept yet."""
        now = now_ms()
        if record.state in (State.PENDING, State.APPROVED) and record.expires_at <= now:
            return replace(record, state=State.EXPIRED)
        if record.state is State.EXECUTING and record.changed_at + LOST_MS <= now:
            return replace(record, state=State.UNKNOWN)
        return record

    # -- hashes and seals

    def call_hash(self, org: str, call: Call) -> str:
        """A keyed hash of the tool and its canonical arguments: equal calls of one org give equal hashes."""
        return self._keyed(org, "call-hash", canonical([call.name, call.canonical]))

    def _bounds_hash(self, org: str, call: Call) -> str:
        bounds = {name: call.arguments.get(name) for name in call.tool.grant}
        return self._keyed(org, "grant-bounds", canonical([call.name, bounds]))

    def _keyed(self, org: str, purpose: str, text: str) -> str:
        key = self._database.snapshot(lambda rows: self._vault.derive(rows, org, purpose))
        return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def _details(self, rows: Rows, record: Approval) -> dict[str, Any]:
        sealed = rows.execute(
            "SELECT sealed_call FROM approval WHERE org = ? AND id = ?", (record.org, record.id)
        ).fetchone()[0]
        details: dict[str, Any] = json.loads(
            self._vault.unseal_text(rows, record.org, "approval-call", record.id, sealed)
        )
        return details

    def _unseal(self, org: str, purpose: str, subject: str, blob: bytes) -> str:
        return self._database.snapshot(lambda rows: self._vault.unseal_text(rows, org, purpose, subject, blob))


def sweep(rows: Rows, org: str, now: int) -> None:
    """Write down what time has decided: expired records, and executing ones that were lost."""
    for record in rows.execute(
        "SELECT id, state, agent_name, tool FROM approval WHERE org = ? AND ((state IN ('pending', 'approved') "
        "AND expires_at <= ?) OR (state = 'executing' AND changed_at <= ?))",
        (org, now, now - LOST_MS),
    ).fetchall():
        approval, state, agent, tool = record
        lost = state == State.EXECUTING
        rows.execute(
            "UPDATE approval SET state = ?, changed_at = ? WHERE org = ? AND id = ? AND state = ?",
            ((State.UNKNOWN if lost else State.EXPIRED).value, now, org, approval, state),
        )
        event = Event.APPROVAL_UNKNOWN if lost else Event.APPROVAL_EXPIRED
        append(rows, org, event, approval=approval, agent=agent, tool=tool)


def last_done(database: Database, org: str, agent: str, call_hash: str) -> int | None:
    """When this agent last carried out exactly this call, in milliseconds since the epoch."""
    rows = database.read(
        "SELECT MAX(changed_at) FROM approval WHERE org = ? AND agent = ? AND call_hash = ? "
        "AND state IN ('succeeded', 'unknown')",
        (org, agent, call_hash),
    )
    return rows[0][0] if rows else None


_ELIGIBLE = {"role:any": "an approver, admin or owner"}


def _stands_in(actor: Actor, circle: str) -> bool:
    if circle == "role:any":
        return bool({"approver", "admin", "owner"} & set(actor.member.roles))
    if circle.startswith("group:"):
        return circle.removeprefix("group:") in actor.member.groups
    return circle in actor.member.roles


def still_enough(verdict: Verdict, record: Approval) -> bool:
    """Whether an agreement to `record` is still enough under today's verdict."""
    given = Verdict(
        record.ruling, "", count=record.needed, approvers=record.approvers, second_person=record.second_person
    )
    return not verdict.stricter_than(given)


def _same_target(asked: Asked, record: Approval) -> bool:
    return (
        record.connection == asked.connection.id
        and record.credential_version == asked.connection.credential_version
        and record.definition == asked.call.tool.definition_hash
    )


def _move(rows: Rows, record: Approval, before: State, after: State, now: int) -> bool:
    moved = rows.execute(
        "UPDATE approval SET state = ?, changed_at = ? WHERE org = ? AND id = ? AND state = ?",
        (after.value, now, record.org, record.id, before.value),
    )
    return moved.rowcount == 1


_COLUMNS = (
    "org, id, state, agent, agent_name, member, connection, credential_version, tool, definition, effect, call_hash, "
    "ruling, needed, approvers, second_person, rules, decisions, whole, declined_at, created_at, expires_at, "
    "changed_at"
)


def _approval(row: Sequence[Any]) -> Approval:
    read: dict[str, Any] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name, parse in _PARSED.items():
        read[name] = parse(read[name])
    return Approval(**read)


_PARSED: dict[str, Callable[[Any], Any]] = {
    "state": State,
    "ruling": Ruling,
    "approvers": lambda text: tuple(json.loads(text)),
    "second_person": bool,
    "rules": lambda text: tuple(json.loads(text)),
    "decisions": lambda text: tuple(json.loads(text)),
    "whole": bool,
}


def _values(record: Approval) -> tuple[Any, ...]:
    return (
        record.org,
        record.id,
        record.state.value,
        record.agent,
        record.agent_name,
        record.member,
        record.connection,
        record.credential_version,
        record.tool,
        record.definition,
        record.effect,
        record.call_hash,
        record.ruling.value,
        record.needed,
        json.dumps(record.approvers),
        record.second_person,
        json.dumps(record.rules),
        json.dumps(record.decisions),
        record.whole,
        record.declined_at,
        record.created_at,
        record.expires_at,
        record.changed_at,
    )


def _one(rows: Rows, org: str, approval: str) -> Approval | None:
    row = rows.execute(f"SELECT {_COLUMNS} FROM approval WHERE org = ? AND id = ?", (org, approval)).fetchone()
    return _approval(row) if row else None
