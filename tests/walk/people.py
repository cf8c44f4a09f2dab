"""What people do in the walk: at the command line, and in the rooms behind it, with ids of their own and of others."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from server.approval import ApprovalProblem, Decision
from server.audit import FORMATS, export_lines, select
from server.connections import ConnectionProblem, connection_named, connections_of
from server.identity import (
    Actor,
    Change,
    IdentityProblem,
    Narrowing,
    change_member,
    narrow_agent,
    remove_agent,
    rotate_agent,
    set_frozen,
)
from server.rules import RuleProblem, remove, rules_of, versions_of
from tests.commandline import CommandLine
from tests.upstream import Answer
from tests.walk.agents import same
from tests.walk.canary import never
from tests.walk.world import OPERATORS, Org, World, add_agent, sign_in

PROBLEMS = (ApprovalProblem, ConnectionProblem, IdentityProblem, RuleProblem)


@dataclass
class People:
    """The one system user, who is the owner of every org, at this command line."""

    world: World
    line: CommandLine

    def run(self, org: Org, *words: str, stdin: bytes = b"") -> str:
        whose = () if words[:2] == ("org", "show") else ("--org", org.name)
        ran = self.line(*words, *whose, stdin=stdin)
        assert "something went wrong" not in ran.err, (words, ran)
        return f"{ran.code}\n{ran.out}\n{ran.err}"

    def add_channel(self, org: Org, url: str) -> None:
        """A webhook that is told of every held call of the org."""
        words = ("channel", "add", "webhook", f"h_{org.mark.canary()}", "--url", url, "--allow-private", "127.0.0.1/32")
        said = self.run(org, *words, "--ruling", "confirm", "--ruling", "approve")
        assert said.startswith("0"), said

    def write(self, name: str, text: str) -> str:
        """A file of the person's; returns its path."""
        path = self.line.person / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def pick(self, things: Sequence[Any]) -> Any:
        return self.world.chance.choice(things) if things else None


Act = Callable[[People, Org], list[str]]
"""One operation; returns everything that the org heard."""


# -- in the rooms


def looks(people: People, org: Org) -> list[str]:
    installation = people.world.installation
    directory = installation.directory
    match people.world.chance.randrange(5):
        case 0:
            return [str(directory.members(org.id)), str(directory.agents(org.id))]
        case 1:
            return [str(connections_of(installation.database, org.id)), str(rules_of(installation.database, org.id))]
        case 2:
            found = installation.approvals.list(org.id, limit=10)
            shown = [
                installation.approvals.prompt(record) + str(installation.approvals.details(record)) for record in found
            ]
            return [str(found), *shown]
        case 3:
            return [str(installation.approvals.grants(org.id))]
        case _:
            return [
                str(
                    [
                        entry.text
                        for entry in select(installation.database.of(org.id), org.id, newest_first=True, limit=30)
                    ]
                )
            ]


def decides(people: People, org: Org) -> list[str]:
    found = people.world.installation.approvals.list(org.id, limit=40)
    record = people.pick([each for each in found if each.state == "pending"] or found)
    if record is None:
        return []
    decision = people.pick([Decision.APPROVE, Decision.APPROVE, Decision.APPROVE_HOUR, Decision.DENY])
    actor = Actor(org.place.owner, "os user")
    approvals, database = people.world.installation.approvals, people.world.installation.database
    return [_said(lambda: database.of(org.id).write_now(lambda rows: approvals.decide(rows, record, decision, actor)))]


def decides_anothers(people: People, org: Org) -> list[str]:
    """Another org's record is not found; and were it handed over all the same, nobody of this org can decide it."""
    other = people.world.other(org)
    theirs = people.pick(people.world.ids(other, "apr"))
    if theirs is None:
        return []
    approvals, database = people.world.installation.approvals, people.world.installation.database
    assert approvals.find(org.id, theirs) is None
    record = approvals.find(other.id, theirs)
    assert record is not None
    before = record.state
    actor = Actor(org.place.owner, "os user")
    rows_of = database.of(org.id).write_now
    said = _said(lambda: rows_of(lambda rows: approvals.decide(rows, record, Decision.APPROVE, actor)))
    after = approvals.find(other.id, theirs)
    assert after is not None
    assert after.state == before, f"{org.name} decided {theirs} of {other.name}: {said}"
    return []


def exports(people: People, org: Org) -> list[str]:
    form = people.pick(list(FORMATS))
    database = people.world.installation.database
    return [
        "".join(
            export_lines(database.of(org.id), org.id, format=form, event=people.pick(["call.refused", "agent.changed"]))
        )
    ]


