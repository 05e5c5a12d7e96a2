"""Weights on disk: checkpoints, pretrained networks, and weights inside ONNX files."""


class UnusableWeights(ValueError):
    """A file of weights is missing, broken, or not one that training can use."""
