import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from service.errors import ClientGone, DeadlineExceeded, Overloaded
from service.inference.batcher import Batcher, Prediction
from tests.waiting import WAIT_S, until


def item(value: float) -> np.ndarray:
    return np.full((1, 2, 2), value, np.float32)


def value_of(prediction: Prediction) -> float:
    return float(prediction.chroma[0, 0, 0])


class Doubler:
    """An executor that returns twice the item. It can be blocked, and fails on given values."""

    def __init__(self, *, held: bool = False, fails_on: frozenset[float] = frozenset()) -> None:
        self.fails_on = fails_on
        self.batches: list[list[float]] = []
        self.entered = threading.Semaphore(0)
        self.door = threading.Event()
        if not held:
            self.door.set()

    def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
        values = [float(one[0, 0, 0]) for one in lightness]
        self.batches.append(values)
        self.entered.release()
        assert self.door.wait(WAIT_S)
        if self.fails_on.intersection(values):
            raise RuntimeError(f"can't do {values}")
        return np.stack(lightness).repeat(2, axis=1) * 2


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def idle(batcher: Batcher, executors: int) -> bool:
    return len(batcher._free) == executors and not batcher._waiting


def start_first(pool: ThreadPoolExecutor, batcher: Batcher, engine: Doubler) -> Future[Prediction]:
    """Occupy the only executor with item 0."""
    first = pool.submit(batcher.predict, item(0))
    assert engine.entered.acquire(timeout=WAIT_S)
    return first


def queue_up(pool: ThreadPoolExecutor, batcher: Batcher, values: list[float]) -> list[Future[Prediction]]:
    futures = []
    for value in values:
        before = batcher.depth
        futures.append(pool.submit(batcher.predict, item(value)))
        until(lambda before=before: batcher.depth == before + 1)
    return futures


def test_one_alone_runs_at_once_in_the_callers_own_thread() -> None:
    seen: list[int] = []

    class Engine:
        def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
            seen.append(threading.get_ident())
            return np.stack(lightness)

    batcher = Batcher([Engine()], max_batch=8, capacity=8)
    prediction = batcher.predict(item(3))
    assert value_of(prediction) == 3
    assert prediction.batch == 1
    assert seen == [threading.get_ident()]


def test_one_that_is_alone_is_spread_and_frees_its_executor() -> None:
    narrow, wide = Doubler(), Doubler()
    batcher = Batcher([narrow], max_batch=1, capacity=8, spread=wide)
    assert [value_of(batcher.predict(item(value), alone=value > 1)) for value in (1, 2, 3)] == [2, 4, 6]
    assert (narrow.batches, wide.batches) == ([[1]], [[2], [3]])
    assert idle(batcher, 1)


def test_without_a_spread_executor_it_is_run_as_any_other() -> None:
    engine = Doubler()
    assert value_of(Batcher([engine], max_batch=1, capacity=8).predict(item(1), alone=True)) == 2
    assert engine.batches == [[1]]


def test_what_waits_goes_together_oldest_first(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine], max_batch=3, capacity=16)
    first = start_first(pool, batcher, engine)
    rest = queue_up(pool, batcher, [1, 2, 3, 4, 5])
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in [first, *rest]] == [0, 2, 4, 6, 8, 10]
    assert engine.batches == [[0], [1, 2, 3], [4, 5]]
    assert [future.result().batch for future in rest] == [3, 3, 3, 2, 2]
    until(lambda: idle(batcher, 1))


def test_two_executors_run_beside_each_other(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine] * 2, max_batch=4, capacity=16)
    futures = [pool.submit(batcher.predict, item(value)) for value in (1, 2)]
    assert engine.entered.acquire(timeout=WAIT_S)
    assert engine.entered.acquire(timeout=WAIT_S)
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in futures] == [2, 4]
    until(lambda: idle(batcher, 2))


def test_two_executors_take_turns_when_there_is_little_to_do() -> None:
    engines = Doubler(), Doubler()
    batcher = Batcher(engines, max_batch=4, capacity=16)
    for value in range(6):
        assert value_of(batcher.predict(item(value))) == 2 * value
    assert [engine.batches for engine in engines] == [[[0], [2], [4]], [[1], [3], [5]]]


