"""Techniques that make a model smaller or faster: one file each, found by looking."""
