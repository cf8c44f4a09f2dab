"""What an operator sees of a server: counts, times and spans, in which no argument, answer or secret stands."""

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry import metrics, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server import readiness, telemetry
from server.app import open_installation, running
from server.approval import Decision
from server.audit import AuditError, Head
from server.call import Parts, call
from server.clock import now_ms
from server.errors import (
    ApprovalRequired,
    AskFirst,
    Busy,
    CallRefused,
    Denied,
    KeysAway,
    OutcomeUnknown,
    VaultSealed,
)
from server.outside import AskThrough
from server.readiness import FRESH_S, Readiness
from server.telemetry import STANDING, WANTED, Standing, Telemetry, everything, exporting, listened_to, standing
from tests.agents import Nobody, decide, execute
from tests.installed import SECRET, Place
from tests.server.collectors import HttpCollector
from tests.servers import ServerProcess
from tests.serving import serving
from tests.upstream import Answer, Upstream

pytestmark = pytest.mark.anyio

WORD = "canary-of-an-argument"
REFUND = {"charge": WORD, "amount": 1200}


class Seen:
    """Everything that was told: points of metrics and spans."""

    def __init__(self) -> None:
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    @property
    def telemetry(self) -> Telemetry:
        return Telemetry(self.meters.get_meter("test"), self.tracers.get_tracer("test"))

    def points(self, name: str) -> list[Any]:
        found = self.reader.get_metrics_data()
        told = [] if found is None else found.resource_metrics[0].scope_metrics[0].metrics
        return [point for each in told if each.name == name for point in each.data.data_points]

    def spans(self, name: str) -> list[Any]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def text(self) -> str:
        found = self.reader.get_metrics_data()
        return "\n".join([found.to_json() if found else "", *(s.to_json() for s in self.exporter.get_finished_spans())])


@pytest.fixture
def seen() -> Iterator[Seen]:
    made = Seen()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


@pytest.fixture
async def parts(place: Place, seen: Seen) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield replace(opened, telemetry=seen.telemetry)


async def made(parts: Parts, place: Place, name: str, arguments: dict[str, Any], person: Any = None) -> None:
    try:
        await call(parts, place.caller(), name, arguments, person or Nobody())
    except (CallRefused, AskFirst) as refusal:
        assert WORD not in str(refusal) or isinstance(refusal, CallRefused)


def confirmed(place: Place) -> None:
    place.rule(who="everyone", tools=["stripe.*"], then="allow")


def denied(place: Place) -> None:
    place.rule(
        who="everyone",
        tools=["stripe.create_refund"],
        when=[{"argument": "amount", "op": "min", "value": 1}],
        then="deny",
    )


CAME: dict[str, tuple[str, dict[str, Any], Callable[[Place], object] | None, Answer | None]] = {
    "succeeded": ("stripe_create_refund", REFUND, confirmed, None),
    "failed": ("stripe_create_refund", REFUND, confirmed, Answer({"error": {"message": WORD, "code": WORD}}, 402)),
    "unknown": ("stripe_create_refund", REFUND, confirmed, Answer(hang_up=True)),
    "held": ("stripe_create_refund", REFUND, None, None),
    "refused": ("stripe_create_refund", REFUND, denied, None),
    "invalid arguments": ("stripe_create_refund", {**REFUND, WORD: 1}, None, None),
    "no such tool": (WORD, REFUND, None, None),
    "unrecorded": ("stripe_create_refund", REFUND, lambda place: (confirmed(place), place.refuse_entries()), None),
}
BOUND = {"succeeded", "failed", "unknown", "held", "refused", "unrecorded"}
NAMES = {
    "keyleash.org",
    "keyleash.connection",
    "keyleash.connector",
    "keyleash.tool",
    "keyleash.effect",
    "keyleash.ownership",
    "keyleash.ruling",
    "keyleash.outcome",
}


