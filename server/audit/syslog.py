"""One entry as a syslog message of RFC 5424, and how messages are told apart on a wire.

The structured data holds what is searched for, and the message is the entry's body, ASCII JSON byte for byte as it was
hashed: with `previous` beside it the hash can be recomputed. Keyleash has no enterprise number of its own;
`keyleash@32473` is of the number that is reserved for examples (RFC 5612). The host name is left out (`-`): which
machine exports says nothing about the entry.

On a wire the message may be a CEF line instead, which then stands alone behind the header, without structured data.
"""

from collections.abc import Callable
from typing import Any

from server.audit.cef import cef_line
from server.audit.entry import Entry, canonical
from server.audit.fields import fields_of, gravity, spelled

SD_ID = "keyleash@32473"
LONGEST_DATAGRAM = 60_000
"""Bytes of a message over UDP, which can carry 65,507; what would be longer goes without what may be long."""


def syslog_line(entry: Entry) -> str:
    """Without a line end; on one line whatever is in it."""
    return _message(entry, entry.text if entry.fits else canonical(entry.body), _IN_BODY)


def cef_message(entry: Entry) -> str:
    """A CEF line as syslog carries it."""
    fields = fields_of(entry)
    return f"{_priority(fields)}{_header(fields)} - {cef_line(entry)}"


Message = Callable[[Entry], str]

MESSAGES: dict[str, Message] = {"syslog": syslog_line, "cef": cef_message}
"""What a syslog receiver can be sent."""


def datagram(entry: Entry, message: Message = syslog_line) -> bytes:
    """For UDP: a message that would be too long says so and has only what finds the entry, whatever it would be."""
    whole = message(entry).encode()
    if len(whole) <= LONGEST_DATAGRAM:
        return whole
    short = _message(entry, canonical({"left_out": f"{len(whole)} bytes: too long for UDP"}), None)
    return short.encode()


def framed(entry: Entry, message: Message = syslog_line) -> bytes:
    """For TCP and TLS: its length in octets first, as RFC 6587 (3.4.1) and RFC 5425 (4.3.1) say."""
    whole = message(entry).encode()
    return str(len(whole)).encode() + b" " + whole


_FACILITY = 13
"""`log audit`."""
_SEVERITY = (6, 5, 4)
"""By gravity: informational, notice, warning."""
_IN_BODY = frozenset({"arguments", "plain", "usage", "other"})
_FINDS = ("seq", "at", "event", "org", "outcome", "previous", "hash")


def _message(entry: Entry, text: str, left_out: frozenset[str] | None) -> str:
    fields = fields_of(entry)
    shown = [name for name in fields if (name in _FINDS if left_out is None else name not in left_out)]
    data = " ".join(f'{name}="{_escaped(spelled(fields[name]))}"' for name in shown)
    return f"{_priority(fields)}{_header(fields)} [{SD_ID} {data}] {text}"


def _priority(fields: dict[str, Any]) -> str:
    """With the version of the format."""
    return f"<{_FACILITY * 8 + _SEVERITY[gravity(fields)]}>1 "


def _header(fields: dict[str, Any]) -> str:
    event = str(fields.get("event", ""))
    named = event if event.isascii() and event.isprintable() and " " not in event and 0 < len(event) <= 32 else "-"
    return f"{fields.get('at') or '-'} - keyleash - {named}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")
