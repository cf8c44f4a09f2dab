"""Open, send, scrub: a credential is opened for one sending, which leaves in time or not at all.

Bounded in time: by the resolver, by egress, and a wrapped server's questions by how long they may be open.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from connectors.answer import Result, interpret
from connectors.auth import attaching
from connectors.bounded import DEFAULT_LIMITS
from connectors.definition import CredentialKind
from connectors.elicitation import ASKING_S
from connectors.errors import ConnectorError, DefinitionChanged, RateLimited
from connectors.reporting import reported_in
from server.approval import CLOCKS_APART_MS, LOST_MS, Person, State
from server.bound import Attempt, Bound
from server.connections import credential_kind
from server.credential import resolved, stays_elsewhere
from server.outcome import Came, Outcome, TooLate, failed, internal, without_credential, without_report
from server.outside import Questions, may_ask, send
from server.parts import Parts
from vault import CannotResolve, Secret, VaultError

if TYPE_CHECKING:
    from connectors.egress import Attach, Reply  # at run time it would load the HTTP library

LONG_BODY = 128 * 1024

SENT_WITHIN_S = (LOST_MS - CLOCKS_APART_MS) / 1000 - DEFAULT_LIMITS.total_s
"""How long after its attempt a call may still be sent: it is to be over before another replica takes it for lost."""


async def opened(parts: Parts, bound: Bound, attempt: Attempt) -> tuple[CredentialKind, Secret]:
    """The credential, and how it is used; read from where it stays if that is elsewhere.

    Raises CannotOpen or CannotResolve, in time.
    """
    connection = bound.connection
    kind = credential_kind(connection, bound.call.connector)
    sealed = attempt.taken()
    if not stays_elsewhere(connection, kind, sealed):
        return kind, sealed
    with sealed, anyio.move_on_after(parts.references.seconds):  # for its turn; from then on the resolver keeps time
        return kind, await anyio.to_thread.run_sync(
            resolved, parts.references, kind, sealed, limiter=parts.turns[connection.id]
        )
    raise CannotResolve("Other calls wait for the same secret. Look at why it takes so long where it stays.")


async def sent(  # noqa: PLR0917 - everything that a sending needs
    parts: Parts, bound: Bound, attempt: Attempt, kind: CredentialKind, secret: Secret, facts: dict[str, Any]
) -> "Reply":
    """Send it, and have the answer as it came. Raises ConnectorError.

    What the provider reports in an answer that is too large to be taken in is written into `facts`.
    """

    def too_large(body: bytes, secrets: tuple[str, ...]) -> None:
        facts["usage"] = reported_in(bound.call.tool, body, secrets)

    attach = _in_time(parts, attempt, attaching(kind, secret, bound.request))
    return await parts.egress.send(bound.request, attach=attach, private=bound.connection.networks, too_large=too_large)


async def scrubbed(parts: Parts, bound: Bound, reply: "Reply") -> Result:
    """The answer without the secret, and whatever was derived from it. Raises ConnectorError for a refusal."""
    if len(reply.body) > LONG_BODY:  # seconds of work for the largest: others are served meanwhile
        return await anyio.to_thread.run_sync(interpret, bound.call, reply, limiter=parts.long_answers)
    return interpret(bound.call, reply)


async def heard(parts: Parts, bound: Bound, result: Result) -> Outcome:
    """What the client hears of a result; of a long one its first part."""
    if result.whole is None:
        return Outcome(result.ok, result.structured, result.text)
    told = await anyio.to_thread.run_sync(
        parts.rests.keep, bound.caller, bound.call, bound.connection.id, result.whole, limiter=parts.long_answers
    )
    return Outcome(result.ok, told.structured, told.text)


async def asked_of_server(parts: Parts, bound: Bound, attempt: Attempt, person: Person) -> Came:
    """All of it for a wrapped server; what that wants to know before it does anything is no failure."""
    try:
        try:
            kind, secret = await opened(parts, bound, attempt)
        except VaultError as error:
            return without_credential(error, bound, again=False)
        try:
            talk = parts.conversations.talk
            answer = await send(
                bound.call,
                partial(talk, bound.caller, bound.connection, bound.call.connector, kind, secret),
                before=_server_in_time(parts, attempt),
                outside=may_ask(bound.caller, person.outside),
                long_answers=parts.long_answers,
            )
        finally:
            secret.wipe()
        if isinstance(answer, Questions):
            return Came(State.APPROVED, answer, {})
    except ConnectorError as error:
        if isinstance(error, RateLimited):
            parts.pace.pause(bound.connection.id, error.retry_after)
        found = {"definition_found": error.hash or "gone"} if isinstance(error, DefinitionChanged) else {}
        return failed(error, bound, found, maybe_before=False)
    except Exception as error:
        return internal(error, bound, {})
    facts: dict[str, Any] = dict(answer.facts)
    return came(bound, answer.result, await heard(parts, bound, answer.result), facts)


def came(bound: Bound, result: Result, outcome: Outcome, facts: dict[str, Any]) -> Came:
    """What came of a call that was answered."""
    return Came(State.SUCCEEDED if result.ok else State.FAILED, outcome, {**facts, **without_report(bound, facts)})


def _in_time(parts: Parts, attempt: Attempt, attach: "Attach") -> "Attach":
    """The same, before each try, unless the attempt is so old that the call may have been taken for lost."""

    def attach_in_time(headers: dict[str, str], query: list[tuple[str, str]]) -> tuple[str, ...]:
        if parts.clock() - attempt.begun > SENT_WITHIN_S:
            raise TooLate
        return attach(headers, query)

    return attach_in_time


def _server_in_time(parts: Parts, attempt: Attempt) -> Callable[[], None]:
    """Sooner than others, since a person may be asked in mid-call."""

    def in_time() -> None:
        if parts.clock() - attempt.begun > SENT_WITHIN_S - ASKING_S:
            raise TooLate

    return in_time
