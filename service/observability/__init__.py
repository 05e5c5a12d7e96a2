"""Logs, metrics and traces of what the service does."""
