"""How much may be inside at once: uploads being received, their bytes, and photos.

Receiving and processing are admitted apart, so that slow senders can't hold the places of others. Used from the event
loop only, so plain numbers are enough.
"""

from types import TracebackType
from typing import Self

from service.errors import Overloaded


class Slots:
    """A counted number of places, of which none is waited for."""

    def __init__(self, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        self.in_use = 0

    def acquire(self, count: int = 1, *, leave: int = 0) -> None:
        """Takes places; raises Overloaded when there are not so many, or fewer than `leave` would be left."""
        if self.in_use + count > self.limit - leave:
            raise Overloaded(f"too many {self.what} at once", limit=self.limit)
        self.in_use += count

    def release(self, count: int = 1) -> None:
        """Gives places back."""
        self.in_use -= count


class UploadReservation:
    """One upload that is being received: a place among the uploads, and one for each of its bytes so far."""

    def __init__(self, uploads: Slots, held: Slots, *, leave: int = 0) -> None:
        """leave: so many bytes of all uploads are left for others."""
        self._uploads = uploads
        self._held = held
        self._leave = leave
        self._bytes = 0
        self._receives = False

    def __enter__(self) -> Self:
        self._uploads.acquire()
        self._receives = True
        return self

    def grow(self, count: int) -> None:
        """Counts bytes that have come; raises Overloaded when all uploads together are too large."""
        self._held.acquire(count, leave=self._leave)
        self._bytes += count

    def shrink(self, count: int) -> None:
        """Gives bytes back that are not held any more."""
        self._held.release(count)
        self._bytes -= count

    def complete(self) -> None:
        """The upload is whole: its place is free for the next, its bytes are still held."""
        if self._receives:
            self._uploads.release()
            self._receives = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.complete()
        self._held.release(self._bytes)
        self._bytes = 0
