"""The protocol under a small ASGI app: what a client may do to a connection, and what becomes of it."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ClientGone
from service.observability.metrics import Metrics
from service.observability.middleware import REFUSED
from service.runtime.admission import Slots
from service.settings import Settings
from service.web import connection as connection_module
from service.web.connection import MAX_HEADER_BYTES, LimitedProtocol
from service.web.overload import ConnectionLimitApp
from tests.waiting import WAIT_S, eventually

BIG = 32 << 20


class Body(bytearray):
    """Bytes whose end can be seen."""


class Service:
    """A server around one app, in this thread's event loop."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.unread = Slots("bytes", settings.max_unread_bytes)
        self.state = SimpleNamespace(
            settings=settings,
            metrics=Metrics([]),
            unread=self.unread,
            connections=Slots("connections", settings.max_connections),
            draining=False,
        )
        limits = {"state": self.state, "limit_app": ConnectionLimitApp(app, settings, self.state.metrics), "idle": {}}
        protocol = type("Limited", (LimitedProtocol,), limits)
        options = {"ws": "none", "lifespan": "off", "log_config": None, "access_log": False}
        config = uvicorn.Config(app, http=protocol, timeout_keep_alive=settings.keep_alive_s, **options)
        config.load()
        self.clients: list[socket.socket] = []
        self.server = uvicorn.Server(config)
        self.server.lifespan = config.lifespan_class(config)

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self, *, window: int | None = None) -> socket.socket:
        client = socket.socket()
        if window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.setblocking(False)
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        return client

    async def closes(self) -> None:
        """Returns when all connections are gone."""
        await eventually(lambda: not self.connections)


def play(
    scene: Callable[[Service], Awaitable[None]],
    app: ASGIApp,
    *,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
    **settings: object,
) -> None:
    async def main() -> None:
        service = Service(app, Settings(**settings))
        listener = socket.create_server(("127.0.0.1", 0))
        service.address = listener.getsockname()
        await service.server.startup(sockets=[listener])
        try:
            await asyncio.wait_for(scene(service), WAIT_S)
        finally:
            for one in service.server.servers:
                one.close()
            for connection in list(service.server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0.05)
            for one in (listener, *service.clients):
                one.close()
        assert service.unread.in_use == 0

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


async def whole(client: socket.socket) -> bytes:
    """All that comes until the end, which may be a reset."""
    loop = asyncio.get_running_loop()
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), WAIT_S):
            found += piece
    client.close()
    return found


async def until(client: socket.socket, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        piece = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 16), WAIT_S)
        assert piece, found
        found += piece
    return found


async def send(client: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(client, data)


async def answer(send: Send, *parts: bytes) -> None:
    length = str(sum(map(len, parts))).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"hello")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, and answers how long it was."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    await answer(send, f"{size}.".encode())


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


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
    assert "reads too little of its answer" in caplog.text


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
    """In many times as long as a client may take nothing at all, and though the kernel asks for more but rarely."""
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
    """Else each few bytes would buy it as long as a client may take nothing at all."""
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
    assert "reads too little of its answer" in caplog.text


def test_a_stream_that_is_read_slowly_comes_whole() -> None:
    """As much waits for the client at each look, though it takes some all the time."""
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


def test_what_is_taken_buys_time_though_as_much_waits_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a stream, of which each piece is written as soon as there is room for it."""
    ended = []
    transport = SimpleNamespace(written=0, get_write_buffer_size=lambda: 1 << 16, abort=lambda: ended.append(True))

    async def scene(service: Service) -> None:
        await service.connect()
        await eventually(lambda: service.connections == 1)
        (connection,) = service.server.server_state.connections
        monkeypatch.setattr(connection, "transport", transport)
        for written, ends in ((1 << 30, False), (2 << 30, False), (2 << 30, True)):
            transport.written = written
            connection._read_deadline = 0.0
            connection._check_reading()
            assert bool(ended) is ends
        monkeypatch.undo()

    monkeypatch.setattr(connection_module, "_kernel_unread_bytes", lambda _: 0)
    play(scene, hello, min_read_rate=1)


def test_an_idle_connection_is_closed_whatever_it_sent_before() -> None:
    """Neither empty lines nor the body of a request that was answered without it keep one open."""

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
    """A request whose head has so many bytes."""
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
        for _ in range(2):  # with what came before forgotten
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


def test_bytes_that_are_barely_a_body_take_no_longer() -> None:
    """A piece of a body is given to the parser as a whole, however near its limit what was around it is."""
    calls = 0

    async def scene(service: Service) -> None:
        nonlocal calls
        client = await service.connect()
        start = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        around = MAX_HEADER_BYTES - len(start) - len(b"1000000;\r\n")
        await send(client, start + b"1000000;" + b"x" * around + b"\r\n")
        await eventually(lambda: service.connections == 1)
        (connection,) = service.server.server_state.connections
        parse = connection._parse

        def counted(data: bytes) -> None:
            nonlocal calls
            calls += 1
            parse(data)

        connection._parse = counted
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
    """Were it answered at once, its refusal would be read as that answer."""
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
        await asyncio.sleep(0.5)  # The head of the second one is late then.
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
    """First that of the longest silent, whether it has had an answer or never asked."""

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
    assert caplog.text.count("more connections at once than TOMAU_MAX_CONNECTIONS=2") == 1


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
    """They have to send their request soon, and beyond half of the files to spare there are no more of them."""

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


@pytest.mark.parametrize("begun", [False, True])
def test_the_last_answer_before_the_end_says_so(begun: bool) -> None:
    """Else the client would send its next request on a connection that is about to be closed."""
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


@pytest.mark.parametrize("offer", [b"h2c\r\nHTTP2-Settings: AAMAAABk", b"websocket"])
@pytest.mark.parametrize("size", [1, 1000])
def test_an_offer_to_upgrade_costs_nobody_a_body(offer: bytes, size: int) -> None:
    """curl --http2 and Java's client make it with every first request."""
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


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


BODY = b"POST / HTTP/1.%d\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345"


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
    """By the reset that comes then, though nothing is read or written."""
    gone = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await is_gone(receive)
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


async def is_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def test_who_closes_its_side_long_after_its_request_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is answered. A stream that has begun goes on, and shows whether the client is there."""
    gone = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.6)
            await send({"type": "http.response.body", "body": b"hello", "more_body": False})
            return
        await is_gone(receive)
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
    """It looked like one that had closed its side only, until it was sent something."""
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
        hung_up = asyncio.create_task(is_gone(receive))
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
