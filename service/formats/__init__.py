"""Parsers and writers for the structure of image files; no pixels are decoded here."""
