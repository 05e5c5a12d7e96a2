"""A thread pool that stops soon when the program is interrupted."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def worker_pool(count: int | None = None, name: str = "photographs") -> Iterator[ThreadPoolExecutor]:
    """Provide a pool of `count` threads, by default one per core.

    On exit, jobs that have not begun are cancelled, so that Ctrl-C does not wait for the whole queue.
    """
    executor = ThreadPoolExecutor(count or os.cpu_count() or 1, name)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
