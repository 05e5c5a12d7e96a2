"""uvicorn's server with the limited protocol, a higher file limit, signal handling and a drain delay."""

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

# How long a worker thread that returns from C code waits for the GIL until the event loop must release it.
# Python's default of 5 ms restarts whenever the loop releases the GIL, which it does with every socket.
# Clients that retry immediately after a refusal then kept workers from their photos (tests/bench/storm.py).
SWITCH_INTERVAL_S = 100e-6


def raise_file_limit(connections: int) -> None:
    """Raise the process's limit on open files for this number of connections. The usual 1,024 are too few.

    Log a warning if the system's hard limit is lower. Connections without a file descriptor are then reset.
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
            "this process may open %d files, but TOMAU_MAX_CONNECTIONS=%d needs %d: raise the limit (ulimit -Hn)",
            *(hard, connections, wanted),
        )


class Server(uvicorn.Server):
    """A server that fails its readiness check on SIGTERM, and accepts requests for the drain delay before it stops."""

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
        """Serve until a signal ends the process. Raises SystemExit if the server can't start."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            super().run(sockets)
        finally:
            sys.setswitchinterval(before)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Handle SIGHUP, and start to serve."""
        self._loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            # If the signal is ignored, as by nohup, the service has to outlive its terminal.
            ends_with_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
            self._loop.add_signal_handler(signal.SIGHUP, self._on_sighup, ends_with_terminal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        await super().startup(sockets)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until all requests are finished, with the freeze watchdog armed."""
        watch = asyncio.create_task(self._watchdog.watch())
        try:
            await super().serve(sockets)
        finally:
            watch.cancel()
            await asyncio.wait([watch])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the current requests. A batch upload may take longer than a single photo."""
        graceful = self.config.timeout_graceful_shutdown or 0
        if self._state.batches.in_use:
            self.config.timeout_graceful_shutdown = max(graceful, round(self._batch_s))
        await super().shutdown(sockets)
        # Requests that were cut off still send and log that. There is no time for it once the signal is raised again.
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=2 * LAST_DRAIN_S)

    def _on_sighup(self, ends_with_terminal: bool) -> None:
        """Reload the models on SIGHUP, or stop if the signal means that the controlling terminal has closed."""
        if ends_with_terminal and not has_terminal():
            self.handle_exit(signal.SIGTERM, None)
        else:
            self._state.reloader.request()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after the drain delay on the first SIGTERM while serving. Stop immediately on any other signal."""
        if sig != signal.SIGTERM or self._state.draining or not self._delay or not self.started:
            self._state.draining = True
            super().handle_exit(sig, frame)
            return
        self._state.draining = True
        log.info("SIGTERM: no longer ready, accepting requests for another %g s", self._delay)
        self._loop.call_soon_threadsafe(self._disable_keep_alive)
        self._loop.call_soon_threadsafe(self._loop.call_later, self._delay, super().handle_exit, sig, None)

    def _disable_keep_alive(self) -> None:
        for connection in self.server_state.connections:
            cast("LimitedProtocol", connection).disable_keep_alive()
