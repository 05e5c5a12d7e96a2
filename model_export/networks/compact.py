"""Our network: a small residual U-Net with a global-context branch, over soft-encoded bins of chroma.

The head predicts a distribution over bins of chroma as in Zhang, Isola and Efros, "Colorful Image Colorization"
(ECCV 2016), at a quarter of the input's size; the answer is the distribution's mean, times a gain.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from model_export.recipe import Network

BATCH_NORM_MOMENTUM = 0.9


def _convolution(x: keras.KerasTensor, filters: int, kernel: int = 3, stride: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)


def _residual(x: keras.KerasTensor) -> keras.KerasTensor:
    filters = x.shape[-1]
    inner = layers.ReLU()(_convolution(x, filters))
    return layers.ReLU()(layers.Add()([x, _convolution(inner, filters)]))


def _context(x: keras.KerasTensor, hidden: int) -> keras.KerasTensor:
    """Tells every place what the whole picture is about."""
    summary = layers.GlobalAveragePooling2D(keepdims=True)(x)
    summary = layers.Conv2D(hidden, 1, activation="relu", kernel_initializer="he_normal")(summary)
    return layers.Add()([x, layers.Conv2D(x.shape[-1], 1)(summary)])


def _up(x: keras.KerasTensor, skip: keras.KerasTensor, filters: int) -> keras.KerasTensor:
    x = layers.ReLU()(_convolution(x, filters, 1))
    x = layers.UpSampling2D(2)(x)
    return layers.ReLU()(_convolution(layers.Concatenate()([x, skip]), filters))


def build(settings: Network, bins: int, side: int | None = None) -> keras.Model:
    """Lightness in 0..1, float32 [N, S, S, 1], to logits, float32 [N, S/4, S/4, bins].

    S is a multiple of 32: `side`, or any where that is None. A fixed one makes a simpler graph.
    """
    stem, *widths = settings.widths
    lightness = keras.Input((side, side, 1), name="lightness")
    x = layers.Rescaling(4, -2)(lightness)
    x = layers.ReLU()(_convolution(x, stem, 3, 2))
    skips = []
    for width, blocks in zip(widths, settings.blocks, strict=True):
        x = layers.ReLU()(_convolution(x, width, 3, 2))
        for _ in range(blocks):
            x = _residual(x)
        skips.append(x)
    x = _context(skips.pop(), settings.context)
    for skip in reversed(skips):
        x = _up(x, skip, max(skip.shape[-1], 64))
    logits = layers.Conv2D(bins, 1, dtype="float32", name="logits")(x)
    return keras.Model(lightness, logits, name="compact")


class ExpectedChroma(layers.Layer):  # type: ignore[misc]
    """Mean of a distribution over chroma bins, times a gain: logits [N, s, s, Q] to chroma [N, s, s, 2].

    Bins and gain are frozen weights: a constant that a traced function captures becomes an input of the ONNX graph.
    """

    def __init__(self, bins: NDArray[np.float32], gain: float = 1.0) -> None:
        super().__init__(name="expected_chroma", dtype="float32", trainable=False)
        initializer = keras.initializers.Constant(bins * gain)
        self.bins = self.add_weight(shape=bins.shape, initializer=initializer, trainable=False, name="bins")

    def call(self, logits: keras.KerasTensor) -> keras.KerasTensor:
        """Keras."""
        return ops.matmul(ops.softmax(logits, axis=-1), self.bins)

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Keras."""
        return (*shape[:-1], 2)
