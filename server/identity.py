"""Know who is calling: a token or a name becomes a Caller, or nothing at all.

Everything asked here is asked of the database again at every call, so that a revocation acts on the next one.
"""

import getpass
import hashlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Database, Rows
from server.ending import end_org, end_with
from server.erasure import request
from server.narrowing import Narrowing, dump, load
from server.policy import ROLES

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_TOKEN = re.compile(r"kla_([a-z0-9]{16})_([A-Za-z0-9_-]{43})")


class IdentityProblem(Exception):
    """Something about orgs, members or agents cannot be done; the message says how to mend it."""


@dataclass(frozen=True)
class Caller:
    """Who is calling now: org, agent, and the member it acts for (None: a standalone agent).

    `token_mark` changes when the agent's token does; it is no part of the token.
    """

    org: str
    org_name: str
    preset: str
    revision: int
    agent: str
    agent_name: str
    member: str | None
    member_name: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    narrowing: Narrowing = field(default_factory=Narrowing)
    token_mark: str = ""
    client: str = ""
    client_version: str = ""
    transport: str = ""
    address: str | None = None
    """Where the request came from, as far as the door could tell; None over stdio."""
    used_at: int | None = None
    """When its last use was written down, as of when it was looked up."""

    @property
    def standalone(self) -> bool:
        """Whether nobody stands behind this agent."""
        return self.member is None


@dataclass(frozen=True)
class Org:
    """A tenant, as administrators see it."""

    id: str
    name: str
    preset: str
    frozen_at: int | None
    created_at: int


@dataclass(frozen=True)
class RemovedOrg:
    """A tenant that was removed: only its audit log is left."""

    id: str
    name: str
    removed_at: int
    removed_by: str


