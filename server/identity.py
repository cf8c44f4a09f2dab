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
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from server.audit import Event, append
from server.clock import now_ms
from server.database import Database, Rows
from server.ending import end_org, end_with
from server.erasure import request
from server.policy import ROLES

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_TOKEN = re.compile(r"kla_([a-z0-9]{16})_([A-Za-z0-9_-]{43})")


class IdentityProblem(Exception):
    """Something about orgs, members or agents cannot be done; the message says how to mend it."""


@dataclass(frozen=True)
class Narrowing:
    """What an agent may reach at most: globs over `connection.tool`, and effects. Empty means no narrowing."""

    tools: tuple[str, ...] = ()
    effects: tuple[str, ...] = ()

    def admits(self, connection: str, tool: str, effect: str) -> bool:
        """Whether the leash is long enough for this tool at all; rules come after."""
        if self.effects and effect not in self.effects:
            return False
        return not self.tools or any(fnmatchcase(f"{connection}.{tool}", glob) for glob in self.tools)


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
       a.token_hash, a.member, m.id, m.name, m.roles, m.groups
FROM agent a JOIN org o ON o.id = a.org LEFT JOIN member m ON m.org = a.org AND m.id = a.member
WHERE a.org = ? AND """


class Frozen(Exception):
    """The org's agents are stopped. The message is for the model."""


class Directory:
    """The orgs, members and agents of one installation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- who is calling

    def by_token(self, token: str, *, transport: str = "") -> Caller | None:
        """The caller that holds `token`; None for anything else, without saying why. Raises Frozen."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        return self._caller("a.token_hash = ?", f"org_{match[1]}", token_hash(token), transport)

    def by_agent(self, org: str, agent: str) -> Caller | None:
        """The caller that the agent id stands for, asked again. Raises Frozen."""
        return self._caller("a.id = ?", org, agent)

    def _caller(self, where: str, org: str, value: str, transport: str = "") -> Caller | None:
        rows = self._database.of(org).read(_CALLER + where, (org, value))
        if not rows:
            return None
        (org_id, org_name, preset, revision, frozen, agent, agent_name, expires, narrowing, mark, acts_for, *member) = (
            rows[0]
        )
        member_id, member_name, roles, groups = member
        if expires is not None and expires <= now_ms():
            return None
        if acts_for is not None and member_id is None:
            return None  # its member was removed; it must not fall back to being standalone
        if frozen is not None:
            raise Frozen(f"All agents of {org_name} are stopped until a person lifts the freeze.")
        return Caller(
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
            narrowing=_narrowing(narrowing),
            token_mark=mark[:16],
            transport=transport,
        )

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
        rows = self._database.of(org).read(
            "SELECT id, org, name, os_user, roles, groups FROM member WHERE org = ? ORDER BY name", (org,)
        )
        return [
            Member(member, org_id, name, os_user, tuple(json.loads(roles)), tuple(json.loads(groups)))
            for member, org_id, name, os_user, roles, groups in rows
        ]

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
            f"Run `keyleash member create NAME --os-user {user}`, or act for one with `--as NAME`."
        )

    # -- agents

    def agents(self, org: str) -> list[Agent]:
        """The agents of an org, by name."""
        rows = self._database.of(org).read(
            "SELECT a.id, a.org, a.name, a.member, m.name, a.narrowing, a.expires_at, a.created_at FROM agent a "
            "LEFT JOIN member m ON m.org = a.org AND m.id = a.member WHERE a.org = ? ORDER BY a.name",
            (org,),
        )
        return [
            Agent(agent, org_id, name, acts_for, member, _narrowing(narrowing), expires, created)
            for agent, org_id, name, acts_for, member, narrowing, expires, created in rows
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
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise IdentityProblem(f"There is no role {unknown[0]!r}. Roles are {', '.join(ROLES)}.")
    if rows.execute("SELECT 1 FROM member WHERE org = ? AND name = ?", (org, name)).fetchone():
        raise IdentityProblem(f"There is already a member called {name!r}.")
    taken = rows.execute("SELECT name FROM member WHERE org = ? AND os_user = ?", (org, os_user)).fetchone()
    if taken:
        raise IdentityProblem(f"The system user {os_user!r} is already the member {taken[0]!r}.")
    member = f"mem_{_random(16)}"
    rows.execute(
        "INSERT INTO member (org, id, name, os_user, roles, groups, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (org, member, name, os_user, json.dumps(list(roles)), json.dumps(list(groups)), now_ms()),
    )
    append(rows, org, Event.MEMBER_CREATED, member=name, roles=list(roles), os_user=os_user, by=by)
    return member


def remove_member(rows: Rows, org: str, member: Member, *, by: str) -> None:
    """Take a person out of an org. Agents that act for them stop at their next call."""
    if "owner" in member.roles:
        owners = rows.execute("SELECT COUNT(*) FROM member WHERE org = ? AND roles LIKE '%owner%'", (org,)).fetchone()
        if owners[0] < 2:
            raise IdentityProblem(f"{member.name} is the only owner of this org. Create another owner first.")
    rows.execute("DELETE FROM member WHERE org = ? AND id = ?", (org, member.id))
    append(rows, org, Event.MEMBER_REMOVED, member=member.name, by=by)


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
            json.dumps({"tools": narrowing.tools, "effects": narrowing.effects}),
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
        by=by,
    )
    return token


def rotate_agent(rows: Rows, org: str, agent: Agent, *, by: str) -> str:
    """Give an agent a new token and return it; the old one stops at once."""
    token = _new_token(org)
    rows.execute("UPDATE agent SET token_hash = ? WHERE org = ? AND id = ?", (token_hash(token), org, agent.id))
    append(rows, org, Event.AGENT_ROTATED, agent=agent.name, by=by)
    return token


def remove_agent(rows: Rows, org: str, agent: Agent, *, by: str) -> None:
    """Remove an agent: its token stops at once, its pending approvals are cancelled and its grants end."""
    rows.execute("DELETE FROM agent WHERE org = ? AND id = ?", (org, agent.id))
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


@lru_cache(maxsize=1024)
def _names(text: str | None) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text else ()


@lru_cache(maxsize=1024)
def _narrowing(text: str) -> Narrowing:
    stored = json.loads(text)
    return Narrowing(tuple(stored["tools"]), tuple(stored["effects"]))
