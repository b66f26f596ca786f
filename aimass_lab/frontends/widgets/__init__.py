"""The workbench: one linked panel in a cell's output, drawn in the browser from records."""

from __future__ import annotations

from .panel import Panel, open_panel

__all__ = ["Panel", "open_panel"]