def reaches_for_anothers(people: People, org: Org) -> list[str]:
    """Names and ids of another org, everywhere that the rooms take one."""
    world, database = people.world, people.world.installation.database
    other, directory = world.other(org), world.installation.directory
    rows_of = database.of(org.id).write_now
    ways: list[tuple[str | None, Callable[[str], Any]]] = [
        (people.pick(world.agents(other)), lambda name: directory.agent(org.id, name)),
        (people.pick(world.ids(other, "agt")), lambda name: directory.agent(org.id, name)),
        (people.pick(world.ids(other, "agt")), lambda name: directory.by_agent(org.id, name)),
        (people.pick(world.members(other)), lambda name: directory.member(org.id, name)),
        (people.pick(world.ids(other, "mem")), lambda name: directory.member(org.id, name)),
        (
            people.pick(world.ids(other, "mem")),
            lambda name: rows_of(
                lambda rows: change_member(rows, org.id, name, Change(groups=("x",)), by="walk", by_owner=True)
            ),
        ),
        (people.pick(world.connections(other)), lambda name: connection_named(database, org.id, name)),
        (
            people.pick(world.ids(other, "rul")),
            lambda name: rows_of(lambda rows: remove(rows, org.id, name, by="walk")),
        ),
        (
            people.pick(world.ids(other, "grt")),
            lambda name: rows_of(lambda rows: world.installation.approvals.revoke(rows, org.id, name, by="walk")),
        ),
        (people.pick(world.ids(other, "apr")), lambda name: world.installation.approvals.find(org.id, name)),
        (
            people.pick(world.ids(other, people.pick(["apr", "lst"]))),
            lambda name: rows_of(
                lambda rows: world.installation.approvals.unknown.resolve(
                    rows, org.id, name, happened=False, actor=Actor(org.place.owner, "os user")
                )
            ),
        ),
    ]
    given, way = people.pick(ways)
    if given is None:
        return []
    fiction = never(given, world.chance)
    heard = [_said(lambda: way(given)), _said(lambda: way(fiction))]
    same(org, heard, (given, fiction))
    return [heard[0].replace(given, "…"), heard[1]]


def changes_agents(people: People, org: Org) -> list[str]:
    """Narrowed, widened, given a new token, removed, and made anew."""
    database, directory = people.world.installation.database, people.world.installation.directory
    agent = people.pick(directory.agents(org.id))
    what = people.world.chance.randrange(4)
    rows_of = database.of(org.id).write_now
    if agent is None or what == 0 or len(org.tokens) < 2:
        if len(org.tokens) < 6:
            add_agent(org)
    elif what == 1:
        org.tokens[agent.name] = rows_of(lambda rows: rotate_agent(rows, org.id, agent, by="walk"))
    elif what == 2:
        narrowing = people.pick(
            [Narrowing(), Narrowing(), Narrowing(effects=("read",)), Narrowing(tools=("stripe*.*",))]
        )
        rows_of(lambda rows: narrow_agent(rows, org.id, agent, narrowing=narrowing, expires_at=None, by="walk"))
    else:
        rows_of(lambda rows: remove_agent(rows, org.id, agent, by="walk"))
        del org.tokens[agent.name]
    return [str(directory.agents(org.id))]


def changes_rules(people: People, org: Org) -> list[str]:
    rules = rules_of(people.world.installation.database, org.id)
    database = people.world.installation.database
    if len(rules) > 5:
        database.of(org.id).write_now(lambda rows: remove(rows, org.id, people.pick(rules).id, by="walk"))
    else:
        org.place.rule(
            who=people.pick(["everyone", f"group:g-{org.mark.canary()}"]),
            tools=["*.create_refund"],
            when=[
                {
                    "argument": "charge",
                    "op": "prefix",
                    "value": f"ch_cny{org.mark.letters}char{people.pick('abcdefgh')}",
                }
            ],
            **people.pick([{"then": each} for each in ("allow", "confirm", "approve", "deny")] + [_BY_TWO]),
        )
    return [str(rules_of(database, org.id))]


_BY_TWO = {"then": "approve", "count": 2}


def freezes(people: People, org: Org) -> list[str]:
    """For a few operations of the org: the walk itself lifts it."""
    org.frozen_for = FROZEN_FOR
    set_to(people, org, frozen=True)
    return []


def thaws(people: People, org: Org) -> None:
    """Lift a freeze once it has lasted long enough."""
    if org.frozen_for:
        org.frozen_for -= 1
        if not org.frozen_for:
            set_to(people, org, frozen=False)


