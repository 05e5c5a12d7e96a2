"""The server: signals, draining, the switch interval of threads."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest
import uvicorn

from service.settings import Settings
from service.web import app
from service.web.server import Server
from service.web.state import State


@pytest.mark.parametrize(("batches", "seconds"), [(0, 7), (1, 60)])
def test_a_batch_has_longer_to_finish_than_a_photo(
    models: Path, monkeypatch: pytest.MonkeyPatch, batches: int, seconds: int
) -> None:
    settings = Settings(models=models, device="cpu", deadline_s=2, drain_batch_s=60)
    served = app.create_app(settings)
    state: State = served.state.tomau
    server = Server(served, settings)
    given = []

    async def shutdown(self: uvicorn.Server, sockets: object = None) -> None:
        given.append(self.config.timeout_graceful_shutdown)

    monkeypatch.setattr(uvicorn.Server, "shutdown", shutdown)
    state.batches.acquire(batches)
    asyncio.run(server.shutdown())
    assert given == [seconds]


def test_threads_come_by_the_lock_while_it_serves_and_only_then(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models=models, device="cpu")
    server = Server(app.create_app(settings), settings)
    before, meanwhile = sys.getswitchinterval(), []

    def serve(*_: object) -> None:
        meanwhile.append(sys.getswitchinterval())
        raise SystemExit(3)

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    with pytest.raises(SystemExit):
        server.run()
    assert meanwhile[0] < before / 10
    assert sys.getswitchinterval() == before


def test_a_connection_is_kept_longer_than_by_the_usual_proxies(models: Path) -> None:
    settings = Settings(models=models, device="cpu")
    assert Server(app.create_app(settings), settings).config.timeout_keep_alive == 75


def test_a_sigterm_before_it_serves_ends_it_at_once(models: Path) -> None:
    settings = Settings(models=models, device="cpu", drain_delay_s=5)
    server = Server(app.create_app(settings), settings)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
