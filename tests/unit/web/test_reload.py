"""Reloads: their order, loads that hang, and the memory of old models."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.inference.batcher import Batcher
from service.inference.registry import ModelRegistry
from service.pipeline.options import Options
from service.settings import Settings
from service.web.app import create_app
from service.web.reload import MAX_LOADS, Reloader
from service.web.state import State
from tests.conftest import put_model
from tests.waiting import WAIT_S, eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_model(tmp_path, "1")
    return tmp_path


@pytest.fixture
def state(folder: Path) -> State:
    found: State = create_app(Settings(models=folder, device="cpu", workers=2)).state.tomau
    return found


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Turn off the collection of cycles, so that the test sees only what is freed without it."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_gc")
def test_a_photo_under_way_ends_with_its_model_which_is_then_freed(
    state: State, folder: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = state.colorizer.models.get(None).batcher
    freed = threading.Event()
    weakref.finalize(old, freed.set)
    begun, door = threading.Event(), threading.Event()
    predict = Batcher.predict

    def slow(self: Batcher, *arguments: object, **options: object) -> object:
        if self is old_id():
            begun.set()
            assert door.wait(WAIT_S)
        return predict(self, *arguments, **options)  # type: ignore[arg-type]

    old_id = weakref.ref(old)
    del old
    monkeypatch.setattr(Batcher, "predict", slow)
    models = []
    photo = threading.Thread(target=lambda: models.append(state.colorizer.colorize(jpeg, Options()).model))
    photo.start()
    assert begun.wait(WAIT_S)
    put_model(folder, "2")
    assert state.reloader.reload()
    assert state.colorizer.colorize(jpeg, Options()).model == "compact/2"
    assert not freed.is_set()
    door.set()
    photo.join(WAIT_S)
    assert models == ["compact/1"]
    assert freed.wait(WAIT_S), "nothing holds the old model any more"


def test_a_reload_that_is_asked_for_during_one_is_done_after_it(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, done = 0, 0, 0
    may_end = threading.Semaphore(0)

    def slow(self: Reloader) -> bool:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        assert may_end.acquire(timeout=WAIT_S), "the event loop goes on, and lets it end"
        running -= 1
        done += 1
        return True

    monkeypatch.setattr(Reloader, "reload", slow)

    async def scene() -> None:
        state.reloader.request()
        await eventually(lambda: running == 1)
        for _ in range(5):
            state.reloader.request()
        may_end.release()
        await eventually(lambda: done == 1 and running == 1)
        may_end.release()
        await eventually(lambda: done == 2)
        await asyncio.sleep(0.3)
        assert running == 0, "five that came during the first are one more"
        state.reloader.request()
        may_end.release()
        await eventually(lambda: done == 3)

    asyncio.run(scene())
    assert most == 1


class Loads:
    """Loads that replace the reloader's own, and end when the test lets them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: State, folder: Path) -> None:
        self.doors: list[threading.Event] = []
        load = Reloader.load

        def slow(reloader: Reloader) -> ModelRegistry:
            door = threading.Event()
            self.doors.append(door)
            put_model(folder, str(len(self.doors) + 1))
            registry = load(reloader)
            assert door.wait(WAIT_S)
            return registry

        monkeypatch.setattr(Reloader, "load", slow)

    async def begun(self, count: int) -> None:
        await eventually(lambda: len(self.doors) == count)


@pytest.fixture
def impatient(folder: Path) -> State:
    """A service whose loads are overdue after a fraction of a second."""
    settings = Settings(models=folder, device="cpu", workers=2, deadline_s=0.1, stuck_s=0.2)
    found: State = create_app(settings).state.tomau
    return found


def served(state: State) -> str:
    return state.colorizer.models.get(None).contract.version


def figure(state: State, name: str, **labels: str) -> float | None:
    return state.metrics.registry.get_sample_value(name, labels)


def test_a_load_that_does_not_end_keeps_no_later_one_from_it(
    impatient: State, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads, state, began = Loads(monkeypatch, impatient, folder), impatient, []
    state.reloader.on_load = lambda: began.append(True)

    async def scene() -> None:
        assert state.reloader.loading_for() is None
        state.reloader.request()
        await loads.begun(1)
        state.reloader.request()
        state.reloader.request()
        await loads.begun(2)
        assert figure(state, "tomau_reloads_overdue") >= 1
        loads.doors[1].set()
        await eventually(lambda: served(state) == "3")
        loads.doors[0].set()  # the first load ends late, with an older file
        await eventually(lambda: state.reloader.loading_for() is None)
        assert served(state) == "3"
        assert len(loads.doors) == len(began) == 2, "two requests that came together are one load"

    with caplog.at_level(logging.INFO):
        asyncio.run(scene())
    assert "a load of the models has not ended in 0.2 s" in caplog.text
    assert "a later load has ended earlier" in caplog.text
    assert figure(state, "tomau_reloads_overdue") == 0
    assert figure(state, "tomau_reloads_total", result="success") == 1
    assert figure(state, "tomau_reloads_total", result="failure") == 1


def test_only_so_many_loads_hang_at_once(
    impatient: State, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loads, state = Loads(monkeypatch, impatient, folder), impatient

    async def scene() -> None:
        for count in range(1, MAX_LOADS + 1):
            state.reloader.request()
            await loads.begun(count)
        state.reloader.request()
        await eventually(lambda: "no other one begins until one ends" in caplog.text)
        assert len(loads.doors) == figure(state, "tomau_reloads_overdue") == MAX_LOADS
        loads.doors[0].set()
        await loads.begun(MAX_LOADS + 1)
        for door in loads.doors:
            door.set()
        await eventually(lambda: state.reloader.loading_for() is None)
        assert served(state) == str(MAX_LOADS + 2)

    asyncio.run(scene())


def test_a_load_that_no_thread_can_be_had_for_is_a_failure(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def scene() -> None:
        state.reloader.request()
        await eventually(lambda: figure(state, "tomau_reloads_total", result="failure") == 1)
        assert state.reloader.loading_for() is None

    monkeypatch.setattr("service.web.reload.run_detached", nothing)
    asyncio.run(scene())
    assert "the models were not reloaded: can't start new thread" in caplog.text


def test_an_unexpected_fault_changes_nothing_either(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = state.colorizer.models

    def broken(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("service.web.reload.ModelRegistry", broken)
    assert not state.reloader.reload()
    assert state.colorizer.models is before
    assert "nothing has changed" in caplog.text
