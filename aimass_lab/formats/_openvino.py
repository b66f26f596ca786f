"""Imports OpenVINO without the telemetry that it brings along, has the process's one core, and says how it is to compute."""

from __future__ import annotations

import functools
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


@functools.cache
def core() -> Any:
    """The one of this process, which lasts as long as it.

    Each core puts a signal stack of its own in place of the thread's as it compiles for a processor, and puts back the one before as it goes. Of two
    that go in the order of their coming, the second puts back what the first has freed: the next interrupt ends the process, and no handler sees it.
    """
    return import_openvino().Core()
