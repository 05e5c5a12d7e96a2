"""The time limits and the learning rate of a run, with a fake clock."""

import numpy as np
import pytest

from model_export.recipe import Recipe
from model_export.run.schedule import Clock, Limits, learning_rate, ramp


class Time:
    """A clock, in seconds, that only the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def run(limits: Limits, *, step: float, ending: float, set_up: float = 40.0, before: float = 0.0) -> tuple[int, float]:
    """Return the number of steps of a call whose steps take the same time, and the seconds of the whole call."""
    time = Time()
    clock = Clock(limits, before, time.seconds, time)
    time.seconds += set_up
    clock.checkpoint_s = ending
    clock.record_step(step)
    clock.start_schedule(0.0)
    for steps in range(1, 10_000):
        time.seconds += step
        clock.record_step(step)
        if clock.budget_is_used_up() or clock.call_is_used_up():
            return steps, time.seconds + ending - 1000
    raise AssertionError("it does not end")


@pytest.mark.parametrize(("step", "ending", "steps"), [(1, 10, 50), (7, 3, 8), (0.5, 0, 120), (90, 10, 1)])
def test_a_budget_is_kept_with_its_last_checkpoint(step: float, ending: float, steps: int) -> None:
    done, seconds = run(Limits(max_minutes=1), step=step, ending=ending)
    assert done == steps
    assert seconds <= 40 + max(60, step + ending)
    assert seconds >= 40 + 60 - step


def test_a_call_that_is_to_stop_counts_its_set_up() -> None:
    assert run(Limits(stop_after=1), step=1, ending=5) == (15, 60)
    assert run(Limits(stop_after=0), step=1, ending=5)[0] == 1
    # The budget includes the learning time of earlier calls.
    assert run(Limits(max_minutes=3, stop_after=10), step=1, ending=5, before=2.5) == (25, 70)


def test_without_limits_time_says_nothing() -> None:
    clock = Clock(Limits(), 0.0, 0.0)
    assert not clock.is_limited
    assert not clock.budget_is_used_up()
    assert not clock.call_is_used_up()
    assert clock.progress(1e9) == clock.call_progress(1e9) == 0
    assert not Clock(Limits(stop_after=0), 0.0, 0.0).is_limited, "it has time for one step, whatever that takes"


def test_progress_is_the_share_of_the_time_that_is_left_for_learning() -> None:
    time = Time()
    clock = Clock(Limits(max_minutes=1), 0.0, 0.0, time)
    clock.checkpoint_s = 20
    clock.record_step(4)
    clock.start_schedule(0.5)
    assert [round(clock.progress(ahead), 3) for ahead in (0, 4, 20, 40, 99)] == [0.5, 0.55, 0.75, 1, 1]
    assert clock.steps_left == 10
    time.seconds += 36
    assert clock.progress() == pytest.approx(0.95)
    assert clock.minutes == pytest.approx(0.6)
    assert not clock.budget_is_used_up()
    time.seconds += 4
    assert clock.budget_is_used_up()


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = Recipe.model_validate({"name": "x", "optimizer": {"learning_rate": 1e-3, "warm_up": 0.1}})
    rates = [learning_rate(recipe, progress) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1e-5)


def rates(count: int, **optimizer: float) -> list[float]:
    """Return the learning rates of a run of `count` steps, as shares of the peak, as train.py computes them."""
    recipe = Recipe.model_validate({"name": "x", "optimizer": {"learning_rate": 1.0} | optimizer})
    middles = [(step + 0.5) / count for step in range(count)]
    return [ramp(step + 0.5, middles[step]) * learning_rate(recipe, middles[step]) for step in range(count)]


@pytest.mark.parametrize("count", [4, 7, 20, 49, 300, 3000])
def test_a_run_of_any_length_goes_through_the_whole_schedule(count: int) -> None:
    learnt = rates(count)
    assert max(learnt) > 0.7
    assert learnt[-1] < 0.2
    assert learnt[-1] == min(learnt[count // 2 :])
    assert sum(learnt) / count > 0.3


def test_the_optimizer_warms_up_in_its_first_steps_or_in_a_part_of_a_short_call() -> None:
    assert ramp(0.5, 0) == pytest.approx(0.005)
    assert ramp(100, 0) == 1
    assert ramp(0.5, 0.1) == pytest.approx(0.5)
    assert ramp(3, 0.2) == 1
