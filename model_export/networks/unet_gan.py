"""The second tutorial's networks: a U-Net from L to ab, and the PatchGAN discriminator.

Both are those of Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (CVPR 2017). The
generator has 54.4 million parameters, the 70x70 discriminator 2.77 million. The generator's other encoder is an
18-layer residual network (He et al., CVPR 2016).
"""

from typing import cast

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from model_export.networks import Loss, Tensor
from model_export.recipe import Recipe, UNet

STRIDE = 1
# Lab units of an output of 1.
AB_RANGE = 110
# Filters of the eight downsampling levels. The three levels next to the innermost have dropout in the decoder.
FILTERS = (64, 128, 256, 512, 512, 512, 512, 512)
WITH_DROPOUT = (4, 5, 6)
SLOPE = 0.2
# Batch norm with the defaults of the tutorial's library.
MOMENTUM, EPSILON = 0.9, 1e-5


def _normal(mean: float = 0.0) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(mean, 0.02)


def _norm(x: Tensor) -> Tensor:
    return layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=_normal(1.0))(x)


def _half(x: Tensor, filters: int) -> Tensor:
    return layers.Conv2D(filters, 4, 2, padding="same", use_bias=False, kernel_initializer=_normal())(x)


def _double(x: Tensor, filters: int, *, bias: bool = False) -> Tensor:
    return layers.Conv2DTranspose(filters, 4, 2, padding="same", use_bias=bias, kernel_initializer=_normal())(x)


def _level(x: Tensor, depth: int) -> Tensor:
    """Return a level of the U-Net: downsample, recurse to deeper levels, upsample, and concatenate the input."""
    inner = _half(layers.LeakyReLU(SLOPE)(x), FILTERS[depth])
    if depth + 1 < len(FILTERS):
        inner = _level(_norm(inner), depth + 1)
    up = _norm(_double(layers.ReLU()(inner), x.shape[-1]))
    if depth in WITH_DROPOUT:
        up = layers.Dropout(0.5)(up)
    return layers.Concatenate()([x, up])


def _plain(x: Tensor) -> Tensor:
    inner = _level(_half(x, FILTERS[0]), 1)
    return _double(layers.ReLU()(inner), 2, bias=True)


def _convolution(x: Tensor, filters: int, kernel: int = 3, stride: int = 1) -> Tensor:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    return layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON)(x)


def _basic_block(x: Tensor, filters: int, stride: int) -> Tensor:
    inner = _convolution(layers.ReLU()(_convolution(x, filters, 3, stride)), filters)
    if stride != 1 or x.shape[-1] != filters:
        x = _convolution(x, filters, 1, stride)
    return layers.ReLU()(layers.Add()([x, inner]))


def _resnet18(x: Tensor) -> Tensor:
    """Return an 18-layer residual encoder, features at 1/2 to 1/32, and a decoder that concatenates each of them."""
    x = layers.ReLU()(_convolution(x, 64, 7, 2))
    skips = [x]
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    for filters, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        x = _basic_block(_basic_block(x, filters, stride), filters, 1)
        skips.append(x)
    x = skips.pop()
    for skip in reversed(skips):
        x = layers.ReLU()(_norm(_double(x, skip.shape[-1])))
        x = layers.ReLU()(_convolution(layers.Concatenate()([x, skip]), skip.shape[-1]))
    return _double(x, 2, bias=True)


def build(recipe: Recipe, bins: NDArray[np.float32], side: int | None = None) -> keras.Model:  # noqa: ARG001
    """Build the generator. Its output is ab in units of AB_RANGE, in -1..1.

    With the plain encoder, the side is a multiple of 256.
    """
    lightness = keras.Input((side, side, 1), name="lightness")
    x = layers.Rescaling(2, -1)(lightness)
    x = _plain(x) if cast("UNet", recipe.network).encoder == "plain" else _resnet18(x)
    answer = layers.Activation("tanh", dtype="float32", name="ab")(x)
    return keras.Model(lightness, answer, name="unet")


def build_discriminator(side: int | None = None) -> keras.Model:
    """Build the discriminator: lightness and ab in units of AB_RANGE to a logit for each patch of 70 x 70 pixels."""
    lightness = keras.Input((side, side, 1), name="lightness")
    ab = keras.Input((side, side, 2), name="ab")
    x = layers.Concatenate()([layers.Rescaling(2, -1)(lightness), ab])
    for number, (filters, stride) in enumerate(((64, 2), (128, 2), (256, 2), (512, 1))):
        # Pad one pixel on each side, as the tutorial's library does. "same" pads unevenly if the stride is 1.
        x = layers.ZeroPadding2D(1)(x)
        x = layers.Conv2D(filters, 4, stride, use_bias=not number, kernel_initializer=_normal())(x)
        x = layers.LeakyReLU(SLOPE)(_norm(x) if number else x)
    verdict = layers.Conv2D(1, 4, kernel_initializer=_normal(), dtype="float32")(layers.ZeroPadding2D(1)(x))
    return keras.Model([lightness, ab], verdict, name="patch_gan")


def absolute_error(true: Tensor, answer: Tensor) -> Tensor:
    """Return the L1 error of ab, [N, s, s, 2], for each photograph, [N]."""
    return ops.mean(ops.abs(true - answer), axis=(1, 2, 3))


def loss(recipe: Recipe, bins: NDArray[np.float32]) -> Loss:  # noqa: ARG001
    """Return the L1 loss in units of AB_RANGE."""
    return lambda chroma, answer: absolute_error(chroma / AB_RANGE, answer)


def chroma_layer(recipe: Recipe, bins: NDArray[np.float32], gain: float) -> keras.Layer:  # noqa: ARG001
    """Return the layer to Lab units."""
    return layers.Rescaling(AB_RANGE * gain)
