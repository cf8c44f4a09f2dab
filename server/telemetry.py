"""What whoever operates a server sees of it, by OpenTelemetry: no secret, and no value of an argument, is among it.

All of it is made with OpenTelemetry's API, which does nothing while nobody listens; a `Telemetry` that nobody listens
to costs a call next to nothing. `exporting` has its SDK send what is seen to the collector that the operator's
environment names.

Attributes are names that an admin or a connector's file gave, and words of the closed lists below. What an agent sends
is none of them: a tool's name only where there is such a tool.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace

from server.audit import AuditError, Head
from server.database import Database, DatabaseProblem
from server.errors import (
    ApprovalRequired,
    AskFirst,
    BadArguments,
    Busy,
    CallRefused,
    Denied,
    KeysAway,
    NoSuchTool,
    OutcomeUnknown,
    Unrecorded,
    VaultSealed,
)
from server.outside import AskThrough

if TYPE_CHECKING:
    from connectors.definition import Call
    from server.identity import Caller

log = logging.getLogger("keyleash")

SCOPE = "keyleash"

OUTCOMES: dict[type[BaseException], str] = {
    AskFirst: "asked",
    AskThrough: "asked",
    ApprovalRequired: "held",
    NoSuchTool: "no such tool",
    BadArguments: "invalid arguments",
    Denied: "denied",
    Busy: "busy",
    VaultSealed: "sealed",
    KeysAway: "sealed",
    OutcomeUnknown: "unknown",
    Unrecorded: "unrecorded",
    CallRefused: "refused",
}
"""What became of a call that did not come to its end; one that did succeeded, failed, is unknown, or was replayed."""

INTERNAL = "internal error"
REPLAYED = "replayed"


_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_PATIENCE = (1, 5, 10, 30, 60, 300, 900, 1800, 3600, 4 * 3600, 24 * 3600)

TIMES = (
    ("keyleash.call.duration", "How long a call took, with what a person took to decide.", _SECONDS),
    ("keyleash.upstream.duration", "How long the upstream took, opening the credential included.", _SECONDS),
    ("keyleash.audit.write.duration", "From handing an entry over until it is durable.", _SECONDS),
    ("keyleash.approval.wait", "From when a call was held until it was carried out.", _PATIENCE),
)


@dataclass
class Seen:
    """One call, as far as it is known."""

    attributes: dict[str, str] = field(default_factory=dict[str, str])
    outcome: str = ""

    def bound(self, call: "Call", *, ownership: str, ruling: str) -> None:
        """Which tool it is, and what the rules say."""
        self.attributes |= {
            "keyleash.connection": call.connection,
            "keyleash.connector": call.connector.id,
            "keyleash.tool": call.name,
            "keyleash.effect": call.tool.effect.value,
            "keyleash.ownership": ownership,
            "keyleash.ruling": ruling,
        }


class Telemetry:
    """Counts, times and traces calls; silent where it is given nobody to tell."""

    def __init__(self, meter: metrics.Meter | None = None, tracer: trace.Tracer | None = None) -> None:
        self._meter, self._tracer = meter, tracer
        self._silent = meter is None and tracer is None
        if meter is not None:
            self._calls = meter.create_counter("keyleash.calls", "{call}", "Calls of tools, by what became of them.")
            self._seconds, self._upstream, self._record, self._waited = (
                meter.create_histogram(name, "s", said, explicit_bucket_boundaries_advisory=bounds)
                for name, said, bounds in TIMES
            )
            self._under_way = meter.create_up_down_counter("keyleash.calls.under_way", "{call}")

    def call(self, caller: "Caller") -> AbstractContextManager[Seen]:
        """The whole of one call; what it raises is seen by its kind alone."""
        return nullcontext(Seen()) if self._silent else self._call(caller)

    @contextmanager
    def _call(self, caller: "Caller") -> Generator[Seen]:
        seen = Seen()
        org, began = {"keyleash.org": caller.org_name}, time.monotonic()
        if self._meter is not None:
            self._under_way.add(1, org)
        with self._span("keyleash.call", org) as span:
            try:
                yield seen
                seen.outcome = seen.outcome or REPLAYED  # it came to an end, and was not carried out for it
            except BaseException as error:
                seen.outcome = next((OUTCOMES[kind] for kind in type(error).mro() if kind in OUTCOMES), INTERNAL)
                raise
            finally:
                span.set_attributes({**seen.attributes, "keyleash.outcome": seen.outcome})
                if seen.outcome == INTERNAL:
                    span.set_status(trace.StatusCode.ERROR)
                if self._meter is not None:
                    told = {**org, **seen.attributes, "keyleash.outcome": seen.outcome}
                    self._under_way.add(-1, org)
                    self._calls.add(1, told)
                    self._seconds.record(time.monotonic() - began, told)

    def sending(self, seen: Seen, host: str, method: str) -> AbstractContextManager[dict[str, Any]]:
        """The part of a call that is the upstream's; of what the block is told, the `status` of the answer is shown."""
        return nullcontext(dict[str, Any]()) if self._silent else self._sending(seen, host, method)

    @contextmanager
    def _sending(self, seen: Seen, host: str, method: str) -> Generator[dict[str, Any]]:
        facts: dict[str, Any] = {}
        began = time.monotonic()
        about = {"server.address": host, "http.request.method": method}
        with self._span("keyleash.send", about, trace.SpanKind.CLIENT) as span:
            yield facts
            if type(facts.get("status")) is int:
                span.set_attribute("http.response.status_code", facts["status"])
        if self._meter is not None:
            names = ("keyleash.connection", "keyleash.connector", "keyleash.tool")
            self._upstream.record(
                time.monotonic() - began, {name: seen.attributes[name] for name in names if name in seen.attributes}
            )

    def recording(self, event: str) -> AbstractContextManager[None]:
        """Writing an entry and waiting until it is durable."""
        return nullcontext() if self._silent else self._recording(event)

    @contextmanager
    def _recording(self, event: str) -> Generator[None]:
        began, written = time.monotonic(), "failed"
        with self._span("keyleash.record", {"keyleash.event": event}):
            try:
                yield
                written = "durable"
            finally:
                if self._meter is not None:
                    told = {"keyleash.event": event, "keyleash.written": written}
                    self._record.record(time.monotonic() - began, told)

    def waited(self, seen: Seen, milliseconds: int) -> None:
        """A held call is carried out now."""
        if self._meter is not None:
            self._waited.record(milliseconds / 1000, dict(seen.attributes))

    def watch(self, look: Callable[[], Iterable["Standing"]]) -> None:
        """Have what stands in the database looked up whenever somebody collects."""
        if self._meter is None:
            return
        together = _once_for_all(look)
        for name, unit, said in STANDING:
            self._meter.create_observable_gauge(name, [_observing(together, name)], unit, said)

    def _span(
        self, name: str, attributes: Mapping[str, str], kind: trace.SpanKind = trace.SpanKind.INTERNAL
    ) -> AbstractContextManager[trace.Span]:
        if self._tracer is None:
            return nullcontext(trace.INVALID_SPAN)
        # The exception's text stays out: it may quote what it is about.
        return self._tracer.start_as_current_span(
            name, kind=kind, attributes=dict(attributes), record_exception=False, set_status_on_exception=False
        )


