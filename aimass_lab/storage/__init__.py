"""Weights on disk, packed without loss."""

from .file import load_weights, save_weights, stored_bytes

__all__ = ["load_weights", "save_weights", "stored_bytes"]
