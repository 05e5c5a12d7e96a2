"""The load generator, a separate process whose CPU time is not the server's: python -m tests.bench.load --help

It shares the machine with the server, so it must be cheap. It has one thread, a bare asyncio protocol on uvloop,
prebuilt requests, and one buffer into which all responses are read. Compared to aiohttp on the same loop, it takes a
half to three quarters of the CPU time per request: 1.1 ms instead of 1.9 for 2.4 MB each way, 0.03 to 0.09 instead of
0.12 for 50 kB.

Closed loop (`--clients`): each client sends its next photo after the response to the last one. A refused client waits
for `Retry-After` seconds and up to half of that more, then retries. With `--impatient` it retries immediately. The
photo's latency counts from its first attempt. Open loop (`--rate`): photos are sent at precomputed random times, in any
state of the server, and latency counts from these times. Prints a Result as JSON.
"""

import argparse
import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

PATH = "/colorize"
BOUNDARY = "photo-boundary"
MEDIA_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
BUFFER = memoryview(bytearray(1 << 18))
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
# The server may close a connection that is idle for longer, in the moment when it is used again.
MAX_IDLE_S = 2.0
# Responses may arrive for this long after the last request.
PATIENCE_S = 90.0
REFUSED = 503
# Batches round slightly differently than single photos do.
SAME_LENGTH = 0.01


@dataclass
class Result:
    """The observations of a run. Times in seconds; points in time count from the start of the run."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    # The latencies so far of photos that were still refused when the run ended.
    given_up: list[float] = field(default_factory=list)
    # The number of each other outcome: a status, `reset`, `unreadable`, `unanswered`.
    errors: Counter[str] = field(default_factory=Counter)
    last_answer: float = 0.0
    cpu: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The status and headers of a response, whose body was read and discarded. `retry_after` in seconds."""

    status: int
    retry_after: float
    closes: bool
    length: int


class Unreadable(Exception):
    """A response without a Content-Length."""


