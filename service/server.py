"""uvicorn with our limits: on heads, connections and unread answers; problems for what it refuses; a drain delay."""

import asyncio
import json
import logging
import signal
import socket
import sys
import uuid
from http import HTTPStatus
from types import FrameType
from typing import ClassVar, cast

import httptools
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import access
from service.admission import RETRY_AFTER_S, Places
from service.metrics import Metrics
from service.problems import HeadTooLarge, InvalidRequest, Overloaded, Problem, UploadTooSlow
from service.reload import has_terminal
from service.routes import State
from service.settings import Settings
from service.telemetry import LAST_DRAIN_S, REFUSED, Telemetry

if sys.platform == "linux":
    import fcntl
    import termios
if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
# How long a client may still send after its last answer.
LINGER_S = 2.0
# For the connections that are too many, and for what the process itself has open.
SPARE_FILES = 1024
# A worker that comes back from a C call waits so long for Python's lock before the event loop has to let go of it.
# Python's own 5 ms begin anew whenever the loop lets go for a moment, which it does with every socket: clients that try
# again as soon as they are refused kept the workers from their photos (tests/bench/storm.py).
SWITCH_INTERVAL_S = 100e-6
# With too many connections, too, as long as there is a file left for one.
ALWAYS_ANSWERED = frozenset({"/livez", "/readyz", "/metrics"})


class Full:
    """The service for connections that are too many: it only tells how it fares."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._limit = settings.max_connections
        refusing = Telemetry(access.cors(access.Preflights, self._refuse, settings), metrics)
        self._refusing = access.SafeHeaders(access.cors(access.Readable, refusing, settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        app = self._app if scope["path"] in ALWAYS_ANSWERED else self._refusing
        await app(scope, receive, send)

    async def _refuse(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise Overloaded("too many connections at once", limit=self._limit, retry_after=RETRY_AFTER_S)


class Protocol(HttpToolsProtocol):
    """Ends a connection whose heads come too slowly or are too large, or whose answers are not read.

    What uvicorn would refuse in plain text is a problem.
    """

    settings: ClassVar[Settings]
    metrics: ClassVar[Metrics]
    unread: ClassVar[Places]
    full: ClassVar[Full]  # in place of the service, for a connection too many

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _has_begun = False
    _listens = True
    _data = b""
    _head_without_upgrade = b""
    _excess = 0  # bytes of this request that are no body
    _held = 0  # bytes counted in `unread`
    _unread = 0  # at the last look, and since when
    _read_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio."""
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self.app = self.full
        self._wait_for_head()
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._stop_waiting()
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._hold(0)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        if not self._listens:
            return
        self._excess += len(data)
        self._data = data
        super().data_received(data)
        if not self._listens:
            return
        if self._excess > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"a request's head may have {MAX_HEAD_BYTES:,} bytes", limit=MAX_HEAD_BYTES))
        elif self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            # An empty line, or the body of a request that was answered without it: the next head still has to come.
            self._wait_for_head()

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        super().on_message_begin()
        self._has_begun = True
        self._excess = 0
        if self._head_timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """httptools."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._head_without_upgrade = self._head()
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._excess = MAX_HEAD_BYTES + 1
            raise ValueError("the head is too large")
        self._stop_waiting()
        self._has_begun = False
        super().on_headers_complete()
        if self.app is self.full:
            self.cycle.keep_alive = False

    def _head(self) -> bytes:
        """The head as it came, but for what it offers to upgrade to."""
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([first, *lines, b"", b""])

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn: the parser skips the body of a request that offers an upgrade, as curl's and Java's to HTTP/2 do.

        HTTP lets a server pass over the offer. So the request is parsed again, without it.
        """
        error, head = sys.exception(), self._head_without_upgrade
        if head and isinstance(error, httptools.HttpParserUpgrade):
            self._head_without_upgrade = b""
            self.parser = httptools.HttpRequestParser(self)
            super().data_received(head + self._data[error.args[0] :])

    def on_body(self, body: bytes) -> None:
        """httptools. A body may have an eighth of its bytes around its chunks and behind them."""
        self._excess -= len(body) + len(body) // 8
        super().on_body(body)

    def on_message_complete(self) -> None:
        """httptools."""
        if not self._head_without_upgrade:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """asyncio: the peer does not take an answer as fast as it is written."""
        super().pause_writing()
        self._hold(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """asyncio."""
        self._hold(0)
        super().resume_writing()

    def _hold(self, count: int) -> None:
        self.unread.taken += count - self._held
        self._held = count

    def _watch_reading(self) -> None:
        self._read_timer = self.loop.call_later(self.settings.write_s / 4, self._look_at_reading)

    def _look_at_reading(self) -> None:
        """Ends the connection when its peer has taken no byte for too long, though there are some for it."""
        unread = self.transport.get_write_buffer_size()
        if self._held:
            self._hold(unread)
        unread += _in_the_kernel(self.transport) if unread else 0
        now = self.loop.time()
        if not unread or unread != self._unread:
            self._unread, self._read_at = unread, now
        elif now - self._read_at >= self.settings.write_s:
            log.info("a client reads nothing of its answer: %d bytes are dropped", unread)
            self.transport.abort()
            return
        self._watch_reading()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.settings.head_s, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        limit = self.settings.head_s
        if self._has_begun:
            self._refuse(UploadTooSlow(f"the request's headers did not come within {limit:g} s", limit=limit))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn: what it could not parse."""
        if self._excess <= MAX_HEAD_BYTES:
            self._refuse(InvalidRequest(msg))

    def _refuse(self, problem: Problem) -> None:
        """Answers the request that is being received with a problem, and takes no more of this connection."""
        self._stop_waiting()
        self._listens = False
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if cycle.response_started or not cycle.more_body or self.pipeline:
                # It would be taken for the answer to the request before it, which is still to come.
                return
            # Telemetry counts it as refused, and not as a client that is gone.
            cast("Scope", cycle.scope)[REFUSED] = problem
            cycle.disconnected = True
            cycle.message_event.set()
        else:
            self.metrics.refuse(problem)
        request_id = uuid.uuid4().hex
        log.info("refused [%s]: %s", request_id, problem)
        body = json.dumps(problem.body(request_id)).encode()
        safe = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in access.missing_headers([]))
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            "content-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\n"
            f"{safe}"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Were it closed at once, a client that still sends would lose its answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


def _in_the_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were handed to the kernel, and the peer has not taken yet.

    Without them a slow reader would seem to have stopped: the kernel asks for more only when a third of its buffer,
    which may be megabytes, is free.
    """
    if sys.platform == "linux":
        file = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def allow_files(connections: int) -> None:
    """Raises the process's limit of open files, of which each connection is one; the usual 1,024 are too few.

    When the system allows no more, the connections that find none are reset: then there is a warning.
    """
    if sys.platform == "win32":
        return
    wanted = connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    allowed = wanted if hard == unlimited else min(wanted, hard)
    if soft != unlimited and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "this process may open %d files, and TOMAU_MAX_CONNECTIONS=%d needs %d: raise the limit (ulimit -Hn)",
            *(hard, connections, wanted),
        )


