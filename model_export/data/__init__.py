"""Training photographs: collections, filtering, and batches."""
