"""Colour whole photos: one upload, or a directory of files."""
