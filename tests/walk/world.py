"""Many orgs in one installation, each with everything that an org can have, and a canary in every row of it."""

import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.app import Installation
from server.connections import connections_of
from server.database import Database
from server.identity import create_agent, create_member, create_org, new_id, system_user
from server.rules import rules_of
from server.webhooks import hooks_of
from tests.consenting import signed_in, with_ledger
from tests.installed import Place, make, operators
from tests.offering import offered_by_operator
from tests.provider import CLIENT_SECRET, Provider
from tests.upstream import Answer, Received, Upstream
from tests.walk.canary import CANARY, ID, Mark

Making = Callable[[Path], Place]
OPERATORS = "sk-proj-rk_test_of_the_operator_0123456789"
"""The secret of the account that the operator offers to every org."""
MOST = 12
"""How many calls a day each org may make with it."""
SECRET = re.compile(r"rk_test_|\b[ar]t_cny|" + CLIENT_SECRET)


@dataclass
class Org:
    """One org as the walk knows it: what an outsider could have picked up of it stands in `names` and `ids`."""

    id: str
    name: str
    mark: Mark
    place: Place
    tokens: dict[str, str] = field(default_factory=dict)
    states: list[tuple[str, str, dict[str, Any], str]] = field(default_factory=list)
    """Pointers that clients carry: (agent, tool, arguments, the sealed state)."""
    cursors: list[str] = field(default_factory=list)
    frozen_for: int = 0
    offered: str = ""
    """The name under which it may use the operator's account."""


@dataclass
class World:
    """The installation, its orgs, the one upstream that all their accounts are at, and the one that is signed in to."""

    installation: Installation
    operators: Database
    upstream: Upstream
    provider: Provider
    chance: random.Random
    orgs: list[Org] = field(default_factory=list)
    removed: list[Org] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    """id → the org that it belongs to, as far as it was looked up."""
    deaf: set[str] = field(default_factory=set)
    """Where notices are not wanted any more: the end of an address."""

    def of(self, identifier: str) -> str | None:
        """The org that an id belongs to; None for one that never existed."""
        if identifier.startswith("org_"):
            return identifier if any(org.id == identifier for org in (*self.orgs, *self.removed)) else None
        found = self.owners.get(identifier)
        if found is None:
            found = self._look_up(identifier)
            if found is not None:
                self.owners[identifier] = found
        return found

    def gone(self, org: Org) -> None:
        """Another org stands in the place of one that was removed."""
        self.removed.append(org)
        self.orgs[self.orgs.index(org)] = found_org(self)

    def _look_up(self, identifier: str) -> str | None:
        for table in _TABLES.get(identifier[:3], ()):
            for (org,) in self.operators.read(f"SELECT org FROM {table} WHERE id = ?", (identifier,)):
                return str(org)
        return None

    def other(self, org: Org) -> Org:
        return self.chance.choice([each for each in self.orgs if each is not org])

    def ids(self, org: Org, kind: str) -> list[str]:
        """The ids of this kind that the org has now."""
        database = self.installation.database.of(org.id)
        rows = [
            row
            for table in _TABLES[kind]
            for row in database.read(f"SELECT id FROM {table} WHERE org = ? ORDER BY id LIMIT 50", (org.id,))
        ]
        for (identifier,) in rows:
            self.owners[identifier] = org.id
        return [str(identifier) for (identifier,) in rows]

    def agents(self, org: Org) -> list[str]:
        return [agent.name for agent in self.installation.directory.agents(org.id)]

    def members(self, org: Org) -> list[str]:
        return [member.name for member in self.installation.directory.members(org.id)]

    def connections(self, org: Org) -> list[str]:
        return [connection.name for connection in connections_of(self.installation.database, org.id)]

    def channels(self, org: Org) -> list[str]:
        return [hook.name for hook in hooks_of(self.installation.database, org.id)]

    def rules(self, org: Org) -> list[str]:
        return [rule.id for rule in rules_of(self.installation.database, org.id)]


_TABLES = {
    "apr": ("approval",),
    "grt": ("call_grant", "work"),
    "rul": ("rule",),
    "con": ("connection", "managed_offer", "oauth_revocation"),
    "agt": ("agent",),
    "mem": ("member",),
    "lst": ("lost_call",),
    "chn": ("channel",),
    "ntf": ("notice",),
}
"""How the ids of a kind begin → the tables that they stand in."""


