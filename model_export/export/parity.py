"""The parity of a model with the one that it was made from: their chroma on the same images."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from service.imaging.color import Floats


class ParityError(RuntimeError):
    """The output of a new model differs too much from that of the model that it was made from."""


@dataclass(frozen=True, slots=True)
class ChromaDifference:
    """Absolute differences of chroma values, in the units of the colour space.

    mean: over all images, channels and pixels. largest: of any single value.
    """

    mean: float
    largest: float

    @classmethod
    def between(cls, expected: Floats, actual: Floats) -> Self:
        """Return the difference of two outputs for the same images, float32 [N, 2, s, s] each."""
        difference = np.abs(expected - actual)
        return cls(float(difference.mean()), float(difference.max()))
