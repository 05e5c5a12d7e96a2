"""What a network is taught by."""

from collections.abc import Callable
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

Tensor: TypeAlias = keras.KerasTensor
Propagate: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# Where all places are compared with each other, so many square are one: at 48 a side, a third of a million pairs.
POOLING = 2
# Two places have one true colour to 1 / sqrt(e) where it differs by so many Lab units.
SAME_COLOR_SIGMA = 4.0


def occupied_bins(chroma: NDArray[np.float32], size: float, min_share: float = 1e-5) -> NDArray[np.float32]:
    """Centres of the square chroma bins that hold at min_share a share `min_share` of the pixels.

    chroma: float32 [M, 2]; size: the pitch of the bins, in chroma's units. Returns float32 [Q, 2].
    """
    cells = np.rint(chroma / size).astype(np.int32)
    lowest = cells.min(axis=0)
    counts = np.zeros(cells.max(axis=0) - lowest + 1, np.int64)
    np.add.at(counts, tuple((cells - lowest).T), 1)
    kept = np.argwhere(counts >= max(1, min_share * len(chroma))) + lowest
    return np.asarray(kept * size, np.float32)


def soft_encode(chroma: Tensor, bins: NDArray[np.float32], size: float) -> Tensor:
    """Each pixel's chroma, [..., 2], as weights over the bins, [..., Q], that fall off as a Gaussian.

    Its standard deviation is half a bin, as in Zhang et al. 2016 (there over the five nearest bins only).
    """
    # -|c - b|^2 / (2 s^2) without its |c|^2, which every bin shares.
    scale = 1 / (2 * (size / 2) ** 2)
    closeness = ops.matmul(chroma, 2 * scale * bins.T) - scale * np.sum(bins**2, axis=1)
    return ops.softmax(closeness, axis=-1)


def _magnitude(chroma: Tensor) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(chroma), axis=-1) + 1e-6)


def _regional_spread(chroma: Tensor) -> Tensor:
    """The standard deviation of the chroma of a photo's sixteen parts, each a quarter of its sides: float [N]."""
    # Not `chroma.shape`: a graph that has seen photos of two sizes knows neither.
    _, height, width, _ = ops.shape(chroma)
    down, across = height // 4, width // 4
    parts = ops.reshape(chroma[:, : 4 * down, : 4 * across], (-1, 4, down, 4, across, 2))
    # The gradient of a root has no end at nothing, which is where a flat answer is.
    return ops.sqrt(ops.var(_magnitude(ops.mean(parts, axis=(2, 4))), axis=(1, 2)) + 1e-3)


def _statistics_error(chroma: Tensor, answer: Tensor, size: float) -> Tensor:
    """L1 on each photo's mean chroma and on the spread of its parts', in bins: answers as colourful as photographs are.

    Of its parts, because the spread of its pixels is most cheaply had from one small patch of glaring red.
    """
    mean_error = ops.abs(ops.mean(_magnitude(chroma), axis=(1, 2)) - ops.mean(_magnitude(answer), axis=(1, 2)))
    return (mean_error + ops.abs(_regional_spread(chroma) - _regional_spread(answer))) / size


def cie94(chroma: Tensor, answer: Tensor) -> Tensor:
    """The CIE 1994 colour difference, graphic arts, of two (a*, b*) of one lightness, [..., 2]: one value a pixel.

    It is nearly CIEDE2000, and has a gradient everywhere: a difference in vivid colours counts for less.
    """
    true_size, own_size = (ops.sqrt(ops.sum(ops.square(c), axis=-1) + 1e-3) for c in (chroma, answer))
    in_size = ops.square(true_size - own_size)
    in_hue = ops.maximum(ops.sum(ops.square(chroma - answer), axis=-1) - in_size, 0)
    weighted = in_size / ops.square(1 + 0.045 * true_size) + in_hue / ops.square(1 + 0.015 * true_size)
    return ops.sqrt(weighted + 1e-3)


def chroma_step_error(chroma: Tensor, answer: Tensor) -> Tensor:
    """How far the answer's steps of (a*, b*) from place to place are from the true ones, both [N, s, s, 2]: float [N].

    The mean length of the difference of both at 1, 2 and 4 places to the right and below: as Ummenhofer et al., "DeMoN"
    (CVPR 2017), match depths at several distances, but without dividing by their sum. A glow around a head costs the
    step to the wall that it blurs, and those that it makes where the photograph has none; a patch costs its outline.
    """
    error = chroma - answer
    steps = [
        step
        for apart in (1, 2, 4)
        for step in (error[:, apart:] - error[:, :-apart], error[:, :, apart:] - error[:, :, :-apart])
    ]
    return sum(ops.mean(_magnitude(step), axis=(1, 2)) for step in steps) / len(steps)


