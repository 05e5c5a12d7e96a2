"""Measure the CPU time and memory of a process and all its children.

The CPU time of an ended child counts once its parent has waited for it. Memory is PSS if the kernel reports it, which
divides shared pages among their processes; otherwise it is RSS. For a tree of one process, the peak is the kernel's
high-water mark of RSS, which also covers the time between two samples.
"""

import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

INTERVAL_S = 0.1
# A sample walks the page tables of several processes, so it must not take much CPU time from them.
SHARE_OF_TIME = 0.02
GONE = (psutil.NoSuchProcess, psutil.ZombieProcess)


def processes(root: int) -> list[psutil.Process]:
    """Return the process and its descendants; empty if it has ended."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except GONE:
        return []


def cpu_seconds(root: int) -> float:
    """Return the CPU time, user and system, of the whole tree so far."""
    total = 0.0
    for process in processes(root):
        try:
            times = process.cpu_times()
        except GONE:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_bytes(root: int) -> int:
    """Return the PSS of the whole tree, or its RSS if PSS can't be read."""
    total = 0
    for process in processes(root):
        try:
            total += _pss(process)
        except GONE:
            continue
    return total


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)


def high_water_bytes(root: int) -> int | None:
    """Return the largest RSS of the process so far; None if the kernel does not report it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{root}/status").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class Watch:
    """A context manager that samples a tree's memory from a thread."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        # Each sample has the seconds since the start, and the bytes.
        self.samples: list[tuple[float, int]] = []

    def _sample(self) -> None:
        started = time.monotonic()
        while True:
            begun = time.monotonic()
            self.samples.append((begun - started, memory_bytes(self._root)))
            if self._ends.wait(max(INTERVAL_S, (time.monotonic() - begun) / SHARE_OF_TIME)):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int:
        """The largest sample; for a single process, the largest RSS of its life."""
        alone = len(processes(self._root)) == 1
        return (high_water_bytes(self._root) if alone else None) or max((size for _, size in self.samples), default=0)

    def growth_bytes(self, seconds: float) -> int:
        """Return the growth of the largest sample from the middle third of the first `seconds` to their last third."""
        middle = [size for at, size in self.samples if seconds / 3 <= at < 2 * seconds / 3]
        last = [size for at, size in self.samples if 2 * seconds / 3 <= at <= seconds]
        return max(last) - max(middle) if middle and last else 0
