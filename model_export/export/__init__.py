"""Write ONNX files for the service: trained, converted to half precision, or wrapped from other projects."""
