"""The middleware that gives each request an id, logs, counts and traces it, and turns errors into responses."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone, Draining, InternalError, OutOfMemory, Problem
from service.observability.metrics import Metrics
from service.observability.tracing import RequestSpan, Tracer, parse_traceparent
from service.runtime.freeze_watchdog import await_named
from service.runtime.request_context import request_id, trace_id

log = logging.getLogger(__name__)

ID_HEADER = b"x-request-id"
TRACE_HEADER = b"traceparent"
# The key of a request's exchange in its ASGI scope.
EXCHANGE = "tomau.exchange"
# The key of the problem that the connection has responded with, without the app.
REFUSED = "tomau.refused"
VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Probes request these every few seconds. Their successes are not logged.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})

# A refused client may still send this much, for this long, before its connection is closed.
DRAIN_BYTES = 64 << 20
DRAIN_S = 10.0
# The same time when the service stops.
LAST_DRAIN_S = 1.0


def server_timing(seconds: Mapping[str, float]) -> str:
    """Return the value of a Server-Timing header. Its unit is milliseconds."""
    return ", ".join(f"{stage};dur={1000 * duration:.1f}" for stage, duration in seconds.items())


def record_stages(scope: Scope, seconds: Mapping[str, float], begun: Mapping[str, float]) -> None:
    """Add the stages of the request's photo to its log line and trace. begun: times of `time.monotonic`."""
    exchange: _Exchange = scope[EXCHANGE]
    exchange.seconds, exchange.begun = seconds, begun


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _id_of(scope: Scope) -> str:
    given = next(iter(_headers(scope, ID_HEADER)), "")
    return given if VALID_ID.fullmatch(given) else uuid.uuid4().hex


class Telemetry:
    """Gives each request its id, logs, counts and traces it, and turns every exception into a response."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        parent = parse_traceparent(_headers(scope, TRACE_HEADER))
        span = self._tracer.start(parent) if self._tracer else None
        exchange = _Exchange(scope, receive, send, span)
        scope[EXCHANGE] = exchange
        known = span or parent
        tokens = request_id.set(exchange.id), trace_id.set(known.trace_id if known else None)
        try:
            await await_named(exchange.id, partial(self.app, scope, exchange.receive, exchange.send))
        except Problem as problem:
            await exchange.refuse(problem)
        except asyncio.CancelledError:
            _stop_cancellation()
            await exchange.cut_off()
        except MemoryError:
            log.exception("not enough memory for a request")
            await exchange.refuse(OutOfMemory("there is not enough memory for the request"))
        except Exception:
            log.exception("unexpected fault")
            await exchange.refuse(InternalError("an unexpected fault; the service's log has it under the request's id"))
        finally:
            exchange.end(self._metrics)
            request_id.reset(tokens[0])
            trace_id.reset(tokens[1])


def _stop_cancellation() -> None:
    """Let the task of a request send its last response. Only the end of the service cancels a request."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Exchange:
    """One request and its response: the messages received and sent so far."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, span: RequestSpan | None) -> None:
        self.id = _id_of(scope)
        self.seconds: Mapping[str, float] = {}
        self.begun: Mapping[str, float] = {}
        self._scope = scope
        self._receive = receive
        self._send = send
        self._span = span
        self._started = time.monotonic()
        headers = {key for key, _ in scope["headers"]}
        self._body_is_whole = not headers & {b"content-length", b"transfer-encoding"}
        self._status: int | None = None
        self._code = ""
        # The detail of a refusal with 503 or 504, as one code has many causes. An internal error has its own log lines.
        self._detail = ""
        self._sent = 0
        self._is_complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._code = self._code or ClientGone.code
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_is_whole = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), (ID_HEADER, self.id.encode())]
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b""))
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    async def cut_off(self) -> None:
        """Respond that the service is stopping. A response that has begun stays incomplete."""
        problem = Draining("the service stopped before the response was ready")
        if self._status is None:
            await self.refuse(problem, drain_s=LAST_DRAIN_S)
        self._code = self._code or problem.code

    async def refuse(self, problem: Problem, *, drain_s: float = DRAIN_S) -> None:
        """Respond with a problem. Read on while the client still sends, else it would not read the response."""
        self._code = problem.code
        if problem.status > HTTPStatus.INTERNAL_SERVER_ERROR:
            self._detail = problem.detail
        if isinstance(problem, ClientGone):
            self._status = self._status or problem.status
            return
        if self._status is not None:
            raise RuntimeError("the response failed after it had begun") from problem
        body = json.dumps(problem.body(self.id)).encode()
        headers = {"content-type": "application/problem+json", "content-length": str(len(body)), **problem.headers()}
        still_sends = not self._body_is_whole
        if still_sends:
            headers["connection"] = "close"
        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": still_sends})
        if still_sends:
            await self._drain(drain_s)
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _drain(self, seconds: float) -> None:
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(seconds):
                while left > 0 and not self._body_is_whole:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            log.info("a refused client still sends, and its connection is closed")

    def end(self, metrics: Metrics) -> None:
        """Count, log and trace the request."""
        refused: Problem | None = self._scope.get(REFUSED)
        if refused is not None:
            self._status, self._code = refused.status, refused.code
        seconds = time.monotonic() - self._started
        method, route = self._scope["method"], metrics.route_of(self._scope)
        metrics.request(route, method, self._status, self._code, seconds)
        # The raw path is still percent-encoded, so that it has no line breaks.
        path = self._scope["raw_path"].decode("ascii", "replace")
        access = {
            "method": method,
            "path": path,
            "route": route,
            "status": self._status,
            "code": self._code,
            "seconds": round(seconds, 4),
            "bytes": self._sent,
            "stages": {stage: round(took, 4) for stage, took in self.seconds.items()},
        }
        line = "%s %s %s %.1f ms %d bytes%s"
        if self._detail:
            access["detail"] = self._detail
        reason = f": {self._detail}" if self._detail else ""
        level = logging.DEBUG if route in PROBES and self._status == HTTPStatus.OK else logging.INFO
        log.log(level, line, method, path, self._status, 1000 * seconds, self._sent, reason, extra={"access": access})
        if self._span is not None:
            self._span.end(self._started, self.begun, self.seconds, access | {"request_id": self.id})
