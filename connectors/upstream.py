"""Speak to a wrapped MCP server, in both eras: what it offers, and one call of a tool that is what it was agreed to be.

The only module of this room that knows the protocol. Nothing that the SDK raises escapes, and the SDK never sees the
credential: egress attaches it, or it stands in the environment of a process that is started for this alone.
"""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from connectors.addresses import Network
from connectors.auth import Revealing
from connectors.definition import Connector, CredentialKind, canonical
from connectors.errors import ConnectorError

if TYPE_CHECKING:
    from connectors.egress import Egress

MAX_TOOLS = 2_000
MAX_PAGES = 50


@dataclass(frozen=True, slots=True)
class Definition:
    """A tool as its server describes it. `raw` holds these keys, where the server gives them, and no others:
    name, title, description, inputSchema, outputSchema, annotations.
    """

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def hash(self) -> str:
        """What a connector file pins: SHA-256, hex, of `raw` as canonical JSON."""
        return hashlib.sha256(canonical(dict(self.raw)).encode("utf-8", "surrogatepass")).hexdigest()


class DefinitionChanged(ConnectorError):
    """A tool is not what was agreed to: `found` is what its server says now, None where it has the tool no more.

    Raised before anything is sent.
    """

    def __init__(self, tool: str, pinned: str, found: Definition | None) -> None:
        super().__init__(
            f"{tool} is held: its server {'describes it differently now' if found else 'no longer has it'}. Nothing "
            "was sent. An admin has to look at it first; tell the person you work for."
        )
        self.tool, self.pinned, self.found = tool, pinned, found


@dataclass(frozen=True, slots=True)
class Ask:
    """What an upstream wants to know from the person, in form mode and vetted: flat, of plain values."""

    message: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the person said. `content` only with accept."""

    action: Literal["accept", "decline", "cancel"]
    content: Mapping[str, Any] | None = None


Relay = Callable[[Ask], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Returned:
    """What a tool gave, not scrubbed yet. `secrets` are what has to be scrubbed out of it."""

    value: Mapping[str, Any]
    is_error: bool
    secrets: tuple[str, ...] = field(default=(), repr=False)
    bytes_in: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """The server has done nothing yet: it wants answers first, and its `state` back with them. Modern servers only."""

    asks: Mapping[str, Ask]
    state: str | None = field(repr=False)


class Upstream:
    """An open conversation with a wrapped server."""

    @property
    def server(self) -> Mapping[str, str]:
        """What the server says of itself: name, version, protocol."""
        raise NotImplementedError

    async def definitions(self) -> tuple[Definition, ...]:
        """Every tool of the server, sorted by name. Raises a ConnectorError; UpstreamError for a list without end."""
        raise NotImplementedError

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        pinned: str,
        relay: Relay | None = None,
        answers: Mapping[str, Answer] | None = None,
        state: str | None = None,
    ) -> Returned | Wanted:
        """Call a tool that its server still defines as `pinned`; raises DefinitionChanged, or a ConnectorError.

        `relay` asks the person in mid-call; without it every question is declined, or returned as Wanted where the
        server has done nothing yet. `answers` and `state` go on with a call that was Wanted.
        """
        raise NotImplementedError


@asynccontextmanager
async def opened(
    connector: Connector,
    *,
    base_url: str,
    kind: CredentialKind,
    secret: Revealing,
    egress: "Egress",
    private: tuple[Network, ...] = (),
    home: str | None = None,
) -> AsyncGenerator[Upstream]:
    """A conversation with the connector's server, ended with the block; raises a ConnectorError of this room.

    `base_url` is the connection's own. `egress` carries what goes over HTTP. A process is started in an empty folder
    below `home`.
    """
    raise NotImplementedError
    yield
