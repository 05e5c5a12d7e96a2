"""Propagation of chroma along even lightness, up to edges, so that one object gets one colour.

The filter is that of Gastal and Oliveira, "Domain Transform for Edge-Aware Image and Video Processing" (SIGGRAPH 2011),
along rows and columns alternately. Its distances grow with steps of lightness, as the weights do in Levin, Lischinski
and Weiss, "Colorization Using Optimization" (SIGGRAPH 2004). A network learns to correct them. This is the method of
Chen et al., "Semantic Image Segmentation with Task-Specific Edge Detection Using CNNs and a Discriminatively Trained
Domain Transform" (CVPR 2016). The network also learns the confidence of each pixel.

Between the two rounds, similar pixels may share chroma at any distance, so that a face and its hands get one colour.
This is the non-local mean of Wang et al., "Non-local Neural Networks" (CVPR 2018), with a Gaussian of learned keys.

Shapes: N photographs of s x s pixels. A guide has these channels for each pixel: the distances to the next pixel on the
right and below, and the logarithm of the confidence. With keys it also has the logarithm of the weight of the non-local
mean, and K keys.
"""

from keras import layers, ops

from model_export.networks import Tensor

# On even lightness, the influence of a pixel falls to 1/e over this many pixels.
DECAY_PIXELS = 20.0
# Over one pixel, it falls to 1/e with this step of lightness, in 0..1.
DECAY_LIGHTNESS = 0.02
# Limit of the learned logarithms.
MAX_LOG = 5.0
# Channels of a guide without keys.
CHANNELS = 3
# Each pixel's key is compared with the mean keys of squares of this side, of which there are fewer.
POOLING = 2
# The similarity of two keys is 1/e if their squared difference has this mean over channels. Keys have variance 1.
KEY_DISTANCE = 0.1
# Added to a pixel's sum of similarities, so that a pixel without similar ones gets a non-local mean of 0.
MIN_SIMILARITY = 1e-3


class Guide(layers.Layer):  # type: ignore[misc]
    """Layer from lightness in 0..1, [N, s, s, 1], and learned channels, [N, s, s, 3 or 4], to a guide without keys.

    The first two learned channels are logarithms of factors of the distances. The third is the logarithm of the
    confidence, the fourth that of the weight of the non-local mean. Zeros change nothing.
    The output is float32, of the learned channels' shape.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")

    def call(self, lightness: Tensor, learned: Tensor) -> Tensor:
        """Return the guide."""
        right = ops.abs(lightness[:, :, 1:] - lightness[:, :, :-1])
        below = ops.abs(lightness[:, 1:] - lightness[:, :-1])
        steps = [ops.pad(right, ((0, 0), (0, 0), (0, 1), (0, 0))), ops.pad(below, ((0, 0), (0, 1), (0, 0), (0, 0)))]
        learned = ops.clip(learned, -MAX_LOG, MAX_LOG)
        distances = (1 / DECAY_PIXELS + ops.concatenate(steps, axis=-1) / DECAY_LIGHTNESS) * ops.exp(learned[..., :2])
        return ops.concatenate([distances, learned[..., 2:]], axis=-1)


def _proximity(distances: Tensor) -> Tensor:
    """Return exp(-distance) for pairs in a line: distances to the next pixel, [N, lines, s], to [N, lines, s, s]."""
    # Positions begin at an arbitrary origin, which cancels in their differences.
    position = ops.cumsum(distances, axis=-1) - distances
    return ops.exp(-ops.abs(ops.expand_dims(position, -1) - ops.expand_dims(position, -2)))


def _filter_lines(weighted: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Filter along rows, then along columns. Applied twice, chroma gets round corners."""
    for proximity in (rows, columns):
        weighted = ops.transpose(ops.matmul(weighted, proximity), (0, 3, 2, 1))
    return weighted


def _similarity(keys: Tensor) -> Tensor:
    """Return the similarity of all blocks to each pixel, in 0..1: keys [N, s, s, K] to [N, (s / POOLING)^2, s^2]."""
    # Not `keys.shape`: Keras traces a graph without known sides once it has seen two sizes.
    _, side, _, channels = ops.shape(keys)
    blocks = ops.reshape(ops.average_pool(keys, POOLING), (-1, (side // POOLING) ** 2, channels))
    keys = ops.reshape(keys, (-1, side**2, channels))
    # -|b - k|^2 = 2 b k - |b|^2 - |k|^2. One matrix product gives all three terms of a million pairs.
    blocks, keys = (each / (KEY_DISTANCE * channels) ** 0.5 for each in (blocks, keys))
    ones = ops.ones_like(keys[..., :1])
    keys = ops.concatenate([2 * keys, ones, -ops.sum(ops.square(keys), axis=-1, keepdims=True)], axis=-1)
    ones = ops.ones_like(blocks[..., :1])
    blocks = ops.concatenate([blocks, -ops.sum(ops.square(blocks), axis=-1, keepdims=True), ones], axis=-1)
    return ops.exp(ops.matmul(blocks, ops.transpose(keys, (0, 2, 1))))


def _nonlocal_mean(weighted: Tensor, similarity: Tensor) -> Tensor:
    """Return the mean of all blocks, weighted by their similarity to each pixel: [N, s, channels, s] to the same."""
    _, side, channels, _ = ops.shape(weighted)
    some = side // POOLING
    blocks = ops.mean(ops.reshape(weighted, (-1, some, POOLING, channels, some, POOLING)), axis=(2, 5))
    blocks = ops.reshape(ops.transpose(blocks, (0, 2, 1, 3)), (-1, channels, some**2))
    # A channel of ones gives the sum of similarities in the same product. A separate sum would be another pass.
    blocks = ops.concatenate([blocks, ops.ones_like(blocks[:, :1])], axis=1)
    total = ops.matmul(blocks, similarity)
    mean = total[:, :-1] / (total[:, -1:] + MIN_SIMILARITY)
    return ops.transpose(ops.reshape(mean, (-1, channels, side, side)), (0, 2, 1, 3))


def propagate(chroma: Tensor, guide: Tensor) -> Tensor:
    """Return chroma, [N, s, s, 2], propagated by a guide, [N, s, s, CHANNELS or CHANNELS + 1 + K].

    Each pixel gets the mean chroma of all pixels, weighted by proximity and confidence. With keys, similarity counts
    too, and s must be even.
    """
    proximity = _proximity(guide[..., 0]), _proximity(ops.transpose(guide[..., 1], (0, 2, 1)))
    confidence = ops.exp(guide[..., 2:CHANNELS])
    weighted = ops.concatenate([chroma * confidence, confidence], axis=-1)
    # [N, line, channel, pixel]: a product with a short and wide matrix is faster than one with a tall matrix.
    weighted = _filter_lines(ops.transpose(weighted, (0, 1, 3, 2)), *proximity)
    if guide.shape[-1] > CHANNELS:
        given = ops.expand_dims(ops.exp(guide[..., CHANNELS]), 2)
        weighted = weighted + given * _nonlocal_mean(weighted, _similarity(guide[..., CHANNELS + 1 :]))
    weighted = ops.transpose(_filter_lines(weighted, *proximity), (0, 1, 3, 2))
    return weighted[..., :2] / weighted[..., 2:]
