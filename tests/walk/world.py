"""Many orgs in one installation, each with everything that an org can have, and a canary in every row of it."""

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.app import Installation
from server.connections import connections_of
from server.database import Database
from server.identity import create_agent, create_member, create_org, new_id, system_user
from server.rules import rules_of
from server.webhooks import hooks_of
from tests.installed import Place, make, operators
from tests.upstream import Answer, Received, Upstream
from tests.walk.canary import CANARY, ID, Mark

Making = Callable[[Path], Place]


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


@dataclass
class World:
    """The installation, its orgs, and the one upstream that all their accounts are at."""

    installation: Installation
    operators: Database
    upstream: Upstream
    chance: random.Random
    orgs: list[Org] = field(default_factory=list)
    removed: list[Org] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    """id → the org that it belongs to, as far as it was looked up."""

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
        table = _TABLES.get(identifier[:3])
        if table is None:
            return None
        rows = self.operators.read(f"SELECT org FROM {table} WHERE id = ?", (identifier,))
        return str(rows[0][0]) if rows else None

    def other(self, org: Org) -> Org:
        return self.chance.choice([each for each in self.orgs if each is not org])

    def ids(self, org: Org, kind: str) -> list[str]:
        """The ids of this kind that the org has now."""
        rows = self.installation.database.of(org.id).read(
            f"SELECT id FROM {_TABLES[kind]} WHERE org = ? ORDER BY id LIMIT 50", (org.id,)
        )
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
    "apr": "approval",
    "grt": "call_grant",
    "rul": "rule",
    "con": "connection",
    "agt": "agent",
    "mem": "member",
}


def build(home: Path, upstream: Upstream, *, orgs: int, seed: int, making: Making = make) -> World:
    """A world of so many orgs, the same for the same seed but for its ids."""
    chance = random.Random(seed)
    first = making(home)
    world = World(first.installation, operators(first.installation), upstream, chance)
    upstream.answer = _answer
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


def _answer(request: Received) -> Answer:
    """Every account answers with the canary of the key that was used."""
    found = CANARY.search(request.headers.get("authorization", ""))
    mine = found[0] if found else "no key at all"
    charge = {"id": f"ch_{mine}", "amount": 5, "description": f"of {mine}", "metadata": {"account": mine}}
    return Answer({"ok": True, "ts": mine, "channel": mine, "data": [charge], "has_more": False, **charge})


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
    for connector in ("stripe", "slack"):
        org.place.connect(
            world.upstream.url,
            connector=connector,
            name=f"{connector}_{mark.canary()}",
            secret=f"rk_test_{mark.canary()}",
        )
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
    if "rk_test_" in text:
        raise Leaked(f"{org.name} got a secret in {text[:2000]!r}")


def wire(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
