"""End a process in which nothing of Python runs any more, and name the requests that were inside.

A call of a C library that keeps Python's lock (the GIL) and does not return freezes every thread: the event loop, the
deadline, the watch on stuck workers, the log and the handlers of signals. Only `faulthandler` goes on then: its timer
is a thread in C, which needs no lock. When it is not set anew in time, it writes the traceback of every thread and
ends the process.

It writes nothing but tracebacks, so the requests are named there: each runs in a frame that has its id as its name.
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

# The code that faulthandler ends a process with.
EXIT_FROZEN = 1
STANDARD_ERROR = 2
REARM_S = 1.0
# On a busy machine the event loop may come late, and large photos may keep the lock for seconds.
LEAST_S = 10.0
# A model that is loaded may keep the lock for as long.
LOAD_S = 600.0


def _call(call: Callable[[], T]) -> T:
    return call()


async def _await(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


def _named(code: CodeType, request: str) -> FunctionType:
    name = f"request {request}"
    return FunctionType(code.replace(co_name=name, co_qualname=name), globals())


def run_named(request: str, call: Callable[[], T]) -> T:
    """Run the call in a frame that tracebacks show as `request ID`."""
    return cast("T", _named(_call.__code__, request)(call))


async def await_named(request: str, call: Callable[[], Awaitable[T]]) -> T:
    """Await the call in a frame that tracebacks show as `request ID`."""
    return cast("T", await _named(_await.__code__, request)(call))


def dump_tracebacks() -> None:
    """Write the traceback of every thread to standard error, those of requests with their ids."""
    faulthandler.dump_traceback(STANDARD_ERROR)


class FreezeWatchdog:
    """Ends the process with EXIT_FROZEN when the event loop has not run for some time."""

    def __init__(self, limit_s: float, loading_for: Callable[[], float | None]) -> None:
        """Make a watchdog that does not watch yet.

        limit_s: seconds that the event loop may stand still; LEAST_S at least. loading_for: seconds since the latest
        load of models under way began, None when there is none; it has LOAD_S in which the loop may stand still.
        """
        self._limit = max(limit_s, LEAST_S)
        self._loading_for = loading_for
        self._is_told = False

    def arm(self) -> None:
        """Set the timer anew."""
        loading = self._loading_for()
        limit = self._limit if loading is None else max(self._limit, LOAD_S - loading)
        try:
            faulthandler.dump_traceback_later(limit, exit=True, file=STANDARD_ERROR)
        except RuntimeError as error:  # There is no thread for it now.
            if not self._is_told:
                log.warning("nothing ends the process now, should it freeze: %s", error)
            self._is_told = True

    async def watch(self) -> None:
        """Set the timer anew again and again, until cancelled; then there is none."""
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
        """Stop the process, as Ctrl-Z in its terminal asks for, with no timer that would end it when it goes on."""
        faulthandler.cancel_dump_traceback_later()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.arm()
