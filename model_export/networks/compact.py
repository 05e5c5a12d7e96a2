"""Our own network: a small residual U-Net with a global-context branch.

With `head = bins` it predicts a distribution over soft-encoded bins of chroma, at a quarter of the input's size. This
follows Zhang, Isola and Efros, "Colorful Image Colorization" (ECCV 2016). The chroma is the mean of the distribution
times a gain, and is propagated within objects if the recipe says so (see `propagation`). With `head = chroma` it
predicts chroma itself. The features of an ImageNet classifier can be added to those of the encoder (see
`efficientnet`).
"""

from collections.abc import Sequence
from typing import cast

import keras
import numpy as np
from keras import layers, ops
from numpy.typing import NDArray

from model_export.networks import Loss, Tensor, efficientnet, propagation
from model_export.networks.losses import BinLossTerms, Propagate, bin_loss, chroma_loss
from model_export.recipe import Compact, Recipe

STRIDE = 4
BATCH_NORM_MOMENTUM = 0.9


def _convolution(  # noqa: PLR0913  # hyper-parameters of one layer
    x: Tensor,
    filters: int,
    name: str,
    kernel: int = 3,
    stride: int = 1,
    *,
    zero_init: bool = False,
    seed: int | None = None,
) -> Tensor:
    """Return a convolution with batch norm.

    zero_init: let it return zeros before training. seed: of the kernel; the run's own if None.
    """
    begin = keras.initializers.HeNormal(seed)
    x = layers.Conv2D(
        filters, kernel, stride, padding="same", use_bias=False, kernel_initializer=begin, name=f"{name}_conv"
    )(x)
    gamma = "zeros" if zero_init else "ones"
    return layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, gamma_initializer=gamma, name=f"{name}_norm")(x)


def _residual(x: Tensor, name: str) -> Tensor:
    """Return a residual block that is the identity before training, so that a trained network can get more blocks."""
    filters = x.shape[-1]
    inner = layers.ReLU()(_convolution(x, filters, f"{name}_1"))
    return layers.ReLU()(layers.Add()([x, _convolution(inner, filters, f"{name}_2", zero_init=True)]))


def _context(x: Tensor, hidden: int) -> Tensor:
    """Add a summary of the whole image to every pixel."""
    summary = layers.GlobalAveragePooling2D(keepdims=True)(x)
    summary = layers.Conv2D(hidden, 1, activation="relu", kernel_initializer="he_normal", name="context_1")(summary)
    return layers.Add()([x, layers.Conv2D(x.shape[-1], 1, name="context_2")(summary)])


def _up(x: Tensor, skip: Tensor, filters: int, name: str) -> Tensor:
    x = layers.ReLU()(_convolution(x, filters, f"{name}_1", 1))
    x = layers.UpSampling2D(2)(x)
    return layers.ReLU()(_convolution(layers.Concatenate()([x, skip]), filters, f"{name}_2"))


def _add_features(x: Tensor, found: Tensor, name: str) -> Tensor:
    """Add features of the backbone by a convolution that returns zeros before training."""
    return layers.Add()([x, layers.Conv2D(x.shape[-1], 1, kernel_initializer="zeros", name=name)(found)])


def _zero_convolution(x: Tensor, channels: int, name: str) -> Tensor:
    """Return a convolution that returns zeros before training."""
    return layers.Conv2D(channels, 3, padding="same", kernel_initializer="zeros", dtype="float32", name=name)(x)


def _guide_channels(lightness: Tensor, x: Tensor, keys: int) -> list[Tensor]:
    """Return the channels of the guide, and the keys if `keys`, their number, is not 0."""
    said = _zero_convolution(x, propagation.CHANNELS, "guide_conv")
    alike = []
    if keys:
        said = layers.Concatenate(dtype="float32")([said, _zero_convolution(x, 1, "given_conv")])
        # Runs that add keys on their own can be averaged only if these keys begin with the same weights.
        alike = [_convolution(x, keys, "keys", 1, seed=0)]
    places = layers.AveragePooling2D(STRIDE, dtype="float32", name="lightness_of_places")(lightness)
    return [propagation.Guide("guide")(places, said), *alike]


