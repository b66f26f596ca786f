"""Model formats: how a model is written so that a server can run it without its source code. One format a file."""

from __future__ import annotations

from .base import FORMATS, Format, FormatFile

__all__ = ["FORMATS", "Format", "FormatFile"]
