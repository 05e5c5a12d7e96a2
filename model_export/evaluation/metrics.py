"""Image metrics: pure functions of sRGB pixels, uint8, where `truth` has the shape of `rgb`.

Chroma and colour differences are in CIE Lab units (illuminant D65). Hue is the angle of (a*, b*), in degrees.
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from service.imaging.color import Bytes, Floats

Doubles = NDArray[np.float64]

# Photographs are processed in chunks of this number. The temporary arrays then fit the CPU cache: twice as fast.
CHUNK = 16
# Below this chroma, in Lab units, a pixel has no meaningful hue.
MIN_HUE_CHROMA = 0.5
# The mean absolute error of a uniformly random hue, degrees.
CHANCE_HUE_ERROR = 90.0
# Zhang et al., "Colorful Image Colorization" (2016): the largest threshold of the AuC, and
# the side of the (a*, b*) bins.
MAX_AB_ERROR = 150
BIN_SIDE = 10
# Standard deviations of the bilateral filter: distance as a share of the image's side, then chroma and L* in Lab units.
SPATIAL_SIGMA = 0.2
CHROMA_SIGMA = 6.0
LIGHTNESS_SIGMA = 25.0


def chunks(count: int) -> Iterator[slice]:
    """Yield slices that cover 0..count in chunks of CHUNK photographs."""
    for start in range(0, count, CHUNK):
        yield slice(start, start + CHUNK)


def lab(rgb: Bytes) -> Floats:
    """Return L*, a*, b*, float32 [..., 3], of pixels [..., 3]."""
    # With float32, scikit-image takes half the time, and CIEDE2000 changes by at most 0.0002.
    return np.asarray(rgb2lab(rgb.astype(np.float32) / np.float32(255)), np.float32)


def _hue_and_chroma(rgb: Bytes) -> tuple[Floats, Floats]:
    """Return hue, radians in -pi..pi, and chroma, Lab units; both float32 [...]."""
    a, b = np.moveaxis(lab(rgb)[..., 1:], -1, 0)
    return np.arctan2(b, a), np.hypot(a, b)


def ciede2000(rgb: Bytes, truth: Bytes) -> Floats:
    """Return the CIEDE2000 difference of each pixel, float32 [...], of pixels [..., 3].

    Source: Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula" (2005), as implemented by scikit-image.
    """
    parts = [
        deltaE_ciede2000(lab(rgb[rows]), lab(truth[rows]))  # type: ignore[no-untyped-call]
        for rows in chunks(len(rgb))
    ]
    return np.concatenate(parts, dtype=np.float32)


def mean_ciede2000(rgb: Bytes, truth: Bytes) -> float:
    """Return the mean CIEDE2000 difference over all pixels [..., 3]."""
    return float(ciede2000(rgb, truth).mean(dtype=np.float64))


def colorfulness(rgb: Bytes) -> Doubles:
    """Return the colourfulness of each photograph, float64 [P], of pixels [P, n, 3].

    It is M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003): with rg = R - G and yb = (R +
    G) / 2 - B, hypot(std(rg), std(yb)) + 0.3 hypot(mean(rg), mean(yb)).
    """
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(axis=1), yellow_blue.std(axis=1))
    mean = np.hypot(red_green.mean(axis=1), yellow_blue.mean(axis=1))
    return np.asarray(spread + 0.3 * mean)


def mean_chroma(rgb: Bytes) -> float:
    """Return the mean chroma over all pixels [..., 3], Lab units."""
    return float(_hue_and_chroma(rgb)[1].mean(dtype=np.float64))


def hue_error(rgb: Bytes, truth: Bytes) -> float:
    """Return the mean absolute hue error over all pixels [..., 3], in degrees, 0..180, weighted by the true chroma.

    A predicted pixel whose chroma is below MIN_HUE_CHROMA has no hue and counts 90, the expected error of a random hue.
    The result is 90 if no pixel of the truth has a hue.
    """
    hue, chroma = _hue_and_chroma(rgb)
    true_hue, weight = _hue_and_chroma(truth)
    if weight.max() < MIN_HUE_CHROMA:
        return CHANCE_HUE_ERROR
    offset = hue - true_hue
    error = np.abs(np.rad2deg(np.arctan2(np.sin(offset), np.cos(offset))))
    # The difference from 90 is averaged, so that gray gets exactly 90 and not 90.00000001.
    gained = np.where(chroma < MIN_HUE_CHROMA, 0, error - CHANCE_HUE_ERROR)
    return CHANCE_HUE_ERROR + float(np.average(gained, weights=weight))


def hue_histogram(rgb: Bytes, bins: int = 36) -> Doubles:
    """Return the mean chroma per hue range, float64 [bins], of pixels [..., 3].

    The ranges cover 0..360 degrees. The sum is the mean chroma, without pixels that are too gray to have a hue.
    """
    hue, chroma = _hue_and_chroma(rgb)
    weight = np.where(chroma < MIN_HUE_CHROMA, 0, chroma)
    number = np.floor(np.rad2deg(hue) % 360 * (bins / 360)).astype(np.intp) % bins
    return np.bincount(number.ravel(), weight.ravel(), bins) / chroma.size


def unevenness(rgb: Bytes, truth: Bytes) -> float:
    """Return the mean excess deviation of chroma within areas of one true colour, Lab units.

    rgb and truth: one photograph, shrunk, [s, s, 3]. Each pixel's chroma is compared with a weighted mean over all
    pixels. The weights are those of a bilateral filter (Tomasi and Manduchi 1998): near pixels with a similar true
    colour count most. The result is the mean of max(0, deviation of `rgb` - deviation of `truth`).

    It is 0 for gray, for a uniform tint and for the truth. It is positive if a shirt is half coloured or a
    sky fades midway. It is also positive if colour bleeds from a face onto the background.
    """
    true, predicted = (lab(pixels).reshape(-1, 3) for pixels in (truth, rgb))
    side = len(truth)
    y, x = np.divmod(np.arange(len(true), dtype=np.float32), side)
    scales = np.array((LIGHTNESS_SIGMA, CHROMA_SIGMA, CHROMA_SIGMA), np.float32)
    features = np.column_stack([y / (SPATIAL_SIGMA * side), x / (SPATIAL_SIGMA * side), true / scales]).astype(
        np.float32
    )
    squares = np.sum(features**2, axis=1)
    similarity = np.exp(features @ features.T - (squares[:, np.newaxis] + squares) / 2)
    weight = similarity.sum(axis=1, keepdims=True)
    own, expected = (
        np.linalg.norm(chroma - similarity @ chroma / weight, axis=1) for chroma in (predicted[:, 1:], true[:, 1:])
    )
    excess = own - expected
    return float(np.maximum(excess, 0).mean())


def ab_errors(rgb: Bytes, truth: Bytes) -> Floats:
    """Return the Euclidean distance in the (a*, b*) plane of each pixel, float32 [...], of pixels [..., 3]."""
    a, b = np.moveaxis((lab(rgb) - lab(truth))[..., 1:], -1, 0)
    return np.asarray(np.hypot(a, b))


def ab_rmse(errors: Floats) -> float:
    """Return the root mean square error over both a* and b*, Lab units. errors: of `ab_errors`."""
    return float(np.sqrt(np.square(errors, dtype=np.float64).mean() / 2))


def rebalancing_weights(truth: Bytes) -> Doubles:
    """Return the weight of each pixel in the rebalanced AuC, float64 [...], of pixels [..., 3].

    It is the inverse frequency of the pixel's colour, in bins of 10 Lab units: equation 4 of Zhang et al. (2016) with
    lambda = 0. That is their evaluation; they train with 1/2. Unlike theirs, the frequencies are those of the measured
    pixels, not of ImageNet, and are not smoothed. So values of two sets can't be compared.
    """
    a, b = np.moveaxis(np.rint(lab(truth)[..., 1:] / BIN_SIDE).astype(np.intp), -1, 0)
    # a* and b* of sRGB colours are within +-110, so these numbers are unique.
    _, number, count = np.unique((100 * a + b).ravel(), return_inverse=True, return_counts=True)
    weight = number.size / count
    return np.asarray(weight[number].reshape(a.shape))


def auc(errors: Floats, weights: Doubles | None = None) -> float:
    """Return the colorization accuracy AuC of Zhang et al. (2016), percent.

    It is the area under the curve of the share of pixels whose ab error is at most a threshold of 0, 1, .. 150. errors:
    of `ab_errors`. weights: of `rebalancing_weights`, for the rebalanced AuC.
    """
    least = np.ceil(np.minimum(errors, MAX_AB_ERROR + 1)).astype(np.intp).ravel()
    by_threshold = np.bincount(least, None if weights is None else weights.ravel(), MAX_AB_ERROR + 2)
    within = by_threshold.cumsum()[: MAX_AB_ERROR + 1] / by_threshold.sum()
    return 100 * float(np.trapezoid(within)) / MAX_AB_ERROR


def hs_rmse(rgb: Bytes, truth: Bytes) -> float:
    """Return the root mean square error over H, 0..179, and S, 0..255, of pixels [P, n, 3].

    It is the loss of the HSV tutorial, on OpenCV's `COLOR_RGB2HSV`. H is not treated as an angle: 179 and 0 are both
    red but have the largest distance.
    """
    hsv, true = (np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), np.float32)[..., :2] for pixels in (rgb, truth))
    return float(np.sqrt(np.square(hsv - true).mean(dtype=np.float64)))


def psnr(rgb: Bytes, truth: Bytes) -> float | None:
    """Return the peak signal-to-noise ratio, dB, of all pixels [..., 3] taken as one image; None if all are equal.

    Papers average over photographs, which gives slightly higher values.
    """
    if np.array_equal(rgb, truth):
        return None
    return float(peak_signal_noise_ratio(truth, rgb, data_range=255))  # type: ignore[no-untyped-call]
