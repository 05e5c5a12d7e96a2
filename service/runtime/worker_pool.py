"""The threads that photos are coloured in: one hop from the event loop, with a deadline and cancellation."""

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

# So many photos may wait for each thread however long it takes, within half of the places: a slow machine is slow.
ALWAYS_WAITING = 4


class WorkerPool:
    """A pool of threads and the places of the photos inside it.

    A thread inside a C call can't be stopped: its request is answered in time, but its place is free only when the
    thread returns.
    """

    def __init__(self, count: int, slots: Slots, max_wait: float = math.inf) -> None:
        """max_wait: when a photo has waited for a thread for so many seconds, no more are taken for now."""
        self.count = count
        self.slots = slots
        self.max_wait = max_wait
        self._waiting: dict[int, float] = {}
        self._line: deque[asyncio.Future[None]] = deque()
        self._threads = LifoThreadPool(count, "photo")
        self._busy_tracker = BusyTracker(count)
        self._numbers = itertools.count()

    async def wait_for_slot(self) -> None:
        """Waits for a place, however long, and takes it for a `run`: first come, first served.

        The places that those in the line wait for are kept from the others, but for half of all.
        """
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        self._serve_line()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # It may have been passed over already.
                    self._line.remove(turn)
            else:
                self._give_back()
            raise

    def _serve_line(self) -> None:
        while self._line and self.slots.in_use < self.slots.limit and self._long_wait() is None:
            turn = self._line.popleft()
            if not turn.done():
                self.slots.acquire()
                turn.set_result(None)

    def _give_back(self) -> None:
        self.slots.release()
        self._serve_line()

    async def run(
        self,
        call: Callable[[threading.Event], T],
        *,
        deadline: float,
        gone: Callable[[], Awaitable[None]],
        has_slot: bool = False,
    ) -> T:
        """Runs `call` in a thread. It is given an event that is set when nobody waits for it any more.

        gone: returns when the client has hung up. has_place: from `line_up`; without it, raises Overloaded when all
        places are taken or others wait too long already. Raises DeadlineExceeded at `deadline` (of `time.monotonic`),
        ClientGone, and what `call` raises.
        """
        cancelled = threading.Event()
        if not has_slot:
            self._take_place()
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
            answer.add_done_callback(_forget)
            if not answer.done():
                cancelled.set()
                job.cancel()

    @property
    def waiting(self) -> int:
        """How many photos wait for a thread."""
        return len(self._waiting)

    def longest_wait(self) -> float:
        """Seconds that the first in the queue has waited for a thread; 0 when none waits."""
        waiting = list(self._waiting.values())
        return time.monotonic() - min(waiting) if waiting else 0.0

    def _take_place(self) -> None:
        wait = self._long_wait()
        if wait is not None:
            detail = f"the photos that wait for their turn have done so for {wait:.1f} s"
            raise Overloaded(detail, limit=self.max_wait, retry_after=max(1, round(2 * wait)))
        self.slots.acquire(leave=min(len(self._line), self.slots.limit // 2))

    def _long_wait(self) -> float | None:
        """Seconds that the first in the queue has waited, when that is too long for another photo to come in.

        The places alone bound memory, not time: as many large photos as there are places take many times as long.
        What is looked at is the wait as it is, not one foretold from what photos took: a burst is taken in whole, and
        photos of all sizes may be mixed.
        """
        wait = self.longest_wait()
        always = min(ALWAYS_WAITING * self.count, self.slots.limit // 2)
        return wait if wait > self.max_wait and len(self._waiting) >= always else None

    def _submit(self, call: Callable[[threading.Event], T], cancelled: threading.Event) -> Future[T]:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        request = request_id.get()
        number = next(self._numbers)
        # A cancelled job stays in the pool's queue until its turn; the photo that its call holds must not.
        held = [call]

        def work() -> T:
            try:
                with self._busy_tracker.track(request):
                    self._waiting.pop(number, None)
                    if self._line:
                        loop.call_soon_threadsafe(self._serve_line)
                    return run_named(request, partial(context.run, held.pop(), cancelled))
            except Exception as error:
                _let_go(error)
                raise
            except BaseException as error:
                _let_go(error)
                # It would end the event loop's task, too: SystemExit, for one.
                raise RuntimeError(f"a worker was to end: {error!r}") from error

        def done(_: Future[T]) -> None:
            held.clear()
            self._waiting.pop(number, None)
            loop.call_soon_threadsafe(self._give_back)

        self._waiting[number] = time.monotonic()
        try:
            job = self._threads.submit(work)
        except BaseException:
            del self._waiting[number]
            self._give_back()
            raise
        job.add_done_callback(done)
        return job

    def stuck_for(self) -> float:
        """Seconds since any worker took a photo, when all of them have one; else 0."""
        return self._busy_tracker.stuck_for()

    @property
    def busy(self) -> int:
        """How many workers have a photo."""
        return self._busy_tracker.busy

    @property
    def requests(self) -> list[str]:
        """The ids of the requests whose photos workers have, the longest at work first."""
        return self._busy_tracker.names

    def stop(self) -> None:
        """Lets running photos end, drops waiting ones."""
        self._threads.stop()


def _let_go(error: BaseException) -> None:
    """Frees what the frames of a failed photo hold: its planes would stay until the next collection of cycles."""
    linked: BaseException | None = error
    while linked is not None:
        traceback.clear_frames(linked.__traceback__)
        linked = linked.__cause__ or linked.__context__


def _forget(answer: asyncio.Future[T]) -> None:
    """Nobody waits for this answer: an error in it was told to the client already, or has no one to be told to."""
    if not answer.cancelled():
        answer.exception()