@dataclass(frozen=True)
class Member:
    """A person in an org."""

    id: str
    org: str
    name: str
    os_user: str | None
    roles: tuple[str, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agent:
    """An MCP client's identity, without its token."""

    id: str
    org: str
    name: str
    member: str | None
    member_name: str | None
    narrowing: Narrowing
    expires_at: int | None
    created_at: int
    last_use: "LastUse | None" = None


@dataclass(frozen=True)
class LastUse:
    """When an agent last called, or was turned away with a valid token, to within a minute; and from where."""

    at: int
    transport: str | None
    address: str | None
    client: str | None


@dataclass(frozen=True)
class Actor:
    """A person at the command line, and how they were known.

    `known_by` is `os user`, or `operator's word` where `--as` was given: that one never counts toward `approve`.
    """

    member: Member
    known_by: str

    @property
    def signed_in(self) -> bool:
        """Whether this person's decision counts where an approver is required."""
        return self.known_by == "os user"


_CALLER = """
SELECT o.id, o.name, o.preset, o.revision, o.frozen_at, a.id, a.name, a.expires_at, a.narrowing,
       a.token_hash, a.used_at, a.member, m.id, m.name, m.roles, m.groups
FROM agent a JOIN org o ON o.id = a.org LEFT JOIN member m ON m.org = a.org AND m.id = a.member
WHERE a.org = ? AND """


HTTP, STDIO = "http", "stdio"
"""The transports that a caller can come by."""


class Frozen(Exception):
    """The org's agents are stopped. The message is for the model."""


class Outside(Exception):
    """A valid token was used from an address that its agent is narrowed away from.

    Whoever holds it is told what the holder of a wrong token is told; `caller` is for the org's log.
    """

    def __init__(self, caller: Caller) -> None:
        super().__init__("outside the addresses that the agent is narrowed to")
        self.caller = caller


class Moved(Exception):
    """Something that a verdict rests on has changed since: the call has not begun, and is looked at again."""


class Directory:
    """The orgs, members and agents of one installation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- who is calling

    def by_token(self, token: str, *, transport: str = "", address: str | None = None) -> Caller | None:
        """The caller that holds `token`; None for anything else, without saying why. Raises Outside and Frozen."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        found = self._found(
            "a.token_hash = ?", f"org_{match[1]}", token_hash(token), transport=transport, address=address
        )
        if found is None:
            return None
        caller, frozen = found
        if not caller.narrowing.admits_from(address):
            raise Outside(caller)
        return _unfrozen(caller, frozen=frozen)

    def by_agent(self, org: str, agent: str) -> Caller | None:
        """The caller that the agent id stands for, wherever it calls from. Raises Frozen."""
        found = self._found("a.id = ?", org, agent)
        return None if found is None else _unfrozen(found[0], frozen=found[1])

    def again(self, caller: Caller) -> Caller | None:
        """The same caller as of now; None where what it was let in by is no longer good. Raises Frozen.

        That is: its agent, its member, its expiry, the address it calls from and, over HTTP, its token.
        """
        now = self.by_agent(caller.org, caller.agent)
        if now is None or not now.narrowing.admits_from(caller.address):
            return None
        if caller.transport == HTTP and now.token_mark != caller.token_mark:
            return None
        return replace(
            now,
            client=caller.client,
            client_version=caller.client_version,
            transport=caller.transport,
            address=caller.address,
        )

    def _found(
        self, where: str, org: str, value: str, *, transport: str = "", address: str | None = None
    ) -> tuple[Caller, bool] | None:
        """The caller that a row stands for, and whether its org is frozen."""
        rows = self._database.of(org).read(_CALLER + where, (org, value))
        if not rows:
            return None
        org_id, org_name, preset, revision, frozen, agent, agent_name, expires, narrowing, *rest = rows[0]
        mark, used_at, acts_for, member_id, member_name, roles, groups = rest
        if expires is not None and expires <= now_ms():
            return None
        if acts_for is not None and member_id is None:
            return None  # its member was removed; it must not fall back to being standalone
        caller = Caller(
            org=org_id,
            org_name=org_name,
            preset=preset,
            revision=revision,
            agent=agent,
            agent_name=agent_name,
            member=member_id,
            member_name=member_name,
            roles=_names(roles),
            groups=_names(groups),
            narrowing=load(narrowing),
            token_mark=mark[:16],
            transport=transport,
            address=address,
            used_at=used_at,
        )
        return caller, frozen is not None

    # -- orgs

    def orgs(self) -> list[Org]:
        """Every org, by name."""
        found = self._of_each("SELECT id, name, preset, frozen_at, created_at FROM org WHERE id = ?")
        return sorted((Org(*row) for row in found), key=lambda org: org.name)

    def org(self, name: str | None) -> Org:
        """The org called `name`, or the only one there is."""
        orgs = self.orgs()
        if name is None and not orgs:
            raise IdentityProblem("There is no org. `keyleash org create NAME` makes one.")
        if name is None:
            if len(orgs) == 1:
                return orgs[0]
            raise IdentityProblem(f"Which org? Add `--org NAME`; there are {', '.join(o.name for o in orgs)}.")
        for org in orgs:
            if name in (org.name, org.id):
                return org
        raise IdentityProblem(f"There is no org called {name!r}. `keyleash org list` shows them.{self._log_of(name)}")

    def _log_of(self, name: str) -> str:
        """What is left of orgs that had this name, in words."""
        known = ", ".join(f"`--org {org.id}`" for org in self.removed_orgs() if name in (org.name, org.id))
        return f" It was removed; only its log is left, for `keyleash audit` with {known}." if known else ""

    def removed_orgs(self) -> list[RemovedOrg]:
        """Every org that was removed, the last one last."""
        found = self._of_each("SELECT id, name, removed_at, removed_by FROM removed_org WHERE id = ?")
        return sorted((RemovedOrg(*row) for row in found), key=lambda org: (org.removed_at, org.id))

    def _of_each(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of each org, asked for one after another: a server is shown no two orgs at once."""
        return [row for org in self._database.orgs() for row in self._database.of(org).read(sql, (org,))]

    def removed_org(self, name: str) -> RemovedOrg | None:
        """The removed org with this name or id; None where there is none, or where an org has that name now.

        Raises IdentityProblem where several had the name.
        """
        if any(name in (org.name, org.id) for org in self.orgs()):
            return None
        found = [org for org in self.removed_orgs() if name in (org.name, org.id)]
        if len(found) > 1:
            ids = ", ".join(org.id for org in found)
            raise IdentityProblem(f"Several orgs called {name!r} were removed: {ids}. Give `--org` the id.")
        return found[0] if found else None

    # -- members

    def members(self, org: str) -> list[Member]:
        """The people of an org, by name."""
        return self._database.of(org).query(lambda rows: people_of(rows, org))

    def member(self, org: str, name: str) -> Member:
        """One person, by name or id."""
        for member in self.members(org):
            if name in (member.name, member.id):
                return member
        raise IdentityProblem(f"There is no member called {name!r}. `keyleash member list` shows them.")

    def actor(self, org: str, *, as_member: str | None = None) -> Actor:
        """The person at this terminal: the member mapped to the operating-system user, or the one `--as` names."""
        if as_member is not None:
            return Actor(self.member(org, as_member), "operator's word")
        user = system_user()
        for member in self.members(org):
            if member.os_user == user:
                return Actor(member, "os user")
        raise IdentityProblem(
            f"No member of this org is mapped to the system user {user!r}. "
            f"`keyleash member change NAME --os-user {user} --as NAME` maps one; or act for one with `--as NAME`."
        )

    # -- agents

    def agents(self, org: str) -> list[Agent]:
        """The agents of an org, by name."""
        rows = self._database.of(org).read(
            "SELECT a.id, a.org, a.name, a.member, m.name, a.narrowing, a.expires_at, a.created_at, "
            "a.used_at, a.used_over, a.used_from, a.used_client FROM agent a "
            "LEFT JOIN member m ON m.org = a.org AND m.id = a.member WHERE a.org = ? ORDER BY a.name",
            (org,),
        )
        return [
            Agent(
                agent,
                org_id,
                name,
                acts_for,
                member,
                load(narrowing),
                expires,
                created,
                None if used[0] is None else LastUse(*used),
            )
            for agent, org_id, name, acts_for, member, narrowing, expires, created, *used in rows
        ]

    def agent(self, org: str, name: str) -> Agent:
        """One agent, by name or id."""
        for agent in self.agents(org):
            if name in (agent.name, agent.id):
                return agent
        raise IdentityProblem(f"There is no agent called {name!r}. `keyleash agent list` shows them.")


# -- changes; each runs inside the caller's transaction and writes its own entry


def create_org(rows: Rows, *, name: str, preset: str, by: str, org: str | None = None) -> str:
    """Create an org and return its id: a new one, or `org`, which `new_id` gave."""
    _check_name("org", name)
    if rows.execute("SELECT 1 FROM org WHERE name = ?", (name,)).fetchone():
        raise IdentityProblem(f"There is already an org called {name!r}. Choose another name.")
    org = org or new_id("org")
    rows.execute(
        "INSERT INTO org (id, name, preset, revision, frozen_at, created_at) VALUES (?, ?, ?, 1, NULL, ?)",
        (org, name, preset, now_ms()),
    )
    append(rows, org, Event.ORG_CREATED, name=name, preset=preset, by=by)
    return org


def remove_org(rows: Rows, org: Org, *, by: str) -> None:
    """Remove an org with everything that it has and its key; only its log is left, which still verifies.

    Its agents stop at their next call. `erasure.attempt` afterwards sees to it that nothing is left in the files.
    Raises IdentityProblem where somebody else has removed it meanwhile.
    """
    if rows.execute("DELETE FROM org WHERE id = ?", (org.id,)).rowcount != 1:
        raise IdentityProblem(f"{org.name} was removed meanwhile. Nothing was changed.")
    rows.execute(
        "INSERT INTO removed_org (id, name, removed_at, removed_by) VALUES (?, ?, ?, ?)",
        (org.id, org.name, now_ms(), by),
    )
    had = end_org(rows, org.id, by=by)
    request(rows, org.id, org.id, "org", org.name)
    append(rows, org.id, Event.ORG_REMOVED, name=org.name, had=had, by=by)


def create_member(
    rows: Rows, org: str, *, name: str, roles: Sequence[str], os_user: str | None, by: str, groups: Sequence[str] = ()
) -> str:
    """Add a person to an org and return their id."""
    _check_name("member", name)
    _check_roles(roles)
    for group in groups:
        _check_name("group", group)
    if rows.execute("SELECT 1 FROM member WHERE org = ? AND name = ?", (org, name)).fetchone():
        raise IdentityProblem(f"There is already a member called {name!r}.")
    _check_os_user(rows, org, os_user)
    member = f"mem_{_random(16)}"
    rows.execute(
        "INSERT INTO member (org, id, name, os_user, roles, groups, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (org, member, name, os_user, json.dumps(list(roles)), json.dumps(list(groups)), now_ms()),
    )
    append(
        rows,
        org,
        Event.MEMBER_CREATED,
        member=name,
        roles=list(roles),
        groups=list(groups) or None,
        os_user=os_user,
        by=by,
    )
    return member


@dataclass(frozen=True)
class Change:
    """What is to become of a member: roles and groups to add and to take, and the system user to be known by."""

    roles: tuple[str, ...] = ()
    taken_roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    taken_groups: tuple[str, ...] = ()
    os_user: str | None = None
    no_os_user: bool = False


def change_member(rows: Rows, org: str, member: str, change: Change, *, by: str, by_owner: bool) -> Member:
    """Change a person's roles, groups or system user, with effect on their agents' next call and their next decision.

    Only an owner (`by_owner`) makes an owner, or changes anything of one. Raises IdentityProblem.
    """
    touch(rows, org)  # first: it makes changes of the same org wait for one another
    before = member_now(rows, org, member)
    if before is None:
        raise IdentityProblem("That member was removed meanwhile. Nothing was changed.")
    if not by_owner and "owner" in (*before.roles, *change.roles):
        raise IdentityProblem("Only an owner may make an owner, or change one. Ask someone who has that role.")
    after = _changed(before, change)
    if after == before:
        raise IdentityProblem(f"That is how {before.name} is already. Nothing was changed.")
    if "owner" in before.roles and "owner" not in after.roles:
        _require_another_owner(rows, org, before)
    if after.os_user != before.os_user:
        _check_os_user(rows, org, after.os_user)
    rows.execute(
        "UPDATE member SET roles = ?, groups = ?, os_user = ? WHERE org = ? AND id = ?",
        (json.dumps(list(after.roles)), json.dumps(list(after.groups)), after.os_user, org, member),
    )
    append(rows, org, Event.MEMBER_CHANGED, member=before.name, before=_stood(before), after=_stood(after), by=by)
    return after


def _changed(member: Member, change: Change) -> Member:
    """The member as the change would leave it. Raises IdentityProblem where that is none."""
    _check_roles((*change.roles, *change.taken_roles))
    for group in change.groups:
        _check_name("group", group)
    roles = _altered(member.roles, change.roles, change.taken_roles)
    if not roles:
        raise IdentityProblem(
            f"{member.name} would have no role left. Give another one with `--role`, or `keyleash member remove`."
        )
    return replace(
        member,
        roles=roles,
        groups=_altered(member.groups, change.groups, change.taken_groups),
        os_user=None if change.no_os_user else change.os_user or member.os_user,
    )


def _altered(before: Sequence[str], more: Sequence[str], less: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in dict.fromkeys((*before, *more)) if each not in less)


def _stood(member: Member) -> dict[str, object]:
    return {"roles": list(member.roles), "groups": list(member.groups), "os_user": member.os_user}


def people_of(rows: Rows, org: str) -> list[Member]:
    """The people of an org, by name, as this transaction sees them."""
    found = rows.execute(f"SELECT {_MEMBER} FROM member WHERE org = ? ORDER BY name", (org,)).fetchall()
    return [_member(row) for row in found]


def member_now(rows: Rows, org: str, member: str) -> Member | None:
    """A person of this org as they are in this transaction; another org's id is not found."""
    row = rows.execute(f"SELECT {_MEMBER} FROM member WHERE org = ? AND id = ?", (org, member)).fetchone()
    return None if row is None else _member(row)


_MEMBER = "id, org, name, os_user, roles, groups"


def _member(row: Sequence[Any]) -> Member:
    member, org, name, os_user, roles, groups = row
    return Member(member, org, name, os_user, _names(roles), _names(groups))


def remove_member(rows: Rows, org: str, member: Member, *, by: str) -> None:
    """Take a person out of an org. Agents that act for them stop at their next call."""
    touch(rows, org)
    now = member_now(rows, org, member.id)
    if now is None:
        raise IdentityProblem(f"{member.name} was removed meanwhile. Nothing was changed.")
    if "owner" in now.roles:
        _require_another_owner(rows, org, now)
    rows.execute("DELETE FROM member WHERE org = ? AND id = ?", (org, member.id))
    append(rows, org, Event.MEMBER_REMOVED, member=member.name, by=by)


def _require_another_owner(rows: Rows, org: str, member: Member) -> None:
    others = rows.execute("SELECT roles FROM member WHERE org = ? AND id <> ?", (org, member.id)).fetchall()
    if not any("owner" in json.loads(roles) for (roles,) in others):
        raise IdentityProblem(f"{member.name} is the only owner of this org. Make another owner first.")


def _check_roles(roles: Sequence[str]) -> None:
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise IdentityProblem(f"There is no role {unknown[0]!r}. Roles are {', '.join(ROLES)}.")


def _check_os_user(rows: Rows, org: str, os_user: str | None) -> None:
    if os_user is None:
        return
    if not os_user.strip() or not os_user.isprintable():
        raise IdentityProblem(f"{os_user!r} is no system user's name.")
    taken = rows.execute("SELECT name FROM member WHERE org = ? AND os_user = ?", (org, os_user)).fetchone()
    if taken:
        raise IdentityProblem(f"The system user {os_user!r} is already the member {taken[0]!r}.")


def create_agent(
    rows: Rows,
    org: str,
    *,
    name: str,
    member: Member | None,
    by: str,
    narrowing: Narrowing | None = None,
    expires_at: int | None = None,
) -> str:
    """Create an agent and return its token, which is not kept: only its hash is."""
    _check_name("agent", name)
    if rows.execute("SELECT 1 FROM agent WHERE org = ? AND name = ?", (org, name)).fetchone():
        raise IdentityProblem(f"There is already an agent called {name!r}. Remove it first, or choose another name.")
    token = _new_token(org)
    narrowing = narrowing or Narrowing()
    rows.execute(
        "INSERT INTO agent (org, id, name, member, token_hash, narrowing, expires_at, created_by, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            org,
            f"agt_{_random(16)}",
            name,
            member.id if member else None,
            token_hash(token),
            dump(narrowing),
            expires_at,
            by,
            now_ms(),
        ),
    )
    append(
        rows,
        org,
        Event.AGENT_CREATED,
        agent=name,
        acts_for=member.name if member else None,
        tools=list(narrowing.tools),
        effects=list(narrowing.effects),
        connections=list(narrowing.connections) or None,
        addresses=list(narrowing.addresses) or None,
        expires_at=None if expires_at is None else iso(expires_at),
        by=by,
    )
    return token


