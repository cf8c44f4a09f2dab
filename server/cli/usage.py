"""`keyleash usage`: whose key, whose bill. Every number is a count of ours, or the provider's own word."""

import sys
from typing import Annotated

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, at_desk, opened, require_operator
from server.cli.bill import MEASURES, Found, LeftBy, as_chart, as_csv, as_json, as_table, say_of_gaps
from server.cli.moments import moment
from server.cli.output import note, say, show_json, show_text
from server.cli.recounted import recounted

DAYS = 30
_NOTE = (
    "Tokens, cost and quota are what the providers reported, blank where they reported nothing. Tokens in include "
    "cached ones. Days are UTC, and a call belongs to the day on which it began."
)


def usage(
    by: Annotated[str, typer.Option("--by", help="org, member, agent, connection, tool or day.")] = "connection",
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From that day on, such as 2026-11-23 or 7d; 30 days.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before that day.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else.")] = False,
    chart: Annotated[
        str | None, typer.Option("--chart", metavar="WHAT", help=f"Draw bars instead: {', '.join(MEASURES)}.")
    ] = None,
    recount: Annotated[
        bool, typer.Option("--recount", help="Count it anew from the log; exit code 1 where the two differ.")
    ] = False,
    all_orgs: Annotated[bool, typer.Option("--all-orgs", help="Of every org. The operator's.")] = False,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Show what calls came to: how many, how long, and what the providers report. Members see their own agents'.

    With --json and --csv, times are milliseconds, days and moments ISO 8601 in UTC, tokens whole numbers, and a cost is
    a number in the unit that the provider states, with that unit. What nobody reported is null, or empty. `unreported`
    calls may be on the bill without being in tokens and cost; of what is `at_bound` there is at least as much.
    """
    from server.totals import BY

    if by not in BY:
        raise typer.BadParameter(f"--by {by!r} is none of {', '.join(BY)}.")
    if chart is not None and chart not in MEASURES:
        raise typer.BadParameter(f"--chart {chart!r} is none of {', '.join(MEASURES)}.")
    if sum((csv, json, chart is not None, recount and not json)) > 1:
        raise typer.BadParameter("--csv, --json, --chart and --recount each print something else: give one.")
    first, last = _day(since, DAYS), None if until is None else _day(until, 0)
    if all_orgs:
        if org is not None or as_member is not None or recount:
            raise typer.BadParameter("--all-orgs goes with neither --org, --as nor --recount.")
        _show(by, _of_all_orgs(by, first, last), {}, first, last, csv=csv, chart=chart, json=json, orgs=True)
        return
    with at_desk(org, as_member, "look around") as desk:
        if recount:
            recounted(desk, first, json=json)
            return
        found, left = _of_this_org(desk, by, first, last)
    _show(by, found, left, first, last, csv=csv, chart=chart, json=json, orgs=False)


def _day(text: str | None, days: int) -> str:
    from server.clock import now_ms
    from server.usage import day_of

    return day_of(now_ms() - days * 86_400_000) if text is None else day_of(moment(text))


def _of_this_org(desk: Desk, by: str, since: str, until: str | None) -> tuple[Found, LeftBy]:
    from server.totals import quotas, usage_by

    whole = desk.may("see every usage")
    if not whole:
        say(f"Of the agents that act for {desk.actor.member.name}; an owner, admin or auditor sees everybody's.")
    member = None if whole else desk.actor.member.id
    found = usage_by(desk.database, desk.org.id, by, since=since, until=until, member=member)
    left: LeftBy = {}
    for one in quotas(desk.database, desk.org.id) if whole and by == "connection" else ():
        left.setdefault((one.connection, one.account), []).append(one)
    return [(desk.org.name, one) for one in found], left


def _of_all_orgs(by: str, since: str, until: str | None) -> Found:
    from server.totals import usage_by

    with opened() as installation:
        require_operator(installation, "looking at the usage of every org (`--all-orgs`)")
        return [
            (org.name, one)
            for org in installation.directory.orgs()
            for one in usage_by(installation.database, org.id, by, since=since, until=until)
        ]


def _show(
    by: str,
    found: Found,
    left: LeftBy,
    since: str,
    until: str | None,
    *,
    csv: bool,
    chart: str | None,
    json: bool,
    orgs: bool,
) -> None:
    shown = [as_json(by, name, one, left) for name, one in found]
    if json:
        show_json({"by": by, "since": since, "until": until, "rows": shown})
    elif csv:
        sys.stdout.write(as_csv(by, shown))
    elif chart is not None:
        show_text(as_chart(by, found, chart, orgs=orgs) or "Nothing was called.")
        say(f"{MEASURES[chart][0]}; by {by}, from {since} to {f'before {until}' if until else 'now'} (UTC).")
    else:
        as_table(by, found, left, orgs=orgs)
        note(_NOTE)
    if not (csv or json):
        say_of_gaps(found)
