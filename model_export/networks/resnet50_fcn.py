"""The first tutorial's network (2019): a ResNet50 with a fully convolutional decoder, from V to H and S.

The decoder is that of Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015). The
deepest features, reduced to two channels, are enlarged by transposed convolutions and added to shallower ones.
The network has 34,243,204 parameters, 34,190,084 of them trainable.

As a "number", hue is learned as OpenCV's byte (0..179). This splits red in two, and gives gray pixels a hue. As a
"vector" it is (S cos H, S sin H).
"""

import math
from typing import cast

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from model_export.networks import Loss, Tensor
from model_export.networks.losses import root_mean_square
from model_export.recipe import Recipe, ResNet50FCN

STRIDE = 1
# The layers with features at 1/16, 1/8 and 1/4 of the input's size, and their channels.
TAPS = (("conv4_block6_out", 1024), ("conv3_block4_out", 512), ("conv2_block3_out", 256))
DEEPEST = "conv5_block3_out"
# OpenCV's bytes in radians and in 0..1: hue has steps of two degrees, saturation of 1/255.
HUE_STEP = math.pi / 90
SATURATION_STEP = 1 / 255


def _has_number(recipe: Recipe) -> bool:
    return cast("ResNet50FCN", recipe.network).hue == "number"


def build(recipe: Recipe, bins: NDArray[np.float32], side: int | None = None) -> keras.Model:  # noqa: ARG001
    """Build the network. Its output is (H, S) in OpenCV's bytes, or (S cos H, S sin H)."""
    lightness = keras.Input((side, side, 1), name="lightness")
    level = layers.Rescaling(255)(lightness)
    encoder = keras.applications.ResNet50(
        weights=None, include_top=False, input_tensor=layers.Concatenate()([level, level, level])
    )
    x = layers.Conv2D(2, 1)(encoder.get_layer(DEEPEST).output)
    for name, filters in TAPS:
        x = layers.Conv2DTranspose(filters, 4, 2, padding="same")(x)
        x = layers.Add()([x, encoder.get_layer(name).output])
    x = layers.Conv2DTranspose(2, 16, 4, padding="same", dtype="float32")(x)
    if _has_number(recipe):
        answer = layers.ReLU(max_value=255, dtype="float32")(x)
    else:
        answer = layers.Activation("tanh", dtype="float32")(x)
    return keras.Model(lightness, answer, name="resnet50_fcn")


def _bytes_of_vector(chroma: Tensor) -> Tensor:
    """Return (S cos H, S sin H) as OpenCV's (H, S), in 0..180 and 0..255. H is 0 if S is 0, as in OpenCV."""
    x, y = chroma[..., 0], chroma[..., 1]
    hue = ops.mod(ops.arctan2(y, x), 2 * math.pi) / HUE_STEP
    return ops.stack([hue, ops.sqrt(ops.square(x) + ops.square(y)) / SATURATION_STEP], axis=-1)


class HueVector(layers.Layer):  # type: ignore[misc]
    """Layer from (H, S) in OpenCV's bytes to (S cos H, S sin H), times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__(name="hue_vector", dtype="float32", trainable=False)
        self.gain = gain

    def call(self, answer: Tensor) -> Tensor:
        """Return the hue vector, [N, s, s, 2]."""
        hue = answer[..., :1] * HUE_STEP
        return answer[..., 1:] * (SATURATION_STEP * self.gain) * ops.concatenate([ops.cos(hue), ops.sin(hue)], axis=-1)


def loss(recipe: Recipe, bins: NDArray[np.float32]) -> Loss:  # noqa: ARG001
    """Return the root mean square error over the batch, in bytes or of the vector."""
    if not _has_number(recipe):
        return root_mean_square
    return lambda chroma, answer: root_mean_square(_bytes_of_vector(chroma), answer)


def chroma_layer(recipe: Recipe, bins: NDArray[np.float32], gain: float) -> keras.Layer:  # noqa: ARG001
    """Return the layer to the hue vector."""
    return HueVector(gain) if _has_number(recipe) else layers.Rescaling(gain)
