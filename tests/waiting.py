"""Functions that wait for threads and other processes, however slow the machine is.

Tests that sleep instead fail on a busy machine. A test for slow code measures CPU time, which does not depend on other
load.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

# Far more than needed on an idle machine: this timeout only ends a test that would hang.
WAIT_S = 60.0
PAUSE_S = 0.005


def until(condition: Callable[[], bool], seconds: float = WAIT_S, pause: float = PAUSE_S) -> None:
    """Wait until the condition is true. Raises AssertionError on a timeout."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(pause)


async def eventually(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait as `until` does, while the event loop runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        await asyncio.sleep(PAUSE_S)


@contextmanager
def cpu_within(seconds: float, pid: int | None = None) -> Iterator[None]:
    """Assert that the block uses less CPU time, in seconds over all threads of a process. pid: this process if None."""
    process = psutil.Process(pid or os.getpid())
    before = sum(process.cpu_times()[:2])
    yield
    took = sum(process.cpu_times()[:2]) - before
    assert took < seconds, f"{took:.2f} s of CPU time"
