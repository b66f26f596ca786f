"""Imports ONNX Runtime without the telemetry that it brings along."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")


def import_onnxruntime() -> ModuleType:
    """The module. As it is imported it opens a database in the user's home and starts a thread that sends what is in it, unless the environment says no."""
    os.environ.setdefault(*NO_TELEMETRY)
    return importlib.import_module("onnxruntime")
