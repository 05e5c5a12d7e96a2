"""Faults inside the service. Clients get a defined response in time, and the service goes on or restarts."""

import contextlib
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.settings import Settings
from service.web.watchdog import EXIT_STUCK, WATCH_S
from tests.api.test_problems import is_problem
from tests.conftest import (
    ANSWERS_ANOTHER_SHAPE,
    ANSWERS_NAN,
    HANGS,
    RAISES,
    Serve,
    Server,
    contract,
    encoded,
    environment_of,
    moody_model,
    tint_model,
)
from tests.waiting import WAIT_S, until

MIB = 1 << 20
# Long enough for one photo on a busy machine, which does not mean that a worker is stuck.
STUCK_S = 5.0


def photo(level: int, side: int = 40) -> bytes:
    """Return a photo of one level of gray."""
    return encoded(np.full((side, side), level, np.uint8), "PNG")


def post(server: Server, data: bytes, query: str = "") -> httpx.Response:
    headers = {"content-type": "image/png"}
    return httpx.post(f"{server.url}/colorize{query}", content=data, headers=headers)


def is_served(server: Server, data: bytes) -> bool:
    """Return whether the photo is coloured. On a busy machine it may exceed a short deadline."""
    answer = post(server, data)
    assert answer.status_code in (200, 504)
    return answer.status_code == 200


