"""The exponential moving average of a network's weights over the steps of a run."""

from model_export.weights.checkpoint import Weights

# The maximum number of steps between two updates, and as a fraction of the run so far. A short run is averaged at every
# step. A long run does not spend its time on copying weights.
MAX_INTERVAL = 50
INTERVAL_SHARE = 0.02


class WeightAverage:
    """An exponential moving average of weights. Its momentum rises at first, so that the initial weights soon vanish.

    Keras's own average is not used: an optimizer with `use_ema` replaces the weights by it whenever `fit` returns.
    """

    def __init__(self, weights: Weights, momentum: float, steps: int = 0) -> None:
        self.weights = weights
        self.momentum = momentum
        self.steps = steps

    def is_due(self, steps: int) -> bool:
        """Return whether the average needs the weights after `steps` steps of the run."""
        return steps - self.steps >= max(1, min(MAX_INTERVAL, int(INTERVAL_SHARE * steps)))

    def update(self, weights: Weights, steps: int) -> None:
        """Update the average with the weights after another `steps` steps."""
        self.steps += steps
        kept = min(self.momentum, (1 + self.steps) / (10 + self.steps)) ** steps
        for mean, new in zip(self.weights, weights, strict=True):
            mean += (1 - kept) * (new - mean)
