"""How much may be used in an hour, a day or a month (UTC) before further calls wait for a person: made and read here.

A budget counts from when it is made; `spending.py` counts. It names agents and connections as people do, so that one
that takes another's name takes its budget as well.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from server.audit import Event, append
from server.clock import now_ms
from server.database import Rows
from server.identity import new_id, touch
from server.usage import BILLIONTHS

MEASURES = ("calls", "tokens", "cost")
WINDOWS = ("hour", "day", "month")
WARN = 80
"""Percent of a budget at which people are told."""
MOST = 100
"""Budgets of one org at most: each is read at each call that it concerns."""
LARGEST = 10**15
_UNIT = re.compile(r"[A-Z]{1,12}")


class BudgetProblem(Exception):
    """A budget cannot be made, found or changed; the message says how to mend it."""


@dataclass(frozen=True)
class Budget:
    """So much of one measure in one window; `cost` is in billionths of `unit`. An empty name means every one."""

    org: str
    id: str
    agent: str
    connection: str
    measure: str
    unit: str
    per: str
    most: int
    warn: int
    created_by: str
    created_at: int

    def concerns(self, agent: str, connection: str) -> bool:
        """Whether calls of this agent by this connection count."""
        return self.agent in ("", agent) and self.connection in ("", connection)

    def __str__(self) -> str:
        """As a person reads it: `100 calls an hour of agent reconciler`."""
        whose = [f"of agent {self.agent}"] if self.agent else []
        whose += [f"by connection {self.connection}"] if self.connection else []
        every = {"hour": "an hour", "day": "a day", "month": "a month"}[self.per]
        return f"{self.amount(self.most)} {every} {' '.join(whose) or 'of the whole organisation'}"

    def amount(self, number: int) -> str:
        """A number of its measure in words: `100 calls`, `2.5 USD`."""
        if self.measure != "cost":
            return f"{number} {self.measure}"
        return f"{money(number)} {self.unit}"

    def number(self, amount: int) -> int | float:
        """An amount of its measure for programs: a cost in its unit."""
        return money_number(amount) if self.measure == "cost" else amount


def money(billionths: int) -> str:
    """Billionths as a decimal number without an exponent.

    >>> money(2_500_000_000), money(30)
    ('2.5', '0.00000003')
    """
    whole, rest = divmod(billionths, BILLIONTHS)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def money_number(billionths: int) -> int | float:
    """Billionths as a number of their unit, for programs.

    >>> money_number(2_500_000_000), money_number(3_000_000_000)
    (2.5, 3)
    """
    return billionths / BILLIONTHS if billionths % BILLIONTHS else billionths // BILLIONTHS


def window(per: str, at: int) -> tuple[int, int]:
    """The hour, day or month (UTC) that a moment is in: its beginning and its end, in milliseconds."""
    moment = datetime.fromtimestamp(at // 1000, UTC).replace(minute=0, second=0, microsecond=0)
    if per == "hour":
        begin = moment
        end = int(begin.timestamp()) + 3600
    elif per == "day":
        begin = moment.replace(hour=0)
        end = int(begin.timestamp()) + 86_400
    else:
        begin = moment.replace(hour=0, day=1)
        following = begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
        end = int(following.timestamp())
    return int(begin.timestamp()) * 1000, end * 1000


# -- made


def create(
    rows: Rows,
    org: str,
    *,
    agent: str = "",
    connection: str = "",
    measure: str,
    unit: str = "",
    per: str,
    most: int,
    warn: int = WARN,
    by: str,
) -> Budget:
    """Make a budget, on record. Raises BudgetProblem."""
    _require_fit(measure, unit, per, most, warn)
    touch(rows, org)
    there = budgets_in(rows, org)
    if len(there) >= MOST:
        raise BudgetProblem(f"There are {MOST} budgets already, and no org has more. Remove one that is not needed.")
    now = now_ms()
    new = Budget(org, new_id("bud"), agent, connection, measure, unit, per, most, warn, by, now)
    same = [one for one in there if replace(one, id=new.id, most=most, warn=warn, created_by=by, created_at=now) == new]
    if same:
        raise BudgetProblem(f"There is one already: {same[0].id}, {same[0]}. `keyleash budget change` changes it.")
    rows.execute(
        f"INSERT INTO budget ({_COLUMNS}, window_at, used, told) VALUES ({', '.join('?' * 14)})",
        (org, new.id, agent, connection, measure, unit, per, most, warn, by, now, window(per, now)[0], 0, 0),
    )
    append(rows, org, Event.BUDGET_CREATED, **shown(new), by=by)
    return new


def change(rows: Rows, org: str, budget: str, *, most: int | None, warn: int | None, by: str) -> Budget:
    """Change how much a budget is, or when people are told; what was used stays. Raises BudgetProblem."""
    touch(rows, org)
    before = _named(rows, org, budget)
    after = replace(before, most=before.most if most is None else most, warn=before.warn if warn is None else warn)
    _require_fit(after.measure, after.unit, after.per, after.most, after.warn)
    rows.execute(
        "UPDATE budget SET most = ?, warn = ?, told = 0 WHERE org = ? AND id = ?", (after.most, after.warn, org, budget)
    )
    append(rows, org, Event.BUDGET_CHANGED, **shown(after), before={"most": before.most, "warn": before.warn}, by=by)
    return after


def remove(rows: Rows, org: str, budget: str, *, by: str) -> None:
    """Take a budget away. Raises BudgetProblem."""
    touch(rows, org)
    gone = _named(rows, org, budget)
    rows.execute("DELETE FROM budget WHERE org = ? AND id = ?", (org, budget))
    append(rows, org, Event.BUDGET_REMOVED, **shown(gone), by=by)


def _require_fit(measure: str, unit: str, per: str, most: int, warn: int) -> None:
    if measure not in MEASURES or per not in WINDOWS:
        raise BudgetProblem(f"A budget is of {', '.join(MEASURES)}, in an {', a '.join(WINDOWS)}.")
    if not 1 <= most <= LARGEST:
        raise BudgetProblem(f"A budget is from 1 to {LARGEST}, and a cost up to {LARGEST // BILLIONTHS}.")
    if not 1 <= warn <= 100:
        raise BudgetProblem(f"{warn} is no share to be told at: give percent from 1 to 100.")
    if (measure == "cost") is not bool(_UNIT.fullmatch(unit)):
        raise BudgetProblem("A cost is in the unit that the provider states, such as USD, and nothing else has one.")


def shown(budget: Budget) -> dict[str, Any]:
    """What entries and notices say of it."""
    names = ("agent", "connection", "measure", "unit", "per", "most", "warn")
    return {"budget": budget.id, **{name: getattr(budget, name) or None for name in names}}


# -- read


def budgets_in(rows: Rows, org: str) -> tuple[Budget, ...]:
    """The budgets of an org, oldest first, as this transaction sees them."""
    found = rows.execute(f"SELECT {_COLUMNS} FROM budget WHERE org = ? ORDER BY created_at, id", (org,)).fetchall()
    return tuple(Budget(*row) for row in found)


_COLUMNS = "org, id, agent, connection, measure, unit, per, most, warn, created_by, created_at"


def _named(rows: Rows, org: str, budget: str) -> Budget:
    for one in budgets_in(rows, org):
        if one.id == budget:
            return one
    raise BudgetProblem(f"There is no budget {budget!r}. `keyleash budget list` shows them.")
