"""Imports OpenVINO without the telemetry that it brings along, and says how it is to compute."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

TELEMETRY = "openvino_telemetry"
SETTINGS: dict[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",  # else it computes in bfloat16 wherever the processor can, and no longer what was compared
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
}


def import_openvino() -> ModuleType:
    """The module. Importing it sends a message to its maker unless its telemetry cannot be imported, so for as long as this takes, it cannot."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if before is None:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before
