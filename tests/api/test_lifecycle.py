"""Start and stop of a server: drain, signals, and settings or models that it can't serve."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.api.test_metrics import has_inside, scrape, total
from tests.conftest import Serve, contract, encoded, environment_of, tint_model
from tests.waiting import WAIT_S, until


def test_sigterm_turns_readiness_red_and_finishes_what_is_inside(serve: Serve, astronaut: np.ndarray) -> None:
    large = encoded(np.tile(astronaut[..., 0], (6, 6)), "PNG")
    with serve(drain_delay_s=4) as server, ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url) as client:
        send = lambda _: client.post("/colorize", files={"file": large}, timeout=30).status_code  # noqa: E731
        assert send(0) == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code != 200)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "draining")
        assert "retry-after" in ready.headers
        assert ready.headers["connection"] == "close"
        assert client.get("/livez").status_code == 200
        assert list(pool.map(send, range(4))) == [200] * 4, "requests are still taken"
        assert server.process.wait(WAIT_S) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log.read_text()


def test_what_the_end_cuts_off_is_told_and_logged(serve: Serve, astronaut: np.ndarray) -> None:
    """A stalled upload gets a problem. A batch whose zip has started only breaks off."""
    large = encoded(np.tile(astronaut[..., 0], (3, 3)), "PNG")
    settings = {"drain_delay_s": 0, "deadline_s": 0.1, "upload_grace_s": 60, "drain_batch_s": 5, "workers": 1}
    with serve(**settings) as server, ThreadPoolExecutor(1) as pool:
        url, files = f"{server.url}/colorize/batch?format=avif", [("file", large)] * 100
        batch = pool.submit(httpx.post, url, files=files, timeout=60)
        with socket.create_connection(("127.0.0.1", server.port), 30) as stalled:
            head = b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nx"
            stalled.sendall(head)
            has_inside(server, 1)
            until(lambda: total(scrape(server), "tomau_uploads") == 1)
            server.process.send_signal(signal.SIGTERM)
            answer = stalled.recv(65536)
            while piece := stalled.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"code": "draining"' in answer
        with pytest.raises(httpx.RemoteProtocolError):
            batch.result()
        assert server.process.wait(WAIT_S) in (0, -signal.SIGTERM)
        log = server.log.read_text()
        assert "POST /colorize 503" in log
        assert "POST /colorize/batch 200" in log
        assert "Traceback" not in log


AS_FIRST_PROCESS = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]


def is_there(tool: list[str]) -> bool:
    return shutil.which(tool[0]) is not None and not subprocess.run([*tool, "true"], check=False).returncode


def only_child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: bool(children.read_text()))
    return int(children.read_text())


@pytest.mark.skipif(not is_there(AS_FIRST_PROCESS), reason="no namespaces")
def test_sigterm_ends_the_first_process_of_a_container_while_it_starts(tmp_path: Path, models: Path) -> None:
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    command = [*AS_FIRST_PROCESS, str(Path(sys.executable).with_name("tomau")), "serve"]
    environment = environment_of(models=models, port=0, api_keys_file=keys)
    with (
        subprocess.Popen(command, env=environment) as process,
        keys.open("w"),
    ):  # `open` returns once the process has opened the other end
        os.kill(only_child(process), signal.SIGTERM)
        assert process.wait(WAIT_S) == 128 + signal.SIGTERM


@pytest.mark.skipif(not is_there(AS_FIRST_PROCESS), reason="no namespaces")
def test_sigterm_ends_the_first_process_of_a_container_with_zero_once_it_serves(serve: Serve) -> None:
    with serve(shell=f'exec {" ".join(AS_FIRST_PROCESS)} "$@"', drain_delay_s=0) as server:
        os.kill(only_child(server.process), signal.SIGTERM)
        assert server.process.wait(WAIT_S) == 0


def test_what_is_set_in_vain_is_told_at_start(serve: Serve) -> None:
    told = {"api_key": "secret", "max_batch_bytes": 1 << 30, "gpus": "0,1", "device": "cpu"}
    with serve(log_level="WARNING", **told) as server:
        log = server.log.read_text()
        assert "TOMAU_API_KEY is not a setting; did you mean TOMAU_API_KEYS?" in log
        assert "TOMAU_MAX_BATCH_BYTES=1073741824: a batch may have" in log
        assert "TOMAU_GPUS: no effect, because the models run on the CPU (TOMAU_DEVICE=cpu)" in log
        assert "secret" not in log


@pytest.mark.parametrize(
    ("files", "settings", "reason"),
    [
        ({}, {}, "the default model 'compact' is missing"),
        ({"compact.onnx": b"not a model"}, {}, "compact.onnx"),
        ({"compact.onnx": tint_model(contract(name="compact"), (1, 1), metadata={})}, {}, "tomau.contract"),
        ({"compact.onnx": tint_model(contract(name="compact"), (1, 1))}, {"DEFAULT_MODEL": "other"}, "'other'"),
        ({"compact.onnx": tint_model(contract(name="compact"), (1, 1))}, {"DEVICE": "cuda"}, "cuda"),
        ({"compact.onnx": tint_model(contract(name="compact"), (1, 1))}, {"DEVICE": "abacus"}, "TOMAU_DEVICE: "),
        ({"compact.onnx": tint_model(contract(name="compact"), (1, 1))}, {"PORT": "99999"}, "TOMAU_PORT: "),
        (
            {"compact.onnx": tint_model(contract(name="compact"), (1, 1))},
            {"HOST": "203.0.113.9"},
            "can't listen on 203.0.113.9:0: cannot assign requested address",
        ),
        (
            {"compact.onnx": tint_model(contract(name="compact"), (1, 1))},
            {"HOST": "no.such.host.invalid"},
            "can't listen on no.such.host.invalid:0: ",
        ),
    ],
)
def test_what_can_not_be_served_is_said_in_a_line(
    tmp_path: Path, files: dict[str, bytes], settings: dict[str, str], reason: str
) -> None:
    if settings.get("DEVICE") == "cuda" and Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    environment = environment_of(models=tmp_path, **{"PORT": 0, **settings})
    command = [str(Path(sys.executable).with_name("tomau")), "serve"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said(serve: Serve) -> None:
    with serve() as server:
        environment = environment_of(models=server.log.parent, port=server.port)
        (Path(server.log).parent / "compact.onnx").write_bytes(tint_model(contract(name="compact"), (1, 1)))
        command = [str(Path(sys.executable).with_name("tomau")), "serve"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        where = f"can't listen on 127.0.0.1:{server.port}: address already in use"
        assert ended.stderr.splitlines()[-1] == f"tomau: TOMAU_HOST and TOMAU_PORT: {where}"
