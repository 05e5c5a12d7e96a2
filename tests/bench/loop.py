"""Measure the event loop's cost per request, with an engine that does nothing: python -m tests.bench.loop

The service runs without colouring: uploads are parsed, admitted, and handed to a worker thread, which returns the
received bytes. For each size and number of clients, it prints requests per second. It also prints CPU milliseconds per
request, of the event loop's thread and of all other threads.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import psutil

from tests.bench import model, photos
from tests.bench.photos import Size
from tests.bench.results import name_of
from tests.bench.servers import KINDS, Kind, Server, load, running

NAME = "nothing"
SIZES = ((512, 384), (4000, 3000))


def serve() -> None:
    """Run the service in a process of its own."""
    from service.cli import main
    from service.pipeline.colorizer import ColoredImage, Colorizer

    def colorize(_: Colorizer, data: bytes, *_arguments: object, **_options: object) -> ColoredImage:
        return ColoredImage(data, "image/jpeg", "nothing/1", "cpu", {"queue": 0.0})

    with patch.object(Colorizer, "colorize", colorize):
        main(["serve"])


def _kind() -> Kind:
    command = [sys.executable, "-c", "from tests.bench.loop import serve; serve()"]
    return Kind("an engine that does nothing", lambda _port, _model: command, KINDS["tomau"].environment, "/readyz")


def _cpu_seconds(server: Server) -> tuple[float, float]:
    """Return the CPU seconds of the event loop's thread, and of all others."""
    threads = {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(server.pid).threads()}
    loop = threads.pop(server.pid)
    return loop, sum(threads.values())


def measure(size: Size, clients: Sequence[int], seconds: float) -> list[tuple[int, float, float, float]]:
    """Return for each number of clients: it, requests per second, CPU milliseconds of the loop and of other threads."""
    rows = []
    with tempfile.TemporaryDirectory() as name, patch.dict(KINDS, {NAME: _kind()}):
        folder = Path(name)
        file = folder / "models" / f"{model.NAME}.onnx"
        file.parent.mkdir()
        file.write_bytes(model.build())
        paths = photos.write(folder, size)
        with running(NAME, file, folder / "log") as server:
            load(server, paths, min(1.0, seconds), 2)
            for count in clients:
                before = _cpu_seconds(server)
                seen = load(server, paths, seconds, count)
                after = _cpu_seconds(server)
                answered = len(seen["answered"])
                loop, others = (1000 * (late - early) / answered for late, early in zip(after, before, strict=True))
                rows.append((count, answered / seen["last_answer"], loop, others))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args(argv)
    print("| photo | clients | requests/s | event loop, CPU ms | other threads, CPU ms |")
    print("| --- | --- | --- | --- | --- |")
    for size in SIZES:
        for clients, rate, loop, others in measure(size, arguments.clients, arguments.seconds):
            print(f"| {name_of(size)} | {clients} | {rate:.0f} | {loop:.2f} | {others:.2f} |", flush=True)


if __name__ == "__main__":
    main()
