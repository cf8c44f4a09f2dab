"""Approved work: a grant made ahead, with a name, tools, bounds, runners, uses and an end, that is decided on once.

Its calls run without prompts; each is judged by the rules of its own moment, and what they say more strictly than when
the work was decided on, it does not cover.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors.definition import Effect
from server.approval.bounds import Reach, strictest, together, within
from server.approval.channels import tell
from server.approval.outbox import Happening
from server.approval.record import (
    CLOCKS_APART_MS,
    Approval,
    ApprovalProblem,
    Asked,
    State,
    insert,
    one,
    still_enough,
)
from server.audit import Event, append
from server.clock import iso, now_ms
from server.connections import Connection, Workspace
from server.database import Database, Rows
from server.identity import Actor, Caller, new_id
from server.policy import Condition, Ruling, Subject, Verdict
from server.prompt import in_words, quote
from vault import Vault

MOST_USES = 1_000
MOST_MS = 30 * 24 * 60 * 60 * 1000
MOST_TOOLS = 50
WAITING = 20
"""So much work that one member has prepared may wait for a decision."""
BOUNDED = (Effect.SPEND, Effect.DESTROY, Effect.GRANT)
"""The effects for which work has to name bounds: nobody can agree to any payment whatever."""


@dataclass(frozen=True)
class Covered:
    """A tool that the work is to cover, and the account behind it."""

    name: str
    connection: Connection
    definition: str
    effect: Effect
    tool: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Work as it is prepared. `runner` is `agent:ID`, `member:ID` or `group:NAME`; `runs` says it in words."""

    name: str
    tools: tuple[Covered, ...]
    bounds: tuple[Condition, ...]
    runner: str
    runs: str
    uses: int
    expires_at: int
    why: str | None = None


@dataclass(frozen=True)
class Found:
    """A grant that covers a call, and the record that it was decided on. `name` is that of work prepared ahead."""

    id: str
    name: str | None
    given: Approval


def covered(workspace: Workspace, names: Iterable[str]) -> tuple[Covered, ...]:
    """The tools of these names. Raises ApprovalProblem for one that is not on offer."""
    offered = {each.name: each for each in workspace.offer.tools}
    found: dict[str, Covered] = {}
    for name in names:
        if name not in offered:
            raise ApprovalProblem(
                f"There is no tool {name!r}. Write its name on the wire, such as stripe_create_refund."
            )
        each = offered[name]
        found[name] = Covered(
            name,
            workspace.connections[each.connection],
            each.tool.definition_hash,
            each.tool.effect,
            each.tool.name,
            tuple(argument.name for argument in each.tool.arguments),
        )
    return tuple(found.values())


def check(plan: Plan, now: int) -> None:
    """Refuse work that cannot mean what its author thinks, or is without measure. Raises ApprovalProblem."""
    if not plan.tools or len(plan.tools) > MOST_TOOLS:
        raise ApprovalProblem(f"Name the tools, 1 to {MOST_TOOLS} of them.")
    if not 1 <= plan.uses <= MOST_USES:
        raise ApprovalProblem(f"Work has 1 to {MOST_USES} uses.")
    if not now < plan.expires_at <= now + MOST_MS:
        raise ApprovalProblem("Work runs for 30 days at most.")
    for tool in plan.tools:
        for bound in plan.bounds:
            if bound.argument.split(".")[0] not in tool.arguments:
                raise ApprovalProblem(
                    f"{tool.name} has no argument {bound.argument!r}, so no call of it would be within the bounds. "
                    f"It has {', '.join(tool.arguments) or 'none'}."
                )
        if tool.effect in BOUNDED and not any(bound.op != "present" for bound in plan.bounds):
            raise ApprovalProblem(
                f"{tool.name} ({tool.effect}) is covered only within bounds. Add `--where`, such as 'amount max 5000'."
            )


def level(plan: Plan, subjects: Sequence[Subject], workspace: Workspace) -> Verdict:
    """What the strictest call that the work could cover takes. Raises ApprovalProblem where it would cover none."""
    reaches = [
        Reach(subject, tool.connection.name, tool.tool, tool.effect) for tool in plan.tools for subject in subjects
    ]
    found = strictest(reaches, plan.bounds, workspace.rules, workspace.preset)
    for tool in plan.tools:
        if not any(verdict for reach, verdict in found.items() if (reach.connection, reach.tool) == _target(tool)):
            raise ApprovalProblem(
                f"The rules deny {tool.name} to {plan.runs} within these bounds, whatever is approved."
            )
    verdict = together(verdict for verdict in found.values() if verdict is not None)
    if verdict.ruling is Ruling.ALLOW:
        raise ApprovalProblem("The rules allow all of this without anybody's approval: there is nothing to prepare.")
    return verdict


