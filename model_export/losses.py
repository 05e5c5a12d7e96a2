"""What a network is taught by."""

from collections.abc import Callable
from typing import TypeAlias

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

Tensor: TypeAlias = keras.KerasTensor


def occupied_bins(chroma: NDArray[np.float32], size: float, least: float = 1e-5) -> NDArray[np.float32]:
    """Centres of the square chroma bins that hold at least a share `least` of the pixels.

    chroma: float32 [M, 2]; size: the pitch of the bins, in chroma's units. Returns float32 [Q, 2].
    """
    cells = np.rint(chroma / size).astype(np.int32)
    lowest = cells.min(axis=0)
    counts = np.zeros(cells.max(axis=0) - lowest + 1, np.int64)
    np.add.at(counts, tuple((cells - lowest).T), 1)
    kept = np.argwhere(counts >= max(1, least * len(chroma))) + lowest
    return np.asarray(kept * size, np.float32)


def soft_encode(chroma: Tensor, bins: NDArray[np.float32], size: float) -> Tensor:
    """Each pixel's chroma, [..., 2], as weights over the bins, [..., Q], that fall off as a Gaussian.

    Its standard deviation is half a bin, as in Zhang et al. 2016 (there over the five nearest bins only).
    """
    # -|c - b|^2 / (2 s^2) without its |c|^2, which every bin shares.
    scale = 1 / (2 * (size / 2) ** 2)
    closeness = ops.matmul(chroma, 2 * scale * bins.T) - scale * np.sum(bins**2, axis=1)
    return ops.softmax(closeness, axis=-1)


def _statistics(chroma: Tensor) -> tuple[Tensor, Tensor]:
    size = ops.sqrt(ops.sum(ops.square(chroma), axis=-1) + 1e-6)
    return ops.mean(size, axis=(1, 2)), ops.std(size, axis=(1, 2))


def bin_loss(bins: NDArray[np.float32], size: float, chroma_statistics: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of the soft-encoded true chroma, [N, s, s, 2], under logits, [N, s, s, Q].

    Plus `chroma_statistics` times the L1, in bins, on each photo's mean chroma and its spread: it keeps the mean of
    the distribution as colourful as the photographs are.
    """

    def loss(chroma: Tensor, logits: Tensor) -> Tensor:
        log_probability = ops.log_softmax(logits, axis=-1)
        entropy = -ops.mean(ops.sum(soft_encode(chroma, bins, size) * log_probability, axis=-1), axis=(1, 2))
        if not chroma_statistics:
            return entropy
        expected = ops.matmul(ops.exp(log_probability), bins)
        pairs = zip(_statistics(chroma), _statistics(expected), strict=True)
        return entropy + chroma_statistics * sum(ops.abs(true - own) for true, own in pairs) / size

    return loss
