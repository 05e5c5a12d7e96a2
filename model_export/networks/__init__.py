"""The networks, one file each. Every file has the functions of `Architecture`."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

from model_export.recipe import Recipe

Tensor: TypeAlias = keras.KerasTensor
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Architecture(Protocol):
    """What training and export need to know of a network.

    Bins are the centres of the chroma bins, float32 [Q, 2]; Q is 0 for a network that has none.
    """

    STRIDE: int
    """The network's input is so many times larger than its output."""

    def build(self, recipe: Recipe, bins: NDArray[np.float32], side: int | None = None) -> keras.Model:
        """Lightness in 0..1, float32 [N, S, S, 1], to the network's own answer, float32 [N, s, s, C].

        S is `side`, or any multiple of 32 where that is None.
        """

    def loss(self, recipe: Recipe, bins: NDArray[np.float32]) -> Loss:
        """Of the true chroma, float32 [N, s, s, 2], and the network's own answer; one value a photo, or one for all."""

    def chroma_layer(self, recipe: Recipe, bins: NDArray[np.float32], gain: float) -> keras.Layer:
        """From the network's own answer to chroma as the service's contract has it, float32 [N, s, s, 2]."""


def architecture(recipe: Recipe) -> Architecture:
    """The file of a recipe's network."""
    from model_export.networks import compact, resnet50_fcn, unet_gan

    match recipe.network.kind:
        case "compact":
            return compact
        case "resnet50_fcn":
            return resnet50_fcn
        case "unet_gan":
            return unet_gan
