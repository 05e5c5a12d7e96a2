"""The threads that photos are coloured in: one hop from the event loop, with a deadline and cancellation."""

import asyncio
import contextvars
import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from service.admission import Places
from service.problems import ClientGone, DeadlineExceeded

T = TypeVar("T")


class Workers:
    """A pool of threads and the places of the photos inside it.

    A thread inside a C call can't be stopped: its request is answered in time, but its place is free only when the
    thread returns.
    """

    def __init__(self, count: int, places: Places) -> None:
        self.count = count
        self.places = places
        self._pool = ThreadPoolExecutor(count, "photo")
        self._started: dict[int, float] = {}
        self._numbers = itertools.count()

    async def run(
        self, call: Callable[[threading.Event], T], *, deadline: float, gone: Callable[[], Awaitable[None]]
    ) -> T:
        """Runs `call` in a thread. It is given an event that is set when nobody waits for it any more.

        gone: returns when the client has hung up. Raises Overloaded when all places are taken, DeadlineExceeded at
        `deadline` (of `time.monotonic`), ClientGone, and what `call` raises.
        """
        cancelled = threading.Event()
        self.places.take()
        job = self._submit(call, cancelled)
        answer = asyncio.wrap_future(job)
        hang_up = asyncio.ensure_future(gone())
        try:
            left = max(0.0, deadline - time.monotonic())
            ends: set[asyncio.Future[Any]] = {answer, hang_up}
            await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if hang_up.done():
                raise ClientGone("the client hung up before its photo was done")
            raise DeadlineExceeded("the photo was not done in time")
        finally:
            hang_up.cancel()
            if not answer.done():
                cancelled.set()
                answer.add_done_callback(_forget)
                job.cancel()

    def _submit(self, call: Callable[[threading.Event], T], cancelled: threading.Event) -> Future[T]:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        number = next(self._numbers)
        # A cancelled job stays in the pool's queue until its turn; the photo that its call holds must not.
        held = [call]

        def work() -> T:
            self._started[number] = time.monotonic()
            try:
                return context.run(held.pop(), cancelled)
            finally:
                del self._started[number]

        def done(_: Future[T]) -> None:
            held.clear()
            loop.call_soon_threadsafe(self.places.give_back)

        try:
            job = self._pool.submit(work)
        except BaseException:
            self.places.give_back()
            raise
        job.add_done_callback(done)
        return job

    def stuck_for(self) -> float:
        """Seconds since any worker took a photo, when all of them have one; else 0."""
        started = list(self._started.values())
        return time.monotonic() - max(started) if len(started) >= self.count else 0.0

    def stop(self) -> None:
        """Lets running photos end, drops waiting ones."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forget(answer: asyncio.Future[T]) -> None:
    """Nobody waits for this answer: an error in it was told to the client already, or has no one to be told to."""
    if not answer.cancelled():
        answer.exception()
