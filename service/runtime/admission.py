"""Slots: count uploads, bytes and photos in progress, and refuse more than the limits allow.

Receiving and processing have separate limits, so that slow clients can't block the processing of other photos. All
classes are used from the event loop only, so they need no lock.
"""

from types import TracebackType
from typing import Self

from service.errors import Overloaded


class Slots:
    """A counter of permits. A caller gets a permit immediately or not at all."""

    def __init__(self, what: str, limit: int) -> None:
        self.what = what
        self.limit = limit
        self.in_use = 0

    def acquire(self, count: int = 1, *, leave: int = 0) -> None:
        """Acquire `count` slots. Raise Overloaded if fewer than `leave` would then be free."""
        if self.in_use + count > self.limit - leave:
            raise Overloaded(f"the limit of {self.limit:,} {self.what} is reached; try again later", limit=self.limit)
        self.in_use += count

    def release(self, count: int = 1) -> None:
        """Release `count` slots."""
        self.in_use -= count


class UploadReservation:
    """The slots of one upload: an upload slot while it is received, and a byte slot for each byte in memory."""

    def __init__(self, uploads: Slots, held: Slots, *, leave: int = 0) -> None:
        """Create a reservation that occupies nothing before it is entered.

        uploads, held: the slots for uploads and for bytes. leave: bytes that must stay free for other uploads.
        """
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
        """Count bytes that have arrived. Raise Overloaded if all uploads together exceed the limit."""
        self._held.acquire(count, leave=self._leave)
        self._bytes += count

    def shrink(self, count: int) -> None:
        """Release bytes that are no longer in memory."""
        self._held.release(count)
        self._bytes -= count

    def complete(self) -> None:
        """Release the upload slot: the upload has arrived. Its bytes stay counted."""
        if self._receives:
            self._uploads.release()
            self._receives = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.complete()
        self._held.release(self._bytes)
        self._bytes = 0
