"""A conversation that is kept holds on to nothing of the calls that were made in it."""

import gc
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from connectors.lasting import Lasting

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Answer:
    """What came of a call: megabytes perhaps, and not scrubbed yet."""


class Open:
    alive = True


@asynccontextmanager
async def opened() -> AsyncGenerator[Any]:
    yield Open()


async def test_what_came_of_a_call_and_what_it_was_made_with_is_let_go_once_it_is_over() -> None:
    lasting = Lasting("World", opened)
    lasting.begin()
    left: list[weakref.ref[Any]] = []

    async def made() -> None:
        answer = Answer()

        async def run(_upstream: Any) -> Answer:
            return answer

        left.extend([weakref.ref(answer), weakref.ref(run)])
        assert await lasting.call(run) is answer

    for _ in range(2):
        await made()
        gc.collect()
        assert [each() for each in left] == [None] * len(left)
    lasting.end()
    await lasting.ended.wait()
