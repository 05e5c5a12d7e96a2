"""A fixed number of threads, of which the one that worked last works next; and threads that nobody waits for."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A call and the future that its result is given to."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._call = call

    def run(self) -> None:
        """Nothing when the future was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class LifoThreadPool:
    """A pool of threads that all run from the start.

    The threads of a ThreadPoolExecutor take turns, and so photos that come one by one move from core to core: the
    model's weights are in the caches of the thread that coloured the last one (1.2 ms of 16 at 0.2 megapixels). Each
    thread is an executor of its own here, so that it can be chosen; its end is that of any executor's threads.
    """

    def __init__(self, count: int, name: str) -> None:
        """Raises OSError when a thread can't be started: that is a fault now, and not of a call later."""
        self._lock = threading.Lock()
        self._jobs: deque[Job[Any]] = deque()
        self._stopped = False
        self._threads = [ThreadPoolExecutor(1, f"{name}_{number}") for number in range(count)]
        self._idle = list(self._threads)
        try:
            for thread in self._threads:
                thread.submit(int)  # Whose call doesn't matter: an executor starts its thread with the first one.
        except RuntimeError as error:
            self.stop()
            raise OSError(f"{count} {name} threads can't be started: {error}") from error

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Runs `call` in a thread, now or after those that came before; raises RuntimeError after `stop`."""
        job = Job(call)
        with self._lock:
            if self._stopped:
                raise RuntimeError("the threads are stopped")
            if self._idle:
                self._give(self._idle.pop(), job)
            else:
                self._jobs.append(job)
        return job.future

    def _give(self, thread: ThreadPoolExecutor, job: Job[Any]) -> None:
        try:
            # In a list, which is emptied: the executor holds on to what it was given.
            thread.submit(self._work, thread, [job])
        except BaseException:
            self._idle.append(thread)
            raise

    def _work(self, thread: ThreadPoolExecutor, given: list[Job[Any]]) -> None:
        while given:
            self._begin(given.pop())
            with self._lock:
                if self._jobs:
                    given.append(self._jobs.popleft())
                else:
                    self._idle.append(thread)

    def _begin(self, job: Job[Any]) -> None:
        if self._stopped:
            job.future.cancel()
        else:
            job.run()

    def stop(self, *, wait: bool = False) -> None:
        """Lets running calls end, and waits for them if asked to; cancels those that have not begun."""
        with self._lock:
            self._stopped = True
            waiting = list(self._jobs)
            self._jobs.clear()
        for job in waiting:
            job.future.cancel()
        for thread in self._threads:
            thread.shutdown(wait=wait)


class DetachedThread(threading.Thread):
    """A thread that nobody waits for at the process's end."""

    def __init__(self, job: Job[Any]) -> None:
        super().__init__(target=job.run, name="apart", daemon=True)


async def run_detached(call: Callable[[], T]) -> T:
    """Runs `call` in a thread of its own; those of asyncio keep the process from ending."""
    job = Job(call)
    DetachedThread(job).start()
    return await asyncio.wrap_future(job.future)


def is_any_detached() -> bool:
    """Whether a call goes on that way."""
    return any(isinstance(thread, DetachedThread) for thread in threading.enumerate())