def is_ready(server: Server) -> bool:
    return httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that fails on some photos."""
    folder = tmp_path_factory.mktemp("moody")
    (folder / "compact.onnx").write_bytes(moody_model(contract(name="compact")))
    return folder


@pytest.fixture(scope="module")
def moody_server(serve: Serve, moody: Path) -> Iterator[Server]:
    with serve(models=moody) as server:
        yield server


@pytest.mark.parametrize(
    ("level", "logged"),
    [(ANSWERS_NAN, "not finite"), (ANSWERS_ANOTHER_SHAPE, "(1, 1, 16, 8)"), (RAISES, "Reshape")],
)
def test_a_model_that_fails_is_a_fault_of_its_photo_alone(moody_server: Server, level: int, logged: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: post(moody_server, photo(one)), [level, 100] * 8))
    for answer in answers[::2]:
        problem = is_problem(answer, 500, "internal_error")
        assert logged not in str(problem), "internal details are not sent to the client"
        request_id = answer.headers["x-request-id"]
        assert f"[{request_id}] unexpected fault" in moody_server.log.read_text()
    assert logged in moody_server.log.read_text()
    assert [answer.status_code for answer in answers[1::2]] == [200] * 8


def red_until_its_end(server: Server) -> httpx.Response:
    """Send photos that exceed the deadline until the process exits. Return the last response of /readyz but 200."""
    red = None
    with contextlib.suppress(httpx.TransportError):
        while server.process.poll() is None:
            is_problem(post(server, photo(0)), 504, "deadline_exceeded")
            ready = httpx.get(f"{server.url}/readyz")
            red = ready if ready.status_code != 200 else red
    assert red is not None
    return red


def test_a_model_that_hangs(serve: Serve, moody: Path) -> None:
    """Its clients get 504, and other photos are coloured while a worker is left. Then the process exits."""
    with serve(models=moody, workers=2, deadline_s=0.5, stuck_s=STUCK_S) as server:
        started = time.monotonic()
        is_problem(post(server, photo(HANGS)), 504, "deadline_exceeded")
        assert time.monotonic() - started > 0.4
        for level in (0, 50, 100):
            until(partial(is_served, server, photo(level)))
        # The process would exit within this time if one stuck worker of two were enough.
        until(lambda: time.monotonic() - started > STUCK_S + 2 * WATCH_S)
        until(partial(is_ready, server))
        is_problem(post(server, photo(HANGS)), 504, "deadline_exceeded")
        red = red_until_its_end(server)
        is_problem(red, 503, "draining")
        assert server.process.wait(WAIT_S) == EXIT_STUCK
        assert "all 2 workers are stuck" in server.log.read_text()


def test_a_model_that_hangs_among_more_workers_than_executors(serve: Serve, moody: Path) -> None:
    """As on a GPU: threads that wait for an executor leave at the deadline; only those that have one are stuck."""
    cores = Settings().cores
    limits = {"workers": cores + 4, "deadline_s": 0.5, "stuck_s": STUCK_S}
    with serve(models=moody, **limits) as server, ThreadPoolExecutor(cores) as pool:
        for answer in pool.map(lambda _: post(server, photo(HANGS)), range(cores)):
            is_problem(answer, 504, "deadline_exceeded")
        red = red_until_its_end(server)
        assert is_problem(red, 503, "draining")["detail"] == "no run of the model compact has ended in time"
        assert server.process.wait(WAIT_S) == EXIT_STUCK
        assert "all runs of the model compact are stuck" in server.log.read_text()


def test_a_worker_that_hangs_does_not_keep_the_process_from_ending(serve: Serve, moody: Path) -> None:
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(serve(models=moody, workers=2, deadline_s=0.3, drain_delay_s=0)) for _ in range(2)]
        for server, sent in zip(both, (signal.SIGTERM, signal.SIGINT), strict=True):
            is_problem(post(server, photo(HANGS)), 504, "deadline_exceeded")
            server.process.send_signal(sent)
        for server in both:
            assert server.process.wait(WAIT_S) == EXIT_STUCK
            assert "1 workers are stuck" in server.log.read_text()
            assert "Traceback" not in server.log.read_text()


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, reason="in the background nobody presses Ctrl-C")
def test_ctrl_c_ends_it_without_a_fuss(serve: Serve) -> None:
    with serve() as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(WAIT_S) == 130
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    "shell",
    [
        'exec "$@" 1>/dev/full 2>/dev/full',
        'cd /proc/self; ulimit -f 0; export HOME=/nowhere TMPDIR=/nowhere; exec "$@" 0<&- 1>&- 2>&-',
    ],
    ids=["no room for a log", "no standard files, and no byte can be written to any other"],
)
def test_it_needs_to_write_nothing(serve: Serve, moody: Path, shell: str) -> None:
    with serve(models=moody, shell=shell) as server:
        assert Path(f"/proc/{server.process.pid}/fd/2").stat().st_rdev, "a device, not a socket"
        assert post(server, photo(100)).status_code == 200
        is_problem(post(server, photo(RAISES)), 500, "internal_error")
        is_problem(post(server, b"no picture"), 415, "unsupported_type")
        assert post(server, photo(100)).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_S) == -signal.SIGTERM


@contextlib.contextmanager
def limited(server: Server, kind: int, limit: int) -> Iterator[None]:
    """Limit a resource of the running process."""
    before = resource.prlimit(server.process.pid, kind)
    resource.prlimit(server.process.pid, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, kind, before)


def virtual_memory(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))


def test_a_photo_that_memory_is_too_short_for(server: Server) -> None:
    large = photo(100, side=7000)
    assert post(server, photo(100), "?format=png").status_code == 200
    with limited(server, resource.RLIMIT_AS, virtual_memory(server) + 100 * MIB):
        for _ in range(3):
            answer = post(server, large, "?format=png")
            is_problem(answer, 503, "out_of_memory")
            assert int(answer.headers["retry-after"]) > 0
            assert post(server, photo(100), "?format=png").status_code == 200, "a small photo fits"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert post(server, large, "?format=jpeg").status_code == 200


def recovers(server: Server, data: bytes) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.post(f"{server.url}/colorize", files={"file": data}).status_code == 200
    return False


def test_without_file_descriptors_nobody_waits_and_it_recovers(server: Server, jpeg: bytes) -> None:
    address = ("127.0.0.1", server.port)
    held = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/livez").status_code == 200
        with limited(server, resource.RLIMIT_NOFILE, held + 8), contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(address, WAIT_S)) for _ in range(30)]
            # An idle connection is closed after TOMAU_HEAD_S, which is longer.
            closed, _, _ = select.select(connections, [], [], Settings().head_s / 2)
            assert closed, "closed immediately, not left to wait"
            with contextlib.suppress(ConnectionError):
                assert closed[0].recv(1) == b""
            assert client.post("/colorize", files={"file": jpeg}).status_code == 200, "a connected client is served"
        until(lambda: recovers(server, jpeg), pause=0.05)


def test_a_model_file_that_is_damaged_is_said_at_start(tmp_path: Path) -> None:
    model = tint_model(contract(name="compact"), (1, 1))
    for damaged in (model[: len(model) // 2], model[:100] + bytes(50) + model[150:]):
        (tmp_path / "compact.onnx").write_bytes(damaged)
        command = [str(Path(sys.executable).with_name("tomau")), "serve"]
        environment = environment_of(models=tmp_path, port=0)
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith(f"tomau: {tmp_path / 'compact.onnx'}: can't be loaded")
        assert "Traceback" not in ended.stderr
