import asyncio
import contextlib
import faulthandler
import traceback
from collections.abc import Awaitable, Callable

import pytest

from service.runtime import freeze_watchdog
from service.runtime.freeze_watchdog import LOAD_LIMIT_S, MIN_LIMIT_S, FreezeWatchdog, await_named, run_named
from tests.waiting import eventually


def frames() -> list[str]:
    return [frame.name for frame in traceback.extract_stack()]


def test_a_call_has_its_request_in_its_traceback_and_is_else_as_it_was() -> None:
    assert "request abc" in run_named("abc", frames)
    assert "request abc" not in frames()
    with pytest.raises(KeyError):
        run_named("abc", lambda: {}["x"])


def test_requests_that_are_awaited_at_once_have_each_its_own() -> None:
    async def one() -> list[str]:
        before = frames()
        await asyncio.sleep(0.01)
        assert frames() == before
        return before

    async def scene() -> None:
        names: list[Callable[[], Awaitable[list[str]]]] = [one, one]
        a, b = await asyncio.gather(*(await_named(str(number), call) for number, call in enumerate(names)))
        assert "request 0" in a
        assert "request 1" in b
        assert "request 1" not in a

    asyncio.run(scene())


class Timers:
    """The calls that faulthandler received."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limits: list[float] = []
        self.cancelled = 0
        self.error: Exception | None = None
        monkeypatch.setattr(faulthandler, "dump_traceback_later", self._set)
        monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", self._cancel)

    def _set(self, limit: float, **how: object) -> None:
        assert how == {"exit": True, "file": 2}
        if self.error:
            raise self.error
        self.limits.append(limit)

    def _cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    return Timers(monkeypatch)


def test_the_timer_is_set_anew_and_cancelled_at_the_end(timers: Timers, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        watch = asyncio.create_task(FreezeWatchdog(60, lambda: None).watch())
        await eventually(lambda: len(timers.limits) > 3)
        assert not timers.cancelled
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch

    monkeypatch.setattr(freeze_watchdog, "REARM_S", 0.01)
    asyncio.run(scene())
    assert set(timers.limits) == {60}
    assert timers.cancelled == 1


def test_a_load_has_longer_but_not_for_ever(timers: Timers) -> None:
    for limit, loading in (
        (60, None),
        (60, 0.0),
        (60, 100.0),
        (60, LOAD_LIMIT_S - 1),
        (60, 10 * LOAD_LIMIT_S),
        (0.5, None),
    ):
        FreezeWatchdog(limit, lambda loading=loading: loading).arm()
    assert timers.limits == [60, LOAD_LIMIT_S, LOAD_LIMIT_S - 100, 60, 60, MIN_LIMIT_S]


def test_that_there_is_no_thread_for_the_timer_is_told_once(timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    timers.error = RuntimeError("unable to start watchdog thread")
    watchdog = FreezeWatchdog(60, lambda: None)
    watchdog.arm()
    watchdog.arm()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    timers.error = None
    watchdog.arm()
    assert timers.limits == [60]
