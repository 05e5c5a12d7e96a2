"""uvicorn with our protocol, more files and a drain delay."""

import asyncio
import logging
import signal
import socket
import sys
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from service.observability.middleware import LAST_DRAIN_S
from service.runtime.freeze_watchdog import FreezeWatchdog
from service.settings import Settings
from service.web.connection import SPARE_FILES, LimitedProtocol
from service.web.overload import ConnectionLimitApp
from service.web.reload import has_terminal
from service.web.state import State

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

# A worker that comes back from a C call waits so long for Python's lock before the event loop has to let go of it.
# Python's own 5 ms begin anew whenever the loop lets go for a moment, which it does with every socket: clients that try
# again as soon as they are refused kept the workers from their photos (tests/bench/storm.py).
SWITCH_INTERVAL_S = 100e-6


def raise_file_limit(connections: int) -> None:
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
            "state": self._state,
            "limit_app": ConnectionLimitApp(app, settings, self._state.metrics),
            "idle": {},
        }
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=type("LimitedProtocol", (LimitedProtocol,), limits),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=round(settings.deadline_s) + 5,
        )
        super().__init__(config)
        self._watchdog = FreezeWatchdog(settings.stuck_s, self._state.reloader.loading_for)
        self._state.reloader.on_load = self._watchdog.arm
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
            self._loop.add_signal_handler(signal.SIGHUP, self._on_sighup, ends_with_terminal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await super().startup(sockets)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve under the watchdog, up to the end of what is inside."""
        watch = asyncio.create_task(self._watchdog.watch())
        try:
            await super().serve(sockets)
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finishes what is inside; a batch may take longer than one photo."""
        graceful = self.config.timeout_graceful_shutdown or 0
        if self._state.batches.in_use:
            self.config.timeout_graceful_shutdown = max(graceful, round(self._batch_s))
        await super().shutdown(sockets)
        # What was cut off says so; once the signal is raised again there is no time for it.
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=2 * LAST_DRAIN_S)

    def _on_sighup(self, ends_with_terminal: bool) -> None:
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
        self._loop.call_soon_threadsafe(self._disable_keep_alive)
        self._loop.call_soon_threadsafe(self._loop.call_later, self._delay, super().handle_exit, sig, None)

    def _disable_keep_alive(self) -> None:
        for connection in self.server_state.connections:
            cast("LimitedProtocol", connection).disable_keep_alive()
