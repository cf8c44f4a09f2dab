"""A call with everything that was found for it. Nothing here changes, and nothing is looked up."""

from collections.abc import Callable
from dataclasses import dataclass

from connectors.definition import Call, Pace
from connectors.request import Prepared
from server.budgets import Budget
from server.connections import Connection
from server.identity import Caller
from server.policy import Verdict
from server.usage import Slot
from vault import Secret


@dataclass(frozen=True)
class Judged:
    """A call whose arguments are in form, with what the rules say of it."""

    caller: Caller
    call: Call
    connection: Connection
    verdict: Verdict


@dataclass(frozen=True)
class Bound(Judged):
    """A call that the rules do not deny, and that can be sent."""

    request: Prepared
    ruled: Verdict
    """What the rules alone say: `verdict` is stricter where a budget is used up."""
    budgets: tuple[Budget, ...]
    pace: Pace
    over: str = ""
    """Which budget is used up."""


@dataclass(frozen=True)
class Attempt:
    """A call that is on record and has not been sent. `taken` opens its credential as that was at that moment."""

    number: int
    taken: Callable[[], Secret]
    begun: float
    """By the clock of `Parts`, no later than the record says."""
    unsettled: str | None
    """What it stands under among the calls whose outcome is not known, where it runs by a grant."""
    slot: Slot
    """Where its usage is added up."""
