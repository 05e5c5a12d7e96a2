"""A server for a small ASGI app, and clients that are plain sockets."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from service.observability.metrics import Metrics
from service.runtime.admission import Slots
from service.settings import Settings
from service.web.connection import LimitedProtocol
from service.web.overload import ConnectionLimitApp
from tests.waiting import WAIT_S, eventually

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Service:
    """A server for one app, in the event loop of this thread."""

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
        client.settimeout(0)
        self.clients.append(client)
        await asyncio.get_running_loop().sock_connect(client, self.address)
        return client

    async def closes(self) -> None:
        """Wait until all connections are closed."""
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
    """Return all bytes up to the end of the connection, which may be a reset."""
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
    """Read the whole body, and respond with its length."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    await answer(send, f"{size}.".encode())
