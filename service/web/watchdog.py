"""End the process when only a new one can help: stuck workers, failing models, work that outlives the drain."""

import asyncio
import logging
import os
import time
from contextlib import suppress
from functools import partial

from service.runtime import freeze_watchdog
from service.runtime.thread_pool import run_detached
from service.web.state import State

log = logging.getLogger(__name__)

# sysexits.h: an internal software error, and something that is needed does not work.
EXIT_STUCK = 70


EXIT_FAILING = 69


WATCH_S = 1.0


# Failures that pass, as for want of a GPU's memory, should not keep it from its photos for long.
PROBE_S = 2.0


# For photos that nobody waits for any more, when the process is to end.
LAST_WORKERS_S = 5.0


def _exit_reason(state: State) -> tuple[int, str] | None:
    """The code and the reason to end with, when only a new process helps."""
    limit = state.settings.stuck_s
    if state.workers.stuck_for() > limit:
        return EXIT_STUCK, f"all {state.workers.count} workers are stuck for {limit:.0f} s"
    for model in state.colorizer.models:
        name = model.contract.name
        if model.batcher.runs.stuck_for() > limit:
            return EXIT_STUCK, f"all runs of the model {name} are stuck for {limit:.0f} s"
        if model.batcher.failing_executors.failing_for() > limit:
            return EXIT_FAILING, f"the model {name} has failed, on a black photo too, for {limit:.0f} s"
    return None


async def watch(state: State) -> None:
    """Ends the process when only a new one helps: a thread inside a C call can't be stopped, for one."""
    while True:
        await asyncio.sleep(WATCH_S)
        if found := _exit_reason(state):
            code, reason = found
            log.critical("%s: the process ends%s", reason, _requests_in_progress(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(code)


def _requests_in_progress(state: State) -> str:
    """Return the end of a log line: the requests that may have caused the end of the process."""
    requests = ", ".join(sorted(state.workers.requests))
    return f", with the requests {requests} inside" if requests else ""


async def probe(state: State) -> None:
    """Tries the models that failed: while it is not ready, no photo may come that would show that they work again."""
    while True:
        await asyncio.sleep(PROBE_S)
        for model in state.colorizer.models:
            if model.batcher.failing_executors:
                with suppress(RuntimeError):  # There is no thread for it now.
                    await run_detached(partial(model.batcher.failing_executors.probe, model.black_photo))


async def wait_for_workers(state: State) -> None:
    """Ends the process when a worker does not come back: Python would wait for it for ever."""
    ends = time.monotonic() + LAST_WORKERS_S
    while state.workers.busy:
        if time.monotonic() > ends:
            stuck = "%d workers are stuck: the process ends without them%s"
            log.critical(stuck, state.workers.busy, _requests_in_progress(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(EXIT_STUCK)
        await asyncio.sleep(0.05)
