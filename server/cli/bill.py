"""How usage is shown: as a table that fits, bars, CSV or JSON; each says what is missing from its sums."""

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from server.cli.output import note, plain, show_table, show_text, width_of
from server.cli.tables import GAP, wide

if TYPE_CHECKING:
    from server.totals import Left, Usage

_UNREPORTED = (
    "Unreported calls may be on the provider's bill, and what they took is not known: their answers came to an end too "
    "early, were too large to be read, or did not say. So the sums of tokens and cost may be too low."
)
_AT_BOUND = "After >= stands the most that is counted in one row: it is at least as much, by what the provider says."

MEASURES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "calls": ("Calls", ("calls",), ""),
    "errors": ("Calls that failed", ("failed",), ""),
    "held": ("Calls that were held for a person", ("held",), ""),
    "tokens": ("Tokens, in and out, as reported", ("tokens_in", "tokens_out"), ""),
    "time": ("Upstream time", ("milliseconds",), " ms"),
    "bytes": ("Bytes of answers", ("bytes",), ""),
}
"""What a chart can show: in words, which numbers of a row that is, and its unit."""

Found = list[tuple[str, "Usage"]]
"""The name of an org, and something of its usage."""
LeftBy = dict[tuple[str, str], list["Left"]]
"""What is left of the quotas, by connection and account."""


def say_of_gaps(found: Found) -> None:
    if any(one.unreported for _, one in found):
        note(_UNREPORTED)
    if any(one.at_bound for _, one in found):
        note(_AT_BOUND)


def as_json(by: str, org: str, one: "Usage", left: LeftBy) -> dict[str, Any]:
    from server.budgets import money_number
    from server.clock import iso
    from server.totals import BY
    from server.usage import COUNTED

    tokens = ("tokens_in", "tokens_out", "tokens_cached")
    numbers = {name: getattr(one, name) for name in COUNTED if name not in tokens}
    keys = dict(zip(BY[by], one.key, strict=True))
    shown: dict[str, Any] = {"org": org, **{name: value or None for name, value in keys.items()}, **numbers}
    shown |= {"unknown": one.unknown, **{name: getattr(one, name) if one.reported else None for name in tokens}}
    shown["cost"] = {unit: money_number(billionths) for unit, billionths in sorted(one.cost.items())}
    shown["at_bound"] = sorted(one.at_bound)
    if by == "connection":
        there = left.get((keys["connection"], keys["account"]), [])
        shown["quota_left"] = {each.name: {"left": each.left, "at": iso(each.at)} for each in there}
    return shown


def as_csv(by: str, shown: Sequence[dict[str, Any]]) -> str:
    """No cell is a formula: they stand as in an export of the log. Without rows its heads are there all the same."""
    from server.audit.export import cell
    from server.totals import BY, Usage

    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerow(as_json(by, "", Usage(("",) * len(BY[by])), {}))
    for row in shown:
        flat = {**row, "cost": _cost(row["cost"]), "at_bound": "; ".join(row["at_bound"])}
        flat |= {"quota_left": _left(row["quota_left"])} if "quota_left" in row else {}
        writer.writerow([cell(value if value != "" else None) for value in flat.values()])
    return text.getvalue()


def as_table(by: str, found: Found, left: LeftBy, *, orgs: bool) -> None:
    """As many columns as there is room for, and those alone in which something stands."""
    keys = (*(("ORG",) if orgs else ()), *_HEADS[by])
    rows = [{**dict(zip(keys, _keys(name, by, one, orgs=orgs), strict=True)), **_cells(one)} for name, one in found]
    wanted = [head for head in (*keys, *_COLUMNS) if head in (*keys, "CALLS") or any(row[head] for row in rows)]
    shown, dropped, heads = _fitting(wanted, rows)
    cells = [[row[head] for head in shown] for row in rows]
    prose = [head for head in heads if head == "ACCOUNT"]
    show_table(heads, cells, empty="Nothing was called.", prose=prose, right=set(heads) - {*keys, "COST"})
    for (connection, account), quotas in left.items():
        said = {one.name: {"left": one.left, "at": _iso(one.at)} for one in quotas}
        show_text(f"Left of {connection}{f' ({account})' if account else ''}: {_left(said)}")
    if dropped:
        note(f"Not shown, for want of room: {', '.join(dropped)}. --json and --csv have everything.")


