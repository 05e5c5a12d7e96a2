"""The benchmark's photographs: gray JPEGs made from those inside scikit-image's wheel, the same on every machine.

They are enlarged, and enlarged pictures compress far better than real ones do; so they get grain, as film has it.
"""

from pathlib import Path

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray

Size = tuple[int, int]

# Files of the wheel itself: nothing is downloaded.
NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "motorcycle_left.png")
QUALITY = 90
# Levels, at a width of 512 pixels. The more a picture is enlarged, the more detail it lacks.
GRAIN = 4.0


def source(name: str) -> NDArray[np.uint8]:
    """One of the wheel's photographs as luma, uint8 [h, w]."""
    path = Path(skimage.__file__).parent / "data" / name
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if gray is None:
        raise FileNotFoundError(path)
    return np.asarray(gray, np.uint8)


def cropped(gray: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The largest middle part of a picture that has the shape of width x height."""
    have_height, have_width = gray.shape
    scale = min(have_width / width, have_height / height)
    part_width, part_height = round(width * scale), round(height * scale)
    left, top = (have_width - part_width) // 2, (have_height - part_height) // 2
    return gray[top : top + part_height, left : left + part_width]


def photograph(name: str, width: int, height: int) -> bytes:
    """A gray JPEG of that size in pixels; always the same bytes with the same libraries."""
    large = cv2.resize(cropped(source(name), width, height), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(0).standard_normal((height, width), np.float32) * np.float32(
        GRAIN * (width / 512) ** (1 / 3)
    )
    # Grain is larger than a pixel of a scan.
    grainy = np.clip(large + cv2.GaussianBlur(grain, (3, 3), 0.6), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", grainy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def write(folder: Path, size: Size) -> list[Path]:
    """Writes the photographs of one size (width, height in pixels) and returns their paths."""
    paths = []
    for name in NAMES:
        path = folder / f"{Path(name).stem}-{size[0]}x{size[1]}.jpg"
        path.write_bytes(photograph(name, *size))
        paths.append(path)
    return paths
