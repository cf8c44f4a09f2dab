"""A call to a wrapped server: sent once, its questions put to the person at the client, marked with who asks.

What a server asks can never be taken for an approval: it is worded here, in a frame of ours, and its answer goes to the
server and decides nothing. Who cannot be asked is not asked, and the server hears that it was declined.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from connectors.answer import Result, failed, interpret
from connectors.definition import Call
from connectors.elicitation import MOST_ASKS, Answer, Ask, answered
from connectors.request import sent_arguments
from server.identity import Caller
from server.prompt import plain, quote

if TYPE_CHECKING:
    from connectors.upstream import Relay, Returned, Upstream, Wanted  # at run time it would load the protocol
    from server.keeping import Run, Told

    Came = Returned | Wanted

MOST_ROUNDS = 5
"""How often one call of an agent may come back with a server's question, one request after the other."""

MOST_ON_RECORD = 20
"""Of how many of its questions the record says what became of each."""


@dataclass(frozen=True)
class Form:
    """A question as a client shows it."""

    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Onward:
    """Where a call goes on whose server wanted answers first: the answers are given with the call that brings it."""

    connection: str
    definition: str
    state: str | None
    rounds: int
    asks: Mapping[str, Ask]
    answers: Mapping[str, Answer]


def carried(onward: Onward) -> dict[str, Any]:
    """What a client carries of it, sealed."""
    asks = {key: [ask.message, ask.schema] for key, ask in onward.asks.items()}
    return {
        "connection": onward.connection,
        "definition": onward.definition,
        "state": onward.state,
        "rounds": onward.rounds,
        "asks": asks,
    }


def brought(carried: Mapping[str, Any], given: Mapping[str, tuple[str, Mapping[str, Any] | None]]) -> Onward:
    """The same, with what the person did with each question; one that was left out counts as cancelled.

    They are known to the client by their numbers: what the server calls them is its own, and is not passed on.
    """
    asks = {key: Ask(message, schema) for key, (message, schema) in carried["asks"].items()}
    numbered = zip(_NUMBERS, asks.items(), strict=False)
    answers = {key: answered(ask, *given.get(number, ("cancel", None))) for number, (key, ask) in numbered}
    rest = (carried["connection"], carried["definition"], carried["state"], carried["rounds"])
    return Onward(*rest, asks, answers)


_NUMBERS = tuple(str(number) for number in range(1, MOST_ASKS + 1))


class AskThrough(Exception):
    """Not a failure: the client must put a server's questions to its person, and repeat the call with the answers."""

    def __init__(self, forms: Mapping[str, Form], onward: Onward, approval: str | None) -> None:
        super().__init__("a server wants answers first")
        self.forms, self.onward, self.approval = forms, onward, approval


class Outside(Protocol):
    """The person at a client, as far as a server's own questions go."""

    @property
    def answers_later(self) -> bool:
        """Whether they answer with a later request: then nothing can be asked in mid-call."""
        ...

    @property
    def onward(self) -> Onward | None:
        """What a later request brings."""
        ...

    async def put(self, form: Form) -> tuple[str, Mapping[str, Any] | None]:
        """What they did with it, and what they wrote; in mid-call."""
        ...


@dataclass(frozen=True)
class Questions:
    """What a server wants to know before it does anything."""

    forms: Mapping[str, Form]
    onward: Onward


@dataclass(frozen=True)
class Sent:
    """What came of a call, scrubbed, and facts for the record."""

    result: Result
    facts: Mapping[str, Any]


class Talk(Protocol):
    """The conversation that a call is to be made in, whether it is kept or not: see `Conversations.talk`."""

    def __call__(self, run: "Run[Came]", before: Callable[[], None]) -> "Awaitable[tuple[Came, Told]]": ...