_COLUMNS: dict[str, Callable[["Usage"], object]] = {
    "CALLS": lambda one: one.calls,
    "FAILED": lambda one: one.failed,
    "UNKNOWN": lambda one: one.unknown,
    "REFUSED": lambda one: one.refused,
    "HELD": lambda one: one.held,
    "APPROVED": lambda one: one.approved,
    "TIME": lambda one: f"{one.milliseconds / 1000:.1f} s" if one.milliseconds else "",
    "BYTES": lambda one: _number(one, "bytes"),
    "TOKENS IN": lambda one: _number(one, "tokens_in") if one.reported else "",
    "TOKENS OUT": lambda one: _number(one, "tokens_out") if one.reported else "",
    "CACHED": lambda one: _number(one, "tokens_cached") if one.reported else "",
    "COST": lambda one: _cost(_amounts(one)),
    "UNREPORTED": lambda one: one.unreported,
}
"""What stands in a table, from left to right."""

_LEAST = ("BYTES", "TIME", "APPROVED", "UNKNOWN", "CACHED", "REFUSED", "HELD", "FAILED")
"""What is left out first where there is no room for all."""


_SHORT = {"TOKENS IN": "IN", "TOKENS OUT": "OUT", "UNREPORTED": "UNREP."}
"""What a head is called where leaving out is not enough."""


def _cells(one: "Usage") -> dict[str, str]:
    return {head: "" if (value := show(one)) in (0, "0") else str(value) for head, show in _COLUMNS.items()}


def _number(one: "Usage", name: str) -> str:
    return f"{_least(one, name)}{getattr(one, name)}"


def _fitting(wanted: Sequence[str], rows: Sequence[dict[str, str]]) -> tuple[list[str], list[str], list[str]]:
    """The columns for which a terminal has room, those that are left out, and how the former are headed."""
    widths = {head: max(wide(plain(text)) for text in (head, *(row[head] for row in rows))) for head in wanted}
    shown, dropped, room = list(wanted), list[str](), width_of(sys.stdout)
    for head in (*_LEAST, None):
        if room is None or sum(widths[each] + len(GAP) for each in shown) - len(GAP) <= room:
            return shown, dropped, shown
        if head in shown:
            shown.remove(head)
            dropped.append(head)
    return shown, dropped, [_SHORT.get(head, head) for head in shown]


def _keys(org: str, by: str, one: "Usage", *, orgs: bool) -> tuple[str, ...]:
    return (*((org,) if orgs else ()), *_named(by, one))


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


def _cost(cost: Mapping[str, object]) -> str:
    return "; ".join(f"{amount} {unit}" for unit, amount in cost.items())


def _amounts(one: "Usage") -> dict[str, str]:
    from server.budgets import money

    return {unit: f"{_least(one, unit)}{money(billionths)}" for unit, billionths in sorted(one.cost.items())}


def _least(one: "Usage", name: str) -> str:
    return ">=" if name in one.at_bound else ""


def _iso(at: int) -> str:
    from server.clock import iso

    return iso(at)


def _left(left: dict[str, Any]) -> str:
    return "; ".join(f"{one['left']} {name} at {one['at'][:16]}Z" for name, one in left.items())


def as_chart(by: str, found: Found, measure: str, *, orgs: bool) -> str:
    from server.charting import FULL, PLAIN, bars

    _, names, unit = MEASURES[measure]
    rows = _filled(by, found) if by == "day" and not orgs else found
    labelled = [
        (plain(" ".join(filter(None, [name if orgs or by == "org" else "", *_named(by, one)]))), one)
        for name, one in rows
    ]
    block = FULL if _can_show(FULL) else PLAIN
    drawn = [(label, *_summed(one, names, unit)) for label, one in labelled]
    return "\n".join(bars(drawn, width=width_of(sys.stdout), block=block))


def _summed(one: "Usage", names: Sequence[str], unit: str) -> tuple[int, str]:
    number = sum(getattr(one, name) for name in names)
    return number, f"{'>=' if one.at_bound & set(names) else ''}{number}{unit}"


def _filled(by: str, found: Found) -> Found:
    """Days in between on which nothing was called are days too."""
    from server.totals import Usage

    if not found:
        return []
    there = {one.key[0]: (name, one) for name, one in found}
    day, last = (datetime.fromisoformat(key).replace(tzinfo=UTC) for key in (min(there), max(there)))
    filled: Found = []
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
