"""Send thousands of mixed requests from clients that may disconnect: python -m tests.fuzz.soak --requests 20000

Every request that waits for its response gets its own, once, with the expected status. The log has each request once.
At the end, all slots are free, the numbers of threads and files are as at the start, and memory has not grown.
"""

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.conftest import Server, contract, encoded, free_port, tint_model

CLIENTS = 8
# Memory is sampled after this share of the requests. Before that, it still fills its pools.
WARM = 0.3
# The allowed growth from the first sample to the last, along a fitted line, MB.
MOST_GROWTH = 20.0
# The event loop creates its own threads gradually, for zips, metrics and pages.
POOL = min(32, (os.cpu_count() or 1) + 4)
# The allowed share of refused requests: eight clients do not reach the default limits.
MOST_REFUSED = 0.01
BOUNDARY = "soak"
LIMIT = 1_000_000


@dataclass
class Tally:
    """The observations of all clients."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    waited: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def photos() -> dict[str, bytes]:
    """Return small photographs of every format."""
    down, across = np.indices((151, 203))
    gray = (120 + 60 * np.sin(down / 9) + 50 * np.cos(across / 13)).astype(np.uint8)
    rgb = np.dstack([gray, gray // 2, 255 - gray])
    formats = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
    made = {f"{name}-{pixels.ndim}": encoded(pixels, name) for name in formats for pixels in (gray, rgb)}
    return made | {"large": encoded(np.tile(gray, (6, 6)), "JPEG", quality=95)}


def form(*files: bytes, **options: str) -> bytes:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in options.items()]
    body = "".join(parts).encode()
    for number, data in enumerate(files):
        disposition = f'Content-Disposition: form-data; name="file"; filename="{number}.jpg"'
        body += f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


class Client(threading.Thread):
    """A client that sends requests of all kinds, one after another, over keep-alive connections."""

    def __init__(self, port: int, seed: int, count: int, tally: Tally) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.port = port
        self.count = count
        self.tally = tally
        self.photos = photos()
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def run(self) -> None:
        kinds = (self.good, self.batch, self.damaged, self.refused, self.look, self.hang_up)
        for _ in range(self.count):
            kind = self.random.choices(kinds, (50, 3, 12, 12, 8, 15))[0]
            try:
                kind()
            except Exception as error:  # noqa: BLE001 - any error of a request is a finding
                self.connection.close()
                with self.tally.lock:
                    self.tally.wrong.append(f"{kind.__name__}: {error!r}")
            with self.tally.lock:
                self.tally.sent += 1
                self.tally.kinds[kind.__name__] += 1

    def photo(self) -> bytes:
        return self.random.choice(list(self.photos.values()))

    def ask(self, path: str, body: bytes | None, expected: set[int], kind: str = "") -> bytes:
        """Send one request. Its response must be complete, belong to it, and have an expected status."""
        name = uuid.uuid4().hex
        headers = {"X-Request-ID": name, "Content-Type": kind or f"multipart/form-data; boundary={BOUNDARY}"}
        self.connection.request("GET" if body is None else "POST", path, body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        with self.tally.lock:
            self.tally.waited.add(name)
        with self.tally.lock:
            self.tally.kinds[f"{answer.status}"] += 1
        if answer.status not in expected | {503} or answer.headers["X-Request-ID"] != name:
            raise AssertionError(f"{path}: {answer.status} {answer.headers['X-Request-ID']} {content[:200]!r}")
        return content

    def good(self) -> None:
        options = {}
        if self.random.random() < 0.5:
            options["format"] = self.random.choice(["jpeg", "png", "webp", "tiff"])
        if self.random.random() < 0.3:
            options["if_color"] = self.random.choice(["keep", "recolor"])
        if self.random.random() < 0.3:
            options["max_side"] = str(self.random.randint(1, 300))
        if self.random.random() < 0.5:
            self.ask("/colorize", form(self.photo(), **options), {200})
        else:
            query = "&".join(f"{key}={value}" for key, value in options.items())
            self.ask(f"/colorize?{query}", self.photo(), {200}, "image/jpeg")

    def batch(self) -> None:
        content = self.ask("/colorize/batch", form(self.photo(), b"no photo", self.photo()), {200})
        if b"report.json" not in content:
            raise AssertionError("the zip has no report")

    def damaged(self) -> None:
        data = bytearray(self.photo())
        for _ in range(self.random.randint(1, 20)):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        self.ask("/colorize", form(bytes(data[: self.random.randint(1, len(data))])), {200, 400, 413, 415})

    def refused(self) -> None:
        photo = self.photos["JPEG-2"]
        cases = (
            ("/colorize?strength=9", form(photo), 422),
            ("/colorize?colour=red", form(photo), 422),
            ("/colorize?model=none", form(photo), 404),
            ("/colorize", form(), 422),
            ("/colorize", form(b"words"), 415),
            ("/colorize", form(b""), 400),
            ("/colorize", b"--soak\r\nbroken", 400),
            ("/colorize", form(bytes(LIMIT + 1)), 413),
            ("/nothing", form(photo), 404),
        )
        path, body, status = self.random.choice(cases)
        self.ask(path, body, {status})

    def look(self) -> None:
        self.ask(self.random.choice(["/models", "/readyz", "/livez", "/metrics", "/openapi.json"]), None, {200})

    def hang_up(self) -> None:
        """Disconnect during the upload, before reading the response, or while reading it."""
        body = form(self.photos["large"], format="png")
        head = f"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            end = self.random.choice([self.random.randint(1, len(request) - 1), len(request), len(request)])
            connection.sendall(request[:end])
            if end == len(request):
                wait = self.random.choice([0, 0.005, 0.05])
                time.sleep(wait)
                if wait == 0.05:
                    connection.recv(1000)


def memory(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


def growth(looks: list[tuple[int, float]]) -> float:
    """Return the growth from the first sample to the last, in MB, along a fitted line."""
    at, megabytes = np.array(looks).T
    return float(np.polyfit(at, megabytes, 1)[0] * (at[-1] - at[0]))


def logged_ids(log: Path) -> Counter[str]:
    """Return how often the log has the end of each request."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return Counter(line["request_id"] for line in lines if "status" in line)


