"""Splitting a photograph into lightness and chroma, and merging both again.

The only module that knows colour spaces; the training program uses it too. Two are known:

- `lab`: CIE 1976 L*a*b*, white D65. Lightness is L*/100, chroma is (a*, b*) in Lab units.
- `hsv`: the hexcone of Smith (1978). Lightness is V, chroma is the vector (S cos H, S sin H), each in -1..1,
  so that hues can be averaged and enlarged without a seam at red.

A black-and-white photograph's gray value is its luma Y (ITU-R BT.601, the Y of a JPEG). Every merge called
`luma` keeps that very plane and adds only colour difference; the `literal` merges are those of the tutorials.
"""

from collections.abc import Iterator
from functools import lru_cache, reduce
from typing import Any, Literal, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

ColorSpace = Literal["lab", "hsv"]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]
# Stored values: 0..255, or 0..65,535 where a photo has 16 bits a channel.
Levels = NDArray[np.uint8 | np.uint16]
L = TypeVar("L", bound=Levels)

COLOR_SPACES: tuple[ColorSpace, ...] = ("lab", "hsv")

# ITU-R BT.601: the excursions of the colour differences, and their shares in green.
CB_EXCURSION = 1.772
CR_EXCURSION = 1.402
GREEN_OF_CB = 0.114 * CB_EXCURSION / 0.587
GREEN_OF_CR = 0.299 * CR_EXCURSION / 0.587

# IEC 61966-2-1 (sRGB): XYZ, relative to the D65 white, to linear RGB.
XYZ_TO_RGB = np.linalg.inv(
    np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / np.array([[0.950456], [1.0], [1.088754]])
).astype(np.float32)

# The longest side of a picture that OpenCV's remap takes.
REMAP_SIDE = 32_766

# Temporaries of a merge stay in the processor's cache when it goes through the photo in strips.
STRIP_PIXELS = 16_384
# OpenCV enlarges a whole plane quicker than strips can be; for larger ones, the memory's pace costs more than that.
WHOLE_PIXELS = 1 << 20


def _lightness_of_luma(levels: int) -> Floats:
    gray = np.arange(levels) / (levels - 1)
    linear = np.where(gray <= 0.04045, gray / 12.92, ((gray + 0.055) / 1.055) ** 2.4)
    f = np.where(linear > 216 / 24389, np.cbrt(linear), (24389 / 27 * linear + 16) / 116)
    return np.maximum(1.16 * f - 0.16, 0).astype(np.float32)


# L*/100 of each gray sRGB value, 0..255 and 0..65,535.
LIGHTNESS_OF_LUMA = _lightness_of_luma(256)
LIGHTNESS_OF_DEEP_LUMA = _lightness_of_luma(65_536)