def rotate_agent(rows: Rows, org: str, agent: Agent, *, by: str, expires_at: int | None = None) -> str:
    """Give an agent a new token and return it; the old one stops at once, also for calls that are held.

    With `expires_at` the new one ends then; otherwise its end stays. Raises IdentityProblem where that is over.
    """
    ends = agent.expires_at if expires_at is None else expires_at
    if ends is not None and ends <= now_ms():
        raise IdentityProblem(
            f"{agent.name} has expired, and a new token would be no good. Say how long it lives: `--expires 30d`."
        )
    token = _new_token(org)
    _require_there(
        agent,
        rows.execute(
            "UPDATE agent SET token_hash = ?, expires_at = ? WHERE org = ? AND id = ?",
            (token_hash(token), ends, org, agent.id),
        ),
    )
    touch(rows, org)
    changed = None if ends == agent.expires_at else iso(ends) if ends else None
    append(rows, org, Event.AGENT_ROTATED, agent=agent.name, expires_at=changed, by=by)
    return token


def narrow_agent(rows: Rows, org: str, agent: Agent, *, narrowing: Narrowing, expires_at: int | None, by: str) -> None:
    """Change what an agent may reach at most, from where and until when, with effect on its next call."""
    _require_there(
        agent,
        rows.execute(
            "UPDATE agent SET narrowing = ?, expires_at = ? WHERE org = ? AND id = ?",
            (dump(narrowing), expires_at, org, agent.id),
        ),
    )
    touch(rows, org)
    append(
        rows,
        org,
        Event.AGENT_CHANGED,
        agent=agent.name,
        before=_leash(agent.narrowing, agent.expires_at),
        after=_leash(narrowing, expires_at),
        by=by,
    )


