"""Measure how often service.imaging.tone is wrong, by kind of photo: python -m tests.bench.tone --data PATH ...

The given photographs count as colour. Each is also converted to gray, then toned, stained, made noisy and so on. It is
saved as a JPEG of quality 50 to 95 with 4:2:0 or 4:4:4, and must then not count as colour.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from model_export.data import sources
from service.imaging.tone import tone_of_rgb

Random = np.random.Generator
SEPIA = np.array([1.1, 0.98, 0.76])
# The shadows and highlights of duotones: selenium, cyanotype, bromoil, gold, split toning.
DUOTONES = (
    ((32, 20, 24), (250, 240, 232)),
    ((8, 28, 60), (225, 240, 250)),
    ((45, 25, 15), (250, 235, 200)),
    ((60, 38, 30), (238, 214, 170)),
    ((5, 40, 70), (255, 245, 220)),
)


def sepia(gray: np.ndarray, random: Random) -> np.ndarray:
    return gray * (1 + random.uniform(0.25, 1.1) * (SEPIA - 1))


def tint(gray: np.ndarray, random: Random) -> np.ndarray:
    hue, strength = random.uniform(0, 2 * np.pi), random.uniform(4, 40) / 255
    return gray * (1 + strength * np.cos(hue + np.array([0, 2.1, 4.2])))


def duotone(gray: np.ndarray, random: Random) -> np.ndarray:
    shadow, highlight = np.array(DUOTONES[random.integers(len(DUOTONES))], float)
    ends = [(shadow, 0), ((shadow + highlight) / 2 + random.normal(0, 8, 3), 128), (highlight, 255)]
    colors, at = zip(*ends, strict=True)
    return np.dstack([np.interp(gray[..., 0], at, channel) for channel in np.transpose(colors)])


def faded(gray: np.ndarray, random: Random) -> np.ndarray:
    low, high = random.uniform(30, 90), random.uniform(180, 240)
    flat = low + (high - low) * gray / 255
    return flat - np.array([-random.uniform(0, 12), 0, random.uniform(10, 50)]) * (0.4 + 0.6 * flat / 255)


def any_base(gray: np.ndarray, random: Random) -> np.ndarray:
    return (lambda g, r: g, sepia, tint)[random.integers(3)](gray, random)


def stained(gray: np.ndarray, random: Random) -> np.ndarray:
    coarse = random.normal(size=(random.integers(2, 6),) * 2).astype(np.float32)
    field = cv2.resize(coarse, gray.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    field = ((field - field.min()) / np.ptp(field)) ** random.uniform(1, 3)
    return any_base(gray, random) - (field * random.uniform(5, 35))[..., np.newaxis] * np.array([0.05, 0.35, 1])


def noisy(gray: np.ndarray, random: Random) -> np.ndarray:
    return any_base(gray, random) + random.normal(0, random.uniform(1, 6), gray.shape)


def grainy(gray: np.ndarray, random: Random) -> np.ndarray:
    grain = cv2.GaussianBlur(random.normal(size=gray.shape).astype(np.float32), (0, 0), random.uniform(0.6, 1.5))
    return any_base(gray, random) + grain / grain.std() * random.uniform(1, 4)


def fringed(gray: np.ndarray, random: Random, most: float = 0.25) -> np.ndarray:
    """Return the photo with its red and blue shifted by up to a quarter of a pixel, as by a scanner."""
    picture = any_base(gray, random).astype(np.float32)
    for channel in (0, 2):
        move = np.column_stack([np.eye(2), random.uniform(-most, most, 2)])
        picture[..., channel] = cv2.warpAffine(
            picture[..., channel], move, gray.shape[1::-1], borderMode=cv2.BORDER_REPLICATE
        )
    return picture


def framed(picture: np.ndarray, random: Random, color: np.ndarray) -> np.ndarray:
    rows, columns = (int(side * random.uniform(0.05, 0.12)) for side in picture.shape[:2])
    return np.stack(
        [
            np.pad(picture[..., c], ((rows, rows), (columns, columns)), constant_values=color[c]).astype(float)
            for c in range(3)
        ],
        axis=-1,
    )


def border(gray: np.ndarray, random: Random) -> np.ndarray:
    return framed(any_base(gray, random), random, np.array([235, 225, 200]) + random.normal(0, 8, 3))


def album(gray: np.ndarray, random: Random) -> np.ndarray:
    colors = ((40, 60, 110), (110, 30, 35), (40, 80, 50))
    return framed(any_base(gray, random), random, np.array(colors[random.integers(3)]))


def chart(gray: np.ndarray, random: Random) -> np.ndarray:
    patches = np.array([[200, 40, 40], [60, 160, 70], [40, 60, 170], [230, 200, 30], [190, 70, 150], [10, 130, 160]])
    row = patches[np.arange(gray.shape[1]) * 6 // gray.shape[1]]
    return np.vstack([any_base(gray, random), np.tile(row, (max(1, gray.shape[0] // 12), 1, 1))])


def stamp(gray: np.ndarray, random: Random) -> np.ndarray:
    """Return the photo with a red or blue stamp on 0.4 to 2 % of its area."""
    picture = any_base(gray, random).copy()
    side = int(np.sqrt(random.uniform(0.004, 0.02) * gray[..., 0].size))
    top, left = (random.integers(max(1, length - side)) for length in gray.shape[:2])
    color = np.array([(180, 30, 40), (60, 50, 170)][random.integers(2)])
    picture[top : top + side, left : left + side] *= 0.4
    picture[top : top + side, left : left + side] += 0.6 * color
    return picture


KINDS: dict[str, Callable[[np.ndarray, Random], np.ndarray]] = {
    "gray": lambda gray, random: gray,
    **{
        make.__name__: make
        for make in (sepia, tint, duotone, faded, stained, noisy, grainy, fringed, border, album, chart, stamp)
    },
}


def as_jpeg(picture: np.ndarray, random: Random) -> np.ndarray:
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)[random.integers(2)]
    options = [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(50, 96)), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", pixels[..., ::-1], options)[1], cv2.IMREAD_COLOR_RGB)


def made(picture: np.ndarray, kind: str, random: Random) -> np.ndarray:
    gray = np.dstack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)] * 3).astype(float)
    return as_jpeg(KINDS[kind](gray, random), random)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="shards and folders of colour photographs")
    parser.add_argument("--photographs", type=int, default=500, help="of each kind, at most")
    arguments = parser.parse_args()
    entries, _ = sources.hold_out(sources.find(arguments.data), 0)
    pictures = [entry.read() for entry in entries[: arguments.photographs]]
    started = time.perf_counter()
    counts = {"color": Counter(map(tone_of_rgb, pictures))}
    each = (time.perf_counter() - started) / len(pictures)
    random = np.random.default_rng(0)
    counts |= {kind: Counter(tone_of_rgb(made(picture, kind, random)) for picture in pictures) for kind in KINDS}
    print(f"{len(pictures)} photographs, {1000 * each:.2f} ms each\n\n| kind | gray | toned | color | wrong |")
    print("| --- " * 5 + "|")
    for kind, count in counts.items():
        wrong = len(pictures) - count["color"] if kind == "color" else count["color"]
        share = f"{100 * wrong / len(pictures):.1f} %"
        print(f"| {kind} | {count['gray']} | {count['toned']} | {count['color']} | {share} |")


if __name__ == "__main__":
    main()