def set_to(people: People, org: Org, *, frozen: bool) -> None:
    people.world.installation.database.of(org.id).write_now(
        lambda rows: set_frozen(rows, org.id, frozen=frozen, by="walk")
    )


FROZEN_FOR = 10


def ends(people: People, org: Org) -> list[str]:
    """The operator removes the org, and another one begins. Its log stays; its id is one that somebody remembers."""
    ran = people.line("org", "remove", org.name, "--yes")
    assert ran.code == 0, ran
    people.world.gone(org)
    return []


def _said(act: Callable[[], Any]) -> str:
    try:
        return str(act())
    except PROBLEMS as problem:
        return str(problem)


# -- at the command line

LISTS = (
    "agent list",
    "agent list --json",
    "member list --json",
    "connection list",
    "connection list --json",
    "policy list",
    "policy list --json",
    "policy preset",
    "policy versions --json",
    "policy export",
    "channel list --json",
    "approvals list --all",
    "approvals list --json",
    "grant list --json",
    "grant list --all",
    "policy versions",
    "policy export --json",
    "channel list",
    "approvals list",
    "audit list",
    "audit list --json --limit 20",
    "audit list --event call.refused",
    "audit export --output - --event approval.decided",
    "audit export --output - --format csv --event agent.created",
    "audit verify",
)


def shows(people: People, org: Org) -> list[str]:
    if people.world.chance.random() < 0.1:
        return [people.run(org, "org", "show", org.name)]
    return [people.run(org, *people.pick(LISTS).split())]


NAMED: dict[str, str] = {
    "agent show {}": "agent",
    "agent narrow {} --any-effect": "agent",
    "agent rotate {} --yes": "agent",
    "agent remove {} --yes": "agent",
    "agent create new-one --for {}": "member",
    "member show {}": "member",
    "member change {} --group friends": "member",
    "member remove {} --yes": "member",
    "member create olaf --role {}": "member",
    "connection show {}": "connection",
    "connection remove {} --yes": "connection",
    "connection test {}": "connection",
    "connection use-managed {} --yes": "connection",
    "connector test {}": "connection",
    "approvals show {}": "apr",
    "approvals approve {} --yes": "apr",
    "approvals deny {} --yes": "apr",
    "channel show {}": "channel",
    "channel test {}": "channel",
    "channel rotate {}": "channel",
    "channel remove {} --yes": "channel",
    "approvals resolve {} --did-not": "apr",
    "approvals resolve  {} --happened --note seen": "lst",
    "grant show {} --json": "grt",
    "grant revoke {}": "grt",
    "grant create day --tool x --uses 1 --runner agent:{}": "agent",
    "grant create  day --tool x --uses 1 --runner member:{}": "member",
    "audit list --json --grant {}": "grt",
    "policy remove {} --yes": "rul",
    "policy explain --agent {} --tool x": "agent",
    "policy add --who agent:{} --tools stripe.* --then deny": "agent",
    "audit list --json --agent {}": "agent",
    "audit list --json --agent  {}": "agt",
    "audit list --json --member {}": "member",
    "audit list --json --connection {}": "connection",
}
"""Every command that takes a name or an id of something of the org, and of what."""


def names_anothers(people: People, org: Org) -> list[str]:
    """Whatever a command takes a name or an id for: another org's is answered like one that never existed."""
    words, kind = people.pick(list(NAMED.items()))
    other = people.world.other(org)
    theirs = people.pick(_of(people.world, other, kind))
    if theirs is None:
        return []
    fiction = never(theirs, people.world.chance)
    org.mark.said |= {theirs}
    heard = [people.run(org, *(word.format(each) for word in words.split())) for each in (theirs, fiction)]
    same(org, [_without_ids(each) for each in heard], (theirs, fiction))
    return heard


def names_its_own(people: People, org: Org) -> list[str]:
    """The same commands with what there is, but for those that would leave the org with nothing."""
    words, kind = people.pick(list(NAMED.items()))
    if words.split()[1] in ("remove", "rotate", "create") and kind not in ("rul", "channel"):
        return []
    own = people.pick(_of(people.world, org, kind))
    return [] if own is None else [people.run(org, *(word.format(own) for word in words.split()))]


