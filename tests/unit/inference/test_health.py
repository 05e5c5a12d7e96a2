"""Executors that fail are found, and cleared once they work again."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.inference.batcher import Batcher
from tests.unit.inference.test_batcher import BLACK, Clock, Doubler, item, queue_up, start_first, value_of
from tests.waiting import WAIT_S


def test_a_photo_that_fails_marks_its_executor_and_a_black_one_clears_it() -> None:
    bad, good = Doubler(fails_on=frozenset({1.0})), Doubler()
    batcher = Batcher([bad, good], max_batch=1, capacity=8)
    with pytest.raises(RuntimeError, match="can't do"):
        batcher.predict(item(1))
    assert batcher.failing_executors
    assert batcher.failing_executors.failing_for() == 0, "it may be the photo's fault"
    assert batcher.failing_executors.probe(BLACK)
    assert (bad.batches, good.batches) == ([[1], [0]], []), "only it was tried"
    assert not batcher.failing_executors


def test_an_executor_that_fails_on_a_black_photo_fails_until_a_photo_is_run() -> None:
    clock = Clock()
    engine = Doubler(fails_on=frozenset({0.0, 1.0}))
    batcher = Batcher([engine] * 2, max_batch=1, capacity=8, clock=clock)
    with pytest.raises(RuntimeError, match="can't do"):
        batcher.predict(item(1))
    assert not batcher.failing_executors.probe(BLACK)
    clock.now += 5
    assert not batcher.failing_executors.probe(BLACK)
    clock.now += 5
    assert batcher.failing_executors.failing_for() == 10, "since the first time"
    assert value_of(batcher.predict(item(2))) == 4
    assert (bool(batcher.failing_executors), batcher.failing_executors.failing_for()) == (False, 0)


def test_a_batch_that_fails_together_but_not_one_by_one_marks_no_executor(pool: ThreadPoolExecutor) -> None:
    class Engine(Doubler):
        def predict(self, lightness: list[np.ndarray]) -> np.ndarray:
            chroma = super().predict(lightness)
            if len(lightness) > 1:
                raise MemoryError
            return chroma

    engine = Engine(held=True)
    batcher = Batcher([engine], max_batch=4, capacity=8)
    first = start_first(pool, batcher, engine)
    rest = queue_up(pool, batcher, [1, 2])
    engine.door.set()
    assert [value_of(future.result(WAIT_S)) for future in [first, *rest]] == [0, 2, 4]
    assert engine.batches == [[0], [1, 2], [1], [2]]
    assert not batcher.failing_executors


def test_it_works_only_if_every_executor_does() -> None:
    narrow, wide = Doubler(), Doubler()
    batcher = Batcher([narrow] * 2, max_batch=1, capacity=8, spread=wide)
    assert batcher.can_run(BLACK)
    assert (narrow.batches, wide.batches) == ([[0]], [[0]])
    wide.fails_on = frozenset({0.0})
    assert not batcher.can_run(BLACK)
    wide.fails_on = frozenset()
    assert batcher.can_run(BLACK)
    assert not batcher.failing_executors
