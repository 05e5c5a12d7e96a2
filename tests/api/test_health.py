"""`tomau health`, as a container's health check calls it."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import healthcheck
from service.settings import Settings
from tests.conftest import Server, free_port
from tests.waiting import WAIT_S


def ask(**settings: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("TOMAU_")}
    environment |= {f"TOMAU_{key}": str(value) for key, value in settings.items()}
    command = [str(Path(sys.executable).with_name("tomau")), "health"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.parametrize("host", [None, "", "127.0.0.1", "0.0.0.0"])
def test_a_service_that_is_ready(server: Server, host: str | None) -> None:
    ended = ask(PORT=server.port, **({} if host is None else {"HOST": host}))
    assert ended.returncode == 0, ended
    assert ended.stdout.startswith(f'127.0.0.1:{server.port}: 200 {{"status":"ready"')
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


@pytest.fixture
def not_ready() -> Iterator[int]:
    """The port of a service that is not ready."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /readyz HTTP/1.1\r\n")
                connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\ndraining")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(WAIT_S)


def test_a_service_that_is_not_ready(not_ready: int) -> None:
    ended = ask(PORT=not_ready)
    assert (ended.returncode, ended.stdout) == (1, f"127.0.0.1:{not_ready}: 503 draining\n")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PORT": free_port()}, "refused"),
        ({"PORT": "many"}, "many"),
        ({"PORT": "", "HOST": "no such host"}, "no such host:8000: "),
    ],
)
def test_no_service(settings: dict[str, object], reason: str) -> None:
    ended = ask(**settings)
    assert ended.returncode == 1
    assert reason in ended.stdout
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


def test_a_service_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthcheck, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("TOMAU_PORT", str(listener.getsockname()[1]))
        is_ready, said = healthcheck.check()
    assert not is_ready
    assert "timed out" in said


def test_it_knows_the_settings_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("TOMAU_")]:
        monkeypatch.delenv(name)
    settings = Settings()
    assert healthcheck.address() == (settings.host, settings.port)
    monkeypatch.setenv("tomau_host", "::")
    monkeypatch.setenv("Tomau_Port", "123")
    assert (Settings().host, Settings().port) == ("::", 123)
    assert healthcheck.address() == ("::1", 123)


def test_it_starts_fast() -> None:
    heavy = "{'cv2', 'onnxruntime', 'numpy', 'pydantic', 'fastapi', 'prometheus_client'}"
    code = f"""
import sys
from service import cli
try:
    cli.main(["health"])
finally:
    print(sorted({heavy} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert ended.stdout.splitlines()[-1] == "[]", ended
