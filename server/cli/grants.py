"""`keyleash grant …`: decisions that cover more than one call, and work that is prepared ahead for one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import moment, say, show_fields, show_json, show_table, show_text, warn

if TYPE_CHECKING:
    from server.approval import Approval, State
    from server.approval.work import Plan
    from server.identity import Agent, Caller, Member
    from server.policy import Subject

app = typer.Typer(no_args_is_help=True, help="Decisions that cover more than one call.")

Id = Annotated[str, typer.Argument(metavar="ID")]


@app.command("list")
def list_grants(
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """List the grants that have not ended."""
    with at_desk(org, as_member, "look around") as desk:
        found = _grants(desk, every=every)
    if json:
        show_json(found)
        return
    show_table(
        ("ID", "NAME", "TOOL", "WITHIN", "AGENT", "LEFT", "DECIDED BY", "UNTIL"),
        (
            (
                one["id"],
                one.get("name"),
                _tools(one),
                _within(one),
                one["agent"],
                f"{one['uses_left']} of {one['uses']}" if one["status"] == "running" else one["status"],
                one["decided_by"],
                moment(one["expires_at"]),
            )
            for one in found
        ),
        empty="There are no grants." if every else "No grant is running.",
        prose=("TOOL", "WITHIN"),
        under=("AGENT", "DECIDED BY", "WITHIN"),
    )


@app.command("show")
def show_grant(grant: Id, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Show one grant, and every call that was made under it."""
    with at_desk(org, as_member, "look around") as desk:
        found = _grant(desk, grant)
        calls = _calls(desk, found)
    if json:
        show_json({**found, "calls": calls})
        return
    show_fields(
        {
            "id": found["id"],
            "name": found.get("name"),
            "tools": _tools(found),
            "within": _within(found),
            "agent": found["agent"],
            "left": f"{found['uses_left']} of {found['uses']}",
            "decided by": found["decided_by"],
            "until": found["expires_at"],
            "status": found["status"],
        }
    )
    show_table(
        ("#", "AT", "AGENT", "TOOL", "OUTCOME"),
        ((one["attempt"], one["at"], one["agent"], one["tool"], one["outcome"]) for one in calls),
        empty="No call was made under it.",
    )


