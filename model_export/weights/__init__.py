"""Weights on disk: checkpoints, pretrained networks, and weights inside ONNX files."""
