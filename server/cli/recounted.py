"""`keyleash usage --recount`: usage counted anew from the log, and where the two differ."""

from typing import TYPE_CHECKING, Any

import typer

from server.cli.acting import Desk
from server.cli.output import counted, say, show_json, show_text

if TYPE_CHECKING:
    from server.recounting import Difference, Tally


def recounted(desk: Desk, since: str, *, json: bool) -> None:
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
            show_text(f"{one.day} {one.line.agent} {one.line.tool}: {_differing(one)}")
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
    return {"day": one.day, **whose, "kept": _tally(one.kept), "counted": _tally(one.counted)}


def _tally(tally: "Tally") -> dict[str, Any]:
    from server.budgets import money_number

    return {**tally.shown(), "cost": {unit: money_number(number) for unit, number in tally.cost.items() if number}}


def _differing(one: "Difference") -> str:
    """The numbers that are not the same, `calls 4 and by the log 3`."""
    from server.budgets import money

    counts = {
        name: (one.kept.counts[name], one.counted.counts[name]) for name in (*one.kept.counts, *one.counted.counts)
    }
    costs = {unit: (one.kept.cost[unit], one.counted.cost[unit]) for unit in (*one.kept.cost, *one.counted.cost)}
    said = [f"{name} {kept} and by the log {counted}" for name, (kept, counted) in counts.items() if kept != counted]
    said += [f"cost {money(k)} {unit} and by the log {money(c)} {unit}" for unit, (k, c) in costs.items() if k != c]
    return "; ".join(said)
