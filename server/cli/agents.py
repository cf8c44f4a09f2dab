"""`keyleash agent …`: the MCP clients that may call tools, what each may reach at most, and when it last did."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import moment, say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.identity import Agent, Member
    from server.narrowing import Narrowing

app = typer.Typer(no_args_is_help=True, help="The MCP clients that may call tools.")

Name = Annotated[str, typer.Argument()]
Tools = Annotated[
    list[str] | None,
    typer.Option("--tool", metavar="GLOB", help="Narrow it to these, such as 'stripe.*'. Repeatable."),
]
Effects = Annotated[
    list[str] | None, typer.Option("--effect", help="Narrow it to these effects, such as read. Repeatable.")
]
Connections = Annotated[
    list[str] | None,
    typer.Option("--connection", metavar="NAME", help="Narrow it to these connections. Repeatable."),
]
Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        metavar="CIDR",
        help="Narrow it to clients at these addresses, over HTTP; over stdio it is then refused. Repeatable.",
    ),
]


@app.command("create")
def create_agent(
    name: Name,
    for_member: Annotated[
        str | None, typer.Option("--for", metavar="MEMBER", help="Whom it acts for; you, if you do not say.")
    ] = None,
    standalone: Annotated[
        bool, typer.Option("--standalone", help="It acts for nobody, and starts without rules.")
    ] = False,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="How long its token lives, such as 30d.")
    ] = None,
    tool: Tools = None,
    effect: Effects = None,
    connection: Connections = None,
    address: Addresses = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Create an agent. Its token is shown this once and never again."""
    from server.clock import iso
    from server.identity import create_agent

    if standalone and for_member is not None:
        raise typer.BadParameter("Give --for or --standalone, not both.")
    narrowing = _narrowing(tool, effect, connection, address)
    expires_at = _from_now(expires)
    with at_desk(org, as_member, "look around") as desk:
        member = _acts_for(desk, for_member, standalone=standalone)
        token = desk.database.write_now(
            lambda rows: create_agent(
                rows,
                desk.org.id,
                name=name,
                member=member,
                by=desk.by,
                narrowing=narrowing,
                expires_at=expires_at,
            )
        )
        _warn_of_absent(desk, connection or [])
    made = {
        "name": name,
        "token": token,
        "org": desk.org.name,
        "acts_for": member.name if member else None,
        "expires_at": None if expires_at is None else iso(expires_at),
    }
    if json:
        show_json(made)
    else:
        _show_token(made, over_stdio=not narrowing.addresses)
    if member is None:
        say(
            f"{name} is standalone: no rule lets it call anything yet. For instance:\n"
            f"  keyleash policy add --who agent:{name} --tools 'stripe.*' --effects read --then allow"
        )


