"""Track which threads are busy, and since when, so that a stuck service is noticed."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]


class BusyTracker:
    """The jobs that a fixed number of threads or executors are busy with. Safe to use from many threads."""

    def __init__(self, size: int, clock: Clock = time.monotonic) -> None:
        """size: the number of jobs that can run concurrently."""
        self._size = size
        self._clock = clock
        self._jobs: dict[int, tuple[float, str]] = {}
        self._numbers = itertools.count()

    @contextmanager
    def track(self, name: str = "") -> Iterator[None]:
        """Count a job of this name as running until the context ends."""
        number = next(self._numbers)
        self._jobs[number] = self._clock(), name
        try:
            yield
        finally:
            del self._jobs[number]

    @property
    def names(self) -> list[str]:
        """The names of the running jobs, oldest first."""
        return [name for _, name in sorted(self._jobs.values())]

    @property
    def busy(self) -> int:
        """The number of running jobs."""
        return len(self._jobs)

    def stuck_for(self) -> float:
        """Return the seconds since the newest job began if all `size` jobs are running, else 0."""
        begun = [moment for moment, _ in list(self._jobs.values())]
        return self._clock() - max(begun) if len(begun) >= self._size else 0.0
