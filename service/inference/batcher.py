"""Run the items of concurrent callers in batches, by leader/follower batching.

There is no separate thread: the caller that finds a free executor becomes the leader. It takes the waiting items, up
to the largest batch size, and runs them. Then it hands out the results, and passes its executor on to the first caller
that still waits. So a batch is built when it can run, no caller waits for a timer, and a single caller never waits.
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

WAITED_TOO_LONG = "the photo waited for the model until its deadline"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one item: its chroma, the seconds it waited and ran, and the size of its batch."""

    chroma: Floats
    queued: float
    ran: float
    batch: int


class _Waiter:
    """One caller's item. The batcher's lock guards its fields, and `wake` gets an entry on every change of them.

    `wake` is a SimpleQueue because that is implemented in C. Waiting for a threading.Event takes twice the time, and
    with a GPU there are many waits.
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
        self.executor: Predictor | None = None  # Set for a leader that has not used its executor yet.
        self.outcome: Prediction | BaseException | None = None

    def settle(self, outcome: Prediction | BaseException) -> None:
        self.outcome = outcome
        self.wake.put(None)


class Batcher:
    """Runs the items of many threads in batches, with a bounded queue, deadlines and cancellation."""

    def __init__(
        self,
        executors: Sequence[Predictor],
        *,
        max_batch: int,
        capacity: int,
        spread: Predictor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a batcher.

        executors: each runs one batch at a time, on any device; the same object may be listed several times.
        capacity: the number of callers that may wait. spread: runs a single item on several cores, in place of its
        executor, if no other work is in progress.
        """
        self._spread = spread
        self._max_batch = max_batch
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._all = {*executors} if spread is None else {*executors, spread}
        self.runs = BusyTracker(len(executors), clock)
        self.failing_executors = FailingExecutors(clock)
        # Used in rotation, so that several GPUs share the work even under light load.
        self._free = deque(executors)
        self._waiting: deque[_Waiter] = deque()
        # Called after each run with the size of its batch.
        self.on_run: Callable[[int], None] = lambda _: None

    @property
    def depth(self) -> int:
        """The number of callers that wait for an executor."""
        with self._lock:
            return len(self._waiting)

    def can_run(self, black: Floats) -> bool:
        """Return whether every executor can run a black photo, next to its other work. One that can't is marked."""
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
        """Return the chroma for lightness, float32 [1, S, S]. Block until the result exists.

        deadline: a time of the clock. alone: no other photo is in progress on this machine.

        Raises Overloaded if `capacity` callers wait already, and DeadlineExceeded if the result is not ready in time.
        Raises ClientGone if `cancelled` is set before the item runs, and what the executor raises.
        """
        waiter = _Waiter(lightness, self._clock(), deadline, cancelled, alone=alone)
        with self._lock:
            if self._free:
                waiter.executor = self._free.popleft()
            elif len(self._waiting) >= self._capacity:
                raise Overloaded("the queue of the model is full; try again later", limit=self._capacity)
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
            raise DeadlineExceeded(WAITED_TOO_LONG) from None

    def _remaining(self, waiter: _Waiter) -> float | None:
        return None if waiter.deadline is None else max(0.0, waiter.deadline - self._clock())

    def _leave(self, waiter: _Waiter) -> None:
        """Remove a caller that has its outcome or gave up, and pass on the executor it may hold."""
        with self._lock:
            # A waiter with an outcome was removed from the queue before.
            if waiter.outcome is None and waiter in self._waiting:
                self._waiting.remove(waiter)
            if waiter.executor is not None:
                self._pass_on(waiter, waiter.executor)

    def _pass_on(self, leader: _Waiter, executor: Predictor) -> None:
        """Hand the leader's executor to the first waiter without one. The caller holds the lock."""
        leader.executor = None
        follower = next((waiter for waiter in self._waiting if waiter.executor is None), None)
        if follower is None:
            self._free.append(executor)
        else:
            follower.executor = executor
            follower.wake.put(None)

    def _lead(self, leader: _Waiter, executor: Predictor) -> None:
        with self._lock:
            # Another leader may have run this item already. Then the executor is passed on immediately.
            batch = self._take_batch() if leader in self._waiting else []
        try:
            if batch:
                self._run(executor, batch)
        finally:
            with self._lock:
                self._pass_on(leader, executor)

    def _take_batch(self) -> list[_Waiter]:
        """Remove the next batch, oldest first, and settle cancelled and late items. The caller holds the lock."""
        batch: list[_Waiter] = []
        while self._waiting and len(batch) < self._max_batch:
            waiter = self._waiting.popleft()
            if waiter.cancelled is not None and waiter.cancelled.is_set():
                waiter.settle(ClientGone("the request was cancelled"))
            elif self._remaining(waiter) == 0:
                waiter.settle(DeadlineExceeded(WAITED_TOO_LONG))
            else:
                batch.append(waiter)
        return batch

    def _run(self, executor: Predictor, batch: Sequence[_Waiter]) -> None:
        """Settle every item of the batch, even on errors. Run the items of a failed batch again, one by one."""
        started = self._clock()
        if self._spread is not None and len(batch) == 1 and batch[0].alone:
            executor = self._spread
        try:
            with self.runs.track():
                chroma = executor.predict([waiter.lightness for waiter in batch])
            if len(chroma) != len(batch):
                raise RuntimeError(f"{len(batch)} items went in and {len(chroma)} came out")
        except Exception as error:  # noqa: BLE001  (each caller raises its own)
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
            self.on_run(len(batch))
            for waiter, one in zip(batch, chroma, strict=True):
                waiter.settle(Prediction(one, started - waiter.arrived, ran, len(batch)))
