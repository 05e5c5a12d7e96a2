import os
import signal

import pytest

from model_export import cli
from model_export.stopping import SIGNALS, Stop, at_once, exit_code


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_is_kept_and_a_second_ends(number: int) -> None:
    with at_once():
        before = signal.getsignal(number)
        with Stop() as stop:
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
    with at_once(), Stop():
        assert before != [signal.getsignal(number) for number in SIGNALS]
    assert before == [signal.getsignal(number) for number in SIGNALS]


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with at_once(), Stop() as stop:
            send(signal.SIGINT)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_interrupted_says_so_in_a_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the middle of the sift."""
    monkeypatch.setattr(cli, "_half", lambda _: send(number))
    with pytest.raises(SystemExit) as ended:
        cli.main(["half", "m.onnx", "--data", "d"])
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "interrupted\n"
