"""What time brings in the walk: tokens end, calls are lost, what waits expires, and what is old is not kept.

Nobody waits for it: the rows of one org are made older, and a server's own duty is done for it.
"""

from contextlib import suppress
from typing import Any

from server.approval import ApprovalProblem, Decision, State
from server.approval.record import LOST_MS
from server.approval.tending import empty_old, tend
from server.audit import Event, append, select
from server.audit.entry import RESERVED
from server.clock import now_ms
from server.identity import Actor
from server.oauth import revoking
from server.oauth.apps import Apps
from server.recorded import sweep
from tests.upstream import Answer
from tests.walk.agents import Act, Agents
from tests.walk.world import Org, World

DAY_MS = 86_400_000
KEPT_DAYS = 30


async def tokens_end(agents: Agents, org: Org) -> list[str]:
    """They are renewed at the next call; or their provider is in trouble, refuses them, or has ended them for good."""
    world, tool = agents.world, agents.tool(org, "list_entries")
    if tool is None:
        return []
    how = world.chance.choice(["soon", "now", "refused", "trouble", "for good"])
    _older(world, org, "UPDATE oauth_token SET obtained_at = obtained_at - 3600000, due_at = 0", "TRUE")
    if how != "soon":
        _older(world, org, "UPDATE oauth_token SET expires_at = obtained_at", "TRUE")
    if how == "refused":
        _older(world, org, "UPDATE oauth_token SET expires_at = NULL, due_at = NULL", "TRUE")
        _refused_by(world, org)
    elif how == "for good":
        for token, family in world.provider.refresh.items():
            family.alive = family.alive and org.mark.letters not in token
    agent, _ = await agents.any_agent(org)
    try:
        if how == "trouble":
            world.provider.answering = lambda path, answer: Answer({}, 503) if path == "/oauth/token" else answer
        return [(await agents.call(org, agent, tool, {})).text for _ in range(2)]
    finally:
        world.provider.answering = lambda _path, answer: answer


def _refused_by(world: World, org: Org) -> None:
    for token in [each for each in world.provider.access if org.mark.letters in each]:
        del world.provider.access[token]


async def revoked_later(agents: Agents, org: Org) -> list[str]:
    """What a provider in trouble did not end at once is asked for again."""
    parts, heard = agents.parts, list[str]()
    _older(agents.world, org, "UPDATE oauth_revocation SET next_at = 0", "TRUE")
    connectors = agents.world.installation.catalogue.connectors
    for one in revoking.pending(parts.database):
        if one.org == org.id:
            await parts.keys.at_hand(org.id)
            said = await revoking.attempt(parts.database, parts.vault, parts.egress, connectors, one, apps=Apps())
            heard.append(f"{one.name}: {said}")
    return heard


async def a_call_is_lost(agents: Agents, org: Org) -> list[str]:
    """Approved, claimed, and then its process died; the agent makes it again, or a person has to look into it."""
    world, tool = agents.world, agents.tool(org, "create_refund")
    if tool is None:
        return []
    agent, _ = await agents.any_agent(org)
    given = {"charge": f"ch_cny{org.mark.letters}lost{world.chance.choice('abcdefgh')}{world.chance.randrange(10**6)}"}
    heard = [(await agents.call(org, agent, tool, given)).text]
    _approve_newest(world, org)
    was = "changed_at = ?, state = 'executing'"
    _older(world, org, f"UPDATE approval SET {was}", "state = 'approved'", now_ms() - LOST_MS - 1)
    if world.chance.random() < 0.5:
        heard.append((await agents.call(org, agent, tool, given)).text)
    return heard


def _approve_newest(world: World, org: Org) -> None:
    approvals, actor = world.installation.approvals, Actor(org.place.owner, "os user")
    found = approvals.list(org.id, state=State.PENDING)[-1:]
    with suppress(ApprovalProblem):
        org.place.database.of(org.id).write_now(
            lambda rows: [approvals.decide(rows, record, Decision.APPROVE, actor) for record in found]
        )


async def an_attempt_is_lost(agents: Agents, org: Org) -> list[str]:
    """One that nobody was asked about, such as one under a grant: it stands in the log, and nothing after it."""
    database = agents.world.installation.database.of(org.id)
    found = [
        entry.body
        for entry in select(database, org.id, event="call.attempt", newest_first=True, limit=20)
        if entry.body["effect"] not in ("read", "metered", "sensitive")
    ]
    if not found:
        return []
    body: dict[str, Any] = agents.world.chance.choice(sorted(found, key=lambda one: one.get("grant") is None)[:3])
    body = {name: value for name, value in body.items() if name not in RESERVED and name != "approval"}
    old = now_ms() - LOST_MS - 1
    database.write_now(lambda rows: append(rows, org.id, Event.CALL_ATTEMPT, at_ms=old, **body))
    return await tends(agents, org)


async def tends(agents: Agents, org: Org) -> list[str]:
    """A server's round: what has expired, and what was lost."""
    world = agents.world
    if world.chance.random() < 0.5:
        _older(world, org, "UPDATE approval SET expires_at = ?", "state = 'pending'", now_ms() - 1)
    await tend(world.installation.database, world.installation.approvals, org.id)
    unknown = world.installation.approvals.unknown
    return [str(unknown.calls(org.id)), str(unknown.approvals(org.id))]


async def months_pass(agents: Agents, org: Org) -> list[str]:
    """What has ended is emptied, and recorded calls go; a webhook is not tried for longer than a day."""
    world, ago = agents.world, now_ms() - (KEPT_DAYS + 1) * DAY_MS
    ended = "state NOT IN ('pending', 'approved', 'executing')"
    _older(world, org, "UPDATE approval SET created_at = ?, changed_at = ?", ended, ago, ago)
    for table in ("call_grant", "work"):
        _older(world, org, f"UPDATE {table} SET revoked_at = ?", "revoked_at IS NOT NULL", ago)
    _older(world, org, "UPDATE notice SET created_at = ?", "tries > 0", ago)
    await empty_old(world.installation.database, org.id, keep_days=KEPT_DAYS)
    sweep(world.installation.database, org.id, keep_days=-1 if world.chance.random() < 0.2 else KEPT_DAYS)
    approvals = world.installation.approvals
    shown = [str(approvals.details(each)) for each in approvals.list(org.id, limit=5)]
    return [*shown, str(approvals.grants(org.id, every=True))]


HOURS: dict[Act, int] = {
    tokens_end: 8,
    revoked_later: 2,
    a_call_is_lost: 4,
    an_attempt_is_lost: 3,
    tends: 3,
    months_pass: 2,
}
"""What time brings, and how often."""


def _older(world: World, org: Org, change: str, which: str, *values: object) -> None:
    """Rows of one org, as time alone would have made them."""
    world.operators.write_now(lambda rows: rows.execute(f"{change} WHERE org = ? AND {which}", (*values, org.id)))
