"""Tests of the heap run in processes of their own, because a process can't undo the settings of its heap."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.runtime import memory

# Print the page faults of allocating and freeing the planes of a photo twenty times, after a first time.
FAULTS = """
import resource, sys, threading
import numpy as np
from service.runtime import memory

def planes():
    return [np.ones((2000, 1500), np.uint8) for _ in range(3)]

def work():
    planes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        planes()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if {keep}:
    assert memory.keep_freed_memory()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
PAGES = 20 * 3 * 2000 * 1500 // resource.getpagesize()


def faults(keep: bool) -> int:
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], stdout=subprocess.PIPE, check=True, text=True
    )
    return int(ended.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library's heap")
def test_a_photos_memory_is_kept_for_the_next_one() -> None:
    assert faults(keep=True) < PAGES / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library's heap")
def test_by_default_the_heap_maps_every_page_again() -> None:
    """If this fails, the C library now keeps memory by itself, and `service.runtime.memory` can go."""
    assert faults(keep=False) > PAGES / 4


class _Library:
    """A C library that rejects an mmap threshold above `largest` bytes, and records its settings."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.told: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == memory.M_MMAP_THRESHOLD and value > self.largest:
            return 0
        self.told[parameter] = value
        return 1


def test_a_c_library_without_mallopt_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.runtime.memory.ctypes.CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False


def test_an_older_c_library_is_given_its_largest_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _Library(32 * memory.MIB)
    monkeypatch.setattr("service.runtime.memory.ctypes.CDLL", lambda _: library)
    assert memory.keep_freed_memory() is True
    assert library.told == {
        memory.M_MMAP_THRESHOLD: 32 * memory.MIB,
        memory.M_TRIM_THRESHOLD: memory.KEPT_BYTES,
        memory.M_ARENA_MAX: 1,
    }


def test_nothing_is_set_where_the_threshold_can_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trim threshold alone would turn off the heap's own adaptation, and cost more than it saves."""
    library = _Library(0)
    monkeypatch.setattr("service.runtime.memory.ctypes.CDLL", lambda _: library)
    assert memory.keep_freed_memory() is False
    assert library.told == {}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"memory.max": "max\n"}, None),
        ({"memory.max": "1073741824\n"}, 1 << 30),
        ({"limit_in_bytes": "536870912\n"}, 1 << 29),
        ({"limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_the_limit_is_the_containers_or_the_machines(
    files: dict[str, str], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "limit_in_bytes"))
    assert memory.limit() == (expected or psutil.virtual_memory().total)
