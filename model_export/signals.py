"""SIGINT and SIGTERM: finish work that is worth keeping first, and abort all other work immediately."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A shell reports a program that a signal ended with this exit code plus the signal's number.
SIGNAL_EXIT_BASE = 128
# Seconds after a second signal until the process is ended by force.
GRACE_S = 2.0

# Functions that return what is still being done after a first signal. The innermost context is the last.
_messages: list[Callable[[], str]] = []


def _raise(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _handled_signals() -> list[signal.Signals]:
    """Return the signals that are not ignored. A shell lets its background jobs ignore SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _print(text: str) -> None:
    # On a terminal, a progress bar may occupy the current line.
    print(("\n" if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)


def _report_signals(receiver: socket.socket) -> None:
    """Print a message for each signal received. A Python handler would wait for a running library call to return."""
    seen = 0
    last: threading.Timer | None = None
    while received := receiver.recv(1):
        if received[0] not in SIGNALS:
            continue
        seen += 1
        if seen == 1:
            _print(f"{_messages[-1]()}; another Ctrl-C ends at once")
        elif seen == 2:
            _print("ending at once")
            last = threading.Timer(GRACE_S, os._exit, (SIGNAL_EXIT_BASE + received[0],))
            last.daemon = True
            last.start()
    if last:
        last.cancel()


@contextmanager
def _reporting() -> Iterator[None]:
    """Run a thread that receives the number of every signal through `signal.set_wakeup_fd`."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)  # noqa: FBT003, the standard library names no parameter
    thread = threading.Thread(target=_report_signals, args=(receiver,), name="signals", daemon=True)
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
def interruptible(message: str = "stopping") -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt with the signal's number, wherever the program is.

    message: printed when the first signal arrives. After a second one, a program that does not end by itself is killed.
    """
    before = {number: signal.signal(number, _raise) for number in _handled_signals()}
    _messages.append(lambda: message)
    try:
        with _reporting():
            yield
    finally:
        _messages.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of a program that was interrupted."""
    return SIGNAL_EXIT_BASE + int(interrupt.args[0] if interrupt.args else signal.SIGINT)


class DeferredSignal:
    """A context that stores the first signal in `number`. A second signal gets the handler from before the context.

    message: returns what is still being done. Within `interruptible` it is printed when the first signal arrives.
    """

    def __init__(self, message: Callable[[], str] = lambda: "stopping") -> None:
        self.number: int | None = None
        self._message = message

    def __enter__(self) -> "DeferredSignal":
        self._before = {number: signal.signal(number, self._keep) for number in _handled_signals()}
        _messages.append(self._message)
        return self

    def __exit__(self, *_: object) -> None:
        _messages.remove(self._message)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def raise_if_signalled(self) -> None:
        """Raise KeyboardInterrupt if a signal was received."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)
