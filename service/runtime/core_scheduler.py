"""Shares the cores among more threads than there are: those that wait for a GPU."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import SimpleQueue


class CoreScheduler:
    """So many rights to keep a core busy.

    Who goes on with a photo comes before who begins one: else all would decode theirs before anyone is done, and as
    many decoded photos as there are threads would be in memory (32 of 12 megapixels: 600 MB for 410).
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._beginning: deque[SimpleQueue[None]] = deque()
        self._going_on: deque[SimpleQueue[None]] = deque()

    def acquire_to_start(self) -> AbstractContextManager[None]:
        """A core, once none is wanted to go on with."""
        return self._core(self._beginning)

    def acquire_to_continue(self) -> AbstractContextManager[None]:
        """The next core that is free."""
        return self._core(self._going_on)

    @contextmanager
    def _core(self, line: deque[SimpleQueue[None]]) -> Iterator[None]:
        self._take(line)
        try:
            yield
        finally:
            self._give_back()

    def _take(self, line: deque[SimpleQueue[None]]) -> None:
        with self._lock:
            if self._free:  # so nobody is in line
                self._free -= 1
                return
            turn: SimpleQueue[None] = SimpleQueue()
            line.append(turn)
        turn.get()

    def _give_back(self) -> None:
        with self._lock:
            line = self._going_on or self._beginning
            if line:
                line.popleft().put(None)
            else:
                self._free += 1
