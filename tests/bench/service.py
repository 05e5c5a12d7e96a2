"""CPU time a photo through the whole service, beside the plain sum of its stages: `make bench`.

Both run in one go, in turns, on the same photographs and the shipped model; what counts is their ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import skimage.data

from service.catalog import Catalog
from service.colorizer import Colorizer, Options
from service.settings import Settings
from tests.conftest import Server, free_port

SIZES = ((512, 384), (1600, 1200), (4000, 3000))
TICK = os.sysconf("SC_CLK_TCK")


def photo(width: int, height: int) -> bytes:
    gray = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY)
    large = cv2.resize(gray, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(0).normal(0, 3, large.shape)
    return cv2.imencode(".jpg", np.clip(large + grain, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[
        1
    ].tobytes()


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def floor(colorizer: Colorizer, data: bytes, count: int) -> float:
    """CPU milliseconds a photo of the stages in one thread, without HTTP."""
    started = time.process_time()
    for _ in range(count):
        colorizer.colorize(data, Options())
    return 1000 * (time.process_time() - started) / count


def served(server: Server, data: bytes, count: int, clients: int) -> tuple[float, float]:
    """CPU milliseconds a photo of the server's process, and photos a second."""
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(clients) as pool:

        def one(_: int) -> None:
            client.post("/colorize", content=data, headers={"content-type": "image/jpeg"}).raise_for_status()

        before, started = cpu_seconds(server.process.pid), time.monotonic()
        list(pool.map(one, range(count)))
        wall = time.monotonic() - started
        return 1000 * (cpu_seconds(server.process.pid) - before) / count, count / wall


def start() -> Server:
    port = free_port()
    log = Path(os.devnull)
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("tomau")), "serve"],
        env=os.environ | {"TOMAU_PORT": str(port), "TOMAU_LOG_LEVEL": "error"},
    )
    server = Server(process, port, log)
    server.wait_until_ready()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megapixels", type=float, default=40, help="photographs a round and size, in megapixels")
    arguments = parser.parse_args()
    settings = Settings()
    cv2.setNumThreads(1)
    colorizer = Colorizer(Catalog(settings), settings)
    colorizer.warm()
    server = start()
    print(f"{settings.cores} cores; medians of {arguments.rounds} rounds in turns")
    print("| photo | clients | floor, CPU ms | served, CPU ms | ratio | photos/s |\n" + "| --- " * 6 + "|")
    try:
        for width, height in SIZES:
            data = photo(width, height)
            count = max(8, round(arguments.megapixels * 1e6 / (width * height)))
            for clients in (1, 8):
                rounds = [
                    (floor(colorizer, data, max(3, count // 4)), *served(server, data, count, clients))
                    for _ in range(arguments.rounds)
                ]
                low, cost, rate = (statistics.median(column) for column in zip(*rounds, strict=True))
                ratio = statistics.median(cost / low for low, cost, _ in rounds)
                print(
                    f"| {width}x{height} | {clients} | {low:.1f} | {cost:.1f} | {ratio:.2f} | {rate:.1f} |", flush=True
                )
    finally:
        server.process.terminate()
        server.process.wait()


if __name__ == "__main__":
    main()