def _leash(narrowing: Narrowing, expires_at: int | None) -> dict[str, object]:
    return {**narrowing.shown(), "expires_at": None if expires_at is None else iso(expires_at)}


def _require_there(agent: Agent, changed: Any) -> None:
    if changed.rowcount != 1:
        raise IdentityProblem(f"{agent.name} was removed meanwhile. Nothing was changed.")


def require_unmoved(rows: Rows, caller: Caller) -> None:
    """In the transaction that acts on a verdict: nothing that it rests on has changed since. Raises Moved."""
    row = rows.execute(
        "SELECT 1 FROM agent a JOIN org o ON o.id = a.org "
        "WHERE a.org = ? AND a.id = ? AND o.revision = ? AND o.frozen_at IS NULL "
        "AND (a.expires_at IS NULL OR a.expires_at > ?)",
        (caller.org, caller.agent, caller.revision, now_ms()),
    ).fetchone()
    if row is None:
        raise Moved


USE_MS = 60_000
"""A use is written down at most this often per agent: the last one shown is right to within a minute."""


def used(rows: Rows, caller: Caller) -> None:
    """Note an agent's use, in the transaction that records what it did; after that entry, whose order others wait for.

    Nothing is written where a use within the last minute was.
    """
    now = now_ms()
    if caller.used_at is not None and now - USE_MS < caller.used_at <= now:
        return
    client = f"{caller.client} {caller.client_version}".strip()
    rows.execute(
        "UPDATE agent SET used_at = ?, used_over = ?, used_from = ?, used_client = ? "
        "WHERE org = ? AND id = ? AND (used_at IS NULL OR used_at <= ? OR used_at > ?)",
        (
            now,
            caller.transport or None,
            caller.address,
            client or None,
            caller.org,
            caller.agent,
            now - USE_MS,
            now,
        ),
    )


