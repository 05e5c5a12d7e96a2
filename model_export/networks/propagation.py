"""Chroma flows along even lightness and stops at edges, so that one thing has one colour.

The geodesic filter of Gastal and Oliveira, "Domain Transform for Edge-Aware Image and Video Processing" (SIGGRAPH
2011), along rows and columns by turns. Its distances start from the steps of lightness, as in Levin, Lischinski and
Weiss, "Colorization Using Optimization" (SIGGRAPH 2004), and a network learns what they miss, as in Chen et al.,
"Semantic Image Segmentation with Task-Specific Edge Detection Using CNNs and a Discriminatively Trained Domain
Transform" (CVPR 2016). It also learns how far each place can be trusted.

Between the rounds, places that look alike may share their chroma however far apart they are, as in Wang et al.,
"Non-local Neural Networks" (CVPR 2018), with a Gaussian of learnt keys: a face and its hands have one colour.
"""

from keras import layers, ops

from model_export.networks import Tensor

# Without steps of lightness, chroma fades to 1/e in so many places; and in one over such a step of lightness in 0..1.
DECAY_PIXELS = 20.0
DECAY_LIGHTNESS = 0.02
# Of the logarithm of what is learnt.
MAX_LOG = 5.0
# Channels of a guide: the distance to the next place on the right and below, and the logarithm of the confidence. Where
# places that look alike share chroma: also the logarithm of what they are given beside their own, and their keys.
CHANNELS = 3
# Keys are compared with those of so many places square together, of which there are fewer.
POOLING = 2
# Two places are alike to 1/e where their keys, of variance 1 each, differ by this much squared, on average.
KEY_DISTANCE = 0.1
# Beside how alike a place is to all others together: who is like none is given nothing.
MIN_SIMILARITY = 1e-3


class Guide(layers.Layer):  # type: ignore[misc]
    """Lightness in 0..1, [N, s, s, 1], and what a network says, [N, s, s, 3 or 4], to a guide, float32 of its shape.

    What it says multiplies the distances, as a logarithm: zeros change nothing, and trust all places alike. The fourth
    channel is the logarithm of what a place is given by those that look like it, beside what it has.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")

    def call(self, lightness: Tensor, learned: Tensor) -> Tensor:
        """Keras."""
        right = ops.abs(lightness[:, :, 1:] - lightness[:, :, :-1])
        below = ops.abs(lightness[:, 1:] - lightness[:, :-1])
        steps = [ops.pad(right, ((0, 0), (0, 0), (0, 1), (0, 0))), ops.pad(below, ((0, 0), (0, 1), (0, 0), (0, 0)))]
        learned = ops.clip(learned, -MAX_LOG, MAX_LOG)
        distances = (1 / DECAY_PIXELS + ops.concatenate(steps, axis=-1) / DECAY_LIGHTNESS) * ops.exp(learned[..., :2])
        return ops.concatenate([distances, learned[..., 2:]], axis=-1)


def _proximity(distances: Tensor) -> Tensor:
    """Of all places of a line to each other: distances to the next ones, [N, lines, s], to [N, lines, s, s]."""
    # The place before the first is none: what is measured from it falls out of the difference.
    position = ops.cumsum(distances, axis=-1) - distances
    return ops.exp(-ops.abs(ops.expand_dims(position, -1) - ops.expand_dims(position, -2)))


def _filter_lines(weighted: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Along rows, then columns; twice, and chroma has gone round corners."""
    for proximity in (rows, columns):
        weighted = ops.transpose(ops.matmul(weighted, proximity), (0, 3, 2, 1))
    return weighted


def _similarity(keys: Tensor) -> Tensor:
    """How alike all blocks of places are to each place, in 0..1: keys [N, s, s, K] to [N, s / 2 * s / 2, s * s]."""
    # Not `keys.shape`: a graph that has seen photos of two sizes knows neither.
    _, side, _, channels = ops.shape(keys)
    blocks = ops.reshape(ops.average_pool(keys, POOLING), (-1, (side // POOLING) ** 2, channels))
    keys = ops.reshape(keys, (-1, side**2, channels))
    # -|b - k|^2 = 2 b k - |b|^2 - |k|^2, all three in one product: there are a million of them.
    blocks, keys = (each / (KEY_DISTANCE * channels) ** 0.5 for each in (blocks, keys))
    ones = ops.ones_like(keys[..., :1])
    keys = ops.concatenate([2 * keys, ones, -ops.sum(ops.square(keys), axis=-1, keepdims=True)], axis=-1)
    ones = ops.ones_like(blocks[..., :1])
    blocks = ops.concatenate([blocks, -ops.sum(ops.square(blocks), axis=-1, keepdims=True), ones], axis=-1)
    return ops.exp(ops.matmul(blocks, ops.transpose(keys, (0, 2, 1))))


def _nonlocal_mean(weighted: Tensor, similarity: Tensor) -> Tensor:
    """The mean weighted of the blocks that look like each place: both [N, s, channel, s]."""
    _, side, channels, _ = ops.shape(weighted)
    some = side // POOLING
    blocks = ops.mean(ops.reshape(weighted, (-1, some, POOLING, channels, some, POOLING)), axis=(2, 5))
    blocks = ops.reshape(ops.transpose(blocks, (0, 2, 1, 3)), (-1, channels, some**2))
    # Beside them ones, for how many there are: a sum over all that is alike would be a pass of its own.
    blocks = ops.concatenate([blocks, ops.ones_like(blocks[:, :1])], axis=1)
    total = ops.matmul(blocks, similarity)
    mean = total[:, :-1] / (total[:, -1:] + MIN_SIMILARITY)
    return ops.transpose(ops.reshape(mean, (-1, channels, side, side)), (0, 2, 1, 3))


def propagate(chroma: Tensor, guide: Tensor) -> Tensor:
    """Chroma [N, s, s, 2], as a guide leads it: the mean of all places, by their proximity and confidence.

    And, where the guide has more than three channels, by their similarity; s is even then.
    """
    proximity = _proximity(guide[..., 0]), _proximity(ops.transpose(guide[..., 1], (0, 2, 1)))
    confidence = ops.exp(guide[..., 2:CHANNELS])
    weighted = ops.concatenate([chroma * confidence, confidence], axis=-1)
    # [N, line, channel, place]: a product with a short and wide matrix is quicker than with a thin one.
    weighted = _filter_lines(ops.transpose(weighted, (0, 1, 3, 2)), *proximity)
    if guide.shape[-1] > CHANNELS:
        given = ops.expand_dims(ops.exp(guide[..., CHANNELS]), 2)
        weighted = weighted + given * _nonlocal_mean(weighted, _similarity(guide[..., CHANNELS + 1 :]))
    weighted = ops.transpose(_filter_lines(weighted, *proximity), (0, 1, 3, 2))
    return weighted[..., :2] / weighted[..., 2:]
