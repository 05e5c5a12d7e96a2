"""One file a network. Each has `build(...)`, which returns a Keras model from lightness to logits or chroma."""