@dataclass(frozen=True)
class Standing:
    """What stands in the database about one org, by the name of the gauge that shows it."""

    org: str
    values: Mapping[str, float]


STANDING = (
    ("keyleash.approvals.pending", "{approval}", "Held calls that wait for a person."),
    ("keyleash.approvals.oldest", "s", "For how long the oldest of them has waited."),
    ("keyleash.calls.lost", "{call}", "Calls of which nobody has said what became of them."),
    ("keyleash.audit.entries", "{entry}", "Entries on record."),
    ("keyleash.audit.unsigned", "{entry}", "Of these, entries that no checkpoint vouches for yet."),
)

_PENDING = "SELECT COUNT(*), MIN(created_at) FROM approval WHERE org = ? AND state = 'pending' AND expires_at > ?"
_UNKNOWN = "SELECT COUNT(*) FROM approval WHERE org = ? AND state = 'unknown' AND resolution IS NULL"
_LOST = "SELECT COUNT(*) FROM lost_call WHERE org = ? AND NOT under_way AND resolution IS NULL"
_ENTRIES = "SELECT MAX(seq) FROM audit_entry WHERE org = ?"
_NAME = "SELECT name FROM org WHERE id = ?"


def standing(database: Database, org: str, now: int, noted: int = 0) -> Standing | None:
    """What stands about this org, whose log was signed up to `noted`; None for one that was removed.

    Raises DatabaseProblem.
    """
    own = database.of(org)
    name = own.read(_NAME, (org,))
    if not name:
        return None
    ((pending, oldest),) = own.read(_PENDING, (org, now))
    lost = int(own.read(_UNKNOWN, (org,))[0][0]) + int(own.read(_LOST, (org,))[0][0])
    entries = int(own.read(_ENTRIES, (org,))[0][0] or 0)
    return Standing(
        str(name[0][0]),
        {
            "keyleash.approvals.pending": int(pending),
            "keyleash.approvals.oldest": 0.0 if oldest is None else max(0, now - int(oldest)) / 1000,
            "keyleash.calls.lost": lost,
            "keyleash.audit.entries": entries,
            "keyleash.audit.unsigned": max(0, entries - noted),
        },
    )