def _target(tool: Covered) -> tuple[str, str]:
    return tool.connection.name, tool.tool


def acted_for(rows: Rows, org: str, work: str) -> set[str | None]:
    """The ids of the members whose agents may run this work."""
    row = rows.execute("SELECT runner FROM work WHERE org = ? AND id = ?", (org, work)).fetchone()
    kind, _, name = str(row[0]).partition(":") if row else ("", "", "")
    if kind == "member":
        return {name}
    if kind == "agent":
        found = rows.execute("SELECT member FROM agent WHERE org = ? AND id = ?", (org, name)).fetchone()
        return {found[0]} if found else set()
    people = rows.execute("SELECT id, groups FROM member WHERE org = ?", (org,)).fetchall()
    return {member for member, groups in people if name in json.loads(groups)}


def confirms(rows: Rows, org: str, work: str) -> set[str | None]:
    """The members (ids) each of whose own calls the work is about, and nobody's else's whoever joins or leaves.

    Of a group that is none, though it be of one now: who joins later would run on that one's word.
    """
    row = rows.execute("SELECT runner FROM work WHERE org = ? AND id = ?", (org, work)).fetchone()
    return set() if row is None or str(row[0]).startswith("group:") else acted_for(rows, org, work)


def runs(runner: str, caller: Caller) -> bool:
    """Whether this caller is one whose calls the work covers."""
    kind, _, name = runner.partition(":")
    if kind == "agent":
        return caller.agent == name
    if caller.standalone:
        return False
    return caller.member == name if kind == "member" else kind == "group" and name in caller.groups


