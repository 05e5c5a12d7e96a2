"""Measure the cost of a photo by its format: python -m tests.bench.formats --megapixels 12

The result is CPU milliseconds of the whole pipeline for one photo, in one thread and without HTTP: the median of
several runs.
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import cv2
import numpy as np
import skimage.data

from service.inference.registry import ModelRegistry
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import encoded


def gray(megapixels: float) -> np.ndarray:
    """Return an artificial scan, uint8 [H, W]: an enlarged photograph with grain."""
    height, width = round(np.sqrt(megapixels * 0.75e6)), round(np.sqrt(megapixels * 4e6 / 3))
    small = cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(large + np.random.default_rng(0).normal(0, 3, large.shape), 0, 255).astype(np.uint8)


def ways(scan: np.ndarray) -> Iterator[tuple[str, bytes, Options]]:
    """Return uploads and options, by name."""
    deep = (scan.astype(np.uint16) << 8) + np.random.default_rng(1).integers(0, 256, scan.shape).astype(np.uint16)
    jpeg = encoded(scan, "JPEG", quality=90)
    yield "jpeg", jpeg, Options()
    yield "jpeg in YCbCr", encoded(np.dstack([scan] * 3), "JPEG", quality=90), Options()
    yield "jpeg in YCbCr, if_color", encoded(np.dstack([scan] * 3), "JPEG", quality=90), Options(if_color="recolor")
    yield "png", encoded(scan, "PNG"), Options()
    yield "webp", encoded(scan, "WEBP"), Options()
    yield "tiff", encoded(scan, "TIFF"), Options()
    yield "png, 16 bits", cv2.imencode(".png", deep)[1].tobytes(), Options()
    yield "tiff, 16 bits", cv2.imencode(".tiff", deep)[1].tobytes(), Options()
    yield "tiff, 16 bits, to jpeg", cv2.imencode(".tiff", deep)[1].tobytes(), Options(format="jpeg")
    yield "avif, to jpeg", encoded(scan, "AVIF"), Options()
    yield "jpeg, to avif", jpeg, Options(format="avif")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    settings = Settings(device="cpu")
    colorizer = Colorizer(ModelRegistry(settings), settings)
    print("| upload | CPU ms | MB in | MB out |\n| --- | --- | --- | --- |")
    for name, data, options in ways(gray(arguments.megapixels)):
        answer = colorizer.colorize(data, options)
        times = []
        for _ in range(arguments.rounds):
            started = time.process_time()
            colorizer.colorize(data, options)
            times.append(time.process_time() - started)
        print(
            f"| {name} | {1000 * statistics.median(times):.0f} | {len(data) / 1e6:.1f} | {len(answer.data) / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()
