"""What one held call is: its row, its states, and the only ways in which it moves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from connectors.definition import Call
from server.approval.channels import tell
from server.approval.eligible import Wanted
from server.approval.outbox import Happening
from server.audit import Event, append
from server.connections import Connection
from server.database import Database, Rows
from server.errors import Question
from server.identity import Caller
from server.outside import Outside
from server.policy import Ruling, Verdict
from server.prompt import Prompt
from vault import Vault

APPROVAL_MS = 60 * 60 * 1000
"""How long a call may wait for a decision, and an approved one to be carried out."""
STATE_TTL_S = 2 * 60 * 60
"""How long a client's pointer to a record lives: longer than any record."""
LONGEST_PROMPT = 200_000
LOST_MS = 3 * 60 * 1000
"""A call still `executing` after this long was lost: longer than a call can take."""
CLOCKS_APART_MS = 60 * 1000
"""How far the clocks of two replicas may be apart. A row written later than that was written before the clock was set
back, and counts as expired: what has ended is not to come back with the hour."""
ASK_S = 50.0
"""How long a client may take over its question, and a call wait for another that runs the same approval. Several
hosts give up on a call at about 60 seconds, dialog or not."""
SHARE_PROMPT_MS = 10_000
POLL_S = 0.1


class State(StrEnum):
    """Where a record stands. The last six are final: only an `unknown` one may be sent again with its own key, once."""

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

    @property
    def outside(self) -> Outside | None:
        """The same person for the questions of a wrapped server; None where they cannot be asked."""
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
    resolution: dict[str, Any] | None = None
    """What a person says became of an `unknown` call: `happened`, `by`, `by_id`, `known_by`, `at`, `note`, `told`."""
    resent_at: int | None = None
    work: str | None = None
    """The grant that this record decides on; such a record is no call's."""

    @property
    def needs_a_look(self) -> bool:
        """Whether nobody has said yet what became of it."""
        return self.state is State.UNKNOWN and self.resolution is None

    @property
    def happened(self) -> bool | None:
        """What a person says: it took effect, or it did not; None where nobody has said."""
        return None if self.resolution is None else bool(self.resolution["happened"])


@dataclass(frozen=True)
class Asked:
    """A call that needs someone's agreement, with all that was decided about it so far."""

    caller: Caller
    call: Call
    connection: Connection
    verdict: Verdict
    prompt: Prompt
    before: "Before | None" = None
    """When this agent last did exactly this, or set about it."""


@dataclass(frozen=True)
class Clearance:
    """What lets a call go on: an approved record, a grant, or the outcome that the record already has.

    `work` is the name of a grant that was prepared ahead, `call_hash` what a call under a grant is known by. With
    `again`, the record's call was lost on its way, and the upstream promises to carry it out once under its key,
    however often it is sent.
    """

    approval: Approval | None = None
    grant: str | None = None
    work: str | None = None
    call_hash: str | None = None
    outcome: dict[str, Any] | None = None
    again: bool = False
    given: Approval | None = None
    """The record that the grant was decided on."""


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


def over(record: Approval, now: int) -> bool:
    """Whether a pending or approved record has expired, or the clock was set back behind it."""
    return record.expires_at <= now or record.changed_at > now + CLOCKS_APART_MS


_DUE = (
    "((state IN ('pending', 'approved') AND (expires_at <= ? OR changed_at > ?)) "
    "OR (state = 'executing' AND changed_at <= ?))"
)
_ENDED = "revoked_at IS NULL AND (expires_at <= ? OR created_at > ?)"


def due(rows: Rows, org: str, now: int) -> bool:
    """Whether `sweep` would write anything."""
    asked = (
        (f"SELECT 1 FROM approval WHERE org = ? AND {_DUE} LIMIT 1", (org, now, now + CLOCKS_APART_MS, now - LOST_MS)),
        (f"SELECT 1 FROM call_grant WHERE org = ? AND {_ENDED} LIMIT 1", (org, now, now + CLOCKS_APART_MS)),
        (f"SELECT 1 FROM work WHERE org = ? AND {_ENDED} LIMIT 1", (org, now, now + CLOCKS_APART_MS)),
    )
    return any(rows.execute(sql, values).fetchone() for sql, values in asked)