@app.command("create")
def create_grant(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the work is called, in prompts and in the log.")],
    tool: Annotated[
        list[str], typer.Option("--tool", metavar="TOOL", help="A tool's name on the wire, CONNECTION_TOOL. Repeat.")
    ],
    runner: Annotated[
        str, typer.Option("--runner", metavar="WHO", help="Whose calls it covers: agent:, member: or group:NAME.")
    ],
    uses: Annotated[int, typer.Option("--uses", metavar="N", help="So many calls at most, 1,000 at the very most.")],
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="BOUND", help="ARGUMENT OP VALUE, such as 'amount max 5000'. Repeat."),
    ] = None,
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="For how long: 8h, 30d at most.")] = "8h",
    for_why: Annotated[
        str | None, typer.Option("--for-why", metavar="TEXT", help="What it is for, for who decides.")
    ] = None,
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Prepare work: calls within bounds that run without asking again, once who may decide them has agreed to all.

    Every call is judged by the rules of its own moment: what they deny stays denied, and what they have become stricter
    about is asked for as always. Where you may decide it yourself, you are asked at once; `--yes` is recorded as
    unattended. Otherwise it waits in `keyleash approvals list`.
    """
    from server.cli.approvals import still_needed

    with at_desk(org, as_member, "prepare work") as desk:
        runners = runners_of(desk, runner)
        caller = _caller(desk, runners)
        plan = plan_of(
            *(desk, caller, runners, name), tools=tool, where=where or (), uses=uses, expires=expires, why=for_why
        )
        record, prompt = prepared(desk, caller, runners, plan)
        state, why_not = _decided_at_once(desk, record, prompt, yes=yes)
        needs = still_needed(desk, record.id)
        shown = {
            "grant": record.work,
            "approval": record.id,
            "name": plan.name,
            "status": "running" if state.value == "approved" else state.value,
        }
    if json:
        show_json(shown)
    elif state.value == "approved":
        show_text(f"{plan.name} runs: {record.work}, {plan.uses} calls until {_iso(plan.expires_at)}.")
    else:
        show_text(f"{plan.name} waits for a decision: {record.id}.")
        say(why_not or f"{needs} more {'person has' if needs == 1 else 'people have'} to agree.")
        say(f"Whoever may decide: `keyleash approvals show {record.id}`, then approve or deny.")


@app.command("revoke")
def revoke_grant(grant: Id, org: OrgName = None, as_member: AsMember = None) -> None:
    """End a grant at once."""
    with at_desk(org, as_member, "look around") as desk:
        if not any(one["id"] == grant for one in _own(desk, _grants(desk, every=False))):
            desk.require("revoke any grant")
        desk.database.write_now(lambda rows: desk.installation.approvals.revoke(rows, desk.org.id, grant, by=desk.by))
    show_text(f"Ended {grant}.")


# -- preparing


@dataclass(frozen=True)
class Runners:
    """Whose calls work covers: `agent:ID` and the like, as is kept; in words; and the agents that it means today."""

    kept: str
    runs: str
    agents: "list[tuple[Agent, Member | None]]"


def runners_of(desk: Desk, runner: str) -> Runners:
    """Read `agent:NAME` and the like, for who may prepare work for them. Raises IdentityProblem."""
    directory, org = desk.installation.directory, desk.org.id
    people = {member.id: member for member in directory.members(org)}
    agents = [(agent, people.get(agent.member or "")) for agent in directory.agents(org)]
    kind, _, name = runner.partition(":")
    if kind == "agent" and name:
        wanted = directory.agent(org, name)
        behind = f"for {wanted.member_name}" if wanted.member else "standalone: nobody stands behind it"
        found, kept = [each for each in agents if each[0].id == wanted.id], f"agent:{wanted.id}"
        runs = f"agent {wanted.name}, {behind}"
    elif kind == "member" and name:
        member = directory.member(org, name)
        found, kept = [each for each in agents if each[0].member == member.id], f"member:{member.id}"
        runs = f"every agent of {member.name}"
    elif kind == "group" and name:
        found, kept = [each for each in agents if each[1] is not None and name in each[1].groups], f"group:{name}"
        runs = f"every agent of a member of the group {name}"
    else:
        raise typer.BadParameter(f"--runner takes agent:NAME, member:NAME or group:NAME, not {runner!r}.")
    me = desk.actor.member.id
    own = kept == f"member:{me}" or (kind == "agent" and all(a.member == me for a, _ in found))
    desk.require("prepare work" if own else "prepare work for others")
    return Runners(kept, runs, found)


def plan_of(
    desk: Desk,
    caller: "Caller",
    runners: Runners,
    name: str,
    *,
    tools: Sequence[str],
    where: Sequence[str],
    uses: int,
    expires: str,
    why: str | None = None,
) -> "Plan":
    """What the command asks for, checked. `caller` shows the tools and rules of now. Raises ApprovalProblem."""
    from server.approval.work import Plan, check, covered
    from server.cli.moments import duration
    from server.cli.policy import parse_condition
    from server.clock import now_ms
    from server.policy import Condition

    if not name.strip() or len(name) > 80 or not name.isprintable():
        raise typer.BadParameter("Give the work a name of at most 80 characters, on one line.")
    if why is not None and (len(why) > 500 or not why.isprintable()):
        raise typer.BadParameter("--for-why takes one line of at most 500 characters.")
    bounds: list[Condition] = []
    for text in where:
        shape = parse_condition(text)
        value = tuple(shape["value"]) if isinstance(shape.get("value"), list) else shape.get("value")
        bounds.append(Condition(str(shape.get("argument", "")), str(shape.get("op", "")), value))  # pyright: ignore[reportArgumentType] - Condition checks it
    workspace, now = desk.installation.workspaces.of(caller), now_ms()
    offered = covered(workspace, tools)
    plan = Plan(name, offered, tuple(bounds), runners.kept, runners.runs, uses, now + duration(expires), why)
    check(plan, now)
    return plan


def prepared(desk: Desk, caller: "Caller", runners: Runners, plan: "Plan") -> "tuple[Approval, str]":
    """Write the work that waits, with the prompt that whoever decides on it reads."""
    from server.approval import ApprovalProblem
    from server.approval.work import level
    from server.prompt import WorkTool, render_work

    workspace = desk.installation.workspaces.of(caller)
    offered = {each.name: each for each in workspace.offer.tools}
    verdict = level(plan, [_subject(agent, member) for agent, member in runners.agents], workspace)
    prompt = render_work(
        name=plan.name,
        org_name=desk.org.name,
        asked_by=f"{desk.actor.member.name} ({desk.actor.known_by})",
        runs=plan.runs,
        why=plan.why,
        tools=[
            WorkTool(
                each.name,
                offered[each.name].tool,
                offered[each.name].connector.title,
                each.connection.account,
                each.connection.ownership,
                each.connection.base_url,
            )
            for each in plan.tools
        ],
        bounds=plan.bounds,
        uses=plan.uses,
        until=_iso(plan.expires_at),
    )
    desk.have_keys_at_hand()

    def write(rows: Any) -> str:
        revision = rows.execute("SELECT revision FROM org WHERE id = ?", (desk.org.id,)).fetchone()
        if revision is None or revision[0] != caller.revision:
            raise ApprovalProblem("The rules or connections have changed just now. Nothing was prepared: try again.")
        approvals = desk.installation.approvals
        return approvals.prepare(rows, desk.org.id, plan, desk.actor, verdict=verdict, prompt=prompt)

    approval = desk.database.write_now(write)
    record = desk.installation.approvals.find(desk.org.id, approval)
    if record is None:
        raise ApprovalProblem(f"{approval} was removed just now.")
    return record, prompt


def _decided_at_once(desk: Desk, record: "Approval", prompt: str, *, yes: bool) -> "tuple[State, str | None]":
    """Where who prepared the work may decide on it, they are asked now; why it waits otherwise."""
    from server.approval import Decision
    from server.cli.approvals import settle
    from server.cli.terminal import NoTerminal, ask_yes

    why_not = desk.database.query(
        lambda rows: desk.installation.approvals.why_not(rows, record, Decision.APPROVE, desk.actor)
    )
    say(prompt)
    if why_not is not None:
        return record.state, why_not
    if not yes:
        try:
            if not ask_yes(f"{prompt}\n\nApprove this work?", otherwise="Nobody could be asked here."):
                return record.state, "You have not agreed to it."
        except NoTerminal as nobody:
            return record.state, str(nobody)
    return settle(desk, record, Decision.APPROVE, unattended=yes), None


def _caller(desk: Desk, runners: Runners) -> "Caller":
    """One of the agents that the work is for, as it is now: it shows the rules and connections of now."""
    from server.approval import ApprovalProblem
    from server.identity import Frozen

    try:
        found = (desk.installation.directory.by_agent(desk.org.id, agent.id) for agent, _ in runners.agents)
        caller = next((each for each in found if each is not None), None)
    except Frozen as frozen:
        raise ApprovalProblem(str(frozen)) from None
    if caller is None:
        raise ApprovalProblem(f"There is nobody to run it yet: {runners.runs}. Create the agent first.")
    return caller


def _subject(agent: "Agent", member: "Member | None") -> "Subject":
    from server.policy import Subject

    if member is None:
        return Subject(agent.id, None, standalone=True)
    return Subject(agent.id, member.id, member.roles, member.groups)


# -- showing


def _grants(desk: Desk, *, every: bool) -> list[dict[str, Any]]:
    """What runs, or ever ran, as far as this person may see it."""
    found = desk.installation.approvals.grants(desk.org.id, every=every)
    return found if desk.may("see every approval") else _own(desk, found)


def _own(desk: Desk, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of these grants, those for this person's own agents and those that they prepared."""
    agents = desk.installation.directory.agents(desk.org.id)
    me = desk.actor.member
    own = {agent.id for agent in agents if agent.member == me.id}
    runners = {f"member:{me.id}", *(f"agent:{agent.id}" for agent in agents if agent.member == me.id)}
    runners |= {f"group:{group}" for group in me.groups}
    prepared = [one for one in found if one.get("runner") in runners or one.get("prepared_by_id") == me.id]
    return [one for one in found if one in prepared or one.get("agent_id") in own]