def test_a_slow_executor_holds_up_nothing_but_its_own_batch(pool: ThreadPoolExecutor) -> None:
    slow, quick = Doubler(held=True), Doubler()
    batcher = Batcher([slow, quick], max_batch=2, capacity=16)
    stuck = start_first(pool, batcher, slow)
    futures = [pool.submit(batcher.predict, item(value)) for value in range(1, 11)]
    assert [value_of(future.result(WAIT_S)) for future in futures] == [2 * value for value in range(1, 11)]
    assert slow.batches == [[0]]
    assert not stuck.done()
    slow.door.set()
    assert value_of(stuck.result(WAIT_S)) == 0
    until(lambda: idle(batcher, 2))


def test_a_failing_executor_fails_only_its_own_batches(pool: ThreadPoolExecutor) -> None:
    bad, good = Doubler(fails_on=frozenset(map(float, range(100)))), Doubler()
    batcher = Batcher([bad, good], max_batch=4, capacity=100)
    futures = [pool.submit(batcher.predict, item(value)) for value in range(100)]
    for value, future in enumerate(futures):
        error = future.exception(WAIT_S)
        if error is None:
            assert value_of(future.result()) == 2 * value
            assert [value] not in bad.batches, "it has a result, so nothing ran on the bad one alone"
        else:
            assert str(error) == f"can't do [{value}.0]"
            assert all(value not in batch for batch in good.batches)
    until(lambda: idle(batcher, 2))
    assert value_of(batcher.predict(item(1000))) == 2000, "the bad one can do this, if it gets it"


def test_an_executor_that_failed_gets_its_turn_again() -> None:
    bad, good = Doubler(fails_on=frozenset({0.0})), Doubler()
    batcher = Batcher([bad, good], max_batch=4, capacity=8)
    with pytest.raises(RuntimeError, match="can't do"):
        batcher.predict(item(0))
    assert [value_of(batcher.predict(item(value))) for value in (1, 2)] == [2, 4]
    assert (bad.batches, good.batches) == ([[0], [2]], [[1]])


def test_a_full_queue_refuses(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine], max_batch=1, capacity=2)
    first = start_first(pool, batcher, engine)
    waiting = queue_up(pool, batcher, [1, 2])
    with pytest.raises(Overloaded) as caught:
        batcher.predict(item(3))
    assert (caught.value.limit, caught.value.retry_after) == (2, 1)
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in [first, *waiting]] == [0, 2, 4]


def test_an_expired_one_is_not_run(pool: ThreadPoolExecutor) -> None:
    clock = Clock()
    engine = Doubler(held=True)
    batcher = Batcher([engine], max_batch=4, capacity=8, clock=clock)
    first = start_first(pool, batcher, engine)
    late = pool.submit(batcher.predict, item(1), deadline=clock.now + 1000)
    until(lambda: batcher.depth == 1)
    (early,) = queue_up(pool, batcher, [2])
    clock.now += 2000
    engine.door.set()
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)
    assert [value_of(future.result(WAIT_S)) for future in (first, early)] == [0, 4]
    assert engine.batches == [[0], [2]]


def test_a_waiter_gives_up_at_its_deadline_while_the_engine_hangs(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine], max_batch=4, capacity=8)
    first = start_first(pool, batcher, engine)
    with pytest.raises(DeadlineExceeded):
        batcher.predict(item(1), deadline=time.monotonic() + 0.05)
    assert batcher.depth == 0
    engine.door.set()
    assert value_of(first.result(WAIT_S)) == 0
    assert engine.batches == [[0]]


def test_executors_that_hang_are_known_when_all_who_waited_have_left(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine] * 2, max_batch=4, capacity=16)
    assert batcher.runs.stuck_for() == 0
    first = start_first(pool, batcher, engine)
    assert batcher.runs.stuck_for() == 0, "one of two is not all"
    second = start_first(pool, batcher, engine)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            batcher.predict(item(1), deadline=time.monotonic() + 0.01)
    assert batcher.runs.busy == 2
    assert batcher.runs.stuck_for() >= 0.03
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in (first, second)] == [0, 0]
    assert batcher.runs.stuck_for() == 0


def test_each_run_of_a_failed_batch_begins_again(pool: ThreadPoolExecutor) -> None:
    """Photos that run again one by one take many runs, of which none is long."""
    clock = Clock()

    class Engine(Doubler):
        def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
            longest.append(batcher.runs.stuck_for())
            clock.now += 10
            return super().predict(lightness)

    longest: list[float] = []
    engine = Engine(held=True, fails_on=frozenset({2.0}))
    batcher = Batcher([engine], max_batch=4, capacity=8, clock=clock)
    first = start_first(pool, batcher, engine)
    rest = queue_up(pool, batcher, [1, 2, 3])
    engine.door.set()
    assert [future.exception(WAIT_S) is None for future in [first, *rest]] == [True, True, False, True]
    assert longest == [0] * 5


