"""Convert the samples of a TIFF page to colours and alpha."""

import struct

import numpy as np

from service.errors import UnreadableImage
from service.formats import tiff_reader, tiff_tags
from service.imaging.color import Bytes, Levels, max_level
from service.imaging.decoders.tiff_samples import JPEG, Kind, Picture

# TIFF 6.0's defaults for a file that gives neither: the coefficients of ITU-R BT.601, and the full range of a JPEG.
BT_601 = (0.299, 0.587, 0.114)
FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


class Colors:
    """A converter from samples to colours and alpha, by the page's tags. Raises UnreadableImage without a palette."""

    def __init__(self, page: tiff_reader.Page, picture: Picture) -> None:
        self._picture = picture
        self._palette = _palette(page, picture.bits) if picture.kind == Kind.PALETTE else None
        self._scale = _scale_of(picture.bits)
        self._is_ycbcr = picture.kind == Kind.YCBCR and picture.compression != JPEG
        self._coefficients = _fractions(page, tiff_tags.YCBCR_COEFFICIENTS, BT_601)
        self._reference = _fractions(page, tiff_tags.REFERENCE_BLACK_WHITE, FULL_RANGE)

    def levels(self, samples: Levels) -> list[Levels]:
        """Return a band's colours, [rows, W] or [rows, W, 3 or 4], and its alpha, [rows, W], if present.

        samples: uint8 or uint16 [rows, W, channels].
        """
        picture = self._picture
        if self._is_ycbcr:
            return [_rgb_of_ycbcr(samples, self._coefficients, self._reference)]
        colors = samples[..., 0] if picture.colors == 1 else samples[..., : picture.colors]
        # Planes without a known meaning were not decoded.
        alpha = None if picture.alpha is None else samples[..., -1 if picture.is_planar else picture.alpha]
        if self._scale is not None:
            alpha = None if alpha is None else self._scale[alpha]
            colors = colors if self._palette is not None else self._scale[colors]
        if self._palette is None and alpha is not None and picture.is_premultiplied:
            colors = _unpremultiply(colors, alpha)
        if picture.kind == Kind.WHITE_IS_ZERO:
            colors = max_level(colors) - colors
        if self._palette is not None or picture.kind == Kind.CMYK:
            # Palette and CMYK pictures are reduced to 8 bits.
            colors = _high_bytes(colors) if self._palette is None else self._palette[colors]
            alpha = None if alpha is None else _high_bytes(alpha)
        return [colors] if alpha is None else [colors, alpha]


def _scale_of(bits: int) -> Levels | None:
    """Return the value of each sample in 8 or 16 bits, [2 ** bits]; None if samples have 8 or 16 bits already."""
    if bits in (8, 16):
        return None
    dtype = np.uint8 if bits < 8 else np.uint16
    largest: int = np.iinfo(dtype).max
    scale: Levels = np.rint(np.arange(2**bits) * (largest / (2**bits - 1))).astype(dtype)
    return scale


def _high_bytes(levels: Levels) -> Bytes:
    """Return levels as uint8: the high byte of 16 bits."""
    return (levels >> 8).astype(np.uint8) if levels.dtype == np.uint16 else np.asarray(levels, np.uint8)


def _palette(page: tiff_reader.Page, bits: int) -> Bytes:
    """Return the colours of all sample values, uint8 [2 ** bits, 3]. Raises UnreadableImage."""
    values = page.array(tiff_tags.COLOR_MAP, 3 * 2**bits)
    if len(values) < 3 * 2**bits:
        raise UnreadableImage("the TIFF's palette is missing or cut short", field="file")
    # A palette has 16 bits, but some writers store 8.
    values = values >> 8 if values.max() > 255 else values
    return np.ascontiguousarray(np.minimum(values, 255).astype(np.uint8).reshape(3, -1).T)


def _unpremultiply(colors: Levels, alpha: Levels) -> Levels:
    """Return colours divided by alpha, which they are premultiplied with; where alpha is 0, they stay as they are."""
    over = alpha.astype(np.uint32) if colors.ndim == 2 else alpha.astype(np.uint32)[..., np.newaxis]
    largest = max_level(colors)
    divided = (colors.astype(np.uint32) * largest + over // 2) // np.maximum(over, 1)
    return np.where(over == 0, colors, np.minimum(divided, largest)).astype(colors.dtype)


def _fractions(page: tiff_reader.Page, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return a tag's fractions; the default if they are missing or have another type."""
    entry = page.directory.find(tag)
    value = page.content(tag)
    if entry is None or entry.kind != tiff_tags.RATIONAL or len(value) < 8 * len(default):
        return default
    numbers = struct.unpack_from(f"{page.layout.order}{2 * len(default)}I", value)
    return tuple(above / (under or 1) for above, under in zip(numbers[::2], numbers[1::2], strict=True))


def _rgb_of_ycbcr(samples: Levels, coefficients: tuple[float, ...], reference: tuple[float, ...]) -> Bytes:
    """Return RGB, uint8 [rows, W, 3], of Y, Cb and Cr, uint8 [rows, W, 3], as in TIFF 6.0, section 21."""
    red, green, blue = coefficients
    planes = []
    for number, reach in enumerate((255.0, 127.0, 127.0)):
        black, light = reference[2 * number : 2 * number + 2]
        planes.append((samples[..., number].astype(np.float32) - black) * (reach / ((light - black) or 1.0)))
    luma, cb, cr = planes
    r = cr * (2 - 2 * red) + luma
    b = cb * (2 - 2 * blue) + luma
    g = (luma - blue * b - red * r) / (green or 1.0)
    rgb: Bytes = np.clip(np.rint(np.dstack([r, g, b])), 0, 255).astype(np.uint8)
    return rgb
