"""Everything in bfloat16: half the bytes, the range of float32, 8 bits of precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ._processor import BF16_FLAGS, processor_flags
from ._sixteen_bits import SixteenBits
from .base import TECHNIQUES, Context

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("bf16")
@dataclass(frozen=True, kw_only=True)
class Bf16(SixteenBits):
    """Cast weights and activations to bfloat16; callers see the types they saw before."""

    dtype_name: ClassVar[str] = "bfloat16"

    def unavailable(self, context: Context) -> str | None:
        """Not on a GPU without bfloat16."""
        import torch

        if context.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return f"{torch.cuda.get_device_name(context.device)} has no bfloat16"
        return super().unavailable(context)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """A processor without the instructions; casts at the border of a small model."""
        flags = processor_flags()
        if device.type == "cpu" and flags is not None and not flags & BF16_FLAGS:
            return ("this processor has no bfloat16 instructions (amx_bf16, avx512_bf16), so torch converts to float32 and back",)
        if device.type == "cpu" and batch_size < 8:
            return (f"bfloat16 pays where matrices are large; at batch {batch_size} they may be too small",)
        return ()
