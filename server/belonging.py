"""Whose a kept conversation with a wrapped server is, and whether everything that it rests on is as it was."""

from dataclasses import dataclass, field

from connectors.definition import Connector
from server.connections import Connection, Workspace
from server.identity import Caller
from server.narrowing import Narrowing

Slot = tuple[str, str, str]


@dataclass(frozen=True)
class Whose:
    """Whose a conversation is, and everything that must be as it was for it to go on."""

    org: str
    agent: str
    token_mark: str
    narrowing: Narrowing
    connection: str
    credential_version: int
    origin: str
    scheme: str
    connector: Connector = field(repr=False)

    def __eq__(self, other: object) -> bool:
        """A file that was read anew counts as another, whatever it says."""
        return isinstance(other, Whose) and self._facts == other._facts and self.connector is other.connector

    def __hash__(self) -> int:
        return hash(self.slot)

    @property
    def _facts(self) -> tuple[object, ...]:
        return (*self.slot, self.token_mark, self.narrowing, self.credential_version, self.origin, self.scheme)

    @property
    def slot(self) -> Slot:
        """Of all that are alike in this, one is kept."""
        return self.org, self.agent, self.connection


def whose(caller: Caller, connection: Connection, connector: Connector) -> Whose:
    """Whose conversation this call's is."""
    return Whose(
        caller.org,
        caller.agent,
        caller.token_mark,
        caller.narrowing,
        connection.id,
        connection.credential_version,
        connection.origin,
        connection.scheme,
        connector,
    )


def stands(workspace: Workspace, mine: Whose) -> bool:
    """Whether the org still has the connection as it was, with the connector as it was."""
    connection = next((each for each in workspace.connections.values() if each.id == mine.connection), None)
    if connection is None or connection.needs_consent_at is not None:
        return False
    connector = next((each.connector for each in workspace.offer.tools if each.connection == connection.name), None)
    bound = (connection.credential_version, connection.origin, connection.scheme)
    return connector is mine.connector and bound == (mine.credential_version, mine.origin, mine.scheme)
