"""uvicorn's protocol with our limits: on heads, connections and unread answers; problems for what it refuses."""

import asyncio
import itertools
import json
import logging
import sys
import uuid
from http import HTTPStatus
from typing import Any, ClassVar, cast

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import ClientGone, HeadTooLarge, InvalidRequest, Problem, UploadTooSlow
from service.observability.middleware import REFUSED
from service.web import security_headers
from service.web.overload import ConnectionLimitApp
from service.web.state import State
from service.web.transport import CountingTransport, is_reset, wait_for_reset, without_chunked_encoding

if sys.platform == "linux":
    import fcntl
    import termios

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
# Of what is around a body's chunks, too, though only about: so many bytes are given to the parser at least.
MIN_CHUNK_BYTES = 4096
# How long a client may still send after its last answer.
LINGER_S = 2.0
# Who closes its side and waits for an answer does so once it has sent its request. Later on, it has given up.
HALF_CLOSE_S = 5.0
# How often it is looked whether a client that has closed its side is still there.
HALF_CLOSE_CHECK_S = 0.5
# And how long it is waited for its reset, once it was sent the head of an answer.
RESET_TIMEOUT_S, RESET_CHECK_S = 0.2, 0.01
# How often in TOMAU_WRITE_S it is looked what clients have taken.
READ_CHECKS = 4
# For the connections that are too many, and for what the process itself has open.
SPARE_FILES = 1024
# How long they may take to send a head.
OVERLOAD_HEADER_S = 2.0
# A connection without a request for so long gives its place to a new one. A client that has just come, or has just had
# its answer, may have sent one that is still on its way.
MIN_IDLE_S = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """Ends a connection whose heads come too slowly or are too large, or whose answers are not read.

    What uvicorn would refuse in plain text is a problem.
    """

    state: ClassVar[State]
    limit_app: ClassVar[ConnectionLimitApp]  # in place of the service, for a connection too many
    idle: ClassVar["dict[LimitedProtocol, float]"]  # waiting for a request, and since when; the longest first

    _header_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _has_started = False
    _is_reading = True
    _data = b""
    _headers_without_upgrade = b""
    _in_headers = True  # from the end of a request to the end of the next one's head
    _overhead = 0  # bytes of this request that are no body
    _received_at = 0.0  # when the last byte of a request came
    _half_closed_timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None  # others that were pipelined wait behind it
    _unread_bytes = 0  # bytes counted in `unread`
    _read_bytes = 0  # bytes that the peer had taken at the last look
    _read_deadline = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio."""
        super().connection_made(cast("asyncio.Transport", CountingTransport(transport)))
        self.state.connections.in_use += 1
        if self.state.connections.in_use > self.state.connections.limit:
            self._evict_or_refuse()
        self.idle[self] = self.loop.time()
        self._start_header_timer()
        self._read_deadline = self._latest_read_deadline()
        self._schedule_read_check()

    def _evict_or_refuse(self) -> None:
        """There are too many: this one takes the place of the longest silent, if only among those too many itself."""
        self.limit_app.warn()
        if oldest := self._longest_idle():
            self.app = oldest.app
            del self.idle[oldest]
            oldest.transport.close()
            return
        self.app = self.limit_app
        connections = self.state.connections
        if connections.in_use - connections.limit > SPARE_FILES // 2:
            self.transport.abort()

    def _longest_idle(self) -> "LimitedProtocol | None":
        """Who still reads an answer is none."""
        latest = self.loop.time() - MIN_IDLE_S
        idle = itertools.takewhile(lambda one: self.idle[one] <= latest, self.idle)
        return next((one for one in idle if not one.transport.get_write_buffer_size()), None)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self.state.connections.release()
        self.idle.pop(self, None)
        self._stop_header_timer()
        if self._read_timer is not None:
            self._read_timer.cancel()
        if self._half_closed_timer is not None:
            self._half_closed_timer.cancel()
        self._set_unread(0)
        self._mark_disconnected(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        self.idle.pop(self, None)
        start = 0
        while self._is_reading and start < len(data):
            # No further than a head may go: how much of what the parser is given belongs to a head, it does not say.
            left = MAX_HEADER_BYTES - self._overhead
            end = start + min(left if self._in_headers else max(left, MIN_CHUNK_BYTES), MAX_HEADER_BYTES)
            self._parse(data[start:end])
            start = end

    def _parse(self, data: bytes) -> None:
        self._overhead += len(data)
        self._data = data
        super().data_received(data)
        if not self._is_reading:
            return
        if self._overhead > MAX_HEADER_BYTES or (self._in_headers and self._overhead == MAX_HEADER_BYTES):
            self._refuse(HeadTooLarge(f"a request's head may have {MAX_HEADER_BYTES:,} bytes", limit=MAX_HEADER_BYTES))
        elif self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            # An empty line, or the body of a request that was answered without it: the next head still has to come.
            self._start_header_timer()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """asyncio: the client has closed its side. Returns whether the connection stays open.

        It does while a request that came whole a moment ago is not answered yet: the client may have closed no more
        than its side (RFC 9112, 9.6), and then reads the answer. One that is gone altogether looks the same, until it
        is sent something and resets the connection.
        """
        cycle = self._running
        if not self._is_reading or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        if not cycle.response_started and self.loop.time() - self._received_at > HALF_CLOSE_S:
            return False
        # The last answer is that to the last request that came whole; one that breaks off may be behind it.
        whole = [waiting for waiting, _ in self.pipeline if not waiting.more_body]
        (whole[0] if whole else cycle).keep_alive = False
        self._check_half_closed()
        return True

    @staticmethod
    def _mark_disconnected(cycle: RequestResponseCycle | None) -> None:
        """Tell a request that its client is gone. uvicorn tells only the last one of several that were pipelined."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _check_half_closed(self) -> None:
        """Ends the connection once it was reset, which nobody else sees: nothing is read any more."""
        if is_reset(self.transport):
            log.info("a client that had closed its side is gone")
            self.transport.abort()
            return
        self._half_closed_timer = self.loop.call_later(HALF_CLOSE_CHECK_S, self._check_half_closed)

    def _unless_reset(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Return the app with its answers kept from clients that have closed both sides, and not just theirs.

        The head of the answer makes them reset the connection. Telemetry then counts them as gone.
        """

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            is_first = True

            async def send_on(message: Message) -> None:
                nonlocal is_first
                if is_first and message["type"] == "http.response.body":
                    is_first = False
                    if self._half_closed_timer is not None and await wait_for_reset(
                        self.transport, RESET_TIMEOUT_S, RESET_CHECK_S
                    ):
                        scope[REFUSED] = ClientGone("the client had hung up before its answer was ready")
                        cycle.disconnected = True
                        self.transport.abort()
                await send(message)

            await app(scope, receive, send_on)

        return watched

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        super().on_message_begin()
        self._has_started = True
        if self._header_timer is None:
            self._start_header_timer()

    def on_headers_complete(self) -> None:
        """httptools."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._headers_without_upgrade = self._header_section()
            return
        if len(self.url) + sum(len(name) + len(value) + 3 for name, value in self.headers) > MAX_HEADER_BYTES:
            # Behind another request, in what the parser was given at once.
            self._overhead = MAX_HEADER_BYTES + 1
            raise ValueError("the head is too large")
        self._stop_header_timer()
        self._has_started = self._in_headers = False
        super().on_headers_complete()
        if self.app is self.limit_app or self.state.draining:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """uvicorn, which would send chunks whatever the client knows."""
        if cycle.scope["http_version"] == "1.0":
            app = without_chunked_encoding(app, cycle)
        self._running = cycle
        watched: Any = self._unless_reset(app, cycle)
        super()._start_asgi_task(cycle, watched)

    def on_response_complete(self) -> None:
        """uvicorn."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None and self._header_timer is None:
            self.idle[self] = self.loop.time()

    def disable_keep_alive(self) -> None:
        """The service is about to stop: what is answered now is the last of this connection, and the client told so."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _header_section(self) -> bytes:
        """The head as it came, but for what it offers to upgrade to."""
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([first, *lines, b"", b""])

    def _unsupported_upgrade_warning(self) -> None:
        """uvicorn: the parser skips the body of a request that offers an upgrade, as curl's and Java's to HTTP/2 do.

        HTTP lets a server pass over the offer. So the request is parsed again, without it.
        """
        error, head = sys.exception(), self._headers_without_upgrade
        if head and isinstance(error, httptools.HttpParserUpgrade):
            self._headers_without_upgrade = b""
            self.parser = httptools.HttpRequestParser(self)
            super().data_received(head + self._data[error.args[0] :])

    def on_body(self, body: bytes) -> None:
        """httptools. A body may have an eighth of its bytes around its chunks and behind them."""
        self._overhead -= len(body) + len(body) // 8
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools. What comes behind the body is no part of the head, and nobody asks for it (RFC 9110, 6.5.1)."""
        if self._in_headers:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """httptools."""
        if not self._headers_without_upgrade:
            self._in_headers = True
            self._overhead = 0
            self._received_at = self.loop.time()
            super().on_message_complete()

    def pause_writing(self) -> None:
        """asyncio: the peer does not take an answer as fast as it is written."""
        super().pause_writing()
        self._set_unread(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """asyncio."""
        self._set_unread(0)
        super().resume_writing()

    def _set_unread(self, count: int) -> None:
        self.state.unread.in_use += count - self._unread_bytes
        self._unread_bytes = count

    def _schedule_read_check(self) -> None:
        self._read_timer = self.loop.call_later(self.state.settings.write_s / READ_CHECKS, self._check_reading)

    def _latest_read_deadline(self) -> float:
        """An answer may be written at any time until the next look."""
        return self.loop.time() + self.state.settings.write_s * (1 + 1 / READ_CHECKS)

    def _check_reading(self) -> None:
        """Ends the connection when its peer takes what there is for it too slowly.

        What it takes buys it time for the next bytes, but it saves up no more than it may take nothing at all.
        """
        unread = self.transport.get_write_buffer_size()
        if self._unread_bytes:
            self._set_unread(unread)
        now, write_s = self.loop.time(), self.state.settings.write_s
        taken = (
            cast("CountingTransport", self.transport).written
            - unread
            - (_kernel_unread_bytes(self.transport) if unread else 0)
        )
        bought = max(0, taken - self._read_bytes) / self.state.settings.min_read_rate
        self._read_bytes = taken
        if not unread:
            self._read_deadline = self._latest_read_deadline()
        else:
            self._read_deadline = min(self._read_deadline + bought, now + write_s)
            if now >= self._read_deadline:
                log.info("a client reads too little of its answer: %d bytes are dropped", unread)
                self.transport.abort()
                return
        self._schedule_read_check()

    def _header_timeout_s(self) -> float:
        limit = self.state.settings.head_s
        return min(limit, OVERLOAD_HEADER_S) if self.app is self.limit_app else limit

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._header_timeout_s(), self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        limit = self._header_timeout_s()
        if self._has_started:
            self._refuse(UploadTooSlow(f"the request's headers did not come within {limit:g} s", limit=limit))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn: what it could not parse."""
        if self._overhead <= MAX_HEADER_BYTES:
            self._refuse(InvalidRequest(msg))

    def _refuse(self, problem: Problem) -> None:
        """Answers the request that is being received with a problem, and takes no more of this connection."""
        self._stop_header_timer()
        self._is_reading = False
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
            self.state.metrics.refuse(problem)
        request_id = uuid.uuid4().hex
        log.info("refused [%s]: %s", request_id, problem)
        body = json.dumps(problem.body(request_id)).encode()
        safe = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in security_headers.missing_headers([]))
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


def _kernel_unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that were handed to the kernel, and the peer has not taken yet.

    Without them a slow reader would seem to have stopped: the kernel asks for more only when a third of its buffer,
    which may be megabytes, is free.
    """
    if sys.platform == "linux":
        file = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0
