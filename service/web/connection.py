"""uvicorn's HTTP protocol with limits on headers, connections, unread responses and half-closed clients.

Requests that uvicorn would refuse in plain text get a problem instead.
"""

import asyncio
import itertools
import logging
import sys
import uuid
from typing import Any, ClassVar, cast

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import ClientGone, HeadTooLarge, InvalidRequest, Problem, UploadTooSlow
from service.observability.middleware import REFUSED
from service.web.overload import ConnectionLimitApp
from service.web.read_deadline import ReadDeadline
from service.web.state import State
from service.web.transport import (
    CountingTransport,
    is_reset,
    problem_response,
    unread_in_kernel,
    wait_for_reset,
    without_chunked_encoding,
)

log = logging.getLogger(__name__)

# The limit of a header section. It also holds for the chunk extensions and trailers of one request.
MAX_HEADER_BYTES = 64 * 1024
# Within a body, the parser gets at least this many bytes at a time. So the limit on trailers is approximate.
MIN_PARSED_BYTES = 4096
# How long a refused client may continue to send. If the connection closed earlier, it would lose the response.
LINGER_S = 2.0
# A client that closes its side later than this after its request has given up.
# One that closes it earlier may only have finished sending.
HALF_CLOSE_S = 5.0
# How often a half-closed connection is checked for a reset.
HALF_CLOSE_CHECK_S = 0.5
# How long a half-closed connection has to be reset by the start of a response, and how often this is checked.
RESET_TIMEOUT_S, RESET_CHECK_S = 0.2, 0.01
# File descriptors for connections above the limit, and for what the process itself has open.
SPARE_FILES = 1024
# The time that a connection above the limit has to send a header section.
OVERLOAD_HEADER_S = 2.0
# A connection can be evicted after this idle time. Until then a first or next request may still be on its way.
MIN_IDLE_S = 1.0


