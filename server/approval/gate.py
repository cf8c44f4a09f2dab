"""The gate on the path of a call: which record is it, who is asked, and may the call go on."""

import builtins
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio

from connectors.definition import Call, Effect
from server.approval.channels import reach, tell, through
from server.approval.decisions import Decisions, require_eligible, standing
from server.approval.fatigue import require_bearable
from server.approval.grants import DENIED_NOW, GRANT_USES, IN_CLIENT, Grants
from server.approval.outbox import Happening
from server.approval.record import (
    APPROVAL_MS,
    ASK_S,
    CLOCKS_APART_MS,
    COLUMNS,
    LONGEST_PROMPT,
    LOST_MS,
    POLL_S,
    SHARE_PROMPT_MS,
    Approval,
    ApprovalProblem,
    Asked,
    Clearance,
    Decision,
    Lost,
    Person,
    State,
    approval_of,
    done_before,
    insert,
    move,
    one,
    over,
    same_target,
    still_enough,
    sweep,
    wanted,
)
from server.approval.register import Register
from server.approval.unknown import Unknown, unsure
from server.approval.work import Plan, Works
from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Database, Rows
from server.errors import ApprovalRequired, Denied, NoLongerValid, OutcomeUnknown, Question, Refused
from server.identity import Actor, new_id, require_unmoved
from server.policy import Ruling, Verdict
from server.prompt import IN_CLIENT as IN_CLIENT_LENGTH
from server.prompt import Prompt, quote, summary
from server.recorded import decided, keep
from vault import Vault


