"""One entry as a line of ArcSight's Common Event Format (CEF 0), in which no value opens a second field or line.

Where CEF's own dictionary has a name with the same meaning, that is used; every other field is `keyleash…`. Values are
spelled as `fields.py` says, in UTF-8, so that none holds a line end; then a backslash stands before ``\\`` and ``=``,
and in the header before ``\\`` and ``|``.
"""

import ipaddress
from collections.abc import Iterator
from typing import Any

from server.audit.entry import Entry
from server.audit.fields import fields_of, gravity, meaning, release, spelled


def cef_line(entry: Entry) -> str:
    """Without its line end."""
    fields = fields_of(entry)
    event = fields.get("event", "")
    header = ("CEF:0", "Keyleash", "Keyleash", release(), event, meaning(event), str(_SEVERITY[gravity(fields)]))
    values = [pair for name, value in fields.items() if name != "event" for pair in _pairs(name, value, entry)]
    extension = " ".join(f"{key}={_escaped(spelled(value), '=')}" for key, value in values)
    return "|".join(_escaped(spelled(part), "|") for part in header) + f"|{extension}"


_SEVERITY = (3, 5, 7)
"""By gravity, of 0 to 10."""

_KEYS = {
    **{"seq": "externalId", "member": "suser", "agent": "sourceServiceName", "client": "requestClientApplication"},
    **{"connection": "destinationServiceName", "verdict": "act", "reason": "reason", "host": "request"},
    **{"method": "requestMethod", "outcome": "outcome", "tool": "cs1", "hash": "cs2", "previous": "cs3"},
}
_LABELS = {"cs1": "tool", "cs2": "hash", "cs3": "previous", "cn1": "status", "cn2": "milliseconds"}
_NUMBERS = {"bytes": "in", "status": "cn1", "milliseconds": "cn2"}


def _pairs(name: str, value: Any, entry: Entry) -> Iterator[tuple[str, Any]]:
    """A field under CEF's name for it, with the label that a custom one has."""
    key = _KEYS.get(name) or _own(name)
    if name == "at" and type(entry.at) is int:
        key, value = "rt", entry.at
    elif name == "address":
        key = _address_key(value) or key
    elif name in _NUMBERS and type(value) is int:
        key = _NUMBERS[name]
    yield key, value
    if key in _LABELS:
        yield f"{key}Label", _LABELS[key]
    if key == "c6a2":
        yield "c6a2Label", "Source IPv6 Address"


def _own(name: str) -> str:
    return "keyleash" + "".join(part.capitalize() for part in name.split("_"))


def _address_key(address: Any) -> str | None:
    try:
        return {4: "src", 6: "c6a2"}[ipaddress.ip_address(address).version]
    except ValueError:
        return None


def _escaped(text: str, special: str) -> str:
    return text.replace("\\", "\\\\").replace(special, f"\\{special}")
