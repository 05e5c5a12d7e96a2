"""HTTP/1.0 clients, half-closed connections and resets."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone
from service.observability.middleware import REFUSED
from service.web import connection as connection_module
from service.web.disconnect import wait_for_disconnect
from tests.unit.web.harness import GET, Service, answer, echo, play, send, until, whole
from tests.waiting import eventually

BODY = b"POST / HTTP/1.%d\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345"


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("length", [[], [(b"Content-Length", b"10")]])
def test_an_old_client_gets_no_chunks(method: bytes, length: list[tuple[bytes, bytes]]) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for more in (True, False):
            await send({"type": "http.response.body", "body": b"hello", "more_body": more})

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, method + b" / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await whole(client)).partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        assert b"transfer-encoding" not in head
        assert (b"content-length: 10" in head) is bool(length)
        assert body == (b"" if method == b"HEAD" else b"hellohello")

    play(scene, stream)


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize(
    ("request_", "answers"),
    [(GET, [b"0."]), (BODY % 1, [b"5."]), (BODY % 0, [b"5."]), (GET + BODY % 1 + GET, [b"0.", b"5.", b"0."])],
    ids=["no body", "a body", "HTTP/1.0", "several"],
)
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_client_that_closes_its_side_is_answered(
    request_: bytes, answers: list[bytes], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    closed = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await closed.wait()
        await asyncio.sleep(0.05)
        await echo(scope, receive, send)

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, request_)
        half_close(client)
        closed.set()
        found = await whole(client)
        assert [part[:2] for part in found.split(b"\r\n\r\n")[1:]] == answers
        assert b"connection: close" in found
        await service.closes()

    play(scene, slow, loop=loop)


def test_a_stream_goes_to_a_client_that_has_closed_its_side() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, *[bytes(1 << 16)] * 32)

    async def scene(service: Service) -> None:
        client = await service.connect(window=1 << 16)
        await send(client, GET)
        half_close(client)
        assert (await whole(client)).count(b"\0") == 1 << 21

    play(scene, stream)


@pytest.mark.parametrize("sent", [b"", GET[:20], (BODY % 1)[:-2], b"\r\n"])
def test_half_a_request_is_none_when_its_client_closes_its_side(sent: bytes) -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, sent)
        half_close(client)
        assert await whole(client) == b""
        await service.closes()

    play(scene, echo)


def test_a_client_that_is_gone_after_it_has_closed_its_side_is_seen() -> None:
    """The reset is noticed, although nothing is read or written."""
    gone = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await wait_for_disconnect(receive)
        gone.set()

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        half_close(client)
        await asyncio.sleep(2 * connection_module.HALF_CLOSE_CHECK_S)
        assert not gone.is_set()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await asyncio.wait_for(gone.wait(), 10)
        await service.closes()

    play(scene, wait)


def test_who_closes_its_side_long_after_its_request_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds before the response has started. A stream that has started continues."""
    gone = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.6)
            await send({"type": "http.response.body", "body": b"hello", "more_body": False})
            return
        await wait_for_disconnect(receive)
        gone.set()

    async def scene(service: Service) -> None:
        client, other = await service.connect(), await service.connect()
        await send(client, GET)
        await send(other, GET.replace(b" / ", b" /stream "))
        await until(other, b"\r\n\r\n")
        await asyncio.sleep(0.3)
        for one in (client, other):
            half_close(one)
        await asyncio.wait_for(gone.wait(), 10)
        assert await whole(client) == b""
        assert b"hello" in await whole(other)

    monkeypatch.setattr(connection_module, "HALF_CLOSE_S", 0.1)
    play(scene, wait)


def test_a_client_that_is_gone_when_its_answer_is_ready_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Until the server sends data, it looks like a client that has closed only its sending side."""
    closed = asyncio.Event()
    seen = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await closed.wait()
        await asyncio.sleep(0.1)
        await answer(send, bytes(1 << 22))
        seen.append(type(scope.get(REFUSED)))

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        await eventually(lambda: bool(service.server.server_state.tasks))
        client.close()
        closed.set()
        await eventually(lambda: bool(seen))
        await service.closes()

    with caplog.at_level(logging.ERROR):
        play(scene, slow)
    assert seen == [ClientGone]
    assert not caplog.records


def test_a_client_that_is_gone_is_seen_at_the_first_bytes_that_are_sent_to_it() -> None:
    written = 0

    async def drip(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200, "headers": []})
        hung_up = asyncio.create_task(wait_for_disconnect(receive))
        while not hung_up.done():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            written += 1
            await asyncio.sleep(0.1)

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        await eventually(lambda: written > 0)
        client.close()
        await service.closes()

    play(scene, drip)
    assert written < 50
