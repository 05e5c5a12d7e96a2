"""What an answer is measured by. Pure functions of pixels in sRGB, uint8; `truth` has the shape of `rgb`.

Chroma and differences are in CIE Lab units (D65), hues in degrees of the angle of (a*, b*).
"""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from service.imaging.color import Bytes, Floats

Doubles = NDArray[np.float64]

# So many photographs are worked on at once: their temporaries stay in the processor's cache, in half the time.
CHUNK = 16
# Below this chroma an answer has no hue, and photographs of which no pixel has more.
MIN_HUE_CHROMA = 0.5
# The error of a hue that is guessed.
CHANCE_HUE_ERROR = 90.0
# Zhang et al., "Colorful Image Colorization" (2016): the largest ab error that is counted, and the side of the bins
# that colours are counted in.
MAX_AB_ERROR = 150
BIN_SIDE = 10
# Of a place's neighbours, one standard deviation: as a share of the photo's side, and in Lab units of chroma and of L*.
SPATIAL_SIGMA = 0.2
CHROMA_SIGMA = 6.0
LIGHTNESS_SIGMA = 25.0


def chunks(count: int) -> Iterator[slice]:
    """Slices of 0..count that are worked on one after the other."""
    for start in range(0, count, CHUNK):
        yield slice(start, start + CHUNK)


def lab(rgb: Bytes) -> Floats:
    """L*, a*, b*, float32 [..., 3], of pixels [..., 3]."""
    # skimage in float32 takes half the time of float64, and differences stay the same to 0.0002.
    return np.asarray(rgb2lab(rgb.astype(np.float32) / np.float32(255)), np.float32)


def _hue_and_chroma(rgb: Bytes) -> tuple[Floats, Floats]:
    """Hue in radians, -pi..pi, and chroma, float32 [...]."""
    a, b = np.moveaxis(lab(rgb)[..., 1:], -1, 0)
    return np.arctan2(b, a), np.hypot(a, b)


def ciede2000(rgb: Bytes, truth: Bytes) -> Floats:
    """CIEDE2000 of each pixel, float32 [...] of [..., 3]."""
    parts = [
        deltaE_ciede2000(lab(rgb[rows]), lab(truth[rows]))  # type: ignore[no-untyped-call]
        for rows in chunks(len(rgb))
    ]
    return np.concatenate(parts, dtype=np.float32)


def mean_ciede2000(rgb: Bytes, truth: Bytes) -> float:
    """Mean CIEDE2000 of pixels [..., 3]."""
    return float(ciede2000(rgb, truth).mean(dtype=np.float64))


def colorfulness(rgb: Bytes) -> Doubles:
    """M3 of Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), [P] of pixels [P, n, 3]."""
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    spread = np.hypot(red_green.std(axis=1), yellow_blue.std(axis=1))
    mean = np.hypot(red_green.mean(axis=1), yellow_blue.mean(axis=1))
    return np.asarray(spread + 0.3 * mean)


def mean_chroma(rgb: Bytes) -> float:
    """Mean chroma of pixels [..., 3]."""
    return float(_hue_and_chroma(rgb)[1].mean(dtype=np.float64))


def hue_error(rgb: Bytes, truth: Bytes) -> float:
    """Mean absolute hue error of pixels [..., 3], weighted by the true chroma; 90 where there is no hue."""
    hue, chroma = _hue_and_chroma(rgb)
    true_hue, weight = _hue_and_chroma(truth)
    if weight.max() < MIN_HUE_CHROMA:
        return CHANCE_HUE_ERROR
    turn = hue - true_hue
    error = np.abs(np.rad2deg(np.arctan2(np.sin(turn), np.cos(turn))))
    # What differs from chance is averaged, so that gray gets 90 and not 90.00000001.
    gained = np.where(chroma < MIN_HUE_CHROMA, 0, error - CHANCE_HUE_ERROR)
    return CHANCE_HUE_ERROR + float(np.average(gained, weights=weight))


def hue_histogram(rgb: Bytes, bins: int = 36) -> Doubles:
    """Mean chroma that each range of hue adds, from 0 to 360 degrees, [bins] of pixels [..., 3].

    The sum is the mean chroma, less what is too gray to have a hue.
    """
    hue, chroma = _hue_and_chroma(rgb)
    weight = np.where(chroma < MIN_HUE_CHROMA, 0, chroma)
    number = np.floor(np.rad2deg(hue) % 360 * (bins / 360)).astype(np.intp) % bins
    return np.bincount(number.ravel(), weight.ravel(), bins) / chroma.size


