"""Webhooks of an org, a receiver for them on loopback, and a server's deliveries under a clock that the test moves."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from connectors.egress import Egress, Resolve
from server.approval.outbox import Happening
from server.call import Outcome, call
from server.delivery import Delivery
from server.errors import ApprovalRequired
from server.keys import Keys
from server.policy import Ruling
from server.webhooks import Hook, create, hook_named, plan
from tests.agents import Nobody
from tests.installed import Place, now_ms
from tests.upstream import Answer, Received, Upstream
from vault import Secret

REFUND = {"charge": "ch_1_canary_of_an_argument", "amount": 1200}
PATH = "/services/T0123/canary9fK2qLx7vR4mPs8Z"
LOOPBACK = ("127.0.0.1/32",)
EVERYTHING = (Ruling.CONFIRM, Ruling.APPROVE)


def hooked(
    place: Place,
    url: str,
    name: str = "chat",
    *,
    events: Sequence[Happening] = tuple(Happening),
    rulings: Sequence[Ruling] = EVERYTHING,
    private: Sequence[str] = LOOPBACK,
) -> tuple[Hook, str]:
    """Add a webhook; returns it and its signing secret."""
    planned, vault = plan(url, private), place.installation.vault
    return place.installation.database.of(place.org).write_now(
        lambda rows: create(
            rows,
            vault,
            place.org,
            planned,
            Secret({"secret": url}),
            name=name,
            events=events,
            rulings=rulings,
            by="alice",
        )
    )


def hook(place: Place, name: str = "chat") -> Hook:
    return hook_named(place.installation.database, place.org, name)


def outbox(place: Place) -> list[tuple[Any, ...]]:
    """What waits: channel, event, tries, due."""
    rows = place.installation.database.of(place.org).read(
        "SELECT c.name, n.facts, n.tries, n.due_at FROM notice n JOIN channel c ON c.org = n.org AND c.id = n.channel "
        "WHERE n.org = ? ORDER BY n.created_at, n.id",
        (place.org,),
    )
    return [(name, json.loads(facts)["event"], tries, due) for name, facts, tries, due in rows]


async def held(place: Place, arguments: dict[str, Any] = REFUND, agent: str = "reconciler") -> str:
    """The id of a refund that waits for a person."""
    with pytest.raises(ApprovalRequired) as waiting:
        await called(place, "stripe_create_refund", arguments, agent)
    return waiting.value.approval


async def called(place: Place, tool: str, arguments: dict[str, Any], agent: str = "reconciler") -> Outcome:
    """What comes of a call, at a client that cannot ask. Nothing is delivered meanwhile."""
    async with Egress() as egress:
        return await call(place.installation.parts(egress), place.caller(agent), tool, arguments, Nobody())


async def until(reached: Callable[[], object]) -> None:
    """Wait until that is so; fails where it never is."""
    with anyio.fail_after(20):
        while not reached():  # noqa: ASYNC110 - a thread of the receiver has no event of ours
            await anyio.sleep(0.01)


@dataclass
class Clock:
    """The time as deliveries see it."""

    now: int = field(default_factory=now_ms)

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


@asynccontextmanager
async def a_server(
    place: Place, clock: Clock, *, public_url: str = "", hesitate_ms: int = 0, resolve: Resolve | None = None
) -> AsyncIterator[Delivery]:
    """What one server delivers with; it looks when the test says so."""
    database, vault = place.installation.database, place.installation.vault
    async with Egress(resolve=resolve) as egress:
        yield Delivery(database, vault, Keys(database, vault), egress, public_url, hesitate_ms, clock)


async def delivered(delivery: Delivery) -> None:
    delivery.look()
    await delivery.settled()


class Receiver(Upstream):
    """A place that takes notices; `answers` come first, then every one is taken."""

    def __init__(self, *answers: Answer) -> None:
        super().__init__()
        self.answers = list(answers)
        self.answer = lambda _request: self.answers.pop(0) if self.answers else Answer(b"ok")

    @property
    def hook(self) -> str:
        return self.url + PATH

    def told(self) -> list[dict[str, Any]]:
        return [body_of(request) for request in self.requests]


def body_of(request: Received) -> dict[str, Any]:
    return json.loads(request.body)
