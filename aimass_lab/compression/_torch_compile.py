"""torch.compile with a limit that no trial reaches unseen, and the question whether it can work here."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..quiet import import_quietly

if TYPE_CHECKING:
    import torch
    from torch import nn

RECOMPILE_LIMIT = 64
"""Shapes for which a model is compiled. At torch's own limit, which is 8 and shared by all models of a
class, a model goes back to eager without an error."""


def compile_model(model: nn.Module, *, mode: str = "default", dynamic: bool = False) -> nn.Module:
    """Return `model` compiled at its first call for each shape, or once for all shapes if `dynamic`."""
    import torch
    from torch import nn

    import_quietly("torch._inductor.compile_fx")
    # torch 2.13 has the parameter, its type stubs do not
    return cast(nn.Module, torch.compile(model, mode=mode, dynamic=dynamic, recompile_limit=RECOMPILE_LIMIT))  # type: ignore[call-overload]


def why_not_compile(device: torch.device) -> str | None:
    """Say what torch.compile lacks for `device`, or None."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs Triton on a GPU, and it is not installed or does not support this one"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on a CPU, and there is none: install g++, or name one in the variable CXX"
    return None
