"""One entry as an OpenTelemetry log record, in OTLP's JSON: each line is one ExportLogsServiceRequest.

That is what the collector's file receiver reads and what `/v1/logs` takes. The record's body is the entry's body, byte
for byte as it was hashed.
"""

import json
from typing import Any

from server.audit.entry import Entry, canonical
from server.audit.fields import encodable, fields_of, gravity, meaning, release


def otlp_line(entry: Entry) -> str:
    """Without its line end."""
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
    scope = {"scope": {"name": "keyleash.audit", "version": release()}, "logRecords": [record]}
    resource = {"attributes": [_attribute("service.name", "keyleash"), _attribute("service.version", release())]}
    return json.dumps({"resourceLogs": [{"resource": resource, "scopeLogs": [scope]}]}, separators=(",", ":"))


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
