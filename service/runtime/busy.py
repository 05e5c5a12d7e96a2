"""Track which threads are at work, and for how long, so that a stuck service is noticed."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Clock = Callable[[], float]


class BusyTracker:
    """What those who may be at work at once have begun, and when."""

    def __init__(self, most: int, clock: Clock = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._begun: dict[int, tuple[float, str]] = {}
        self._numbers = itertools.count()

    @contextmanager
    def track(self, name: str = "") -> Iterator[None]:
        """Count someone of that name as at work, for as long as the context lasts."""
        number = next(self._numbers)
        self._begun[number] = self._clock(), name
        try:
            yield
        finally:
            del self._begun[number]

    @property
    def names(self) -> list[str]:
        """The names of those who are at work, the first to begin first."""
        return [name for _, name in sorted(self._begun.values())]

    @property
    def busy(self) -> int:
        """How many are at work."""
        return len(self._begun)

    def stuck_for(self) -> float:
        """Seconds since any of them began, when all are at work; else 0."""
        begun = [moment for moment, _ in list(self._begun.values())]
        return self._clock() - max(begun) if len(begun) >= self._most else 0.0
