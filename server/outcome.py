"""What came of a call: what the client hears, and what a failure means, where nobody may know what took effect."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

from connectors.errors import (
    ConnectorError,
    CredentialRejected,
    DefinitionChanged,
    RateLimited,
    ResponseTooLarge,
    Unreachable,
    UpstreamError,
)
from server.approval import State
from server.bound import Bound
from server.outside import Questions
from vault import CannotOpen, CannotResolve, VaultError

log = logging.getLogger("keyleash")


@dataclass(frozen=True)
class Outcome:
    """What the client hears: `ok` is False where the upstream refused or failed."""

    ok: bool
    structured: dict[str, Any] | None
    text: str


class Came(NamedTuple):
    """What came of sending a call: where it stands now, what the client hears, and facts for the record."""

    state: State
    outcome: Outcome | Questions
    facts: dict[str, Any]
    changed: DefinitionChanged | None = None
    """What a wrapped server's tool has become, where that is not what was agreed to."""

    @property
    def asked(self) -> bool:
        """Whether its server has not begun it, and wants answers from a person first."""
        return isinstance(self.outcome, Questions)


class TooLate(Unreachable):
    """This process stood still: whoever looked meanwhile took the call for lost, and may have settled it since."""

    def __init__(self) -> None:
        super().__init__(
            "Keyleash stood still after it began this call, for so long that it is not sent any more. Nothing was "
            "sent. If it is still wanted, make the call anew.",
            maybe_sent=False,
        )


def without_credential(error: VaultError, bound: Bound, *, again: bool) -> Came:
    """Nothing was sent. Why a secret cannot be had where it stays is for the logs, and not for the agent."""
    name = bound.call.connection
    state, sent = (State.UNKNOWN, f"{_NOT_THIS_TIME} {_LOOK_FIRST}") if again else (State.FAILED, "Nothing was sent.")
    if isinstance(error, CannotResolve):
        source = bound.connection.source
        log.error("the secret of connection %s could not be had from where it stays (%s): %s", name, source, error)
        text = (
            f"The credential of {name} could not be had from where it is kept. {sent} An admin has to look "
            f"at the connection {name}: tell the person you work for."
        )
        return Came(state, _failure(text), {"error": f"credential reference {source}", "reason": str(error)})
    if isinstance(error, CannotOpen):
        text = f"The credential of {name} cannot be opened. {sent} An admin has to connect it again."
        return Came(state, _failure(text), {"error": "credential cannot be opened"})
    log.error("the secret of connection %s cannot be opened just now: %s", name, error)
    text = f"The credential of {name} cannot be opened just now. {sent} Tell an admin, or try again later."
    return Came(state, _failure(text), {"error": "vault cannot open"})


def failed(error: ConnectorError, bound: Bound, facts: dict[str, Any], *, maybe_before: bool) -> Came:
    """What a failure means: a call that may have changed something, and of which we cannot tell, is `unknown`.

    `maybe_before`: an earlier sending of it, under the same key, may have arrived.
    """
    said, maybe_done = _SAID.get(type(error), type(error).__name__), isinstance(error, ResponseTooLarge)
    if isinstance(error, UpstreamError):
        said = "upstream"
        maybe_done = error.maybe_done or error.status >= 500 or error.status == 408 or 300 <= error.status < 400
        facts |= {"status": error.status or None, "code": error.code, "request_id": error.request_id}
    elif isinstance(error, Unreachable):
        maybe_done = error.maybe_sent
    elif isinstance(error, CredentialRejected) and error.status is not None:
        facts |= {"status": error.status}
    facts |= {"error": said}
    changed = error if isinstance(error, DefinitionChanged) else None
    if bound.request.safe or not (maybe_done or (maybe_before and _of_this_sending_alone(error))):
        return Came(State.FAILED, _failure(error.for_model), facts, changed)
    left = maybe_done or isinstance(error, (CredentialRejected, UpstreamError))
    text = error.for_model if left else _NOT_THIS_TIME
    return Came(State.UNKNOWN, _failure(f"{text} {_LOOK_FIRST}"), facts, changed)


def internal(error: Exception, facts: dict[str, Any]) -> Came:
    """Something broke in here, at a point where the call may have been sent. Its text may hold anything."""
    log.error("a call failed inside Keyleash: %s", type(error).__name__)
    return Came(State.UNKNOWN, _SILENT, {**facts, "error": "internal"})


def _of_this_sending_alone(error: ConnectorError) -> bool:
    """Whether it never came to what knows the key, which repeats what came of the first sending: a door in front of it
    was shut, or the first is still at work (409). Any other refusal is the call's own.
    """
    return not isinstance(error, UpstreamError) or isinstance(error, RateLimited) or error.status == 409


def _failure(text: str) -> Outcome:
    return Outcome(False, None, text)


_SAID: dict[type[ConnectorError], str] = {
    CredentialRejected: "credential rejected",
    Unreachable: "unreachable",
    TooLate: "too late",
    DefinitionChanged: "definition changed",
}
_NOT_THIS_TIME = "This call was lost on its way before, and this time it could not be sent."
_LOOK_FIRST = "It is not known whether the call took effect; look before you repeat it."
_SILENT = _failure(
    "What came of this call is not known. It will not be sent again by itself; look before you repeat it."
)
