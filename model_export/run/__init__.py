"""Training runs: setup, schedule, precision, and the training loop."""
