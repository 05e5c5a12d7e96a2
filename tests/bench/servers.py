"""The servers under test: how each is started, when it is ready, how it is stopped.

Each server has its own process group, so that all its processes can be stopped even if the first one has ended.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.bench import model

ROOT = Path(__file__).parents[2]
# A start on a GPU takes longer: it loads CUDA, creates a session per batch size, and runs cuDNN's search.
START_S = 120.0
STOP_S = 10.0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ServerFailed(Exception):
    """A server did not start, or ended by itself. The text is the end of its log."""


@dataclass(frozen=True)
class Kind:
    """The command and environment of a server, from its port and the model's file, and its readiness path."""

    title: str
    command: Callable[[int, Path], list[str]]
    environment: Callable[[int, Path], dict[str, str]]
    ready: str = "/health"


@dataclass
class Server:
    """A server that is ready, and the seconds until it was."""

    kind: Kind
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    ready_s: float = field(default=0.0)

    @property
    def pid(self) -> int:
        return self.process.pid

    def failure(self) -> ServerFailed:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return ServerFailed(lines[-1] if lines else f"ended with code {self.process.poll()} and said nothing")


def _tomau(_port: int, _model: Path) -> list[str]:
    # The installed command may belong to another checkout.
    return [sys.executable, "-c", "from service.cli import main; main()", "serve"]


def _tomau_environment(port: int, file: Path) -> dict[str, str]:
    return {
        "TOMAU_PORT": str(port),
        "TOMAU_MODELS": str(file.parent),
        "TOMAU_DEFAULT_MODEL": model.NAME,
        "TOMAU_DEVICE": "cpu",
        "TOMAU_DRAIN_DELAY_S": "0",
    }


# These set <malloc.h>'s thresholds, so that the process keeps freed memory, as tomau does.
HEAP_KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 28)}


def _plain(workers: int, heap: Mapping[str, str] = MappingProxyType({})) -> Kind:
    def command(port: int, _model: Path) -> list[str]:
        options = ["--port", str(port), "--workers", str(workers), "--no-access-log", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", "tests.bench.peers.plain:app", *options]

    def environment(_port: int, file: Path) -> dict[str, str]:
        return {"BENCH_MODEL": str(file), "BENCH_THREADS": str(max(1, CORES // workers)), **heap}

    plural = "s" if workers > 1 else ""
    title = f"FastAPI, one `run` a request, {workers} worker{plural}"
    return Kind(f"{title}, heap kept" if heap else title, command, environment)


def _lit(title: str, *options: str) -> Kind:
    def command(port: int, file: Path) -> list[str]:
        return [sys.executable, "-m", "tests.bench.peers.lit", str(file), str(port), *options]

    return Kind(title, command, lambda _port, _model: {})


KINDS: dict[str, Kind] = {
    "tomau": Kind("tomau", _tomau, _tomau_environment, "/readyz"),
    "plain-1": _plain(1),
    "plain-2": _plain(2),
    "plain-2-heap": _plain(2, HEAP_KEPT),
    "litserve": _lit("LitServe"),
    "litserve-batch": _lit("LitServe, batches of 8", "--batch", "8"),
}
DEFAULT = ("tomau", "plain-1", "plain-2", "litserve")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(kind: Kind, port: int, file: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of this process without its own settings of tomau, plus what the server needs."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("TOMAU_")}
    given = kind.environment(port, file)
    own = {f"TOMAU_{key.upper()}": value for key, value in settings.items()} if kind is KINDS["tomau"] else {}
    return inherited | given | own | {"ORT_DISABLE_TELEMETRY": "1"}


def _is_ready(server: Server) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", server.kind.ready)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_until_ready(server: Server, started: float) -> None:
    while not _is_ready(server):
        if server.process.poll() is not None:
            raise server.failure()
        if time.monotonic() - started > START_S:
            raise ServerFailed(f"not ready after {START_S:.0f} s; {server.failure()}")
        time.sleep(0.02)
    server.ready_s = time.monotonic() - started


def _signal(server: Server, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)


def _is_alive(server: Server) -> bool:
    """Return whether any process of the group is left."""
    server.process.poll()
    try:
        os.killpg(server.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _stop(server: Server) -> None:
    _signal(server, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while _is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    _signal(server, signal.SIGKILL)
    server.process.wait()


@contextmanager
def running(name: str, file: Path, log: Path, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server with a model file, wait until it is ready, and stop it at the end of the block.

    settings: tomau's, by field name. Raises ServerFailed.
    """
    kind, port = KINDS[name], free_port()
    environment = _environment(kind, port, file, settings or {})
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            kind.command(port, file), cwd=ROOT, env=environment, stdout=output, stderr=output, process_group=0
        )
    server = Server(kind, process, port, log)
    try:
        _wait_until_ready(server, started)
        yield server
    finally:
        _stop(server)


def load(server: Server, paths: Sequence[Path], seconds: float, clients: int, *options: str) -> dict[str, Any]:
    """Return the Result of `tests.bench.load` with closed-loop clients. Raises ServerFailed on any error."""
    command = [sys.executable, "-m", "tests.bench.load", server.port, *paths, "--seconds", seconds]
    command += ["--clients", clients, *options]
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, check=True)
    seen: dict[str, Any] = json.loads(ended.stdout)
    if seen["errors"] or not seen["answered"]:
        raise ServerFailed(f"answered {len(seen['answered'])}, errors: {seen['errors']}")
    return seen
