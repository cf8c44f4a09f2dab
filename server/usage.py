"""Whose key, whose bill: what every call came to, added up in the very transaction that records it.

A row is a day (UTC) of one agent, member, connection, account, ownership and tool, and keeps their names when they are
gone. A call is counted on the day of its attempt; what its answer said is added when that is on record. So every number
is what a recount of the log gives (`recounting.py`), after whatever kill. Tokens, cost and quota are what the provider
itself reported, and nothing else: no estimate, no markup.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

from connectors.definition import canonical
from server.audit.entry import column
from server.clock import iso
from server.database import Database, Rows

MOST_TOKENS = 10**12
MOST_COST = 10**5
"""What one answer may report. More is a slip or a lie, and counts as nothing reported."""
MOST_QUOTAS = 32
"""Of one account: an upstream that makes up names does not make rows without end."""
BILLIONTHS = 10**9

WHO = ("agent_id", "agent", "member_id", "member")
WHAT = ("connection", "account", "ownership", "tool")
COUNTED = (
    *("calls", "approved", "refused", "held", "succeeded", "failed", "milliseconds", "bytes"),
    *("reported", "tokens_in", "tokens_out", "tokens_cached"),
)
"""The numbers of a row: `approved` of the `calls` ran by an approval of their own, `reported` are answers that said how
many tokens; `refused` and `held` were not sent and are no `calls`. What is in none of `succeeded` and `failed` is under
way, or nobody knows what became of it."""

BY: dict[str, tuple[str, ...]] = {
    "org": (),
    "member": ("member_id", "member"),
    "agent": ("agent_id", "agent"),
    "connection": ("connection", "account", "ownership"),
    "tool": ("tool", "ownership"),
    "day": ("day",),
}
"""What usage can be shown by, and the columns that tell one from another."""


@dataclass(frozen=True)
class Line:
    """Whose calls, of what, by whose account: what the rows of different days have in common."""

    agent_id: str
    agent: str
    member_id: str
    member: str
    connection: str
    account: str
    ownership: str
    tool: str
    id: str = field(init=False, compare=False)
    """A hash of all of it."""

    def __post_init__(self) -> None:
        whole = canonical([getattr(self, name) for name in (*WHO, *WHAT)])
        object.__setattr__(self, "id", hashlib.sha256(whole.encode()).hexdigest()[:32])


@dataclass(frozen=True)
class Reported:
    """What a provider says of one answer. `cost` is in billionths of `unit`; without a unit none was stated."""

    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    counts: bool = False
    cost: int = 0
    unit: str = ""


@dataclass(frozen=True)
class Slot:
    """The row that a call under way is counted in."""

    day: str
    line: Line


def line_of(entry: Mapping[str, Any]) -> Line:
    """The line of what an entry says. What was bound to no connection has no tool either: an agent may make up names.

    That keeps the rows few, whatever an agent asks for.
    """
    named = (*WHO, *WHAT) if entry.get("connection") else WHO
    return _line(tuple(entry.get(name) for name in named))


@lru_cache(maxsize=4096)
def _line(values: tuple[Any, ...]) -> Line:
    said = [column(value) or "" for value in values]
    return Line(*said, *[""] * (len(WHO) + len(WHAT) - len(said)))


def day_of(at: int) -> str:
    """The day (UTC) of a moment, `2026-11-26`."""
    return _day(at // _DAY_MS)


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    return iso(number * _DAY_MS)[:10]


_DAY_MS = 86_400_000


def moment_of(day: str) -> int:
    """When a day begins, in milliseconds."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


def reported(usage: Any) -> Reported:
    """What of an answer's `usage` counts. Anything that is no sensible number is as if it had not been said."""
    if not isinstance(usage, dict):
        return _NOTHING
    said = cast("dict[str, Any]", usage)
    tokens = [_count(said.get(name)) for name in ("tokens_in", "tokens_out", "tokens_cached")]
    cost, unit = said.get("cost"), said.get("cost_unit")
    stated = isinstance(unit, str) and isinstance(cost, int | float) and 0 <= cost <= MOST_COST
    return Reported(
        *(number or 0 for number in tokens),
        counts=any(number is not None for number in tokens),
        cost=round(cost * BILLIONTHS) if stated and cost else 0,
        unit=str(column(unit)) if stated else "",
    )


_NOTHING = Reported()


def _count(value: Any) -> int | None:
    whole = isinstance(value, int | float) and 0 <= value <= MOST_TOKENS and value == int(value)
    return int(value) if whole else None


# -- written


def attempted(rows: Rows, org: str, at: int, entry: Mapping[str, Any]) -> Slot:
    """Count a call whose attempt is written in this transaction; returns where its outcome is to be added."""
    slot = Slot(day_of(at), line_of(entry))
    _turn(rows, org, slot, calls=1, approved=1 if entry.get("approval") else 0)
    return slot


def turned_down(rows: Rows, org: str, at: int, entry: Mapping[str, Any], *, held: bool) -> None:
    """Count a call that is refused, or held for a person, in this transaction."""
    _turn(rows, org, Slot(day_of(at), line_of(entry)), refused=0 if held else 1, held=1 if held else 0)


