"""What every format writes of an entry: its fields in one order, and one spelling of each value as a text.

A value that is a text stands as it is, unless something in it is not seen for what it is (controls, line ends, marks
that turn the direction, halves of characters) or it begins like JSON: then, like every number, list and object, it is
JSON in ASCII. So a reader who finds a quotation mark, a bracket or a brace at its beginning parses it, and has the
value.
"""

import re
from functools import lru_cache
from typing import Any

from server.audit.entry import Entry, Event, canonical, iso
from server.audit.events import BY_EFFECT, CREATE, DELETE, MEANINGS, OTHER, READ, UPDATE

FIELDS = (
    *("seq", "at", "event", "org", "member", "agent", "agent_id", "by", "client", "client_version", "transport"),
    *("address", "connection", "account", "ownership", "credential_version", "source", "tool", "definition", "effect"),
    *("verdict", "rules", "reason", "approval", "grant", "work", "approver", "channel", "known_by", "arguments"),
    *("plain", "host", "method", "status", "bytes", "milliseconds", "request_id", "usage", "error", "code", "attempt"),
    *("outcome", "other", "previous", "hash"),
)
"""Every field that has a name in all formats; what else an entry holds is in `other`, an object."""

INFORMATION, NOTICE, WARNING = range(3)


def fields_of(entry: Entry) -> dict[str, Any]:
    """The fields of an entry that have a value, in order; of an altered one, what stands beside its body."""
    body = entry.body
    own = {"seq": entry.seq, "org": entry.org, "previous": entry.previous, "hash": entry.hash}
    if "at" not in body:
        own |= {"at": iso(entry.at) if type(entry.at) is int and 0 <= entry.at < _YEAR_9999 else None}
        own |= {"event": entry.event}
    other = {name: value for name, value in body.items() if name not in _NAMED}
    every = {**body, **own, "other": other or None}
    return {name: every[name] for name in FIELDS if every.get(name) is not None}


def spelled(value: Any) -> str:
    """A value as a text; the rule is in the module's text."""
    plainly = isinstance(value, str) and value[:1] not in _READS_AS_JSON and not _UNSEEN.search(value)
    return value if plainly else canonical(value)


def encodable(value: Any) -> Any:
    """The same JSON value, with every text that is not valid Unicode in its spelling as JSON."""
    if isinstance(value, str):
        return canonical(value) if _SURROGATE.search(value) else value
    if isinstance(value, dict):
        return {encodable(str(name)): encodable(each) for name, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - any JSON
    if isinstance(value, list):
        return [encodable(each) for each in value]  # pyright: ignore[reportUnknownVariableType] - any JSON
    return value


def meaning(event: Any) -> str:
    """The event in words; itself where it is none of ours."""
    known = MEANINGS.get(event)
    return spelled(event) if known is None else known.text


def activity(event: Any, effect: Any) -> int:
    """What kind of activity an event is, as an id of OCSF's."""
    known = MEANINGS.get(event)
    if known is None:
        return OTHER
    return known.activity if known.activity != BY_EFFECT else _BY_EFFECT.get(str(effect), BY_EFFECT)


def gravity(fields: dict[str, Any]) -> int:
    """INFORMATION, NOTICE for what did not come to pass, or WARNING for what went wrong or is not known."""
    outcome = fields.get("outcome")
    if outcome in ("failed", "unknown", "altered", "unverifiable") or "damaged" in fields.get("other", ()):
        return WARNING
    stopped = outcome in ("refused", "denied", "held") or fields.get("event") in _NOTABLE
    return NOTICE if stopped else INFORMATION


@lru_cache(maxsize=1)
def release() -> str:
    """This release's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("keyleash")
    except PackageNotFoundError:
        return "0"


_NAMED = frozenset(FIELDS) - {"other"} | {"v"}
_YEAR_9999 = 253_402_300_800_000
_READS_AS_JSON = frozenset('"[{')
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff0-\uffff\U000e0000-\U000e0fff]"
)
_BY_EFFECT = {
    **{"read": READ, "metered": READ, "sensitive": READ, "write": UPDATE, "send": CREATE, "spend": CREATE},
    **{"destroy": DELETE, "grant": UPDATE},
}
_NOTABLE = frozenset({Event.AGENT_TURNED_AWAY, Event.CHANNEL_GAVE_UP, Event.APPROVAL_STALE, Event.APPROVAL_EXPIRED})
