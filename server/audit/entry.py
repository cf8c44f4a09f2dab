"""What one audit entry is: the closed vocabulary of events, the canonical body, and how it is hashed.

An entry's *body* is one line of ASCII JSON: keys sorted, no spaces, every other character as a ``\\u`` escape, so
that no value can start a second entry and the text survives any database, file or terminal byte for byte. It holds
everything that is known of the event, the entry's own place included: ``v`` (1), ``org``, ``seq`` (1, 2, 3, …),
``at`` (``2026-01-31T08:05:09.123Z``), ``event``, then the fields that `server.audit.chain.append` was given.

The fields of a call, each where it is known: ``agent``, ``agent_id``, ``member``, ``member_id``, ``client``,
``client_version``, ``transport``, ``address``; ``connection``, ``account``, ``ownership`` (own or managed),
``credential_version``, ``source`` (vault, or the kind of place where a reference says that the secret is); ``tool``,
``definition``, ``effect``; ``verdict``, ``rules``, ``reason``; ``approval``, ``grant``, ``work`` (the name of a grant
that was prepared ahead), ``approver``, ``channel``, ``known_by`` (of the approval, or of the grant); ``arguments``
(names with keyed hashes, of every call whose arguments were in form; the outcome's stand at its attempt), ``plain``
(what the definition lets be read); ``host``, ``method``, ``status``, ``bytes``, ``milliseconds``, ``request_id``,
``usage`` and ``quota`` (what the provider reports), ``error``, ``code``; ``outcome``, and with it ``attempt``, the
number of the attempt that it ends. Other events have what they need, under the same names where the meaning is the
same.

Hashes, all SHA-256 and written as 64 lower-case hex digits, so that anyone can recompute them in any language::

    log(org)                = SHA-256("keyleash/audit/log/v1\\n" + org in UTF-8)
    hash of an entry        = SHA-256("keyleash/audit/entry/v1\\n" + previous (32 bytes)
                                      + length of the body in bytes (8 bytes, big-endian) + body in UTF-8)
    previous                = the hash of the entry before; log(org) for entry 1
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, cast

VERSION = 1
MAX_BODY = 16 * 1024 * 1024
"""Longest body in bytes; `append` refuses more, and a verifier need not hold more than one of these in memory."""

MAX_DEPTH = 64
RESERVED = frozenset({"v", "org", "seq", "at", "event"})
DAMAGED = "this is not what Keyleash wrote: run `keyleash audit verify`"
TOO_DEEP = f"[left out: nested deeper than {MAX_DEPTH} levels]"


class AuditError(Exception):
    """Nothing was recorded, read or written; the message says what to do next."""


class CannotRead(AuditError):
    """The database did not give the log."""


class Damaged(AuditError):
    """The log itself is not what Keyleash wrote."""


class TooLarge(AuditError):
    """The entry would be longer than `MAX_BODY`."""


class ExportFailed(AuditError):
    """The file could not be written; nothing half-written is left."""


class Event(StrEnum):
    """Everything that can be on record. The list only grows: a name, once used, keeps its meaning (`events.py`)."""

    CALL_ATTEMPT = "call.attempt"  # durable before any secret is opened
    CALL_OUTCOME = "call.outcome"  # durable before the client hears; names its attempt
    CALL_REFUSED = "call.refused"
    CALL_HELD = "call.held"
    CALL_UNKNOWN = "call.unknown"  # an attempt whose process was gone before its outcome; a later outcome is the truth
    CALL_REPLAYED = "call.replayed"  # a stored outcome was told again, or (`continued`) further; nothing was sent

    APPROVAL_OPENED = "approval.opened"
    APPROVAL_DECIDED = "approval.decided"
    APPROVAL_DECLINED_IN_CLIENT = "approval.declined_in_client"
    APPROVAL_EXPIRED = "approval.expired"
    APPROVAL_CANCELLED = "approval.cancelled"
    APPROVAL_STALE = "approval.stale"
    APPROVAL_UNKNOWN = "approval.unknown"  # carried out or not: the process died in between
    APPROVAL_RESOLVED = "approval.resolved"  # a person says what became of an unknown outcome
    APPROVALS_EMPTIED = "approvals.emptied"  # what was sealed of old ones is gone; who decided what stays
    GRANT_CREATED = "grant.created"
    GRANT_REVOKED = "grant.revoked"
    GRANT_EXPIRED = "grant.expired"

    ORG_CREATED = "org.created"
    ORG_REMOVED = "org.removed"
    ORG_FROZEN = "org.frozen"
    ORG_UNFROZEN = "org.unfrozen"
    MEMBER_CREATED = "member.created"
    MEMBER_CHANGED = "member.changed"
    MEMBER_REMOVED = "member.removed"
    AGENT_CREATED = "agent.created"
    AGENT_CHANGED = "agent.changed"
    AGENT_ROTATED = "agent.rotated"
    AGENT_REMOVED = "agent.removed"
    AGENT_TURNED_AWAY = "agent.turned_away"  # a valid token, used from where its agent may not call

    CONNECTION_CREATED = "connection.created"
    CONNECTION_CHANGED = "connection.changed"
    CONNECTION_ROTATED = "connection.rotated"
    CONNECTION_TESTED = "connection.tested"
    CONNECTION_REMOVED = "connection.removed"
    CONNECTION_RENEWED = "connection.renewed"  # its tokens, by OAuth; or why not. The credential's version stays
    CONNECTION_NEEDS_CONSENT = "connection.needs_consent"  # tokens or key are taken no more: a person has to act
    CONNECTION_REVOKED = "connection.revoked"  # after it was removed: whether its provider has ended its tokens

    MANAGED_OFFERED = "managed.offered"  # by the operator: an account of theirs, on the terms that are named
    MANAGED_CHANGED = "managed.changed"  # its terms
    MANAGED_WITHDRAWN = "managed.withdrawn"
    MANAGED_SET_ASIDE = "managed.set_aside"  # the org does without it; the offer stands
    MANAGED_TAKEN_UP = "managed.taken_up"  # the org uses it again

    TOOL_HELD = "tool.held"  # what its wrapped server says of it is not what was reviewed, or it is gone
    TOOL_REVIEWED = "tool.reviewed"  # a person has seen the difference, and it is pinned from now on
    TOOL_RETURNED = "tool.returned"  # held no longer: its file and its server agree, or the file has it no more

    CONNECTOR_TEST_BEGUN = "connector.test_begun"  # durable before its credential is opened; names the reads
    CONNECTOR_TESTED = "connector.tested"

    CHANNEL_CREATED = "channel.created"
    CHANNEL_ROTATED = "channel.rotated"
    CHANNEL_TESTED = "channel.tested"
    CHANNEL_DISABLED = "channel.disabled"  # the receiver said that it is gone for good
    CHANNEL_REMOVED = "channel.removed"
    CHANNEL_GAVE_UP = "channel.gave_up"  # a notice could not be delivered within a day

    BUDGET_CREATED = "budget.created"
    BUDGET_CHANGED = "budget.changed"
    BUDGET_REMOVED = "budget.removed"
    BUDGET_WARNED = "budget.warned"  # so much of it was used as people wanted to be told at
    BUDGET_REACHED = "budget.reached"  # it is used up: further calls wait for a person until its window ends

    RULE_ADDED = "rule.added"
    RULE_REMOVED = "rule.removed"
    PRESET_CHANGED = "preset.changed"
    RULES_APPLIED = "rules.applied"  # the whole set was replaced by a file's, or by that of an earlier version
    RULES_REPLAYED = "rules.replayed"  # a draft was tried on the calls that are kept; nothing was called

    VAULT_OPENED = "vault.opened"
    VAULT_SEALED = "vault.sealed"
    VAULT_ROOT_ROTATED = "vault.root_rotated"
    VAULT_ROOT_DROPPED = "vault.root_dropped"
    VAULT_ORG_ROTATED = "vault.org_rotated"
    VAULT_BACKED_UP = "vault.backed_up"
    VAULT_RESTORED = "vault.restored"
    VAULT_ROLLBACK_ACCEPTED = "vault.rollback_accepted"  # an older database was put back by hand, and is to be used
    VAULT_ROOT_EXPORTED = "vault.root_exported"  # the root key, into a file under a passphrase
    VAULT_ROOT_RECOVERED = "vault.root_recovered"  # and out of it, where the key's own place was lost

    ERASURE_COMPLETED = "erasure.completed"  # what was removed before is gone from the database's files as well

    AUDIT_LISTED = "audit.listed"
    AUDIT_EXPORTED = "audit.exported"
    AUDIT_STREAMED = "audit.streamed"  # each start of a stream; not what it then reads
    AUDIT_HASHED = "audit.hashed"  # a value's keyed hash was asked for; names the arguments, never the value
    AUDIT_VERIFIED = "audit.verified"
    AUDIT_KEY_MADE = "audit.key_made"  # the public key that checkpoints of this log are signed with, from now on
    AUDIT_CHECKPOINTED = "audit.checkpointed"  # a person asked for a checkpoint, which covers this entry
    AUDIT_CHECKPOINT_REFUSED = "audit.checkpoint_refused"  # this log is not the one that was signed: cut off or forked
    AUDIT_PRUNED = "audit.pruned"  # entries were removed; a signed stub stands in their place

    INSTALLATION_CREATED = "installation.created"
    INSTALLATION_UPGRADED = "installation.upgraded"
    DATABASE_MOVED = "database.moved"  # everything is about to be carried to another database, or that `failed`


class Head(NamedTuple):
    """How far a log goes. Noted outside the database, it is what finds a truncation or a rewrite later."""

    seq: int
    hash: str

    def __str__(self) -> str:
        """As a person notes it: ``7:<64 hex digits>``."""
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """What `str` wrote. Raises `ValueError` with the form that is expected."""
        found = _NOTED.fullmatch(text.strip())
        if found is None:
            raise ValueError("a head is noted as NUMBER:HASH, the hash being 64 hex digits, as `audit verify` shows it")
        return cls(int(found[1]), found[2].lower())


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as it is stored. `at` is milliseconds since the epoch; `text` is the body, byte for byte as hashed.

    An `Entry` is what the database holds, checked by nobody: `verify_database` says whether it is true.
    """

    org: str
    seq: int
    at: int
    event: str
    text: str
    previous: str
    hash: str

    @property
    def body(self) -> dict[str, Any]:
        """`text` parsed, each time it is asked for; ``{"damaged": …}`` where it is not what Keyleash writes."""
        try:
            return parse(self.text)
        except (ValueError, AttributeError):
            return {"damaged": DAMAGED}

    @property
    def fits(self) -> bool:
        """Whether it can stand on one line as Keyleash wrote it: nothing in its stored form has another shape."""
        try:
            parse(self.text)
        except (ValueError, AttributeError):
            return False
        return "\n" not in self.text and all(_HEX.fullmatch(str(own)) for own in (self.previous, self.hash))

    @property
    def head(self) -> Head:
        return Head(self.seq, self.hash)