class LimitedProtocol(HttpToolsProtocol):
    """An HTTP connection with limits. `Server` makes a subclass that sets `state`, `limit_app` and `idle`.

    It closes the connection of a client that sends a header section too slowly, or reads a response too slowly.
    It refuses a header section that is too large.
    """

    state: ClassVar[State]
    limit_app: ClassVar[ConnectionLimitApp]  # replaces the service on a connection above the limit
    idle: ClassVar["dict[LimitedProtocol, float]"]  # idle connections and since when, the longest idle first

    _header_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _half_closed_timer: asyncio.TimerHandle | None = None
    _has_started = False  # a byte of the request has arrived
    _is_reading = True
    _data = b""
    _headers_without_upgrade = b""
    _in_headers = True  # from the end of a request to the end of the next header section
    _overhead = 0  # bytes of this request that are not its body
    _received_at = 0.0  # when the last byte of a request arrived
    _running: RequestResponseCycle | None = None  # pipelined requests wait behind it
    _unread_bytes = 0  # bytes of this connection that `state.unread` counts
    _read_deadline: ReadDeadline

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and start its timers (asyncio)."""
        super().connection_made(cast("asyncio.Transport", CountingTransport(transport)))
        self.state.connections.in_use += 1
        if self.state.connections.in_use > self.state.connections.limit:
            self._evict_or_refuse()
        self.idle[self] = self.loop.time()
        self._start_header_timer()
        settings = self.state.settings
        self._read_deadline = ReadDeadline(settings.write_s, settings.min_read_rate, self.loop.time())
        self._schedule_read_check()

    def _evict_or_refuse(self) -> None:
        """Evict the longest-idle connection, or serve only health endpoints on this one.

        The new connection inherits the app of the evicted one. That one may itself be above the limit.
        """
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
        """Return the longest-idle connection that can be evicted. Its client has read all of its responses."""
        latest = self.loop.time() - MIN_IDLE_S
        idle = itertools.takewhile(lambda one: self.idle[one] <= latest, self.idle)
        return next((one for one in idle if not one.transport.get_write_buffer_size()), None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers, and end the requests of the connection (asyncio)."""
        self.state.connections.release()
        self.idle.pop(self, None)
        self._stop_header_timer()
        if self._read_timer is not None:
            self._read_timer.cancel()
        if self._half_closed_timer is not None:
            self._half_closed_timer.cancel()
        self._set_unread(0)
        self._disconnect(self._running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data in parts that can't exceed the header limit (asyncio)."""
        self.idle.pop(self, None)
        start = 0
        while self._is_reading and start < len(data):
            # The parser does not say how many of the bytes that it gets belong to a header section.
            left = MAX_HEADER_BYTES - self._overhead
            end = start + min(left if self._in_headers else max(left, MIN_PARSED_BYTES), MAX_HEADER_BYTES)
            self._parse(data[start:end])
            start = end

    def _parse(self, data: bytes) -> None:
        self._overhead += len(data)
        self._data = data
        super().data_received(data)
        if not self._is_reading:
            return
        if self._overhead > MAX_HEADER_BYTES or (self._in_headers and self._overhead == MAX_HEADER_BYTES):
            parts = "the URL and headers, the trailers or the chunk extensions"
            detail = f"{parts} exceed {MAX_HEADER_BYTES:,} bytes; shorten them"
            self._refuse(HeadTooLarge(detail, limit=MAX_HEADER_BYTES))
        elif self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            # This was an empty line, or the body of a request that has its response. The next headers are due.
            self._start_header_timer()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows a bool
        """Return whether to keep the connection open after the client has closed its side (asyncio).

        It stays open if the response to a request that arrived completely a moment ago is not complete yet.
        The client may have closed its sending side only (RFC 9112, 9.6), and then it reads the response.
        A client that is gone looks the same until it receives data and resets the connection.
        """
        cycle = self._running
        if not self._is_reading or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        if not cycle.response_started and self.loop.time() - self._received_at > HALF_CLOSE_S:
            return False
        # The last response is that to the last complete request. An incomplete one may follow it.
        complete = [waiting for waiting, _ in self.pipeline if not waiting.more_body]
        (complete[0] if complete else cycle).keep_alive = False
        self._check_half_closed()
        return True

    @staticmethod
    def _disconnect(cycle: RequestResponseCycle | None) -> None:
        """Send a request `http.disconnect`. Of several pipelined requests, uvicorn notifies only the last one."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def _check_half_closed(self) -> None:
        """Close a half-closed connection after a reset. asyncio does not report resets where nothing is read."""
        if is_reset(self.transport):
            log.info("a client has reset a half-closed connection")
            self.transport.abort()
            return
        self._half_closed_timer = self.loop.call_later(HALF_CLOSE_CHECK_S, self._check_half_closed)

    def _unless_reset(self, app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
        """Return an app that drops the response body if the client has closed both sides.

        The response's header section makes the system of such a client reset the connection.
        The metrics then count the client as gone.
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
                        scope[REFUSED] = ClientGone("the client disconnected before its response was ready")
                        cycle.disconnected = True
                        self.transport.abort()
                await send(message)

            await app(scope, receive, send_on)

        return watched

    def on_message_begin(self) -> None:
        """Start the header timer with the first byte of a request (httptools)."""
        super().on_message_begin()
        self._has_started = True
        if self._header_timer is None:
            self._start_header_timer()

    def on_headers_complete(self) -> None:
        """Stop the header timer, and start the request unless it offers an upgrade (httptools)."""
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._headers_without_upgrade = self._header_section()
            return
        if len(self.url) + sum(len(name) + len(value) + 3 for name, value in self.headers) > MAX_HEADER_BYTES:
            # It came behind another request, in the same call of the parser.
            self._overhead = MAX_HEADER_BYTES + 1
            raise ValueError("the header section is too large")
        self._stop_header_timer()
        self._has_started = self._in_headers = False
        super().on_headers_complete()
        if self.app is self.limit_app or self.state.draining:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Wrap the app for HTTP/1.0 and half-closed clients, and start it (uvicorn)."""
        if cycle.scope["http_version"] == "1.0":
            app = without_chunked_encoding(app, cycle)
        self._running = cycle
        watched: Any = self._unless_reset(app, cycle)
        super()._start_asgi_task(cycle, watched)

    def on_response_complete(self) -> None:
        """List the connection as idle if it waits for a request now (uvicorn)."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None and self._header_timer is None:
            self.idle[self] = self.loop.time()

    def disable_keep_alive(self) -> None:
        """Make the current response the last one of the connection, if its header section is not sent yet."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _header_section(self) -> bytes:
        """Return the header section as it arrived, without the `Upgrade` headers."""
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([first, *lines, b"", b""])

    def _unsupported_upgrade_warning(self) -> None:
        """Parse a request that offers an upgrade again, without the offer (uvicorn).

        curl and Java's client offer HTTP/2 in this way. The parser skips the body of such a request.
        A server may ignore the offer (RFC 9110, 7.8).
        """
        error, headers = sys.exception(), self._headers_without_upgrade
        if headers and isinstance(error, httptools.HttpParserUpgrade):
            self._headers_without_upgrade = b""
            self.parser = httptools.HttpRequestParser(self)
            super().data_received(headers + self._data[error.args[0] :])

    def on_body(self, body: bytes) -> None:
        """Count a body, and allow an eighth of its size for chunk extensions and trailers (httptools)."""
        self._overhead -= len(body) + len(body) // 8
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and drop a trailer (httptools). Nothing here uses trailers (RFC 9110, 6.5.1)."""
        if self._in_headers:
            super().on_header(name, value)

    def on_message_complete(self) -> None:
        """Expect the next header section (httptools)."""
        if not self._headers_without_upgrade:
            self._in_headers = True
            self._overhead = 0
            self._received_at = self.loop.time()
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Count the unread bytes of a client that reads more slowly than the app writes (asyncio)."""
        super().pause_writing()
        self._set_unread(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Stop counting the unread bytes (asyncio)."""
        self._set_unread(0)
        super().resume_writing()

    def _set_unread(self, count: int) -> None:
        self.state.unread.in_use += count - self._unread_bytes
        self._unread_bytes = count

    def _schedule_read_check(self) -> None:
        self._read_timer = self.loop.call_later(self._read_deadline.check_interval_s, self._check_reading)

    def _check_reading(self) -> None:
        """Close the connection if the client reads its responses too slowly."""
        unread = self.transport.get_write_buffer_size()
        if self._unread_bytes:
            self._set_unread(unread)
        read = cast("CountingTransport", self.transport).written - unread
        if unread:
            read -= unread_in_kernel(self.transport)
        if self._read_deadline.is_exceeded(self.loop.time(), read=read, unread=unread):
            log.info("a client reads its response too slowly: %d bytes are dropped", unread)
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
            self._refuse(UploadTooSlow(f"the header section did not arrive within {limit:g} s", limit=limit))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that could not be parsed (uvicorn)."""
        if self._overhead <= MAX_HEADER_BYTES:
            self._refuse(InvalidRequest(msg))

    def _refuse(self, problem: Problem) -> None:
        """Send a problem to the request that is being received, and read no more from this connection."""
        self._stop_header_timer()
        self._is_reading = False
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if cycle.response_started or not cycle.more_body or self.pipeline:
                # The client would take the problem for the response to an earlier request.
                return
            # Telemetry then counts the request as refused, and not the client as gone.
            cast("Scope", cycle.scope)[REFUSED] = problem
            self._disconnect(cycle)
        else:
            self.state.metrics.refuse(problem)
        request_id = uuid.uuid4().hex
        log.info("refused [%s]: %s", request_id, problem)
        self.transport.write(problem_response(problem, request_id))
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
