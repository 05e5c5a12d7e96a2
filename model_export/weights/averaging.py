"""The average of a network's weights over the steps of a run."""

from model_export.weights.checkpoint import Weights

# Steps between two updates: so that a short run is averaged step by step, and a long one is not held up.
MAX_INTERVAL = 50
INTERVAL_SHARE = 0.02


class WeightAverage:
    """An exponential average of a network's weights, in which those it starts from soon count for nothing.

    Kept here: an optimizer with `use_ema` overwrites the weights with their average whenever `fit` returns.
    """

    def __init__(self, weights: Weights, momentum: float, steps: int = 0) -> None:
        self.weights = weights
        self.momentum = momentum
        self.steps = steps

    def is_due(self, steps: int) -> bool:
        """Return whether the weights after `steps` steps of the run, more than before, are to be taken in."""
        return steps - self.steps >= max(1, min(MAX_INTERVAL, int(INTERVAL_SHARE * steps)))

    def update(self, weights: Weights, steps: int) -> None:
        """Take in the weights after another `steps` steps."""
        self.steps += steps
        kept = min(self.momentum, (1 + self.steps) / (10 + self.steps)) ** steps
        for mean, new in zip(self.weights, weights, strict=True):
            mean += (1 - kept) * (new - mean)
