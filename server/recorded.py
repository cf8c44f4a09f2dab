"""Every call that was decided, kept for a while so that a draft of the rules can be tried on it.

The arguments are sealed under the org's key. A row is written in the transaction that records the attempt, the hold or
the refusal anyway. Ids begin with the time, so that the oldest are found by the primary key.
"""

import asyncio
import contextlib
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from connectors.definition import Call
from server.clock import now_ms
from server.database import Database, DatabaseProblem, Rows
from server.identity import Caller
from server.policy import Subject, Verdict
from server.rounds import rounds
from vault import CannotOpen, Seal, Vault

log = logging.getLogger("keyleash")

PURPOSE = "recorded-arguments"
LONGEST = 32 * 1024
"""Characters of a call's arguments, as JSON in ASCII; of what is longer, only that it was too long is kept."""
DAY_MS = 86_400_000
BATCH = 500
"""Rows in a transaction of the sweep, and in a snapshot of a replay."""
SWEEP_S = 3600.0


@dataclass(frozen=True)
class Decided:
    """What there is to keep of one decision. `text` is the arguments as JSON; None: they are not kept."""

    connection: str
    tool: str
    effect: str
    text: str | None
    ruling: str
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Recorded:
    """A decided call, read again. `arguments` is None where they were too long to keep; `damaged`: cannot be opened."""

    id: str
    at: int
    agent: str
    agent_name: str
    member: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    connection: str
    tool: str
    effect: str
    ruling: str
    rules: tuple[str, ...]
    arguments: Mapping[str, Any] | None
    damaged: bool = False

    @property
    def subject(self) -> Subject:
        """Who called, as rules saw them then."""
        return Subject(self.agent, self.member, self.roles, self.groups, self.member is None)


def decided(call: Call, verdict: Verdict) -> Decided:
    """What is kept of a call with its verdict."""
    text = call.canonical if len(call.canonical) <= LONGEST else None
    effect = call.tool.effect.value
    return Decided(call.connection, call.tool.name, effect, text, verdict.ruling.value, verdict.rules)


def text_of(arguments: Mapping[str, Any]) -> str | None:
    """Arguments that no tool has checked, as they are kept; None for what is too long or no JSON."""
    try:
        text = json.dumps(arguments)
    except (ValueError, TypeError, RecursionError):
        return None
    return text if len(text) <= LONGEST else None


def keep(rows: Rows, seal: Seal, caller: Caller, one: Decided) -> None:
    """Add a row for this decision to the transaction that records it; `seal` is the org's. Raises VaultError."""
    now = now_ms()
    name = f"cal_{_beginning(now)}{secrets.token_hex(6)}"
    sealed = None if one.text is None else seal(PURPOSE, name, one.text)
    rows.execute(
        _INSERT,
        (
            name,
            now,
            caller.agent,
            caller.agent_name,
            caller.member,
            _listed(caller.roles),
            _listed(caller.groups),
            one.connection,
            one.tool,
            one.effect,
            one.ruling,
            _listed(one.rules),
            sealed,
            caller.org,
        ),
    )


_COLUMNS = "id, at, agent, agent_name, member, roles, groups, connection, tool, effect, ruling, rules, sealed_arguments"
_INSERT = f"INSERT INTO recorded_call ({_COLUMNS}, org) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


@lru_cache(maxsize=1024)
def _listed(names: tuple[str, ...]) -> str:
    return json.dumps(names)


def _beginning(at_ms: int) -> str:
    """How the id of a call of this moment begins; later ones sort after it."""
    return f"{max(at_ms, 0):011x}"


def recorded(database: Database, vault: Vault, org: str, *, since: int) -> Iterator[Recorded]:
    """The calls of an org that were decided since, oldest first. Raises VaultError where nothing can be opened."""
    after = f"cal_{_beginning(since)}"
    while True:
        batch = database.of(org).snapshot(lambda rows, after=after: _batch(rows, vault, org, after))
        yield from batch
        if len(batch) < BATCH:
            return
        after = batch[-1].id


def _batch(rows: Rows, vault: Vault, org: str, after: str) -> list[Recorded]:
    """Rows with their arguments opened, in one snapshot with the key that they are under."""
    found = rows.execute(
        f"SELECT {_COLUMNS} FROM recorded_call WHERE org = ? AND id > ? ORDER BY id LIMIT ?", (org, after, BATCH)
    ).fetchall()
    return [_read(rows, vault, org, *row) for row in found]


def _read(rows: Rows, vault: Vault, org: str, *row: Any) -> Recorded:
    name, at, agent, agent_name, member, roles, groups, connection, tool, effect, ruling, rules, sealed = row
    arguments, damaged = None, False
    if sealed is not None:
        try:
            arguments = json.loads(vault.unseal_text(rows, org, PURPOSE, name, sealed))
        except CannotOpen:
            damaged = True
    return Recorded(
        name,
        at,
        agent,
        agent_name,
        member,
        tuple(json.loads(roles)),
        tuple(json.loads(groups)),
        connection,
        tool,
        effect,
        ruling,
        tuple(json.loads(rules)),
        arguments,
        damaged,
    )


# -- retention


def sweep(database: Database, org: str, keep_days: int) -> int:
    """Remove what is older than the retention, a batch at a time; returns how much that was."""
    before = f"cal_{_beginning(now_ms() - keep_days * DAY_MS)}"
    gone = 0
    while True:
        batch = database.of(org).write_now(lambda rows: _sweep(rows, org, before))
        gone += batch
        if batch < BATCH:
            return gone


def _sweep(rows: Rows, org: str, before: str) -> int:
    return rows.execute(
        "DELETE FROM recorded_call WHERE org = ? AND id IN "
        "(SELECT id FROM recorded_call WHERE org = ? AND id < ? ORDER BY id LIMIT ?)",
        (org, org, before, BATCH),
    ).rowcount


def sweep_all(database: Database, keep_days: int) -> None:
    """The same for every org."""
    for org in database.orgs():
        sweep(database, org, keep_days)


@contextlib.asynccontextmanager
async def sweeping(database: Database, keep_days: int, *, every_s: float = SWEEP_S) -> AsyncGenerator[None]:
    """Sweep now and every so often while the block runs, without keeping anybody waiting."""

    async def go() -> None:
        try:
            await asyncio.to_thread(sweep_all, database, keep_days)
        except DatabaseProblem as problem:
            log.warning("calls that were kept long enough could not be removed: %s", problem)

    async with rounds(go, every_s=every_s):
        yield
