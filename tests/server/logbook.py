"""An org's log in memory, and texts that try to be more than one entry."""

import sqlite3
from pathlib import Path
from typing import Any

from server.audit import Entry, Event, append

ORG = "org_1"
TABLE = """CREATE TABLE audit_entry (
    org TEXT, seq INTEGER, at INTEGER, event TEXT, body TEXT, previous TEXT, hash TEXT,
    agent TEXT, connection TEXT, tool TEXT, outcome TEXT, PRIMARY KEY (org, seq))"""
HOSTILE = (
    *("a\nb\r\nc", "\n<110>1 2026-01-01T00:00:00Z - keyleash - forged - x", "\r", "a\x85\u2028\u2029b", "a\0b"),
    *("a\ud800b", "\udfff", "a|b", "a=b", "x\\", "\\n", "\\\\=", "a ]b", '"]', "[x]", '{"a":1}', 'a" hash="0'),
    *("CEF:0|a|b|c|d|e|f|", "x externalId=1", " leading and trailing ", "=cmd|'/c calc'!A1", "+1", "-1", "@SUM(A1)"),
    *(
        "\u202eevil\u202c",
        "\ufeffa",
        "a\u200bb",
        "\x1b[2J",
        "%0a",
        "${jndi:x}",
        "<a&b>",
        "😀 é",
        "",
        "-",
        "x" * 100_000,
    ),
)


class Logbook:
    """Entries as they are written, without a file or an installation."""

    def __init__(self) -> None:
        self.sql = sqlite3.connect(":memory:")
        self.sql.execute(TABLE)

    def add(self, event: Event = Event.CALL_OUTCOME, **fields: Any) -> Entry:
        return append(self.sql, ORG, event, **fields)


def whole_call(text: str) -> dict[str, Any]:
    """The fields of an outcome, with one text in each that an agent, an upstream or a person could have a hand in."""
    return {
        **{"member": text, "agent": text, "agent_id": "agt_1", "client": text, "client_version": text},
        **{"transport": "http", "address": "2001:db8::1", "connection": "stripe", "account": text, "ownership": "own"},
        **{"credential_version": 3, "source": "vault", "tool": text, "definition": "d" * 64, "effect": "spend"},
        **{"verdict": "approve", "rules": ["rul_1", text], "reason": text, "approval": "apr_1", "grant": text},
        **{"work": text, "approver": text, "channel": "command line", "known_by": "os user"},
        **{"arguments": {"charge": "h1:" + "0" * 32, text: "h1:" + "1" * 32}, "plain": {"note": text, text: [text]}},
        **{"host": "https://api.stripe.com", "method": "POST", "status": 402, "bytes": 120, "milliseconds": 31},
        **{"request_id": text, "usage": {"tokens_in": 5}, "error": text, "code": text, "attempt": 1},
        **{"outcome": "failed", "something_else": text, "large": 2**70, "fraction": 0.5, "truth": True},
    }


def vendor_file(distribution: str, name: str) -> Path:
    """A file of an installed package, of which nothing is run."""
    from importlib.metadata import distribution as installed

    return Path(str(installed(distribution).locate_file(name)))
