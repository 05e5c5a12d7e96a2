"""Chroma flows along even lightness and stops at edges, so that one thing has one colour.

The geodesic filter of Gastal and Oliveira, "Domain Transform for Edge-Aware Image and Video Processing" (SIGGRAPH
2011), along rows and columns by turns. Its distances start from the steps of lightness, as in Levin, Lischinski and
Weiss, "Colorization Using Optimization" (SIGGRAPH 2004), and a network learns what they miss, as in Chen et al.,
"Semantic Image Segmentation with Task-Specific Edge Detection Using CNNs and a Discriminatively Trained Domain
Transform" (CVPR 2016). It also learns how far each place can be trusted.
"""

from keras import layers, ops

from model_export.networks import Tensor

# Without steps of lightness, chroma fades to 1/e in so many places; and in one over such a step of lightness in 0..1.
REACH = 20.0
STEP = 0.02
# Rows, then columns, and again: chroma that has gone round corners.
ROUNDS = 2
# Of the logarithm of what is learnt.
MOST = 5.0
# Channels of a guide: the distance to the next place on the right and below, and the logarithm of the confidence.
CHANNELS = 3


class Guide(layers.Layer):  # type: ignore[misc]
    """Lightness in 0..1, [N, s, s, 1], and what a network says, [N, s, s, 3], to a guide, float32 [N, s, s, 3].

    What it says multiplies the distances, as a logarithm: zeros change nothing, and trust all places alike.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, dtype="float32")

    def call(self, lightness: Tensor, said: Tensor) -> Tensor:
        """Keras."""
        right = ops.abs(lightness[:, :, 1:] - lightness[:, :, :-1])
        below = ops.abs(lightness[:, 1:] - lightness[:, :-1])
        steps = [ops.pad(right, ((0, 0), (0, 0), (0, 1), (0, 0))), ops.pad(below, ((0, 0), (0, 1), (0, 0), (0, 0)))]
        said = ops.clip(said, -MOST, MOST)
        distances = (1 / REACH + ops.concatenate(steps, axis=-1) / STEP) * ops.exp(said[..., :2])
        return ops.concatenate([distances, said[..., 2:]], axis=-1)


def _nearness(distances: Tensor) -> Tensor:
    """Of all places of a line to each other: distances to the next ones, [N, lines, s], to [N, lines, s, s]."""
    # The place before the first is none: what is measured from it falls out of the difference.
    position = ops.cumsum(distances, axis=-1) - distances
    return ops.exp(-ops.abs(ops.expand_dims(position, -1) - ops.expand_dims(position, -2)))


def propagate(chroma: Tensor, guide: Tensor) -> Tensor:
    """Chroma [N, s, s, 2], as a guide leads it: the mean of all places, by their nearness and confidence."""
    rows = _nearness(guide[..., 0])
    columns = _nearness(ops.transpose(guide[..., 1], (0, 2, 1)))
    confidence = ops.exp(guide[..., 2:])
    flow = ops.concatenate([chroma * confidence, confidence], axis=-1)
    # [N, line, channel, place]: a product with a short and wide matrix is quicker than with a thin one.
    flow = ops.transpose(flow, (0, 1, 3, 2))
    for _ in range(ROUNDS):
        for nearness in (rows, columns):
            flow = ops.transpose(ops.matmul(flow, nearness), (0, 3, 2, 1))
    flow = ops.transpose(flow, (0, 1, 3, 2))
    return flow[..., :2] / flow[..., 2:]
