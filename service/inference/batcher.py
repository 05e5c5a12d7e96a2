"""Brings concurrent callers and free executors together.

No thread of its own: the caller that finds a free executor leads. It takes what is waiting, up to the largest batch,
runs it, hands out the answers, and passes its executor on to the first that still waits. So a batch is built when it
can run, nobody waits for a timer, and one caller alone is never delayed.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.imaging.color import Floats
from service.inference.executor import Predictor
from service.inference.health import FailingExecutors
from service.runtime.busy import BusyTracker


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer, how long it waited and ran (seconds), and how many ran with it."""

    chroma: Floats
    queued: float
    ran: float
    batch: int


class _Waiter:
    """One caller's item. Its fields are guarded by the batcher's lock; `wake` gets something on every change of them.

    A queue, because it is C all through: waiting for an event takes twice the time, and a GPU makes many of them.
    """

    __slots__ = ("alone", "arrived", "cancelled", "deadline", "executor", "lightness", "outcome", "wake")

    def __init__(
        self,
        lightness: Floats,
        arrived: float,
        deadline: float | None,
        cancelled: threading.Event | None,
        *,
        alone: bool,
    ) -> None:
        self.lightness = lightness
        self.alone = alone
        self.arrived = arrived
        self.deadline = deadline
        self.cancelled = cancelled
        self.wake: SimpleQueue[None] = SimpleQueue()
        self.executor: Predictor | None = None  # handed to this caller, which has not used it yet: it leads
        self.outcome: Prediction | BaseException | None = None

    def settle(self, outcome: Prediction | BaseException) -> None:
        self.outcome = outcome
        self.wake.put(None)


class Batcher:
    """Runs executors for many threads, in batches; bounded, with deadlines and cancellation."""

    def __init__(
        self,
        executors: Sequence[Predictor],
        *,
        max_batch: int,
        capacity: int,
        spread: Predictor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """executors: each runs one batch at a time, whatever device is behind it; one may be there several times.

        capacity: how many callers may wait for one. spread: in place of its executor, runs an item whose caller is
        alone.
        """
        self._spread = spread
        self._max_batch = max_batch
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._all = {*executors} if spread is None else {*executors, spread}
        self.runs = BusyTracker(len(executors), clock)
        self.failing_executors = FailingExecutors(clock)
        # Taken in turn, so that several GPUs share the work, however little there is.
        self._free = deque(executors)
        self._waiting: deque[_Waiter] = deque()
        # Is told how many ran together, each time.
        self.ran: Callable[[int], None] = lambda _: None

    @property
    def depth(self) -> int:
        """How many callers wait for an executor."""
        with self._lock:
            return len(self._waiting)

    def can_run(self, black: Floats) -> bool:
        """Whether every executor can run that photo, beside whatever it does; one that can't is suspect from now on."""
        for executor in self._all:
            self.failing_executors.add(executor)
        return self.failing_executors.probe(black)

    def predict(
        self,
        lightness: Floats,
        *,
        deadline: float | None = None,
        cancelled: threading.Event | None = None,
        alone: bool = False,
    ) -> Prediction:
        """Lightness, float32 [1, S, S], to its chroma; blocks until it is there.

        deadline: a time of the clock. alone: nobody else has work for this machine now. Raises Overloaded when too many
        wait, DeadlineExceeded when the answer is not there in time, ClientGone when `cancelled` is set before the item
        runs, and whatever the predictor raises.
        """
        waiter = _Waiter(lightness, self._clock(), deadline, cancelled, alone=alone)
        with self._lock:
            if self._free:
                waiter.executor = self._free.popleft()
            elif len(self._waiting) >= self._capacity:
                raise Overloaded("too many photos wait for the model", limit=self._capacity)
            self._waiting.append(waiter)
        try:
            return self._outcome(waiter)
        finally:
            self._leave(waiter)

    def _outcome(self, waiter: _Waiter) -> Prediction:
        while waiter.outcome is None:
            if waiter.executor is not None:
                self._lead(waiter, waiter.executor)
            else:
                self._wait(waiter)
        if isinstance(waiter.outcome, BaseException):
            raise waiter.outcome
        return waiter.outcome

    def _wait(self, waiter: _Waiter) -> None:
        try:
            waiter.wake.get(timeout=self._remaining(waiter))
        except Empty:
            raise DeadlineExceeded("the photo waited too long for the model") from None

    def _remaining(self, waiter: _Waiter) -> float | None:
        return None if waiter.deadline is None else max(0.0, waiter.deadline - self._clock())

    def _leave(self, waiter: _Waiter) -> None:
        """Takes a caller out that got its outcome or gave up, and frees the executor it may have been handed."""
        with self._lock:
            # One with an outcome was taken out before it got it.
            if waiter.outcome is None and waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.executor is not None:
                self._pass_on(waiter, waiter.executor)

    def _pass_on(self, leader: _Waiter, executor: Predictor) -> None:
        """Hands the leader's executor to the first that waits without one. The lock is held."""
        leader.executor = None
        heir = next((waiter for waiter in self._waiting if waiter.executor is None), None)
        if heir is None:
            self._free.append(executor)
        else:
            heir.executor = executor
            heir.wake.put(None)

    def _lead(self, leader: _Waiter, executor: Predictor) -> None:
        with self._lock:
            # Another leader may have taken this one's item along: then the executor goes on at once.
            batch = self._take() if leader in self._waiting else []
        try:
            if batch:
                self._run(executor, batch)
        finally:
            with self._lock:
                self._pass_on(leader, executor)

    def _take(self) -> list[_Waiter]:
        """The next batch, oldest first, without those that nobody waits for any more. The lock is held."""
        batch: list[_Waiter] = []
        while self._waiting and len(batch) < self._max_batch:
            waiter = self._waiting.popleft()
            if waiter.cancelled is not None and waiter.cancelled.is_set():
                waiter.settle(ClientGone("the request was cancelled"))
            elif self._remaining(waiter) == 0:
                waiter.settle(DeadlineExceeded("the photo waited too long for the model"))
            else:
                batch.append(waiter)
        return batch

    def _run(self, executor: Predictor, batch: Sequence[_Waiter]) -> None:
        """Settles every item of the batch, whatever happens. A failed batch is tried again one by one."""
        started = self._clock()
        if self._spread is not None and len(batch) == 1 and batch[0].alone:
            executor = self._spread
        try:
            with self.runs.track():
                chroma = executor.predict([waiter.lightness for waiter in batch])
            if len(chroma) != len(batch):
                raise RuntimeError(f"{len(batch)} items went in and {len(chroma)} came out")
        except Exception as error:
            if len(batch) == 1:
                self.failing_executors.add(executor)
                batch[0].settle(error)
            else:
                for waiter in batch:
                    self._run(executor, [waiter])
        except BaseException as error:
            for waiter in batch:
                waiter.settle(error)
            raise
        else:
            ran = self._clock() - started
            self.failing_executors.clear(executor)
            self.ran(len(batch))
            for waiter, one in zip(batch, chroma, strict=True):
                waiter.settle(Prediction(one, started - waiter.arrived, ran, len(batch)))
