"""Writes a resource spec for a platform: one format a file, spec in, texts out."""

from ._check import check_spec_path, find_spec
from .base import EXPORTERS, exporter_text, read_exporter

__all__ = ["EXPORTERS", "check_spec_path", "exporter_text", "find_spec", "read_exporter"]
