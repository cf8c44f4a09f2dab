"""`keyleash org|member|agent …`, `freeze` and `unfreeze`: who there is, and whom agents act for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk, opened, operators_name, require_operator
from server.cli.output import say, show_fields, show_json, show_table, show_text
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.app import Installation
    from server.identity import Agent, Member, Org

org_app = typer.Typer(no_args_is_help=True, help="Orgs: each has its own members, accounts, rules and log.")
member_app = typer.Typer(no_args_is_help=True, help="The people of an org.")
agent_app = typer.Typer(no_args_is_help=True, help="The MCP clients that may call tools.")

Name = Annotated[str, typer.Argument()]


# -- orgs


@org_app.command("create")
def create_org(
    name: Name,
    preset: Annotated[str, typer.Option("--preset", help="solo, default or strict.")] = "default",
    json: AsJson = False,
) -> None:
    """Create another org in this installation, with you as its owner. The operator's."""
    from server.cli.setup import found_org
    from server.identity import new_id

    with opened(as_operator=True) as installation:
        require_operator(installation, "creating an org")
        vault, org = installation.vault, new_id("org")
        key = installation.database.query(lambda rows: vault.first_org_key(rows, org))
        installation.database.write_now(lambda rows: found_org(rows, vault, name=name, preset=preset, org=org, key=key))
        made = installation.directory.org(name)
    if json:
        show_json(_org_as_json(made))
    else:
        show_text(f"Created the org {made.name}. Say which you mean with `--org {made.name}`.")


@org_app.command("list")
def list_orgs(
    removed: Annotated[
        bool, typer.Option("--removed", help="Those that were removed; only their logs are left.")
    ] = False,
    json: AsJson = False,
) -> None:
    """List the orgs of this installation."""
    from server.clock import iso

    with opened() as installation:
        if removed:
            _show_removed(installation, as_json=json)
            return
        found = installation.directory.orgs()
    if json:
        show_json([_org_as_json(org) for org in found])
        return
    show_table(
        ("NAME", "PRESET", "FROZEN", "CREATED"),
        ((org.name, org.preset, "frozen" if org.frozen_at else "", iso(org.created_at)) for org in found),
        empty="There is no org. `keyleash org create NAME` makes one.",
    )


def _show_removed(installation: "Installation", *, as_json: bool) -> None:
    from server.erasure import pending

    waiting = {one.org for one in pending(installation.database)}
    found = [
        {
            "name": org.name,
            "id": org.id,
            "removed_at": _moment(org.removed_at),
            "removed_by": org.removed_by,
            "erased": org.id not in waiting,
        }
        for org in installation.directory.removed_orgs()
    ]
    if as_json:
        show_json(found)
        return
    show_table(
        ("NAME", "ID", "REMOVED", "BY", "KEY AND SECRETS"),
        (
            (org["name"], org["id"], org["removed_at"], org["removed_by"], "gone" if org["erased"] else "pending")
            for org in found
        ),
        empty="No org was removed.",
    )