@app.command("list")
def list_agents(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the org's agents, and when each was last used."""
    with at_desk(org, as_member, "look around") as desk:
        found = desk.installation.directory.agents(desk.org.id)
    if json:
        show_json([_as_json(agent) for agent in found])
        return
    show_table(
        ("NAME", "ACTS FOR", "NARROWED TO", "EXPIRES", "LAST USED", "FROM"),
        (
            (
                agent.name,
                _whom(agent),
                _held(agent),
                moment(_moment(agent.expires_at)) or "never",
                moment(_moment(agent.last_use.at)) if agent.last_use else "never",
                _whence(agent),
            )
            for agent in found
        ),
        empty="There are no agents yet. `keyleash agent create NAME` makes one; so does `keyleash client add CLIENT`.",
        prose=("NARROWED TO",),
        under=("FROM", "NARROWED TO"),
    )


@app.command("show")
def show_agent(name: Name, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Show one agent: what it is narrowed to, and when and from where it was last used."""
    with at_desk(org, as_member, "look around") as desk:
        agent = desk.installation.directory.agent(desk.org.id, name)
    shown = _as_json(agent)
    if json:
        show_json(shown)
        return
    parts = {part: values or None for part, values in agent.narrowing.shown().items()}
    last = {"last_used_at": shown["last_used_at"] or "never", "last_used": _whence(agent) or None}
    show_fields({**shown, **parts, **last, "acts_for": _whom(agent)})


@app.command("narrow")
def narrow_agent(
    name: Name,
    tool: Tools = None,
    effect: Effects = None,
    connection: Connections = None,
    address: Addresses = None,
    any_tool: Annotated[bool, typer.Option("--any-tool", help="Take the narrowing to tools away.")] = False,
    any_effect: Annotated[bool, typer.Option("--any-effect", help="Take the narrowing to effects away.")] = False,
    any_connection: Annotated[
        bool, typer.Option("--any-connection", help="Take the narrowing to connections away.")
    ] = False,
    any_address: Annotated[bool, typer.Option("--any-address", help="Take the narrowing to addresses away.")] = False,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="How long it may go on, such as 30d, or never.")
    ] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Change what an agent may reach at most, from where and until when. What you do not name stays as it is."""
    from server.identity import narrow_agent

    given = _narrowing(tool, effect, connection, address)
    lifted = {"tools": any_tool, "effects": any_effect, "connections": any_connection, "addresses": any_address}
    for part, lift in lifted.items():
        if lift and getattr(given, part):
            raise typer.BadParameter(f"Give --{part.rstrip('s')} or --any-{part.rstrip('s')}, not both.")
    if expires is None and not any(lifted.values()) and not any(given.shown().values()):
        raise typer.BadParameter("Say what to change: for instance --tool 'stripe.*', --any-effect or --expires 30d.")
    with at_desk(org, as_member, "look around") as desk:
        agent = desk.installation.directory.agent(desk.org.id, name)
        desk.require_for(agent)
        narrowing = _narrowed(agent.narrowing, given, lifted)
        expires_at = agent.expires_at if expires is None else _from_now(None if expires == "never" else expires)
        desk.database.write_now(
            lambda rows: narrow_agent(rows, desk.org.id, agent, narrowing=narrowing, expires_at=expires_at, by=desk.by)
        )
        _warn_of_absent(desk, connection or [])
        changed = desk.installation.directory.agent(desk.org.id, agent.id)
    if json:
        show_json(_as_json(changed))
    else:
        held = _held(changed)
        now = f"narrowed to {held}" if held else "no longer narrowed: only rules hold it"
        ends = "" if changed.expires_at is None else f" It expires at {_moment(changed.expires_at)}."
        show_text(f"{changed.name} is {now}.{ends}")


def _narrowed(before: "Narrowing", given: "Narrowing", lifted: dict[str, bool]) -> "Narrowing":
    from dataclasses import replace

    named: dict[str, Any] = {part: tuple(values) for part, values in given.shown().items() if values}
    return replace(before, **{part: () for part, lift in lifted.items() if lift}, **named)


@app.command("rotate")
def rotate_agent(
    name: Name,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="How long the new token lives, such as 30d.")
    ] = None,
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Give an agent a new token, shown this once. The old one stops at once."""
    from server.identity import rotate_agent

    expires_at = _from_now(expires)
    with at_desk(org, as_member, "look around") as desk:
        agent = desk.installation.directory.agent(desk.org.id, name)
        desk.require_for(agent)
        require_yes(f"Give {agent.name} a new token? The one it has stops at once.", yes=yes)
        token = desk.database.write_now(
            lambda rows: rotate_agent(rows, desk.org.id, agent, by=desk.by, expires_at=expires_at)
        )
    ends = agent.expires_at if expires_at is None else expires_at
    made = {"name": agent.name, "token": token, "org": desk.org.name, "expires_at": _moment(ends)}
    if json:
        show_json(made)
    else:
        _show_token(made, over_stdio=not agent.narrowing.addresses)


@app.command("remove")
def remove_agent(name: Name, yes: Yes = False, org: OrgName = None, as_member: AsMember = None) -> None:
    """Remove an agent. Its token stops at once; its pending approvals and its grants end."""
    from server.identity import remove_agent

    with at_desk(org, as_member, "look around") as desk:
        agent = desk.installation.directory.agent(desk.org.id, name)
        desk.require_for(agent)
        require_yes(f"Remove the agent {agent.name}?", yes=yes)
        desk.database.write_now(lambda rows: remove_agent(rows, desk.org.id, agent, by=desk.by))
        show_text(f"Removed {agent.name}.")


def _acts_for(desk: Desk, named: str | None, *, standalone: bool) -> "Member | None":
    """Whom a new agent is to act for. Raises IdentityProblem where that is not the person's to give."""
    member = None
    if not standalone:
        member = desk.actor.member if named is None else desk.installation.directory.member(desk.org.id, named)
    own = member is not None and member.id == desk.actor.member.id
    desk.require("manage their own agents" if own else "manage everyone's agents")
    return member


def _from_now(text: str | None) -> int | None:
    from server.cli.moments import duration
    from server.clock import now_ms

    return None if text is None else now_ms() + duration(text)


def _narrowing(
    tools: Sequence[str] | None,
    effects: Sequence[str] | None,
    connections: Sequence[str] | None,
    addresses: Sequence[str] | None,
) -> "Narrowing":
    """What was given, checked: a leash that matches nothing would look like a tight one and be a mistake.

    Raises BadParameter or RuleError.
    """
    from connectors.definition import Effect
    from server.connections import checked_name
    from server.narrowing import Narrowing, network
    from server.policy import Rule, Who

    known = [effect.value for effect in Effect]
    for effect in effects or ():
        if effect not in known:
            raise typer.BadParameter(f"there is no effect {effect!r}. Effects are {', '.join(known)}.")
    if tools:
        Rule("narrowing", Who("everyone"), tools=tuple(tools))
    return Narrowing(
        tools=_each(tools, str),
        effects=_each(effects, str),
        connections=_each(connections, checked_name),
        addresses=_each(addresses, lambda text: str(_or_misuse(network, text))),
    )


def _each(given: Sequence[str] | None, check: Callable[[str], str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check(each) for each in given or ()))


def _or_misuse(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _warn_of_absent(desk: Desk, named: Sequence[str]) -> None:
    from server.connections import connections_of

    there = {connection.name for connection in connections_of(desk.database, desk.org.id)}
    for name in named:
        if name not in there:
            warn(f"there is no connection {name!r} yet; until there is, this part of the leash admits nothing.")


def _show_token(made: dict[str, Any], *, over_stdio: bool) -> None:
    show_text(made["token"])
    name = made["name"]
    say(
        f"This is the token of {name}, shown this once.\n"
        "Over HTTP (`keyleash serve --http HOST:PORT`) an agent sends it to /agent/mcp as `Authorization: Bearer …`.\n"
        + (
            f"Over stdio no token is needed: keyleash serve --agent {name} --org {made['org']}\n"
            f"Into a client's own settings: keyleash client add CLIENT --agent {name}"
            if over_stdio
            else "Over stdio it is refused: it is narrowed to addresses.\n"
            f"What to write into a client's settings: keyleash client show CLIENT --agent {name} --http URL"
        )
    )


def _held(agent: "Agent") -> str:
    """What it is narrowed to, part by part; nothing where it is not."""
    return "; ".join(f"{part} {', '.join(values)}" for part, values in agent.narrowing.shown().items() if values)


def _whom(agent: "Agent") -> str:
    if agent.member is None:
        return "nobody (standalone)"
    return agent.member_name or "someone who was removed: it is stopped"


def _whence(agent: "Agent") -> str:
    use = agent.last_use
    return "" if use is None else ", ".join(each for each in (use.address or use.transport, use.client) if each)


def _as_json(agent: "Agent") -> dict[str, Any]:
    use = agent.last_use
    return {
        "name": agent.name,
        "id": agent.id,
        "acts_for": agent.member_name,
        "standalone": agent.member is None,
        "stopped": agent.member is not None and agent.member_name is None,
        **agent.narrowing.shown(),
        "expires_at": _moment(agent.expires_at),
        "created_at": _moment(agent.created_at),
        "last_used_at": _moment(use.at if use else None),
        "last_used_from": use.address if use else None,
        "last_used_over": use.transport if use else None,
        "last_used_client": use.client if use else None,
    }


def _moment(at: int | None) -> str | None:
    from server.clock import iso

    return None if at is None else iso(at)