def _luma_slices() -> tuple[Bytes, Floats, Floats]:
    """Cuts luma into slices of up to eight levels; of single ones near black and white, where colour has little room.

    Returns the slice of each luma 0..255, and the least and greatest luma of each slice, 0..1.
    """
    slices = np.empty(256, np.uint8)
    ends: list[tuple[int, int]] = []
    level = 0
    while level < 256:
        width = min(max(min(level, 255 - level) // 6, 1), 8)
        slices[level : level + width] = len(ends)
        ends.append((level, min(level + width, 256) - 1))
        level += width
    least, greatest = np.array(ends, np.float32).T / np.float32(255)
    return slices, least, greatest


SLICE_OF_LUMA, LEAST_OF_SLICE, GREATEST_OF_SLICE = _luma_slices()
SLICES = len(LEAST_OF_SLICE)
LUMA_OF_SLICE = (LEAST_OF_SLICE + GREATEST_OF_SLICE) / 2
# Colour difference is looked up in a table of so many steps of each chroma channel, from one end of its reach to the
# other, for every slice: 2 MB. With half as many, gamut's edges are missed by up to 18 levels; twice as many take 0.4 s
# to make.
NODES = 65
REACH: dict[ColorSpace, float] = {"lab": 128.0, "hsv": 1.0}
FIRST_ROW_OF_LUMA = (SLICE_OF_LUMA.astype(np.float32) * NODES).reshape(1, 256)
LIGHTNESS_OF_SLICE = np.interp(LUMA_OF_SLICE, np.arange(256) / 255, LIGHTNESS_OF_LUMA).astype(np.float32)


def white(picture: Levels) -> int:
    """The greatest level that a picture can have: 255 or 65,535."""
    return int(np.iinfo(picture.dtype).max)


def like(picture: L, made: Any) -> L:
    """An array that OpenCV made of a picture: it has the same type of levels."""
    return cast("L", np.asarray(made, picture.dtype))


def _unit(picture: Levels) -> Floats:
    return picture.astype(np.float32) / np.float32(white(picture))


def luma_of_rgb(rgb: L) -> L:
    """BT.601 luma, [H, W], of an RGB picture, uint8 or uint16 [H, W, 3]."""
    return like(rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def lightness_of_luma(luma: Levels, color_space: ColorSpace) -> Floats:
    """Lightness in 0..1, float32: L*/100 of the gray value for `lab`, the gray value itself for `hsv`."""
    if color_space == "hsv":
        return _unit(luma)
    if luma.dtype == np.uint16:
        return np.take(LIGHTNESS_OF_DEEP_LUMA, luma)
    return np.asarray(cv2.LUT(luma, LIGHTNESS_OF_LUMA.reshape(1, 256)), np.float32)


def half(picture: L) -> L:
    """A picture, [H, W, ...], at half of each side, rounded up: the size of 4:2:0's colour planes."""
    height, width = picture.shape[:2]
    # By two is a way of its own in OpenCV, and the fastest: an odd side is first made even.
    if height % 2 or width % 2:
        picture = like(picture, cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
    size = ((width + 1) // 2, (height + 1) // 2)
    return like(picture, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _is_halved_first(picture: Levels, size: int) -> bool:
    """By two is OpenCV's fastest way. What an odd side is given must be little of a cell of the smaller picture."""
    height, width = picture.shape[:2]
    is_even = height % 2 == 0 and width % 2 == 0
    return bool(min(height, width) >= (4 if is_even else 16) * size)


def square(picture: L, size: int) -> L:
    """A picture, [H, W, ...], as [size, size, ...]: each side shrunk by area, then enlarged bilinearly."""
    while _is_halved_first(picture, size):
        picture = half(picture)
    height, width = picture.shape[:2]
    if height > size or width > size:
        shrunk = (min(width, size), min(height, size))
        picture = like(picture, cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA))
    if picture.shape[:2] == (size, size):
        return picture
    return like(picture, cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR))


def split(luma: Levels, color_space: ColorSpace, size: int) -> Floats:
    """The model's input: the whole photo as lightness in 0..1, float32 [1, size, size]."""
    return lightness_of_luma(square(luma, size), color_space)[np.newaxis]


def split_rgb(rgb: Bytes, color_space: ColorSpace) -> tuple[Floats, Floats]:
    """True lightness and chroma of a colour picture, uint8 [H, W, 3].

    Returns lightness in 0..1, float32 [H, W] (L*/100 or V), and chroma, float32 [H, W, 2] (see the module).
    """
    unit = _unit(rgb)
    if color_space == "lab":
        lab = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2Lab), np.float32)
        return lab[..., 0] / np.float32(100), lab[..., 1:]
    hsv = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2HSV), np.float32)
    hue = np.deg2rad(hsv[..., 0])
    direction = np.stack([np.cos(hue), np.sin(hue)], axis=-1)
    return np.asarray(hsv[..., 2], np.float32), np.asarray(hsv[..., 1:2] * direction, np.float32)


def _rgb_of_lab(lightness: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """sRGB (nominally 0..1, not clipped) of L*/100 and a*, b*; the curve is continued oddly below zero.

    In place where it can be: three planes of a temporary are three times a photo's. Both curves are straight below
    their knees, and `np.where` would take longer than the curves do, a branch for each pixel.
    """
    fy = (lightness * 100 + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200])
    curved = np.clip(f, 6 / 29, None)  # three times as quick as np.maximum
    straight = f
    straight -= curved
    straight *= 108 / 841
    xyz = curved * curved
    xyz *= curved
    xyz += straight
    # Not `@`: it wakes threads of the linear algebra library, which then spin and take the other photos' cores.
    linear = np.einsum("ij,j...->i...", XYZ_TO_RGB, xyz, out=f)
    size = np.abs(linear, out=xyz)
    np.clip(size, 0.0031308, None, out=curved)
    straight = size
    straight -= curved
    straight *= 12.92
    rgb: Floats = np.asarray(cv2.pow(curved.reshape(1, -1), 1 / 2.4), np.float32).reshape(curved.shape)
    rgb *= 1.055
    rgb -= 0.055
    rgb += straight
    red, green, blue = np.copysign(rgb, linear, out=rgb)
    return red, green, blue


