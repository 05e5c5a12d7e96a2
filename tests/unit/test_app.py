import asyncio
import logging
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import uvicorn

from service import app
from service.problems import ClientGone
from service.routes import State
from service.server import Server
from service.settings import Settings
from tests.waiting import eventually


class Ended(BaseException):
    pass


def test_a_service_whose_workers_are_all_stuck_ends_itself(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    codes = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(app, "STUCK_CHECK_S", 0.02)
    door = threading.Event()
    settings = Settings(models=models, device="cpu", workers=2, deadline_s=0.4, stuck_s=1.2)
    state: State = app.create_app(settings).state.tomau

    async def gone() -> None:
        await asyncio.sleep(2)

    async def scene() -> None:
        jobs = [
            asyncio.create_task(state.workers.run(lambda _: door.wait(10), deadline=float("inf"), gone=gone))
            for _ in range(2)
        ]
        await eventually(lambda: state.workers.busy == 2)
        assert state.obstacle() is None
        await asyncio.sleep(0.5)
        assert state.obstacle() == "no worker has finished its photo in time"
        assert not state.is_stuck()
        with pytest.raises(Ended):
            await asyncio.wait_for(app._watch(state), 5)
        door.set()
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert all(outcome is True or isinstance(outcome, ClientGone) for outcome in outcomes)

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(scene())
    assert codes == [app.EXIT_STUCK]
    assert "all 2 workers are stuck" in caplog.text


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
    state.batches.take(batches)
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


def test_a_sigterm_before_it_serves_ends_it_at_once(models: Path) -> None:
    settings = Settings(models=models, device="cpu", drain_delay_s=5)
    server = Server(app.create_app(settings), settings)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
