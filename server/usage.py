"""Whose key, whose bill: what every call came to, added up in the very transaction that records it.

A row is a day (UTC) of one agent, member, connection, account, ownership and tool, and keeps their names when they are
gone. A call is counted on the day of its attempt; what its answer said is added when that is on record. So every number
is what a recount of the log gives (`recounting.py`), after whatever kill. Tokens, cost and quota are what the provider
itself reported, and nothing else: no estimate, no markup.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

from connectors.definition import canonical
from server.audit.entry import column
from server.clock import iso
from server.database import Rows

MOST_TOKENS = 10**12
MOST_COST = 10**5
"""What one answer may report. More is a slip or a lie, and counts as nothing reported."""
MOST_QUOTAS = 32
"""Of one account: an upstream that makes up names does not make rows without end."""
MOST_UNITS = 16
"""In which one row's cost is stated; a cost in one more counts as not reported."""
BOUND = 2**62
"""What a number of a row stops at, whatever providers say: half of what a column holds, so that no addition fails."""
BILLIONTHS = 10**9

WHO = ("agent_id", "agent", "member_id", "member")
WHAT = ("connection", "account", "ownership", "tool")
COUNTED = (
    *("calls", "approved", "refused", "held", "succeeded", "failed", "milliseconds", "bytes"),
    *("reported", "unreported", "tokens_in", "tokens_out", "tokens_cached"),
)
"""The numbers of a row: `approved` of the `calls` ran by an approval of their own, `reported` are answers that said how
many tokens; `refused` and `held` were not sent and are no `calls`. What is in none of `succeeded` and `failed` is under
way, or nobody knows what became of it. `unreported` are calls that may be on the bill, whose provider is known to say
what they took, and of which that could not be read: those under way, and lost on their way, among them."""
BOUNDED = ("milliseconds", "bytes", "tokens_in", "tokens_out", "tokens_cached")
"""The numbers that grow by what others say, up to BOUND."""


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
    """What a provider says of one answer. `cost` is in billionths of `unit`; without a unit none was stated.

    `whole`: something was said, and nothing of it that makes no sense, so that a bill would be no higher.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    counts: bool = False
    cost: int = 0
    unit: str = ""
    whole: bool = False


@dataclass(frozen=True)
class Slot:
    """The row that a call under way is counted in. `awaited`: its provider is known to report what it takes."""

    day: str
    line: Line
    awaited: bool = field(default=False, compare=False)


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
    tokens = [_count(said.get(name)) for name in _TOKENS]
    cost, unit = said.get("cost"), said.get("cost_unit")
    stated = isinstance(unit, str) and isinstance(cost, int | float) and 0 <= cost <= MOST_COST
    counts = any(number is not None for number in tokens)
    lost = "unread" in said or any(
        number is None and said.get(name) is not None for number, name in zip(tokens, _TOKENS, strict=True)
    )
    return Reported(
        *(number or 0 for number in tokens),
        counts=counts,
        cost=round(cost * BILLIONTHS) if stated and cost else 0,
        unit=str(column(unit)) if stated else "",
        whole=(counts or stated) and not lost and (stated or cost is None),
    )


_NOTHING = Reported()
_TOKENS = ("tokens_in", "tokens_out", "tokens_cached")


def unreported(usage: Any, *, awaited: bool, charged: bool) -> dict[str, Any]:
    """What the record says of a call that may be on the bill where its report was `awaited`, and is not there whole."""
    return {"unreported": True} if awaited and charged and not reported(usage).whole else {}


def _count(value: Any) -> int | None:
    whole = isinstance(value, int | float) and 0 <= value <= MOST_TOKENS and value == int(value)
    return int(value) if whole else None


# -- written


def attempted(rows: Rows, org: str, at: int, entry: Mapping[str, Any]) -> Slot:
    """Count a call whose attempt is written in this transaction; returns where its outcome is to be added.

    Where its entry says `report_awaited`, it is `unreported` until that is there.
    """
    slot = Slot(day_of(at), line_of(entry), bool(entry.get("report_awaited")))
    _turn(rows, org, slot, calls=1, approved=1 if entry.get("approval") else 0, unreported=int(slot.awaited))
    return slot


def turned_down(rows: Rows, org: str, at: int, entry: Mapping[str, Any], *, held: bool) -> None:
    """Count a call that is refused, or held for a person, in this transaction."""
    _turn(rows, org, Slot(day_of(at), line_of(entry)), refused=0 if held else 1, held=1 if held else 0)


def ended(rows: Rows, org: str, at: int, slot: Slot, facts: Mapping[str, Any], *, outcome: str) -> Reported:
    """Add what became of a call to where it was counted, in the transaction of its outcome's entry."""
    said, whose = reported(facts.get("usage")), (org, slot.day, slot.line.id)
    known = slot.awaited and not facts.get("unreported")
    if said.unit:
        stated = rows.execute(_COST, (*whose, said.unit, said.cost, *whose, said.unit, MOST_UNITS, org))
        known = known and stated.rowcount == 1
    took = (
        facts.get("milliseconds") or 0,
        facts.get("bytes") or 0,
        said.tokens_in,
        said.tokens_out,
        said.tokens_cached,
    )
    rows.execute(
        _ENDED,
        (
            *(1 if outcome == "succeeded" else 0, 1 if outcome == "failed" else 0, 1 if said.counts else 0),
            *(1 if known else 0, *(each for number in took for each in (number, number)), *whose),
        ),
    )
    left: Mapping[str, int] = facts.get("quota") or {}
    for name, number in left.items():
        whose = (org, slot.line.connection, slot.line.account)
        rows.execute(_QUOTA, (*whose, name, number, at, *whose, name, MOST_QUOTAS, org))
    return said


