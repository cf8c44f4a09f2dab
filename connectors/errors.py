"""Everything that can go wrong in this room, on one screen; every message here is safe to show to a model.

No message carries an upstream's or a library's own exception: such text may quote the request, and the request
carries the secret. Every message says how to mend it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ConnectorError(Exception):
    """Anything this room refuses or fails at."""

    @property
    def for_model(self) -> str:
        """The text that an agent may read."""
        return str(self)


class DefinitionError(ConnectorError):
    """A connector file is wrong: where, what, and how to mend it."""

    def __init__(self, file: Path | str, line: int, message: str, mend: str = "") -> None:
        super().__init__(f"{file}:{line}: {message}{' ' if mend else ''}{mend}")
        self.file, self.line, self.message, self.mend = str(file), line, message, mend


class UnknownTool(ConnectorError):
    """No tool on offer has this name."""

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        hint = f" Did you mean {' or '.join(near)}?" if near else " List the tools to see what there is."
        super().__init__(f"There is no tool {name[:80]!a}.{hint}")
        self.near = tuple(near)


class InvalidArguments(ConnectorError):
    """The arguments do not fit the tool's schema; the model can mend the call."""

    def __init__(self, problem: str, allowed: Sequence[str] = ()) -> None:
        names = ", ".join(allowed) or "none"
        super().__init__(f"{problem} Allowed arguments: {names}.")


class Unsendable(ConnectorError):
    """A value may not stand in a path, query or header, or the request would leave its base URL."""


class CredentialMalformed(ConnectorError):
    """A stored secret cannot be put into a request; the message never quotes it."""


class CredentialRejected(ConnectorError):
    """The upstream refused the credential, by this HTTP status; the message never quotes the upstream."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(ConnectorError):
    """No answer came, or none that could be read in time; `maybe_sent` is False only when the request never left."""

    def __init__(self, message: str, *, maybe_sent: bool = True) -> None:
        super().__init__(message)
        self.maybe_sent = maybe_sent


class ResponseTooLarge(ConnectorError):
    """The answer is larger, denser or deeper than Keyleash takes in."""


class UpstreamError(ConnectorError):
    """The upstream answered that it will not, or cannot, do this.

    `message` has been scrubbed and bounded before it comes here. `maybe_done` is for an answer that says, whatever its
    status, that a change may have been made all the same.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        request_id: str | None = None,
        maybe_done: bool = False,
    ) -> None:
        parts = [f"HTTP {status}", *([code] if code else []), *([f"request {request_id}"] if request_id else [])]
        super().__init__(f"{message} ({', '.join(parts)})")
        self.status, self.message, self.code, self.request_id = status, message, code, request_id
        self.maybe_done = maybe_done


class ProtocolRefused(UpstreamError):
    """A wrapped MCP server refused by the protocol's own means, or did what the protocol does not let it do.

    `said` has been scrubbed and bounded before it comes here.
    """

    def __init__(self, title: str, said: str, *, code: int | None = None, maybe_done: bool = False) -> None:
        message = f"{title} refused the call and {said}" if said.startswith("says") else f"{title} {said}".rstrip()
        super().__init__(0, message, code=None if code is None else str(code), maybe_done=maybe_done)
        self.args = (f"{message} (MCP error {code})" if code is not None else f"{message}.",)


class RateLimited(UpstreamError):
    """The upstream asks for fewer calls; `retry_after` is its own figure in seconds, where it gave one."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(status, message, code=code, request_id=request_id)
        self.retry_after = retry_after


class DefinitionChanged(ConnectorError):
    """A wrapped server's tool is not what was agreed to; raised before the call is sent.

    `found` is what its server says now, scrubbed, and `hash` of it; both None where it has the tool no more.
    """

    def __init__(self, tool: str, pinned: str, found: Mapping[str, Any] | None, found_hash: str | None) -> None:
        super().__init__(
            f"{tool} is held: its server {'describes it differently now' if found else 'no longer has it'}. Nothing "
            "was sent. An admin of the org has to look at it first: tell the person you work for."
        )
        self.tool, self.pinned, self.found, self.hash = tool, pinned, found, found_hash


class TokenRefused(ConnectorError):
    """A provider gave no token. `code` is its own word for why, `ended` that only consenting again can mend it."""

    def __init__(self, host: str, code: str, *, ended: bool) -> None:
        super().__init__(f"{host} gives no token ({code}).")
        self.code, self.ended = code, ended
