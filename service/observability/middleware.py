"""Request ids, the log, Server-Timing, and the answer when something breaks."""

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
# Where a request's exchange is in its scope.
EXCHANGE = "tomau.exchange"
# And the problem that the protocol answered in its place.
REFUSED = "tomau.refused"
VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


# Asked every few seconds by machines: where all is well, no line of the log's.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})

# What a client that is refused may still send before it is cut off.
DRAIN_BYTES = 64 << 20
DRAIN_S = 10.0
# And when the service stops.
LAST_DRAIN_S = 1.0


def server_timing(seconds: Mapping[str, float]) -> str:
    """The value of a Server-Timing header, in milliseconds."""
    return ", ".join(f"{stage};dur={1000 * duration:.1f}" for stage, duration in seconds.items())


def record_stages(scope: Scope, seconds: Mapping[str, float], begun: Mapping[str, float]) -> None:
    """Has the stages of the request's photo logged and traced. `begun` are times of `time.monotonic`."""
    exchange: _Exchange = scope[EXCHANGE]
    exchange.seconds, exchange.begun = seconds, begun


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _id_of(scope: Scope) -> str:
    given = next(iter(_headers(scope, ID_HEADER)), "")
    return given if VALID_ID.fullmatch(given) else uuid.uuid4().hex


class Telemetry:
    """The outermost layer: gives each request its id, logs and counts it, and turns every exception into an answer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
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
            _end_of_cancellation()
            await exchange.cut_off()
        except MemoryError:
            log.exception("not enough memory")
            await exchange.refuse(OutOfMemory("the service has no memory left for the request"))
        except Exception:
            log.exception("unexpected fault")
            await exchange.refuse(InternalError("an unexpected fault; the service's log has it under the request's id"))
        finally:
            exchange.end(self._metrics)
            request_id.reset(tokens[0])
            trace_id.reset(tokens[1])


def _end_of_cancellation() -> None:
    """Only the end of the service cancels a request, whose task has nothing to do any more but to say so."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Exchange:
    """One request and its answer: what has come, what has gone out."""

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
        # Of a refusal for the service's state, as one code has many causes; a fault has its own lines.
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
        """Tells the client that the service stops. An answer that has begun breaks off: what came is not all."""
        problem = Draining("the service stopped before the answer was ready")
        if self._status is None:
            await self.refuse(problem, drain_s=LAST_DRAIN_S)
        self._code = self._code or problem.code

    async def refuse(self, problem: Problem, *, drain_s: float = DRAIN_S) -> None:
        """Answers with a problem. A client that still sends may go on for a while: cut off, it would never read it."""
        self._code = problem.code
        if problem.status > HTTPStatus.INTERNAL_SERVER_ERROR:
            self._detail = problem.detail
        if isinstance(problem, ClientGone):
            self._status = self._status or problem.status
            return
        if self._status is not None:
            raise RuntimeError("the answer broke off after it had begun") from problem
        body = json.dumps(problem.body(self.id)).encode()
        headers = {"content-type": "application/problem+json", "content-length": str(len(body)), **problem.headers()}
        still_sends = not self._body_is_whole
        if still_sends:
            headers["connection"] = "close"
        raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body, "more_body": still_sends})
        if still_sends:
            await self._swallow(drain_s)
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _swallow(self, seconds: float) -> None:
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(seconds):
                while left > 0 and not self._body_is_whole:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            log.info("a refused client still sends: its connection is closed")

    def end(self, metrics: Metrics) -> None:
        """Counts, logs and traces the request."""
        refused: Problem | None = self._scope.get(REFUSED)
        if refused is not None:
            self._status, self._code = refused.status, refused.code
        seconds = time.monotonic() - self._started
        method, route = self._scope["method"], metrics.route_of(self._scope)
        metrics.request(route, method, self._status, self._code, seconds)
        path = self._scope["raw_path"].decode("ascii", "replace")  # still percent-encoded: one line stays one line
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
        why = f": {self._detail}" if self._detail else ""
        level = logging.DEBUG if route in PROBES and self._status == HTTPStatus.OK else logging.INFO
        log.log(level, line, method, path, self._status, 1000 * seconds, self._sent, why, extra={"access": access})
        if self._span is not None:
            self._span.end(self._started, self.begun, self.seconds, access | {"request_id": self.id})
