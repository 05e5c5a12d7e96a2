"""The app: its middleware, and the end of its lifespan."""

import asyncio
import os
import threading
from pathlib import Path

import httpx
import pytest

from service.runtime.thread_pool import is_any_detached
from service.settings import Settings
from service.web import app
from service.web.reload import Reloader
from tests.waiting import eventually, until

ONE = "first-key-0123456789"


class Exited(BaseException):
    """Raised instead of the exit of the process."""


def test_the_end_does_not_wait_for_a_reload_nor_breaks_it_off(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    def exit_(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr(os, "_exit", exit_)
    begun, door = threading.Event(), threading.Event()
    done = []

    def slow(_: Reloader) -> None:
        begun.set()
        done.append(door.wait(30))

    monkeypatch.setattr(Reloader, "reload", slow)
    served = app.create_app(Settings(models=models, device="cpu"))

    async def scene() -> None:
        async with app.lifespan(served):
            served.state.tomau.reloader.request()
            await eventually(begun.is_set)

    with pytest.raises(Exited):
        asyncio.run(scene())
    assert (codes, done) == ([0], [])
    door.set()
    until(lambda: not is_any_detached())
    codes.clear()

    async def nothing_to_wait_for() -> None:
        async with app.lifespan(served):
            pass

    asyncio.run(nothing_to_wait_for())
    assert not codes


def test_a_fault_is_answered_with_every_header_that_a_page_needs(models: Path) -> None:
    served = app.create_app(Settings(models=models, device="cpu", cors_origins="https://example.org", api_keys=ONE))

    async def broken() -> None:
        raise RuntimeError("out of luck")

    served.add_api_route("/broken", broken)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://tomau") as client:
            return await client.get("/broken", headers={"Origin": "https://example.org", "X-API-Key": ONE})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
