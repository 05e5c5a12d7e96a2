"""Trace context, and the spans that a collector receives."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.observability import tracing
from service.observability.tracing import Tracer, parse_traceparent
from service.settings import Settings
from service.web.app import create_app
from tests.conftest import free_port
from tests.unit.observability.conftest import SPAN, TRACE, TRACEPARENT


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([TRACEPARENT], TRACE),
        ([f"00-{TRACE}-{SPAN}-00"], TRACE),
        ([f"cc-{TRACE}-{SPAN}-01"], TRACE),
        ([f"cc-{TRACE}-{SPAN}-01-what-comes-later"], TRACE),
        ([], None),
        ([TRACEPARENT, TRACEPARENT], None),
        ([""], None),
        ([TRACEPARENT.upper()], None),
        ([f" {TRACEPARENT}"], None),
        ([f"{TRACEPARENT}\n"], None),
        ([f"{TRACEPARENT}-more"], None),
        ([f"cc-{TRACE}-{SPAN}-01.more"], None),
        ([f"ff-{TRACE}-{SPAN}-01"], None),
        ([f"00-{'0' * 32}-{SPAN}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE[:-1]}-{SPAN}-01"], None),
        ([f"00-{TRACE}-{SPAN}-1"], None),
        ([f"00-{TRACE[:-1]}g-{SPAN}-01"], None),
        ([f"00-{TRACE}-{SPAN}"], None),
    ],
)
def test_a_traceparent_is_taken_only_when_it_is_valid(values: list[str], found: str | None) -> None:
    parent = parse_traceparent(values)
    assert (parent and parent.trace_id) == found


class Collector:
    """An OpenTelemetry collector that keeps the requests that it receives."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        requests = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def spans(self) -> list[Span]:
        scopes = [scope for request in self.requests for one in request.resource_spans for scope in one.scope_spans]
        return [span for scope in scopes for span in scope.spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join(5)


def facts(span: Span) -> dict[str, str | int | float]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_and_its_stages(collector: Collector, models: Path, jpeg: bytes) -> None:
    app = create_app(Settings(models=models, device="cpu", otlp_endpoint=f"{collector.url}/"))

    async def scene() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
            return [
                await client.post("/colorize", files={"file": ("secret.jpg", jpeg)}, headers=headers),
                await client.get("/wp-login.php?secret=1"),
            ]

    before = time.time_ns()
    answers = asyncio.run(scene())
    after = time.time_ns()
    assert [answer.status_code for answer in answers] == [200, 404]
    app.state.tracer.stop()
    spans = collector.spans()
    roots = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    assert [root.name for root in roots] == ["POST /colorize", "GET other"]
    root, missing = roots
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert facts(root)["http.response.status_code"] == 200
    assert facts(root)["tomau.request_id"] == "mine"
    assert facts(missing)["error.type"] == "not_found"
    assert missing.status.code == Status.STATUS_CODE_UNSET, "what the client did wrong is no error of the service"
    assert missing.trace_id.hex() != TRACE
    stages = [span for span in spans if span.parent_span_id == root.span_id]
    assert [stage.name for stage in stages] == ["receive", "decode", "infer", "merge", "encode"]
    for stage in stages:
        assert stage.trace_id.hex() == TRACE
        assert before <= root.start_time_unix_nano <= stage.start_time_unix_nano
        assert stage.start_time_unix_nano <= stage.end_time_unix_nano <= root.end_time_unix_nano <= after
    for one, following in pairwise(stages):
        assert one.end_time_unix_nano <= following.start_time_unix_nano + 1000
    resource = collector.requests[0].resource_spans[0].resource
    assert {each.key: each.value.string_value for each in resource.attributes}["service.name"] == "tomau"
    assert b"secret" not in b"".join(request.SerializeToString() for request in collector.requests)


def test_a_trace_that_its_caller_does_not_record_is_not_recorded_here(collector: Collector) -> None:
    tracer = Tracer(collector.url)
    parent = tracing.parse_traceparent([f"00-{TRACE}-{SPAN}-00"])
    span = tracer.start(parent)
    assert span.trace_id == TRACE, "the log still names it"
    access = {"method": "GET", "route": "/livez", "status": 200, "code": "", "bytes": 1, "request_id": "x"}
    span.end(0.0, {}, {}, access)
    tracer.stop()
    assert collector.spans() == []


def test_a_collector_that_is_gone_delays_the_end_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EXPORT_S", 0.5)
    tracer = Tracer(f"http://127.0.0.1:{free_port()}")
    access = {"method": "GET", "route": "/livez", "status": None, "code": "client_gone", "bytes": 1, "request_id": "x"}
    tracer.start(None).end(0.0, {}, {}, access)
    started = time.monotonic()
    tracer.stop()
    assert time.monotonic() - started < 20, "the exporter itself would try for a minute"


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("http://127.0.0.1:4318", "TOMAU_OTLP_ENDPOINT is set, but OpenTelemetry is not installed (pip install"),
        ("collector:4318", "TOMAU_OTLP_ENDPOINT: "),
    ],
)
def test_a_missing_extra_is_said_in_a_line(models: Path, endpoint: str, reason: str) -> None:
    code = "import sys; sys.modules['opentelemetry.sdk.trace'] = None; from service.cli import main; main(['serve'])"
    environment = os.environ | {"TOMAU_OTLP_ENDPOINT": endpoint, "TOMAU_MODELS": str(models)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("tomau: ")
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr
