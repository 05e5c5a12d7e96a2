"""Measure how fast photographs are decoded and augmented for training: python -m tests.bench.data

The bare decode of the same photographs, on the same number of threads, alternates with it. The result is the ratio of
both. Cores are the ones that were busy.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from sklearn.datasets import load_sample_images

from model_export.data import batching, sources
from model_export.data.sources import Entry
from model_export.recipe import Augment

SIDES = (96, 128, 224)
BATCH = 32


def write_shard(path: Path, count: int, short: int) -> Path:
    """Write crops of the libraries' photographs as JPEG 85. In Places365, too, the short side is 256 pixels."""
    random = np.random.default_rng(0)
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), *load_sample_images().images]
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            picture = pictures[number % len(pictures)]
            side = int(random.integers(min(picture.shape[:2]) // 2, min(picture.shape[:2])))
            top, left = (random.integers(n - side + 1) for n in picture.shape[:2])
            crop = picture[top : top + side, left : left + side, ::-1]
            resized = cv2.resize(crop, (short * 4 // 3, short), interpolation=cv2.INTER_AREA)
            content = cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
            member = tarfile.TarInfo(f"made/{number:05d}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def measure(work: Callable[[], int]) -> tuple[float, float]:
    """Return photographs per second and the number of busy cores."""
    wall, used = time.perf_counter(), time.process_time()
    count = work()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    return count / wall, used / wall


def decode(entries: list[Entry], threads: int) -> int:
    def whole(part: list[Entry]) -> None:
        for entry in part:
            entry.read()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(whole, [entries[start : start + BATCH] for start in range(0, len(entries), BATCH)]))
    return len(entries)


def stream(entries: list[Entry], side: int, threads: int) -> int:
    batch = min(BATCH, len(entries))
    batches = batching.Stream(entries, batch, batching.SampleSpec("lab"), Augment(), seed=0).batches(
        side, len(entries) // batch, threads=threads, prefetch=2 * threads
    )
    return sum(len(lightness) for lightness, _ in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", help="shards and folders; by default made-up photographs")
    parser.add_argument("--photographs", type=int, default=2000, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--short", type=int, default=256, help="short side of the made-up photographs, pixels")
    arguments = parser.parse_args()
    if arguments.photographs < 1:
        parser.error("--photographs: at least 1")
    with tempfile.TemporaryDirectory() as folder:
        made = (
            None if arguments.data else write_shard(Path(folder) / "made.tar", arguments.photographs, arguments.short)
        )
        entries = sources.find(arguments.data or [made])[: arguments.photographs]
        print(f"{len(entries)} photographs, {os.cpu_count()} cores; medians of {arguments.rounds} rounds in turns")
        print("| side | threads | decoded/s | cores | for training/s | cores | ratio of CPU |\n" + "| --- " * 7 + "|")
        for threads in arguments.threads:
            for side in SIDES:
                rounds = [
                    (*measure(partial(decode, entries, threads)), *measure(partial(stream, entries, side, threads)))
                    for _ in range(arguments.rounds)
                ]
                bare, bare_cores, rate, cores = (statistics.median(column) for column in zip(*rounds, strict=True))
                ratio = statistics.median(c / r / (bc / b) for b, bc, r, c in rounds)
                row = f"{bare:.0f} | {bare_cores:.2f} | {rate:.0f} | {cores:.2f} | {ratio:.2f}"
                print(f"| {side} | {threads} | {row} |", flush=True)


if __name__ == "__main__":
    main()
