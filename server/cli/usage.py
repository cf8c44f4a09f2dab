"""`keyleash usage`: whose key, whose bill. Every number is a count of ours, or the provider's own word."""

import csv
import io
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, at_desk, opened, require_operator
from server.cli.moments import moment
from server.cli.output import counted, plain, say, show_json, show_table, show_text, width_of

if TYPE_CHECKING:
    from server.recounting import Difference
    from server.usage import Left, Usage

DAYS = 30
_NOTE = (
    "Tokens, cost and quota are what the providers reported, blank where they reported nothing. Tokens in include "
    "cached ones. Days are UTC, and a call belongs to the day on which it began."
)

MEASURES: dict[str, tuple[Callable[["Usage"], int], str]] = {
    "calls": (lambda one: one.calls, ""),
    "errors": (lambda one: one.failed, ""),
    "held": (lambda one: one.held, ""),
    "tokens": (lambda one: one.tokens_in + one.tokens_out, ""),
    "time": (lambda one: one.milliseconds, " ms"),
    "bytes": (lambda one: one.bytes, ""),
}
"""What a chart can show, and its unit."""


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
    """Show what calls came to: how many, how long, and what the providers report. Members see their own agents'."""
    from server.usage import BY

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
            _recounted(desk, first, json=json)
            return
        found, left = _of_this_org(desk, by, first, last)
    _show(by, found, left, first, last, csv=csv, chart=chart, json=json, orgs=False)


def _day(text: str | None, days: int) -> str:
    from server.clock import now_ms
    from server.usage import day_of

    return day_of(now_ms() - days * 86_400_000) if text is None else day_of(moment(text))


_Rows = list[tuple[str, "Usage"]]
"""The name of an org, and something of its usage."""
_LeftBy = dict[tuple[str, str], list["Left"]]
"""What is left of the quotas, by connection and account."""


def _of_this_org(desk: Desk, by: str, since: str, until: str | None) -> tuple[_Rows, _LeftBy]:
    from server.usage import quotas, usage_by

    whole = desk.may("see every usage")
    if not whole:
        say(f"Of the agents that act for {desk.actor.member.name}; an owner, admin or auditor sees everybody's.")
    member = None if whole else desk.actor.member.id
    found = usage_by(desk.database, desk.org.id, by, since=since, until=until, member=member)
    left: _LeftBy = {}
    for one in quotas(desk.database, desk.org.id) if whole and by == "connection" else ():
        left.setdefault((one.connection, one.account), []).append(one)
    return [(desk.org.name, one) for one in found], left


def _of_all_orgs(by: str, since: str, until: str | None) -> _Rows:
    from server.usage import usage_by

    with opened() as installation:
        require_operator(installation, "looking at the usage of every org (`--all-orgs`)")
        return [
            (org.name, one)
            for org in installation.directory.orgs()
            for one in usage_by(installation.database, org.id, by, since=since, until=until)
        ]


# -- shown


def _show(
    by: str,
    found: _Rows,
    left: _LeftBy,
    since: str,
    until: str | None,
    *,
    csv: bool,
    chart: str | None,
    json: bool,
    orgs: bool,
) -> None:
    shown = [_as_json(by, name, one, left) for name, one in found]
    if json:
        show_json({"by": by, "since": since, "until": until, "rows": shown})
    elif csv:
        sys.stdout.write(_as_csv(shown))
    elif chart is not None:
        show_text(_as_chart(by, found, chart, orgs=orgs) or "Nothing was called.")
    else:
        _as_table(by, found, left, orgs=orgs)
        say(_NOTE)


def _as_json(by: str, org: str, one: "Usage", left: _LeftBy) -> dict[str, Any]:
    from server.budgets import money
    from server.clock import iso
    from server.usage import BY, COUNTED

    tokens = ("tokens_in", "tokens_out", "tokens_cached")
    numbers = {name: getattr(one, name) for name in COUNTED if name not in tokens}
    keys = dict(zip(BY[by], one.key, strict=True))
    shown: dict[str, Any] = {"org": org, **{name: value or None for name, value in keys.items()}, **numbers}
    shown |= {"unknown": one.unknown, **{name: getattr(one, name) if one.reported else None for name in tokens}}
    shown["cost"] = {unit: money(billionths) for unit, billionths in sorted(one.cost.items())}
    if by == "connection":
        there = left.get((keys["connection"], keys["account"]), [])
        shown["quota_left"] = {each.name: {"left": each.left, "at": iso(each.at)} for each in there}
    return shown


def _as_csv(shown: Sequence[dict[str, Any]]) -> str:
    """No cell is a formula: they stand as in an export of the log."""
    from server.audit.export import cell

    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for row in shown:
        flat = {**row, "cost": _cost(row["cost"])}
        flat |= {"quota_left": _left(row["quota_left"])} if "quota_left" in row else {}
        if not text.tell():
            writer.writerow(flat)
        writer.writerow([cell(value if value != "" else None) for value in flat.values()])
    return text.getvalue()


