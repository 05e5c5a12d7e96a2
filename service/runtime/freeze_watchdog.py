"""End a process whose Python threads are all frozen, and log which requests were inside.

A call of a C library that holds Python's lock (the GIL) and does not return freezes every thread. That includes the
event loop, deadlines, the watchdog for stuck workers, the log and signal handlers. Only `faulthandler` still runs: its
timer is a thread in C that needs no lock. If the timer is not reset in time, it writes the traceback of every thread
and ends the process.

`faulthandler` writes nothing but tracebacks. So each request runs in a frame that is named after its id.
"""

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from types import CodeType, FunctionType
from typing import TypeVar, cast

T = TypeVar("T")

log = logging.getLogger(__name__)

# The exit code of a process that faulthandler ends.
EXIT_FROZEN = 1
STANDARD_ERROR = 2
REARM_S = 1.0
# On a busy machine the event loop may be late, and large photos may hold the lock for seconds.
MIN_LIMIT_S = 10.0
# Loading a model may hold the lock for this long.
LOAD_LIMIT_S = 600.0


def _call(call: Callable[[], T]) -> T:
    return call()


async def _await(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


def _named(code: CodeType, request: str) -> FunctionType:
    name = f"request {request}"
    return FunctionType(code.replace(co_name=name, co_qualname=name), globals())


def run_named(request: str, call: Callable[[], T]) -> T:
    """Run a call in a frame that tracebacks show as `request ID`."""
    return cast("T", _named(_call.__code__, request)(call))


async def await_named(request: str, call: Callable[[], Awaitable[T]]) -> T:
    """Await a call in a frame that tracebacks show as `request ID`."""
    return cast("T", await _named(_await.__code__, request)(call))


def dump_tracebacks() -> None:
    """Write the traceback of every thread to standard error; those of requests show their ids."""
    faulthandler.dump_traceback(STANDARD_ERROR)


class FreezeWatchdog:
    """A timer that ends the process with EXIT_FROZEN when the event loop has not run for some time."""

    def __init__(self, limit_s: float, loading_for: Callable[[], float | None]) -> None:
        """Create a watchdog that is not active yet.

        limit_s: seconds for which the event loop may stand still; MIN_LIMIT_S is the lower bound. loading_for: returns
        the seconds since the newest running load of models began, or None without a load. During the LOAD_LIMIT_S after
        that moment, the loop may stand still.
        """
        self._limit = max(limit_s, MIN_LIMIT_S)
        self._loading_for = loading_for
        self._has_warned = False

    def arm(self) -> None:
        """Reset the timer."""
        loading = self._loading_for()
        limit = self._limit if loading is None else max(self._limit, LOAD_LIMIT_S - loading)
        try:
            faulthandler.dump_traceback_later(limit, exit=True, file=STANDARD_ERROR)
        except RuntimeError as error:  # The system has no thread for the timer now.
            if not self._has_warned:
                log.warning("the freeze watchdog is inactive, as its timer could not be set: %s", error)
            self._has_warned = True

    async def watch(self) -> None:
        """Reset the timer periodically until cancelled. Then cancel the timer."""
        loop = asyncio.get_running_loop()
        stops = hasattr(signal, "SIGTSTP") and signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
        if stops:
            loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        try:
            while True:
                self.arm()
                await asyncio.sleep(REARM_S)
        finally:
            faulthandler.cancel_dump_traceback_later()
            if stops:
                loop.remove_signal_handler(signal.SIGTSTP)

    def _suspend(self) -> None:
        """Suspend the process on Ctrl-Z. The timer is off meanwhile, else it would end the process on resumption."""
        faulthandler.cancel_dump_traceback_later()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.arm()
