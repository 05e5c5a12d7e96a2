"""Exit when only a new process can help: stuck workers, failing models, workers that outlast the drain."""

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

# Exit codes of sysexits.h: EX_SOFTWARE and EX_UNAVAILABLE.
EXIT_STUCK = 70
EXIT_FAILING = 69
WATCH_S = 1.0
# After a failure that passes, such as a lack of GPU memory, the service should soon be ready again.
PROBE_S = 2.0
# Time for worker threads to finish when the process is about to exit. No client waits for their photos any more.
LAST_WORKERS_S = 5.0


def exit_reason(state: State) -> tuple[int, str] | None:
    """Return the exit code and the reason if only a new process can help."""
    limit = state.settings.stuck_s
    if state.workers.stuck_for() > limit:
        return EXIT_STUCK, f"all {state.workers.count} workers are stuck for {limit:.0f} s"
    for model in state.colorizer.models:
        name = model.contract.name
        if model.batcher.runs.stuck_for() > limit:
            return EXIT_STUCK, f"all runs of the model {name} are stuck for {limit:.0f} s"
        if model.batcher.failing_executors.failing_for() > limit:
            return EXIT_FAILING, f"the model {name} has failed for {limit:.0f} s, on a black photo, too"
    return None


async def watch(state: State) -> None:
    """Exit when only a new process can help. A thread inside a C call can't be stopped."""
    while True:
        await asyncio.sleep(WATCH_S)
        if found := exit_reason(state):
            code, reason = found
            log.critical("%s: the process exits%s", reason, _requests_in_progress(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(code)


def _requests_in_progress(state: State) -> str:
    """Return the end of a log line: the requests that may have caused the exit."""
    requests = ", ".join(sorted(state.workers.requests))
    return f", with the requests {requests} in progress" if requests else ""


async def probe(state: State) -> None:
    """Run failed models on a black photo. While the service is not ready, no request would show that they recovered."""
    while True:
        await asyncio.sleep(PROBE_S)
        for model in state.colorizer.models:
            if model.batcher.failing_executors:
                with suppress(RuntimeError):  # No thread can be started at the moment.
                    await run_detached(partial(model.batcher.failing_executors.probe, model.black_photo))


async def wait_for_workers(state: State) -> None:
    """Wait for the worker threads, and exit if one does not finish. Python itself would wait for it without end."""
    ends = time.monotonic() + LAST_WORKERS_S
    while state.workers.busy:
        if time.monotonic() > ends:
            line = "%d workers are stuck: the process exits without them%s"
            log.critical(line, state.workers.busy, _requests_in_progress(state))
            freeze_watchdog.dump_tracebacks()
            os._exit(EXIT_STUCK)
        await asyncio.sleep(0.05)