def ended(rows: Rows, org: str, at: int, slot: Slot, facts: Mapping[str, Any], *, outcome: str) -> Reported:
    """Add what became of a call to where it was counted, in the transaction of its outcome's entry."""
    said, day, line = reported(facts.get("usage")), slot.day, slot.line.id
    rows.execute(
        _ENDED,
        (
            *(1 if outcome == "succeeded" else 0, 1 if outcome == "failed" else 0),
            *(facts.get("milliseconds") or 0, facts.get("bytes") or 0, 1 if said.counts else 0),
            *(said.tokens_in, said.tokens_out, said.tokens_cached, org, day, line),
        ),
    )
    if said.unit:
        rows.execute(_COST, (org, day, line, said.unit, said.cost, org))
    left: Mapping[str, int] = facts.get("quota") or {}
    for name, number in left.items():
        whose = (org, slot.line.connection, slot.line.account)
        rows.execute(_QUOTA, (*whose, name, number, at, *whose, name, MOST_QUOTAS, org))
    return said


def _turn(  # the numbers that an entry of its own brings
    rows: Rows, org: str, slot: Slot, *, calls: int = 0, approved: int = 0, refused: int = 0, held: int = 0
) -> None:
    line = slot.line
    rows.execute(
        _TURN,
        (
            *(org, slot.day, line.id, line.agent_id, line.agent, line.member_id, line.member),
            *(line.connection, line.account, line.ownership, line.tool, calls, approved, refused, held, org),
        ),
    )


_THERE = "EXISTS (SELECT 1 FROM org WHERE id = ?)"
"""Nothing is left of an org that was removed while its call was under way."""
_TURNS = ("calls", "approved", "refused", "held")
_TURN = (
    f"INSERT INTO usage_day (org, day, line, {', '.join((*WHO, *WHAT, *_TURNS))}) SELECT {', '.join('?' * 15)} "
    f"WHERE {_THERE} ON CONFLICT (org, day, line) DO UPDATE SET "
    + ", ".join(f"{name} = usage_day.{name} + excluded.{name}" for name in _TURNS)
)
_ENDS = tuple(name for name in COUNTED if name not in _TURNS)
_ENDED = (
    f"UPDATE usage_day SET {', '.join(f'{name} = {name} + ?' for name in _ENDS)} WHERE org = ? AND day = ? AND line = ?"
)
_COST = (
    f"INSERT INTO usage_cost (org, day, line, unit, billionths) SELECT ?, ?, ?, ?, ? WHERE {_THERE} "
    "ON CONFLICT (org, day, line, unit) DO UPDATE SET billionths = usage_cost.billionths + excluded.billionths"
)
_QUOTA = (
    "INSERT INTO usage_quota (org, connection, account, name, remaining, at) SELECT ?, ?, ?, ?, ?, ? WHERE (SELECT "
    "COUNT(*) FROM usage_quota WHERE org = ? AND connection = ? AND account = ? AND name <> ?) < ? "
    f"AND {_THERE} "
    "ON CONFLICT (org, connection, account, name) DO UPDATE SET remaining = excluded.remaining, at = excluded.at"
)


# -- read


@dataclass(frozen=True)
class Usage:
    """What calls came to, together. `key` says whose, in the columns of `BY`; `cost` is in billionths, by unit."""

    key: tuple[str, ...]
    calls: int = 0
    approved: int = 0
    refused: int = 0
    held: int = 0
    succeeded: int = 0
    failed: int = 0
    milliseconds: int = 0
    bytes: int = 0
    reported: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def unknown(self) -> int:
        """Calls of which it is not known what became of them, those under way among them."""
        return self.calls - self.succeeded - self.failed


@dataclass(frozen=True)
class Left:
    """How much was left of something, when the provider last said so (`at`, milliseconds)."""

    connection: str
    account: str
    name: str
    left: int
    at: int


def usage_by(
    database: Database, org: str, by: str, *, since: str, until: str | None = None, member: str | None = None
) -> list[Usage]:
    """An org's usage from the day `since` to before the day `until`, most calls first, days in their order.

    With `member` (an id), of the agents that act for them alone.
    """
    keys = BY[by]
    where, values = "org = ? AND day >= ?", [org, since]
    for condition, value in (("day < ?", until), ("member_id = ?", member)):
        if value is not None:
            where, values = f"{where} AND {condition}", [*values, value]
    names = "".join(f", {key}" for key in keys)
    sums = ", ".join(f"SUM({name})" for name in COUNTED)

    def read(rows: Rows) -> list[Usage]:
        found = rows.execute(f"SELECT {sums}{names} FROM usage_day WHERE {where} {_group(names)}", values)
        counted = {_texts(row[len(COUNTED) :]): [int(number or 0) for number in row[: len(COUNTED)]] for row in found}
        cost: dict[tuple[str, ...], dict[str, int]] = {}
        for total, unit, *key in rows.execute(
            f"SELECT SUM(billionths), unit{names} FROM usage_day JOIN (SELECT org AS o, day AS d, line AS l, unit, "
            f"billionths FROM usage_cost WHERE org = ?) spent ON o = org AND d = day AND l = line "
            f"WHERE {where} {_group(f', unit{names}')}",
            [org, *values],
        ):
            cost.setdefault(_texts(key), {})[str(unit)] = int(total)
        return [Usage(key, *numbers, cost=cost.get(key, {})) for key, numbers in counted.items()]

    found = database.of(org).snapshot(read)
    if by == "org" and not any(one.calls + one.refused + one.held for one in found):
        return []
    return sorted(found, key=lambda one: one.key if by == "day" else (-one.calls, one.key))


def quotas(database: Database, org: str) -> list[Left]:
    """What the providers last said is left of each quota."""
    found = database.of(org).read(
        "SELECT connection, account, name, remaining, at FROM usage_quota WHERE org = ? "
        "ORDER BY connection, account, name",
        (org,),
    )
    return [Left(*row) for row in found]


def _group(names: str) -> str:
    return f"GROUP BY {names.removeprefix(', ')}" if names else ""


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