@pytest.mark.parametrize("outcome", CAME)
async def test_each_call_is_counted_by_what_became_of_it_and_by_nothing_that_was_sent(
    place: Place, parts: Parts, seen: Seen, upstream: Upstream, outcome: str
) -> None:
    name, arguments, prepare, answer = CAME[outcome]
    if prepare is not None:
        prepare(place)
    if answer is not None:
        upstream.answer = lambda _request: answer
    await made(parts, place, name, arguments)
    (point,) = seen.points("keyleash.calls")
    assert point.value == 1
    assert point.attributes["keyleash.outcome"] == outcome
    assert point.attributes["keyleash.org"] == "acme"
    assert set(point.attributes) == (NAMES if outcome in BOUND else {"keyleash.org", "keyleash.outcome"})
    (took,) = seen.points("keyleash.call.duration")
    assert took.count == 1
    assert [each.value for each in seen.points("keyleash.calls.under_way")] == [0]
    assert len(seen.points("keyleash.upstream.duration")) == len(upstream.requests[:1]), "tries are one sending"
    (span,) = seen.spans("keyleash.call")
    assert dict(span.attributes) == dict(point.attributes)
    told = seen.text()
    assert WORD not in told
    assert SECRET not in told
    assert "Traceback" not in told


REFUSED = {
    "asked": {AskFirst, AskThrough},
    "held": {ApprovalRequired},
    "busy": {Busy},
    "sealed": {VaultSealed, KeysAway},
    "unknown": {OutcomeUnknown},
    "denied": {Denied},
}


def test_what_is_raised_is_told_by_its_kind(place: Place, seen: Seen) -> None:
    kinds = [(word, kind) for word, several in REFUSED.items() for kind in several]
    for _, kind in kinds:
        with pytest.raises(kind), seen.telemetry.call(place.caller()):
            raise kind.__new__(kind)
    assert [each.attributes["keyleash.outcome"] for each in seen.spans("keyleash.call")] == [word for word, _ in kinds]


