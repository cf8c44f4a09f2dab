"""The ways in which a held call reaches people. Some ask, and a decision comes in through them; others only tell.

The record in the database stays the authority. A channel that asks reads it, and so need not be told. What a channel
that tells has to say is written down in the very transaction that changes the record: nothing is told that did not
happen, and nothing that happened is not told. `CHANNELS` is all there are.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from server.approval import outbox
from server.approval.eligible import Wanted, eligible
from server.approval.outbox import Happening
from server.database import Rows
from server.identity import people_of
from server.policy import Ruling


class Channel(Protocol):
    """One way to people."""

    @property
    def asks(self) -> bool:
        """Whether a decision can come in through it."""
        ...

    def reaches(self, rows: Rows, org: str, wanted: Wanted) -> tuple[str, ...]:
        """Whom it reaches when such a call is held: people by name if it asks, places by name if it tells."""
        ...

    def tell(self, rows: Rows, org: str, approval: str, happening: Happening) -> None:
        """Something has happened to a record, in this transaction."""
        ...


class Client:
    """The MCP client of the agent: its person is asked to confirm. Its word is never enough for an approval."""

    asks = True

    def reaches(self, rows: Rows, org: str, wanted: Wanted) -> tuple[str, ...]:
        """The member for whom the agent asks, where a confirmation will do."""
        if wanted.ruling is not Ruling.CONFIRM:
            return ()
        return tuple(one.name for one in people_of(rows, org) if one.id == wanted.requester)

    def tell(self, rows: Rows, org: str, approval: str, happening: Happening) -> None:
        """Nothing: the call that waits there watches its record."""


class CommandLine:
    """`keyleash approvals …`, for whoever is known as a system user of this machine."""

    asks = True

    def reaches(self, rows: Rows, org: str, wanted: Wanted) -> tuple[str, ...]:
        """Everyone who may decide and is mapped to a system user."""
        return tuple(one.name for one in eligible(people_of(rows, org), wanted) if one.os_user is not None)

    def tell(self, rows: Rows, org: str, approval: str, happening: Happening) -> None:
        """Nothing: whoever lists, shows or watches reads the record."""


class Webhook:
    """A signed request to a place that an admin names, such as a chat tool. It carries a link, never a decision."""

    asks = False

    def reaches(self, rows: Rows, org: str, wanted: Wanted) -> tuple[str, ...]:
        """Every webhook that is told when such a call is held."""
        return tuple(hook.name for hook in outbox.listening(rows, org, Happening.OPENED, wanted.ruling))

    def tell(self, rows: Rows, org: str, approval: str, happening: Happening) -> None:
        """Put it into the outbox, for each webhook that wants to know; `server.delivery` sees to the rest."""
        outbox.put(rows, org, approval, happening)


CHANNELS: dict[str, Channel] = {
    "client": Client(),
    "command line": CommandLine(),
    "webhook": Webhook(),
}


def tell(rows: Rows, org: str, approval: str, happening: Happening) -> None:
    """Tell every channel what this transaction does to a record."""
    for channel in CHANNELS.values():
        channel.tell(rows, org, approval, happening)


def through(channel: str, **facts: Any) -> dict[str, Any]:
    """What is written of a decision that came in through `channel`; `facts` say who made it and how they were known."""
    if not CHANNELS[channel].asks:
        raise PermissionError(f"no decision comes in through a {channel}: it only tells")
    return {"channel": channel, **facts}


@dataclass(frozen=True)
class Reach:
    """Who may decide, who of them can be asked, and which places are told."""

    eligible: tuple[str, ...]
    asked: tuple[str, ...]
    told: tuple[str, ...]
    needed: int

    @property
    def enough(self) -> bool:
        """Whether so many people as are needed can be asked."""
        return len(self.asked) >= self.needed


def reach(rows: Rows, org: str, wanted: Wanted) -> Reach:
    """Whom a call that wants this reaches now."""
    people = tuple(one.name for one in eligible(people_of(rows, org), wanted))
    reached = {name: channel.reaches(rows, org, wanted) for name, channel in CHANNELS.items()}
    asked = {one for name, found in reached.items() if CHANNELS[name].asks for one in found}
    told = [place for name, found in reached.items() if not CHANNELS[name].asks for place in found]
    return Reach(
        eligible=people,
        asked=tuple(one for one in people if one in asked),
        told=tuple(told),
        needed=max(wanted.needed - len(wanted.decided), 0),
    )