def everything(
    database: Database, now: Callable[[], int], noted: Callable[[], Mapping[str, Head]]
) -> Callable[[], Iterable[Standing]]:
    """What stands about every org; nothing while the database, or how far the logs were `noted`, cannot be read."""

    def look() -> Iterable[Standing]:
        try:
            ends = noted()
            found = [standing(database, org, now(), ends[org].seq if org in ends else 0) for org in database.orgs()]
        except (DatabaseProblem, AuditError) as problem:
            log.warning("what stands cannot be measured: %s", problem)
            return []
        return [each for each in found if each is not None]

    return look


_TOGETHER_S = 1.0


def _once_for_all(look: Callable[[], Iterable[Standing]]) -> Callable[[], Iterable[Standing]]:
    """The same, looked up once for all gauges of a collection, which asks for them one after the other."""
    looked, found = -math.inf, list[Standing]()

    def together() -> Iterable[Standing]:
        nonlocal looked, found
        if time.monotonic() - looked >= _TOGETHER_S:
            found, looked = list(look()), time.monotonic()
        return found

    return together


def _observing(
    look: Callable[[], Iterable[Standing]], name: str
) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    def observe(_options: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        return [metrics.Observation(each.values[name], {"keyleash.org": each.org}) for each in look()]

    return observe


def listened_to() -> Telemetry:
    """Tells whoever listens in this process, and is silent where nobody does."""
    tracing = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    measuring = type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider"
    return Telemetry(
        metrics.get_meter(SCOPE) if measuring else None,
        trace.get_tracer(SCOPE) if tracing else None,
    )


WANTED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


@contextmanager
def exporting(release: str, environ: Mapping[str, str] = os.environ) -> Generator[None]:
    """Send traces and metrics over OTLP (HTTP, protobuf) inside of the block, where the environment names a collector.

    The variables are OpenTelemetry's own and read by its SDK. Only the operator sets them; the SDK goes out by itself.
    """
    if not any(environ.get(name) for name in WANTED) or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.error("a collector is named, and nothing is sent to it: pip install 'keyleash[otel]'")
        yield
        return
    named = {} if environ.get("OTEL_SERVICE_NAME") else {"service.name": SCOPE}
    resource = Resource.create({**named, "service.version": release})
    with contextlib.ExitStack() as ends:
        if environ.get(WANTED[0]) or environ.get(WANTED[1]):
            tracers = TracerProvider(resource=resource)
            tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
            trace.set_tracer_provider(tracers)
            ends.callback(tracers.shutdown)
        if environ.get(WANTED[0]) or environ.get(WANTED[2]):
            meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource)
            metrics.set_meter_provider(meters)
            ends.callback(meters.shutdown)
        yield
