"""Split a photo into lightness and chroma, and merge lightness and chroma into a colour photo.

Only this module knows colour spaces. The training program uses it too. There are two colour spaces:

- `lab`: CIE 1976 L*a*b*, white point D65. Lightness is L*/100, chroma is (a*, b*) in Lab units.
- `hsv`: the hexcone of Smith (1978), "Color gamut transform pairs". Lightness is V. Chroma is the vector
  (S cos H, S sin H), each in -1..1. Thus hues can be averaged and interpolated without a seam at red.

The gray value of a black-and-white photo is its luma Y (ITU-R BT.601, the Y of a JPEG). The `luma` merges keep that
plane unchanged and add only colour differences. The `literal` merges replace L* or V, as tutorials do.
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
# Stored values: 0..255, or 0..65,535 for a photo with 16 bits a channel.
Levels = NDArray[np.uint8 | np.uint16]
L = TypeVar("L", bound=Levels)

COLOR_SPACES: tuple[ColorSpace, ...] = ("lab", "hsv")

# ITU-R BT.601: B - Y = 1.772 Cb and R - Y = 1.402 Cr, with Cb and Cr in -0.5..0.5, and the shares of both in green.
CB_EXCURSION = 1.772
CR_EXCURSION = 1.402
GREEN_OF_CB = 0.114 * CB_EXCURSION / 0.587
GREEN_OF_CR = 0.299 * CR_EXCURSION / 0.587

# IEC 61966-2-1 (sRGB): from XYZ, relative to the D65 white point, to linear RGB.
XYZ_TO_RGB = np.linalg.inv(
    np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
    / np.array([[0.950456], [1.0], [1.088754]])
).astype(np.float32)

# The longest side that OpenCV's `remap` accepts, pixels.
REMAP_SIDE = 32_766

# A merge works on strips of this many pixels, so that its temporary arrays stay in the processor's cache.
STRIP_PIXELS = 16_384
# Up to this many pixels, OpenCV enlarges a whole plane faster than strips. Above, memory bandwidth costs more.
WHOLE_PIXELS = 1 << 20


def _lightness_of_luma(levels: int) -> Floats:
    """Return L*/100, float32 [levels], of each gray sRGB value (IEC 61966-2-1 curve, then CIE 1976 L*)."""
    gray = np.arange(levels) / (levels - 1)
    linear = np.where(gray <= 0.04045, gray / 12.92, ((gray + 0.055) / 1.055) ** 2.4)
    f = np.where(linear > 216 / 24389, np.cbrt(linear), (24389 / 27 * linear + 16) / 116)
    return np.maximum(1.16 * f - 0.16, 0).astype(np.float32)


# L*/100 of each gray sRGB value, 0..255 and 0..65,535.
LIGHTNESS_OF_LUMA = _lightness_of_luma(256)
LIGHTNESS_OF_DEEP_LUMA = _lightness_of_luma(65_536)


def _luma_slices() -> tuple[Bytes, Floats, Floats]:
    """Divide luma into slices of 1 to 8 levels. Near black and white, where the gamut is narrow, a slice has 1 level.

    Returns the slice number of each luma, uint8 [256], and the lowest and highest luma of each slice, in 0..1.
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


SLICE_OF_LUMA, MIN_LUMA_OF_SLICE, MAX_LUMA_OF_SLICE = _luma_slices()
SLICES = len(MIN_LUMA_OF_SLICE)
LUMA_OF_SLICE = (MIN_LUMA_OF_SLICE + MAX_LUMA_OF_SLICE) / 2
# For every slice, a table has the colour difference at this many steps of each chroma channel over its range: 2 MB.
# With half the steps, errors at the gamut's edges reach 18 levels. With twice the steps, the table takes 0.4 s to make.
TABLE_STEPS = 65
CHROMA_RANGE: dict[ColorSpace, float] = {"lab": 128.0, "hsv": 1.0}
FIRST_ROW_OF_LUMA = (SLICE_OF_LUMA.astype(np.float32) * TABLE_STEPS).reshape(1, 256)
LIGHTNESS_OF_SLICE = np.interp(LUMA_OF_SLICE, np.arange(256) / 255, LIGHTNESS_OF_LUMA).astype(np.float32)


def max_level(picture: Levels) -> int:
    """Return the highest level of a picture's type: 255 or 65,535."""
    return int(np.iinfo(picture.dtype).max)


def as_levels(picture: L, made: Any) -> L:
    """Return an array computed from a picture, as the picture's own type: uint8 or uint16."""
    return cast("L", np.asarray(made, picture.dtype))