@org_app.command("show")
def show_org(
    name: Annotated[str | None, typer.Argument()] = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Show one org."""
    with at_desk(name, as_member, "look around") as desk:
        shown = {
            **_org_as_json(desk.org),
            "members": len(desk.installation.directory.members(desk.org.id)),
            "agents": len(desk.installation.directory.agents(desk.org.id)),
        }
    if json:
        show_json(shown)
    else:
        show_fields(shown)


@org_app.command("remove")
def remove_org(name: Name, yes: Yes = False, json: AsJson = False) -> None:
    """Remove an org with everything it has. Its agents stop at once; its log stays. The operator's."""
    from server.cli.erasing import erased, say_of_backups, whether_gone
    from server.ending import belongings
    from server.identity import remove_org

    with opened(as_operator=True) as installation:
        require_operator(installation, "removing an org")
        org = installation.directory.org(name)
        has = installation.database.snapshot(lambda rows: belongings(rows, org.id))
        counted = ", ".join(f"{count} {kind if count != 1 else kind[:-1]}" for kind, count in has.items() if count)
        require_yes(f"Remove {org.name} for good, with {counted}? Only its log stays.", yes=yes)
        installation.database.write_now(lambda rows: remove_org(rows, org, by=operators_name()))
        gone = erased(installation, org.id, org.id)
        last = not installation.directory.orgs()
        if json:
            show_json({"name": org.name, "id": org.id, "had": has, "erased": gone})
        else:
            show_text(
                f"Removed {org.name}. {whether_gone(installation, 'What it had sealed, with its key,', gone=gone)}"
            )
            say(f"Its log stays, and verifies: keyleash audit verify --org {org.id}")
        say_of_backups(installation)
    if last:
        say("There is no org left. `keyleash org create NAME` makes one.")


def freeze(org: OrgName = None, as_member: AsMember = None) -> None:
    """Stop all agents of an org at their next call."""
    _set_frozen(org, as_member, frozen=True)
    show_text("All agents are stopped at their next call. `keyleash unfreeze` lets them go on.")


def unfreeze(org: OrgName = None, as_member: AsMember = None) -> None:
    """Let a frozen org's agents go on."""
    _set_frozen(org, as_member, frozen=False)
    show_text("Agents may call tools again.")


def _set_frozen(org: str | None, as_member: str | None, *, frozen: bool) -> None:
    from server.identity import set_frozen

    with at_desk(org, as_member, "freeze agents") as desk:
        desk.database.write_now(lambda rows: set_frozen(rows, desk.org.id, frozen=frozen, by=desk.by))


# -- members


@member_app.command("create")
def create_member(
    name: Name,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="owner, admin, approver, auditor or member (the default). Repeatable."),
    ] = None,
    os_user: Annotated[
        str | None, typer.Option("--os-user", help="The system user by whom this command line knows them.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="A group for rules to name. Repeatable.")] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Add a person to the org."""
    from server.identity import create_member

    roles = list(dict.fromkeys(role or ["member"]))
    with at_desk(org, as_member, "manage members") as desk:
        if "owner" in roles:
            desk.require("make or remove an owner")
        desk.database.write_now(
            lambda rows: create_member(
                rows, desk.org.id, name=name, roles=roles, os_user=os_user, by=desk.by, groups=group or ()
            )
        )
        made = desk.installation.directory.member(desk.org.id, name)
    if json:
        show_json(_member_as_json(made))
        return
    show_text(f"Added {made.name} ({', '.join(made.roles)}).")
    if os_user is None:
        say("No system user is mapped to them: this command line will not know them as themselves.")


@member_app.command("list")
def list_members(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the people of the org."""
    with at_desk(org, as_member, "look around") as desk:
        found = desk.installation.directory.members(desk.org.id)
    if json:
        show_json([_member_as_json(member) for member in found])
        return
    show_table(
        ("NAME", "ROLES", "SYSTEM USER", "GROUPS"),
        ((m.name, ", ".join(m.roles), m.os_user, ", ".join(m.groups)) for m in found),
        empty="The org has no members.",
    )


@member_app.command("remove")
def remove_member(name: Name, yes: Yes = False, org: OrgName = None, as_member: AsMember = None) -> None:
    """Take a person out of the org. Agents that act for them stop at their next call."""
    from server.identity import remove_member

    with at_desk(org, as_member, "manage members") as desk:
        member = desk.installation.directory.member(desk.org.id, name)
        if "owner" in member.roles:
            desk.require("make or remove an owner")
        require_yes(f"Take {member.name} out of {desk.org.name}? Their agents stop.", yes=yes)
        desk.database.write_now(lambda rows: remove_member(rows, desk.org.id, member, by=desk.by))
        show_text(f"Removed {member.name}.")


# -- agents


@agent_app.command("create")
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
    tool: Annotated[
        list[str] | None,
        typer.Option("--tool", metavar="GLOB", help="Narrow it to these, such as 'stripe.*'. Repeatable."),
    ] = None,
    effect: Annotated[
        list[str] | None, typer.Option("--effect", help="Narrow it to these effects, such as read. Repeatable.")
    ] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Create an agent. Its token is shown this once and never again."""
    from server.cli.moments import duration
    from server.clock import iso, now_ms
    from server.identity import Narrowing, create_agent

    if standalone and for_member is not None:
        raise typer.BadParameter("Give --for or --standalone, not both.")
    _check_narrowing(tool or [], effect or [])
    expires_at = None if expires is None else now_ms() + duration(expires)
    with at_desk(org, as_member, "look around") as desk:
        member = _acts_for(desk, for_member, standalone=standalone)
        token = desk.database.write_now(
            lambda rows: create_agent(
                rows,
                desk.org.id,
                name=name,
                member=member,
                by=desk.by,
                narrowing=Narrowing(tuple(tool or ()), tuple(effect or ())),
                expires_at=expires_at,
            )
        )
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
        _show_token(made)
    if member is None:
        say(
            f"{name} is standalone: no rule lets it call anything yet. For instance:\n"
            f"  keyleash policy add --who agent:{name} --tools 'stripe.*' --effects read --then allow"
        )


@agent_app.command("list")
def list_agents(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the org's agents."""
    with at_desk(org, as_member, "look around") as desk:
        found = desk.installation.directory.agents(desk.org.id)
    if json:
        show_json([_agent_as_json(agent) for agent in found])
        return
    show_table(
        ("NAME", "ACTS FOR", "NARROWED TO", "EXPIRES", "CREATED"),
        (
            (
                agent.name,
                _whom(agent),
                ", ".join((*agent.narrowing.tools, *agent.narrowing.effects)),
                _moment(agent.expires_at),
                _moment(agent.created_at),
            )
            for agent in found
        ),
        empty="There are no agents yet. `keyleash agent create NAME` makes one; so does `keyleash client add CLIENT`.",
    )


@agent_app.command("rotate")
def rotate_agent(
    name: Name, yes: Yes = False, org: OrgName = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Give an agent a new token, shown this once. The old one stops at once."""
    from server.identity import rotate_agent

    with at_desk(org, as_member, "look around") as desk:
        agent = desk.installation.directory.agent(desk.org.id, name)
        desk.require_for(agent)
        require_yes(f"Give {agent.name} a new token? The one it has stops at once.", yes=yes)
        token = desk.database.write_now(lambda rows: rotate_agent(rows, desk.org.id, agent, by=desk.by))
    made = {"name": agent.name, "token": token, "org": desk.org.name}
    if json:
        show_json(made)
    else:
        _show_token(made)


@agent_app.command("remove")
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


def _check_narrowing(tools: list[str], effects: list[str]) -> None:
    """A narrowing that matches nothing would look like a tight leash and be a mistake. Raises RuleError."""
    from connectors.definition import Effect
    from server.policy import Rule, Who

    known = [effect.value for effect in Effect]
    for effect in effects:
        if effect not in known:
            raise typer.BadParameter(f"there is no effect {effect!r}. Effects are {', '.join(known)}.")
    if tools:
        Rule("narrowing", Who("everyone"), tools=tuple(tools))


def _show_token(made: dict[str, Any]) -> None:
    show_text(made["token"])
    say(
        f"This is the token of {made['name']}, shown this once.\n"
        "Over HTTP (`keyleash serve --http HOST:PORT`) an agent sends it to /agent/mcp as `Authorization: Bearer …`.\n"
        f"Over stdio no token is needed: keyleash serve --agent {made['name']} --org {made['org']}\n"
        f"Into a client's own settings: keyleash client add CLIENT --agent {made['name']}"
    )


def _whom(agent: "Agent") -> str:
    if agent.member is None:
        return "nobody (standalone)"
    return agent.member_name or "someone who was removed: it is stopped"


def _org_as_json(org: "Org") -> dict[str, Any]:
    return {
        "name": org.name,
        "id": org.id,
        "preset": org.preset,
        "frozen": org.frozen_at is not None,
        "frozen_at": _moment(org.frozen_at),
        "created_at": _moment(org.created_at),
    }


def _member_as_json(member: "Member") -> dict[str, Any]:
    return {
        "name": member.name,
        "id": member.id,
        "roles": list(member.roles),
        "os_user": member.os_user,
        "groups": list(member.groups),
    }


def _agent_as_json(agent: "Agent") -> dict[str, Any]:
    return {
        "name": agent.name,
        "id": agent.id,
        "acts_for": agent.member_name,
        "standalone": agent.member is None,
        "stopped": agent.member is not None and agent.member_name is None,
        "tools": list(agent.narrowing.tools),
        "effects": list(agent.narrowing.effects),
        "expires_at": _moment(agent.expires_at),
        "created_at": _moment(agent.created_at),
    }


def _moment(at: int | None) -> str | None:
    from server.clock import iso

    return None if at is None else iso(at)
