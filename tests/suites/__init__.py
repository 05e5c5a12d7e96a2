"""Run the image suites of other projects through the service: python -m tests.suites --help."""
