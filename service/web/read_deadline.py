"""The deadline of a client that must continue to read its response."""

# Checks per timeout.
CHECKS = 4


class ReadDeadline:
    """The time by which a client must have read more of its response.

    Each byte that the client reads extends the deadline by 1 / min_rate. This is a token bucket of `timeout_s`:
    the deadline is never later than `timeout_s` after the last check.
    """

    def __init__(self, timeout_s: float, min_rate: float, now: float) -> None:
        """Start the deadline. min_rate: bytes per second; now: a time of the event loop."""
        self._timeout_s = timeout_s
        self._min_rate = min_rate
        self.check_interval_s = timeout_s / CHECKS
        self._ends = self._latest(now)
        self._read = 0

    def _latest(self, now: float) -> float:
        # A response may start at any time until the next check.
        return now + self._timeout_s + self.check_interval_s

    def is_exceeded(self, now: float, *, read: int, unread: int) -> bool:
        """Update the deadline, and return whether it has passed.

        read: all bytes that the client has read so far. unread: bytes that wait for it.
        """
        extension = max(0, read - self._read) / self._min_rate
        self._read = read
        if not unread:
            self._ends = self._latest(now)
            return False
        self._ends = min(self._ends + extension, now + self._timeout_s)
        return now >= self._ends
