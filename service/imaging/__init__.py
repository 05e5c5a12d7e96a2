"""Pixels: decode an upload, split and merge its colours, and encode the answer."""
