"""A client's first probe is answered before the imports, with the very words that the server itself would use."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from server.app import protocol_server, release, running
from server.protocol import discovery as of_the_server
from server.stdio import VERSIONS, answer_to, discovery
from tests import postgres
from tests.installed import Place

PROBE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": "probe-1",
    "method": "server/discover",
    "params": {"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}},
}
INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 2,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "old client", "version": "1"},
    },
}


@pytest.mark.anyio
async def test_the_early_answer_is_the_servers_own(place: Place) -> None:
    async with running(place.installation) as parts:
        server = protocol_server(place.installation, parts, lambda _ctx: place.caller())
        assert discovery(release()) == of_the_server(server)
    assert list(MODERN_PROTOCOL_VERSIONS) == VERSIONS


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"method": "server/discover"}',
        json.dumps({**PROBE, "params": {"_meta": {"io.modelcontextprotocol/protocolVersion": "1999-01-01"}}}).encode(),
        json.dumps({**PROBE, "method": "tools/list"}).encode(),
        json.dumps(INITIALIZE).encode(),
    ],
)
def test_only_a_probe_is_answered_early(line: bytes) -> None:
    assert answer_to(line, "0") is None


def test_a_probe_then_initialize_on_one_pipe_gets_both_answers(place: Place) -> None:
    """Clients probe, give up while Python imports, and then send `initialize` on the same pipe."""
    replies = served(place, [PROBE, INITIALIZE, {"jsonrpc": "2.0", "method": "notifications/initialized"}])
    assert replies["probe-1"]["result"]["supportedVersions"] == VERSIONS
    assert replies[2]["result"]["protocolVersion"] == "2025-06-18"
    assert replies[2]["result"]["serverInfo"]["version"] == version("keyleash")
    assert replies[2]["result"]["capabilities"]["tools"] == {"listChanged": True}


def test_a_late_second_probe_does_not_fix_the_era_either(place: Place) -> None:
    replies = served(place, [PROBE, {**PROBE, "id": "probe-2"}, INITIALIZE])
    assert "result" in replies["probe-2"]
    assert "result" in replies[2]


def test_what_anything_prints_stays_off_the_protocols_pipe(place: Place) -> None:
    noise = "import logging; logging.getLogger('x'); import server.app as a; f = a.open_installation\n"
    noise += "def loud(s): print('NOISE ON STDOUT', flush=True); return f(s)\na.open_installation = loud\n"
    process = run(place, [INITIALIZE], prelude=noise)
    assert "NOISE" not in process.stdout
    assert "NOISE" in process.stderr


def test_an_unknown_agent_is_one_clear_line_and_no_traceback(place: Place) -> None:
    process = run(place, [], agent="nobody")
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1
    assert "keyleash agent list" in process.stderr
    assert process.stdout == ""


def served(place: Place, requests: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Send these lines, close the pipe, and return the replies by id."""
    lines = [json.loads(line) for line in run(place, requests).stdout.splitlines()]
    return {line["id"]: line for line in lines if "id" in line}


def run(
    place: Place, requests: list[dict[str, Any]], *, agent: str = "reconciler", prelude: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the console script's own entry with these lines on its standard input."""
    return subprocess.run(
        [sys.executable, "-c", f"{prelude}from server.cli import main; main()", "serve", "--agent", agent],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env={**os.environ, **postgres.environment(place.home), "KEYLEASH_HOME": str(place.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
