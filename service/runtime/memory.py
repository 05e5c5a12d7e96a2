"""Read the memory limit of this process, and keep freed memory in it."""

import ctypes
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

# <malloc.h> of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20
KEPT_BYTES = 256 * MIB

# The memory limit of the container: version 2 of control groups, then version 1.
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next photo. Return whether it supports that.

    By default the C library returns every freed plane to the system, and the system then maps each page again. For
    photos of two megapixels that takes longer than the merge itself. All threads share one heap, so that memory is kept
    only once. Free memory at the end of the heap is returned, except for KEPT_BYTES.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # Before glibc 2.35 the largest threshold is 32 MiB. If it can't be set, the others must not be set either: they
    # would turn off the heap's own adaptation.
    if mallopt is None or not (mallopt(M_MMAP_THRESHOLD, 1024 * MIB) or mallopt(M_MMAP_THRESHOLD, 32 * MIB)):
        log.info("this C library can't keep freed memory: photos take more processor time than necessary")
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_ARENA_MAX, 1))


def limit() -> int:
    """Return the memory limit of this process, bytes: the container's limit or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in CGROUP_LIMITS:
        try:
            # Without a limit the file has the word `max`, or a number beyond any machine.
            return min(machine, int(file.read_text("ascii")))
        except (OSError, ValueError):
            continue
    return machine
