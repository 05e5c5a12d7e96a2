"""Says whether a photo is gray, toned or in colour: by how far its chroma spreads around one hue for each lightness.

R = G = B would find the gray ones only. A toned photo (sepia, selenium, cyanotype, a duotone, a scanner's tint, a print
gone yellow) has been gray, and its chroma is still a smooth function of its luma; a colour photo has different colours
at one luma. So the chroma that is usual at each luma is taken away (a local linear regression: Cleveland 1979), and
what is left is measured as the covariance between pixels a little apart, as in Moran's I: noise of a scanner or a JPEG
has no such likeness, things that have a colour do. The square root of that, in levels of Cb and Cr, is the spread.

What counts is the middle of the photo, without an eighth at each edge and without its most colourful 3 %: a tinted
paper border, an album page, a colour chart beside a gray photo, a small stamp or a date in red leave it gray or toned.
A gray photo with one large coloured thing is in colour, and so is a photo tinted by hand.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging.color import Bytes, Floats, Levels
from service.imaging.photo import Tone

Doubles = NDArray[np.float64]

# The middle is looked at in this many rows and columns, each the mean of a cell. With more, noise of JPEGs and fringes
# of scanners count as colour: at 96, a sixth of the real toned photos do. With fewer, small things are lost: at 32, a
# sixth of the dull colour photos.
SIDE = 48
# Of a large photo only some rows and columns are read, at least this many, so that time does not grow with its size.
SAMPLES = 4 * SIDE
# Left out at each edge: borders and charts are seldom wider.
MARGIN = 1 / 8
# Left out of the middle: the part that differs most. Without this, 85 % of small stamps (20 % with it) would make a
# gray photo one in colour, and four times as many real toned photos be taken for colour. It costs 2 % of dull colour
# photos.
ODD_SHARE = 0.03
# Lumas up to 32 apart tell the usual chroma of one another, by these weights: toning curves are smooth over that, and a
# red wall that has its lumas for itself is none.
REACH = 32
WEIGHTS = np.bartlett(2 * REACH + 1)
DISTANCES = np.arange(-REACH, REACH + 1.0)
# Levels squared, added to the variance of luma that a slope is divided by: none is made from a single luma.
LEAST_VARIANCE = 4.0
# Pixels are compared with those two further: in neighbours an enlarged chroma plane and blurred noise look alike.
LAG = 2
# A stain or uneven fading is broad, things have edges: the spread counts up to so many times that within DETAIL cells,
# yet never less than a part of the whole.
OF_DETAIL = 2.0
DETAIL = 13
OF_WHOLE = 0.4
# Covariance that chance gives to pure noise stays below this many standard errors. It matters for tiny pictures only.
CHANCE = 4.0

# Tolerated spread, levels: photographs that are gray to the eye have up to 0.8; toned ones more, the stronger the tone
# is, as it is uneven and coarsely stored. Real ones reach 1.9 where they are brown. Blue and green ones are allowed
# less: strong cyanotypes are even, and a photo with one such hue is mostly of snow, sea or forest, in colour.
TOLERANCE = 0.8
TOLERANCE_OF_TONE = 0.02
TOLERANCE_OF_BROWN = 0.04
# Added where every pixel is a cell, and so more of its encoding's noise is left; less, the more pixels make a cell. Of
# toned photos of 40 to 96 pixels, 10 % would be taken for colour without it and 1.6 % are; it costs 1.5 % of those in
# colour, 3 % at 40.
TOLERANCE_OF_SMALL = 0.75
BROWN = np.array([-0.8, 0.6], np.float32)  # the direction of sepia in Cb and Cr
STRONG_TONE = 16.0
# Root mean square of a gray photo's chroma, levels: rounding leaves one in each of Cb and Cr, which is hardly seen.
GRAY_CHROMA = 1.5


def tone_of_rgb(rgb: Levels) -> Tone:
    """The tone of a picture, uint8 or uint16 [H, W, 3] of any size."""
    middle = _middle(rgb)
    size = _cells(middle)
    planes = np.asarray(cv2.cvtColor(np.ascontiguousarray(middle), cv2.COLOR_RGB2YCrCb), np.uint8)
    luma, cr, cb = np.moveaxis(_shrunk(planes, size), -1, 0)
    return _tone(luma, cb, cr, luma.size / middle[..., 0].size)


def _middle(picture: Levels) -> Bytes:
    """Some rows and columns of a picture, uint8 [h, w, ...], without its margins."""
    rows, columns = (
        slice(int(side * MARGIN), side - int(side * MARGIN), max(1, side // SAMPLES)) for side in picture.shape[:2]
    )
    middle = picture[rows, columns]
    return np.asarray(middle if middle.dtype == np.uint8 else middle >> 8, np.uint8)


def _cells(picture: Bytes) -> tuple[int, int]:
    """Columns and rows, as OpenCV wants them: each side on its own, so that a panorama keeps its narrow one."""
    height, width = picture.shape[:2]
    return min(width, SIDE), min(height, SIDE)


def _shrunk(picture: Bytes, size: tuple[int, int]) -> Bytes:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _tone(luma: Bytes, cb: Bytes, cr: Bytes, cells_a_pixel: float) -> Tone:
    """The tone of three small planes of one size, uint8 [h, w]; how many cells they have for each pixel, up to 1."""
    chroma = np.dstack([cb, cr]).astype(np.float32) - 128
    left = _without_usual(luma, chroma)
    kept = ~_odd(left)
    if _spread(left * kept[..., np.newaxis]) >= _tolerance(chroma[kept].mean(axis=0), cells_a_pixel):
        return "color"
    return "gray" if _mean_square(chroma[kept]) < GRAY_CHROMA**2 else "toned"


def _without_usual(luma: Bytes, chroma: Floats) -> Floats:
    """Chroma, float32 [h, w, 2], less what is usual at the luma, uint8 [h, w]: a line through the lumas near each."""
    weight, toward, squared = _near(luma, None)
    weight = np.maximum(weight, 1e-6)
    mean = toward / weight
    variance = squared / weight - mean**2 + LEAST_VARIANCE
    usual = np.empty((256, 2), np.float32)
    for channel in range(2):
        total, product, _ = _near(luma, chroma[..., channel])
        level = total / weight
        slope = (product / weight - mean * level) / variance
        usual[:, channel] = level - slope * mean
    return chroma - usual[luma]


def _near(luma: Bytes, values: Floats | None) -> tuple[Doubles, Doubles, Doubles]:
    """For each luma 0..255, over the pixels with a luma near it: the sums of values (1 by default), and of these times
    the distance of the luma and its square, float64 [256] each.
    """
    sums = np.bincount(luma.ravel(), None if values is None else values.ravel(), minlength=256)
    # A convolution turns its weights around: a luma above has its weight at a negative distance.
    total, product, squared = (np.convolve(sums, WEIGHTS * factor, "same") for factor in (1, -DISTANCES, DISTANCES**2))
    return total, product, squared


def _odd(left: Floats) -> NDArray[np.bool_]:
    """Where the ODD_SHARE of pixels lies that differs most, judged with the neighbours: bool [h, w]."""
    size = np.square(cv2.blur(left, (3, 3))).sum(axis=-1)
    return np.asarray(size > np.quantile(size, 1 - ODD_SHARE))


def _spread(left: Floats) -> float:
    """Root mean square, levels, of what is alike in pixels LAG apart; of broad fields only a part."""
    whole = _likeness(left)
    detail = _likeness(left - cv2.blur(left, (DETAIL, DETAIL)))
    return min(whole, max(OF_DETAIL * detail, OF_WHOLE * whole))


def _likeness(left: Floats) -> float:
    """Root of the covariance, levels of Cb and Cr together, of pixels LAG apart in a row or a column, beyond chance."""
    height, width, _ = left.shape
    pairs = [(left[:, LAG:], left[:, :-LAG])] if width > LAG else []
    pairs += [(left[LAG:], left[:-LAG])] if height > LAG else []
    if not pairs:
        return 0.0
    covariance = sum(2 * float(np.mean(one * other)) for one, other in pairs) / len(pairs)
    chance = CHANCE * _mean_square(left) / 2 / float(np.sqrt(height * width))
    return float(np.sqrt(max(0.0, covariance - chance)))


def _mean_square(vectors: Floats) -> float:
    return 2 * float(np.mean(np.square(vectors)))


def _tolerance(mean: Floats, cells_a_pixel: float) -> float:
    """The largest spread, levels, of a photo that is no colour photo, by its mean chroma, float32 [2], and its size."""
    tone = min(float(np.hypot(*mean)), STRONG_TONE)
    brown = min(max(float(mean @ BROWN), 0.0), STRONG_TONE)
    of_size = TOLERANCE + TOLERANCE_OF_SMALL * cells_a_pixel
    return of_size + TOLERANCE_OF_TONE * tone + TOLERANCE_OF_BROWN * brown
