"""The benchmark's photographs: gray JPEGs made from images in scikit-image's wheel, identical on every machine.

Enlarged images compress far better than real photographs, so they get film grain.
"""

from pathlib import Path

import cv2
import numpy as np
import skimage
from numpy.typing import NDArray

Size = tuple[int, int]

# These files are part of the wheel, so nothing is downloaded.
NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "motorcycle_left.png")
QUALITY = 90
# In levels, at a width of 512 pixels. A more enlarged image lacks more detail, so it gets more grain.
GRAIN = 4.0


def source(name: str) -> NDArray[np.uint8]:
    """Return one of the wheel's photographs as luma, uint8 [h, w]."""
    path = Path(skimage.__file__).parent / "data" / name
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if gray is None:
        raise FileNotFoundError(path)
    return np.asarray(gray, np.uint8)


def cropped(gray: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return the largest centred part of an image with the aspect ratio width x height."""
    have_height, have_width = gray.shape
    scale = min(have_width / width, have_height / height)
    part_width, part_height = round(width * scale), round(height * scale)
    left, top = (have_width - part_width) // 2, (have_height - part_height) // 2
    return gray[top : top + part_height, left : left + part_width]


def photograph(name: str, width: int, height: int) -> bytes:
    """Return a gray JPEG of that size in pixels. The same libraries give the same bytes."""
    large = cv2.resize(cropped(source(name), width, height), (width, height), interpolation=cv2.INTER_CUBIC)
    grain = np.random.default_rng(0).standard_normal((height, width), np.float32) * np.float32(
        GRAIN * (width / 512) ** (1 / 3)
    )
    # In a scan, grain is larger than a pixel.
    grainy = np.clip(large + cv2.GaussianBlur(grain, (3, 3), 0.6), 0, 255).astype(np.uint8)
    return bytes(cv2.imencode(".jpg", grainy, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def write(folder: Path, size: Size) -> list[Path]:
    """Write the photographs of one size (width, height in pixels), and return their paths."""
    paths = []
    for name in NAMES:
        path = folder / f"{Path(name).stem}-{size[0]}x{size[1]}.jpg"
        path.write_bytes(photograph(name, *size))
        paths.append(path)
    return paths
