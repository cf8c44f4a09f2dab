"""Answer a client's first probe before anything heavy is imported, then serve it.

Clients probe with `server/discover` and give up while Python is still importing; this module imports only what the
standard library has until that probe is answered.
"""

import json
import select
import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from io import BufferedReader

VERSIONS = ["2026-07-28"]
"""What the probe is told; a test holds it to the SDK's list."""
INSTRUCTIONS = (
    "These tools act on your organisation's own accounts. You never need, and never get, a key. Some calls wait for a "
    "person: if a result says that approval is required, go on with other work and repeat exactly the same call later. "
    "Do not look for another way around a refusal. Where there are too many tools to list, search_tools finds them."
)
"""What every client is told about this server."""
_META = "io.modelcontextprotocol/protocolVersion"
WAIT_S = 0.15
"""How long to wait for a probe before the imports begin; a client that probes does so at once."""


def first_answer(release: str) -> None:
    """Answer probes that are already there, or arrive at once; leave everything else unread."""
    stdin = cast("BufferedReader", sys.stdin.buffer)
    while _ready(stdin):
        line = stdin.peek()
        if b"\n" not in line:
            return
        answer = answer_to(line.split(b"\n", 1)[0], release)
        if answer is None:
            return
        stdin.readline()
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def answer_to(line: bytes, release: str) -> bytes | None:
    """The answer to a probe, as one line without its end; None for anything that is not a probe."""
    try:
        request: Any = json.loads(line)
        probe = request["method"] == "server/discover" and request["params"]["_meta"][_META] in VERSIONS
        number = request["id"]
    except (ValueError, KeyError, TypeError):
        return None
    if not probe:
        return None
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": discovery(release)}).encode()


def discovery(release: str) -> dict[str, Any]:
    """What the server itself would answer; a test compares the two."""
    return {
        "cacheScope": "private",
        "capabilities": {"tools": {"listChanged": True}},
        "instructions": INSTRUCTIONS,
        "resultType": "complete",
        "supportedVersions": VERSIONS,
        "ttlMs": 0,
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "keyleash", "title": "Keyleash", "version": release}},
    }


def _ready(stdin: Any) -> bool:
    if sys.platform == "win32":
        return False  # pipes cannot be waited for there: the server itself answers, a second later
    readable, _, _ = select.select([stdin], [], [], WAIT_S)
    return bool(readable)