def _normalize(picture: Levels) -> Floats:
    """Return levels as float32 in 0..1."""
    return picture.astype(np.float32) / np.float32(max_level(picture))


def luma_of_rgb(rgb: L) -> L:
    """Return the BT.601 luma, [H, W], of an RGB picture, uint8 or uint16 [H, W, 3]."""
    return as_levels(rgb, cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def lightness_of_luma(luma: Levels, color_space: ColorSpace) -> Floats:
    """Return lightness in 0..1, float32 [...], of luma, uint8 or uint16 [...].

    For `lab`, it is L*/100 of the gray sRGB value (CIE 1976). For `hsv`, it is the gray value itself.
    """
    if color_space == "hsv":
        return _normalize(luma)
    if luma.dtype == np.uint16:
        return np.take(LIGHTNESS_OF_DEEP_LUMA, luma)
    return np.asarray(cv2.LUT(luma, LIGHTNESS_OF_LUMA.reshape(1, 256)), np.float32)


def half(picture: L) -> L:
    """Return a picture, [H, W, ...], at half of each side, rounded up: the size of the chroma planes of 4:2:0."""
    height, width = picture.shape[:2]
    # OpenCV has a special, fastest path for a factor of two. It needs even sides, so an odd side is padded.
    if height % 2 or width % 2:
        picture = as_levels(picture, cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
    size = ((width + 1) // 2, (height + 1) // 2)
    return as_levels(picture, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _is_halved_first(picture: Levels, size: int) -> bool:
    """Return whether to halve a picture before it is shrunk to `size`, as OpenCV halves fastest.

    The padding of an odd side must be a small part of a pixel of the result.
    """
    height, width = picture.shape[:2]
    is_even = height % 2 == 0 and width % 2 == 0
    return bool(min(height, width) >= (4 if is_even else 16) * size)


def square(picture: L, size: int) -> L:
    """Return a picture, [H, W, ...], as [size, size, ...]. Sides are shrunk by area, then enlarged bilinearly."""
    while _is_halved_first(picture, size):
        picture = half(picture)
    height, width = picture.shape[:2]
    if height > size or width > size:
        shrunk = (min(width, size), min(height, size))
        picture = as_levels(picture, cv2.resize(picture, shrunk, interpolation=cv2.INTER_AREA))
    if picture.shape[:2] == (size, size):
        return picture
    return as_levels(picture, cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR))


def split(luma: Levels, color_space: ColorSpace, size: int) -> Floats:
    """Return the model's input: the whole photo as lightness in 0..1, float32 [1, size, size].

    luma: uint8 or uint16 [H, W].
    """
    return lightness_of_luma(square(luma, size), color_space)[np.newaxis]


def split_rgb(rgb: Bytes, color_space: ColorSpace) -> tuple[Floats, Floats]:
    """Return the true lightness and chroma of an sRGB picture, uint8 [H, W, 3].

    Lightness is float32 [H, W] in 0..1: L*/100 or V. Chroma is float32 [H, W, 2], in the units of the module docstring.
    """
    unit = _normalize(rgb)
    if color_space == "lab":
        lab = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2Lab), np.float32)
        return lab[..., 0] / np.float32(100), lab[..., 1:]
    hsv = np.asarray(cv2.cvtColor(unit, cv2.COLOR_RGB2HSV), np.float32)
    hue = np.deg2rad(hsv[..., 0])
    direction = np.stack([np.cos(hue), np.sin(hue)], axis=-1)
    return np.asarray(hsv[..., 2], np.float32), np.asarray(hsv[..., 1:2] * direction, np.float32)


def _rgb_of_lab(lightness: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats, Floats]:
    """Return R, G and B, float32, nominally 0..1 but not clipped, of L*/100, a* and b*, float32 of one shape each.

    Inverse of CIE 1976 L*a*b*, then the sRGB curve of IEC 61966-2-1, continued as an odd function below zero.
    Arrays are reused in place, since each temporary array has three planes. Both curves are linear below their knees.
    The linear part is added to a clipped power, because `np.where` is slower than the curves.
    """
    fy = (lightness * 100 + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200])
    curved = np.clip(f, 6 / 29, None)  # three times as fast as np.maximum
    straight = f
    straight -= curved
    straight *= 108 / 841
    xyz = curved * curved
    xyz *= curved
    xyz += straight
    # Not `@`: it wakes the threads of the linear algebra library, which spin and take cores from other photos.
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
    """Return R, G and B, float32 in 0..1, of hue and saturation at V = 1.

    x, y: the vector (S cos H, S sin H), float32 of one shape each. Saturation is clipped to 1. Formula: HSV to RGB of
    Smith (1978), in the form without branches.
    """
    saturation = np.minimum(np.hypot(x, y), 1)
    sextant = np.arctan2(y, x) * np.float32(3 / np.pi)
    red, green, blue = (
        1 - saturation * (1 - np.clip(np.abs((sextant + shift) % 6 - 3) - 1, 0, 1)) for shift in (0, 4, 2)
    )
    return red, green, blue


