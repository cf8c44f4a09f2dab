"""`keyleash budget …`: how much may be used before further calls wait for a person. Only owners and admins set it."""

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk
from server.cli.output import say, show_json, show_table, show_text
from server.cli.output import warn as warn_of
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.budgets import Budget
    from server.spending import Standing

app = typer.Typer(no_args_is_help=True, help="How much may be used before further calls wait for a person.")

Calls = Annotated[int | None, typer.Option("--calls", metavar="N", help="So many calls.")]
Tokens = Annotated[
    int | None, typer.Option("--tokens", metavar="N", help="So many tokens, in and out, as the provider reports them.")
]
Cost = Annotated[
    str | None, typer.Option("--cost", metavar="AMOUNT", help="So much of what the provider states, such as 50USD.")
]
Warn = Annotated[int | None, typer.Option("--warn", metavar="PERCENT", help="The share at which people are told; 80.")]
Id = Annotated[str, typer.Argument(metavar="ID")]
_MONEY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([A-Za-z]{1,12})")


@app.command("create")
def create_budget(
    per: Annotated[str, typer.Option("--per", help="hour, day or month, by the calendar, in UTC.")],
    calls: Calls = None,
    tokens: Tokens = None,
    cost: Cost = None,
    agent: Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Of this agent alone.")] = None,
    connection: Annotated[
        str | None, typer.Option("--connection", metavar="NAME", help="By this connection alone.")
    ] = None,
    warn: Warn = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Set a budget; of the whole organisation, unless you name an agent, a connection or both. It counts from now.

    When the share is used, channels are told and the log says so. When all of it is, every further call that it
    concerns waits until an approver, admin or owner agrees to that call, whatever the rules and grants allow.
    """
    from server.budgets import WARN, create

    measure, most, unit = _amount(calls, tokens, cost)
    with at_desk(org, as_member, "manage budgets") as desk:
        _require_there(desk, agent, connection)
        silent = _silent(desk, connection, measure)
        made = desk.database.write_now(
            lambda rows: create(
                rows,
                desk.org.id,
                agent=agent or "",
                connection=connection or "",
                measure=measure,
                unit=unit,
                per=per,
                most=most,
                warn=WARN if warn is None else warn,
                by=desk.by,
            )
        )
    if silent:
        warn_of(silent)
    if json:
        show_json(_as_json(made))
        return
    show_text(f"{made.id}: {made}. It counts from now; at {made.warn} % people are told.")
    if measure != "calls":
        say(
            "How much a call takes is known only afterwards: calls that are under way when it is used up may exceed it."
        )


@app.command("list")
def list_budgets(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the budgets, and how much of each is used; of what others use, who may see their usage is told how much.

    With --json, `most` and `used` are whole numbers of calls or tokens, and of a cost a number in its `unit`; moments
    are ISO 8601 in UTC.
    """
    from server.clock import iso
    from server.spending import all_standings

    with at_desk(org, as_member, "look around") as desk:
        found = all_standings(desk.database, desk.org.id)
        mine = own_agents(desk)
    if json:
        show_json([standing_as_json(one, mine) for one in found])
        return
    show_table(
        ("ID", "OF", "BUDGET", "USED", "STATUS"),
        (
            (
                *(one.budget.id, _whose(one.budget), _budget(one.budget)),
                *(_used(one) if mine is None or one.budget.agent in mine else None, _status(one)),
            )
            for one in found
        ),
        empty="There is no budget. `keyleash budget create` sets one.",
        right=("USED",),
    )
    for one in found:
        if one.up:
            until = iso(one.ends_at)[:16].replace("T", " ")
            say(f"{one.budget.id} is used up until {until} UTC: every further call waits for an approver.")
    if found:
        say("Hours, days and months are those of the calendar, in UTC.")


@app.command("change")
def change_budget(
    identifier: Id,
    calls: Calls = None,
    tokens: Tokens = None,
    cost: Cost = None,
    warn: Warn = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Make a budget larger or smaller, with effect on the next call. What is used of it stays used."""
    from server.budgets import BudgetProblem, budgets_in, change

    amount = None if (calls, tokens, cost) == (None, None, None) and warn is not None else _amount(calls, tokens, cost)
    with at_desk(org, as_member, "manage budgets") as desk:
        for one in desk.database.query(lambda rows: budgets_in(rows, desk.org.id)):
            if one.id == identifier and amount is not None and (amount[0], amount[2]) != (one.measure, one.unit):
                raise BudgetProblem(f"{one.id} is of {one.unit or one.measure}. Nothing was changed.")
        most = None if amount is None else amount[1]
        changed = desk.database.write_now(
            lambda rows: change(rows, desk.org.id, identifier, most=most, warn=warn, by=desk.by)
        )
    if json:
        show_json(_as_json(changed))
    else:
        show_text(f"{changed.id}: {changed}; at {changed.warn} % people are told.")


@app.command("remove")
def remove_budget(
    identifier: Id, yes: Yes = False, org: OrgName = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Take a budget away: nothing waits for it any more."""
    from server.budgets import remove

    with at_desk(org, as_member, "manage budgets") as desk:
        require_yes(f"Remove the budget {identifier}?", yes=yes)
        desk.database.write_now(lambda rows: remove(rows, desk.org.id, identifier, by=desk.by))
    if json:
        show_json({"id": identifier, "removed": True})
    else:
        show_text(f"Removed {identifier}.")


def own_agents(desk: Desk) -> set[str] | None:
    """The names of the agents whose usage this person may see; None for every one's."""
    if desk.may("see every usage"):
        return None
    agents = desk.installation.directory.agents(desk.org.id)
    return {one.name for one in agents if one.member == desk.actor.member.id}


def _amount(calls: int | None, tokens: int | None, cost: str | None) -> tuple[str, int, str]:
    """What was given: the measure, how much, and its unit."""
    if sum(one is not None for one in (calls, tokens, cost)) != 1:
        raise typer.BadParameter("Say how much: one of --calls, --tokens and --cost.")
    if cost is None:
        return ("calls", calls, "") if calls is not None else ("tokens", tokens or 0, "")
    match = _MONEY.fullmatch(cost.strip())
    if match is None:
        raise typer.BadParameter(f"--cost {cost!r} is no amount. Write the number and the provider's unit: 50USD.")
    try:
        return "cost", int(Decimal(match[1]) * 10**9), match[2].upper()
    except InvalidOperation:
        raise typer.BadParameter(f"--cost {cost!r} is no amount.") from None


def _require_there(desk: Desk, agent: str | None, connection: str | None) -> None:
    """A name that there is not would bound nothing. Raises IdentityProblem or ConnectionProblem."""
    from server.connections import connection_named
    from server.identity import IdentityProblem

    if agent is not None and agent not in {one.name for one in desk.installation.directory.agents(desk.org.id)}:
        raise IdentityProblem(f"There is no agent called {agent!r}. `keyleash agent list` shows them.")
    if connection is not None:
        connection_named(desk.database, desk.org.id, connection)


def _silent(desk: Desk, name: str | None, measure: str) -> str:
    """Why nothing would count in such a budget, where no connector's file says that its provider reports it."""
    from server.connections import connection_named, connections_of

    if measure == "calls":
        return ""
    own = desk.database, desk.org.id
    found = connections_of(*own) if name is None else [connection_named(*own, name)]
    known = desk.installation.catalogue.connectors
    tools = [tool for one in found if one.connector in known for tool in known[one.connector].tools.values()]
    reports = [tool.output_usage.text for tool in tools if tool.output_usage is not None]
    if any(measure == "tokens" or "cost" in each for each in reports):
        return ""
    what = "tokens" if measure == "tokens" else "a cost"
    return (
        f"Nothing counts in this budget yet: no tool of {name or 'your connections'} is known to report {what}. A "
        "budget of --calls holds anything; a connector's file says what is reported (`output.usage`)."
    )


def standing_as_json(one: "Standing", mine: set[str] | None) -> dict[str, Any]:
    """A budget and where it stands; how much is used of it to who may see that: `mine` as `own_agents` gives it."""
    from server.clock import iso

    used = one.budget.number(one.used) if mine is None or one.budget.agent in mine else None
    return {**_as_json(one.budget), "used": used, "status": _status(one), "until": iso(one.ends_at)}


def _whose(one: "Budget") -> str:
    named = [f"agent {one.agent}"] if one.agent else []
    named += [f"connection {one.connection}"] if one.connection else []
    return ", ".join(named) or "everything"


def _budget(one: "Budget") -> str:
    return f"{one.amount(one.most)}/{one.per}"


def _used(one: "Standing") -> str:
    from server.budgets import money

    return money(one.used) if one.budget.measure == "cost" else str(one.used)


def _status(one: "Standing") -> str:
    return "used up" if one.up else "near end" if one.near else "ok"


def _as_json(one: "Budget") -> dict[str, Any]:
    from server.clock import iso

    return {
        "id": one.id,
        "agent": one.agent or None,
        "connection": one.connection or None,
        "measure": one.measure,
        "unit": one.unit or None,
        "per": one.per,
        "most": one.number(one.most),
        "warn": one.warn,
        "created_by": one.created_by,
        "created_at": iso(one.created_at),
    }