def test_who_only_traces_or_only_measures_is_told_and_nobody_costs_nothing(
    place: Place, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    assert isinstance(listened_to().call(place.caller()), nullcontext)
    with Telemetry(tracer=seen.tracers.get_tracer("test")).call(place.caller()):
        pass
    assert (len(seen.spans("keyleash.call")), seen.points("keyleash.calls")) == (1, [])
    with Telemetry(seen.meters.get_meter("test")).call(place.caller()):
        pass
    assert (len(seen.spans("keyleash.call")), len(seen.points("keyleash.calls"))) == (1, 1)


async def test_a_fault_of_ours_is_an_error_without_its_text(place: Place, parts: Parts, seen: Seen) -> None:
    with pytest.raises(AttributeError):
        await call(parts, place.caller(), "stripe_create_refund", REFUND, WORD)  # type: ignore[arg-type]
    (span,) = [each for each in seen.spans("keyleash.call") if each.attributes["keyleash.outcome"] == "internal error"]
    assert not span.status.is_ok
    assert span.events == ()
    assert WORD not in seen.text()


async def test_spans_show_what_took_the_time(place: Place, parts: Parts, seen: Seen, upstream: Upstream) -> None:
    await made(parts, place, "stripe_list_charges", {})
    (whole,) = seen.spans("keyleash.call")
    (sent,) = seen.spans("keyleash.send")
    assert {each.parent.span_id for each in (sent, *seen.spans("keyleash.record"))} == {whole.context.span_id}
    assert [each.attributes["keyleash.event"] for each in seen.spans("keyleash.record")] == [
        "call.attempt",
        "call.outcome",
    ]
    assert sent.attributes["http.response.status_code"] == 200
    assert sent.attributes["server.address"] == upstream.url
    assert sent.kind is trace.SpanKind.CLIENT
    (took,) = seen.points("keyleash.upstream.duration")
    assert dict(took.attributes) == {
        name: whole.attributes[name] for name in ("keyleash.connection", "keyleash.connector", "keyleash.tool")
    }
    written = {point.attributes["keyleash.written"] for point in seen.points("keyleash.audit.write.duration")}
    assert written == {"durable"}


async def test_an_entry_that_could_not_be_written_is_seen(place: Place, parts: Parts, seen: Seen) -> None:
    place.refuse_entries()
    await made(parts, place, "stripe_list_charges", {})
    (point,) = seen.points("keyleash.audit.write.duration")
    assert dict(point.attributes) == {"keyleash.event": "call.attempt", "keyleash.written": "failed"}


async def test_how_long_a_held_call_waited_is_seen_when_it_runs_and_a_replay_is_no_second_call(
    place: Place, parts: Parts, seen: Seen, upstream: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    decide(place, held.value.approval, Decision.APPROVE)
    execute(place, "UPDATE approval SET created_at = created_at - 60000")
    assert seen.points("keyleash.approval.wait") == []
    await made(parts, place, "stripe_create_refund", REFUND)
    (waited,) = seen.points("keyleash.approval.wait")
    assert waited.count == 1
    assert 60 <= waited.sum < 6000, "seconds"
    assert set(waited.attributes) == NAMES - {"keyleash.org", "keyleash.outcome"}
    await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody(), pointer=held.value.approval)
    assert sorted(point.attributes["keyleash.outcome"] for point in seen.points("keyleash.calls")) == [
        "held",
        "replayed",
        "succeeded",
    ]
    assert len(upstream.requests) == 1


@pytest.mark.both_databases
async def test_what_waits_and_what_is_lost_is_looked_up_for_every_org(place: Place, upstream: Upstream) -> None:
    seen = Seen()
    async with running(place.installation) as opened:
        parts = replace(opened, telemetry=seen.telemetry)
        moment = now_ms()
        parts.telemetry.watch(
            everything(place.installation.database, lambda: moment + 60_000, lambda: {place.org: Head(2, "")})
        )
        await made(parts, place, "stripe_create_refund", REFUND)
        gauges = {name: seen.points(name) for name, _, _ in STANDING}
    assert {name: [point.attributes["keyleash.org"] for point in points] for name, points in gauges.items()} == {
        name: ["acme"] for name, _, _ in STANDING
    }
    assert gauges["keyleash.approvals.pending"][0].value == 1
    (waits,) = place.installation.approvals.list(place.org)
    assert gauges["keyleash.approvals.oldest"][0].value == (moment + 60_000 - waits.created_at) / 1000
    assert gauges["keyleash.audit.entries"][0].value == place.events()[-1]["seq"]
    assert gauges["keyleash.audit.unsigned"][0].value == place.events()[-1]["seq"] - 2
    assert gauges["keyleash.calls.lost"][0].value == 0
    assert WORD not in seen.text()


@pytest.mark.both_databases
async def test_what_is_over_or_settled_is_not_counted(place: Place) -> None:
    async with running(place.installation) as parts:
        await made(parts, place, "stripe_create_refund", REFUND)
    columns = "org, id, attempt, agent, agent_name, connection, tool, effect, under_way, at"
    lost = (place.org, "lst_1", 7, "agt", "a", "stripe", "t", "write", False, 0)
    execute(place, f"INSERT INTO lost_call ({columns}) VALUES ({', '.join('?' * len(lost))})", *lost)
    (waits,) = place.installation.approvals.list(place.org)

    def stands(now: int = now_ms(), noted: int = 0) -> list[float]:
        found = standing(place.installation.database, place.org, now, noted)
        assert found is not None
        assert found.values["keyleash.approvals.oldest"] >= 0, "though the clock was set back"
        return [found.values[f"keyleash.{name}"] for name in ("approvals.pending", "calls.lost", "audit.unsigned")]

    entries = place.events()[-1]["seq"]
    assert stands() == [1, 1, entries]
    assert stands(waits.created_at - 1) == [1, 1, entries]
    assert stands(waits.expires_at) == [0, 1, entries]
    assert stands(noted=entries + 5) == [1, 1, 0], "signed while this was looked up"
    execute(place, "UPDATE approval SET state = 'unknown'")
    assert stands() == [0, 2, entries]
    execute(place, "UPDATE approval SET resolution = '{}'")
    assert stands() == [0, 1, entries]
    execute(place, "UPDATE lost_call SET under_way = ?", True)
    assert stands() == [0, 0, entries]
    execute(place, "UPDATE lost_call SET under_way = ?, resolution = '{}'", False)
    assert stands() == [0, 0, entries]
    assert standing(place.installation.database, "org_removed", now_ms()) is None


def test_one_collection_looks_once_for_all_gauges(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_TOGETHER_S", 1e9)
    looks = 0

    def look() -> list[Standing]:
        nonlocal looks
        looks += 1
        return [Standing("acme", {name: looks for name, _, _ in STANDING})]

    seen.telemetry.watch(look)
    found = seen.reader.get_metrics_data()
    assert found is not None
    told = {
        each.name: [point.value for point in each.data.data_points]
        for each in found.resource_metrics[0].scope_metrics[0].metrics
    }
    assert {name: told[name] for name, _, _ in STANDING} == {name: [1] for name, _, _ in STANDING}
    assert looks == 1
    monkeypatch.setattr(telemetry, "_TOGETHER_S", 0)
    assert [point.value for point in seen.points(STANDING[0][0])] == [2], "a later one looks anew"


def test_without_a_checkpoint_every_entry_is_unsigned_and_a_note_that_cannot_be_read_measures_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    def noted() -> dict[str, Head]:
        raise AuditError("the note is not what was written")

    (found,) = everything(place.installation.database, now_ms, dict)()
    assert found.values["keyleash.audit.unsigned"] == found.values["keyleash.audit.entries"] > 0
    assert everything(place.installation.database, now_ms, noted)() == []
    assert "what stands cannot be measured: the note is not what was written" in caplog.text


def test_a_database_that_is_gone_measures_nothing_and_breaks_nothing(
    place: Place, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    seen.telemetry.watch(everything(place.installation.database, now_ms, dict))
    place.installation.close()
    file = place.installation.settings.database
    file.rename(file.with_name("elsewhere"))
    assert seen.points("keyleash.audit.entries") == []
    assert "what stands cannot be measured" in caplog.text


# -- the collector


@pytest.fixture
def collector() -> Iterator[HttpCollector]:
    with HttpCollector() as made:
        yield made


async def called_over_http(process: ServerProcess, place: Place) -> None:
    import mcp_types as t
    from mcp import Client as McpClient
    from mcp.client.streamable_http import streamable_http_client

    headers = {"Authorization": f"Bearer {place.tokens['reconciler']}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http,
        McpClient(streamable_http_client(process.url, http_client=http)) as client,
    ):
        result = await client.call_tool("stripe_get_charge", {"charge": WORD})
        assert isinstance(result, t.CallToolResult)
        assert not result.is_error


def stopped(process: ServerProcess) -> tuple[int, str]:
    """Told to stop, as a service manager does; its exit code and what it wrote."""
    assert process.process is not None
    process.process.terminate()
    _, said = process.process.communicate(timeout=60)
    return process.process.returncode, said.decode()


async def test_a_server_sends_to_the_collector_that_its_environment_names(
    place: Place, upstream: Upstream, tmp_path: Path, collector: HttpCollector
) -> None:
    upstream.answer = lambda _request: Answer({"id": WORD, "amount": 5})
    process = ServerProcess(place, tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    await process.start()
    try:
        await called_over_http(process, place)
        code, said = stopped(process)
    finally:
        process.stop()
    assert code == 0
    spans, names, services = set[str](), set[str](), set[str]()
    for path, _, body in collector.requests:
        if path == "/v1/traces":
            for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                services |= {a.value.string_value for a in each.resource.attributes if a.key == "service.name"}
                spans |= {span.name for scope in each.scope_spans for span in scope.spans}
        else:
            assert path == "/v1/metrics"
            for whole in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                names |= {metric.name for scope in whole.scope_metrics for metric in scope.metrics}
    assert {"keyleash.call", "keyleash.send", "keyleash.record"} <= spans
    assert {"keyleash.calls", "keyleash.call.duration", "keyleash.audit.entries"} <= names
    assert services == {"keyleash"}
    sent = b"".join(request.body for request in collector.requests)
    for secret in (WORD, SECRET, place.tokens["reconciler"]):
        assert secret.encode() not in sent
        assert secret not in said


async def test_a_collector_that_is_away_holds_nothing_up(
    place: Place, upstream: Upstream, tmp_path: Path, collector: HttpCollector
) -> None:
    collector.close()
    process = ServerProcess(
        place, tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    )
    await process.start()
    try:
        await called_over_http(process, place)
        code, said = stopped(process)
    finally:
        process.stop()
    assert code == 0
    assert "Traceback" not in said
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["succeeded"]


@pytest.mark.parametrize(
    ("named", "sent"), [(0, {"traces", "metrics"}), (1, {"traces"}), (2, {"metrics"})], ids=["all", "traces", "metrics"]
)
def test_what_a_collector_is_named_for_has_gone_there_by_the_end(
    collector: HttpCollector, monkeypatch: pytest.MonkeyPatch, named: int, sent: set[str]
) -> None:
    made = watched(monkeypatch)
    monkeypatch.setenv(WANTED[named], collector.url + ("", "/v1/traces", "/v1/metrics")[named])
    with exporting("1.2.3"):
        for each in made:
            if isinstance(each, TracerProvider):
                each.get_tracer("test").start_span("span").end()
            else:
                each.get_meter("test").create_counter("count").add(1)
    told = {request.path.removeprefix("/v1/"): request.body for request in collector.requests}
    assert set(told) == sent
    assert len(made) == len(sent)
    whole = [
        *ExportTraceServiceRequest.FromString(told.get("traces", b"")).resource_spans,
        *ExportMetricsServiceRequest.FromString(told.get("metrics", b"")).resource_metrics,
    ]
    for one in whole:
        about = {each.key: each.value.string_value for each in one.resource.attributes}
        assert {name for name in about if not name.startswith("telemetry.sdk.")} == {
            *("service.name", "service.version", "service.instance.id"),
        }
        assert (about["service.name"], about["service.version"]) == ("keyleash", "1.2.3")


def test_a_service_has_the_name_that_the_environment_gives(
    collector: HttpCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = watched(monkeypatch)
    monkeypatch.setenv(WANTED[1], collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    with exporting("1"):
        assert made[0].resource.attributes["service.name"] == "ours"


@pytest.mark.parametrize("environ", [{}, {WANTED[0]: ""}, {WANTED[0]: "http://h", "OTEL_SDK_DISABLED": "True"}])
def test_where_nobody_listens_or_it_is_turned_off_nothing_is_set_up_nor_missed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, environ: dict[str, str]
) -> None:
    made = watched(monkeypatch)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with exporting("1", environ):
        assert made == []
    assert caplog.text == ""


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is set up from now on for this process, which keeps what it has."""
    made: list[Any] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)
    monkeypatch.setattr(metrics, "set_meter_provider", made.append)
    for name in (*WANTED, "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    return made


NOT_INSTALLED = """
import sys
sys.modules["opentelemetry.sdk"] = None
import logging
logging.basicConfig(level=logging.WARNING)
from server.telemetry import exporting
with exporting("1"):
    print("served")
"""


def test_without_the_extra_it_says_so_and_serves() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", NOT_INSTALLED],
        env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "served\n"
    assert "pip install 'keyleash[otel]'" in ran.stderr


# -- readiness


async def ready(url: str) -> tuple[int, dict[str, str]]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        reply = await client.get(url.replace("/agent/mcp", "/ready"))
    return reply.status_code, reply.json()


@pytest.mark.both_databases
async def test_a_server_that_can_carry_out_calls_is_ready(place: Place) -> None:
    async with serving(place.installation) as url:
        assert await ready(url) == (200, {"status": "ok", "database": "ok", "vault": "ok"})


async def test_a_sealed_server_is_up_and_not_ready(place: Place) -> None:
    (place.home / "keys" / "root.key").unlink()
    async with serving(open_installation(place.installation.settings)) as url:
        assert await ready(url) == (503, {"status": "not ready", "database": "ok", "vault": "sealed"})


async def test_a_database_of_another_release_or_none_is_not_ready(place: Place) -> None:
    time = [0.0]
    looking = Readiness(place.installation.database, place.installation.vault, lambda: time[0])
    assert await looking.look() == {"database": "ok", "vault": "ok"}
    place.database.write_now(lambda rows: rows.execute("UPDATE alembic_version SET version_num = '9999'"))
    assert (await looking.look())["database"] == "ok", "it is looked at once a second, however often strangers ask"
    time[0] += FRESH_S
    assert (await looking.look())["database"] == "another schema"
    place.database.write_now(lambda rows: rows.execute("DROP TABLE alembic_version"))
    time[0] += FRESH_S
    assert (await looking.look())["database"] in ("another schema", "cannot be read")
    place.installation.close()
    file = place.installation.settings.database
    file.rename(file.with_name("elsewhere"))
    time[0] += FRESH_S
    assert (await looking.look())["database"] == "cannot be read"


async def test_a_database_that_does_not_answer_is_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    over, waited_out = threading.Event(), list[str]()

    def silent(_: object) -> str:
        if not over.wait(20):
            waited_out.append("the whole of it")
        return ""

    monkeypatch.setattr(readiness, "PATIENCE_S", 0.01)
    monkeypatch.setattr(readiness, "schema_of", silent)
    try:
        found = await Readiness(place.installation.database, place.installation.vault).look()
    finally:
        over.set()
    assert found == {"database": "does not answer", "vault": "ok"}
    assert waited_out == []
