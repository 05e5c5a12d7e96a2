"""A C call that keeps the GIL stops all Python code. The process still exits, and names the request."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.runtime.freeze_watchdog import EXIT_FROZEN
from tests.conftest import Server, environment_of, free_port
from tests.waiting import until

LIMIT_S = 4.0
WAIT_S = 60
# PyDLL keeps the GIL while the function runs.
START = """
import ctypes, service.runtime.freeze_watchdog, service.cli
def freeze(seconds):
    ctypes.PyDLL(None).sleep(seconds)
service.runtime.freeze_watchdog.MIN_LIMIT_S = {limit}
{patch}
service.cli.main(["serve"])
"""
IN_A_WORKER = """
from service.pipeline.colorizer import Colorizer
colorize = Colorizer.colorize
def perhaps(self, data, *arguments, **options):
    if data.startswith(b"freeze"):
        print("it freezes", flush=True)
        freeze(600)
    return colorize(self, data, *arguments, **options)
Colorizer.colorize = perhaps
"""
IN_THE_EVENT_LOOP = """
from service.web import routes
def perhaps(request, *_):
    freeze(600 if "freeze" in request.headers else 0)
routes.check_query = perhaps
"""
IN_A_RELOAD = """
from service.web.reload import Reloader
load = Reloader.load
def slow(self):
    freeze({seconds})
    return load(self)
Reloader.load = slow
"""

needs_pydll = pytest.mark.skipif(sys.platform == "win32", reason="needs the C library's sleep")


@contextmanager
def patched(models: Path, folder: Path, patch: str, **settings: object) -> Iterator[Server]:
    """A server with a call that keeps the GIL. Its event loop may stop for only LIMIT_S."""
    port, log = free_port(), folder / "log"
    environment = environment_of(models=models, port=port, deadline_s=1, stuck_s=LIMIT_S, workers=2, **settings)
    code = START.format(patch=patch, limit=LIMIT_S)
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=output, stderr=output)
    try:
        server = Server(process, port, log)
        server.wait_until_ready()
        yield server
    finally:
        process.kill()
        process.wait(15)


def send_without_response(server: Server, data: bytes, **headers: str) -> threading.Thread:
    def send() -> None:
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{server.url}/colorize", content=data, headers=headers, timeout=WAIT_S)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@needs_pydll
@pytest.mark.parametrize("ends", [False, True], ids=["by itself", "on SIGTERM"])
def test_a_photo_that_freezes_the_process_ends_it_and_is_named(models: Path, tmp_path: Path, ends: bool) -> None:
    with patched(models, tmp_path, IN_A_WORKER) as server:
        client = send_without_response(server, b"freeze", **{"x-request-id": "the-frozen-one"})
        until(lambda: "it freezes" in server.log.read_text())
        if ends:
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_S) == EXIT_FROZEN
        client.join(WAIT_S)
        log = server.log.read_text()
        assert re.search(r"^Timeout \(0:00:0[345]", log, re.MULTILINE)
        thread = next(part for part in log.split("\n\n") if "request the-frozen-one" in part)
        assert " in freeze\n" in thread, "the call is shown, and whose photo it was"


@needs_pydll
def test_a_request_that_freezes_the_event_loop_is_named_too(models: Path, tmp_path: Path) -> None:
    with patched(models, tmp_path, IN_THE_EVENT_LOOP) as server:
        send_without_response(server, b"x", **{"x-request-id": "in-the-loop", "freeze": "yes"}).join(WAIT_S)
        assert server.process.wait(WAIT_S) == EXIT_FROZEN
        assert " in request in-the-loop\n" in server.log.read_text()


@needs_pydll
def test_a_reload_may_keep_the_lock_for_longer(models: Path, tmp_path: Path) -> None:
    with patched(models, tmp_path, IN_A_RELOAD.format(seconds=int(2 * LIMIT_S))) as server:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "the models were reloaded" in server.log.read_text(), WAIT_S)
        assert httpx.get(f"{server.url}/livez", timeout=WAIT_S).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT_S) == -signal.SIGTERM
        assert "Timeout" not in server.log.read_text()


def state_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_a_service_that_its_terminal_stops_goes_on_afterwards(models: Path, tmp_path: Path) -> None:
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_DFL:
        pytest.skip("the signal is ignored here")
    with patched(models, tmp_path, "") as server:
        server.process.send_signal(signal.SIGTSTP)
        until(lambda: state_of(server.process) == "T")
        time.sleep(2 * LIMIT_S)
        os.kill(server.process.pid, signal.SIGCONT)
        assert httpx.get(f"{server.url}/livez", timeout=WAIT_S).status_code == 200
        time.sleep(2 * LIMIT_S)
        assert httpx.get(f"{server.url}/livez", timeout=WAIT_S).status_code == 200
        assert "Timeout" not in server.log.read_text()