class Server(uvicorn.Server):
    """Turns readiness red on SIGTERM, and still takes requests for a moment before it drains."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._state: State = app.state.tomau
        limits = {
            "settings": settings,
            "metrics": self._state.metrics,
            "unread": self._state.unread,
            "full": Full(app, settings, self._state.metrics),
        }
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=type("LimitedProtocol", (Protocol,), limits),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.deadline_s) + 5,
        )
        super().__init__(config)
        self._delay = settings.drain_delay_s
        self._batch_s = settings.drain_batch_s

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it is told to end; raises SystemExit when it can't start."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            super().run(sockets)
        finally:
            sys.setswitchinterval(before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to serve; the event loop is there now."""
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            # Whoever had the signal ignored, as nohup does, wants it to outlive its terminal.
            ends_with_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up, ends_with_terminal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finishes what is inside; a batch may take longer than one photo."""
        graceful = self.config.timeout_graceful_shutdown or 0
        if self._state.batches.taken:
            self.config.timeout_graceful_shutdown = max(graceful, round(self._batch_s))
        await super().shutdown(sockets)
        # What was cut off says so; once the signal is raised again there is no time for it.
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=2 * LAST_DRAIN_S)

    def _hang_up(self, ends_with_terminal: bool) -> None:
        """SIGHUP: the models are read again; from a terminal that was closed it ends the service, as it always does."""
        if ends_with_terminal and not has_terminal():
            self.handle_exit(signal.SIGTERM, None)
        else:
            self._state.reloader.request()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM waits for the drain delay, once requests are taken; anything else ends at once."""
        if sig != signal.SIGTERM or self._state.draining or not self._delay or not self.started:
            self._state.draining = True
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        log.info("SIGTERM: not ready any more, taking requests for another %g s", self._delay)
        self._loop.call_soon_threadsafe(self._loop.call_later, self._delay, super().handle_exit, sig, None)