def turned_away(rows: Rows, caller: Caller) -> None:
    """On record: a valid token was used from outside the addresses that its agent is narrowed to, and refused."""
    append(
        rows,
        caller.org,
        Event.AGENT_TURNED_AWAY,
        agent=caller.agent_name,
        agent_id=caller.agent,
        member=caller.member_name,
        transport=caller.transport or None,
        address=caller.address,
        addresses=list(caller.narrowing.addresses),
        reason="the token was used from an address that the agent is narrowed away from",
        outcome="refused",
    )
    used(rows, caller)


def remove_agent(rows: Rows, org: str, agent: Agent, *, by: str) -> None:
    """Remove an agent: its token stops at once, its pending approvals are cancelled and its grants end."""
    _require_there(agent, rows.execute("DELETE FROM agent WHERE org = ? AND id = ?", (org, agent.id)))
    end_with(rows, org, "agent", agent.id, by=by)
    append(rows, org, Event.AGENT_REMOVED, agent=agent.name, by=by)


def set_frozen(rows: Rows, org: str, *, frozen: bool, by: str) -> None:
    """Stop all agents of an org at their next call, or let them go on."""
    rows.execute("UPDATE org SET frozen_at = ? WHERE id = ?", (now_ms() if frozen else None, org))
    touch(rows, org)
    append(rows, org, Event.ORG_FROZEN if frozen else Event.ORG_UNFROZEN, by=by)


