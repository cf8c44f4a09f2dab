"""Let go of a log's oldest entries with proof: a signed stub stands in their place, and the rest verifies from there.

The stub says which entries went, what the chain's hash and the Merkle tree were at their end, when, and by whose hand.
Only whoever owns the database can prune: triggers refuse to delete an entry that no stub stands for, and the role that
serves on PostgreSQL can neither delete entries nor write stubs. It is on record in the log.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.approval import Approvals, State
from server.approval.unknown import Look
from server.audit import AuditError, Event, append
from server.audit.checkpoints import Grown, Signer, begun, grow, stub_of
from server.audit.note import Checkpoint
from server.audit.noted import NotedHeads
from server.audit.proof import stub_in
from server.clock import now_ms
from server.database import Database, Rows
from server.settings import Settings
from server.signing import signer_of
from vault import Vault

FLOOR_DAYS = 30
"""What is younger is never pruned."""
AT_ONCE = 20_000
"""Entries that go in one transaction, each with a stub of its own: calls wait for no more than that."""
DAY_MS = 24 * 60 * 60 * 1000
MEANWHILE = "The log was pruned by somebody else meanwhile. Nothing more was removed."


class PruneProblem(AuditError):
    """Nothing is pruned, or no more; the message says why."""


@dataclass(frozen=True)
class Prunable:
    """Which entries are to go."""

    org: str
    first: int
    last: int
    signer: Signer


def plan(
    database: Database,
    vault: Vault,
    settings: Settings,
    approvals: Approvals,
    org: str,
    *,
    before: int,
) -> Prunable:
    """Which entries from before then may go, the whole log verified and signed outside first. Raises PruneProblem,
    AuditError or VaultError.
    """
    if before > now_ms() - FLOOR_DAYS * DAY_MS:
        raise PruneProblem(f"Nothing younger than {FLOOR_DAYS} days is pruned. Name an earlier time.")
    signer = signer_of(database, vault, org)
    note, _ = NotedHeads(settings.noted_heads).checkpoint(database, org, signer)
    scoped = database.of(org)
    stub = stub_in(scoped, org)
    first = stub.size + 1 if stub is not None else 1
    last = min(_older(scoped, org, before), _ended(scoped, org, approvals.unknown.look(org, now_ms())), note.size - 1)
    if last < first:
        raise PruneProblem(
            "There is nothing to prune: what is older than that is gone, or a call in it has no end on record yet, or "
            "waits for a person (`keyleash approvals list`)."
        )
    return Prunable(org, first, last, signer)


def prune(
    database: Database, planned: Prunable, *, by: str, progress: Callable[[int], object] | None = None
) -> list[Checkpoint]:
    """Remove them, some at a time, each time whole; returns the stubs. Raises AuditError."""
    org, scoped = planned.org, database.of(planned.org)
    log = begun(org, stub_in(scoped, org))
    stubs: list[Checkpoint] = []
    for last in _steps(planned):
        first = log.head.seq + 1
        if first > last:
            raise PruneProblem(MEANWHILE)
        grow(scoped, org, log, to=last)
        size = scoped.read("SELECT SUM(LENGTH(body)) FROM audit_entry WHERE org = ? AND seq <= ?", (org, last))[0][0]
        stub = stub_of(log, planned.signer, first=first, size=int(size), by=by)
        scoped.write_now(partial(_let_go, org=org, first=first, log=log, stub=stub, by=by))
        stubs.append(stub)
        if progress:
            progress(last - planned.first + 1)
    return stubs


def _steps(planned: Prunable) -> list[int]:
    return [*range(planned.first + AT_ONCE - 1, planned.last, AT_ONCE), planned.last]


def _let_go(rows: Rows, *, org: str, first: int, log: Grown, stub: Checkpoint, by: str) -> None:
    last = log.head.seq
    there = rows.execute(
        "SELECT COUNT(*), MIN(seq) FROM audit_entry WHERE org = ? AND seq <= ?", (org, last)
    ).fetchone()
    if (there[0], there[1]) != (last - first + 1, first):
        raise PruneProblem(MEANWHILE)
    rows.execute("INSERT INTO audit_stub (org, seq, note) VALUES (?, ?, ?)", (org, last, str(stub)))
    rows.execute("DELETE FROM audit_entry WHERE org = ? AND seq <= ?", (org, last))
    append(
        rows,
        org,
        Event.AUDIT_PRUNED,
        first=first,
        last=last,
        head=log.head.hash,
        root=log.tree.root().hex(),
        by=by,
        known_by="the root key",
    )


def _older(scoped: Database, org: str, before: int) -> int:
    """The last entry before the first one that is not older."""
    ((younger,),) = scoped.read("SELECT MIN(seq) FROM audit_entry WHERE org = ? AND at >= ?", (org, before))
    ((last,),) = scoped.read("SELECT MAX(seq) FROM audit_entry WHERE org = ?", (org,))
    return int(last or 0) if younger is None else int(younger) - 1


def _ended(scoped: Database, org: str, look: Look) -> int:
    """The last entry before the first call that is not over: without an outcome, lost, or held for a person."""
    lost = scoped.read("SELECT MIN(attempt) FROM lost_call WHERE org = ? AND resolution IS NULL", (org,))[0][0]
    held = scoped.read(
        "SELECT MIN(created_at) FROM approval WHERE org = ? AND state IN (?, ?, ?, ?) AND resolution IS NULL",
        (org, *(state.value for state in (State.PENDING, State.APPROVED, State.EXECUTING, State.UNKNOWN))),
    )[0][0]
    bounds = [look.settled, *(attempt - 1 for attempt in look.lost)]
    bounds += [] if lost is None else [int(lost) - 1]
    bounds += [] if held is None else [_older(scoped, org, int(held))]
    return min(bounds)
