"""What of a call is decided by what was used before it: budgets, and the operator's limits. For `policy explain`."""

from typing import TYPE_CHECKING, Any

from server.cli.acting import Desk
from server.cli.budget import own_agents, standing_as_json

if TYPE_CHECKING:
    from connectors.definition import Call
    from server.connections import Connection, Workspace


def in_force(desk: Desk, workspace: "Workspace", call: "Call", *, ruling: str, agent: str) -> dict[str, Any]:
    """The budgets that a call of this agent counts in, and what becomes of it now, whatever the rules' `ruling` is.

    `notes` name what is nearly used up, and what is and changes nothing.
    """
    from server.spending import standings_of

    connection = workspace.connections[call.connection]
    found = standings_of(desk.database, desk.org.id, workspace.budgets_of(agent, connection.name))
    mine = own_agents(desk)
    notes = [_near(str(one.budget), one.budget.id) for one in found if one.near and not one.up]
    up = [one for one in found if one.up]
    now = {"ruling": ruling, "reason": "As the rules say."}
    closed = None if ruling == "deny" else _closed(desk, connection)
    if closed is not None:
        now = {"ruling": "deny", "reason": closed}
    elif up and ruling in ("allow", "confirm"):
        now = {"ruling": "approve", "reason": " ".join(f"{_up(one.until_words, one.budget.id)}" for one in up) + _WAITS}
    else:
        notes += [f"{_up(one.until_words, one.budget.id)} That makes this call no stricter." for one in up]
    return {"budgets": [standing_as_json(one, mine) for one in found], "in_force": {**now, "notes": notes}}


_WAITS = (
    " So this call waits until an approver, admin or owner agrees to it outside the client, whatever rules and grants "
    "allow."
)


def _up(words: str, budget: str) -> str:
    return f"T{words[1:]} ({budget})."


def _near(budget: str, identifier: str) -> str:
    return (
        f"The budget of {budget} ({identifier}) is near its end: once it is used up, such a call waits until an "
        "approver, admin or owner agrees to it."
    )


def _closed(desk: Desk, connection: "Connection") -> str | None:
    """Why no call by an account of the operator's is carried out now."""
    from server.managed import offered

    found = offered(desk.database, desk.org.id, connection.name) if connection.managed else None
    reached = [name.replace("_per_", " a ") for name in found.reached()] if found is not None else []
    if not reached:
        return None
    return (
        f"The operator's limit of {' and of '.join(reached)} is reached: such a call is refused until it opens again."
    )
