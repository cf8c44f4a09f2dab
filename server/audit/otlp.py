"""One entry as an OpenTelemetry log record, in OTLP's JSON: a line of an export is one ExportLogsServiceRequest.

That is what the collector's file receiver reads and what `/v1/logs` takes. The record's body is the entry's body, byte
for byte as it was hashed.
"""

import json
from collections.abc import Iterable
from typing import Any

from server.audit.entry import Entry, canonical
from server.audit.fields import encodable, fields_of, gravity, meaning, release


def otlp_line(entry: Entry) -> str:
    """Without its line end."""
    return request_of([record_of(entry)])


def record_of(entry: Entry) -> str:
    """The LogRecord alone."""
    fields = fields_of(entry)
    severity, text = _SEVERITY[gravity(fields)]
    event = str(encodable(fields.get("event", "")))
    named = {**fields, "meaning": meaning(event)}
    record: dict[str, Any] = {
        **({"timeUnixNano": str(entry.at * 1_000_000)} if _in_nanoseconds(entry.at) else {}),
        "severityNumber": severity,
        "severityText": text,
        "eventName": f"keyleash.{event}",
        "body": {"stringValue": entry.text if entry.fits else canonical(entry.body)},
        "attributes": [_attribute(_NAMES.get(name, f"keyleash.{name}"), value) for name, value in named.items()],
    }
    return json.dumps(record, separators=(",", ":"))


def request_of(records: Iterable[str]) -> str:
    """One request with these records."""
    scope = {"scope": {"name": "keyleash.audit", "version": release()}, "logRecords": list[str]()}
    resource = {"attributes": [_attribute("service.name", "keyleash"), _attribute("service.version", release())]}
    empty = json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}, separators=(",", ":"))
    return f"{empty.removesuffix(_END)}{','.join(records)}{_END}"


_END = "]}]}]}"
"""Of the records, their scopes and their resources."""

_SEVERITY = ((9, "INFO"), (10, "NOTICE"), (13, "WARN"))
_NAMES = {"method": "http.request.method", "status": "http.response.status_code", "address": "client.address"}
"""Where OpenTelemetry's conventions have a name with the same meaning."""


def _attribute(name: str, value: Any) -> dict[str, Any]:
    return {"key": name, "value": _value(value)}


def _value(value: Any) -> dict[str, Any]:
    """OTLP's AnyValue; a list or an object is its JSON, as backends flatten or drop them otherwise."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return {"intValue": str(value)}
    return {"stringValue": encodable(value) if isinstance(value, str) else canonical(value)}


def _in_nanoseconds(at: Any) -> bool:
    return type(at) is int and 0 <= at < 2**64 // 1_000_000
