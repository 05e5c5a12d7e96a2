"""Interruption of the training program by SIGINT and SIGTERM."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from model_export import cli
from model_export.signals import SIGNALS, DeferredSignal, exit_code, interruptible


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """Handle SIGINT as in a terminal, here and in child processes. A shell lets background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_is_kept_and_a_second_ends(number: int) -> None:
    with interruptible():
        before = signal.getsignal(number)
        with DeferredSignal() as stop:
            stop.raise_if_signalled()
            send(number)
            assert stop.number == number
            with pytest.raises(KeyboardInterrupt) as raised:
                send(number)
        assert exit_code(raised.value) == 128 + number
        assert signal.getsignal(number) is before
        with pytest.raises(KeyboardInterrupt):
            stop.raise_if_signalled()


def test_handlers_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible(), DeferredSignal():
        assert before != [signal.getsignal(number) for number in SIGNALS]
    assert before == [signal.getsignal(number) for number in SIGNALS]


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(), DeferredSignal() as stop:
            send(signal.SIGINT)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_interrupted_says_so_in_a_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal arrives while a command runs, for example during filtering."""
    monkeypatch.setattr(cli, "_half", lambda _: send(number))
    with pytest.raises(SystemExit) as ended:
        cli.main(["half", "m.onnx", "--data", "d"])
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "stopping: no file is written; another Ctrl-C ends at once\ninterrupted\n"


# A library call that no signal interrupts: it locks a mutex twice. No Python handler runs meanwhile. `_raise` has no
# effect, so that a handler which runs just before the call does not end the program.
CHILD = """
import ctypes
from model_export import signals
from model_export.signals import DeferredSignal, interruptible

signals._raise = lambda number, frame: None

def compute():
    lock, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(lock)
    print("computing", flush=True)
    library.pthread_mutex_lock(lock)

with interruptible("stopping: nothing is kept"):
    {body}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another C library's locks begin otherwise")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("compute()", "stopping: nothing is kept"),
        ("with DeferredSignal(lambda: 'finishing this step'): compute()", "finishing this step"),
    ],
)
def test_what_is_left_is_said_at_once_and_a_second_signal_ends_a_librarys_call(
    number: int, body: str, left: str
) -> None:
    command = [sys.executable, "-c", CHILD.format(body=body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        try:
            assert child.stdout.readline() == "computing\n"
            child.send_signal(number)
            assert child.stderr.readline() == f"{left}; another Ctrl-C ends at once\n"
            assert child.poll() is None
            child.send_signal(number)
            assert child.stderr.readline() == "ending at once\n"
            assert child.wait(60) == 128 + number
        finally:
            child.kill()


def test_what_is_inside_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with interruptible("outer"):
        with DeferredSignal(lambda: "inner"):
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert capsys.readouterr().err == "outer; another Ctrl-C ends at once\n"
