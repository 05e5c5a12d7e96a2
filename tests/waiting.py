"""Waiting for what threads and other processes do, however busy the machine is: tests that sleep instead fail there.

What takes long is told by the CPU time that it takes, which a busy machine does not change.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

# For what comes in a moment on an idle machine: it only ends a test that would hang.
WAIT_S = 60.0
PAUSE_S = 0.005


def until(condition: Callable[[], bool], seconds: float = WAIT_S, pause: float = PAUSE_S) -> None:
    """Return when the condition is true. Raises AssertionError: not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(pause)


async def eventually(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """As `until`, and the event loop goes on meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s"
        await asyncio.sleep(PAUSE_S)


@contextmanager
def cpu_within(seconds: float, pid: int | None = None) -> Iterator[None]:
    """Assert that a process, by default this one, takes no more CPU time meanwhile, of all its threads together."""
    process = psutil.Process(pid or os.getpid())
    before = sum(process.cpu_times()[:2])
    yield
    took = sum(process.cpu_times()[:2]) - before
    assert took < seconds, f"{took:.2f} s of CPU time"