def _turn(  # the numbers that an entry of its own brings
    rows: Rows,
    org: str,
    slot: Slot,
    *,
    calls: int = 0,
    approved: int = 0,
    refused: int = 0,
    held: int = 0,
    unreported: int = 0,
) -> None:
    line = slot.line
    rows.execute(
        _TURN,
        (
            *(org, slot.day, line.id, line.agent_id, line.agent, line.member_id, line.member),
            *(line.connection, line.account, line.ownership, line.tool, calls, approved, refused, held),
            *(unreported, org),
        ),
    )


_THERE = "EXISTS (SELECT 1 FROM org WHERE id = ?)"
"""Nothing is left of an org that was removed while its call was under way."""
_TURNS = ("calls", "approved", "refused", "held", "unreported")
_TURN = (
    f"INSERT INTO usage_day (org, day, line, {', '.join((*WHO, *WHAT, *_TURNS))}) SELECT {', '.join('?' * 16)} "
    f"WHERE {_THERE} ON CONFLICT (org, day, line) DO UPDATE SET "
    + ", ".join(f"{name} = usage_day.{name} + excluded.{name}" for name in _TURNS)
)
_ENDED = (
    "UPDATE usage_day SET succeeded = succeeded + ?, failed = failed + ?, reported = reported + ?, "
    "unreported = unreported - ?, "
    + ", ".join(f"{name} = CASE WHEN {name} > {BOUND} - ? THEN {BOUND} ELSE {name} + ? END" for name in BOUNDED)
    + " WHERE org = ? AND day = ? AND line = ?"
)
_COST = (
    "INSERT INTO usage_cost (org, day, line, unit, billionths) SELECT ?, ?, ?, ?, ? WHERE (SELECT COUNT(*) FROM "
    f"usage_cost WHERE org = ? AND day = ? AND line = ? AND unit <> ?) < ? AND {_THERE} "
    "ON CONFLICT (org, day, line, unit) DO UPDATE SET billionths = CASE WHEN usage_cost.billionths > "
    f"{BOUND} - excluded.billionths THEN {BOUND} ELSE usage_cost.billionths + excluded.billionths END"
)
_QUOTA = (
    "INSERT INTO usage_quota (org, connection, account, name, remaining, at) SELECT ?, ?, ?, ?, ?, ? WHERE (SELECT "
    "COUNT(*) FROM usage_quota WHERE org = ? AND connection = ? AND account = ? AND name <> ?) < ? "
    f"AND {_THERE} "
    "ON CONFLICT (org, connection, account, name) DO UPDATE SET remaining = excluded.remaining, at = excluded.at"
)