class Works:
    """The approved work of an installation."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    # -- made and decided

    def prepare(self, rows: Rows, org: str, plan: Plan, actor: Actor, *, verdict: Verdict, prompt: str) -> str:
        """Write work that waits for a decision, with the record that decides on it; returns that record's id."""
        now = now_ms()
        waiting = rows.execute(
            "SELECT COUNT(*) FROM approval WHERE org = ? AND member = ? AND state = 'pending' AND work IS NOT NULL",
            (org, actor.member.id),
        ).fetchone()[0]
        if waiting >= WAITING:
            raise ApprovalProblem(f"{waiting} of what you have prepared waits for a decision. Wait, or revoke some.")
        work = new_id("grt")
        record = Approval(
            org=org,
            id=new_id("apr"),
            state=State.PENDING,
            agent="",
            agent_name=plan.runs,
            member=actor.member.id,
            connection="",
            credential_version=0,
            tool=f"work {plan.name}",
            definition="",
            effect=max((tool.effect for tool in plan.tools), key=lambda effect: effect.strictness).value,
            call_hash=work,
            ruling=verdict.ruling,
            needed=verdict.count,
            approvers=verdict.approvers,
            second_person=verdict.second_person,
            rules=verdict.rules,
            decisions=(),
            whole=False,
            declined_at=None,
            created_at=now,
            expires_at=plan.expires_at,
            changed_at=now,
            work=work,
        )
        bounds = [{"argument": each.argument, "op": each.op, "value": each.value} for each in plan.bounds]
        shown = {
            "tools": [tool.name for tool in plan.tools],
            "where": [in_words(each, quote) for each in plan.bounds],
            "runner": plan.runs,
            "uses": plan.uses,
            "expires_at": iso(plan.expires_at),
            "why": plan.why,
        }
        details: dict[str, Any] = {
            "arguments": shown,
            "keeps": [],
            "summary": f"Work {quote(plan.name)}: up to {plan.uses} calls by {plan.runs}",
        }
        insert(rows, self._vault, record, details=details, prompt=prompt)
        rows.execute(
            "INSERT INTO work (org, id, name, approval, runner, sealed_bounds, uses, uses_left, created_by, requester, "
            "created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                org,
                work,
                plan.name,
                record.id,
                plan.runner,
                self._vault.seal_text(rows, org, "work-bounds", work, json.dumps({"where": bounds, "why": plan.why})),
                plan.uses,
                plan.uses,
                actor.member.name,
                actor.member.id,
                now,
                plan.expires_at,
            ),
        )
        for tool in plan.tools:
            rows.execute(
                "INSERT INTO work_tool (org, work, tool, connection, credential_version, definition) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (org, work, tool.name, tool.connection.id, tool.connection.credential_version, tool.definition),
            )
        tell(rows, org, record.id, Happening.OPENED)
        append(
            rows,
            org,
            Event.APPROVAL_OPENED,
            approval=record.id,
            grant=work,
            work=plan.name,
            tools=[tool.name for tool in plan.tools],
            bounded=[f"{each.argument} {each.op}" for each in plan.bounds],
            runner=plan.runner,
            uses=plan.uses,
            expires_at=iso(plan.expires_at),
            effect=record.effect,
            verdict=verdict.ruling.value,
            rules=list(verdict.rules),
            by=actor.member.name,
            known_by=actor.known_by,
        )
        return record.id

    def start(self, rows: Rows, record: Approval, made: dict[str, Any], now: int) -> None:
        """Let decided work run, in the transaction of the decision."""
        rows.execute(
            "UPDATE work SET started_at = ? WHERE org = ? AND id = ? AND started_at IS NULL AND revoked_at IS NULL",
            (now, record.org, record.work),
        )
        name, uses, expires_at = rows.execute(
            "SELECT name, uses, expires_at FROM work WHERE org = ? AND id = ?", (record.org, record.work)
        ).fetchone()
        tools = rows.execute(
            "SELECT tool FROM work_tool WHERE org = ? AND work = ? ORDER BY tool", (record.org, record.work)
        ).fetchall()
        append(
            rows,
            record.org,
            Event.GRANT_CREATED,
            grant=record.work,
            work=name,
            approval=record.id,
            tools=[tool for (tool,) in tools],
            uses=uses,
            expires_at=iso(expires_at),
            approver=made["by"],
            channel=made["channel"],
            known_by=made["known_by"],
        )

    # -- used

    def match(self, asked: Asked) -> Found | None:
        """The work that covers this call now, if there is some; `take` counts it down."""
        return self._database.of(asked.caller.org).snapshot(lambda rows: self._match(rows, asked))

    def _match(self, rows: Rows, asked: Asked) -> Found | None:
        now = now_ms()
        for work, name, approval, runner, sealed in rows.execute(
            "SELECT w.id, w.name, w.approval, w.runner, w.sealed_bounds FROM work_tool t "
            "JOIN work w ON w.org = t.org AND w.id = t.work WHERE t.org = ? AND t.tool = ? AND t.connection = ? "
            "AND t.credential_version = ? AND t.definition = ? AND w.started_at <= ? AND w.revoked_at IS NULL "
            "AND w.uses_left > 0 AND w.expires_at > ? ORDER BY w.expires_at, w.id",
            (
                asked.caller.org,
                asked.call.name,
                asked.connection.id,
                asked.connection.credential_version,
                asked.call.tool.definition_hash,
                now + CLOCKS_APART_MS,
                now,
            ),
        ).fetchall():
            given = one(rows, asked.caller.org, approval)
            if given is None or given.state is not State.APPROVED or not runs(runner, asked.caller):
                continue
            if not still_enough(asked.verdict, given) or _approved_by(asked.caller.member, given):
                continue
            if within(self._bounds(rows, asked.caller.org, work, sealed), asked.call.arguments):
                return Found(work, name, given)
        return None

    def _bounds(self, rows: Rows, org: str, work: str, sealed: bytes) -> list[Condition]:
        return [
            Condition(each["argument"], each["op"], tuple(each["value"]) if each["op"] == "in" else each["value"])
            for each in json.loads(self._vault.unseal_text(rows, org, "work-bounds", work, sealed))["where"]
        ]

    def take(self, rows: Rows, asked: Asked, work: str) -> bool:
        """Take one use, in the same transaction as the attempt; False where none is left, or it has ended.

        The credential is looked at here as well, and whether it still is the caller's to run: both may have changed
        since the call was looked up.
        """
        if not _runs_now(rows, asked, work):
            return False
        now = now_ms()
        taken = rows.execute(
            "UPDATE work SET uses_left = uses_left - 1 WHERE org = ? AND id = ? AND uses_left > 0 "
            "AND revoked_at IS NULL AND expires_at > ? AND started_at <= ? AND EXISTS (SELECT 1 FROM work_tool t "
            "JOIN connection c ON c.org = t.org AND c.id = t.connection "
            "AND c.credential_version = t.credential_version "
            "WHERE t.org = work.org AND t.work = work.id AND t.tool = ? AND t.definition = ?)",
            (asked.caller.org, work, now, now + CLOCKS_APART_MS, asked.call.name, asked.call.tool.definition_hash),
        )
        return bool(taken.rowcount == 1)

    # -- ended and shown

    def revoke(self, rows: Rows, org: str, work: str, *, by: str) -> bool:
        """End work at once, or take it back before it is decided on; False where there is none to end."""
        now = now_ms()
        ended = rows.execute(
            "UPDATE work SET revoked_at = ? WHERE org = ? AND id = ? AND revoked_at IS NULL", (now, org, work)
        )
        if ended.rowcount != 1:
            return False
        rows.execute(
            "UPDATE approval SET state = 'cancelled', changed_at = ? WHERE org = ? AND work = ? "
            "AND state IN ('pending', 'approved')",
            (now, org, work),
        )
        append(rows, org, Event.GRANT_REVOKED, grant=work, by=by)
        return True

    def shown(self, rows: Rows, org: str, now: int, *, every: bool) -> list[dict[str, Any]]:
        """All work that runs, with its bounds in clear; every one that ever did where asked. For people of this org."""
        running = "" if every else "AND revoked_at IS NULL AND uses_left > 0 AND expires_at > ? "
        found = rows.execute(
            "SELECT id, name, approval, runner, sealed_bounds, uses, uses_left, created_by, created_at, expires_at, "
            "revoked_at, requester FROM work "
            f"WHERE org = ? AND started_at IS NOT NULL {running}ORDER BY created_at, id",
            (org,) if every else (org, now),
        ).fetchall()
        return [self._shown(rows, org, now, row) for row in found]

    def _shown(self, rows: Rows, org: str, now: int, row: Sequence[Any]) -> dict[str, Any]:
        work, name, approval, runner, sealed, uses, left, created_by, created_at, expires_at, revoked_at, *rest = row
        record = one(rows, org, approval)
        tools = rows.execute(
            "SELECT tool FROM work_tool WHERE org = ? AND work = ? ORDER BY tool", (org, work)
        ).fetchall()
        last = record.decisions[-1] if record is not None and record.decisions else {}
        bounds = None if sealed is None else self._bounds(rows, org, work, sealed)
        return {
            "id": work,
            "name": name,
            "agent": runner if record is None else record.agent_name,
            "runner": runner,
            "tools": [tool for (tool,) in tools],
            "where": None if bounds is None else [in_words(bound, quote) for bound in bounds],
            "uses": uses,
            "uses_left": left,
            "approval": approval,
            "prepared_by": created_by,
            "prepared_by_id": rest[0],
            "decided_by": last.get("by", ""),
            "channel": last.get("channel", ""),
            "created_at": iso(created_at),
            "expires_at": iso(expires_at),
            "status": status(now, left, expires_at, revoked_at),
        }


def status(now: int, left: int, expires_at: int, revoked_at: int | None) -> str:
    """Where a grant stands, in a word."""
    if expires_at <= now or (revoked_at is not None and revoked_at >= expires_at):
        return "expired"
    return "revoked" if revoked_at is not None else "running" if left > 0 else "used up"


def _runs_now(rows: Rows, asked: Asked, work: str) -> bool:
    """Whether the work covers this agent, with its member and their groups as this transaction sees them."""
    row = rows.execute(
        "SELECT w.runner, a.member, m.groups FROM work w JOIN agent a ON a.org = w.org AND a.id = ? "
        "LEFT JOIN member m ON m.org = a.org AND m.id = a.member WHERE w.org = ? AND w.id = ?",
        (asked.caller.agent, asked.caller.org, work),
    ).fetchone()
    if row is None:
        return False
    runner, member, groups = row
    return runs(runner, replace(asked.caller, member=member, groups=tuple(json.loads(groups or "[]"))))


def _approved_by(member: str | None, given: Approval) -> bool:
    """Whether who now runs this agreed to it, where a second person had to: they may have joined the group since."""
    return given.second_person and member is not None and any(made.get("by_id") == member for made in given.decisions)
