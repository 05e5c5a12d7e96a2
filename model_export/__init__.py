"""Training of Keras models on colour photographs, and their export to ONNX for the service."""
