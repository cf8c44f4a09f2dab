"""Every attempt in `attempts.py`, at each client that it names: refused, nothing sent, nothing changed, on record."""

from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest

from tests.server.attempts import ATTEMPTS, Attempt
from tests.server.hand import Hand, Scene, scene
from tests.serving import NO_TLS
from tests.upstream import Answer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("attempts")) as made:
        made.upstream.answer = lambda _: Answer({"ok": True, "id": "done", "channel": "C1", "ts": "1.2"})
        yield made


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=200)
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=30, limits=limits) as client:
        yield client


CASES = [(attempt, client) for attempt in ATTEMPTS.values() for client in attempt.clients]


def test_there_are_enough_attempts() -> None:
    assert len(ATTEMPTS) >= 60


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # a client that sends what it may not
@pytest.mark.parametrize(("attempt", "client"), CASES, ids=[f"{each.name}-{client}" for each, client in CASES])
async def test_an_agent_tries_in_vain(stage: Scene, http: httpx2.AsyncClient, attempt: Attempt, client: str) -> None:
    hand = Hand(stage, client, http)
    await attempt.run(hand)
    hand.require_in_vain(sent=attempt.sent, on_record=attempt.on_record)
