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
SIGNAL_EXIT_BASE = 128
# Seconds that the program has after a second signal before it is ended where it is.
GRACE_S = 2.0

# What is still done after a first signal: the innermost counts.
_messages: list[Callable[[], str]] = []


def _raise(number: int, _: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _handled_signals() -> list[signal.Signals]:
    """Return the signals that are heeded: a shell has its background jobs ignore SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def _print(text: str) -> None:
    # A bar that is being drawn keeps its line.
    print(("\n" if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)


def _report_signals(receiver: socket.socket) -> None:
    """Say at each signal what is still done. A handler can't: it waits for the call of a library to return."""
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
    """Have a thread told of every signal, by the interpreter's own part of the handler."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
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
    """Let either signal raise KeyboardInterrupt with its number, wherever the program is.

    message: said at once at the first signal. At a second one the program is ended by force if it does not end itself.
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
    """Return what a program ends with that was interrupted."""
    return SIGNAL_EXIT_BASE + int(interrupt.args[0] if interrupt.args else signal.SIGINT)


class DeferredSignal:
    """While it is entered, the first signal is kept in `number`; a second one does what the first did before.

    message: what is still done after the first signal, said at once within `interruptible`.
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
        """Raise KeyboardInterrupt when there was a signal."""
        if self.number is not None:
            raise KeyboardInterrupt(self.number)