class Connection(asyncio.BufferedProtocol):
    """A keep-alive connection that alternates between one request and its response."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waits: asyncio.Future[Reply] | None = None
        self._head = b""
        self._left = -1
        self._reply = Reply(0, 0.0, False, 0)
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        transport = self._transport
        is_open = transport is not None and not transport.is_closing()
        return is_open and time.monotonic() - self.idle_since < MAX_IDLE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has the methods of asyncio.Transport, but not its class.
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        assert self._transport is not None
        self._waits = asyncio.get_running_loop().create_future()
        self._head, self._left = b"", -1
        self._transport.write(request)
        return self._waits

    def get_buffer(self, sizehint: int) -> memoryview:
        return BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._left >= 0:
            self._left -= nbytes
        else:
            self._head += bytes(BUFFER[:nbytes])
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            self._read_head(self._head[: end + 2], len(self._head) - end - 4)
        if self._left == 0 and self._waits is not None and not self._waits.done():
            self._waits.set_result(self._reply)

    def _read_head(self, head: bytes, body_bytes: int) -> None:
        length, retry = LENGTH.search(head), RETRY.search(head)
        if length is None:
            self._fail(Unreadable())
            return
        self._left = int(length[1]) - body_bytes
        retry_after, closes = float(retry[1]) if retry else 0.0, CLOSE.search(head) is not None
        self._reply = Reply(int(head[9:12]), retry_after, closes, int(length[1]))

    def _fail(self, error: Exception) -> None:
        if self._waits is not None and not self._waits.done():
            self._waits.set_exception(error)
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionResetError())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Run:
    """A run against one server."""

    def __init__(self, port: int, photos: list[bytes], seed: int, *, impatient: bool = False) -> None:
        self._port = port
        self._impatient = impatient
        self._requests = [request(photo) for photo in photos]
        self._lengths: dict[bytes, int] = {}
        self._numbers = itertools.count(seed)
        self._random = random.Random(seed)
        self._idle: list[Connection] = []
        self._started = time.monotonic()
        self.result = Result()

    async def _ask(self, body: bytes) -> Reply:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                break
            connection.close()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        reply = await connection.ask(body)
        if reply.closes:
            connection.close()
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        return reply

    async def _try(self, body: bytes, since: float) -> Reply | None:
        """Make one attempt, and record it unless it was refused. Return None if there was no response."""
        try:
            reply = await self._ask(body)
        except (OSError, Unreadable) as error:
            self.result.errors["unreadable" if isinstance(error, Unreadable) else "reset"] += 1
            return None
        now = time.monotonic()
        if reply.status == 200 and not self._is_expected(body, reply):
            self.result.errors["another answer"] += 1
        elif reply.status == 200:
            self.result.answered.append(now - since)
            self.result.last_answer = now - self._started
        elif reply.status != REFUSED:
            self.result.errors[str(reply.status)] += 1
        return reply

    def _is_expected(self, body: bytes, reply: Reply) -> bool:
        """Return whether a response is about as long as the photo's first. Swapped or truncated ones do not count."""
        first = self._lengths.setdefault(body, reply.length)
        return abs(reply.length - first) <= SAME_LENGTH * first

    def _next(self) -> bytes:
        return self._requests[next(self._numbers) % len(self._requests)]

    async def _client(self, until: float) -> None:
        while (since := time.monotonic()) < until:
            body, attempt = self._next(), since
            while (reply := await self._try(body, since)) is not None and reply.status == REFUSED:
                self.result.refused.append(time.monotonic() - attempt)
                wait = 0.0 if self._impatient else max(reply.retry_after, 0.05)
                await asyncio.sleep(wait * self._random.uniform(1, 1.5))
                attempt = time.monotonic()
                if attempt >= until:
                    self.result.given_up.append(attempt - since)
                    return
            if reply is None or reply.status != 200:
                await asyncio.sleep(0.05)  # Avoid a busy loop against a server that responds with errors immediately.

    async def _single(self, at: float) -> None:
        reply = await self._try(self._next(), at)
        if reply is not None and reply.status == REFUSED:
            self.result.refused.append(time.monotonic() - at)

    async def _finish(self, work: list[asyncio.Task[None]], patience: float) -> None:
        if work:
            done, pending = await asyncio.wait(work, timeout=patience)
            self.result.errors["unanswered"] += len(pending)
            for task in pending:
                task.cancel()
            for task in done:
                task.result()
        self.result.errors = +self.result.errors
        for connection in self._idle:
            connection.close()

    async def closed(self, clients: int, seconds: float) -> None:
        self._started = time.monotonic()
        work = [asyncio.create_task(self._client(self._started + seconds)) for _ in range(clients)]
        await self._finish(work, seconds + PATIENCE_S)

    async def open(self, rate: float, seconds: float, seed: int) -> None:
        self._started = time.monotonic()
        work = []
        for offset in arrivals(rate, seconds, seed):
            await asyncio.sleep(max(0.0, self._started + offset - time.monotonic()))
            work.append(asyncio.create_task(self._single(self._started + offset)))
        await self._finish(work, PATIENCE_S)


def form(photo: bytes) -> bytes:
    """Return the body of a request: the photo as the form field `file`."""
    disposition = 'Content-Disposition: form-data; name="file"; filename="photo.jpg"'
    head = f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: image/jpeg\r\n\r\n"
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def request(photo: bytes) -> bytes:
    """Return a whole HTTP request."""
    body = form(photo)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Return the times, in seconds, of a Poisson process with `rate` arrivals per second; the seed fixes them."""
    chance = random.Random(seed)
    times = itertools.accumulate(iter(lambda: chance.expovariate(rate), None))
    return list(itertools.takewhile(lambda at: at < seconds, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("photos", type=Path, nargs="+")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--clients", type=int, help="closed loop")
    kind.add_argument("--rate", type=float, help="open loop, photos a second")
    parser.add_argument("--impatient", action="store_true", help="clients that are refused try again at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long photos are sent")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    photos = [path.read_bytes() for path in arguments.photos]
    run = Run(arguments.port, photos, arguments.seed, impatient=arguments.impatient)
    before = time.process_time()
    work: Coroutine[Any, Any, None]
    if arguments.clients:
        work = run.closed(arguments.clients, arguments.seconds)
    else:
        work = run.open(arguments.rate, arguments.seconds, arguments.seed)
    uvloop.run(work)
    run.result.cpu = time.process_time() - before
    print(json.dumps(asdict(run.result)))


if __name__ == "__main__":
    main()
