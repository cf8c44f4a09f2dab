"""How long a client waits for `keyleash serve` over stdio, beside the import that nobody can do without."""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.contest import AGENT, CONSOLE_SCRIPT, ROOT, BenchProblem, started
from tests.bench.wire import message


def startup(home: Path, times: int) -> dict[str, Any]:
    """Milliseconds, the median of `times` starts, until the answer to the probe and until the tools are listed."""
    discovered: list[float] = []
    listed: list[float] = []
    imported: list[float] = []
    for _ in range(times):
        imported.append(_import_mcp())
        first, second = _start(home)
        discovered.append(first)
        listed.append(second)
    figures = {"import_mcp_ms": imported, "discover_ms": discovered, "tools_list_ms": listed}
    return {name: round(statistics.median(found), 1) for name, found in figures.items()}


def _import_mcp() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mcp"], cwd=ROOT, check=True)
    return (time.perf_counter() - began) * 1e3


def _start(home: Path) -> tuple[float, float]:
    began = time.perf_counter()
    with started("-c", CONSOLE_SCRIPT, "serve", "--agent", AGENT, KEYLEASH_HOME=str(home)) as server:
        _ask(server, message("server/discover"), b"supportedVersions")
        discovered = time.perf_counter() - began
        _ask(server, message("tools/list"), b"stripe_list_charges")
        listed = time.perf_counter() - began
    return discovered * 1e3, listed * 1e3


def _ask(server: subprocess.Popen[bytes], request: bytes, expected: bytes) -> None:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(request + b"\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if expected not in answer:
        raise BenchProblem(f"over stdio, keyleash answered {answer[:500]!r}")
