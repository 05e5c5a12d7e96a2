"""What becomes of memory that is freed."""

import ctypes
import logging

log = logging.getLogger(__name__)

# <malloc.h> of the GNU C library.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MIB = 1 << 20
KEPT = 256 * MIB


def keep_freed() -> bool:
    """Has up to 256 MiB of freed memory kept for the next photo; whether the C library could be told so.

    By default every plane of a photo is given back to the system, which then hands each of its pages out anew: at two
    megapixels that takes longer than the merge itself. One heap for all threads, so that it is kept only once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        log.info("this C library's heap can't be set: photos take more processor time than they have to")
        return False
    return all([mallopt(M_MMAP_THRESHOLD, 1024 * MIB), mallopt(M_TRIM_THRESHOLD, KEPT), mallopt(M_ARENA_MAX, 1)])
