"""Losses and their terms. `true` is always the photograph's chroma and `predicted` the network's.

Chroma has the shape [N, s, s, 2]: N photographs of s x s pixels, (a*, b*) in Lab units or the hue vector of `hsv`.
Terms have one value per photograph, [N].
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

Tensor: TypeAlias = keras.KerasTensor
Propagate: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# Pixels are averaged in squares of this side before all of them are compared with each other. At 48 pixels a side, a
# third of a million pairs remain.
POOLING = 2
# Standard deviation, in Lab units, of the Gaussian that decides whether two pixels have the same true colour.
SAME_COLOR_SIGMA = 4.0


def occupied_bins(chroma: NDArray[np.float32], size: float, min_share: float = 1e-5) -> NDArray[np.float32]:
    """Return the centres of the square chroma bins that hold at least a fraction `min_share` of the pixels.

    chroma: float32 [M, 2]. size: distance between bins, in chroma's units. Returns float32 [Q, 2].
    """
    cells = np.rint(chroma / size).astype(np.int32)
    lowest = cells.min(axis=0)
    counts = np.zeros(cells.max(axis=0) - lowest + 1, np.int64)
    np.add.at(counts, tuple((cells - lowest).T), 1)
    kept = np.argwhere(counts >= max(1, min_share * len(chroma))) + lowest
    return np.asarray(kept * size, np.float32)


def soft_encode(chroma: Tensor, bins: NDArray[np.float32], size: float) -> Tensor:
    """Return chroma, [..., 2], as a distribution over bins, [..., Q]: a Gaussian around each pixel's chroma.

    Its standard deviation is half of `size`, the distance between bins. Zhang, Isola and Efros, "Colorful Image
    Colorization" (ECCV 2016), do the same over the five nearest bins only.
    """
    # -|c - b|^2 / (2 s^2) without |c|^2, which is the same for every bin and cancels in the softmax.
    scale = 1 / (2 * (size / 2) ** 2)
    closeness = ops.matmul(chroma, 2 * scale * bins.T) - scale * np.sum(bins**2, axis=1)
    return ops.softmax(closeness, axis=-1)


def _magnitude(chroma: Tensor) -> Tensor:
    """Return the length of chroma vectors: [..., 2] to [...]."""
    return ops.sqrt(ops.sum(ops.square(chroma), axis=-1) + 1e-6)


def _regional_spread(chroma: Tensor) -> Tensor:
    """Return the standard deviation of the magnitude of mean chroma in a 4 x 4 grid: [N, s, s, 2] to [N]."""
    # Not `chroma.shape`: Keras traces a graph without known sides once it has seen two sizes.
    _, height, width, _ = ops.shape(chroma)
    down, across = height // 4, width // 4
    regions = ops.reshape(chroma[:, : 4 * down, : 4 * across], (-1, 4, down, 4, across, 2))
    # The constant bounds the gradient of the root where all regions have the same chroma.
    return ops.sqrt(ops.var(_magnitude(ops.mean(regions, axis=(2, 4))), axis=(1, 2)) + 1e-3)


def _statistics_error(true: Tensor, predicted: Tensor, size: float) -> Tensor:
    """Return the L1 error of each photograph's mean chroma magnitude and of its regional spread, [N], in bins.

    It keeps predictions as colourful as photographs are. The spread is that of regions, because one small patch of
    glaring red would be the cheapest way to the right spread of pixels.
    """
    mean_error = ops.abs(ops.mean(_magnitude(true), axis=(1, 2)) - ops.mean(_magnitude(predicted), axis=(1, 2)))
    return (mean_error + ops.abs(_regional_spread(true) - _regional_spread(predicted))) / size


def cie94(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the CIE 1994 colour difference (graphic arts) of two (a*, b*) of equal lightness: [..., 2] to [...].

    It is close to CIEDE2000, and has a gradient everywhere. Differences between vivid colours count less.
    """
    true_size, predicted_size = (ops.sqrt(ops.sum(ops.square(c), axis=-1) + 1e-3) for c in (true, predicted))
    in_size = ops.square(true_size - predicted_size)
    in_hue = ops.maximum(ops.sum(ops.square(true - predicted), axis=-1) - in_size, 0)
    weighted = in_size / ops.square(1 + 0.045 * true_size) + in_hue / ops.square(1 + 0.015 * true_size)
    return ops.sqrt(weighted + 1e-3)