def unevenness(rgb: Bytes, truth: Bytes) -> float:
    """How far chroma strays within things of one colour, of a photo shrunk to `truth`'s pixels, [s, s, 3].

    Each place is held against the mean of those that are near it and truly look like it, weighted as in a bilateral
    filter (Tomasi and Manduchi 1998); what it differs more from it than the truth does is averaged. Gray, a tint and
    the truth have none; half a rusty shirt, a sky that fades midway and a glow beside a face have.
    """
    true, answer = (lab(pixels).reshape(-1, 3) for pixels in (truth, rgb))
    side = len(truth)
    y, x = np.divmod(np.arange(len(true), dtype=np.float32), side)
    scales = np.array((LIGHTNESS_SIGMA, CHROMA_SIGMA, CHROMA_SIGMA), np.float32)
    features = np.column_stack([y / (SPATIAL_SIGMA * side), x / (SPATIAL_SIGMA * side), true / scales]).astype(
        np.float32
    )
    squares = np.sum(features**2, axis=1)
    likeness = np.exp(features @ features.T - (squares[:, np.newaxis] + squares) / 2)
    weight = likeness.sum(axis=1, keepdims=True)
    strays = (np.linalg.norm(chroma - likeness @ chroma / weight, axis=1) for chroma in (answer[:, 1:], true[:, 1:]))
    excess = np.subtract(*strays)
    return float(np.maximum(excess, 0).mean())


def ab_errors(rgb: Bytes, truth: Bytes) -> Floats:
    """Distance in the ab plane of each pixel, float32 [...] of [..., 3]."""
    a, b = np.moveaxis((lab(rgb) - lab(truth))[..., 1:], -1, 0)
    return np.asarray(np.hypot(a, b))


def ab_rmse(errors: Floats) -> float:
    """Root mean square of both a* and b*, from `ab_errors`."""
    return float(np.sqrt(np.square(errors, dtype=np.float64).mean() / 2))


def rebalancing_weights(truth: Bytes) -> Doubles:
    """How much each pixel counts in the rebalanced accuracy, [...] of [..., 3].

    Equation 4 of Zhang et al. (2016) with lambda = 0, as they measure (1/2 is for their training): inversely to the
    frequency of its colour, in bins of 10 Lab units. Unlike there, the frequencies are those of the very pixels that
    are measured, not ImageNet's, and are not smoothed: figures of two sets can't be compared.
    """
    a, b = np.moveaxis(np.rint(lab(truth)[..., 1:] / BIN_SIDE).astype(np.intp), -1, 0)
    # Lab units of sRGB are within +-110, so these numbers are unique.
    _, number, count = np.unique((100 * a + b).ravel(), return_inverse=True, return_counts=True)
    weight = number.size / count
    return np.asarray(weight[number].reshape(a.shape))


def auc(errors: Floats, weights: Doubles | None = None) -> float:
    """AuC of Zhang et al. (2016), percent: the area under the share of pixels whose ab error is within a threshold.

    errors: of `ab_errors`. weights: of `rebalancing_weights`, for the rebalanced AuC.
    Thresholds: 0 to 150 in steps of 1.
    """
    least = np.ceil(np.minimum(errors, MAX_AB_ERROR + 1)).astype(np.intp).ravel()
    by_threshold = np.bincount(least, None if weights is None else weights.ravel(), MAX_AB_ERROR + 2)
    within = by_threshold.cumsum()[: MAX_AB_ERROR + 1] / by_threshold.sum()
    return 100 * float(np.trapezoid(within)) / MAX_AB_ERROR


def hs_rmse(rgb: Bytes, truth: Bytes) -> float:
    """Root mean square error of H, 0..179, and S, 0..255, of pixels [P, n, 3]: the loss of the HSV tutorial.

    Both are OpenCV's of `COLOR_RGB2HSV`. H is a plain number: 179 and 0, both red, are as far apart as can be.
    """
    hsv, true = (np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV), np.float32)[..., :2] for pixels in (rgb, truth))
    return float(np.sqrt(np.square(hsv - true).mean(dtype=np.float64)))


def psnr(rgb: Bytes, truth: Bytes) -> float | None:
    """Peak signal-to-noise ratio of R, G and B, dB, of all pixels [..., 3] as one picture; None where all are right.

    Papers average over photographs instead, which is a little more.
    """
    if np.array_equal(rgb, truth):
        return None
    return float(peak_signal_noise_ratio(truth, rgb, data_range=255))  # type: ignore[no-untyped-call]
