"""Find whether a photo is gray, toned or in colour, by how its chroma varies among pixels of the same lightness.

A test for R = G = B would find only gray photos. A toned photo was gray once: sepia, selenium, cyanotype, a duotone, a
scanner's tint, a yellowed print. Its chroma is still a smooth function of its luma. A colour photo has different
colours at one luma.

Method: the usual chroma of each luma is subtracted (local linear regression: Cleveland 1979, LOWESS). The rest is
measured as the covariance of pixels a few cells apart, as in Moran's I (Moran 1950). Noise of a scanner or a JPEG has
no such covariance, coloured things do. The square root of the covariance, in levels of Cb and Cr, is the spread. A
spread above a tolerance means colour.

Only the middle of the photo counts, without an eighth at each edge and without its most colourful 3 %. So a gray photo
stays gray despite a tinted border, an album page, a colour chart, a small stamp or a date in red. A gray photo with one
large coloured thing is in colour, and so is a photo tinted by hand.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from service.imaging.color import Bytes, Floats, Levels
from service.imaging.photo import Tone

Doubles = NDArray[np.float64]

# The middle is reduced to this many rows and columns of cells, each the mean of its pixels. With more cells, noise of
# JPEGs and fringes of scanners count as colour: at 96, a sixth of the real toned photos is misjudged. With fewer cells,
# small things are lost: at 32, a sixth of the dull colour photos is misjudged.
SIDE = 48
# Of a large photo, only some rows and columns are read, at least this many. So the time does not grow with its size.
SAMPLES = 4 * SIDE
# Share of a side that is ignored at each edge. Borders and charts are seldom wider.
MARGIN = 1 / 8
# Share of the middle that is ignored: the cells that differ most. It reduces gray photos that a small stamp turns into
# colour from 85 % to 20 %, and misjudged toned photos to a quarter. It costs 2 % of the dull colour photos.
OUTLIER_SHARE = 0.03
# Lumas up to 32 apart contribute to each other's usual chroma, by these weights. Toning curves are smooth over that
# distance. A red wall whose lumas occur nowhere else does not look like one.
REACH = 32
WEIGHTS = np.bartlett(2 * REACH + 1)
DISTANCES = np.arange(-REACH, REACH + 1.0)
# Levels squared. Added to the variance of luma that a slope is divided by, so that a single luma gives no slope.
MIN_VARIANCE = 4.0
# Distance of the compared cells. In direct neighbours, an enlarged chroma plane and blurred noise are correlated, too.
LAG = 2
# A stain or uneven fading is broad, while things have edges. So the spread is limited to DETAIL_WEIGHT times the one
# within DETAIL_CELLS cells, but it is at least WHOLE_WEIGHT times the spread of the whole.
DETAIL_WEIGHT = 2.0
DETAIL_CELLS = 13
WHOLE_WEIGHT = 0.4
# Pure noise has a random covariance of less than this many standard errors. It matters for tiny pictures only.
NOISE_ERRORS = 4.0

# Tolerated spread, levels. Photos that look gray have up to 0.8. Toned photos have more, the stronger the tone is, as a
# tone is uneven and coarsely quantized. Real brown photos reach 1.9. Blue and green photos are allowed less: strong
# cyanotypes are even, and a photo of one such hue is mostly a colour photo of snow, sea or forest.
TOLERANCE = 0.8
TOLERANCE_PER_CHROMA = 0.02
TOLERANCE_PER_BROWN = 0.04
# Added in full where every pixel is a cell, as more of the encoding's noise is left. Larger cells get a part of it.
# For photos of 40 to 96 pixels, misjudged toned photos fall from 10 % to 1.6 %. It costs 1.5 % of those in colour, and
# 3 % at 40 pixels.
TOLERANCE_FOR_SMALL = 0.75
BROWN = np.array([-0.8, 0.6], np.float32)  # the direction of sepia in Cb and Cr
STRONG_TONE = 16.0
# Highest root mean square of a gray photo's chroma, levels. Rounding gives up to one level in Cb and Cr each, which is
# hardly visible.
GRAY_CHROMA = 1.5


def tone_of_rgb(rgb: Levels) -> Tone:
    """Return the tone of an RGB picture, uint8 or uint16 [H, W, 3] of any size."""
    middle = _middle(rgb)
    size = _cells(middle)
    planes = np.asarray(cv2.cvtColor(np.ascontiguousarray(middle), cv2.COLOR_RGB2YCrCb), np.uint8)
    luma, cr, cb = np.moveaxis(_shrunk(planes, size), -1, 0)
    return _tone(luma, cb, cr, luma.size / middle[..., 0].size)


def _middle(picture: Levels) -> Bytes:
    """Return a sample of the rows and columns of a picture, uint8 [h, w, ...], without its margins."""
    rows, columns = (
        slice(int(side * MARGIN), side - int(side * MARGIN), max(1, side // SAMPLES)) for side in picture.shape[:2]
    )
    middle = picture[rows, columns]
    return np.asarray(middle if middle.dtype == np.uint8 else middle >> 8, np.uint8)


def _cells(picture: Bytes) -> tuple[int, int]:
    """Return columns and rows of cells, in OpenCV's order. Each side is limited alone, so a panorama keeps its rows."""
    height, width = picture.shape[:2]
    return min(width, SIDE), min(height, SIDE)


