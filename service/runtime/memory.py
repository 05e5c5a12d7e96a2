"""How much memory there is, and what becomes of what is freed."""

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
KEPT = 256 * MIB

# What a container may take, as it sees it itself: version 2 of control groups, and version 1.
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def keep_freed_memory() -> bool:
    """Has freed memory kept for the next photo; whether the C library could be told so.

    By default every plane of a photo is given back to the system, which then hands each of its pages out anew: at two
    megapixels that takes longer than the merge itself. One heap for all threads, so that it is kept only once; of what
    is free at its end, all but 256 MiB goes back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # Before 2.35 the largest threshold is 32 MiB. Without it the others must not be set: the heap would learn no more.
    if mallopt is None or not (mallopt(M_MMAP_THRESHOLD, 1024 * MIB) or mallopt(M_MMAP_THRESHOLD, 32 * MIB)):
        log.info("this C library's heap can't be set: photos take more processor time than they have to")
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_ARENA_MAX, 1))


def limit() -> int:
    """Bytes of memory that this process may have: its container's limit, or what the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in CGROUP_LIMITS:
        try:
            # No limit is the word `max`, or a number beyond every machine.
            return min(machine, int(file.read_text("ascii")))
        except (OSError, ValueError):
            continue
    return machine