def _pool_pixels(chroma: Tensor) -> Tensor:
    """Chroma [N, s, s, 2] as [N, s / 2 * s / 2, 2]."""
    pooled = ops.average_pool(chroma, POOLING)
    # Not `pooled.shape`: a graph that has seen photos of two sizes knows neither.
    _, height, width, _ = ops.shape(pooled)
    return ops.reshape(pooled, (-1, height * width, 2))


def evenness_error(chroma: Tensor, answer: Tensor) -> Tensor:
    """What places lack, or have too much, of the colour of others of their true colour: float [N], Lab units.

    Both are (a*, b*), [N, s, s, 2]. That colour is the mean answer of all places of one true colour, in which vivid
    answers count for more. Along it a place lacks what those have, where it has less than these and than the
    photograph; and it has too much where it has more than their plain mean and than the photograph. So a hand is
    brought up to its face, and a glow down to its wall, but a wrong colour is not spread and a right one not taken.
    What a place is compared with learns nothing from it: one thing has one colour most easily when it is gray.
    """
    true, own = _pool_pixels(chroma), _pool_pixels(answer)
    square = ops.sum(ops.square(true), axis=-1)
    products = ops.matmul(true, ops.transpose(true, (0, 2, 1)))
    apart = ops.expand_dims(square, 1) + ops.expand_dims(square, 2) - 2 * products
    size = ops.expand_dims(_magnitude(own), -1)
    sums = ops.concatenate([own * size, size, own, ops.ones_like(size)], axis=-1)
    sums = ops.stop_gradient(ops.matmul(ops.exp(-apart / (2 * SAME_COLOR_SIGMA**2)), sums))
    vivid, usual = sums[..., :2] / sums[..., 2:3], sums[..., 3:5] / sums[..., 5:]
    most = _magnitude(vivid)
    true, own, usual = (ops.sum(each * vivid, axis=-1) / most for each in (true, own, usual))
    lacking = ops.relu(ops.minimum(most, true) - own)
    too_much = ops.relu(own - ops.maximum(usual, true))
    return ops.mean(lacking + too_much, axis=-1)


def bin_loss(
    bins: NDArray[np.float32],
    size: float,
    chroma_statistics: float,
    difference: float = 0.0,
    gain: float = 1.0,
    steps: float = 0.0,
    evenness: float = 0.0,
    propagate: Propagate | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of the soft-encoded true chroma, [N, s, s, 2], under logits, [N, s, s, Q].

    Plus, of the answer, which is the distribution's mean times `gain`: `chroma_statistics` times the error of its
    statistics, `difference` times its mean CIE94, `steps` times its error of steps and `evenness` times its error of
    evenness, in bins. A mean is duller than what it is of; with a gain the answer can be as colourful as photographs
    are while the distribution stays what it is. propagate: what becomes of the answer before it is measured, by the
    guide that then lies behind the logits.
    """

    def loss(chroma: Tensor, logits: Tensor) -> Tensor:
        log_probability = ops.log_softmax(logits[..., : len(bins)], axis=-1)
        total = -ops.mean(ops.sum(soft_encode(chroma, bins, size) * log_probability, axis=-1), axis=(1, 2))
        answer = ops.matmul(ops.exp(log_probability), gain * bins)
        if propagate:
            answer = propagate(answer, logits[..., len(bins) :])
        if chroma_statistics:
            total = total + chroma_statistics * _statistics_error(chroma, answer, size)
        if difference:
            total = total + difference * ops.mean(cie94(chroma, answer), axis=(1, 2)) / size
        if steps:
            total = total + steps * chroma_step_error(chroma, answer) / size
        if evenness:
            total = total + evenness * evenness_error(chroma, answer) / size
        return total

    return loss


def chroma_loss(size: float, chroma_statistics: float) -> Callable[[Tensor, Tensor], Tensor]:
    """L1 between the true chroma and an answer in units of `size`, both [N, s, s, 2], plus the same statistics."""

    def loss(chroma: Tensor, answer: Tensor) -> Tensor:
        distance = ops.mean(ops.abs(chroma / size - answer), axis=(1, 2, 3))
        if not chroma_statistics:
            return distance
        return distance + chroma_statistics * _statistics_error(chroma, answer * size, size)

    return loss


def root_mean_square(truth: Tensor, answer: Tensor) -> Tensor:
    """Over the whole batch, one value: the first tutorial's loss."""
    return ops.sqrt(ops.mean(ops.square(truth - answer)))
