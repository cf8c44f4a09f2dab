"""How much an agent may ask of people: whoever is asked too often stops reading, and agrees.

Nothing that is agreed to in between starts any of these counts anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.database import Rows
from server.errors import Refused
from server.identity import Caller

HOUR_MS = 60 * 60 * 1000
DENIALS_MS = 15 * 60 * 1000


@dataclass(frozen=True)
class Bounds:
    """`waiting` at once; `denials` within `DENIALS_MS`; `unagreed` within an hour: asked, and not agreed to."""

    waiting: int
    denials: int
    unagreed: int


OF_AN_AGENT = Bounds(waiting=20, denials=10, unagreed=60)
OF_A_MEMBER = Bounds(waiting=50, denials=25, unagreed=150)
"""Through however many agents that act for them; the standalone agents of an org, who act for nobody, are as one."""


def require_bearable(rows: Rows, caller: Caller, now: int) -> None:
    """Refuse one more question to people where there were too many. Raises Refused."""
    theirs = ("member = ?", (caller.member,)) if caller.member is not None else ("member IS NULL", ())
    for whose, bounds, (where, values) in (
        ("this agent", OF_AN_AGENT, ("agent = ?", (caller.agent,))),
        ("the member that it acts for" if caller.member else "standalone agents", OF_A_MEMBER, theirs),
    ):
        waiting = _count(rows, caller.org, f"{where} AND state = 'pending'", values)
        if waiting >= bounds.waiting:
            raise Refused(f"{waiting} calls of {whose} already wait for a person")
        denied = _count(
            rows,
            caller.org,
            f"{where} AND state = 'denied' AND created_at > ? AND changed_at > ?",
            (*values, now - DENIALS_MS - HOUR_MS, now - DENIALS_MS),
        )
        if denied >= bounds.denials:
            raise Refused(f"{denied} calls of {whose} were denied within a quarter of an hour: it pauses for a while")
        unagreed = _count(
            rows,
            caller.org,
            f"{where} AND state IN ('pending', 'denied', 'expired', 'cancelled') AND created_at > ?",
            (*values, now - HOUR_MS),
        )
        if unagreed >= bounds.unagreed:
            raise Refused(f"{unagreed} calls of {whose} were put to people within an hour, and not agreed to")


def _count(rows: Rows, org: str, where: str, values: Sequence[Any]) -> int:
    found = rows.execute(
        f"SELECT COUNT(*) FROM approval WHERE org = ? AND work IS NULL AND {where}", (org, *values)
    ).fetchone()
    return int(found[0])