class Approvals(Register):
    """The approvals and grants of an installation: the register of held calls, and the gate before them."""

    def __init__(self, database: Database, vault: Vault, *, hold_seconds: float) -> None:
        super().__init__(database, vault)
        self._works = Works(database, vault)
        self._grants = Grants(database, vault, self, self._works)
        self._decisions = Decisions(self._grants, self._works)
        self._unknown = Unknown(database, self._decisions)
        self._hold_seconds = hold_seconds
        self._asking: set[tuple[str, str]] = set()

    async def clear(self, asked: Asked, person: Person, pointer: str | None) -> Clearance:
        """Return once this call may go on. Raises CallRefused in one of its forms, or AskFirst."""
        call_hash = self.call_hash(asked.caller.org, asked.call)
        record = await self._pointed_at(asked, call_hash, pointer) if pointer else self._approved(asked, call_hash)
        joined = False
        if record is None:
            granted = self._granted(asked, call_hash)
            if granted is not None:
                return granted
            await self._tell(asked, call_hash)
            record, joined = await self._join_or_open(asked, call_hash)
        if record.state is State.PENDING:
            record = await self._decided(asked, record, person, joined=joined)
        if record.state is State.EXECUTING:
            record = await self._ended(record)
        if record.state is State.UNKNOWN and self._may_go_again(asked, record):
            return Clearance(approval=record, again=True)
        return self._clearance(record)

    def _granted(self, asked: Asked, call_hash: str) -> Clearance | None:
        """A grant that covers the call. Not where an earlier one just like it may have been done, nor over a budget.

        Then a person decides.
        """
        if asked.over or unsure(asked.call, asked.before):
            return None
        found = self._grants.match(asked) or self._works.match(asked)
        if found is None:
            return None
        return Clearance(grant=found.id, work=found.name, call_hash=call_hash, given=found.given)

    def _clearance(self, record: Approval) -> Clearance:
        match record.state:
            case State.APPROVED:
                return Clearance(approval=record)
            case State.SUCCEEDED | State.FAILED:
                outcome = self.outcome(record)
                if outcome is None:
                    raise NoLongerValid(record.id, "it was carried out long ago, and what came of it is not kept")
                return Clearance(approval=record, outcome=outcome)
            case State.PENDING:
                raise ApprovalRequired(record.id, iso(record.expires_at), reaches_nobody=self._reaches_nobody(record))
            case State.DENIED:
                raise Denied(record.id)
            case State.UNKNOWN | State.EXECUTING:
                raise OutcomeUnknown(record.id, happened=record.happened)
            case State.EXPIRED | State.CANCELLED:
                raise NoLongerValid(record.id, record.state.value)

    def _reaches_nobody(self, record: Approval) -> bool:
        """Whether it waits for people of whom there are too few, or too few who can be asked."""
        if record.ruling is not Ruling.APPROVE:
            return False  # the member asked for may be at another client
        return not self._database.of(record.org).query(lambda rows: reach(rows, record.org, wanted(record))).enough

    async def outcome_of(self, record: Approval) -> dict[str, Any]:
        """Wait for what another call makes of this record. Raises CallRefused where that ends without an outcome."""
        outcome = self._clearance(await self._ended(self.again(record))).outcome
        if outcome is None:
            raise OutcomeUnknown(record.id)
        return outcome

    def claim(self, rows: Rows, asked: Asked, clearance: Clearance) -> None:
        """Take the approval, or one use of the grant, for this call; in the same transaction as the attempt.

        Raises Lost where another call took it, and NoLongerValid where the credential or definition has changed.
        """
        if clearance.approval is not None:
            self._claim_approval(rows, asked, clearance.approval, again=clearance.again)
        elif clearance.grant is not None:
            self._claim_grant(rows, asked, clearance, clearance.grant)

    def _claim_grant(self, rows: Rows, asked: Asked, clearance: Clearance, grant: str) -> None:
        caller = asked.caller
        before = done_before(rows, caller.org, caller.agent, clearance.call_hash or "")
        if unsure(asked.call, before):
            raise Lost
        if clearance.work is None:
            taken = self._grants.take(rows, caller.org, grant)
        else:
            taken = self._works.take(rows, asked, grant)
        if not taken:
            raise Lost

    def _claim_approval(self, rows: Rows, asked: Asked, approval: Approval, *, again: bool) -> None:
        now = now_ms()
        current = rows.execute(
            "SELECT credential_version FROM connection WHERE org = ? AND id = ?", (approval.org, approval.connection)
        ).fetchone()
        why = None
        if current is None or current[0] != approval.credential_version:
            why = "the connection's credential has changed since"
        elif asked.call.tool.definition_hash != approval.definition:
            why = "the tool's definition has changed since"
        elif over(approval, now):
            why = "it has expired"
        if why is not None and again:
            raise OutcomeUnknown(approval.id)
        if why is not None:
            raise NoLongerValid(approval.id, why)
        if again:
            self._claim_lost(rows, asked, approval, now)
        elif not move(rows, approval, State.APPROVED, State.EXECUTING, now):
            raise Lost

    def _may_go_again(self, asked: Asked, record: Approval) -> bool:
        """Whether a lost call may be sent once more: its upstream carries it out once under the record's own key.

        Only the same call to the same account, while the upstream promises to know the key; that the approval has not
        expired is the claim's to see.
        """
        now = now_ms()
        return (
            record.resolution is None
            and record.resent_at is None
            and same_target(asked, record)
            and record.changed_at + asked.call.connector.repeats_within(asked.call.tool) > now
        )

    def _claim_lost(self, rows: Rows, asked: Asked, approval: Approval, now: int) -> None:
        """Take a call that was lost, to send it once more. Raises Lost where it was not, or somebody else has taken it.

        Lost is one that was claimed longer ago than a call can take and came to no end: its process is gone. Were that
        only stopped, and went on, the upstream would know the key.
        """
        taken = rows.execute(
            "UPDATE approval SET state = 'executing', changed_at = ?, resent_at = ? WHERE org = ? AND id = ? "
            "AND state IN ('executing', 'unknown') AND changed_at = ? AND changed_at <= ? AND changed_at > ? "
            "AND sealed_outcome IS NULL AND resolution IS NULL AND resent_at IS NULL",
            (
                now,
                now,
                approval.org,
                approval.id,
                approval.changed_at,
                now - LOST_MS,
                now - asked.call.connector.repeats_within(asked.call.tool),
            ),
        )
        if taken.rowcount != 1:
            raise Lost

    def finish(
        self, rows: Rows, approval: Approval, state: State, outcome: Mapping[str, Any], *, again: bool = False
    ) -> None:
        """Write what came of an executing approval, in the same transaction as the outcome's entry.

        Once it was taken for lost and is sent `again`, what came of the first sending is not the record's any more.
        """
        if one(rows, approval.org, approval.id) is None:
            return  # its org was removed meanwhile, with the key that would seal this
        sealed = self._vault.seal_text(rows, approval.org, "approval-outcome", approval.id, json.dumps(outcome))
        rows.execute(
            "UPDATE approval SET state = ?, sealed_outcome = ?, changed_at = ? "
            f"WHERE org = ? AND id = ? AND state = 'executing' AND resent_at IS {'NOT NULL' if again else 'NULL'}",
            (state.value, sealed, now_ms(), approval.org, approval.id),
        )
        if state is State.UNKNOWN:
            tell(rows, approval.org, approval.id, Happening.UNKNOWN)

    def give_back(self, rows: Rows, approval: Approval) -> None:
        """What was claimed was not carried out, since its server wants answers first: it may be claimed again."""
        move(rows, approval, State.EXECUTING, State.APPROVED, now_ms())

    async def retire(self, approval: Approval, why: str) -> None:
        """Mark a pending or approved record stale: it can no longer be used for anything."""

        def change(rows: Rows) -> None:
            now = now_ms()
            if any(move(rows, approval, state, State.CANCELLED, now) for state in (State.APPROVED, State.PENDING)):
                append(rows, approval.org, Event.APPROVAL_STALE, approval=approval.id, reason=why)

        await self._database.of(approval.org).write(change)

    async def overrule(self, org: str, agent: str, call: Call) -> None:
        """A rule now denies this call: what was approved or waits for it ends, and does not come back with the rule."""
        call_hash = self.call_hash(org, call)
        found = self._database.of(org).read(
            "SELECT id FROM approval WHERE org = ? AND agent = ? AND call_hash = ? "
            "AND state IN ('pending', 'approved')",
            (org, agent, call_hash),
        )
        for (approval,) in found:
            record = self.find(org, str(approval))
            if record is not None:
                await self.retire(record, DENIED_NOW)
        await self._grants.overrule(org, agent, call.name)

    async def overrule_all(self, org: str, agent: str, tool: str) -> None:
        """The agent cannot call this tool any more: whatever was approved or waits for it ends."""
        found = self._database.of(org).read(
            "SELECT id FROM approval WHERE org = ? AND agent = ? AND tool = ? AND state IN ('pending', 'approved')",
            (org, agent, tool),
        )
        for (approval,) in found:
            record = self.find(org, str(approval))
            if record is not None:
                await self.retire(record, DENIED_NOW)
        await self._grants.overrule(org, agent, tool)

    # -- for people

    def decide(
        self, rows: Rows, approval: Approval, decision: Decision, actor: Actor, *, unattended: bool = False
    ) -> State:
        """Take a person's decision, made outside the client. Raises ApprovalProblem; returns the state it led to."""
        return self._decisions.decide(rows, approval, decision, actor, unattended=unattended)

    def why_not(self, rows: Rows, approval: Approval, decision: Decision, actor: Actor) -> str | None:
        """Why this person may not decide so; None where they may."""
        try:
            require_eligible(rows, approval, decision, actor)
        except ApprovalProblem as problem:
            return str(problem)
        return None

    def still_needed(self, rows: Rows, approval: Approval) -> int:
        """How many more people have to agree: who has agreed and may not any more does not count."""
        return max(0, approval.needed - len(standing(rows, approval)))

    def revoke(self, rows: Rows, org: str, grant: str, *, by: str) -> None:
        """End a grant at once. Raises ApprovalProblem where there is none to end."""
        self._grants.revoke(rows, org, grant, by=by)

    def grants(self, org: str, *, every: bool = False) -> builtins.list[dict[str, Any]]:
        """Every grant that has not ended, or all there are, with its bounds in clear: for people of this org only."""
        return self._grants.running(org, every=every)

    def prepare(self, rows: Rows, org: str, plan: Plan, actor: Actor, *, verdict: Verdict, prompt: str) -> str:
        """Write work that waits for a decision; returns the id of the record that decides on it."""
        return self._works.prepare(rows, org, plan, actor, verdict=verdict, prompt=prompt)

    @property
    def unknown(self) -> Unknown:
        """The calls of which nobody knows what became of them, and what people say of these."""
        return self._unknown

    # -- which record is it

    async def _pointed_at(self, asked: Asked, call_hash: str, pointer: str) -> Approval:
        record = self.find(asked.caller.org, pointer)
        mine = record is not None and record.agent == asked.caller.agent and record.call_hash == call_hash
        if record is None or not mine:
            raise NoLongerValid(pointer, "it belongs to another call")
        aged = self.aged(record)
        if aged.state is State.EXPIRED and record.state is not State.EXPIRED:  # it stays so, whatever the clock says
            await self._database.of(record.org).write(lambda rows: sweep(rows, record.org, now_ms()))
        return aged

    async def _tell(self, asked: Asked, call_hash: str) -> None:
        """Once, the agent that makes a lost call again hears that a person says it happened. Raises OutcomeUnknown."""
        org, agent = asked.caller.org, asked.caller.agent
        found = self._database.of(org).read(
            f"SELECT {COLUMNS} FROM approval WHERE org = ? AND agent = ? AND call_hash = ? AND state = 'unknown' "
            "AND resolution IS NOT NULL ORDER BY changed_at DESC LIMIT 1",
            (org, agent, call_hash),
        )
        record = approval_of(found[0]) if found else None
        if record is None or record.resolution is None or not record.happened or record.resolution["told"]:
            return
        told = json.dumps({**record.resolution, "told": True})
        await self._database.of(org).write(
            lambda rows: rows.execute(
                "UPDATE approval SET resolution = ? WHERE org = ? AND id = ?", (told, org, record.id)
            )
        )
        raise OutcomeUnknown(record.id, happened=True)

    def _approved(self, asked: Asked, call_hash: str) -> Approval | None:
        """An approved record for exactly this call; else one whose call was lost and may be sent once more."""
        now = now_ms()
        rows = self._database.of(asked.caller.org).read(
            f"SELECT {COLUMNS} FROM approval WHERE org = ? AND agent = ? AND call_hash = ? "
            "AND (state IN ('approved', 'executing') OR (state = 'unknown' AND sealed_outcome IS NULL)) "
            "AND expires_at > ? AND changed_at <= ? "
            "ORDER BY created_at",
            (asked.caller.org, asked.caller.agent, call_hash, now, now + CLOCKS_APART_MS),
        )
        found = [self.aged(approval_of(row)) for row in rows]
        approved = (record for record in found if record.state is State.APPROVED)
        lost = (record for record in found if record.state is State.UNKNOWN and self._may_go_again(asked, record))
        return next(approved, None) or next(lost, None)

    async def _join_or_open(self, asked: Asked, call_hash: str) -> tuple[Approval, bool]:
        caller = asked.caller

        def change(rows: Rows) -> tuple[Approval, bool]:
            require_unmoved(rows, caller)
            now = now_ms()
            sweep(rows, caller.org, now)
            found = rows.execute(
                f"SELECT {COLUMNS} FROM approval WHERE org = ? AND agent = ? AND call_hash = ? AND state = 'pending'",
                (caller.org, caller.agent, call_hash),
            ).fetchone()
            if found is not None:
                record = approval_of(found)
                if not (still_enough(asked.verdict, record) and same_target(asked, record)):
                    move(rows, record, State.PENDING, State.CANCELLED, now)
                    append(rows, caller.org, Event.APPROVAL_STALE, approval=record.id, reason="rules or connection")
                else:
                    return record, True
            require_bearable(rows, caller, now)
            if len(asked.prompt.text) > LONGEST_PROMPT:
                raise Refused("the call is too long for any person to judge")
            return self._insert(rows, asked, call_hash, now), False

        return await self._database.of(caller.org).write(change)

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
        insert(rows, self._vault, record, details=details, prompt=asked.prompt.text)
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
        keep(rows, partial(self._vault.seal_text, rows, caller.org), caller, decided(call, asked.ruled or verdict))
        tell(rows, record.org, record.id, Happening.OPENED)
        return record

    # -- asking and waiting

    async def _decided(self, asked: Asked, record: Approval, person: Person, *, joined: bool) -> Approval:
        question = self.question(record, asked.prompt)
        askable = (
            person.can_be_asked
            and not asked.caller.standalone
            and record.ruling is Ruling.CONFIRM
            and record.whole
            and len(question.text) <= IN_CLIENT_LENGTH
            and record.declined_at is None
        )
        key = (record.org, record.id)
        shared = joined and person.answers_later and record.created_at + SHARE_PROMPT_MS > now_ms()
        prompted = key in self._asking and not person.answers_later
        if not askable or shared or prompted:
            return await self._held(record)
        self._asking.add(key)
        try:
            return await self._asked(asked, record, person, question)
        finally:
            self._asking.discard(key)

    async def _asked(self, asked: Asked, record: Approval, person: Person, question: Question) -> Approval:
        """Ask at the client, while someone may decide elsewhere; whoever is first has decided."""
        answer: list[Decision | None] = []

        async def ask() -> None:
            answer.append(await person.ask(question))
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
        return self.again(record)

    async def _answered(self, asked: Asked, record: Approval, decision: Decision | None) -> None:
        caller = asked.caller

        def change(rows: Rows) -> None:
            now = now_ms()
            if one(rows, record.org, record.id) is None:
                return  # its org was removed meanwhile
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
            made = through("client", by=caller.member_name, by_id=caller.member, known_by="the client's word")
            self._decisions.settle(rows, record, decision, made, signed_in=False, now=now)

        await self._database.of(record.org).write(change)

    def question(self, record: Approval, prompt: Prompt) -> Question:
        """What the person at the client is asked."""
        choices = {Decision.APPROVE.value: "Approve this call", Decision.DENY.value: "Deny it"}
        text = prompt.text
        details = self.details(record)
        if details["keeps"] and Effect(record.effect) in IN_CLIENT:
            kept = " and ".join(f"{name} = {quote(details['arguments'].get(name))}" for name in details["keeps"])
            hour = (
                f"{Decision.APPROVE_HOUR.value} also lets this agent repeat {record.tool} with {kept}, whatever its "
                f"other arguments, up to {GRANT_USES} times within one hour."
            )
            if len(text) + len(hour) + 2 > IN_CLIENT_LENGTH:
                return Question(record.id, text, choices)  # terms that a client would cut are not offered
            same = " and ".join(details["keeps"])
            choices = {
                Decision.APPROVE.value: "Approve this call",
                Decision.APPROVE_HOUR.value: f"Approve, and with the same {same} for one hour",
                Decision.DENY.value: "Deny it",
            }
            text = f"{text}\n\n{hour}"
        return Question(record.id, text, choices)

    async def _held(self, record: Approval) -> Approval:
        with anyio.move_on_after(self._hold_seconds):
            return await self._until(record, lambda state: state is not State.PENDING)
        return self.again(record)

    async def _ended(self, record: Approval) -> Approval:
        with anyio.move_on_after(ASK_S):
            return await self._until(record, lambda state: state is not State.EXECUTING)
        return self.again(record)

    async def _until(self, record: Approval, reached: Callable[[State], bool]) -> Approval:
        while True:
            current = self.again(record)
            if reached(current.state):
                return current
            await anyio.sleep(POLL_S)
