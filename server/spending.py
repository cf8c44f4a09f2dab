"""Count what calls use of their budgets, tell people when one is near its end, and hold further calls when it is there.

Calls are counted in the transaction of their attempt, under the org's lock, so that no number of them at once, on
however many servers, comes past the last one. What an answer takes is known only afterwards: tokens and stated cost are
counted then, and calls that are under way when these are used up are not stopped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.approval.outbox import put_budget
from server.audit import Event, append
from server.budgets import Budget, budgets_in, shown, window
from server.clock import iso, now_ms
from server.database import Database, Rows
from server.identity import Moved
from server.policy import Ruling, Verdict
from server.usage import Reported

_WARNED, _REACHED = 1, 2


class UsedUp(Moved):
    """A budget was used up since the verdict: the call has not begun, and is looked at again."""


@dataclass(frozen=True)
class Standing:
    """A budget in the window of now. `told` is how far people were told of this window."""

    budget: Budget
    window_at: int
    used: int
    told: int

    @property
    def up(self) -> bool:
        """Whether it is used up."""
        return self.used >= self.budget.most

    @property
    def near(self) -> bool:
        """Whether so much of it is used that people are told."""
        return self.used * 100 >= self.budget.most * self.budget.warn

    @property
    def ends_at(self) -> int:
        """When its window ends."""
        return window(self.budget.per, self.window_at)[1]

    @property
    def until_words(self) -> str:
        """What is said of it to people who may not see how much is used: until when it is used up."""
        until = iso(self.ends_at)[:16].replace("T", " ")
        return f"the budget of {self.budget} is used up until {until} UTC"

    def __str__(self) -> str:
        return f"{self.until_words} ({self.budget.amount(self.used)})"


def standings(rows: Rows, org: str, budgets: Iterable[Budget], now: int) -> list[Standing]:
    """Where these budgets stand in their windows of now."""
    found: dict[str, tuple[int, int, int]] = {
        str(budget): tuple(rest)
        for budget, *rest in rows.execute(
            "SELECT id, window_at, used, told FROM budget WHERE org = ?", (org,)
        ).fetchall()
    }
    return [_now(budget, *found[budget.id], now) for budget in budgets if budget.id in found]


def _now(budget: Budget, window_at: int, used: int, told: int, now: int) -> Standing:
    """Counted on in a window that a replica whose clock is ahead has begun; one further ahead was begun by mistake."""
    begin, end = window(budget.per, now)
    if begin <= window_at <= end:
        return Standing(budget, window_at, used, told)
    return Standing(budget, begin, 0, 0)


def all_standings(database: Database, org: str) -> list[Standing]:
    """Where every budget of an org stands now."""
    return database.of(org).snapshot(lambda rows: standings(rows, org, budgets_in(rows, org), now_ms()))


def standings_of(database: Database, org: str, budgets: Sequence[Budget]) -> list[Standing]:
    """Where these budgets stand now."""
    if not budgets:
        return []
    now = now_ms()
    return database.of(org).query(lambda rows: standings(rows, org, budgets, now))


def used_up(database: Database, org: str, budgets: Sequence[Budget]) -> Standing | None:
    """The first of these budgets that is used up now."""
    return next((one for one in standings_of(database, org, budgets) if one.up), None)


def raised(verdict: Verdict, over: Standing | None) -> Verdict:
    """The verdict on a call for which a budget is used up: somebody who is signed in agrees to it, or it does not run.

    What an approver has to agree to anyway stays as it is.
    """
    if over is None or verdict.ruling >= Ruling.APPROVE:
        return verdict
    return Verdict(Ruling.APPROVE, f"{verdict.reason} It waits, for {over}.", (*verdict.rules, over.budget.id))


# -- counted


def reserve(rows: Rows, org: str, budgets: Sequence[Budget], *, agreed: bool) -> None:
    """Count a call in the transaction of its attempt. Raises UsedUp where it is one too many and nobody has `agreed`.

    The transaction holds the org's lock, so that what is read here is what is written.
    """
    if not budgets:
        return
    now = now_ms()
    for one in standings(rows, org, budgets, now):
        if one.up and not agreed:
            raise UsedUp
        if one.budget.measure == "calls":
            _add(rows, org, one, 1)


def spend(rows: Rows, org: str, budgets: Sequence[Budget], said: Reported) -> None:
    """Count what an answer said that it took, in the transaction of its outcome, in what these budgets are by then."""
    tokens, cost = said.tokens_in + said.tokens_out, said.cost
    if not budgets or not (tokens or cost):
        return
    began_in = {one.id for one in budgets}
    present = [one for one in budgets_in(rows, org) if one.id in began_in]
    for one in standings(rows, org, present, now_ms()):
        if one.budget.measure == "tokens" and tokens:
            _add(rows, org, one, tokens)
        if one.budget.measure == "cost" and cost and said.unit == one.budget.unit:
            _add(rows, org, one, cost)


MOST_USED = 2**62
"""A column holds no more; a provider that says so much is not believed any further."""


def _add(rows: Rows, org: str, before: Standing, amount: int) -> None:
    budget = before.budget
    after = replace(before, used=min(before.used + amount, MOST_USED))
    told = _REACHED if after.up else _WARNED if after.near else 0
    rows.execute(
        "UPDATE budget SET window_at = ?, used = ?, told = ? WHERE org = ? AND id = ?",
        (after.window_at, after.used, max(told, before.told), org, budget.id),
    )
    if told > before.told:
        facts: dict[str, Any] = {**shown(budget), "used": after.used, "until": iso(after.ends_at)}
        event = Event.BUDGET_REACHED if told == _REACHED else Event.BUDGET_WARNED
        append(rows, org, event, **facts)
        amounts = {"most": budget.number(budget.most), "used": budget.number(after.used)}
        put_budget(rows, org, str(event), {**facts, **amounts, "in_words": str(budget)})
