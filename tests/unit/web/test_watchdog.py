"""The watchdog: stuck workers, hanging runs, failing models."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from service.errors import ClientGone, DeadlineExceeded
from service.imaging.color import Floats
from service.inference.executor import Batch, CpuExecutor
from service.pipeline.colorizer import ColoredImage
from service.pipeline.options import Options
from service.runtime.request_context import request_id
from service.settings import Settings
from service.web import app, watchdog
from service.web.state import State
from tests.conftest import encoded
from tests.waiting import WAIT_S, eventually


class Exited(BaseException):
    """Raised instead of the exit of the process."""


def test_a_service_whose_workers_are_all_stuck_ends_itself(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog, "WATCH_S", 0.02)
    door = threading.Event()
    settings = Settings(models=models, device="cpu", workers=2, deadline_s=0.4, stuck_s=4)
    state: State = app.create_app(settings).state.tomau

    async def gone() -> None:
        await asyncio.sleep(2)

    async def scene() -> None:
        jobs = []
        for name in "ab":
            request_id.set(name)
            job = state.workers.run(lambda _: door.wait(WAIT_S), deadline=float("inf"), disconnect=gone)
            jobs.append(asyncio.create_task(job))
        await eventually(lambda: state.workers.busy == 2)
        await eventually(lambda: state.not_ready_reason() == "no worker has finished its photo in time")
        assert watchdog.exit_reason(state) is None
        with pytest.raises(Exited):
            await asyncio.wait_for(watchdog.watch(state), WAIT_S)
        door.set()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(outcome is True or isinstance(outcome, ClientGone) for outcome in outcomes)

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(scene())
    assert codes == [watchdog.EXIT_STUCK]
    assert "all 2 workers are stuck for 4 s: the process exits, with the requests a, b in progress" in caplog.text


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the codes with which the process would have exited. The watchdog checks often."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(watchdog, "WATCH_S", 0.02)
    monkeypatch.setattr(watchdog, "PROBE_S", 0.02)
    # As on a GPU, there are far more workers than executors.
    monkeypatch.setattr(Settings, "cores", 2)
    return codes


async def colour(state: State, photos: list[bytes], deadline_s: float = 10) -> list[type | None]:
    """Send photos concurrently, and return the type of each error, or None."""

    async def never() -> None:
        await asyncio.Event().wait()

    def one(photo: bytes) -> Awaitable[ColoredImage]:
        ends = time.monotonic() + deadline_s

        def call(cancelled: threading.Event) -> ColoredImage:
            return state.colorizer.colorize(photo, Options(), deadline=ends, cancelled=cancelled)

        return state.workers.run(call, deadline=ends, disconnect=never)

    outcomes = await asyncio.gather(*map(one, photos), return_exceptions=True)
    return [type(outcome) if isinstance(outcome, BaseException) else None for outcome in outcomes]


def test_a_model_that_hangs_is_seen_among_more_workers_than_executors(
    models: Path,
    jpeg: bytes,
    ended: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings(models=models, device="cpu", workers=6, deadline_s=0.4, stuck_s=2)
    state: State = app.create_app(settings).state.tomau
    runs = state.colorizer.models.get(None).batcher.runs
    door = threading.Event()
    predict = CpuExecutor.predict

    def hang(self: CpuExecutor, lightness: Batch) -> Floats:
        door.wait()
        return predict(self, lightness)

    monkeypatch.setattr(CpuExecutor, "predict", hang)

    async def scene() -> None:
        watch = asyncio.create_task(watchdog.watch(state))
        while runs.busy < 2:
            assert await colour(state, [jpeg] * 6, settings.deadline_s) == [DeadlineExceeded] * 6
        await eventually(lambda: state.not_ready_reason() == "no run of the model compact has ended in time")
        await eventually(lambda: state.workers.busy == 2)
        assert state.workers.stuck_for() == 0, "four have left"
        with pytest.raises(Exited):
            await watch
        door.set()
        await eventually(lambda: not state.workers.busy)
        assert state.not_ready_reason() is None

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(scene())
    assert ended == [watchdog.EXIT_STUCK]
    assert "all runs of the model compact are stuck for 2 s" in caplog.text


class Device:
    """A device that fails every run while it is broken, and all runs of white photos. It counts the black photos."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = False
        self.blacks = 0
        predict = CpuExecutor.predict

        def perhaps(plain: CpuExecutor, lightness: Batch) -> Floats:
            self.blacks += not np.any(lightness)
            if self.is_broken or np.mean(lightness) > 0.9:
                raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
            return predict(plain, lightness)

        monkeypatch.setattr(CpuExecutor, "predict", perhaps)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@asynccontextmanager
async def serving(models: Path, stuck_s: float) -> AsyncIterator[State]:
    """Run a service with its watchdog and its probe, as while it serves."""
    served = app.create_app(Settings(models=models, device="cpu", workers=6, deadline_s=1, stuck_s=stuck_s))
    with suppress(Exited):  # raised directly if the exit happens during a probe
        async with app.lifespan(served):
            yield served.state.tomau


def test_a_service_whose_model_fails_on_every_photo_ends_itself(
    models: Path, device: Device, ended: list[int], jpeg: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        async with serving(models, stuck_s=2) as state:
            assert await colour(state, [jpeg]) == [None]
            device.is_broken = True
            assert await colour(state, [jpeg] * 6) == [RuntimeError] * 6
            await eventually(lambda: state.not_ready_reason() == "the model compact fails on a black photo, too")
            assert not ended
            await eventually(lambda: bool(ended))

    with caplog.at_level(logging.ERROR):
        asyncio.run(scene())
    assert ended[0] == watchdog.EXIT_FAILING
    assert "fails on a black photo, too: CUDA failure 700" in caplog.text


@pytest.mark.usefixtures("ended")
def test_a_failure_that_passes_makes_it_ready_again_without_a_photo(models: Path, device: Device, jpeg: bytes) -> None:
    async def scene() -> None:
        async with serving(models, stuck_s=60) as state:
            device.is_broken = True
            assert await colour(state, [jpeg]) == [RuntimeError]
            await eventually(lambda: state.not_ready_reason() is not None)
            device.is_broken = False
            await eventually(lambda: state.not_ready_reason() is None)

    asyncio.run(scene())


@pytest.mark.usefixtures("ended")
def test_a_photo_that_fails_again_and_again_does_not_make_it_unready(models: Path, device: Device) -> None:
    white = encoded(np.full((40, 40), 255, np.uint8), "PNG")

    async def scene() -> None:
        async with serving(models, stuck_s=60) as state:
            warmed = device.blacks
            while device.blacks < warmed + 5:
                assert await colour(state, [white] * 3) == [RuntimeError] * 3
                assert state.not_ready_reason() is None
            await eventually(lambda: not state.colorizer.models.get(None).batcher.failing_executors)

    asyncio.run(scene())
