"""Connections above the limit."""

import asyncio
import contextlib
import logging
import socket

import pytest
from starlette.types import Receive, Scope, Send

from service.web import connection as connection_module
from tests.unit.web.harness import GET, Service, answer, hello, play, send, until, whole
from tests.waiting import eventually


def test_a_connection_too_many_is_told_so_and_may_still_ask_for_health() -> None:
    async def scene(service: Service) -> None:
        first = await service.connect()
        await send(first, GET)
        await until(first, b"hello")
        for path, status in ((b"/", b"503"), (b"/livez", b"200")):
            client = await service.connect()
            await send(client, GET.replace(b" / ", b" " + path + b" "))
            found = await whole(client)
            assert found.startswith(b"HTTP/1.1 " + status), found
            assert b"connection: close" in found
            assert (b'"overloaded"' in found, b"retry-after: 1" in found) == (status == b"503",) * 2
        await send(first, GET)
        await until(first, b"hello")
        first.close()
        await service.closes()
        again = await service.connect()
        await send(again, GET)
        await until(again, b"hello")
        again.close()

    play(scene, hello, max_connections=1)


def is_closed(connection: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError, ConnectionError):
        return connection.recv(1) == b""
    return False


def test_a_connection_too_many_takes_the_place_of_a_silent_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The longest-idle connection is closed first, whether it has had a response or never sent a request."""

    async def scene(service: Service) -> None:
        kept, mute = await service.connect(), await service.connect()
        await send(kept, GET)
        await until(kept, b"hello")
        await eventually(lambda: service.connections == 2)
        monkeypatch.setattr(connection_module, "MIN_IDLE_S", -1.0)
        for gone in (mute, kept):
            client = await service.connect()
            await send(client, GET)
            assert (await until(client, b"hello")).startswith(b"HTTP/1.1 200 ")
            assert await whole(gone) == b""
            assert service.connections == 2
            client.close()
            await eventually(lambda: service.connections == 1)
            await service.connect()
            await eventually(lambda: service.connections == 2)

    monkeypatch.setattr(connection_module, "MIN_IDLE_S", 1000.0)
    with caplog.at_level(logging.WARNING):
        play(scene, hello, max_connections=2)
    assert caplog.text.count("more than TOMAU_MAX_CONNECTIONS=2 connections") == 1


def test_one_too_many_takes_but_the_place_of_another_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(send, b"hello")

    async def scene(service: Service) -> None:
        busy = await service.connect()
        await send(busy, GET)
        await eventually(lambda: bool(service.server.server_state.tasks))
        mute = await service.connect()
        await eventually(lambda: service.connections == 2)
        refused = await service.connect()
        await send(refused, GET)
        assert (await whole(refused)).startswith(b"HTTP/1.1 503 ")
        assert await whole(mute) == b""
        go_on.set()
        await until(busy, b"hello")

    monkeypatch.setattr(connection_module, "MIN_IDLE_S", -1.0)
    play(scene, slow, max_connections=1)


def test_connections_too_many_leave_files_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They must send a request soon, and they may use only half of the spare file descriptors."""

    async def scene(service: Service) -> None:
        first = await service.connect()
        await eventually(lambda: service.connections == 1)
        many = [await service.connect() for _ in range(6)]
        await eventually(lambda: service.connections == 3)
        assert not is_closed(many[0])
        assert [await whole(one) for one in many] == [b""] * 6
        assert service.connections == 1
        assert not is_closed(first)

    monkeypatch.setattr(connection_module, "MIN_IDLE_S", 1000.0)
    monkeypatch.setattr(connection_module, "SPARE_FILES", 4)
    monkeypatch.setattr(connection_module, "OVERLOAD_HEADER_S", 1.0)
    play(scene, hello, max_connections=1, head_s=60)


def test_a_page_may_read_that_there_are_too_many_connections() -> None:
    origin = b"Origin: https://example.org\r\n\r\n"
    preflight = b"OPTIONS / HTTP/1.1\r\nHost: x\r\nAccess-Control-Request-Method: POST\r\n" + origin

    async def scene(service: Service) -> None:
        first = await service.connect()
        await send(first, GET)
        await until(first, b"hello")
        for request, status in ((preflight, b"200"), (GET[:-2] + origin, b"503")):
            client = await service.connect()
            await send(client, request)
            found = await whole(client)
            assert found.startswith(b"HTTP/1.1 " + status), found
            assert b"access-control-allow-origin: https://example.org\r\n" in found
            assert b"x-request-id: " in found
        first.close()

    play(scene, hello, max_connections=1, cors_origins="https://example.org")
