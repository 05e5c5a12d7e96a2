"""SIGINT and SIGTERM: work that is worth keeping is brought to its end first, all other ends at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a shell adds to a signal's number for the exit code.
BY_SIGNAL = 128


def _raise(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _handled() -> list[signal.Signals]:
    """The signals that are heeded: a shell has its background jobs ignore SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def at_once() -> Iterator[None]:
    """Either signal raises KeyboardInterrupt with its number, wherever the program is."""
    before = {number: signal.signal(number, _raise) for number in _handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a program ends with that was interrupted."""
    return BY_SIGNAL + int(interrupt.args[0] if interrupt.args else signal.SIGINT)


class Stop:
    """While it is entered, the first signal is kept in `number`; a second one does what the first did before."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._keep) for number in _handled()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self.__exit__()

    def raise_if_signalled(self) -> None:
        """Raises KeyboardInterrupt when there was a signal."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)
