"""Clients that read their response slowly, or not at all."""

import asyncio
import contextlib
import gc
import logging
import weakref

import pytest
from starlette.types import Receive, Scope, Send

from service.web.read_deadline import ReadDeadline
from tests.unit.web.harness import GET, Service, answer, play, send, whole
from tests.waiting import eventually

BIG = 32 << 20


class Body(bytearray):
    """Bytes with weak references, so that the test sees when they are freed."""


def test_an_answer_that_is_not_read_is_dropped_with_its_memory(caplog: pytest.LogCaptureFixture) -> None:
    bodies: list[weakref.ref[Body]] = []

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(BIG)
        bodies.append(weakref.ref(body))
        await answer(send, body)

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        await eventually(lambda: service.unread.in_use > 0)
        assert BIG / 2 < service.unread.in_use <= BIG + 1000
        gc.collect()
        assert bodies[0]() is not None
        await service.closes()
        assert service.unread.in_use == 0
        await eventually(lambda: gc.collect() >= 0 and bodies[0]() is None)
        assert len(await whole(client)) < BIG

    with caplog.at_level(logging.INFO):
        play(scene, big, write_s=0.3)
    assert "reads its response too slowly" in caplog.text


def test_a_stream_that_is_not_read_ends_too() -> None:
    ended = []

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
        ended.append(True)

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        await service.closes()
        await eventually(lambda: bool(ended))
        client.close()

    play(scene, stream, write_s=0.3)
    assert ended


def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    """It takes longer than the timeout in all, and the kernel asks for more data only rarely."""
    size = 6 << 20

    async def scene(service: Service) -> None:
        client = await service.connect(window=1 << 16)
        await send(client, GET)
        loop = asyncio.get_running_loop()
        started = loop.time()
        got = 0
        while got < size:
            piece = await loop.sock_recv(client, 1 << 15)
            assert piece, f"cut off after {got} bytes and {loop.time() - started:.1f} s"
            got += len(piece)
            await asyncio.sleep(0.02)
        assert loop.time() - started > 3, "three times as long"
        client.close()

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, bytes(size))

    play(scene, big, write_s=1)


def test_a_client_that_reads_too_slowly_gets_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """A few bytes must not extend the deadline by the whole timeout."""
    size = 32 << 20

    async def scene(service: Service) -> None:
        client = await service.connect(window=1 << 16)
        await send(client, GET)
        got = 0
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.get_running_loop().sock_recv(client, 1 << 15):
                got += len(piece)
                await asyncio.sleep(0.05)  # at most, 640 KiB a second
        assert got < size
        client.close()

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, bytes(size))

    with caplog.at_level(logging.INFO):
        play(scene, big, write_s=0.4, min_read_rate=1 << 20)
    assert "reads its response too slowly" in caplog.text


def test_a_stream_that_is_read_slowly_comes_whole() -> None:
    """The same number of bytes is unread at each check, although the client reads all the time."""
    piece, pieces = bytes(1 << 16), 96

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, *[piece] * pieces)

    async def scene(service: Service) -> None:
        client = await service.connect(window=1 << 16)
        loop, got = asyncio.get_running_loop(), 0
        await send(client, GET)
        while got < len(piece) * pieces:
            came = await loop.sock_recv(client, 1 << 15)
            assert came, f"cut off after {got} bytes"
            got += len(came)
            await asyncio.sleep(0.02)
        client.close()

    play(scene, stream, write_s=1)


def test_each_byte_that_is_read_extends_the_deadline() -> None:
    deadline = ReadDeadline(timeout_s=4, min_rate=10, now=0)
    assert deadline.check_interval_s == 1
    assert not deadline.is_exceeded(4.9, read=0, unread=1)
    assert deadline.is_exceeded(5, read=0, unread=1)
    # A stream writes its next chunk as soon as there is room, so the same number of bytes is always unread.
    deadline = ReadDeadline(timeout_s=4, min_rate=10, now=0)
    for now, read in ((3, 5), (4, 10), (5, 15)):
        assert not deadline.is_exceeded(now, read=read, unread=1000)
    assert not deadline.is_exceeded(6.4, read=15, unread=1000)
    assert deadline.is_exceeded(6.5, read=15, unread=1000)


def test_the_deadline_is_never_later_than_the_timeout_after_a_check() -> None:
    deadline = ReadDeadline(timeout_s=4, min_rate=10, now=0)
    assert not deadline.is_exceeded(1, read=10**9, unread=1)
    assert deadline.is_exceeded(5, read=10**9, unread=1)


def test_a_client_that_has_read_all_gets_a_new_deadline() -> None:
    deadline = ReadDeadline(timeout_s=4, min_rate=10, now=0)
    assert not deadline.is_exceeded(100, read=50, unread=0)
    assert not deadline.is_exceeded(104.9, read=50, unread=1)
    assert deadline.is_exceeded(105, read=50, unread=1)
