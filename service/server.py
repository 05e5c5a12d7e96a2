"""uvicorn with our limits: a time limit on a request's head, problems for what it refuses itself, a drain delay."""

import asyncio
import json
import logging
import signal
import socket
import uuid
from http import HTTPStatus
from types import FrameType
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.metrics import Metrics
from service.problems import InvalidRequest, Problem, UploadTooSlow
from service.reload import has_terminal
from service.routes import State
from service.settings import Settings

log = logging.getLogger(__name__)


class Protocol(HttpToolsProtocol):
    """Closes a connection whose request line and headers do not come in time."""

    head_s: ClassVar[float] = 10.0
    metrics: ClassVar[Metrics]
    _timer: asyncio.TimerHandle | None = None
    _has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """httptools: the first byte of a request."""
        super().on_message_begin()
        self._has_begun = True
        if self._timer is None:
            self._wait_for_head()

    def on_headers_complete(self) -> None:
        """httptools."""
        self._stop_waiting()
        self._has_begun = False
        super().on_headers_complete()

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(self.head_s, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._has_begun:
            detail = f"the request's headers did not come within {self.head_s:g} s"
            self._refuse(UploadTooSlow(detail, limit=self.head_s))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn: what it could not parse."""
        self._stop_waiting()
        self._refuse(InvalidRequest(msg))

    def _refuse(self, problem: Problem) -> None:
        request_id = uuid.uuid4().hex
        log.info("refused [%s]: %s", request_id, problem)
        self.metrics.refuse(problem)
        body = json.dumps(problem.body(request_id)).encode()
        head = (
            f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
            "content-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Turns readiness red on SIGTERM, and still takes requests for a moment before it drains."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._state: State = app.state.tomau
        limits = {"head_s": settings.head_s, "metrics": self._state.metrics}
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to serve; the event loop is there now."""
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            self._loop.add_signal_handler(signal.SIGHUP, self._hang_up, has_terminal())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await super().startup(sockets)

    def _hang_up(self, had_terminal: bool) -> None:
        """SIGHUP: the models are read again; from a terminal that was closed it ends the service, as it always does."""
        if had_terminal and not has_terminal():
            self.handle_exit(signal.SIGTERM, None)
        else:
            self._state.reloader.request()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first SIGTERM waits for the drain delay; anything else ends at once."""
        if sig != signal.SIGTERM or self._state.draining or not self._delay:
            self._state.draining = True
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        log.info("SIGTERM: not ready any more, taking requests for another %g s", self._delay)
        self._loop.call_soon_threadsafe(self._loop.call_later, self._delay, super().handle_exit, sig, None)