def build(recipe: Recipe, bins: NDArray[np.float32], side: int | None = None) -> keras.Model:
    """Build the network. Its output is the logits of the bins, or chroma in units of the distance between bins.

    With propagation, the channels of the guide follow the logits. A fixed side makes a simpler graph.
    """
    settings = cast("Compact", recipe.network)
    stem, *widths = settings.widths
    lightness = keras.Input((side, side, 1), name="lightness")
    x = layers.Rescaling(4, -2)(lightness)
    x = layers.ReLU()(_convolution(x, stem, "stem", stride=2))
    skips = []
    for stage, (width, blocks) in enumerate(zip(widths, settings.blocks, strict=True)):
        x = layers.ReLU()(_convolution(x, width, f"down_{stage}", stride=2))
        for block in range(blocks):
            x = _residual(x, f"down_{stage}_block_{block}")
        skips.append(x)
    if settings.backbone:
        found = efficientnet.features(lightness)
        skips = [_add_features(x, y, f"join_{i}") for i, (x, y) in enumerate(zip(skips, found, strict=True))]
    x = _context(skips.pop(), settings.context)
    for stage, skip in reversed(list(enumerate(skips))):
        x = _up(x, skip, max(skip.shape[-1], 64), f"up_{stage}")
    channels = len(bins) if settings.head == "bins" else 2
    answer = layers.Conv2D(channels, 1, dtype="float32", name="logits")(x)
    if settings.propagation:
        answer = layers.Concatenate(dtype="float32")(
            [answer, *_guide_channels(lightness, x, settings.nonlocal_channels)]
        )
    network = keras.Model(lightness, answer, name="compact")
    efficientnet.freeze(network, settings.learning_blocks)
    return network


def loss(recipe: Recipe, bins: NDArray[np.float32]) -> Loss:
    """Return the cross-entropy over the bins, or the L1 loss of the chroma, plus the terms of the recipe."""
    settings = cast("Compact", recipe.network)
    if settings.head == "bins":
        terms = BinLossTerms(
            recipe.chroma_statistics, recipe.difference, recipe.steps, recipe.evenness, gain=recipe.gain
        )
        return bin_loss(bins, settings.bin_size, terms, propagation.propagate if settings.propagation else None)
    return chroma_loss(settings.bin_size, recipe.chroma_statistics)


def chroma_layer(recipe: Recipe, bins: NDArray[np.float32], gain: float) -> keras.Layer:
    """Return the layer to the expected chroma, propagated if the recipe says so, or to the chroma's own units."""
    settings = cast("Compact", recipe.network)
    if settings.head == "bins":
        return ExpectedChroma(bins, gain, propagation.propagate if settings.propagation else None)
    return layers.Rescaling(settings.bin_size * gain)


class ExpectedChroma(layers.Layer):  # type: ignore[misc]
    """Layer to the expected chroma: the mean of the distribution over the bins, times a gain.

    Its input is logits, [N, s, s, Q], followed by the guide if there is `propagate`. Its output is chroma,
    [N, s, s, 2]. Bins and gain are stored as frozen weights: a constant that a traced function captures would become an
    input of the ONNX graph.
    """

    def __init__(self, bins: NDArray[np.float32], gain: float = 1.0, propagate: Propagate | None = None) -> None:
        super().__init__(name="expected_chroma", dtype="float32", trainable=False)
        self.propagate = propagate
        self.count = len(bins)
        kernel = np.concatenate([bins * gain, np.ones((len(bins), 1), np.float32)], axis=1)[np.newaxis, np.newaxis]
        initializer = keras.initializers.Constant(kernel)
        self.moments = self.add_weight(shape=kernel.shape, initializer=initializer, trainable=False, name="bins")

    def call(self, logits: Tensor) -> Tensor:
        """Return the chroma."""
        of_bins = logits[..., : self.count]
        likely = ops.exp(of_bins - ops.max(of_bins, axis=-1, keepdims=True))
        # A convolution sums over all bins. ONNX Runtime's softmax takes three times as long.
        sums = ops.conv(likely, self.moments, padding="valid")
        mean = sums[..., :2] / sums[..., 2:]
        return self.propagate(mean, logits[..., self.count :]) if self.propagate else mean

    def compute_output_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the shape of the chroma, as Keras asks for it."""
        return (*shape[:-1], 2)
