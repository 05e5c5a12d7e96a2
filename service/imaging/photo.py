"""What a photo is inside the service."""

from dataclasses import dataclass
from typing import Literal

from service.imaging.color import Bytes, Levels

Tone = Literal["gray", "toned", "color"]


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
