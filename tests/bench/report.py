"""The figures as a table that fits a terminal."""

from collections.abc import Iterator
from typing import Any

AIMS = {"yardstick": 0.6, "floor": 1.3}
"""What Keyleash's CPU per call may be at most, at 50 callers, as a multiple of each."""


def table(report: dict[str, Any]) -> str:
    """The whole report as text."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    yield f"Python {report['python']}, {report['processors']} processors"
    for result in report["results"]:
        yield ""
        yield f"{result['callers']} caller{'s' if result['callers'] > 1 else ''}, upstream over {result['upstream']}"
        yield f"  {'':10} {'CPU/call':>10} {'calls/s':>9} {'p50':>10} {'p99':>10} {'memory':>9}"
        for name, figures in result["servers"].items():
            yield (
                f"  {name:10} {figures['cpu_us_per_call']:7.0f} us {figures['calls_per_second']:9.0f}"
                f" {figures['p50_ms']:7.2f} ms {figures['p99_ms']:7.2f} ms {figures['memory_bytes'] / 2**20:6.0f} MB"
            )
        for name, ratio in result["keyleash_to"].items():
            aim = f", aim {AIMS[name]}" if result["callers"] == 50 else ""
            yield (
                f"  to the {name}: CPU {ratio['cpu']:.2f} ({ratio['cpu_lowest']:.2f} to {ratio['cpu_highest']:.2f},"
                f" quietest rounds {ratio['cpu_quietest']:.2f}{aim}), p50 {ratio['p50']:.2f}, p99 {ratio['p99']:.2f}"
            )
    if start := report.get("start_up"):
        yield ""
        yield f"start-up over stdio: server/discover {start['discover_ms']:.0f} ms, tools/list after "
        yield f"  {start['tools_list_ms']:.0f} ms; python -c 'import mcp' takes {start['import_mcp_ms']:.0f} ms"
    if found := report.get("finding"):
        yield ""
        yield f"finding a tool among {found['tools']}: {found['search_ms']:.1f} ms of CPU,"
        yield (
            f"  {found['search_to_list']:.2f} of building their list ({found['list_ms']:.0f} ms);"
            f" the index takes {found['index_ms']:.0f} ms after each change"
        )