def connects(people: People, org: Org) -> list[str]:
    """One more account, or a new secret for one there is, or one less."""
    names = [name for name in people.world.connections(org) if not name.startswith(("ledger_", "openai_"))]
    secret = f"rk_test_{org.mark.canary()}".encode()
    if len(names) > 3:
        return [people.run(org, "connection", "remove", people.pick(names[2:]), "--yes")]
    if people.world.chance.random() < 0.5:
        name = people.pick(names)
        return [people.run(org, "connection", "rotate", name, "--secret-stdin", "--no-verify", stdin=secret)]
    where = ("--base-url", people.world.upstream.url, "--allow-private", "127.0.0.1/32")
    name = f"stripe_{org.mark.canary()}"
    return [people.run(org, "connect", "stripe", "--name", name, "--secret-stdin", "--no-verify", *where, stdin=secret)]


def moves(people: People, org: Org) -> list[str]:
    """From the operator's account to one of its own, and back; or the operator changes what is offered."""
    name, there = org.offered, people.world.upstream.url
    where = ("--base-url", there, "--allow-private", "127.0.0.1/32")
    secret = f"sk-proj-rk_test_{org.mark.canary()}".encode()
    match people.world.chance.randrange(4):
        case 0:
            words = ("connect", "openai", "--name", name, "--secret-stdin", "--no-verify", *where)
            return [people.run(org, *words, stdin=secret)]
        case 1:
            return [people.run(org, "connection", "remove", name, "--yes")]
        case 2:
            return [people.run(org, "connection", "use-managed", name, "--yes")]
        case _:
            operators = people.pick([("limit", name, "30"), ("rotate", name, "--no-verify", "--secret-stdin")])
            ran = people.line("managed", *operators, stdin=OPERATORS.encode())
            assert ran.code == 0, ran
            assert OPERATORS not in ran.out + ran.err
            return [people.run(org, "connection", "show", name)]


def signs_in_and_out(people: People, org: Org) -> list[str]:
    """Disconnects, while the provider may be in trouble; and signs in to another account."""
    world = people.world
    signed_in = [name for name in world.connections(org) if name.startswith("ledger_")]
    if not signed_in:
        return [sign_in(world, org)]
    trouble = world.chance.choice([None, {}, {"error": "unsupported_token_type"}])
    status = 503 if trouble == {} else 400
    if trouble is not None:
        world.provider.answering = lambda path, said: Answer(trouble, status) if path == "/oauth/revoke" else said
    try:
        return [people.run(org, "connection", "remove", people.pick(signed_in), "--yes")]
    finally:
        world.provider.answering = lambda _path, answer: answer


def prepares_work(people: People, org: Org) -> list[str]:
    """Refunds of some charges without asking again: decided at once, or waiting; and a look at what came of others."""
    world = people.world
    names = [name for name in world.connections(org) if name.startswith("stripe_")]
    if not names or world.chance.random() < 0.3:
        own = people.pick(world.ids(org, "grt"))
        ended = people.pick([("grant", "revoke"), ("grant", "show"), ("audit", "list", "--grant")])
        return [] if own is None else [people.run(org, *ended, own)]
    charges = ",".join(f"ch_cny{org.mark.letters}char{letter}" for letter in people.pick(["abc", "def", "abcdefgh"]))
    runner = people.pick([f"agent:{people.pick(world.agents(org))}", f"member:{org.place.owner.name}"])
    words = ("--tool", f"{people.pick(names)}_create_refund", "--where", f"charge in {charges}", "--runner", runner)
    more = (("--for-why", f"why {org.mark.canary()}"), ("--yes",), ("--yes", "--json"))
    made = people.run(org, "grant", "create", f"w {org.mark.canary()}", *words, "--uses", "5", *people.pick(more))
    return [made, people.run(org, "grant", "list", "--json")]


def resolves(people: People, org: Org) -> list[str]:
    """Says what became of a call of which nobody knows."""
    unknown = people.world.installation.approvals.unknown
    found = [*unknown.approvals(org.id), *(lost.id for lost in unknown.calls(org.id))]
    if not found:
        return []
    said = people.pick(["--happened", "--did-not"])
    note = f"seen by {org.mark.canary()}"
    return [
        people.run(org, "approvals", "resolve", people.pick(found), said, "--note", note),
        people.run(org, "approvals", "list", "--all"),
    ]


def applies(people: People, org: Org) -> list[str]:
    """Its own rules as they were at some time, tried on what was called since, and put in force."""
    world = people.world
    numbers = [one.number for one in versions_of(world.installation.database, org.id)]
    which = () if not numbers else ("--version", str(people.pick(numbers)))
    exported = people.line("policy", "export", *which, "--org", org.name)
    file = people.write("rules.yaml", exported.out)
    return [
        exported.out + exported.err,
        people.run(org, "policy", "replay", file, "--since", "1d", *people.pick([(), ("--json", "--examples", "5")])),
        people.run(org, "policy", "apply", file, "--yes", *people.pick([(), ("--json",)])),
        people.run(org, "policy", "versions"),
    ]


