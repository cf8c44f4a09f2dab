"""Count usage anew from the log alone, and say where the rows of usage differ: nobody need take their word."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from server.audit import Entry, Event, select
from server.database import Database, Rows
from server.usage import (
    BOUND,
    BOUNDED,
    COUNTED,
    MOST_UNITS,
    WHAT,
    WHO,
    Line,
    Slot,
    day_of,
    line_of,
    moment_of,
    reported,
)


@dataclass
class Tally:
    """The numbers of one row, by their names; `cost` in billionths, by unit."""

    counts: Counter[str] = field(default_factory=Counter[str])
    cost: Counter[str] = field(default_factory=Counter[str])

    def shown(self) -> dict[str, int]:
        """The counts that are not zero."""
        return {name: number for name, number in self.counts.items() if number}


@dataclass(frozen=True)
class Difference:
    """A row of usage that is not what the log says."""

    day: str
    line: Line
    kept: Tally
    counted: Tally


def counted(entries: Iterable[Entry]) -> dict[Slot, Tally]:
    """What these entries, in their order, come to."""
    found: dict[Slot, Tally] = {}
    under_way: dict[int, Slot] = {}
    for entry in entries:
        if entry.event not in _COUNTS:
            continue
        body = entry.body
        if entry.event == Event.CALL_OUTCOME:
            slot = under_way.pop(body.get("attempt", 0), None)
            if slot is not None:
                _end(found[slot], body, awaited=slot.awaited)
            continue
        slot = Slot(day_of(entry.at), line_of(body), bool(body.get("report_awaited")))
        tally = found.setdefault(slot, Tally())
        tally.counts[_COUNTS[entry.event]] += 1
        if entry.event == Event.CALL_ATTEMPT:
            under_way[entry.seq] = slot
            tally.counts["approved"] += 1 if body.get("approval") else 0
            tally.counts["unreported"] += slot.awaited
    return found


_COUNTS = {
    Event.CALL_ATTEMPT.value: "calls",
    Event.CALL_REFUSED.value: "refused",
    Event.CALL_HELD.value: "held",
    Event.CALL_OUTCOME.value: "",
}


def _end(tally: Tally, body: dict[str, Any], *, awaited: bool) -> None:
    said = reported(body.get("usage"))
    known = awaited and not body.get("unreported")
    if body.get("outcome") in ("succeeded", "failed"):
        tally.counts[body["outcome"]] += 1
    for name in BOUNDED:
        number = getattr(said, name) if name.startswith("tokens") else body.get(name) or 0
        tally.counts[name] = min(tally.counts[name] + number, BOUND)
    tally.counts["reported"] += said.counts
    if said.unit in tally.cost or (said.unit and len(tally.cost) < MOST_UNITS):
        tally.cost[said.unit] = min(tally.cost[said.unit] + said.cost, BOUND)
    elif said.unit:
        known = False
    tally.counts["unreported"] -= known


def kept(rows: Rows, org: str, since: str) -> dict[Slot, Tally]:
    """The rows of usage from a day on."""
    found: dict[Slot, Tally] = {}
    slots: dict[tuple[str, str], Slot] = {}
    names = (*WHO, *WHAT)
    for day, line, *rest in rows.execute(
        f"SELECT day, line, {', '.join((*names, *COUNTED))} FROM usage_day WHERE org = ? AND day >= ?", (org, since)
    ).fetchall():
        slots[day, line] = slot = Slot(day, Line(*rest[: len(names)]))
        found[slot] = Tally(Counter(dict(zip(COUNTED, map(int, rest[len(names) :]), strict=True))))
    for day, line, unit, billionths in rows.execute(
        "SELECT day, line, unit, billionths FROM usage_cost WHERE org = ? AND day >= ?", (org, since)
    ).fetchall():
        found[slots[day, line]].cost[unit] += billionths
    return found


class _Moment:
    """The log as one snapshot sees it."""

    def __init__(self, rows: Rows, org: str) -> None:
        self._rows, self.org = rows, org

    def read(self, sql: str, params: Any = (), /) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._rows.execute(sql, params).fetchall()
        return found


def differences(database: Database, org: str, *, since: str) -> tuple[str, list[Difference]]:
    """Where the rows of usage, from a day on, are not what the log gives: both are of one moment.

    Returns the day from which could be counted as well: where the beginning of the log is gone, that is the day after
    its first entry's.
    """

    def read(rows: Rows) -> tuple[str, list[Difference]]:
        whole = _whole_from(rows, org, since)
        # What ends a call of an earlier day finds no attempt here, and is not counted: nor is it in these rows.
        made = counted(select(_Moment(rows, org), org, since=moment_of(whole)))
        there = kept(rows, org, whole)
        found = [
            Difference(slot.day, slot.line, there.get(slot, Tally()), made.get(slot, Tally()))
            for slot in sorted({*there, *made}, key=lambda slot: (slot.day, slot.line.id))
        ]
        return whole, [one for one in found if one.kept != one.counted]

    return database.of(org).snapshot(read)


def _whole_from(rows: Rows, org: str, since: str) -> str:
    first = rows.execute("SELECT seq, at FROM audit_entry WHERE org = ? ORDER BY seq LIMIT 1", (org,)).fetchone()
    if first is None or first[0] == 1:
        return since
    return max(since, day_of(first[1] + 86_400_000))
