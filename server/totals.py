"""What calls came to, added up by org, member, agent, connection, tool or day: the rows of `usage.py`, read.

No sum fails, whatever providers have said: a total may be more than a column holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from server.database import Database, Rows
from server.usage import BOUND, BOUNDED, COUNTED

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
class Usage:
    """What calls came to, together. `key` says whose, in the columns of `BY`; `cost` is in billionths, by unit.

    Of what is in `at_bound`, by name or unit, a row holds no more: the number is the least that it can be.
    """

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
    unreported: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost: Mapping[str, int] = field(default_factory=dict[str, int])
    at_bound: frozenset[str] = frozenset()

    @property
    def unknown(self) -> int:
        """Calls of which it is not known what became of them, those under way among them.

        And those that a wrapped server has not begun, since it wanted answers first: with these the call is another.
        """
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

    def read(rows: Rows) -> list[Usage]:
        found: dict[tuple[str, ...], Usage] = {}
        for row in rows.execute(f"SELECT {_SUMS}{names} FROM usage_day WHERE {where} {_group(names)}", values):
            numbers, key = row[:_SUMMED], _texts(row[_SUMMED:])
            totals = [_whole(*numbers[at : at + 2]) for at in range(0, 2 * len(COUNTED), 2)]
            hits = zip(BOUNDED, numbers[2 * len(COUNTED) :], strict=True)
            found[key] = Usage(key, *totals, cost={}, at_bound=frozenset(name for name, hit in hits if hit))
        for high, low, hit, unit, *key in rows.execute(
            f"SELECT {_summed('billionths')}, {_hit('billionths')}, unit{names} FROM usage_day JOIN (SELECT org AS o, "
            "day AS d, line AS l, unit, billionths FROM usage_cost WHERE org = ?) spent ON o = org AND d = day AND "
            f"l = line WHERE {where} {_group(f', unit{names}')}",
            [org, *values],
        ):
            one = found[_texts(key)]
            full = one.at_bound | {str(unit)} if hit else one.at_bound
            found[one.key] = replace(one, cost={**one.cost, str(unit): _whole(high, low)}, at_bound=full)
        return list(found.values())

    found = database.of(org).snapshot(read)
    if not any(one.calls + one.refused + one.held for one in found):
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


def _summed(name: str) -> str:
    """The sum of a column in two halves, since SQLite adds up no more than 63 bits hold."""
    return f"SUM({name} / {_HALF}), SUM({name} - {name} / {_HALF} * {_HALF})"


def _hit(name: str) -> str:
    return f"MAX(CASE WHEN {name} >= {BOUND} THEN 1 ELSE 0 END)"


def _whole(high: Any, low: Any) -> int:
    return int(high or 0) * _HALF + int(low or 0)


_HALF = 10**9
_SUMS = ", ".join([*map(_summed, COUNTED), *map(_hit, BOUNDED)])
_SUMMED = 2 * len(COUNTED) + len(BOUNDED)


def _group(names: str) -> str:
    return f"GROUP BY {names.removeprefix(', ')}" if names else ""


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)
