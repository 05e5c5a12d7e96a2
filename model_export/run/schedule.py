"""How long a run goes on, and how fast it learns meanwhile: decided before every step."""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from model_export.recipe import Recipe

# The optimizer's moments start from nothing at every start. The learning rate rises over so many steps, or over this
# share of what the call can do, whichever is shorter.
RAMP_STEPS = 100
RAMP_SHARE = 0.2
# Steps whose median duration is that of the next.
TIMED_STEPS = 9


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run checks itself and when it ends, in minutes.

    `max_minutes` is for all calls together, `stop_after` for this one. `checkpoint_minutes` of 0 stands for every
    fiftieth step.
    """

    max_minutes: float | None = None
    stop_after: float | None = None
    checkpoint_minutes: float = 10.0


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Return that of a linear warm-up, then half a cosine down to a hundredth of the peak; or the peak all along."""
    peak, warm_up = recipe.optimizer.learning_rate, recipe.optimizer.warm_up
    if recipe.optimizer.schedule == "constant":
        return peak
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    phase = (progress - warm_up) / (1 - warm_up)
    return peak * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(phase, 1)))


def ramp(steps: float, share: float) -> float:
    """Return what the learning rate is multiplied with after `steps` steps, `share` of the call's in 0..1."""
    return min(1.0, max(steps / RAMP_STEPS, share / RAMP_SHARE))


class Clock:
    """The time of one call: how far it is, and whether another step fits before the last checkpoint.

    The time budget is of learning and of checkpoints, from `start_schedule` on. What a call takes in all is counted
    from its start.

    before: minutes of learning in the calls before this one. started: when this one began, by `now`, in seconds.
    """

    def __init__(
        self, limits: Limits, before: float, started: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.now = now
        self.checkpoint_s = 0.0
        """Seconds that the last checkpoint takes."""
        self._before = before
        self._budget_s = math.inf if limits.max_minutes is None else 60 * (limits.max_minutes - before)
        self._call_ends = math.inf if limits.stop_after is None else started + 60 * limits.stop_after
        self._is_single_step = limits.stop_after == 0
        self._durations: deque[float] = deque(maxlen=TIMED_STEPS)
        self.start_schedule(0.0)

    def start_schedule(self, progress: float) -> None:
        """Initialization the schedule at this progress. What the set-up took is no part of it."""
        self._begun = self.now()
        self._progress = progress
        self._budget_ends = self._begun + self._budget_s

    @property
    def is_limited(self) -> bool:
        """Tell whether a time limit makes it necessary to know how long steps and the last checkpoint take."""
        return not self._is_single_step and min(self._budget_s, self._call_ends) < math.inf

    @property
    def minutes(self) -> float:
        """Minutes of learning, in this call and all calls before it."""
        return self._before + self.learning_seconds / 60

    @property
    def learning_seconds(self) -> float:
        """Seconds of learning since `start_schedule`."""
        return self.now() - self._begun

    @property
    def step_s(self) -> float:
        """Seconds of a step, as far as is known."""
        return statistics.median(self._durations) if self._durations else 0.0

    @property
    def seconds_left(self) -> float:
        """Seconds until this call has to end; infinite without a limit."""
        return min(self._budget_ends, self._call_ends) - self.now()

    @property
    def steps_left(self) -> float:
        """Steps that fit into this call beside the last checkpoint; infinite where that is not known."""
        return max(1.0, (self.seconds_left - self.checkpoint_s) / self.step_s) if self.step_s else math.inf

    def record_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._durations.append(seconds)

    def progress(self, ahead: float = 0.0) -> float:
        """Return the share of the run, in 0..1, that is over in `ahead` seconds by its time budget; 0 without one."""
        if self._budget_s == math.inf:
            return 0.0
        rest = max(self._budget_s - self.checkpoint_s, self.step_s, 1e-9)
        return min(1.0, self._progress + (1 - self._progress) * (self.learning_seconds + ahead) / rest)

    def call_progress(self, ahead: float = 0.0) -> float:
        """Return the share of this call, in 0..1, that is over in `ahead` seconds by its limit; 0 without one."""
        if self._call_ends == math.inf:
            return 0.0
        rest = max(self._call_ends - self.checkpoint_s - self._begun, self.step_s, 1e-9)
        return min(1.0, (self.learning_seconds + ahead) / rest)

    def budget_is_used_up(self) -> bool:
        """Return whether no other step fits into the time budget."""
        return self.now() + self.step_s + self.checkpoint_s > self._budget_ends

    def call_is_used_up(self) -> bool:
        """Return whether no other step fits into this call."""
        return self.now() + self.step_s + self.checkpoint_s > self._call_ends
