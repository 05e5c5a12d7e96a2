"""Watches what can't be mended from inside: a thread in a C call can't be stopped, nor an error of a device undone."""

import logging
import time

from service.imaging.color import Floats
from service.inference.executor import Predictor
from service.runtime.busy import Clock

log = logging.getLogger(__name__)


class FailingExecutors:
    """Executors whose last run failed. Whether they are to blame or their photo was, a black photo tells.

    An error of a GPU, as an illegal memory access, fails every run until the process ends. A photo that a model fails
    on may be sent again and again, and says nothing about the others.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        # Since when a black photo fails, too; None where none was tried yet.
        self._failing: dict[Predictor, float | None] = {}

    def __bool__(self) -> bool:
        return bool(self._failing)

    def add(self, executor: Predictor) -> None:
        """A run of it failed."""
        self._failing.setdefault(executor, None)

    def clear(self, executor: Predictor) -> None:
        """A run of it did not fail."""
        self._failing.pop(executor, None)

    def probe(self, black: Floats) -> bool:
        """Has them run that photo, beside whatever they do, until one can't; whether all can."""
        return all(self._works(executor, black) for executor in list(self._failing))

    def _works(self, executor: Predictor, black: Floats) -> bool:
        try:
            executor.predict([black])
        except Exception as error:
            if self._failing.get(executor) is None:
                log.error("a model fails on a black photo, too: %s", error)
                self._failing[executor] = self._clock()
            return False
        self.clear(executor)
        return True

    def failing_for(self) -> float:
        """Seconds since one of them failed on a black photo, as it does still; 0 when none does."""
        since = [moment for moment in list(self._failing.values()) if moment is not None]
        return self._clock() - min(since) if since else 0.0
