"""`keyleash policy …`: the org's rules, its preset, and why a call would be decided as it would."""

import json as jsonlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.identity import Caller
    from server.policy import Condition, Rule

app = typer.Typer(no_args_is_help=True, help="Rules: who may call what, and who must agree.")

_CONDITION_HELP = (
    "A condition on an argument: 'amount max 5000', 'currency in eur,usd', 'reason present', or JSON "
    '{"argument": …, "op": …, "value": …}. Operators: equals, in, min, max, prefix, glob, present. Repeatable: all '
    "must hold."
)


@app.command("list")
def list_rules(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the org's own rules and, below them, its preset's: these are asked only where none of its own matches."""
    from server.policy import load_preset
    from server.rules import rules_of

    with at_desk(org, as_member, "look around") as desk:
        own, preset = rules_of(desk.database, desk.org.id), load_preset(desk.org.preset)
        names = names_of(desk)
    if json:
        shown = {
            "preset": desk.org.preset,
            "rules": [_as_json(rule, names) for rule in own],
            "preset_rules": [_as_json(rule, names) for rule in preset],
        }
        show_json(shown)
        return
    show_table(
        ("ID", "WHO", "TOOLS", "EFFECTS", "WHEN", "THEN"),
        (_row(rule, names) for rule in (*own, *preset)),
        empty="There are no rules: nothing may be called.",
        prose=("TOOLS", "EFFECTS", "WHEN"),
        under=("EFFECTS", "WHEN"),
    )


@app.command("add")
def add_rule(
    who: Annotated[
        str,
        typer.Option(
            "--who", help="everyone, acting (agents that act for a member), role:R, member:NAME, agent:NAME or group:G."
        ),
    ],
    then: Annotated[str, typer.Option("--then", help="allow, confirm, approve or deny.")],
    tools: Annotated[
        list[str] | None,
        typer.Option(
            "--tools", metavar="GLOB", help="CONNECTION.TOOL with * and ?, such as 'stripe.*'. Repeat, or use commas."
        ),
    ] = None,
    effects: Annotated[
        list[str] | None,
        typer.Option("--effects", help="read, metered, sensitive, write, send, spend, destroy, grant."),
    ] = None,
    when: Annotated[list[str] | None, typer.Option("--when", metavar="CONDITION", help=_CONDITION_HELP)] = None,
    count: Annotated[int, typer.Option("--count", help="With approve: how many different people.")] = 1,
    approvers: Annotated[
        str | None, typer.Option("--approvers", metavar="ROLE", help="With approve: a role, or group:NAME.")
    ] = None,
    second_person: Annotated[
        bool, typer.Option("--second-person", help="With approve: not the member that the agent acts for.")
    ] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Add a rule. Among the org's own rules that match a call, the strictest wins."""
    from server.rules import add

    body: dict[str, Any] = {
        "tools": _split(tools),
        "effects": _split(effects),
        "when": [parse_condition(text) for text in when or ()],
        "then": then,
    }
    if count != 1 or approvers is not None or second_person:
        body |= {"count": count, "approvers": approvers, "second_person": second_person}
    with at_desk(org, as_member, "change rules") as desk:
        body["who"] = _by_id(desk, who)
        rule = desk.database.write_now(lambda rows: add(rows, desk.org.id, body, by=desk.by))
        for note in blind_spots(desk, rule):
            warn(note)
        warn_of_gaps(desk, [rule])
        shown = _as_json(rule, names_of(desk))
    if json:
        show_json(shown)
    else:
        show_text(f"Added {rule.id}: {rule_in_words(shown)}")


@app.command("remove")
def remove_rule(
    rule: Annotated[str, typer.Argument(metavar="ID")],
    yes: Yes = False,
    org: OrgName = None,
    as_member: AsMember = None,
) -> None:
    """Take a rule away."""
    from server.rules import RuleProblem, remove, rules_of

    with at_desk(org, as_member, "change rules") as desk:
        found = next((own for own in rules_of(desk.database, desk.org.id) if own.id == rule), None)
        if found is None:
            raise RuleProblem(f"There is no rule {rule!r}. `keyleash policy list` shows them.")
        require_yes(f"Remove {found.id}: {rule_in_words(_as_json(found, names_of(desk)))}?", yes=yes)
        desk.database.write_now(lambda rows: remove(rows, desk.org.id, rule, by=desk.by))
        show_text(f"Removed {rule}.")


@app.command("preset")
def preset(
    name: Annotated[
        str | None, typer.Argument(help="solo, default or strict; leave it out to see which it is.")
    ] = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Show or choose what is asked where none of the org's own rules matches."""
    from server.policy import load_preset
    from server.rules import set_preset

    with at_desk(org, as_member, "look around" if name is None else "change rules") as desk:
        if name is not None:
            desk.database.write_now(lambda rows: set_preset(rows, desk.org.id, name, by=desk.by))
            warn_of_gaps(desk, load_preset(name))
    if json:
        show_json({"preset": name or desk.org.preset})
    else:
        show_text(name or desk.org.preset)


@app.command("explain")
def explain_call(
    agent: Annotated[str, typer.Option("--agent", metavar="NAME", help="Who would call.")],
    tool: Annotated[str, typer.Option("--tool", metavar="NAME", help="The tool's name on the wire: CONNECTION_TOOL.")],
    args: Annotated[str, typer.Option("--args", metavar="JSON", help="The arguments, as a JSON object.")] = "{}",
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Say what would become of a call, which rules decide, and what would have to change. Nothing is called.

    `ruling` is what the rules say. Where a budget is used up, or the operator's limit, `in_force` is what becomes of
    the call until that opens again; `budgets` are those that it would count in.
    """
    arguments = _arguments(args)
    with at_desk(org, as_member, "look around") as desk:
        shown: dict[str, Any] = {"agent": agent, **_explain(desk, agent, tool, arguments)}
    if json:
        show_json(shown)
        return
    in_force = shown["in_force"]
    stricter = f"{in_force['ruling']}: {in_force['reason']}" if in_force["ruling"] != shown["ruling"] else None
    show_fields(
        {"ruling": shown["ruling"], "reason": shown["reason"], "rules": shown["rules"], "but now": stricter},
        prose=("reason", "but now"),
    )
    for note in in_force["notes"]:
        say(note)
    show_table(
        ("RULE", "FROM", "MATCHES", "BECAUSE"),
        ((one["rule"]["id"], one["source"], one["matches"], one["because"]) for one in shown["considered"]),
        empty="No rule was looked at.",
        prose=("BECAUSE",),
    )
    for looser in shown["looser"]:
        _show_looser(looser)


def _show_looser(looser: dict[str, Any]) -> None:
    """What would have to change for one outcome, each way a line."""
    show_text(f"{_TO_BE[looser['outcome']]}:")
    for way in looser["ways"]:
        changes = [f"{change['argument']} would have to {_must(change)}" for change in way["changes"]]
        show_text(f"  {'; '.join(changes)}. For instance {jsonlib.dumps(way['arguments'])}.")
    if not looser["ways"]:
        show_text(f"  {looser['because']}")
    if looser["without_rules"]:
        show_text(f"  Without {', '.join(looser['without_rules'])} this very call would be.")


_TO_BE = {"allow": "To be allowed", "confirm": "To be confirmed by a person", "approve": "To be approved by somebody"}


def _must(change: dict[str, Any]) -> str:
    if change["must"]:
        return ", and ".join(change["must"])
    return f"be {jsonlib.dumps(change['value'])}" if "value" in change else "be left out"


def parse_condition(text: str) -> dict[str, Any]:
    """`ARGUMENT OP VALUE` or a JSON object as a rule's condition. A value that is JSON is one, all else is text."""
    if text.lstrip().startswith("{"):
        found: dict[str, Any] = _object(text, "--when")
        return found
    argument, op, value = [*text.split(None, 2), "", "", ""][:3]
    if op == "present" and not value:
        return {"argument": argument, "op": op, "value": True}
    if not op or not value:
        raise typer.BadParameter(f"{text!r} is not a condition. Write ARGUMENT OP VALUE, such as 'amount max 5000'.")
    if op == "in" and not value.startswith("["):
        return {"argument": argument, "op": op, "value": [_value(one.strip()) for one in value.split(",")]}
    if op in ("prefix", "glob") and not value.startswith('"'):
        return {"argument": argument, "op": op, "value": value}
    return {"argument": argument, "op": op, "value": _value(value)}


def _value(text: str) -> Any:
    try:
        return jsonlib.loads(text)
    except ValueError:
        return text


def _split(given: Sequence[str] | None) -> list[str]:
    return [part.strip() for text in given or () for part in text.split(",") if part.strip()]


def _arguments(text: str) -> dict[str, Any]:
    return _object(text, "--args")


def _object(text: str, option: str) -> dict[str, Any]:
    try:
        found = jsonlib.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f'{option} takes a JSON object, such as {{"amount": 5000}}.')
    return dict(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - JSON


def _by_id(desk: Desk, who: str) -> str:
    """`member:ada` as rules keep it: by id, so that a name given anew inherits nothing."""
    kind, _, name = who.partition(":")
    if kind == "member" and name:
        return f"member:{desk.installation.directory.member(desk.org.id, name).id}"
    if kind == "agent" and name:
        return f"agent:{desk.installation.directory.agent(desk.org.id, name).id}"
    return who


def names_of(desk: Desk) -> dict[str, str]:
    """`member:mem_…` → `member:ada`, for everyone there is."""
    directory, org = desk.installation.directory, desk.org.id
    members = {f"member:{member.id}": f"member:{member.name}" for member in directory.members(org)}
    return members | {f"agent:{agent.id}": f"agent:{agent.name}" for agent in directory.agents(org)}


def _as_json(rule: "Rule", names: dict[str, str]) -> dict[str, Any]:
    from server.policy import dump_rule

    shown = dump_rule(rule)
    return {**shown, "who": names.get(shown["who"], shown["who"])}


def _row(rule: "Rule", names: dict[str, str]) -> tuple[str, ...]:
    shown = _as_json(rule, names)
    conditions = "; ".join(_condition(condition) for condition in rule.when)
    return (
        rule.id,
        shown["who"],
        ", ".join(rule.tools) or "*",
        ", ".join(shown["effects"]) or "any",
        conditions,
        _then(shown),
    )


def rule_in_words(shown: dict[str, Any]) -> str:
    """A dumped rule, with its `who` by name, as one line."""
    conditions = [f"{c['argument']} {c['op']} {jsonlib.dumps(c['value'])}" for c in shown["when"]]
    when = f" when {' and '.join(conditions)}" if conditions else ""
    effects = f" ({', '.join(shown['effects'])})" if shown["effects"] else ""
    return f"{shown['who']}, {', '.join(shown['tools']) or 'every tool'}{effects}{when}: {_then(shown)}"


def _then(shown: dict[str, Any]) -> str:
    if shown["then"] != "approve":
        return str(shown["then"])
    by = f" by {shown['approvers']}" if shown["approvers"] else ""
    return f"approve ({shown['count']}{by}{', a second person' if shown['second_person'] else ''})"


def _condition(condition: "Condition") -> str:
    return f"{condition.argument} {condition.op} {jsonlib.dumps(condition.value)}"


def blind_spots(desk: Desk, rule: "Rule") -> list[str]:
    """What a rule that was just added does not do, though its author may think so."""
    from fnmatch import fnmatchcase

    from server.connections import connections_of, offer_of

    connections = connections_of(desk.database, desk.org.id)
    offer = offer_of(desk.installation.catalogue, connections)
    meant = [
        offered.tool
        for offered in offer.tools
        if any(fnmatchcase(f"{offered.connection}.{offered.tool.name}", glob) for glob in rule.tools or ("*",))
        and (not rule.effects or offered.tool.effect in rule.effects)
    ]
    if not meant:
        return ["no tool of a connection there is now matches this rule; it will count once there is one."]
    known = {argument.name for tool in meant for argument in tool.arguments}
    return [
        f"none of the {len(meant)} tools that this rule names has an argument {condition.argument.split('.')[0]!r}."
        for condition in rule.when
        if condition.argument.split(".")[0] not in known
    ]


def warn_of_gaps(desk: Desk, rules: "Sequence[Rule]") -> None:
    """Say of these rules, which count from now on, where they ask for people whom nobody can ask."""
    from server.app import kept_by_one
    from server.approval.reaching import behind_one, gaps

    keeper = kept_by_one(desk.installation)
    found = desk.database.query(lambda rows: gaps(rows, desk.org.id, rules))
    if keeper is not None:
        found += desk.database.query(lambda rows: behind_one(rows, desk.org.id, rules, keeper))
    for gap in found:
        (warn if gap.grave else say)(gap.text)


def _explain(desk: Desk, name: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from connectors.errors import InvalidArguments, UnknownTool
    from server.cli.spent import in_force
    from server.explaining import explain
    from server.identity import Frozen
    from server.policy import Request
    from server.rules import RuleProblem

    agent = desk.installation.directory.agent(desk.org.id, name)
    try:
        caller = desk.installation.directory.by_agent(desk.org.id, agent.id)
    except Frozen as frozen:
        return _stopped(tool, str(frozen))
    if caller is None:
        return _stopped(tool, f"The agent {agent.name} has expired, or the member it acts for was removed.")
    workspace = desk.installation.workspaces.of(caller)
    try:
        call = workspace.offer.bind(tool, arguments)
    except UnknownTool as unknown:
        if unknown.near:
            raise
        raise RuleProblem(
            f"There is no tool {tool[:80]!a}. `keyleash connector show CONNECTOR` lists a connector's tools."
        ) from None
    effect = call.tool.effect
    if not caller.narrowing.admits(call.connection, call.tool.name, effect.value):
        return _stopped(tool, f"The agent {agent.name} is narrowed to other tools.")
    request = Request(call.connection, call.tool.name, effect, call.arguments)

    def fit(given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        try:
            return workspace.offer.bind(tool, given).arguments
        except InvalidArguments:
            return None

    found = explain(_subject(caller), request, workspace.rules, workspace.preset, fit=fit)
    found |= in_force(desk, workspace, call, ruling=found["ruling"], agent=agent.name)
    names = names_of(desk)
    for one in found["considered"]:
        one["rule"]["who"] = names.get(one["rule"]["who"], one["rule"]["who"])
    return found


def _subject(caller: "Caller") -> Any:
    from server.reach import subject

    return subject(caller)


def _stopped(tool: str, reason: str) -> dict[str, Any]:
    """What `explain` says where no rule is asked at all."""
    say("No rule was asked.")
    now = {"ruling": "deny", "reason": reason}
    nothing: dict[str, Any] = {name: [] for name in ("rules", "considered", "looser", "budgets")}
    return {"tool": tool, **now, **nothing, "in_force": {**now, "notes": []}}
