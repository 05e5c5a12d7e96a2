"""Trains Keras models on colour photographs and exports them to ONNX for the service."""
