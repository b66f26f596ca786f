"""What the processor can do, as Linux tells it."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def processor_flags() -> frozenset[str] | None:
    """Instruction sets in the kernel's words (``"avx512_bf16"``, ``"amx_bf16"``); None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), None)
    return None if found is None else frozenset(found.split())
