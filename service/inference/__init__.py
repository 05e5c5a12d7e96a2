"""Run models with ONNX Runtime: model files, sessions, and dynamic batches."""
