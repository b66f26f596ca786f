"""What the processor can do, as Linux tells it."""

from __future__ import annotations

import functools
from pathlib import Path

BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
INT8_FLAGS = frozenset({"amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"})
"""Products of 8-bit integers summed in 32 bits: Intel's and AMD's words, then ARM's."""


@functools.cache
def processor_flags() -> frozenset[str] | None:
    """Instruction sets in the kernel's words (``"avx512_bf16"``, ``"amx_bf16"``); None where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features"))), None)
    return None if found is None else frozenset(found.split())


def no_int8_products() -> str | None:
    """Say that this processor has no instructions for products of 8-bit integers; None where it has, or does not tell."""
    flags = processor_flags()
    if flags is None or flags & INT8_FLAGS:
        return None
    return "this processor has no 8-bit dot products (avx512_vnni, avx_vnni, amx_int8): 8-bit integers are widened before they are multiplied"
