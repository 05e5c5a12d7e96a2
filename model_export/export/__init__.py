"""Export of trained networks, and conversion of other ONNX models, to the service's contract."""
