"""Waiting for what threads and other processes do, however busy the machine is: tests that sleep instead fail there."""

import asyncio
import time
from collections.abc import Callable

WAIT_S = 30.0
PAUSE_S = 0.005


def until(condition: Callable[[], bool], seconds: float = WAIT_S, pause: float = PAUSE_S) -> None:
    """Returns when the condition is true. Raises AssertionError: not in time."""
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
