"""Limits on header sections, pipelined requests, upgrades and the end of a connection."""

import asyncio
import contextlib
import json

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.web.connection import MAX_HEADER_BYTES
from tests.unit.web.harness import GET, Service, answer, echo, hello, play, send, until, whole
from tests.waiting import eventually


def test_an_idle_connection_is_closed_whatever_it_sent_before() -> None:
    """Empty lines do not keep a connection open, nor does the body of a request that has its response already."""

    async def scene(service: Service) -> None:
        lines, body = await service.connect(), await service.connect()
        await send(lines, GET)
        await until(lines, b"hello")
        await send(lines, b"\r\n")
        await send(body, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        await until(body, b"hello")
        await send(body, b"half of it")
        assert await whole(lines) == b""
        assert await whole(body) == b""
        await service.closes()

    play(scene, hello, head_s=0.3)


@pytest.mark.parametrize("complete", [False, True])
def test_a_head_that_is_too_large_is_refused(complete: bool) -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, b"GET / HTTP/1.1\r\nHost: x\r\nCookie: ")
        await send(client, b"x" * (MAX_HEADER_BYTES + 1))
        if complete:
            await send(client, b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                await send(client, b"x" * (1 << 16))
        found = await whole(client)
        assert found.startswith(b"HTTP/1.1 431 ")
        problem = json.loads(found.split(b"\r\n\r\n")[1])
        assert (problem["code"], problem["limit"]) == ("head_too_large", MAX_HEADER_BYTES)

    play(scene, hello)


def sized(total: int, kind: str) -> bytes:
    """Return a request whose header section has `total` bytes."""
    if kind == "many small headers":
        head = b"GET / HTTP/1.1\r\nHost: x\r\n"
        count = (total - len(head) - 10) // 6
        head += b"a: \r\n" * count
    else:
        start, end = {
            "a name": (b"GET / HTTP/1.1\r\nHost: x\r\n", b": y\r\n"),
            "a value": (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: ", b"\r\n"),
            "an address": (b"GET /", b" HTTP/1.1\r\nHost: x\r\n"),
            "a query": (b"GET /?", b" HTTP/1.1\r\nHost: x\r\n"),
        }.get(kind, (b"GET / HTTP/1.1\r\nHost: x\r\nA:", b"x\r\n"))
        fill = b" " if kind == "spaces" else b"x"
        head = start + fill * (total - len(start) - len(end) - 2) + end
    last = total - len(head) - 2
    return head + (b"" if last < 5 else b"b: " + b"x" * (last - 5) + b"\r\n") + b"\r\n"


@pytest.mark.parametrize("kind", ["many small headers", "a name", "a value", "an address", "a query", "spaces"])
@pytest.mark.parametrize("cut", [1000, 1 << 20], ids=["in packets", "at once"])
def test_a_head_may_have_just_as_much_as_it_may(kind: str, cut: int) -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        for _ in range(2):  # the limit holds for each request on its own
            await send(client, sized(MAX_HEADER_BYTES, kind))
            await until(client, b"hello")
        for total in (MAX_HEADER_BYTES + 1, 195 * 1024):
            client = await service.connect()
            await send(client, GET)
            await until(client, b"hello")
            request = sized(total, kind)
            assert len(request) == total
            with contextlib.suppress(ConnectionError):
                for start in range(0, total, cut):
                    await send(client, request[start : start + cut])
            assert (await whole(client)).startswith(b"HTTP/1.1 431 ")

    play(scene, hello)


def test_a_head_behind_another_request_is_bounded_too() -> None:
    async def scene(service: Service) -> None:
        for kind in ("many small headers", "a value", "an address"):
            client = await service.connect()
            with contextlib.suppress(ConnectionError):
                await send(client, GET + sized(195 * 1024, kind))
            found = await whole(client)
            assert found.count(b"HTTP/1.1 200") <= 1
            assert found.count(b"hello") <= 1

    play(scene, hello)


@pytest.mark.parametrize(
    "rest",
    [
        b"1;" + b"x" * 190_000 + b"\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\nTrailer: " + b"x" * 190_000 + b"\r\n\r\n",
        b"1\r\nx\r\n0\r\n" + b"a:b\r\n" * 38_000 + b"\r\n",
        b"1;x\r\nx\r\n" * 25_000 + b"0\r\n\r\n",
    ],
    ids=["an extension", "a trailer", "many trailers", "many extensions"],
)
def test_what_is_around_chunks_is_bounded_though_it_comes_at_once(rest: bytes) -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        with contextlib.suppress(ConnectionError):
            await send(client, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + rest)
        assert (await whole(client)).startswith(b"HTTP/1.1 431 ")

    play(scene, echo)


def test_bytes_that_are_barely_a_body_take_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser gets large parts of a body, even if chunk extensions have used up almost all of the limit."""
    calls = 0

    async def scene(service: Service) -> None:
        nonlocal calls
        client = await service.connect()
        start = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        around = MAX_HEADER_BYTES - len(start) - len(b"1000000;\r\n")
        await send(client, start + b"1000000;" + b"x" * around + b"\r\n")
        await eventually(lambda: service.connections == 1)
        parse = HttpToolsProtocol.data_received

        def counted(self: HttpToolsProtocol, data: bytes) -> None:
            nonlocal calls
            calls += 1
            parse(self, data)

        monkeypatch.setattr(HttpToolsProtocol, "data_received", counted)
        for _ in range(256):
            await send(client, bytes(1 << 16))
        await send(client, b"\r\n0\r\n\r\n")
        assert (await until(client, b".")).endswith(b"\r\n\r\n16777216.")

    play(scene, echo)
    assert calls < 5000


def test_a_trailer_is_no_header() -> None:
    seen = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)
        seen.extend(name for name, _ in scope["headers"])

    async def scene(service: Service) -> None:
        client = await service.connect()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await send(client, head + b"1\r\nx\r\n0\r\nX-API-Key: secret\r\n\r\n")
        await until(client, b"1.")

    play(scene, look)
    assert seen == [b"host", b"transfer-encoding"]


def test_trailers_and_chunk_extensions_are_bounded() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def scene(service: Service) -> None:
        for start in (b"1;", b"1\r\nx\r\n0\r\nTrailer: "):
            client = await service.connect()
            await send(client, head)
            await asyncio.sleep(0.01)
            await send(client, start)
            for _ in range(8):
                await send(client, b"x" * (1 << 15))
            assert (await whole(client)).startswith(b"HTTP/1.1 431 ")
        client = await service.connect()
        await send(client, head)
        for _ in range(50):
            await send(client, b"200\r\n" + b"x" * 512 + b"\r\n")
        await send(client, b"0\r\nA-Trailer: is fine\r\n\r\n")
        assert (await until(client, b".")).endswith(b"\r\n\r\n25600.")
        client.close()

    play(scene, echo)


def test_pipelined_requests_are_answered_in_turn() -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET * 2000)
        found = b""
        while found.count(b"HTTP/1.1 200") < 2000 or not found.endswith(b"hello"):
            found += await asyncio.get_running_loop().sock_recv(client, 1 << 16)
        client.close()

    play(scene, hello)


@pytest.mark.parametrize("bad", [b"GET / HTTP/1.1\r\nHo", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000])
def test_a_bad_request_does_not_take_the_answer_of_the_one_before(bad: bytes) -> None:
    """If the refusal were sent immediately, the client would take it for the earlier response."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await go_on.wait()
        await answer(send, b"hello")

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, GET)
        await begun.wait()
        await send(client, bad)
        await asyncio.sleep(0.5)  # The second header section is late then.
        go_on.set()
        found = await whole(client)
        assert found.startswith(b"HTTP/1.1 200 ")
        assert found.endswith(b"\r\n\r\nhello")

    play(scene, slow, head_s=0.2)


def test_a_body_that_is_no_body_is_refused_at_once() -> None:
    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        await asyncio.sleep(0.05)
        await send(client, b"lo, this is no chunk")
        found = await whole(client)
        assert found.startswith(b"HTTP/1.1 400 ")
        assert json.loads(found.split(b"\r\n\r\n")[1])["code"] == "invalid_request"

    play(scene, echo)


@pytest.mark.parametrize("begun", [False, True])
def test_the_last_answer_before_the_end_says_so(begun: bool) -> None:
    """Without this, the client would send its next request on a connection that is about to be closed."""
    go_on = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(send, b"hello")

    async def scene(service: Service) -> None:
        client = await service.connect()
        if not begun:
            service.state.draining = True
        await send(client, GET)
        await eventually(lambda: bool(service.server.server_state.tasks))
        if begun:
            for connection in service.server.server_state.connections:
                connection.disable_keep_alive()
        go_on.set()
        found = await whole(client)
        assert b"\r\nconnection: close\r\n" in found
        assert found.endswith(b"\r\n\r\nhello")

    play(scene, slow)


@pytest.mark.parametrize("offer", [b"h2c\r\nHTTP2-Settings: AAMAAABk", b"websocket"])
@pytest.mark.parametrize("size", [1, 1000])
def test_an_offer_to_upgrade_costs_nobody_a_body(offer: bytes, size: int) -> None:
    """curl --http2 and Java's client offer an upgrade with their first request."""
    lines = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer + b"\r\n"
    by_length = b"POST /a?b HTTP/1.1\r\n" + lines + b"Content-Length: 5\r\n\r\n12345"
    in_chunks = b"POST / HTTP/1.1\r\n" + lines + b"Transfer-Encoding: chunked\r\n\r\n3\r\n123\r\n0\r\n\r\n"
    without = b"GET / HTTP/1.1\r\n" + lines + b"\r\n"

    async def scene(service: Service) -> None:
        client = await service.connect()
        for request, answered in ((by_length, b"5."), (in_chunks, b"3."), (without, b"0."), (by_length, b"5.")):
            for start in range(0, len(request), size):
                await send(client, request[start : start + size])
                await asyncio.sleep(0)
            assert (await until(client, b".")).endswith(b"\r\n\r\n" + answered)
        await send(client, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await whole(client)).startswith(b"HTTP/1.1 400 ")

    play(scene, echo)


def test_who_asks_before_sending_is_told_to_go_on_or_refused() -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

    async def scene(service: Service) -> None:
        client = await service.connect()
        await send(client, head)
        await until(client, b"HTTP/1.1 100 Continue\r\n\r\n")
        await send(client, b"12345")
        await until(client, b"5.")
        client.close()

    play(scene, echo)
