"""Decoders of single file formats."""