def _shrunk(picture: Bytes, size: tuple[int, int]) -> Bytes:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _tone(luma: Bytes, cb: Bytes, cr: Bytes, cells_a_pixel: float) -> Tone:
    """Return the tone of planes of cells, uint8 [h, w] each. cells_a_pixel: cells per pixel of the middle, 0..1."""
    chroma = np.dstack([cb, cr]).astype(np.float32) - 128
    left = _residual_chroma(luma, chroma)
    kept = ~_outliers(left)
    if _spread(left * kept[..., np.newaxis]) >= _max_spread(chroma[kept].mean(axis=0), cells_a_pixel):
        return "color"
    return "gray" if _mean_square(chroma[kept]) < GRAY_CHROMA**2 else "toned"


def _residual_chroma(luma: Bytes, chroma: Floats) -> Floats:
    """Return chroma, float32 [h, w, 2], minus the usual chroma at each luma, uint8 [h, w].

    The usual chroma is the value of a regression line, weighted by the distance of luma (Cleveland 1979).
    """
    weight, toward, squared = _weighted_sums(luma, None)
    weight = np.maximum(weight, 1e-6)
    mean = toward / weight
    variance = squared / weight - mean**2 + MIN_VARIANCE
    usual = np.empty((256, 2), np.float32)
    for channel in range(2):
        total, product, _ = _weighted_sums(luma, chroma[..., channel])
        level = total / weight
        slope = (product / weight - mean * level) / variance
        usual[:, channel] = level - slope * mean
    return chroma - usual[luma]


def _weighted_sums(luma: Bytes, values: Floats | None) -> tuple[Doubles, Doubles, Doubles]:
    """Return weighted sums over the pixels near each luma 0..255, float64 [256] each.

    The sums are of the values (1 by default), of values times the distance in luma, and of values times its square.
    """
    sums = np.bincount(luma.ravel(), None if values is None else values.ravel(), minlength=256)
    # A convolution reverses its weights: a higher luma has its weight at a negative distance.
    total, product, squared = (np.convolve(sums, WEIGHTS * factor, "same") for factor in (1, -DISTANCES, DISTANCES**2))
    return total, product, squared


def _outliers(left: Floats) -> NDArray[np.bool_]:
    """Return a mask, bool [h, w], of the OUTLIER_SHARE of cells that differ most, each averaged with its neighbours."""
    size = np.square(cv2.blur(left, (3, 3))).sum(axis=-1)
    return np.asarray(size > np.quantile(size, 1 - OUTLIER_SHARE))


def _spread(left: Floats) -> float:
    """Return the root, levels, of the covariance of cells LAG apart. Broad fields count only in part."""
    whole = _correlated_chroma(left)
    detail = _correlated_chroma(left - cv2.blur(left, (DETAIL_CELLS, DETAIL_CELLS)))
    return min(whole, max(DETAIL_WEIGHT * detail, WHOLE_WEIGHT * whole))


def _correlated_chroma(left: Floats) -> float:
    """Return the root of the covariance, levels of Cb and Cr together, of cells LAG apart in a row or a column.

    The covariance that noise may have by chance is subtracted first.
    """
    height, width, _ = left.shape
    pairs = [(left[:, LAG:], left[:, :-LAG])] if width > LAG else []
    pairs += [(left[LAG:], left[:-LAG])] if height > LAG else []
    if not pairs:
        return 0.0
    covariance = sum(2 * float(np.mean(one * other)) for one, other in pairs) / len(pairs)
    chance = NOISE_ERRORS * _mean_square(left) / 2 / float(np.sqrt(height * width))
    return float(np.sqrt(max(0.0, covariance - chance)))


def _mean_square(vectors: Floats) -> float:
    """Return the mean squared length of vectors, float32 [..., 2]."""
    return 2 * float(np.mean(np.square(vectors)))


def _max_spread(mean: Floats, cells_a_pixel: float) -> float:
    """Return the largest spread, levels, of a photo that is not in colour. mean: its mean chroma, float32 [2]."""
    tone = min(float(np.hypot(*mean)), STRONG_TONE)
    brown = min(max(float(mean @ BROWN), 0.0), STRONG_TONE)
    of_size = TOLERANCE + TOLERANCE_FOR_SMALL * cells_a_pixel
    return of_size + TOLERANCE_PER_CHROMA * tone + TOLERANCE_PER_BROWN * brown