def checked_head(seq: Any, own: Any) -> Head:
    """A stored head that can be followed; raises `Damaged`."""
    if not (type(seq) is int and isinstance(own, str) and _HEX.fullmatch(own)):
        raise Damaged("The last entry of the audit log was altered. Run `keyleash audit verify` before anything else.")
    return Head(seq, own)


def log_hash(org: str) -> str:
    """What entry 1 of this org's log follows: the hash of the empty log."""
    return hashlib.sha256(b"keyleash/audit/log/v1\n" + org.encode("utf-8", "surrogatepass")).hexdigest()


def entry_hash(previous: bytes, body: bytes) -> bytes:
    """The 32-byte hash of an entry; see the module's text."""
    return hashlib.sha256(_ENTRY_TAG + previous + len(body).to_bytes(8, "big") + body).digest()


def canonical(value: Any) -> str:
    """The one spelling of a JSON value: what was written can be parsed and comes out the same again.

    JSON has no word for NaN, the infinities and integers of more than 4,000 digits: they become strings. What is
    nested deeper than 64 levels is left out, in words. Anything that is not JSON at all is a `TypeError`: record
    what happened, not the object it happened to.
    """
    try:
        text = _encode(value)
    except (ValueError, RecursionError):
        text = _encode(_plain(value))
    if text.count("[") + text.count("{") > MAX_DEPTH:
        text = _encode(_plain(value))
    if "\\ud" in text:
        # Two halves of a character that were apart are one as soon as they are read: sort and spell them as read.
        text = _encode(json.loads(text))
    return text