def _rgb_of_hue(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """RGB in 0..1 of hue and saturation at V = 1, from the vector (S cos H, S sin H)."""
    saturation = np.minimum(np.hypot(x, y), 1)
    sextant = np.arctan2(y, x) * np.float32(3 / np.pi)
    red, green, blue = (
        1 - saturation * (1 - np.clip(np.abs((sextant + shift) % 6 - 3) - 1, 0, 1)) for shift in (0, 4, 2)
    )
    return red, green, blue


def _color_difference(
    luma: Floats, lightness: Floats, x: Floats, y: Floats, color_space: ColorSpace
) -> tuple[Floats, Floats]:
    """Cb and Cr, nominally -0.5..0.5, of the chroma (x, y); not yet inside the gamut.

    luma: in 0..1; lightness: L*/100 of the same grays, which only `lab` needs.
    """
    if color_space == "lab":
        red, green, blue = _rgb_of_lab(lightness, x, y)
        own = 0.299 * red + 0.587 * green + 0.114 * blue
    else:
        red, green, blue = _rgb_of_hue(x, y)
        gain = luma / (0.299 * red + 0.587 * green + 0.114 * blue)
        red, blue, own = red * gain, blue * gain, luma
    return (blue - own) / CB_EXCURSION, (red - own) / CR_EXCURSION


def _into_gamut(least: Floats, greatest: Floats, cb: Floats, cr: Floats) -> tuple[Floats, Floats]:
    """Scales (Cb, Cr) towards gray until R, G and B are in 0..1 from the least luma to the greatest; the hue stays."""
    excesses = (CR_EXCURSION * cr, -GREEN_OF_CB * cb - GREEN_OF_CR * cr, CB_EXCURSION * cb)
    most, least_excess = reduce(np.maximum, excesses), reduce(np.minimum, excesses)
    too_much = np.maximum(most / np.maximum(1 - greatest, 1e-6), -least_excess / np.maximum(least, 1e-6))
    scale: Floats = np.asarray(1 / np.maximum(too_much, 1), np.float32)
    return cb * scale, cr * scale


def _difference_in_gamut(luma: Levels, x: Floats, y: Floats, color_space: ColorSpace) -> tuple[Floats, Floats]:
    """Cb and Cr, -0.5..0.5, of pixels with this luma and this chroma (x, y)."""
    unit = _unit(luma)
    return _into_gamut(unit, unit, *_color_difference(unit, lightness_of_luma(luma, "lab"), x, y, color_space))


def _strips(height: int, width: int) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))


def enlarge(chroma: Floats, height: int, width: int) -> tuple[Floats, Floats]:
    """Both chroma channels, float32 [2, s, s], enlarged bilinearly to [height, width] each."""
    x, y = (np.asarray(cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR)) for c in chroma)
    return x, y