def touch(rows: Rows, org: str) -> None:
    """Say that the org's connections, rules or preset have changed: cached views are made anew."""
    rows.execute("UPDATE org SET revision = revision + 1 WHERE id = ?", (org,))


def system_user() -> str:
    """The operating system's name for whoever runs this process; no environment variable can change it."""
    try:
        import pwd
    except ImportError:  # Windows
        return getpass.getuser()
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container whose user has no name
        return f"uid-{os.geteuid()}"


def new_id(prefix: str) -> str:
    """A random identifier, such as `apr_4k2m…`; 80 bits."""
    return f"{prefix}_{_random(16)}"


def token_hash(token: str) -> str:
    """SHA-256 of a token. Tokens carry 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def _new_token(org: str) -> str:
    return f"kla_{org.removeprefix('org_')}_{secrets.token_urlsafe(32)}"


_LETTERS = b"abcdefghijkmnpqrstuvwxyz23456789" * 8


def _random(length: int) -> str:
    return secrets.token_bytes(length).translate(_LETTERS).decode("ascii")


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise IdentityProblem(
            f"{name!r} cannot name {'an' if what[0] in 'aeiou' else 'a'} {what}: "
            "use up to 63 of a-z, 0-9, dot, dash and underscore, beginning with a letter or digit."
        )


def _unfrozen(caller: Caller, *, frozen: bool) -> Caller:
    if frozen:
        raise Frozen(f"All agents of {caller.org_name} are stopped until a person lifts the freeze.")
    return caller


@lru_cache(maxsize=1024)
def _names(text: str | None) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text else ()
