"""SIGINT and SIGTERM: work that is worth keeping is brought to its end first, all other work ends at once."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a shell adds to a signal's number for the exit code.
BY_SIGNAL = 128
# Seconds that the program has after a second signal before it is ended where it is.
GRACE_S = 2.0

# What is still done after a first signal: the innermost counts.
_left: list[Callable[[], str]] = []


def _raise(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _handled() -> list[signal.Signals]:
    """Return the signals that are heeded: a shell has its background jobs ignore SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _say(text: str) -> None:
    # A bar that is being drawn keeps its line.
    print(("\n" if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)


def _watch(receiver: socket.socket) -> None:
    """Say at each signal what is still done. A handler can't: it waits for the call of a library to return."""
    seen = 0
    last: threading.Timer | None = None
    while received := receiver.recv(1):
        if received[0] not in SIGNALS:
            continue
        seen += 1
        if seen == 1:
            _say(f"{_left[-1]()}; another Ctrl-C ends at once")
        elif seen == 2:
            _say("ending at once")
            last = threading.Timer(GRACE_S, os._exit, (BY_SIGNAL + received[0],))
            last.daemon = True
            last.start()
    if last:
        last.cancel()


@contextmanager
def _watched() -> Iterator[None]:
    """Have a thread told of every signal, by the interpreter's own part of the handler."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    thread = threading.Thread(target=_watch, args=(receiver,), name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()


@contextmanager
def at_once(left: str = "stopping") -> Iterator[None]:
    """Let either signal raise KeyboardInterrupt with its number, wherever the program is.

    left: said at once at the first signal. At a second one the program is ended by force if it does not end itself.
    """
    before = {number: signal.signal(number, _raise) for number in _handled()}
    _left.append(lambda: left)
    try:
        with _watched():
            yield
    finally:
        _left.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return what a program ends with that was interrupted."""
    return BY_SIGNAL + int(interrupt.args[0] if interrupt.args else signal.SIGINT)


class Stop:
    """While it is entered, the first signal is kept in `number`; a second one does what the first did before.

    left: what is still done after the first signal, said at once within `at_once`.
    """

    def __init__(self, left: Callable[[], str] = lambda: "stopping") -> None:
        self.number: int | None = None
        self._said = left

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._keep) for number in _handled()}
        _left.append(self._said)
        return self

    def __exit__(self, *_: object) -> None:
        _left.remove(self._said)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def raise_if_signalled(self) -> None:
        """Raise KeyboardInterrupt when there was a signal."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)
