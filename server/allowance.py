"""How much of an account of the operator's an org may use: counted for each org by itself, and refused when it is used.

Calls are counted in the transaction of their attempt, tokens in that of their outcome, since only the answer says them:
the calls that are under way when these are used up go on, and the next one is refused.
"""

from server.connections import Connection
from server.database import Database, Rows
from server.errors import LimitReached
from server.managed import Managed, offered, offered_in, this_month, today
from server.usage import BOUND, Reported


def count_call(rows: Rows, connection: Connection) -> None:
    """One more call of a managed connection, in the transaction of its attempt. Raises LimitReached.

    An org's changes run one after another, so that no two calls, of whichever servers, take the same last one.
    """
    if not connection.managed:
        return
    day = today()
    counted = rows.execute(
        f"UPDATE managed_offer SET used_calls = CASE WHEN used_day < ? THEN 1 ELSE used_calls + 1 END, {_NEW_DAY} "
        f"WHERE org = ? AND id = ? AND {_LEFT}",
        (*[day] * 4, connection.org, connection.id, day, this_month()),
    )
    if counted.rowcount != 1:
        raise _refusal(offered_in(rows, connection.org, connection.name), connection)


def count_tokens(rows: Rows, connection: Connection, said: Reported) -> None:
    """Count what an answer said that it took, in the transaction of its outcome."""
    tokens = said.tokens_in + said.tokens_out
    if not connection.managed or not tokens:
        return
    day, month = today(), this_month()
    rows.execute(
        "UPDATE managed_offer SET used_calls = CASE WHEN used_day < ? THEN 0 ELSE used_calls END, "
        f"used_tokens = {_added('used_day', 'used_tokens')}, used_day = {_later('used_day')}, "
        f"used_month_tokens = {_added('used_month', 'used_month_tokens')}, used_month = {_later('used_month')} "
        "WHERE org = ? AND id = ?",
        (
            day,
            *(day, tokens, tokens, tokens, day, day),
            *(month, tokens, tokens, tokens, month, month),
            *(connection.org, connection.id),
        ),
    )


def require_left(database: Database, connection: Connection) -> None:
    """Refuse a call that could not be carried out now, before anybody is asked about it. Raises LimitReached."""
    if not connection.managed:
        return
    left = database.of(connection.org).read(
        f"SELECT 1 FROM managed_offer WHERE org = ? AND id = ? AND {_LEFT}",
        (connection.org, connection.id, today(), this_month()),
    )
    if not left:
        raise _refusal(offered(database, connection.org, connection.name), connection)


def _refusal(managed: Managed | None, connection: Connection) -> LimitReached:
    """The limit that opens again last is what the agent is told."""
    reached = managed.reached() if managed is not None else []
    return LimitReached(connection.name, reached[-1] if reached else "calls_per_day")


_LEFT = (
    "(used_day < ? OR ((calls_per_day IS NULL OR used_calls < calls_per_day) "
    "AND (tokens_per_day IS NULL OR used_tokens < tokens_per_day))) "
    "AND (used_month < ? OR tokens_per_month IS NULL OR used_month_tokens < tokens_per_month)"
)
_NEW_DAY = (
    "used_tokens = CASE WHEN used_day < ? THEN 0 ELSE used_tokens END, "
    "used_day = CASE WHEN used_day < ? THEN ? ELSE used_day END"
)


def _added(window: str, used: str) -> str:
    """As much of a window as was used, and so many more of it."""
    return f"CASE WHEN {window} < ? THEN ? WHEN {used} > {BOUND} - ? THEN {BOUND} ELSE {used} + ? END"


def _later(window: str) -> str:
    return f"CASE WHEN {window} < ? THEN ? ELSE {window} END"
