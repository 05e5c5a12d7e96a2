"""Network architectures, one module each. Every module has the members of `Architecture`."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from model_export.recipe import Recipe

Tensor: TypeAlias = keras.KerasTensor
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Architecture(Protocol):
    """The members of an architecture that training and export use.

    bins: centres of the chroma bins, float32 [Q, 2]. Q is 0 for an architecture without bins.
    S is the side of the input and s that of the output, both in pixels; s = S / STRIDE.
    """

    STRIDE: int
    """The side of the network's input divided by that of its output."""

    def build(self, recipe: Recipe, bins: NDArray[np.float32], side: int | None = None) -> keras.Model:
        """Build the network: lightness in 0..1, float32 [N, S, S, 1], to its raw output, float32 [N, s, s, C].

        side: S, or None for an input of any multiple of 32.
        """

    def loss(self, recipe: Recipe, bins: NDArray[np.float32]) -> Loss:
        """Return the loss of true chroma, float32 [N, s, s, 2], and raw output: [N], or one value for the batch."""

    def chroma_layer(self, recipe: Recipe, bins: NDArray[np.float32], gain: float) -> keras.Layer:
        """Return the layer from raw output to chroma in the units of the service's contract, float32 [N, s, s, 2].

        gain: factor of the chroma.
        """


def architecture(recipe: Recipe) -> Architecture:
    """Return the module of a recipe's network."""
    from model_export.networks import compact, resnet50_fcn, unet_gan

    match recipe.network.kind:
        case "compact":
            return compact
        case "resnet50_fcn":
            return resnet50_fcn
        case "unet_gan":
            return unet_gan
