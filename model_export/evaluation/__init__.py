"""Measure models on held-out photographs, and show the results."""
