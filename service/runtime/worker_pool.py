"""Run photos in worker threads, called from the event loop, with a deadline and cancellation.

A photo is refused if all slots are taken, or if the first photo in the queue has waited too long.
"""

import asyncio
import contextvars
import itertools
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.runtime.admission import Slots
from service.runtime.busy import BusyTracker
from service.runtime.freeze_watchdog import run_named
from service.runtime.request_context import request_id
from service.runtime.thread_pool import LifoThreadPool

T = TypeVar("T")

# Photos that may always wait for each thread, within half of the slots. On a slow machine every wait is long.
MIN_QUEUE_PER_WORKER = 4


class WorkerPool:
    """A pool of worker threads, and the slots of the photos that run or wait in it.

    A thread inside a C call can't be stopped. Its request still gets a response at the deadline, but its slot is free
    only when the thread returns.
    """

    def __init__(self, count: int, slots: Slots, max_wait: float = math.inf) -> None:
        """Start `count` threads. Raise OSError if one can't be started.

        max_wait: while the oldest photo has waited for a thread for longer than this, in seconds, refuse new photos.
        """
        self.count = count
        self.slots = slots
        self.max_wait = max_wait
        self._waiting: dict[int, float] = {}
        self._queue: deque[asyncio.Future[None]] = deque()
        self._threads = LifoThreadPool(count, "photo")
        self._busy_tracker = BusyTracker(count)
        self._numbers = itertools.count()

    async def wait_for_slot(self) -> None:
        """Wait for a slot without a limit, first come, first served. The caller passes the slot on to `run`.

        While callers wait here, callers of `run` without a slot must leave one free for each of them. At most half of
        all slots are reserved that way.
        """
        granted = asyncio.get_running_loop().create_future()
        self._queue.append(granted)
        self._serve_queue()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                with suppress(ValueError):  # `_serve_queue` may have removed it already.
                    self._queue.remove(granted)
            else:
                self._release_slot()
            raise

    def _serve_queue(self) -> None:
        while self._queue and self.slots.in_use < self.slots.limit and self._excessive_wait() is None:
            granted = self._queue.popleft()
            if not granted.done():
                self.slots.acquire()
                granted.set_result(None)

    def _release_slot(self) -> None:
        self.slots.release()
        self._serve_queue()

    async def run(
        self,
        call: Callable[[threading.Event], T],
        *,
        deadline: float,
        disconnect: Callable[[], Awaitable[None]],
        has_slot: bool = False,
    ) -> T:
        """Run `call` in a worker thread, and return its result. `call` gets an event that is set on cancellation.

        deadline: a time of `time.monotonic`. disconnect: returns once the client has disconnected. has_slot: whether
        the caller has a slot from `wait_for_slot`.

        Raises Overloaded if the caller has no slot and all slots are in use, or other photos already wait too long.
        Raises DeadlineExceeded at the deadline, ClientGone if the client disconnects, and what `call` raises.
        """
        cancelled = threading.Event()
        if not has_slot:
            self._acquire_slot()
        job = self._submit(call, cancelled)
        result = asyncio.wrap_future(job)
        disconnected = asyncio.ensure_future(disconnect())
        try:
            left = max(0.0, deadline - time.monotonic())
            ends: set[asyncio.Future[Any]] = {result, disconnected}
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if disconnected.done():
                raise ClientGone("the client disconnected before its photo was finished")
            raise DeadlineExceeded("the photo was not finished before the deadline")
        finally:
            disconnected.cancel()
            result.add_done_callback(_discard_error)
            if not result.done():
                cancelled.set()
                job.cancel()

    @property
    def waiting(self) -> int:
        """The number of photos that wait for a thread."""
        return len(self._waiting)

    def longest_wait(self) -> float:
        """Return the seconds that the oldest photo in the queue has waited for a thread, or 0 if the queue is empty."""
        waiting = list(self._waiting.values())
        return time.monotonic() - min(waiting) if waiting else 0.0

    def _acquire_slot(self) -> None:
        wait = self._excessive_wait()
        if wait is not None:
            detail = f"photos already wait for {wait:.1f} s, longer than the {self.max_wait:g} s allowed"
            raise Overloaded(detail, limit=self.max_wait, retry_after=max(1, round(2 * wait)))
        self.slots.acquire(leave=min(len(self._queue), self.slots.limit // 2))

    def _excessive_wait(self) -> float | None:
        """Return the wait of the oldest photo in the queue, seconds, if it is too long to admit another photo.

        Slots alone limit memory but not time: the same number of large photos takes many times as long. The check uses
        the actual wait and no forecast from earlier photos. So a burst is admitted as a whole, whatever the sizes.
        """
        wait = self.longest_wait()
        allowed = min(MIN_QUEUE_PER_WORKER * self.count, self.slots.limit // 2)
        return wait if wait > self.max_wait and len(self._waiting) >= allowed else None

    def _submit(self, call: Callable[[threading.Event], T], cancelled: threading.Event) -> Future[T]:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        request = request_id.get()
        number = next(self._numbers)
        # A cancelled job stays in the pool's queue until a thread reaches it. It must not keep the photo in memory.
        held = [call]

        def work() -> T:
            try:
                with self._busy_tracker.track(request):
                    self._waiting.pop(number, None)
                    if self._queue:
                        loop.call_soon_threadsafe(self._serve_queue)
                    return run_named(request, partial(context.run, held.pop(), cancelled))
            except Exception as error:
                _clear_frames(error)
                raise
            except BaseException as error:
                _clear_frames(error)
                # SystemExit, for example, would also end the event loop's task.
                raise RuntimeError(f"a worker raised {error!r}") from error

        def done(_: Future[T]) -> None:
            held.clear()
            self._waiting.pop(number, None)
            loop.call_soon_threadsafe(self._release_slot)

        self._waiting[number] = time.monotonic()
        try:
            job = self._threads.submit(work)
        except BaseException:
            del self._waiting[number]
            self._release_slot()
            raise
        job.add_done_callback(done)
        return job

    def stuck_for(self) -> float:
        """Return the seconds since the last worker began a photo if all workers are busy, else 0."""
        return self._busy_tracker.stuck_for()

    @property
    def busy(self) -> int:
        """The number of workers that have a photo."""
        return self._busy_tracker.busy

    @property
    def requests(self) -> list[str]:
        """The ids of the requests whose photos are in a worker, oldest first."""
        return self._busy_tracker.names

    def stop(self) -> None:
        """Drop the photos that wait. Running photos end by themselves."""
        self._threads.stop()


def _clear_frames(error: BaseException) -> None:
    """Release what the frames of a failed photo hold. Else its planes would stay until the next garbage collection."""
    linked: BaseException | None = error
    while linked is not None:
        traceback.clear_frames(linked.__traceback__)
        linked = linked.__cause__ or linked.__context__


def _discard_error(result: asyncio.Future[T]) -> None:
    """Mark the error of a result as seen: the caller has raised it already, or no longer waits for it."""
    if not result.cancelled():
        result.exception()