def sweep(rows: Rows, org: str, now: int) -> None:
    """Write down what time has decided: expired records and grants, and calls that were lost on their way.

    What is written stays, whatever becomes of the clock. A lost record keeps the time at which it was claimed.
    """
    for approval, state, agent, tool, changed_at in rows.execute(
        f"SELECT id, state, agent_name, tool, changed_at FROM approval WHERE org = ? AND {_DUE}",
        (org, now, now + CLOCKS_APART_MS, now - LOST_MS),
    ).fetchall():
        lost = state == State.EXECUTING
        after, at = (State.UNKNOWN, changed_at) if lost else (State.EXPIRED, now)
        moved = rows.execute(
            "UPDATE approval SET state = ?, changed_at = ? WHERE org = ? AND id = ? AND state = ?",
            (after.value, at, org, approval, state),
        )
        if moved.rowcount == 1:
            event = Event.APPROVAL_UNKNOWN if lost else Event.APPROVAL_EXPIRED
            append(rows, org, event, approval=approval, agent=agent, tool=tool)
            tell(rows, org, approval, Happening.UNKNOWN if lost else Happening.EXPIRED)
    for table, named in (("call_grant", "tool"), ("work", "name")):
        for grant, name in rows.execute(
            f"SELECT id, {named} FROM {table} WHERE org = ? AND {_ENDED}", (org, now, now + CLOCKS_APART_MS)
        ).fetchall():
            ended = rows.execute(
                f"UPDATE {table} SET revoked_at = ? WHERE org = ? AND id = ? AND revoked_at IS NULL", (now, org, grant)
            )
            if ended.rowcount == 1:
                append(rows, org, Event.GRANT_EXPIRED, grant=grant, **{"work" if table == "work" else "tool": name})


@dataclass(frozen=True)
class Before:
    """An earlier call just like this one: when it was set about, and whether it is known that it took effect."""

    at: int
    known: bool


def last_done(database: Database, org: str, agent: str, call_hash: str) -> Before | None:
    """When this agent last carried out exactly this call, or set about it; not one that a person says was not done.

    Of calls under a grant, those are known whose outcome is not.
    """
    return database.of(org).snapshot(lambda rows: done_before(rows, org, agent, call_hash))


def done_before(rows: Rows, org: str, agent: str, call_hash: str) -> Before | None:
    """`last_done`, as this transaction sees it."""
    approved = rows.execute(
        "SELECT changed_at, state, resolution FROM approval WHERE org = ? AND agent = ? AND call_hash = ? "
        "AND state IN ('succeeded', 'unknown', 'executing') ORDER BY changed_at DESC LIMIT 50",
        (org, agent, call_hash),
    ).fetchall()
    granted = rows.execute(
        "SELECT at, 'unknown', resolution FROM lost_call WHERE org = ? AND agent = ? AND call_hash = ? "
        "ORDER BY at DESC LIMIT 50",
        (org, agent, call_hash),
    ).fetchall()
    for at, state, text in sorted((*approved, *granted), key=lambda row: int(row[0]), reverse=True):
        happened = json.loads(text)["happened"] if text else None
        if happened is not False:
            return Before(at, known=state == State.SUCCEEDED or happened is True)
    return None


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
        decided=tuple(str(made.get("by_id")) for made in record.decisions),
    )


def same_target(asked: Asked, record: Approval) -> bool:
    return (
        record.connection == asked.connection.id
        and record.credential_version == asked.connection.credential_version
        and record.definition == asked.call.tool.definition_hash
    )


# -- who may decide


# -- rows

COLUMNS = (
    "org, id, state, agent, agent_name, member, connection, credential_version, tool, definition, effect, call_hash, "
    "ruling, needed, approvers, second_person, rules, decisions, whole, declined_at, created_at, expires_at, "
    "changed_at, resolution, resent_at, work"
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
    "resolution": lambda text: json.loads(text) if text else None,
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
        None if record.resolution is None else json.dumps(record.resolution),
        record.resent_at,
        record.work,
    )


def insert(rows: Rows, vault: Vault, record: Approval, *, details: dict[str, Any], prompt: str) -> None:
    """Write a record, with what it decides on and what the person who decides reads, both sealed."""
    rows.execute(
        f"INSERT INTO approval ({COLUMNS}, sealed_call, sealed_prompt) "
        f"VALUES ({', '.join('?' * (len(values_of(record)) + 2))})",
        (
            *values_of(record),
            vault.seal_text(rows, record.org, "approval-call", record.id, json.dumps(details)),
            vault.seal_text(rows, record.org, "approval-prompt", record.id, prompt),
        ),
    )


def one(rows: Rows, org: str, approval: str) -> Approval | None:
    row = rows.execute(f"SELECT {COLUMNS} FROM approval WHERE org = ? AND id = ?", (org, approval)).fetchone()
    return approval_of(row) if row else None