def _grant(desk: Desk, grant: str) -> dict[str, Any]:
    from server.approval import ApprovalProblem

    for one in _grants(desk, every=True):
        if one["id"] == grant:
            return one
    raise ApprovalProblem(f"There is no grant {grant!r}. `keyleash grant list --all` shows them.")


def _calls(desk: Desk, grant: dict[str, Any]) -> list[dict[str, Any]]:
    """Every call under a grant, from the record: what was attempted, and what came of it."""
    from server.audit import Event, append, select

    org = desk.org.id
    desk.installation.database.of(org).write_now(
        lambda rows: append(rows, org, Event.AUDIT_LISTED, selection={"grant": grant["id"]}, by=desk.by)
    )
    database, calls = desk.database, dict[int, dict[str, Any]]()
    for entry in select(database, desk.org.id, grant=grant["id"]):
        body = entry.body
        if entry.event == "call.attempt":
            known = {name: body.get(name) for name in ("agent", "member", "tool")}
            calls[entry.seq] = {"attempt": entry.seq, "at": body.get("at"), **known, "outcome": None}
        elif entry.event in ("call.outcome", "call.unknown") and body.get("attempt") in calls:
            calls[body["attempt"]]["outcome"] = body.get("outcome")
    if grant["uses"] - grant["uses_left"] < len(calls):
        warn("More calls are on record than uses were taken. Run `keyleash audit verify`.")
    return list(calls.values())


def _tools(grant: dict[str, Any]) -> str:
    return ", ".join(grant["tools"]) if "tools" in grant else grant["tool"]


def _within(grant: dict[str, Any]) -> str:
    bounds = grant["where"] if "tools" in grant else grant["bounds"]
    if bounds is None:
        return "not kept any more"
    if isinstance(bounds, dict):
        return ", ".join(f"{name} = {value}" for name, value in bounds.items())  # pyright: ignore[reportUnknownVariableType]
    return ", ".join(bounds)


def _iso(at: int) -> str:
    from server.clock import iso

    return iso(at)
