"""What one held call is: its row, its states, and the only ways in which it moves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from connectors.definition import Call
from server.approval.channels import tell
from server.approval.eligible import Wanted, in_circle
from server.approval.outbox import Happening
from server.audit import Event, append
from server.connections import Connection
from server.database import Database, Rows
from server.errors import Question
from server.identity import Actor, Caller
from server.policy import Ruling, Verdict
from server.prompt import Prompt

APPROVAL_MS = 60 * 60 * 1000
"""How long a call may wait for a decision, and an approved one to be carried out."""
STATE_TTL_S = 2 * 60 * 60
"""How long a client's pointer to a record lives: longer than any record."""
PENDING_PER_AGENT = 20
PAUSE_AFTER = 10
PAUSE_MS = 10 * 60 * 1000
"""After so many denials in a row an agent opens no new approval for this long: a person is not to be worn down."""
LONGEST_PROMPT = 200_000
LOST_MS = 3 * 60 * 1000
"""A call still `executing` after this long was lost: longer than a call can take."""
CLOCKS_APART_MS = 60 * 1000
"""How far the clocks of two replicas may be apart. What was decided later than that was decided before the clock was
set back: its time would be longer than was agreed to."""
ASK_S = 50.0
"""How long a client may take over its question, and a call wait for another that runs the same approval. Several
hosts give up on a call at about 60 seconds, dialog or not."""
SHARE_PROMPT_MS = 10_000
POLL_S = 0.1


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


# -- moving


def move(rows: Rows, record: Approval, before: State, after: State, now: int) -> bool:
    moved = rows.execute(
        "UPDATE approval SET state = ?, changed_at = ? WHERE org = ? AND id = ? AND state = ?",
        (after.value, now, record.org, record.id, before.value),
    )
    return moved.rowcount == 1


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
        tell(rows, org, approval, Happening.UNKNOWN if lost else Happening.EXPIRED)


def last_done(database: Database, org: str, agent: str, call_hash: str) -> int | None:
    """When this agent last carried out exactly this call, or set about it, in milliseconds since the epoch."""
    rows = database.of(org).read(
        "SELECT MAX(changed_at) FROM approval WHERE org = ? AND agent = ? AND call_hash = ? "
        "AND state IN ('succeeded', 'unknown', 'executing')",
        (org, agent, call_hash),
    )
    return rows[0][0] if rows else None


def still_enough(verdict: Verdict, record: Approval) -> bool:
    """Whether an agreement to `record` is still enough under today's verdict."""
    given = Verdict(
        record.ruling, "", count=record.needed, approvers=record.approvers, second_person=record.second_person
    )
    return not verdict.stricter_than(given)


def wanted(record: Approval) -> Wanted:
    """Whose agreement this record still needs."""
    return Wanted(
        record.ruling,
        needed=record.needed,
        approvers=record.approvers,
        second_person=record.second_person,
        requester=record.member,
        decided=tuple(str(made["by"]) for made in record.decisions),
    )


def same_target(asked: Asked, record: Approval) -> bool:
    return (
        record.connection == asked.connection.id
        and record.credential_version == asked.connection.credential_version
        and record.definition == asked.call.tool.definition_hash
    )


# -- who may decide


def stands_in(actor: Actor, circle: str) -> bool:
    return in_circle(actor.member, circle)


# -- rows

COLUMNS = (
    "org, id, state, agent, agent_name, member, connection, credential_version, tool, definition, effect, call_hash, "
    "ruling, needed, approvers, second_person, rules, decisions, whole, declined_at, created_at, expires_at, "
    "changed_at"
)


def approval_of(row: Sequence[Any]) -> Approval:
    read: dict[str, Any] = dict(zip(COLUMNS.split(", "), row, strict=True))
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


def values_of(record: Approval) -> tuple[Any, ...]:
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


def one(rows: Rows, org: str, approval: str) -> Approval | None:
    row = rows.execute(f"SELECT {COLUMNS} FROM approval WHERE org = ? AND id = ?", (org, approval)).fetchone()
    return approval_of(row) if row else None