def _color_difference(
    luma: Floats, lightness: Floats, x: Floats, y: Floats, color_space: ColorSpace
) -> tuple[Floats, Floats]:
    """Return Cb and Cr, float32, nominally -0.5..0.5, of the chroma (x, y). They may be outside the gamut.

    luma: in 0..1. lightness: L*/100 of the same grays, used by `lab` only. For `hsv`, RGB at V = 1 is scaled so that
    its luma is `luma`. Cb = (B - Y) / 1.772 and Cr = (R - Y) / 1.402 (ITU-R BT.601).
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
    """Scale (Cb, Cr) towards gray until R, G and B are in 0..1 at every luma from `least` to `greatest`.

    One scale for Cb and Cr keeps the hue. R, G and B of a colour difference are linear in luma (ITU-R BT.601).
    """
    excesses = (CR_EXCURSION * cr, -GREEN_OF_CB * cb - GREEN_OF_CR * cr, CB_EXCURSION * cb)
    most, least_excess = reduce(np.maximum, excesses), reduce(np.minimum, excesses)
    too_much = np.maximum(most / np.maximum(1 - greatest, 1e-6), -least_excess / np.maximum(least, 1e-6))
    scale: Floats = np.asarray(1 / np.maximum(too_much, 1), np.float32)
    return cb * scale, cr * scale


def _difference_in_gamut(luma: Levels, x: Floats, y: Floats, color_space: ColorSpace) -> tuple[Floats, Floats]:
    """Return Cb and Cr, float32 in -0.5..0.5, in gamut, of pixels with this luma and this chroma (x, y)."""
    unit = _normalize(luma)
    return _into_gamut(unit, unit, *_color_difference(unit, lightness_of_luma(luma, "lab"), x, y, color_space))


def _strips(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of strips of about STRIP_PIXELS pixels."""
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(height, top + rows))


def enlarge(chroma: Floats, height: int, width: int) -> tuple[Floats, Floats]:
    """Return both chroma channels, float32 [2, s, s], enlarged bilinearly to [height, width] each."""
    x, y = (np.asarray(cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR)) for c in chroma)
    return x, y


def enlarge_in_strips(chroma: Floats, height: int, width: int) -> Iterator[tuple[slice, Floats, Floats]]:
    """Yield the result of `enlarge` strip by strip: the rows, and both channels, float32 [rows, width], in these rows.

    The planes of a large photo never exist as a whole, which saves memory.
    """
    if height * width <= WHOLE_PIXELS:
        x, y = enlarge(chroma, height, width)
        yield from ((rows, x[rows], y[rows]) for rows in _strips(height, width))
        return
    side = chroma.shape[1]
    wide = np.stack([cv2.resize(c, (width, side), interpolation=cv2.INTER_LINEAR) for c in chroma], axis=1)
    further = np.zeros_like(wide)
    np.subtract(wide[1:], wide[:-1], out=further[:-1])
    # Pixel centres are mapped as OpenCV does. Beyond the outer centres, the value is constant.
    at = np.clip((np.arange(height) + 0.5) * (side / height) - 0.5, 0, side - 1)
    above = at.astype(np.intp)
    share = (at - above).astype(np.float32).reshape(-1, 1, 1)
    for rows in _strips(height, width):
        strip = further.take(above[rows], axis=0)
        strip *= share[rows]
        strip += wide.take(above[rows], axis=0)
        yield rows, strip[:, 0], strip[:, 1]


def merge_planes(luma: Bytes, chroma: Floats, color_space: ColorSpace) -> tuple[Bytes, Bytes]:
    """Return Cb and Cr planes, uint8 [h, w] with 128 as neutral, for a luma plane that stays unchanged.

    luma: uint8 [h, w], at the size that Cb and Cr shall have: half the photo's for 4:2:0. chroma: float32 [2, s, s], a
    model's output.

    The colour difference of each pixel is interpolated in the table of its luma's slice. This takes a hundredth of the
    time of computing it, and differs from it by 0.5 levels on average.
    """
    table = _difference_table(color_space)
    cb, cr = np.empty_like(luma), np.empty_like(luma)
    for rows, across, down in enlarge_in_strips(_steps_of_table(chroma, color_space), *luma.shape):
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
    """Return the coordinates of chroma in a slice of the table: steps across and down, float32 [2, s, s] like chroma.

    Chroma beyond the table is beyond every gamut, too. It is scaled towards gray until it is inside.
    """
    longest = np.maximum(CHROMA_RANGE[color_space], np.abs(chroma).max(axis=0))
    middle = np.float32((TABLE_STEPS - 1) / 2)
    return np.asarray(chroma * (middle / longest) + middle, np.float32)


