"""Everything in float16: half the bytes, 11 bits of precision, and values above 65504 overflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._sixteen_bits import SixteenBits
from .base import TECHNIQUES

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("fp16")
@dataclass(frozen=True, kw_only=True)
class Fp16(SixteenBits):
    """Cast weights and activations to float16; callers see the types they saw before. Made for GPUs."""

    dtype_name: ClassVar[str] = "float16"

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """CPUs."""
        if device.type == "cpu":
            return ("torch has few fast float16 kernels for CPUs; bf16 is the 16-bit type to try on one",)
        return ()
