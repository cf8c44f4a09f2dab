"""What it costs to find a tool among a thousand, beside building the list that the search stands in place of."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import yaml

from connectors.finding import Index
from server.app import running
from server.call import Parts
from server.folding import search
from server.listing import described, tools_for
from tests.bench.contest import AGENT, ROOT
from tests.installed import make

REQUESTS = [entry["ask"] for entry in yaml.safe_load((ROOT / "tests" / "connectors" / "requests.yaml").read_text())]
UPSTREAM = "http://127.0.0.1:9"  # nothing is sent


def finding(home: Path, copies: int) -> dict[str, Any]:
    """Milliseconds of CPU, medians, with each shipped connector connected `copies` times."""
    place = make(home, org="acme")
    try:
        for connector in place.installation.catalogue.connectors:
            for copy in range(copies):
                place.connect(UPSTREAM, connector=connector, name=f"{connector}_{copy}")
        place.agent(AGENT)
        return anyio.run(_measured, place)
    finally:
        place.installation.close()


async def _measured(place: Any) -> dict[str, Any]:
    async with running(place.installation) as parts:
        caller = place.caller(AGENT)
        offered = tools_for(parts, caller)
        index = _timed(lambda: Index(offered))
        search(parts, caller, {"query": "warm"})
        searches = [_timed(lambda request=request: search(parts, caller, {"query": request})) for request in REQUESTS]
        lists = [_timed(lambda: _listed(parts, caller)) for _ in range(5)]
    found, listed = statistics.median(searches), statistics.median(lists)
    return {
        "tools": len(offered),
        "search_ms": round(found, 2),
        "slowest_search_ms": round(max(searches), 2),
        "list_ms": round(listed, 1),
        "search_to_list": round(found / listed, 4),
        "index_ms": round(index, 1),
    }


def _listed(parts: Parts, caller: Any) -> None:
    """The whole list as it goes over the wire: each tool checked by the SDK and written as JSON."""
    import mcp_types as t

    tools = [t.Tool.model_validate(described(each)) for each in tools_for(parts, caller)]
    t.ListToolsResult(tools=tools).model_dump_json(by_alias=True, exclude_none=True)


def _timed(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return (time.process_time() - began) * 1e3