def faults(log: Path) -> list[str]:
    """Return the log lines that report an error of the service, and lines that it did not write."""
    lines = log.read_text().splitlines()
    return [line for line in lines if not line.startswith("{") or json.loads(line)["level"] in ("error", "critical")]


def settle(process: psutil.Process, threads: int, files: int) -> bool:
    """Wait until there are no more threads and files than at the start. Return whether that happened."""
    for _ in range(100):
        if process.num_threads() <= threads and process.num_fds() <= files:
            return True
        time.sleep(0.1)
    return False


def soak(server: Server, requests: int) -> list[str]:
    """Return what went wrong."""
    process = psutil.Process(server.process.pid)
    tally = Tally()
    first = Client(server.port, 0, 200, tally)
    first.run()
    first.connection.close()
    time.sleep(1)
    threads, files = process.num_threads(), process.num_fds()
    clients = [Client(server.port, seed, requests // CLIENTS, tally) for seed in range(1, CLIENTS + 1)]
    started = time.monotonic()
    for client in clients:
        client.start()
    looks: list[tuple[int, float]] = []
    while any(client.is_alive() for client in clients):
        time.sleep(1)
        if tally.sent > WARM * requests:
            looks.append((tally.sent, memory(process)))
    for client in clients:
        client.connection.close()
    seconds = time.monotonic() - started
    wrong = list(tally.wrong)
    if not settle(process, threads + POOL, files):
        wrong.append(f"{process.num_threads()} threads ({threads}), {process.num_fds()} files ({files})")
    grown = growth(looks)
    print(f"{tally.sent} requests in {seconds:.0f} s: {dict(tally.kinds)}")
    print(f"memory {looks[0][1]:.0f} to {looks[-1][1]:.0f} MB, along a line {grown:+.1f} MB")
    if tally.kinds["503"] > MOST_REFUSED * tally.sent:
        wrong.append(f"{tally.kinds['503']} requests were refused for overload")
    if grown > MOST_GROWTH:
        wrong.append(f"memory grows by {grown:.1f} MB")
    times = logged_ids(server.log)
    wrong += [f"{name} ended {times[name]} times" for name in tally.waited if times[name] != 1]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "compact.onnx").write_bytes(tint_model(contract(name="compact"), (20.0, 30.0)))
        port, log = free_port(), folder / "log"
        settings = {
            "MODELS": name,
            "PORT": str(port),
            "MAX_BYTES": str(LIMIT),
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "debug",
        }
        environment = os.environ | {f"TOMAU_{key}": value for key, value in settings.items()}
        with log.open("wb") as output:
            command = [str(Path(sys.executable).with_name("tomau")), "serve"]
            process = subprocess.Popen(command, env=environment, stderr=output)
        server = Server(process, port, log)
        try:
            server.wait_until_ready()
            wrong = soak(server, arguments.requests)
        finally:
            process.terminate()
            code = process.wait(60)
        if code != -15:
            wrong.append(f"the service ended with {code}")
        wrong += faults(log)
        print(*wrong[:20], sep="\n")
        print("nothing went wrong" if not wrong else f"{len(wrong)} things went wrong")
        return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
