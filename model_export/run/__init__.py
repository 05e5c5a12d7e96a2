"""Training runs: setup, schedule, precision, initial weights, and the training loop."""