async def send(
    call: Call,
    talk: Talk,
    *,
    before: Callable[[], None] = lambda: None,
    outside: Outside | None = None,
    long_answers: anyio.CapacityLimiter | None = None,
) -> Sent | Questions:
    """Call the wrapped server's tool, if it still is what was agreed to. Raises a ConnectorError.

    `before` runs just before the call is sent, and may raise. `long_answers` bounds how many are taken apart at once.
    """
    from connectors.upstream import Wanted

    onward = outside.onward if outside else None
    if onward is not None and (onward.connection != call.connection or onward.definition != _definition(call)):
        onward = None
    rounds = onward.rounds if onward else 0

    def run(upstream: "Upstream", before: Callable[[], None]) -> "Awaitable[Came]":
        return upstream.call(
            call.tool.upstream,
            sent_arguments(call),
            pinned=call.tool.pinned,
            relay=_relay(call, outside) if outside and not outside.answers_later else None,
            defer=outside is not None and outside.answers_later and rounds < MOST_ROUNDS,
            answers=onward.answers if onward else None,
            state=onward.state if onward else None,
            before=before,
        )

    came, told = await talk(run, before)
    if isinstance(came, Wanted):
        return _questions(call, came, rounds + 1)
    return await anyio.to_thread.run_sync(_sent, call, came, told, limiter=long_answers)


def may_ask(caller: Caller, outside: Outside | None) -> Outside | None:
    """The person, unless nobody stands behind the agent."""
    return None if caller.standalone else outside


def _definition(call: Call) -> str:
    return call.tool.definition_hash


def _relay(call: Call, outside: Outside) -> "Relay":
    async def relay(ask: Ask) -> Answer:
        action, content = await outside.put(worded(call, ask))
        return answered(ask, action, content)

    return relay


def worded(call: Call, ask: Ask) -> Form:
    """The question in a frame of ours; whatever the server wrote is quoted, or has its deceiving characters escaped."""
    title = plain(call.connector.title)
    text = (
        f"{title} (an outside server, behind {call.connection}) asks, while it carries out {call.name}:\n\n"
        f"{quote(ask.message)}\n\n"
        "Keyleash does not ask this, and your answer approves nothing: it goes to that server. "
        "Give it no passwords or keys. To decline is always safe."
    )
    properties = {name: _shown(field) for name, field in ask.schema["properties"].items()}
    return Form(text, {**ask.schema, "properties": properties})


def _shown(field: Mapping[str, Any]) -> dict[str, Any]:
    return {key: plain(value) if key in ("title", "description") else value for key, value in field.items()}


def _questions(call: Call, wanted: "Wanted", rounds: int) -> Questions:
    forms = {number: worded(call, ask) for number, ask in zip(_NUMBERS, wanted.asks.values(), strict=False)}
    return Questions(forms, Onward(call.connection, _definition(call), wanted.state, rounds, wanted.asks, {}))


def _sent(call: Call, returned: "Returned", told: "Told") -> Sent:
    result = interpret(call, returned.reply)
    facts: dict[str, Any] = {"bytes": returned.reply.bytes_in, "asked": _shortened(returned.asked) or None}
    facts["usage"] = result.usage
    facts["conversation"] = told.kept
    if told.note and result.structured is not None:
        result = noted(result, "note_on_conversation", told.note)
    if returned.is_error:
        return Sent(failed(call.connector, result), facts)
    not_put = returned.asked.count("not put")
    if not_put and result.structured is not None:
        note = f"The server asked {not_put} question(s) that could not be put to a person; it was told: declined."
        result = noted(result, "note_on_questions", note)
    return Sent(result, facts)


def _shortened(asked: tuple[str, ...]) -> list[str]:
    """As it stands on record, however often the server asked."""
    more = len(asked) - MOST_ON_RECORD
    return [*asked[:MOST_ON_RECORD], *([f"and {more} more"] if more > 0 else [])]


def noted(result: Result, key: str, note: str) -> Result:
    """The result with a word of ours beside it."""
    from dataclasses import replace

    from connectors.answer import written

    structured = {**(result.structured or {}), key: note}
    return replace(result, structured=structured, text=written(structured))
