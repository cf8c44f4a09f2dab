"""Hold a call until a person agrees to exactly that call.

The record in the database is the authority: it moves by compare-and-set only, and one approval executes at most once,
whatever is replayed, on however many processes. Read `gate.py` first.
"""

from server.approval.gate import Approvals
from server.approval.grants import GRANT_USES
from server.approval.record import (
    CLOCKS_APART_MS,
    LOST_MS,
    STATE_TTL_S,
    Approval,
    ApprovalProblem,
    Asked,
    Before,
    Clearance,
    Decision,
    Lost,
    Person,
    State,
    last_done,
    still_enough,
    sweep,
)
from server.approval.tending import tending
from server.approval.unknown import LostCall

__all__ = [
    "CLOCKS_APART_MS",
    "GRANT_USES",
    "LOST_MS",
    "STATE_TTL_S",
    "Approval",
    "ApprovalProblem",
    "Approvals",
    "Asked",
    "Before",
    "Clearance",
    "Decision",
    "Lost",
    "LostCall",
    "Person",
    "State",
    "last_done",
    "still_enough",
    "sweep",
    "tending",
]
