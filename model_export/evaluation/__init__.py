"""Evaluation of models on held-out photographs: metrics, tables, plots and contact sheets."""
