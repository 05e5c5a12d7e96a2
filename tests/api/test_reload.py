"""Models that are read again while the service runs."""

import asyncio
import gc
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.inference.batcher import Batcher
from service.inference.registry import ModelRegistry
from service.pipeline.options import Options
from service.settings import Settings
from service.web.app import create_app
from service.web.reload import MAX_LOADS, Reloader
from service.web.state import State
from tests.api.test_metrics import scrape, settled, total
from tests.conftest import Serve, Server, contract, free_port, tint_model
from tests.waiting import WAIT_S, eventually, until

BLUE, RED = (0.0, -40.0), (40.0, 30.0)


def put(folder: Path, version: str, chroma: tuple[float, float] = RED, name: str = "compact") -> None:
    """A model's file, in the place of another at once, as an operator should do it."""
    new = folder / f"{name}.new"
    new.write_bytes(tint_model(contract(name=name, version=version), chroma))
    new.replace(folder / f"{name}.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "1")
    return tmp_path


def reload(server: Server, result: str = "success") -> None:
    """Asks for a reload and waits for its end."""
    before = total(scrape(server), "tomau_reloads_total", result=result)
    server.process.send_signal(signal.SIGHUP)
    settled(server, lambda now: total(now, "tomau_reloads_total", result=result) > before)


def test_a_swap_under_load_loses_no_request(serve: Serve, folder: Path, jpeg: bytes) -> None:
    with serve(models=folder, max_wait_s=60) as server:
        seen: Counter[tuple[int, str]] = Counter()
        faults: list[Exception] = []
        stop = threading.Event()

        def post_on() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not stop.is_set():
                    try:
                        answer = client.post("/colorize", files={"file": jpeg})
                        seen[answer.status_code, answer.headers.get("x-tomau-model", "")] += 1
                        assert client.get("/readyz").status_code == 200
                    except Exception as error:
                        faults.append(error)

        clients = [threading.Thread(target=post_on) for _ in range(6)]
        for client in clients:
            client.start()
        until(lambda: seen[200, "compact/1"] > 20)
        for version in ("2", "3", "4"):
            put(folder, version)
            reload(server)
            at_swap = seen[200, f"compact/{version}"]
            until(lambda version=version, at_swap=at_swap: seen[200, f"compact/{version}"] > at_swap + 20)
        stop.set()
        for client in clients:
            client.join(WAIT_S)
        assert not faults
        assert set(seen) == {(200, f"compact/{version}") for version in "1234"}
        assert httpx.post(f"{server.url}/colorize", files={"file": jpeg}).headers["x-tomau-model"] == "compact/4"
        samples = settled(server, lambda now: total(now, "tomau_requests_total", route="/colorize") == seen.total() + 1)
        assert total(samples, "tomau_dropped_total") == 0
        assert total(samples, "tomau_model_info", version="4") == total(samples, "tomau_model_info") == 1


def truncated(folder: Path) -> None:
    file = folder / "compact.onnx"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def without_contract(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(tint_model(contract(), RED, metadata={"author": "somebody"}))


def of_another_hash(folder: Path) -> None:
    put(folder, "2")
    (folder / "compact.onnx.sha256").write_text(f"{'0' * 64}  compact.onnx\n")


def gone(folder: Path) -> None:
    (folder / "compact.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncated, "compact.onnx"),
        (without_contract, "other.onnx: "),
        (of_another_hash, "SHA-256"),
        (gone, "no model 'compact'"),
    ],
)
def test_a_bad_file_changes_nothing(
    serve: Serve, folder: Path, jpeg: bytes, spoil: Callable[[Path], None], reason: str
) -> None:
    with serve(models=folder) as server, httpx.Client(base_url=server.url) as client:
        before = client.get("/models").json()
        spoil(folder)
        reload(server, "failure")
        assert client.get("/models").json() == before
        assert client.get("/readyz").status_code == 200
        assert client.post("/colorize", files={"file": jpeg}).headers["x-tomau-model"] == "compact/1"
        (line,) = [line for line in server.log.read_text().splitlines() if "nothing has changed" in line]
        assert " ERROR " in line
        assert reason in line
        for file in folder.iterdir():
            file.unlink()
        put(folder, "2")
        reload(server)
        assert client.post("/colorize", files={"file": jpeg}).headers["x-tomau-model"] == "compact/2"


def test_models_come_and_go(serve: Serve, folder: Path, jpeg: bytes) -> None:
    with serve(models=folder) as server, httpx.Client(base_url=server.url) as client:
        put(folder, "1", BLUE, name="blue")
        reload(server)
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["blue", "compact"]
        assert client.post("/colorize?model=blue", files={"file": jpeg}).headers["x-tomau-model"] == "blue/1"
        assert "(1 of them new)" in server.log.read_text(), "the other was not loaded again"
        (folder / "blue.onnx").unlink()
        reload(server)
        assert client.post("/colorize?model=blue", files={"file": jpeg}).json()["code"] == "unknown_model"


def test_a_batch_ends_with_the_model_that_it_began_with(serve: Serve, folder: Path, jpeg: bytes) -> None:
    put(folder, "1", BLUE, name="blue")
    with serve(models=folder, workers=1) as server, ThreadPoolExecutor(1) as pool:
        url = f"{server.url}/colorize/batch?model=blue&format=webp"
        batch = pool.submit(httpx.post, url, files=[("file", jpeg)] * 60, timeout=60)
        settled(server, lambda now: total(now, "tomau_photos_total") >= 2)
        (folder / "blue.onnx").unlink()
        reload(server)
        assert not batch.done()
        with zipfile.ZipFile(io.BytesIO(batch.result().content)) as archive:
            report = json.loads(archive.read("report.json"))
        assert {photo.get("model") for photo in report["photos"]} == {"blue/1"}


def blocked_signals(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1], 16)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_sighup_while_it_starts_waits_until_it_has(folder: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = os.environ | {"TOMAU_MODELS": str(folder), "TOMAU_PORT": str(port)}
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [str(Path(sys.executable).with_name("tomau")), "serve"]
        process = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
    try:
        until(lambda: bool(blocked_signals(process.pid) & 1))
        process.send_signal(signal.SIGHUP)
        server = Server(process, port, log)
        server.wait_until_ready()
        settled(server, lambda now: total(now, "tomau_reloads_total", result="success") == 1)
    finally:
        process.terminate()
        process.wait(WAIT_S)


@contextmanager
def in_a_terminal(folder: Path, log: Path, *, ignores_sighup: bool = False) -> Iterator[tuple[Server, int]]:
    """A server that leads a session which a terminal controls, as after `login`, and the terminal's other end."""
    port = free_port()
    environment = os.environ | {"TOMAU_MODELS": str(folder), "TOMAU_PORT": str(port)}
    outside, inside = os.openpty()
    # Said outright, for the tests may have been started with nohup.
    handler = "SIG_IGN" if ignores_sighup else "SIG_DFL"
    code = (
        f"import fcntl, signal, termios; signal.signal(signal.SIGHUP, signal.{handler});"
        " fcntl.ioctl(0, termios.TIOCSCTTY, 0); from service.cli import main; main(['serve'])"
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=inside,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    os.close(inside)
    try:
        server = Server(process, port, log)
        server.wait_until_ready()
        yield server, outside
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(WAIT_S)


needs_terminals = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs terminals")


@needs_terminals
def test_a_closed_terminal_ends_the_service_and_an_open_one_reloads(folder: Path, tmp_path: Path) -> None:
    with in_a_terminal(folder, tmp_path / "log") as (server, terminal):
        reload(server)
        assert server.process.poll() is None
        os.close(terminal)
        server.process.wait(WAIT_S)
        assert "SIGTERM: not ready any more" in server.log.read_text()


@needs_terminals
def test_with_nohup_it_outlives_its_terminal(folder: Path, tmp_path: Path) -> None:
    with in_a_terminal(folder, tmp_path / "log", ignores_sighup=True) as (server, terminal):
        os.close(terminal)
        settled(server, lambda now: total(now, "tomau_reloads_total", result="success") >= 1)
        reload(server)
        assert "SIGTERM" not in server.log.read_text()


@pytest.fixture
def state(folder: Path) -> State:
    found: State = create_app(Settings(models=folder, device="cpu", workers=2)).state.tomau
    return found


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What is freed then is freed at once, and not only when Python looks for cycles."""
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
    put(folder, "2")
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
    """Loads that end when they are let, in place of the reloader's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: State, folder: Path) -> None:
        self.doors: list[threading.Event] = []
        load = Reloader._load

        def slow(reloader: Reloader) -> ModelRegistry:
            door = threading.Event()
            self.doors.append(door)
            put(folder, str(len(self.doors) + 1))
            registry = load(reloader)
            assert door.wait(WAIT_S)
            return registry

        monkeypatch.setattr(Reloader, "_load", slow)

    async def begun(self, count: int) -> None:
        await eventually(lambda: len(self.doors) == count)


@pytest.fixture
def impatient(folder: Path) -> State:
    """A service whose loads are overdue at once, or nearly."""
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
        loads.doors[0].set()  # the hung one ends after all, with the file of then
        await eventually(lambda: state.reloader.loading_for() is None)
        assert served(state) == "3"
        assert len(loads.doors) == len(began) == 2, "two requests that came together are one load"

    with caplog.at_level(logging.INFO):
        asyncio.run(scene())
    assert "a load of the models has not ended in 0.2 s" in caplog.text
    assert "a later load has ended before" in caplog.text
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
        await eventually(lambda: "no other begins until one does" in caplog.text)
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
