"""The weight average of a run. Slow only because importing Keras takes time."""

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_the_average_forgets_its_start_and_follows() -> None:
    from model_export.weights.averaging import WeightAverage

    average = WeightAverage([np.full(3, 100.0, np.float32)], momentum=0.999)
    for _ in range(4):
        average.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(average.weights[0], 1, atol=0.01)
    late = WeightAverage([np.zeros(3, np.float32)], momentum=0.999, steps=100_000)
    late.update([np.ones(3, np.float32)], 50)
    np.testing.assert_allclose(late.weights[0], 1 - 0.999**50, rtol=1e-3)


@pytest.mark.parametrize(("steps", "least"), [(1, 0.8), (3, 0.98), (10, 0.9999), (1000, 0.9999)])
def test_the_average_of_a_short_run_is_of_what_it_has_learnt(steps: int, least: float) -> None:
    from model_export.weights.averaging import WeightAverage

    average = WeightAverage([np.zeros(1, np.float32)], momentum=0.999)
    updates = 0
    for step in range(1, steps + 1):
        if average.is_due(step):
            average.update([np.ones(1, np.float32)], step - average.steps)
            updates += 1
    assert average.weights[0][0] >= least
    assert average.steps >= 0.97 * steps
    # Copying the weights must not slow down a long run.
    assert updates <= 300
