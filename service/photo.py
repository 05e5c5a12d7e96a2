"""What a photo is inside the service."""

from dataclasses import dataclass
from typing import Literal

from service.color import Bytes

# Of answers, and of uploads.
Format = Literal["jpeg", "png", "webp", "tiff", "avif"]
Source = Literal["jpeg", "png", "webp", "tiff", "avif", "heic", "bmp", "gif"]
MEDIA_TYPES: dict[Source, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "webp": "image/webp",
    "tiff": "image/tiff",
    "avif": "image/avif",
    "heic": "image/heic",
    "bmp": "image/bmp",
    "gif": "image/gif",
}


@dataclass(frozen=True, slots=True)
class Photo:
    """An uploaded photo, upright: luma, uint8 [H, W], alpha likewise if it has any, and how it came.

    `quality` is that of its JPEG, 1..100, None for other formats.
    """

    luma: Bytes
    alpha: Bytes | None
    format: Format
    quality: int | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width = self.luma.shape
        return height, width


@dataclass(frozen=True, slots=True)
class Planes:
    """A coloured photo as a JPEG stores it: luma, uint8 [H, W], Cb and Cr of half the size, rounded up."""

    luma: Bytes
    cb: Bytes
    cr: Bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """A coloured photo as RGB, uint8 [H, W, 3], with its alpha, uint8 [H, W], if it has any."""

    rgb: Bytes
    alpha: Bytes | None