def enlarged(chroma: Floats, height: int, width: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """What `enlarge` gives, strip by strip, so that a large photo's planes are never there as a whole: the rows, and
    both channels in these rows.
    """
    if height * width <= WHOLE_PIXELS:
        x, y = enlarge(chroma, height, width)
        yield from ((rows, x[rows], y[rows]) for rows in _strips(height, width))
        return
    side = chroma.shape[1]
    wide = np.stack([cv2.resize(c, (width, side), interpolation=cv2.INTER_LINEAR) for c in chroma], axis=1)
    further = np.zeros_like(wide)
    np.subtract(wide[1:], wide[:-1], out=further[:-1])
    # Centres of pixels on centres of cells; beyond the outer ones, nothing changes any more.
    at = np.clip((np.arange(height) + 0.5) * (side / height) - 0.5, 0, side - 1)
    above = at.astype(np.intp)
    share = (at - above).astype(np.float32).reshape(-1, 1, 1)
    for rows in _strips(height, width):
        strip = further.take(above[rows], axis=0)
        strip *= share[rows]
        strip += wide.take(above[rows], axis=0)
        yield rows, strip[:, 0], strip[:, 1]


def merge_planes(luma: Bytes, chroma: Floats, color_space: ColorSpace) -> tuple[Bytes, Bytes]:
    """Cb and Cr planes for a luma plane that stays as it is.

    luma: uint8 [h, w], at the size that Cb and Cr are wanted in (half the photo's for 4:2:0).
    chroma: float32 [2, s, s] as a model answers it. Returns two uint8 [h, w] planes, 128 being neutral.

    Colour difference is looked up for each pixel, in the table of its luma's slice: a hundredth of the work of
    computing it, and 0.5 levels from it on average.
    """
    table = _difference_table(color_space)
    cb, cr = np.empty_like(luma), np.empty_like(luma)
    for rows, across, down in enlarged(_steps_of_table(chroma, color_space), *luma.shape):
        for columns in _parts(luma.shape[1]):
            part = rows, columns
            steps_down = np.asarray(cv2.LUT(luma[part], FIRST_ROW_OF_LUMA), np.float32)
            steps_down += down[:, columns]
            steps_across = across[:, columns]
            found = cv2.remap(table, steps_across, steps_down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            cv2.split(found.astype(np.uint8), [cb[part], cr[part]])
    return cb, cr


def _parts(width: int) -> Iterator[slice]:
    return (slice(start, min(width, start + REMAP_SIDE)) for start in range(0, width, REMAP_SIDE))


def _steps_of_table(chroma: Floats, color_space: ColorSpace) -> Floats:
    """Where chroma, float32 [2, s, s], stands in a slice of the table: steps across and down, likewise.

    What is beyond the table is beyond every gamut, too: it goes towards gray until it is inside.
    """
    longest = np.maximum(REACH[color_space], np.abs(chroma).max(axis=0))
    middle = np.float32((NODES - 1) / 2)
    return np.asarray(chroma * (middle / longest) + middle, np.float32)


@lru_cache
def _difference_table(color_space: ColorSpace) -> Floats:
    """Cb and Cr, float32 [slices * NODES, NODES, 2], as levels plus a half, in gamut: for the luma of every slice, and
    below it for chroma at steps of its reach, y down and x across.
    """
    steps = np.linspace(-REACH[color_space], REACH[color_space], NODES, dtype=np.float32)
    least, greatest = (ends.reshape(-1, 1, 1) for ends in (LEAST_OF_SLICE, GREATEST_OF_SLICE))
    planes = (LUMA_OF_SLICE.reshape(-1, 1, 1), LIGHTNESS_OF_SLICE.reshape(-1, 1, 1), steps, steps.reshape(-1, 1))
    shape = (SLICES, NODES, NODES)
    luma, lightness, x, y = (np.asarray(np.broadcast_to(plane, shape), np.float32) for plane in planes)
    difference = _into_gamut(least, greatest, *_color_difference(luma, lightness, x, y, color_space))
    return np.stack(difference, axis=-1).reshape(-1, NODES, 2) * np.float32(255) + np.float32(128.5)


def rgb_of_planes(luma: Bytes, cb: Bytes, cr: Bytes) -> Bytes:
    """RGB, uint8 [H, W, 3], of three planes of one size, uint8 [H, W]."""
    return np.asarray(cv2.cvtColor(cv2.merge([luma, cr, cb]), cv2.COLOR_YCrCb2RGB), np.uint8)


def rgb_at(luma: L, x: Floats, y: Floats, color_space: ColorSpace) -> L:
    """RGB, [..., 3], of pixels with this luma, uint8 or uint16 [...], and this chroma (x, y), float32 [...] each."""
    rgb = like(luma, np.empty((*luma.shape, 3), luma.dtype))
    unit = _unit(luma)
    cb, cr = _difference_in_gamut(luma, x, y, color_space)
    _store(rgb, unit + CR_EXCURSION * cr, unit - GREEN_OF_CB * cb - GREEN_OF_CR * cr, unit + CB_EXCURSION * cb)
    return rgb


def merge_rgb(luma: L, chroma: Floats, color_space: ColorSpace) -> L:
    """The luma-kept merge at full size: RGB [H, W, 3] whose BT.601 luma is `luma`, uint8 or uint16 [H, W].

    chroma: float32 [2, s, s]. Computed in float32 and rounded once: the way of 16 bits, and the reference for the
    faster ways.
    """
    rgb = like(luma, np.empty((*luma.shape, 3), luma.dtype))
    for rows, x, y in enlarged(chroma, *luma.shape):
        rgb[rows] = rgb_at(luma[rows], x, y, color_space)
    return rgb


def merge_literal(luma: L, chroma: Floats, color_space: ColorSpace) -> L:
    """The merge of the tutorials, RGB [H, W, 3]: L*ab or HSV to RGB, out-of-gamut values clipped.

    The photo's gray value is taken for V (`hsv`) or turned into L* (`lab`); the luma of the answer differs
    from it wherever there is colour (`hsv`) or clipping (`lab`).
    """
    rgb = like(luma, np.empty((*luma.shape, 3), luma.dtype))
    for rows, x, y in enlarged(chroma, *luma.shape):
        lightness = lightness_of_luma(luma[rows], color_space)
        if color_space == "lab":
            _store(rgb[rows], *_rgb_of_lab(lightness, x, y))
        else:
            _store(rgb[rows], *(lightness * c for c in _rgb_of_hue(x, y)))
    return rgb


def _store(rgb: Levels, red: Floats, green: Floats, blue: Floats) -> None:
    most = white(rgb)
    for channel, values in enumerate((red, green, blue)):
        rgb[..., channel] = np.clip(values * most + 0.5, 0, most)
