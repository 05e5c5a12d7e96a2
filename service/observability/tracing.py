"""W3C trace context, and the spans of requests and their stages for an OpenTelemetry collector.

The OpenTelemetry library is an optional dependency. It is imported only if a collector is configured.
"""

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.trace import Tracer as Spans

# https://www.w3.org/TR/trace-context/: lower case, no id of zeros, no version ff. Later versions may add fields.
TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# The timeout of one export, and of all remaining exports when the service stops.
EXPORT_S = 5.0
NANO = 1_000_000_000


class TracingError(RuntimeError):
    """Spans can't be exported."""


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's trace and span ids, as hexadecimal digits, and the flags of the trace."""

    trace_id: str
    span_id: str
    flags: int


def parse_traceparent(values: Sequence[str]) -> Parent | None:
    """Parse the `traceparent` headers of a request. Return None unless there is exactly one and it is valid."""
    found = TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    return Parent(found[2], found[3], int(found[4], 16))


class Tracer:
    """Creates spans, and sends them to a collector from a separate thread."""

    def __init__(self, endpoint: str) -> None:
        """Connect to a collector. Raise TracingError if the OpenTelemetry library is missing.

        endpoint: the collector's address for OTLP over HTTP, without the path.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingError(
                f"TOMAU_OTLP_ENDPOINT is set, but OpenTelemetry is not installed (pip install 'tomau[otel]'): {error}"
            ) from error
        exporter = OTLPSpanExporter(f"{endpoint.removesuffix('/')}/v1/traces", timeout=EXPORT_S)
        ours = Resource({"service.name": "tomau", "service.version": version("tomau")})
        # This provider is not the global one, because FastAPI would then add its own spans.
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._spans = self._provider.get_tracer("tomau")

    def start(self, parent: Parent | None) -> "RequestSpan":
        """Start the span of a request."""
        return RequestSpan(self._spans, parent)

    def stop(self) -> None:
        """Send the remaining spans, for at most EXPORT_S."""
        # With a collector that does not respond, each batch of spans may take as long as the timeout.
        last = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        last.start()
        last.join(EXPORT_S)


class RequestSpan:
    """The span of one request. Its end also creates the spans of its stages."""

    def __init__(self, spans: "Spans", parent: Parent | None) -> None:
        from opentelemetry import trace

        context = None
        if parent is not None:
            ids = int(parent.trace_id, 16), int(parent.span_id, 16)
            theirs = trace.SpanContext(*ids, is_remote=True, trace_flags=trace.TraceFlags(parent.flags))
            context = trace.set_span_in_context(trace.NonRecordingSpan(theirs))
        self._spans = spans
        self._begun = time.time_ns()
        self._span: Span = spans.start_span("request", context, trace.SpanKind.SERVER, start_time=self._begun)
        self.trace_id = trace.format_trace_id(self._span.get_span_context().trace_id)

    def end(
        self, started: float, begun: Mapping[str, float], seconds: Mapping[str, float], access: Mapping[str, Any]
    ) -> None:
        """End the span, and create the spans of the stages.

        started, begun: the times at which the request and its stages began, in seconds of one clock. seconds: the
        duration of each stage. access: the values of the request's log line.

        The stage `queue` is an attribute and not a span, because a photo waits twice: for a thread and an executor.
        """
        from opentelemetry import trace

        span = self._span
        span.update_name(f"{access['method']} {access['route']}")
        span.set_attributes(
            {
                "http.request.method": access["method"],
                "http.route": access["route"],
                "http.response.body.size": access["bytes"],
                "tomau.request_id": access["request_id"],
            }
        )
        if "queue" in seconds:
            span.set_attribute("tomau.queue_seconds", seconds["queue"])
        if access["status"]:
            span.set_attribute("http.response.status_code", access["status"])
        if access["code"]:
            span.set_attribute("error.type", access["code"])
        if not access["status"] or access["status"] >= 500:
            span.set_status(trace.StatusCode.ERROR)
        context = trace.set_span_in_context(span)
        for stage, moment in begun.items():
            start = self._begun + round((moment - started) * NANO)
            self._spans.start_span(stage, context, start_time=start).end(start + round(seconds[stage] * NANO))
        span.end()
