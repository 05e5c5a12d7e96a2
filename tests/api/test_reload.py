"""Models that are reloaded while a server runs."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.test_metrics import scrape, settled, total
from tests.conftest import Serve, Server, contract, free_port, put_model, tint_model
from tests.waiting import WAIT_S, until

BLUE, RED = (0.0, -40.0), (40.0, 30.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_model(tmp_path, "1")
    return tmp_path


def reload(server: Server, result: str = "success") -> None:
    """Start a reload, and wait for its end."""
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
                    except Exception as error:  # noqa: BLE001  # any error in a client's thread fails the test
                        faults.append(error)

        clients = [threading.Thread(target=post_on) for _ in range(6)]
        for client in clients:
            client.start()
        until(lambda: seen[200, "compact/1"] > 20)
        for version in ("2", "3", "4"):
            put_model(folder, version)
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
    put_model(folder, "2")
    (folder / "compact.onnx.sha256").write_text(f"{'0' * 64}  compact.onnx\n")


def gone(folder: Path) -> None:
    (folder / "compact.onnx").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncated, "compact.onnx"),
        (without_contract, "other.onnx: "),
        (of_another_hash, "SHA-256"),
        (gone, "the default model 'compact' is missing"),
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
        put_model(folder, "2")
        reload(server)
        assert client.post("/colorize", files={"file": jpeg}).headers["x-tomau-model"] == "compact/2"


def test_models_come_and_go(serve: Serve, folder: Path, jpeg: bytes) -> None:
    with serve(models=folder) as server, httpx.Client(base_url=server.url) as client:
        put_model(folder, "1", BLUE, name="blue")
        reload(server)
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["blue", "compact"]
        assert client.post("/colorize?model=blue", files={"file": jpeg}).headers["x-tomau-model"] == "blue/1"
        assert "(1 of them new)" in server.log.read_text(), "the other was not loaded again"
        (folder / "blue.onnx").unlink()
        reload(server)
        assert client.post("/colorize?model=blue", files={"file": jpeg}).json()["code"] == "unknown_model"


def test_a_batch_ends_with_the_model_that_it_began_with(serve: Serve, folder: Path, jpeg: bytes) -> None:
    put_model(folder, "1", BLUE, name="blue")
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
    """Run a server as the leader of a session with a terminal. Also yield the other end of the terminal."""
    port = free_port()
    environment = os.environ | {"TOMAU_MODELS": str(folder), "TOMAU_PORT": str(port)}
    outside, inside = os.openpty()
    # Set explicitly, because the tests may have been started with nohup.
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
        assert "SIGTERM: no longer ready" in server.log.read_text()


@needs_terminals
def test_with_nohup_it_outlives_its_terminal(folder: Path, tmp_path: Path) -> None:
    with in_a_terminal(folder, tmp_path / "log", ignores_sighup=True) as (server, terminal):
        os.close(terminal)
        settled(server, lambda now: total(now, "tomau_reloads_total", result="success") >= 1)
        reload(server)
        assert "SIGTERM" not in server.log.read_text()
