"""torch's fused kernels for its own transformer layers, and what these compute without them.

torch is imported inside the functions, as in `workload`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .compiled import is_compiled
from .outputs import output_tensors
from .workload import Call, call_model

if TYPE_CHECKING:
    import torch
    from torch import nn

ROUNDING = 0.02
"""Relative difference of an output up to which two ways through the same layers are one answer, in 16 bits, too; zeros in place of values are more."""


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Let torch's transformer layers call their own layers: fused, or on nested tensors, no hook sees these, and padded places are left zero."""
    import torch

    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def has_fast_path(model: nn.Module) -> bool:
    """Whether the model has layers that torch may run as fused kernels."""
    from torch import nn

    return any(isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) for m in model.modules())


def filled_by_fast_path(model: nn.Module, call: Call, plain: Sequence[tuple[str, torch.Tensor]] | None = None) -> tuple[str, ...]:
    """Names of the outputs that the fused kernels give otherwise.

    With a padding mask, torch's encoder leaves the padded places out and fills them with zeros; without the fused kernels it gives what its
    layers compute of them, and so do training, an exported file, and a copy whose layers are others.

    Args:
        model: Prepared by the caller, in evaluation mode and without gradients, as the fused kernels need it. A compiled one runs what was
            compiled, and would be compiled anew to be asked for the other.
        call: What it is called with.
        plain: What it answers without them, where that is known.
    """
    if not has_fast_path(model) or is_compiled(model):
        return ()
    if plain is None:
        with without_fast_path():
            plain = output_tensors(call_model(model, call))
    fused = output_tensors(call_model(model, call))
    return tuple(name for (name, a), (_, b) in zip(fused, plain, strict=True) if not _is_one(a, b))


def _is_one(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    if a.shape != b.shape or not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide).nan_to_num(), b.to(wide).nan_to_num()
    return float((a - b).norm()) <= ROUNDING * float(b.norm())