@lru_cache
def _difference_table(color_space: ColorSpace) -> Floats:
    """Return a table of Cb and Cr in gamut, float32 [slices * TABLE_STEPS, TABLE_STEPS, 2], as levels plus a half.

    For each slice of luma it has the chroma at all steps of its range: y down and x across.
    """
    steps = np.linspace(-CHROMA_RANGE[color_space], CHROMA_RANGE[color_space], TABLE_STEPS, dtype=np.float32)
    least, greatest = (ends.reshape(-1, 1, 1) for ends in (MIN_LUMA_OF_SLICE, MAX_LUMA_OF_SLICE))
    planes = (LUMA_OF_SLICE.reshape(-1, 1, 1), LIGHTNESS_OF_SLICE.reshape(-1, 1, 1), steps, steps.reshape(-1, 1))
    shape = (SLICES, TABLE_STEPS, TABLE_STEPS)
    luma, lightness, x, y = (np.asarray(np.broadcast_to(plane, shape), np.float32) for plane in planes)
    difference = _into_gamut(least, greatest, *_color_difference(luma, lightness, x, y, color_space))
    return np.stack(difference, axis=-1).reshape(-1, TABLE_STEPS, 2) * np.float32(255) + np.float32(128.5)


def rgb_of_planes(luma: Bytes, cb: Bytes, cr: Bytes) -> Bytes:
    """Return RGB, uint8 [H, W, 3], of Y, Cb and Cr planes, uint8 [H, W] each (ITU-R BT.601, full range)."""
    return np.asarray(cv2.cvtColor(cv2.merge([luma, cr, cb]), cv2.COLOR_YCrCb2RGB), np.uint8)


def rgb_at(luma: L, x: Floats, y: Floats, color_space: ColorSpace) -> L:
    """Return RGB, [..., 3] of luma's type, of pixels with this luma and this chroma.

    luma: uint8 or uint16 [...]. x, y: float32 [...] each. The luma of the result is `luma`, up to rounding.
    """
    rgb = as_levels(luma, np.empty((*luma.shape, 3), luma.dtype))
    unit = _normalize(luma)
    cb, cr = _difference_in_gamut(luma, x, y, color_space)
    _store_rgb(rgb, unit + CR_EXCURSION * cr, unit - GREEN_OF_CB * cb - GREEN_OF_CR * cr, unit + CB_EXCURSION * cb)
    return rgb


def merge_rgb(luma: L, chroma: Floats, color_space: ColorSpace) -> L:
    """Return RGB, [H, W, 3] of luma's type, whose BT.601 luma is `luma`, uint8 or uint16 [H, W].

    chroma: float32 [2, s, s]. Computed in float32 and rounded once. It is used for 16 bits, and is the reference for
    the faster merges of 8 bits.
    """
    rgb = as_levels(luma, np.empty((*luma.shape, 3), luma.dtype))
    for rows, x, y in enlarge_in_strips(chroma, *luma.shape):
        rgb[rows] = rgb_at(luma[rows], x, y, color_space)
    return rgb


def merge_literal(luma: L, chroma: Floats, color_space: ColorSpace) -> L:
    """Return the merge of the tutorials, RGB [H, W, 3] of luma's type. Values out of gamut are clipped.

    luma: uint8 or uint16 [H, W]. chroma: float32 [2, s, s]. The gray value is used as V (`hsv`), or its L* is used
    (`lab`). The luma of the result differs from `luma` where there is colour (`hsv`) or clipping (`lab`).
    """
    rgb = as_levels(luma, np.empty((*luma.shape, 3), luma.dtype))
    for rows, x, y in enlarge_in_strips(chroma, *luma.shape):
        lightness = lightness_of_luma(luma[rows], color_space)
        if color_space == "lab":
            _store_rgb(rgb[rows], *_rgb_of_lab(lightness, x, y))
        else:
            _store_rgb(rgb[rows], *(lightness * c for c in _rgb_of_hue(x, y)))
    return rgb


def _store_rgb(rgb: Levels, red: Floats, green: Floats, blue: Floats) -> None:
    """Write R, G and B, nominally 0..1, into `rgb` as levels, rounded and clipped."""
    most = max_level(rgb)
    for channel, values in enumerate((red, green, blue)):
        rgb[..., channel] = np.clip(values * most + 0.5, 0, most)
