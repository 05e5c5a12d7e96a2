"""Request ids, the log, Server-Timing, and the answer when something breaks."""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import ClientGone, InternalError, OutOfMemory, Problem

log = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")

ID_HEADER = b"x-request-id"
VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# They log pieces of what a client sent: tags of a photo, bytes of a form.
LIBRARIES_THAT_QUOTE = ("PIL", "python_multipart")

# What a client that is refused may still send before it is cut off.
DRAIN_BYTES = 64 << 20
DRAIN_S = 10.0


class _IdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def set_up_logging(level: str) -> None:
    """Everything goes to standard error, one line a record, with its request's id."""
    handler = logging.StreamHandler()
    handler.addFilter(_IdFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    for library in LIBRARIES_THAT_QUOTE:
        logging.getLogger(library).setLevel(logging.ERROR)


def server_timing(seconds: Mapping[str, float]) -> str:
    """The value of a Server-Timing header, in milliseconds."""
    return ", ".join(f"{stage};dur={1000 * duration:.1f}" for stage, duration in seconds.items())


def _id_of(scope: Scope) -> str:
    given = next((value for key, value in scope["headers"] if key == ID_HEADER), b"").decode("latin-1")
    return given if VALID_ID.fullmatch(given) else uuid.uuid4().hex


class Telemetry:
    """The outermost layer: gives each request its id, logs it, and turns every exception into an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        token = request_id.set(exchange.id)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Problem as problem:
            await exchange.refuse(problem)
        except MemoryError:
            log.exception("not enough memory")
            await exchange.refuse(OutOfMemory("the service has no memory left for the request", retry_after=5))
        except Exception:
            log.exception("unexpected fault")
            await exchange.refuse(InternalError("an unexpected fault; the service's log has it under the request's id"))
        finally:
            exchange.log()
            request_id.reset(token)


class _Exchange:
    """One request and its answer: what has come, what has gone out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = _id_of(scope)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.monotonic()
        headers = {key for key, _ in scope["headers"]}
        self._body_is_whole = not headers & {b"content-length", b"transfer-encoding"}
        self._status: int | None = None
        self._sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._body_is_whole = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), (ID_HEADER, self.id.encode())]
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answers with a problem. A client that still sends may go on for a while: cut off, it would never read it."""
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
            await self._swallow()
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _swallow(self) -> None:
        left = DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_S):
                while left > 0 and not self._body_is_whole:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            log.info("a refused client still sends: its connection is closed")

    def log(self) -> None:
        log.info(
            "%s %s %s %.1f ms %d bytes",
            self._scope["method"],
            self._scope["raw_path"].decode("ascii", "replace"),  # still percent-encoded: one line stays one line
            self._status,
            1000 * (time.monotonic() - self._started),
            self._sent,
        )
