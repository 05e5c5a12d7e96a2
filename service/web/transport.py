"""Helpers of the protocol: byte counts of a transport, resets, HTTP/1.0, responses without an app."""

import asyncio
import json
import select
import sys
import time
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import Problem
from service.web import security_headers

if sys.platform == "linux":
    import fcntl
    import termios


class CountingTransport:
    """A transport that counts the bytes written to it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.written = 0

    def write(self, data: bytes) -> None:
        """Count the data, and write it (asyncio)."""
        self.written += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def unread_in_kernel(transport: asyncio.Transport) -> int:
    """Return the bytes in the kernel's send buffer that the client has not acknowledged. 0 where this is unknown.

    A slow reader would else seem to have stopped. The kernel asks for more data only when a third of its buffer is
    free, and the buffer may have megabytes.
    """
    if sys.platform == "linux":
        file = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return 0


def problem_response(problem: Problem, request_id: str) -> bytes:
    """Return an HTTP/1.1 response that has a problem as its body and closes the connection."""
    body = json.dumps(problem.body(request_id)).encode()
    security = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in security_headers.missing_headers([]))
    headers = (
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\n"
        f"{security}"
        "connection: close\r\n\r\n"
    )
    return headers.encode() + body


def without_chunked_encoding(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """Return an app for HTTP/1.0, which has no chunked encoding (RFC 9112, 6.1).

    A response of unknown length ends with the end of its connection.
    """

    async def unchunked(scope: Scope, receive: Receive, send: Send) -> None:
        has_no_length = False

        async def send_plain(message: Message) -> None:
            nonlocal has_no_length
            if message["type"] == "http.response.start":
                has_no_length = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if has_no_length:
                    cycle.chunked_encoding = False
            elif has_no_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return unchunked


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether the client has reset the connection, or both sides have closed it."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)  # poll always reports errors and hang-ups
    return bool(poll.poll(0))


async def wait_for_reset(transport: asyncio.Transport, timeout_s: float, interval_s: float) -> bool:
    """Wait until the client resets the connection, and return whether it did so within the timeout."""
    ends = time.monotonic() + timeout_s
    while not transport.is_closing() and not is_reset(transport):
        if time.monotonic() >= ends:
            return False
        await asyncio.sleep(interval_s)
    return True
