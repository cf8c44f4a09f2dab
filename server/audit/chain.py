"""Append to an org's log: every entry carries the hash of the one before, so that none can be changed by itself."""

import hmac
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from server.audit.entry import (
    MAX_BODY,
    RESERVED,
    VERSION,
    Entry,
    Event,
    Head,
    TooLarge,
    canonical,
    checked_head,
    column,
    entry_hash,
    iso,
    log_hash,
)


class Rows(Protocol):
    """The part of an open write transaction that this room uses; `sqlite3.Connection` has it."""

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any: ...


def append(rows: Rows, org: str, event: Event, /, *, at_ms: int | None = None, **fields: Any) -> Entry:
    """Add one entry to the org's log, inside the caller's write transaction, and return it.

    The transaction must hold the write lock before this reads the log's end (SQLite: BEGIN IMMEDIATE); then any
    number of processes may append. `at_ms` is milliseconds since the epoch, now when not given. `fields` are JSON
    values; those that are None are left out, and none may be called v, org, seq, at or event.

    Raises `Damaged` when the log's last entry is not one of ours, `TooLarge`, and `TypeError` for what is no JSON.
    """
    if not RESERVED.isdisjoint(fields):
        raise TypeError(f"an entry's own fields cannot be given: {sorted(RESERVED & fields.keys())}")
    seq, previous = _next(rows, org)
    kind = str(event)
    at = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    body: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    body |= {"v": VERSION, "org": org, "seq": seq, "at": iso(at), "event": kind}
    text = canonical(body)
    if len(text) > MAX_BODY:
        raise TooLarge(f"An audit entry can hold {MAX_BODY} bytes and this one has {len(text)}. Send less at once.")
    own = entry_hash(bytes.fromhex(previous), text.encode()).hex()
    columns = (column(body.get("agent")), column(body.get("connection")))
    columns += (column(body.get("tool")), column(body.get("outcome")))
    rows.execute(_INSERT, (org, seq, at, kind, text, previous, own, *columns))
    return Entry(org=org, seq=seq, at=at, event=kind, text=text, previous=previous, hash=own)


def hash_value(key: bytes, name: str, value: Any) -> str:
    """A keyed hash that stands in the log for an argument's value: ``h1:`` and 128 bits in hex.

    HMAC-SHA256 over the length of the name, the name and the value's canonical JSON: equal values of one argument
    can be found again by who holds the org's key, and guessed by nobody else. `key` has at least 32 bytes.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"the key for argument hashes has {len(key)} bytes and needs {MIN_KEY}")
    label = name.encode("utf-8", "surrogatepass")
    message = _VALUE_TAG + len(label).to_bytes(8, "big") + label + canonical(value).encode()
    return f"h1:{hmac.digest(key, message, 'sha256')[:16].hex()}"


def argument_fields(key: bytes, arguments: Mapping[str, Any], *, plain: Collection[str] = ()) -> dict[str, Any]:
    """The fields ``arguments`` (every name with its keyed hash) and ``plain`` (the values that may be read)."""
    shown = {name: value for name, value in arguments.items() if name in plain}
    return {
        "arguments": {name: hash_value(key, name, value) for name, value in arguments.items()},
        "plain": shown or None,
    }


MIN_KEY = 32
_VALUE_TAG = b"keyleash/audit/value/v1\n"
_LAST = "SELECT seq, hash FROM audit_entry WHERE org = ? ORDER BY seq DESC LIMIT 1"
_INSERT = """INSERT INTO audit_entry (org, seq, at, event, body, previous, hash, agent, connection, tool, outcome)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""


def _next(rows: Rows, org: str) -> Head:
    """The next entry's number and what it follows."""
    last = rows.execute(_LAST, (org,)).fetchone()
    if last is None:
        return Head(1, log_hash(org))
    seq, previous = checked_head(*last)
    return Head(seq + 1, previous)
