"""Runs a serving bundle: Open Inference Protocol v2 in front, supervised model workers behind; stands alone."""
