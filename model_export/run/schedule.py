"""The schedule of a training run: its time limits, its progress and its learning rate."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from model_export.recipe import Recipe

# Each call starts with an empty optimizer state. So the learning rate rises over RAMP_STEPS steps, or over RAMP_SHARE
# of the call, whichever is shorter.
RAMP_STEPS = 100
RAMP_SHARE = 0.2
# The median of this number of durations estimates the next one.
TIMED_STEPS = 9


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits of a run, in minutes.

    max_minutes: time budget of all calls together. stop_after: limit of this call; 0 stops after one step.
    checkpoint_minutes: time between two checkpoints; 0 writes one every 50 steps.
    """

    max_minutes: float | None = None
    stop_after: float | None = None
    checkpoint_minutes: float = 10.0


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return the learning rate at a progress of 0..1.

    `cosine`: a linear warm-up, then half a cosine down to a hundredth of the peak. `constant`: the peak.
    """
    peak, warm_up = recipe.optimizer.learning_rate, recipe.optimizer.warm_up
    if recipe.optimizer.schedule == "constant":
        return peak
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    phase = (progress - warm_up) / (1 - warm_up)
    return peak * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(phase, 1)))


def ramp(steps: float, share: float) -> float:
    """Return the factor, in 0..1, by which the learning rate is reduced at the start of a call.

    steps: steps since the start of the call. share: share of the call that is over, in 0..1.
    """
    return min(1.0, max(steps / RAMP_STEPS, share / RAMP_SHARE))


class Clock:
    """The clock of one call: it computes the progress, and whether another step fits before the last checkpoint.

    The time budget covers learning and checkpoints, from `start_schedule` on. The limit of the call starts with the
    call.

    before: minutes of learning in earlier calls. started: when this call began, in seconds of `now`.
    """

    def __init__(
        self, limits: Limits, before: float, started: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self.checkpoint_s = 0.0
        """Estimated duration of the last checkpoint, seconds."""
        self._before = before
        self._budget_s = math.inf if limits.max_minutes is None else 60 * (limits.max_minutes - before)
        self._call_ends = math.inf if limits.stop_after is None else started + 60 * limits.stop_after
        self._is_single_step = limits.stop_after == 0
        self._durations: deque[float] = deque(maxlen=TIMED_STEPS)
        self.start_schedule(0.0)

    def start_schedule(self, progress: float) -> None:
        """Start the schedule at this progress. The time budget does not include what came before."""
        self._begun = self.now()
        self._progress = progress
        self._budget_ends = self._begun + self._budget_s

    @property
    def is_limited(self) -> bool:
        """Return whether a time limit applies, so that the durations of steps and checkpoints must be known."""
        return not self._is_single_step and min(self._budget_s, self._call_ends) < math.inf

    @property
    def minutes(self) -> float:
        """Minutes of learning, in this call and all earlier calls."""
        return self._before + self.learning_seconds / 60

    @property
    def learning_seconds(self) -> float:
        """Seconds of learning since `start_schedule`."""
        return self.now() - self._begun

    @property
    def step_s(self) -> float:
        """Seconds of a step: the median of the latest ones; 0 before the first."""
        return statistics.median(self._durations) if self._durations else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until this call must end; infinite without a limit."""
        return min(self._budget_ends, self._call_ends) - self.now()

    @property
    def steps_left(self) -> float:
        """Number of steps that fit into this call before the last checkpoint; infinite if that is unknown."""
        return max(1.0, (self.seconds_left - self.checkpoint_s) / self.step_s) if self.step_s else math.inf

    def record_step(self, seconds: float) -> None:
        """Record the duration of a step, in seconds."""
        self._durations.append(seconds)

    def progress(self, ahead: float = 0.0) -> float:
        """Return the share of the run, in 0..1, that the time budget says is over in `ahead` seconds.

        It is 0 without a time budget.
        """
        if self._budget_s == math.inf:
            return 0.0
        rest = max(self._budget_s - self.checkpoint_s, self.step_s, 1e-9)
        return min(1.0, self._progress + (1 - self._progress) * (self.learning_seconds + ahead) / rest)

    def call_progress(self, ahead: float = 0.0) -> float:
        """Return the share of this call, in 0..1, that is over in `ahead` seconds; 0 without a limit."""
        if self._call_ends == math.inf:
            return 0.0
        rest = max(self._call_ends - self.checkpoint_s - self._begun, self.step_s, 1e-9)
        return min(1.0, (self.learning_seconds + ahead) / rest)

    def budget_is_used_up(self) -> bool:
        """Return whether another step does not fit into the time budget."""
        return self.now() + self.step_s + self.checkpoint_s > self._budget_ends

    def call_is_used_up(self) -> bool:
        """Return whether another step does not fit into this call."""
        return self.now() + self.step_s + self.checkpoint_s > self._call_ends
