"""What lies between the protocol and its client: the transport's figures, resets, HTTP/1.0."""

import asyncio
import select
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class CountingTransport:
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = 0

    def write(self, data: bytes) -> None:
        """asyncio."""
        self.written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def without_chunked_encoding(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """HTTP/1.0 has none (RFC 9112, 6.1): an answer of unknown length ends with its connection."""

    async def unchunked(scope: Scope, receive: Receive, send: Send) -> None:
        is_endless = False

        async def send_plain(message: Message) -> None:
            nonlocal is_endless
            if message["type"] == "http.response.start":
                is_endless = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if is_endless:
                    cycle.chunked_encoding = False
            elif is_endless:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return unchunked


def is_reset(transport: asyncio.Transport) -> bool:
    """Whether the peer has reset the connection, or both sides have closed it."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # errors and hang-ups are always told
    return bool(poll.poll(0))


async def wait_for_reset(transport: asyncio.Transport, seconds: float, pause: float) -> bool:
    """Wait so many seconds at most for a reset. Return whether it came; it is looked for after each pause."""
    ends = time.monotonic() + seconds
    while not transport.is_closing() and not is_reset(transport):
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(pause)
    return True