def parse(text: str | bytes) -> dict[str, Any]:
    """A body as a dict. `ValueError` for anything but one JSON object, and for an object that has a key twice.

    Readers disagree on which of two equal keys counts; an entry that reads two ways is not evidence.
    """
    try:
        value = _decoder.decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004 -- one exception for every text that is no body
    return cast("dict[str, Any]", value)


def iso(at_ms: int) -> str:
    """Milliseconds since the epoch as ``2026-01-31T08:05:09.123Z``."""
    seconds, rest = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def column(value: Any) -> str | None:
    """A body's value as the searchable column beside it holds it: short, and storable whatever an agent sent."""
    if value is None:
        return None
    text = value if isinstance(value, str) else canonical(value)
    return (canonical(text)[1:-1] if _UNSTORABLE.search(text) else text)[:MAX_COLUMN]


MAX_COLUMN = 200
_ENTRY_TAG = b"keyleash/audit/entry/v1\n"
_NOTED = re.compile(r"([1-9][0-9]{0,18}):([0-9a-fA-F]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")
_UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        return hex(value)
    if not isinstance(value, dict | list | tuple):
        return value
    if depth == MAX_DEPTH:
        return TOO_DEEP
    if isinstance(value, dict):
        return {_key(key): _plain(each, depth + 1) for key, each in cast("dict[Any, Any]", value).items()}
    return [_plain(each, depth + 1) for each in cast("list[Any]", value)]


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a JSON object has no key of type {type(key).__name__}")
    return key


MAX_INTEGER_BITS = 13_000  # Python refuses to read or write more than 4,300 digits: 14,285 bits


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