def build(home: Path, upstream: Upstream, provider: Provider, *, orgs: int, seed: int, making: Making = make) -> World:
    """A world of so many orgs, the same for the same seed but for its ids."""
    installation = with_ledger(making(home)).installation
    # With an address of its own, a server leaves no notice to another that may have one.
    settings = replace(installation.settings, public_url="https://keyleash.example.com")
    installation = replace(installation, settings=settings)
    world = World(installation, operators(installation), upstream, provider, random.Random(seed))
    upstream.answer = lambda request: _answer(world, request)
    for _ in range(orgs):
        world.orgs.append(found_org(world))
    return world


def found_org(world: World) -> Org:
    """One more org, with letters that no other has or had."""
    used = {org.mark.letters for org in (*world.orgs, *world.removed)}
    while True:
        first, rest = string.ascii_lowercase[:25], world.chance.choices(string.ascii_lowercase, k=5)
        letters = world.chance.choice(first) + "".join(rest)
        if letters not in used:
            return _org(world, Mark(letters))


def _answer(world: World, request: Received) -> Answer:
    """Every account answers with the canary of the key that was used."""
    if any(request.target.endswith(end) for end in world.deaf):
        return Answer({}, 410)
    found = CANARY.search(request.headers.get("authorization", ""))
    mine = found[0] if found else "no key at all"
    charge = {"id": f"ch_{mine}", "amount": 5, "description": f"of {mine}", "metadata": {"account": mine}}
    took = {"usage": {"input_tokens": 3, "output_tokens": 1}}
    return Answer({"ok": True, "ts": mine, "channel": mine, "data": [charge], "has_more": False, **took, **charge})


def _org(world: World, mark: Mark) -> Org:
    database, vault = world.operators, world.installation.vault
    identifier, name = new_id("org"), f"o-{mark.canary()}"
    database.write_now(
        lambda rows: (
            create_org(rows, name=name, preset="default", by="walk", org=identifier),
            vault.create_org_key(rows, identifier),
            create_member(
                rows,
                identifier,
                name=f"m-{mark.canary()}",
                roles=("owner",),
                os_user=system_user(),
                by="walk",
                groups=(f"g-{mark.canary()}",),
            ),
        )
    )
    owner = world.installation.directory.members(identifier)[0]
    org = Org(identifier, name, mark, Place(world.installation, identifier, owner))
    org.place.database = database
    for connector in ("stripe", "slack"):
        org.place.connect(
            world.upstream.url,
            connector=connector,
            name=f"{connector}_{mark.canary()}",
            secret=f"rk_test_{mark.canary()}",
        )
    org.offered = f"openai_{mark.canary()}"
    offered_by_operator(org.place, world.upstream.url, name=org.offered, secret=OPERATORS, calls_per_day=MOST)
    sign_in(world, org)
    for _ in range(2):
        add_agent(org)
    org.place.rule(
        who=f"group:g-{mark.canary()}",
        tools=["*.create_refund"],
        when=[{"argument": "charge", "op": "prefix", "value": f"ch_{mark.canary()}"}],
        then="deny",
    )
    return org


def add_agent(org: Org) -> str:
    """One more agent, for the owner."""
    name = f"a-{org.mark.canary()}"
    org.tokens[name] = org.place.database.write_now(
        lambda rows: create_agent(rows, org.id, name=name, member=org.place.owner, by=org.place.owner.name)
    )
    return name


def sign_in(world: World, org: Org) -> str:
    """One more account, by OAuth; its tokens and what it answers carry the org's canary."""
    world.provider.of, name = org.mark.canary(), f"ledger_{org.mark.canary()}"
    signed_in(org.place, world.provider, name=name)
    return name


class Leaked(AssertionError):
    """Something of one org was seen by another; the message says what, where, and after which operation."""


def judge(world: World, org: Org, text: str) -> None:
    """Raise Leaked where a text that `org` got holds anything of another org."""
    for stranger in org.mark.strangers(text):
        raise Leaked(f"{org.name} got {stranger!r}, of another org, in {text[:2000]!r}")
    for identifier in set(ID.findall(text)):
        owner = world.of(identifier)
        if owner is not None and owner != org.id and identifier not in org.mark.said:
            raise Leaked(f"{org.name} got {identifier}, of {owner}, in {text[:2000]!r}")
    if SECRET.search(text):
        raise Leaked(f"{org.name} got a secret in {text[:2000]!r}")


def wire(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
