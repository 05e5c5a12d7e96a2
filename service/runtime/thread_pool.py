"""A LIFO thread pool of fixed size, and detached threads that do not delay the end of the process."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A call and the future of its result."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._call = call

    def run(self) -> None:
        """Run the call unless the future was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001  (as in concurrent.futures: the future hands it to the caller)
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class LifoThreadPool:
    """A pool in which the thread that worked last works next. All threads start with the pool.

    A ThreadPoolExecutor uses its threads in rotation, so that successive single photos move from core to core. The
    caches of the last thread's core still have the model's weights, which saves 1.2 of 16 ms for 0.2 megapixels. Each
    thread is a ThreadPoolExecutor of size 1, so that the pool can choose it.
    """

    def __init__(self, count: int, name: str) -> None:
        """Start all threads. Raise OSError if one can't be started, so that no later call fails for that reason."""
        self._lock = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._stopped = False
        self._threads = [ThreadPoolExecutor(1, f"{name}_{number}") for number in range(count)]
        self._idle = list(self._threads)
        try:
            for thread in self._threads:
                thread.submit(int)  # An executor starts its thread with its first call, whatever the call is.
        except RuntimeError as error:
            self.stop()
            raise OSError(f"{count} {name} threads can't be started: {error}") from error

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Run `call` in a thread, after the calls that were submitted before. Raise RuntimeError after `stop`."""
        job = Job(call)
        with self._lock:
            if self._stopped:
                raise RuntimeError("the thread pool is stopped")
            if self._idle:
                self._start_on(self._idle.pop(), job)
            else:
                self._jobs.append(job)
        return job.future

    def _start_on(self, thread: ThreadPoolExecutor, job: Job[Any]) -> None:
        try:
            # The executor keeps a reference to its arguments. So the job is in a list, which `_work` empties.
            thread.submit(self._work, thread, [job])
        except BaseException:
            self._idle.append(thread)
            raise

    def _work(self, thread: ThreadPoolExecutor, pending: list[Job[Any]]) -> None:
        while pending:
            self._begin(pending.pop())
            with self._lock:
                if self._jobs:
                    pending.append(self._jobs.popleft())
                else:
                    self._idle.append(thread)

    def _begin(self, job: Job[Any]) -> None:
        if self._stopped:
            job.future.cancel()
        else:
            job.run()

    def stop(self, *, wait: bool = False) -> None:
        """Cancel the calls that have not begun. Running calls end by themselves; wait for them if `wait`."""
        with self._lock:
            self._stopped = True
            waiting = list(self._jobs)
            self._jobs.clear()
        for job in waiting:
            job.future.cancel()
        for thread in self._threads:
            thread.shutdown(wait=wait)


class DetachedThread(threading.Thread):
    """A daemon thread that runs one job. The process does not wait for it at its end."""

    def __init__(self, job: Job[Any]) -> None:
        super().__init__(target=job.run, name="detached", daemon=True)


async def run_detached(call: Callable[[], T]) -> T:
    """Run `call` in a detached thread. A thread of asyncio's own pool would keep the process from ending."""
    job = Job(call)
    DetachedThread(job).start()
    return await asyncio.wrap_future(job.future)


def is_any_detached() -> bool:
    """Return whether a call of `run_detached` is still running."""
    return any(isinstance(thread, DetachedThread) for thread in threading.enumerate())