def applies_anothers(people: People, org: Org) -> list[str]:
    """A file that names another org's agent, or a member of theirs: one that never existed."""
    other = people.world.other(org)
    kind, names = people.pick([("agent", people.world.agents(other)), ("member", people.world.members(other))])
    theirs = people.pick(names)
    if theirs is None:
        return []
    fiction = never(theirs, people.world.chance)
    org.mark.said |= {theirs}
    heard: list[str] = []
    for name in (theirs, fiction):
        rule = f"- id: one\n  who: {kind}:{name}\n  tools: ['*.*']\n  then: deny\n"
        file = people.write("rules.yaml", f"preset: default\nrules:\n{rule}")
        said = people.run(org, "policy", "apply", file, "--yes")
        heard.append(said)
        assert not said.startswith("0"), said
    # What it may have meant is one of its own names, by how like these it looks.
    same(org, [re.sub("Did you mean '[^']*'[?] ", "", each) for each in heard], (theirs, fiction))
    return heard


def rings(people: People, org: Org) -> list[str]:
    """One more webhook, one less, or one whose receiver wants nothing any more until it is asked again."""
    world = people.world
    there = world.channels(org)
    if not there or (len(there) < 3 and world.chance.random() < 0.3):
        people.add_channel(org, f"{world.upstream.url}/hook-{org.mark.canary()}")
        return [people.run(org, "channel", "list", "--json")]
    name = people.pick(there)
    match world.chance.randrange(4):
        case 0:
            return [people.run(org, "channel", "remove", name, "--yes")]
        case 1:
            return [people.run(org, "channel", "rotate", name)]
        case 2:
            ends = {request.target for request in world.upstream.requests[-200:] if org.mark.letters in request.target}
            world.deaf ^= {each for each in ends if "/hook-" in each}
            return [people.run(org, "channel", "show", name)]
        case _:
            return [people.run(org, "channel", "test", name)]


def keeps_house(people: People, org: Org) -> list[str]:
    """What an org has as a whole: its preset, its key, and the data key of an account."""
    match people.world.chance.randrange(3):
        case 0:
            return [people.run(org, "policy", "preset", people.pick(["default", "solo", "strict"]))]
        case 1:
            name = people.pick(people.world.connections(org))
            return [people.run(org, "connection", "rotate", name, "--keep-secret")]
        case _:
            ran = people.line("vault", "rotate-org", org.name, "--yes")
            assert ran.code == 0, ran
            return [ran.out, ran.err]


def joins(people: People, org: Org) -> list[str]:
    """One more member, or one less."""
    members = people.world.members(org)
    if len(members) > 4:
        leaving = next(name for name in members if name != org.place.owner.name)
        return [people.run(org, "member", "remove", leaving, "--yes")]
    name, group = f"m-{org.mark.canary()}", f"g-{org.mark.canary()}"
    if len(members) > 1 and people.world.chance.random() < 0.4:
        word = people.pick(["--role", "--take-role"])
        return [people.run(org, "member", "change", members[-1], word, "owner", "--group", group)]
    return [people.run(org, "member", "create", name, "--group", group, "--role", "approver", "--json")]


ROOMS: dict[Act, int] = {
    looks: 12,
    decides: 14,
    decides_anothers: 4,
    exports: 1,
    reaches_for_anothers: 10,
    changes_agents: 3,
    changes_rules: 3,
    freezes: 1,
}
"""What is done in the rooms behind the command line, and how often."""

COMMANDS: dict[Act, int] = {
    shows: 6,
    names_anothers: 8,
    names_its_own: 6,
    connects: 2,
    moves: 3,
    joins: 2,
    keeps_house: 2,
    signs_in_and_out: 2,
    prepares_work: 4,
    resolves: 3,
    applies: 2,
    applies_anothers: 2,
    rings: 3,
}
"""What is done at the command line, and how often; each takes as long as ten of the others."""


def _of(world: World, org: Org, kind: str) -> list[str]:
    by_name = {
        "agent": world.agents,
        "member": world.members,
        "connection": world.connections,
        "channel": world.channels,
    }
    return by_name[kind](org) if kind in by_name else world.ids(org, kind)


def _without_ids(text: str) -> str:
    """What a command says, but for the ids that it has made just now."""
    from tests.walk.canary import ID

    return ID.sub("(id)", text)
