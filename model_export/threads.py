"""Threads that end soon when the program is interrupted."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(count: int | None = None, name: str = "photographs") -> Iterator[ThreadPoolExecutor]:
    """Provide a pool of `count` threads, one a core by default.

    At its end, what has not begun is dropped: after Ctrl-C nobody waits for all that was handed in.
    """
    executor = ThreadPoolExecutor(count or os.cpu_count() or 1, name)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
