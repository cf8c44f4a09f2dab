"""A long list comes in pages; one that changes in between is begun again, and nothing is missed without a word."""

import base64
from collections.abc import Iterator
from itertools import chain

import mcp_types as t
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from server.app import running
from server.listing import PAGE, StaleCursor, page, tools_for
from tests.agents import ERAS, connected, with_connector
from tests.installed import Place
from tests.upstream import Upstream
from tests.warehouse import all_names, limited, warehouse

pytestmark = pytest.mark.anyio


@pytest.fixture
def place(place: Place, upstream: Upstream) -> Iterator[Place]:
    """The place, with hundreds of tools that are all listed."""
    with_connector(place, "warehouse", warehouse(300))
    place.connect(upstream.url, connector="warehouse")
    yield limited(place, 10_000)


@pytest.fixture(params=["memory", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def pages(client: Client) -> list[list[str]]:
    found, cursor = [], None
    while True:
        some = await client.list_tools(cursor=cursor, cache_mode="bypass")
        found.append([tool.name for tool in some.tools])
        cursor = some.next_cursor
        if cursor is None:
            return found


async def test_a_long_list_comes_in_pages_that_miss_and_repeat_nothing(place: Place, transport: str, era: str) -> None:
    async with connected(place, transport, era) as client:
        found = await pages(client)
    assert [len(some) for some in found] == [PAGE + len(["read_more"]), PAGE, PAGE, 16]
    assert list(chain(*found)) == sorted([*all_names(place), "read_more"])


async def test_a_cursor_says_nothing_and_is_good_for_one_caller_and_one_list(place: Place, era: str) -> None:
    place.agent("other")
    async with connected(place, "memory", era) as client, connected(place, "memory", era, agent="other") as other:
        cursor = (await client.list_tools(cache_mode="bypass")).next_cursor
        assert cursor is not None
        assert b"shelf" not in base64.urlsafe_b64decode(cursor + "==")
        assert b"warehouse" not in base64.urlsafe_b64decode(cursor + "==")
        assert (await client.list_tools(cursor=cursor, cache_mode="bypass")).tools
        for stranger, given in (
            (other, cursor),
            (client, ""),
            (client, "AAAA"),
            (client, "é"),
            (client, cursor[:-1]),
            (client, f"{cursor}AAAA"),
            (client, f"{'B' if cursor[0] == 'A' else 'A'}{cursor[1:]}"),
            (client, "c3RyaXBlX2xpc3RfY2hhcmdlcw=="),
        ):
            with pytest.raises(MCPError, match="list again from the start") as refused:
                await stranger.list_tools(cursor=given, cache_mode="bypass")
            assert refused.value.code == t.INVALID_PARAMS
        place.rule(who="everyone", tools=["warehouse.look_at_0007"], then="deny")  # it stood on the first page
        with pytest.raises(MCPError, match="changed"):
            await client.list_tools(cursor=cursor, cache_mode="bypass")
        again = list(chain(*await pages(client)))
    assert "warehouse_look_at_0007" not in again
    assert len(again) == 315 + len(["read_more"])


async def test_a_change_that_moves_no_tool_interrupts_no_listing(place: Place) -> None:
    async with connected(place, "memory", "auto") as client:
        cursor = (await client.list_tools(cache_mode="bypass")).next_cursor
        place.rule(who="everyone", tools=["elsewhere.*"], then="deny")
        assert (await client.list_tools(cursor=cursor, cache_mode="bypass")).tools


async def test_a_cursor_from_before_the_list_was_folded_is_refused(place: Place, era: str) -> None:
    async with connected(place, "memory", era) as client:
        cursor = (await client.list_tools()).next_cursor
    async with connected(limited(place, 60), "memory", era) as client:
        with pytest.raises(MCPError, match="list again from the start"):
            await client.list_tools(cursor=cursor)


async def test_a_list_that_fits_a_page_has_no_cursor(place: Place) -> None:
    async with running(place.installation) as parts:
        caller = place.caller()
        offered = tools_for(parts, caller)
        assert page(offered[:PAGE], caller, None) == (offered[:PAGE], None)
        part, cursor = page(offered[: PAGE + 1], caller, None)
        assert part == offered[:PAGE]
        assert page(offered[: PAGE + 1], caller, cursor) == (offered[PAGE : PAGE + 1], None)
        with pytest.raises(StaleCursor):
            page(offered[: PAGE + 2], caller, cursor)
        with pytest.raises(StaleCursor):
            page(offered[1 : PAGE + 2], caller, cursor)  # as many, and others
