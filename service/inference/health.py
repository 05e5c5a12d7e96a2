"""Find executors that fail on every photo. An error of a device lasts until the process ends."""

import logging
import time

from service.imaging.color import Floats
from service.inference.executor import Predictor
from service.runtime.busy import Clock

log = logging.getLogger(__name__)


class FailingExecutors:
    """Executors whose last run failed. A run of a black photo shows whether the executor or the photo is the cause.

    After some errors of a GPU, such as an illegal memory access, every run fails until the process ends. A photo that a
    model fails on says nothing about other photos, even if clients send it repeatedly.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        # The time since which a black photo fails too, or None before the first try.
        self._failing: dict[Predictor, float | None] = {}

    def __bool__(self) -> bool:
        return bool(self._failing)

    def add(self, executor: Predictor) -> None:
        """Record that a run of the executor failed."""
        self._failing.setdefault(executor, None)

    def clear(self, executor: Predictor) -> None:
        """Record that a run of the executor succeeded."""
        self._failing.pop(executor, None)

    def probe(self, black: Floats) -> bool:
        """Run a black photo on each of these executors until one fails. Return whether all succeed."""
        return all(self._works(executor, black) for executor in list(self._failing))

    def _works(self, executor: Predictor, black: Floats) -> bool:
        try:
            executor.predict([black])
        except Exception as error:  # noqa: BLE001  (it is logged, once)
            if self._failing.get(executor) is None:
                log.error("a model fails on a black photo, too: %s", error)
                self._failing[executor] = self._clock()
            return False
        self.clear(executor)
        return True

    def failing_for(self) -> float:
        """Return the seconds since which an executor has failed on black photos, or 0 if none does."""
        since = [moment for moment in list(self._failing.values()) if moment is not None]
        return self._clock() - min(since) if since else 0.0
