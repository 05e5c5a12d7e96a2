"""What a photo is inside the service."""

from dataclasses import dataclass
from typing import Literal, get_args

from service.imaging.color import Bytes, Levels

# What answers are given in, and what may be uploaded.
Format = Literal["jpeg", "png", "webp", "tiff", "avif"]
Source = Literal["jpeg", "png", "webp", "tiff", "avif", "heic", "bmp", "gif"]
Tone = Literal["gray", "toned", "color"]

FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Source, str] = {source: f"image/{source}" for source in get_args(Source)}
# Of the names of files: what they are given by their media type, and all that they are known by.
SUFFIXES = {media_type: f".{source}" for source, media_type in MEDIA_TYPES.items()} | {"image/jpeg": ".jpg"}
PHOTO_SUFFIXES = {suffix: media_type for media_type, suffix in SUFFIXES.items()} | {
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".tif": "image/tiff",
    ".heif": "image/heic",
}


@dataclass(frozen=True, slots=True)
class Photo:
    """An uploaded photo, upright: its luma in sRGB, uint8 or uint16 [H, W], alpha likewise if it has any.

    `quality` is that of its JPEG, 1..100, None for other sources. `tone` is None when nobody asked for it.
    """

    luma: Levels
    alpha: Levels | None
    quality: int | None = None
    tone: Tone | None = None

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
    """A picture as RGB, uint8 or uint16 [H, W, 3], with its alpha, [H, W] likewise, if it has any."""

    rgb: Levels
    alpha: Levels | None
