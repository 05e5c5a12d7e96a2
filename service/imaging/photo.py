"""The forms of a photo inside the service: luma with alpha, Y Cb Cr planes, and RGB."""

from dataclasses import dataclass
from typing import Literal

from service.imaging.color import Bytes, Levels

Tone = Literal["gray", "toned", "color"]


@dataclass(frozen=True, slots=True)
class Photo:
    """An uploaded photo, upright.

    luma: of the sRGB picture, uint8 or uint16 [H, W]. alpha: [H, W] of the same type, None for an opaque photo.
    quality: estimated quality of the JPEG, 1..100, None for other formats. tone: None if it was not requested.
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
    """A coloured photo as a 4:2:0 JPEG stores it: luma, uint8 [H, W], Cb and Cr of half of each side, rounded up."""

    luma: Bytes
    cb: Bytes
    cr: Bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """A picture as RGB, uint8 or uint16 [H, W, 3], with its alpha, [H, W] of the same type, or None if opaque."""

    rgb: Levels
    alpha: Levels | None
