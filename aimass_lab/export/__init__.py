"""Exporters: a resource spec in, a platform's files out. One format a file."""

from __future__ import annotations

from .base import EXPORTERS, Exporter

__all__ = ["EXPORTERS", "Exporter"]
