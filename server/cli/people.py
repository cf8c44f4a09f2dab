"""`keyleash org|member …`, `freeze` and `unfreeze`: who there is, and what they may do."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, OrgName, Yes, at_desk, opened, operators_name, require_operator
from server.cli.output import moment, say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.app import Installation
    from server.database import Rows
    from server.identity import Member, Org

org_app = typer.Typer(no_args_is_help=True, help="Orgs: each has its own members, accounts, rules and log.")
member_app = typer.Typer(no_args_is_help=True, help="The people of an org.")

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
        ((org.name, org.preset, "frozen" if org.frozen_at else "", moment(iso(org.created_at))) for org in found),
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
    from server.audit import AuditError
    from server.audit.noted import NotedHeads
    from server.cli.erasing import erased, say_of_backups, whether_gone
    from server.ending import belongings
    from server.identity import remove_org

    with opened(as_operator=True) as installation:
        require_operator(installation, "removing an org")
        org = installation.directory.org(name)
        has = installation.database.snapshot(lambda rows: belongings(rows, org.id))
        counted = ", ".join(f"{count} {kind if count != 1 else kind[:-1]}" for kind, count in has.items() if count)
        require_yes(f"Remove {org.name} for good, with {counted}? Only its log stays.", yes=yes)
        sign = _last_signature(installation, org.id)
        installation.database.write_now(lambda rows: (remove_org(rows, org, by=operators_name()), sign(rows)))
        gone = erased(installation, org.id, org.id)
        installation.database.write_now(sign)  # once more, for that it was erased is on record as well
        try:
            NotedHeads(installation.settings.noted_heads).keep_last(installation.database, org.id)
        except AuditError as problem:
            warn(f"Its last checkpoint is in the database, and not outside: {problem}")
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


def _last_signature(installation: "Installation", org: str) -> "Callable[[Rows], None]":
    """What signs its log once more; where that cannot be, it is removed without."""
    from server.audit import AuditError
    from server.signing import leaving
    from vault import VaultError

    try:
        return leaving(installation.database, installation.vault, installation.settings, org)
    except (AuditError, VaultError) as problem:
        warn(f"Its log cannot be signed once more: {problem}")
        return lambda _rows: None


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
        say(
            "No system user is mapped to them: this command line will not know them as themselves. "
            f"`keyleash member change {made.name} --os-user USER` maps one."
        )


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
        prose=("ROLES", "GROUPS"),
    )


@member_app.command("show")
def show_member(name: Name, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Show one person, and the agents that act for them."""
    with at_desk(org, as_member, "look around") as desk:
        member = desk.installation.directory.member(desk.org.id, name)
        agents = desk.installation.directory.agents(desk.org.id)
    shown = {**_member_as_json(member), "agents": [agent.name for agent in agents if agent.member == member.id]}
    if json:
        show_json(shown)
    else:
        show_fields(shown)


@member_app.command("change")
def change_member(
    name: Name,
    role: Annotated[list[str] | None, typer.Option("--role", help="A role to add. Repeatable.")] = None,
    take_role: Annotated[list[str] | None, typer.Option("--take-role", help="A role to take away. Repeatable.")] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="A group to add them to. Repeatable.")] = None,
    take_group: Annotated[
        list[str] | None, typer.Option("--take-group", help="A group to take them out of. Repeatable.")
    ] = None,
    os_user: Annotated[
        str | None, typer.Option("--os-user", help="The system user by whom this command line knows them from now on.")
    ] = None,
    no_os_user: Annotated[
        bool, typer.Option("--no-os-user", help="This command line is to know them no longer.")
    ] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Change a person's roles, groups or system user, for their agents' next call and their own next decision."""
    from server.identity import Change, change_member

    if os_user is not None and no_os_user:
        raise typer.BadParameter("Give --os-user or --no-os-user, not both.")
    change = Change(
        roles=tuple(role or ()),
        taken_roles=tuple(take_role or ()),
        groups=tuple(group or ()),
        taken_groups=tuple(take_group or ()),
        os_user=os_user,
        no_os_user=no_os_user,
    )
    if change == Change():
        raise typer.BadParameter("Say what to change: --role, --take-role, --group, --take-group or --os-user.")
    with at_desk(org, as_member, "manage members") as desk:
        member = desk.installation.directory.member(desk.org.id, name)
        changed = desk.database.write_now(
            lambda rows: change_member(
                rows, desk.org.id, member.id, change, by=desk.by, by_owner=desk.may("make or remove an owner")
            )
        )
        owners = [one for one in desk.installation.directory.members(desk.org.id) if "owner" in one.roles]
        unknown_owners = no_os_user and not any(one.os_user for one in owners)
    if json:
        show_json(_member_as_json(changed))
    else:
        groups = f"; groups {', '.join(changed.groups)}" if changed.groups else ""
        show_text(f"{changed.name}: roles {', '.join(changed.roles)}{groups}.")
    if unknown_owners:
        warn(
            "No owner is known by a system user any more: what is an owner's takes `--as NAME` now, which is the "
            f"operator's. `keyleash member change {changed.name} --os-user USER --as {changed.name}` maps one again."
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


def _moment(at: int | None) -> str | None:
    from server.clock import iso

    return None if at is None else iso(at)
