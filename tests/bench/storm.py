"""Measure the throughput that is left when many clients retry immediately: python -m tests.bench.storm

Every refusal costs the event loop time, which is then missing for the photos. For each size, it measures the best
number of patient clients, and then adds many impatient ones. It prints images per second, CPU milliseconds per image,
and the remaining share, as medians over rounds. The clients share the machine with the server.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import model, photos, tree
from tests.bench.photos import Size
from tests.bench.results import name_of
from tests.bench.servers import CORES, Server, load, running

SIZES = ((512, 384), (4000, 3000))
PATIENT = 4 * CORES


@dataclass(frozen=True)
class Load:
    """The results under one load: images and refusals per second, CPU milliseconds per image."""

    rate: float
    refusals: float
    cpu_ms: float


def _load(server: Server, paths: Sequence[Path], seconds: float, clients: int, *options: str) -> Load:
    before = tree.cpu_seconds(server.pid)
    seen = load(server, paths, seconds, clients, *options)
    cpu = tree.cpu_seconds(server.pid) - before
    answered = len(seen["answered"])
    return Load(answered / seen["last_answer"], len(seen["refused"]) / seconds, 1000 * cpu / answered)


def measure(size: Size, impatient: int, seconds: float, rounds: int) -> list[tuple[Load, Load]]:
    """Return per round: the results with patient clients only, and with that number of impatient ones."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "models" / f"{model.NAME}.onnx"
        file.parent.mkdir()
        file.write_bytes(model.build())
        paths = photos.write(folder, size)
        with running("tomau", file, folder / "log") as server:
            _load(server, paths, min(1.0, seconds), PATIENT)
            return [
                (_load(server, paths, seconds, PATIENT), _load(server, paths, seconds, impatient, "--impatient"))
                for _ in range(rounds)
            ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=256, help="impatient ones")
    arguments = parser.parse_args(argv)
    print(f"| photo | images/s, {PATIENT} patient | {arguments.clients} impatient | left | refusals/s | CPU ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        seen = measure(size, arguments.clients, arguments.seconds, arguments.rounds)
        patient, impatient, refusals, cpu = (
            statistics.median(figures)
            for figures in (
                [first.rate for first, _ in seen],
                [second.rate for _, second in seen],
                [second.refusals for _, second in seen],
                [second.cpu_ms for _, second in seen],
            )
        )
        left = statistics.median(second.rate / first.rate for first, second in seen)
        row = f"{patient:.1f} | {impatient:.1f} | {left:.0%} | {refusals:.0f} | {cpu:.1f}"
        print(f"| {name_of(size)} | {row} |", flush=True)


if __name__ == "__main__":
    main()