def chroma_step_error(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the error of the chroma differences between neighbouring pixels, [N], in Lab units.

    Both inputs are (a*, b*), [N, s, s, 2]. A step is the difference to the pixel 1, 2 or 4 pixels to the right or down.
    The error is the mean distance between true and predicted steps. Ummenhofer et al., "DeMoN" (CVPR 2017), compare
    depth maps at several distances in this way, but normalize each step.

    A glow around a head pays for the blurred step to the wall, and for the steps of its own. A blotch pays for its
    outline.
    """
    error = true - predicted
    steps = [
        step
        for apart in (1, 2, 4)
        for step in (error[:, apart:] - error[:, :-apart], error[:, :, apart:] - error[:, :, :-apart])
    ]
    return sum(ops.mean(_magnitude(step), axis=(1, 2)) for step in steps) / len(steps)


def _pool_pixels(chroma: Tensor) -> Tensor:
    """Return chroma [N, s, s, 2], averaged in squares of POOLING pixels, as [N, (s / POOLING)^2, 2]."""
    pooled = ops.average_pool(chroma, POOLING)
    # Not `pooled.shape`: Keras traces a graph without known sides once it has seen two sizes.
    _, height, width, _ = ops.shape(pooled)
    return ops.reshape(pooled, (-1, height * width, 2))


def evenness_error(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the penalty on predicted chroma that differs between pixels of the same true colour, [N], in Lab units.

    Both inputs are (a*, b*), [N, s, s, 2]. Let t and p be the true and predicted chroma of a pooled pixel i. Pixels j
    count as of its colour by the weight w_ij = exp(-|t_i - t_j|^2 / (2 SAME_COLOR_SIGMA^2)). Their plain mean is
    u_i = sum_j w_ij p_j / sum_j w_ij. Their vivid mean is v_i = sum_j w_ij |p_j| p_j / sum_j w_ij |p_j|.
    All of t, p and u are projected onto the direction of v. The pixel then pays for

    - a lack of colour, max(0, min(|v|, t) - p). So a hand gets the colour of its face.
    - an excess of colour, max(0, p - max(u, t)). So a glow gets the colour of its wall.

    The bounds by t keep a wrong colour from spreading, and a right one from being removed. There is no gradient
    through u and v: otherwise gray would be the easiest way to one colour per object.
    """
    true, predicted = _pool_pixels(true), _pool_pixels(predicted)
    square = ops.sum(ops.square(true), axis=-1)
    products = ops.matmul(true, ops.transpose(true, (0, 2, 1)))
    apart = ops.expand_dims(square, 1) + ops.expand_dims(square, 2) - 2 * products
    size = ops.expand_dims(_magnitude(predicted), -1)
    sums = ops.concatenate([predicted * size, size, predicted, ops.ones_like(size)], axis=-1)
    sums = ops.stop_gradient(ops.matmul(ops.exp(-apart / (2 * SAME_COLOR_SIGMA**2)), sums))
    vivid, usual = sums[..., :2] / sums[..., 2:3], sums[..., 3:5] / sums[..., 5:]
    most = _magnitude(vivid)
    true, predicted, usual = (ops.sum(each * vivid, axis=-1) / most for each in (true, predicted, usual))
    lack = ops.relu(ops.minimum(most, true) - predicted)
    excess = ops.relu(predicted - ops.maximum(usual, true))
    return ops.mean(lack + excess, axis=-1)


@dataclass(frozen=True, slots=True)
class BinLossTerms:
    """The weights of the terms that `bin_loss` adds to the cross-entropy, and the gain of the chroma they measure.

    chroma_statistics: of the error of chroma statistics. difference: of the mean CIE94 difference. steps: of
    `chroma_step_error`. evenness: of `evenness_error`. All these errors are in bins.
    gain: factor of the expected chroma. A mean is duller than the colours that it averages. With a gain the prediction
    can be as colourful as photographs are, while the cross-entropy keeps the distribution as it is.
    """

    chroma_statistics: float = 0.0
    difference: float = 0.0
    steps: float = 0.0
    evenness: float = 0.0
    gain: float = 1.0


def bin_loss(
    bins: NDArray[np.float32], size: float, terms: BinLossTerms, propagate: Propagate | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the cross-entropy of soft-encoded true chroma, [N, s, s, 2], under logits, [N, s, s, Q], plus `terms`.

    bins: centres, float32 [Q, 2]. size: distance between bins. The terms measure the expected chroma: the mean of the
    distribution, times the gain. propagate: applied to the expected chroma first; it also gets the guide, the channels
    that follow the Q logits.
    """

    def loss(true: Tensor, logits: Tensor) -> Tensor:
        log_probability = ops.log_softmax(logits[..., : len(bins)], axis=-1)
        total = -ops.mean(ops.sum(soft_encode(true, bins, size) * log_probability, axis=-1), axis=(1, 2))
        predicted = ops.matmul(ops.exp(log_probability), terms.gain * bins)
        if propagate:
            predicted = propagate(predicted, logits[..., len(bins) :])
        if terms.chroma_statistics:
            total = total + terms.chroma_statistics * _statistics_error(true, predicted, size)
        if terms.difference:
            total = total + terms.difference * ops.mean(cie94(true, predicted), axis=(1, 2)) / size
        if terms.steps:
            total = total + terms.steps * chroma_step_error(true, predicted) / size
        if terms.evenness:
            total = total + terms.evenness * evenness_error(true, predicted) / size
        return total

    return loss


def chroma_loss(size: float, chroma_statistics: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the L1 loss of chroma, plus `chroma_statistics` times the error of its statistics, [N], in bins.

    The true chroma is in its own units, the prediction in units of `size`; both are [N, s, s, 2].
    """

    def loss(true: Tensor, predicted: Tensor) -> Tensor:
        distance = ops.mean(ops.abs(true / size - predicted), axis=(1, 2, 3))
        if not chroma_statistics:
            return distance
        return distance + chroma_statistics * _statistics_error(true, predicted * size, size)

    return loss


def root_mean_square(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the root mean square error over the whole batch, one value: the loss of the first tutorial."""
    return ops.sqrt(ops.mean(ops.square(true - predicted)))
