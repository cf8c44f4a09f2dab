"""One entry as an event of the Open Cybersecurity Schema Framework 1.9.0: API Activity, with record integrity.

`raw_data` is the entry's body, byte for byte as it was hashed. The attestation of the profile `record_integrity` is the
log's own chain: the fingerprint is the entry's hash, over the hash before it and `raw_data` as `entry.py` says, and
names that serialization; the other attributes are a view of `raw_data`, and no fingerprint covers them. It is not
signed: checkpoints are. What the schema has no place for stands in `unmapped` under Keyleash's names.
"""

import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

from server.audit.entry import Entry
from server.audit.fields import activity, encodable, fields_of, gravity, meaning, release

VERSION = "1.9.0"
SERIALIZATION = "keyleash/audit/entry/v1"


def ocsf_line(entry: Entry) -> str:
    """Without its line end."""
    return json.dumps(ocsf_event(entry), separators=(",", ":"))


def ocsf_event(entry: Entry) -> dict[str, Any]:
    fields = encodable(fields_of(entry))
    kind, status = activity(fields.get("event"), fields.get("effect")), _status(fields)
    event: dict[str, Any] = {
        **{"category_uid": 6, "class_uid": 6003, "activity_id": kind, "type_uid": 600300 + kind},
        "activity_name": _ACTIVITIES[kind] if kind in _ACTIVITIES else fields.get("event", "Other"),
        "severity_id": 1 + gravity(fields),
        **{"status_id": status, "status": _STATUSES.get(status) or str(fields.get("outcome", "attempted"))},
        "time": entry.at if type(entry.at) is int else 0,
        "message": meaning(fields.get("event")),
        "metadata": _metadata(entry, fields),
        **{"actor": _actor(fields), "api": _api(fields), "src_endpoint": _source(fields)},
        **_sent(fields),
        "raw_data": encodable(str(entry.text)),
        **_integrity(entry),
        "unmapped": {name: value for name, value in fields.items() if name not in _MAPPED},
    }
    return {**event, **_why(fields)}


def _why(fields: dict[str, Any]) -> dict[str, Any]:
    """The source's own code, and what it says."""
    said = {
        "status_code": fields.get("code", fields.get("status")),
        "status_detail": fields.get("reason", fields.get("error")),
    }
    return {name: _text(value) for name, value in said.items() if value is not None}


_ACTIVITIES = {0: "Unknown", 1: "Create", 2: "Read", 3: "Update", 4: "Delete"}
_STATUSES = {0: "Unknown", 1: "Success", 2: "Failure"}
_MAPPED = frozenset(
    {"seq", "at", "org", "event", "member", "agent", "agent_id", "connection", "tool", "previous", "hash"}
)
"""What stands whole elsewhere. The rest is repeated in `unmapped`, where it has the type that Keyleash gave it."""


def _status(fields: dict[str, Any]) -> int:
    """Unknown, Success, Failure, or 99, Other: there the status is the outcome in our own word."""
    outcome = fields.get("outcome")
    if outcome is None:
        return 99 if fields.get("event") == "call.attempt" else 1
    succeeded = outcome in ("succeeded", "replayed", "intact")
    failed = outcome in ("failed", "refused", "denied", "altered")
    return 1 if succeeded else 2 if failed else 0 if outcome == "unknown" else 99


def _metadata(entry: Entry, fields: dict[str, Any]) -> dict[str, Any]:
    org, seq = fields["org"], fields.get("seq")
    found = {
        "version": VERSION,
        "profiles": ["record_integrity"],
        "product": {"name": "Keyleash", "vendor_name": "Keyleash", "version": release()},
        "log_name": "audit",
        "tenant_uid": _text(org),
        "event_code": _text(fields.get("event", "")),
    }
    if type(seq) is int:
        found |= {"uid": f"{org}:{seq}", "sequence": seq, "correlation_uid": f"{org}:{fields.get('attempt', seq)}"}
    return found


def _actor(fields: dict[str, Any]) -> dict[str, Any]:
    person = fields.get("member", fields.get("by", fields.get("approver")))
    user = {} if person is None else {"user": {"name": _text(person)}}
    app = {"app_name": fields.get("agent"), "app_uid": fields.get("agent_id")}
    named = {name: _text(value) for name, value in app.items() if value is not None}
    agreed = [{"decision": _text(fields["verdict"]), **policy} for policy in _policies(fields)]
    found = {**user, **named} or {"invoked_by": "Keyleash"}
    return {**found, "authorizations": agreed} if agreed else found


def _policies(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if "verdict" not in fields:
        return []
    rules: Any = fields.get("rules")
    named = [{"policy": {"uid": _text(rule)}} for rule in rules] if isinstance(rules, list) else []  # pyright: ignore[reportUnknownVariableType] - any JSON
    return named or [{}]


def _api(fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"operation": _text(fields.get("tool", fields.get("event", "")))}
    if "connection" in fields:
        found["service"] = {"name": _text(fields["connection"])}
    if "error" in fields:
        found["response"] = {"error": _text(fields["error"])}
    return found


def _source(fields: dict[str, Any]) -> dict[str, Any]:
    """Where the request came from, or by which door where that has no address."""
    try:
        return {"ip": str(ipaddress.ip_address(fields["address"]))}
    except (KeyError, ValueError):
        return {"name": _text(fields.get("transport", "Keyleash"))}


def _sent(fields: dict[str, Any]) -> dict[str, Any]:
    """What went to the upstream and came back."""
    found: dict[str, Any] = {}
    url = _url(fields.get("host"))
    if url is not None:
        found["dst_endpoint"] = {name: url[name] for name in ("hostname", "port") if name in url}
    method, uid = fields.get("method"), fields.get("request_id")
    request = {"http_method": method if method in _METHODS else None, "url": url, "uid": uid and _text(uid)}
    if any(value is not None for value in request.values()):
        found["http_request"] = {name: value for name, value in request.items() if value is not None}
    numbers = {name: value for name, value in fields.items() if type(value) is int}
    if "status" in numbers:
        measured = {"code": "status", "length": "bytes", "latency": "milliseconds"}
        found["http_response"] = {name: numbers[ours] for name, ours in measured.items() if ours in numbers}
    return found


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _url(origin: Any) -> dict[str, Any] | None:
    if not isinstance(origin, str):
        return None
    try:
        parts = urlsplit(origin)
        found = {"url_string": origin, "scheme": parts.scheme, "hostname": parts.hostname, "port": parts.port}
    except ValueError:
        return None
    return {name: value for name, value in found.items() if value} if parts.hostname else None


def _integrity(entry: Entry) -> dict[str, Any]:
    """The chain, where the stored hashes are hashes."""
    if not entry.fits or type(entry.seq) is not int:
        return {}
    attestation: dict[str, Any] = {"chain_uid": f"keyleash:{entry.org}", "fingerprint": _fingerprint(entry.hash)}
    if entry.seq > 1:
        before = {"uid": f"{entry.org}:{entry.seq - 1}", "fingerprint": _fingerprint(entry.previous)}
        attestation["prev_event"] = before
    return {"attestation_list": [attestation]}


def _fingerprint(value: str) -> dict[str, Any]:
    return {
        **{"algorithm_id": 3, "algorithm": "SHA-256", "encoding_id": 1, "encoding": "Hex"},
        **{"serialization_id": 99, "serialization": SERIALIZATION, "value": value},
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