def _as_table(by: str, found: _Rows, left: _LeftBy, *, orgs: bool) -> None:
    heads = ("CALLS", "FAILED", "UNKNOWN", "REFUSED", "HELD", "APPROVED", "MS", "BYTES")
    heads += ("TOKENS IN", "OUT", "CACHED", "COST", *(("QUOTA LEFT",) if by == "connection" else ()))
    rows: list[tuple[object, ...]] = []
    for name, one in found:
        shown = _as_json(by, name, one, left)
        numbers = ("calls", "failed", "unknown", "refused", "held", "approved", "milliseconds", "bytes")
        row = [*([name] if orgs else []), *_named(by, one), *(shown[number] for number in numbers)]
        row += [shown["tokens_in"], shown["tokens_out"], shown["tokens_cached"], _cost(shown["cost"])]
        rows.append((*row, *([_left(shown["quota_left"])] if by == "connection" else [])))
    show_table((*(("ORG",) if orgs else ()), *_HEADS[by], *heads), rows, empty="Nothing was called.")


_HEADS: dict[str, tuple[str, ...]] = {
    "org": (),
    "member": ("MEMBER",),
    "agent": ("AGENT",),
    "connection": ("CONNECTION", "ACCOUNT", "KEY"),
    "tool": ("TOOL", "KEY"),
    "day": ("DAY",),
}


def _named(by: str, one: "Usage") -> tuple[str, ...]:
    """Its key as a person reads it: by names, and not by ids."""
    key = one.key[1:] if by in ("member", "agent") else one.key
    nothing = {"member": "(standalone)", "connection": "(none of ours)", "tool": "(none of ours)"}.get(by, "")
    return (key[0] or nothing, *key[1:]) if key else ()


def _cost(cost: dict[str, str]) -> str:
    return "; ".join(f"{amount} {unit}" for unit, amount in cost.items())


def _left(left: dict[str, Any]) -> str:
    return "; ".join(f"{one['left']} {name} at {one['at'][:16]}Z" for name, one in left.items())


def _as_chart(by: str, found: _Rows, measure: str, *, orgs: bool) -> str:
    from server.charting import FULL, PLAIN, bars

    number, unit = MEASURES[measure]
    rows = _filled(by, found) if by == "day" and not orgs else found
    labelled = [
        (plain(" ".join(filter(None, [name if orgs or by == "org" else "", *_named(by, one)]))), one)
        for name, one in rows
    ]
    width = width_of(sys.stdout) or 80
    block = FULL if _can_show(FULL) else PLAIN
    return "\n".join(
        bars([(label, number(one), f"{number(one)}{unit}") for label, one in labelled], width=width, block=block)
    )


def _filled(by: str, found: _Rows) -> _Rows:
    """Days in between on which nothing was called are days too."""
    from server.usage import Usage

    if not found:
        return []
    there = {one.key[0]: (name, one) for name, one in found}
    day, last = (datetime.fromisoformat(key).replace(tzinfo=UTC) for key in (min(there), max(there)))
    filled: _Rows = []
    while day <= last:
        key = f"{day:%Y-%m-%d}"
        filled.append(there.get(key, (found[0][0], Usage((key,)))))
        day += timedelta(days=1)
    return filled


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# -- recounted


def _recounted(desk: Desk, since: str, *, json: bool) -> None:
    """Reading the log is on record before it is read."""
    from server.audit import Event, append
    from server.recounting import differences

    desk.require("read the audit log")
    selection = {"usage_recounted_since": since}
    desk.database.write_now(
        lambda rows: append(
            rows, desk.org.id, Event.AUDIT_LISTED, by=desk.by, known_by=desk.actor.known_by, selection=selection
        )
    )
    whole, found = differences(desk.database, desk.org.id, since=since)
    if json:
        show_json({"since": whole, "differences": [_difference(one) for one in found]})
    elif found:
        for one in found:
            show_text(f"{one.day} {one.line.agent} {one.line.tool}: kept {one.kept}, the log gives {one.counted}")
        say(
            f"{counted(len(found), 'row')} of usage, from {whole} on, {'are' if len(found) > 1 else 'is'} not what the "
            "log gives. `keyleash audit verify` says whether the log itself was changed."
        )
    else:
        show_text(f"From {whole} on, every row of usage is what the log gives.")
    if whole != since and not json:
        say("The log begins later than that was asked for.")
    raise typer.Exit(1 if found else 0)


def _difference(one: "Difference") -> dict[str, Any]:
    names = ("agent", "member", "connection", "account", "ownership", "tool")
    whose = {name: getattr(one.line, name) or None for name in names}
    return {"day": one.day, **whose, "kept": one.kept, "counted": one.counted}
