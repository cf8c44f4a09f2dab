"""The rooms that a call passes through, and what this process knows of the calls that are under way in them."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from connectors.errors import DefinitionChanged
from server.approval import Approvals
from server.clock import running_s
from server.connections import Connection, Workspaces
from server.database import Database, Rows
from server.errors import Busy, VaultSealed
from server.identity import Caller, Directory
from server.keys import Keys
from server.oauth.renewal import Renewals
from server.pacing import Turns
from server.rest import Rests
from server.telemetry import Telemetry
from vault import Resolver, Vault

if TYPE_CHECKING:
    from connectors.egress import Egress  # at run time it would load the HTTP library

REFERENCES_AT_ONCE = 4
MOST_AT_ONCE = 100
"""Calls of one agent under way at once, held ones included: no agent can use up what others need."""


@dataclass(frozen=True)
class Parts:
    """The rooms that a call passes through."""

    database: Database
    directory: Directory
    workspaces: Workspaces
    vault: Vault
    egress: "Egress"
    approvals: Approvals
    keys: Keys
    references: Resolver
    renewals: Renewals
    telemetry: Telemetry = field(default_factory=Telemetry, compare=False)
    long_answers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(4), compare=False)
    """How many long answers are taken apart at once."""
    readers: defaultdict[str, anyio.CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: anyio.CapacityLimiter(1)), compare=False
    )
    """Which agents read on in a long answer."""
    under_way: Counter[str] = field(default_factory=Counter[str], compare=False)
    """How many calls each agent has under way in this process."""
    turns: defaultdict[str, anyio.CapacityLimiter] = field(
        default_factory=lambda: defaultdict(lambda: anyio.CapacityLimiter(REFERENCES_AT_ONCE)), compare=False
    )
    """How many calls of each connection read its secret from where it stays: a slow place holds up nobody else's."""
    pace: Turns = field(default_factory=lambda: Turns(10.0), compare=False)
    """Whose turn it is, where a connection takes so many calls and no more."""
    rests: Rests = field(default_factory=Rests, compare=False)
    """What was left of long answers."""
    clock: Callable[[], float] = field(default=running_s, compare=False)
    """Seconds, by which a call is too old to be sent."""
    changed: Callable[[Rows, Connection, DefinitionChanged], None] = field(
        default=lambda _rows, _connection, _changed: None, compare=False
    )
    """What is noted of a wrapped server's tool that is not what was agreed to, with the outcome's entry."""


@contextlib.contextmanager
def one_more(parts: Parts, caller: Caller) -> Generator[None]:
    """One more call of the agent is under way."""
    parts.under_way[caller.agent] += 1
    try:
        yield
    finally:
        parts.under_way[caller.agent] -= 1
        if not parts.under_way[caller.agent]:
            del parts.under_way[caller.agent]


def require_open(parts: Parts, caller: Caller) -> None:
    """Raises VaultSealed, or Busy where the agent has as many calls under way as it may."""
    if parts.vault.sealed is not None:
        raise VaultSealed(parts.vault.sealed)
    if parts.under_way[caller.agent] > MOST_AT_ONCE:
        raise Busy(MOST_AT_ONCE)