BLACK = item(0)


def test_a_cancelled_one_is_not_run(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True)
    batcher = Batcher([engine], max_batch=4, capacity=8)
    first = start_first(pool, batcher, engine)
    cancelled = threading.Event()
    gone = pool.submit(batcher.predict, item(1), cancelled=cancelled)
    until(lambda: batcher.depth == 1)
    (other,) = queue_up(pool, batcher, [2])
    cancelled.set()
    engine.door.set()
    with pytest.raises(ClientGone):
        gone.result(WAIT_S)
    assert [value_of(future.result(WAIT_S)) for future in (first, other)] == [0, 4]
    assert engine.batches == [[0], [2]]


def test_a_failed_batch_is_tried_again_one_by_one(pool: ThreadPoolExecutor) -> None:
    engine = Doubler(held=True, fails_on=frozenset({2.0}))
    batcher = Batcher([engine], max_batch=4, capacity=8)
    first = start_first(pool, batcher, engine)
    good, bad, also_good = queue_up(pool, batcher, [1, 2, 3])
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in (first, good, also_good)] == [0, 2, 6]
    with pytest.raises(RuntimeError, match=r"can't do \[2"):
        bad.result(WAIT_S)
    assert engine.batches == [[0], [1, 2, 3], [1], [2], [3]]
    until(lambda: idle(batcher, 1))
    assert value_of(batcher.predict(item(7))) == 14


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError])
def test_nothing_that_an_engine_raises_ends_the_batcher(error: type[BaseException]) -> None:
    class Engine:
        calls = 0

        def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
            self.calls += 1
            if self.calls == 1:
                raise error
            return np.stack(lightness)

    batcher = Batcher([Engine()], max_batch=4, capacity=8)
    with pytest.raises(error):
        batcher.predict(item(1))
    assert idle(batcher, 1)
    assert value_of(batcher.predict(item(2))) == 2


def test_an_engine_that_loses_an_item_is_a_fault_and_no_wrong_answer() -> None:
    class Engine:
        def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
            return np.stack(lightness)[:0]

    batcher = Batcher([Engine()], max_batch=4, capacity=8)
    with pytest.raises(RuntimeError, match="1 items went in and 0 came out"):
        batcher.predict(item(1))


class Shaky:
    """An executor that fails at random, and takes a random time."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.seen: list[float] = []

    def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
        self.seen += [float(one[0, 0, 0]) for one in lightness]
        roll = self.chance.random()
        if roll < 0.3:
            time.sleep(0)
        if roll > 0.85:
            raise RuntimeError("shaky")
        return np.stack(lightness) * 2


def test_ten_thousand_random_schedules_lose_and_double_nothing(pool: ThreadPoolExecutor) -> None:
    """Every caller ends exactly once, with its own result or an error, and every executor becomes free."""
    chance = random.Random(7)
    ends = {Prediction: 0, DeadlineExceeded: 0, ClientGone: 0, Overloaded: 0, RuntimeError: 0}
    for _ in range(10_000):
        engines = [Shaky(chance) for _ in range(chance.randint(1, 3))]
        batcher = Batcher(engines, max_batch=chance.randint(1, 4), capacity=chance.randint(1, 6))
        cancelled = threading.Event()
        futures = []
        for value in range(chance.randint(1, 8)):
            deadline = time.monotonic() + chance.choice([0.0, 0.0001]) if chance.random() < 0.15 else None
            stop = cancelled if chance.random() < 0.15 else None
            futures.append(pool.submit(batcher.predict, item(value), deadline=deadline, cancelled=stop))
            if chance.random() < 0.1:
                cancelled.set()
        for value, future in enumerate(futures):
            error = future.exception(WAIT_S)
            if error is None:
                assert value_of(future.result()) == 2 * value
                ends[Prediction] += 1
            else:
                ends[type(error)] += 1
        assert idle(batcher, len(engines))
        assert all(waiter.executor is None for waiter in batcher._waiting)
        # Once in a batch, and once more alone if that batch failed.
        seen = [value for engine in engines for value in engine.seen]
        assert all(seen.count(value) <= 2 for value in seen)
    assert all(ends.values()), ends
