"""What an operator sees of a server: counts, times and spans, in which no argument, answer or secret stands."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.app import open_installation, running
from server.approval import Decision
from server.audit import Head
from server.call import Parts, call
from server.clock import now_ms
from server.errors import AskFirst, CallRefused
from server.readiness import FRESH_S, Readiness
from server.telemetry import STANDING, Standing, Telemetry, everything
from tests.agents import Nobody, decide
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
        metrics = [] if found is None else found.resource_metrics[0].scope_metrics[0].metrics
        return [point for each in metrics if each.name == name for point in each.data.data_points]

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
    from server.errors import ApprovalRequired

    with pytest.raises(ApprovalRequired) as held:
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody())
    decide(place, held.value.approval, Decision.APPROVE)
    assert seen.points("keyleash.approval.wait") == []
    await made(parts, place, "stripe_create_refund", REFUND)
    (waited,) = seen.points("keyleash.approval.wait")
    assert waited.count == 1
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


def test_one_collection_looks_once_for_all_gauges(seen: Seen) -> None:
    looks = 0

    def look() -> list[Standing]:
        nonlocal looks
        looks += 1
        return [Standing("acme", {name: looks for name, _, _ in STANDING})]

    seen.telemetry.watch(look)
    found = seen.reader.get_metrics_data()
    assert found is not None
    metrics = found.resource_metrics[0].scope_metrics[0].metrics
    told = {each.name: [point.value for point in each.data.data_points] for each in metrics}
    assert {name: told[name] for name, _, _ in STANDING} == {name: [1] for name, _, _ in STANDING}
    assert looks == 1


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
    readiness = Readiness(place.installation.database, place.installation.vault, lambda: time[0])
    assert await readiness.look() == {"database": "ok", "vault": "ok"}
    place.database.write_now(lambda rows: rows.execute("UPDATE alembic_version SET version_num = '9999'"))
    assert (await readiness.look())["database"] == "ok", "it is looked at once a second, however often strangers ask"
    time[0] += FRESH_S
    assert (await readiness.look())["database"] == "another schema"
    place.database.write_now(lambda rows: rows.execute("DROP TABLE alembic_version"))
    time[0] += FRESH_S
    assert (await readiness.look())["database"] in ("another schema", "cannot be read")
