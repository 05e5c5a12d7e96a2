"""What becomes of memory that is freed."""

import ctypes
import logging
import os

log = logging.getLogger(__name__)

# <malloc.h> of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20
KEPT = 256 * MIB


def keep_freed() -> bool:
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
