"""AOTInductor: the model compiled ahead of time into a shared library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import BundleError, UnsupportedError
from .base import TECHNIQUES, Context, Form, Stage, Technique

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("aot_inductor")
@dataclass(frozen=True, kw_only=True)
class AotInductor(Technique):
    """Export the model and compile it ahead of time; a call then runs without Python, and never compiles."""

    changes: ClassVar[str] = "how the whole model is run"
    stage: ClassVar[Stage] = Stage.RUNTIME
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "cast", "quantized"})
    gives: ClassVar[Form | None] = "compiled"
    effort: ClassVar[float] = 5.0

    freezing: bool = False
    """Fold the weights into the code, packed as its kernels like them: faster for large batches on CPUs, slower for single items."""

    def why_not_after(self, form: Form) -> str:
        """What went wrong with quantised graphs."""
        if form == "graph":
            return "AOTInductor compiles exported graphs with quantised operators into code that computes something else: compile and onnxruntime do not"
        return super().why_not_after(form)

    def unavailable(self, context: Context) -> str | None:
        """Not without a compiler."""
        from ._torch_compile import why_not_compile

        lacking = why_not_compile(context.device)
        return None if lacking is None else lacking.replace("torch.compile", "AOTInductor", 1)

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Any model will do, with or without weights."""
        return self.unavailable(context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Export and compile the copy, compare the result with it, and return what runs it."""
        from ..formats._aot_module import compile_package
        from ._exported import note_limits

        context.progress(0.1, "compiling ahead of time")
        names = [name for name, _ in context.call.named_tensors(context.original)]
        # threads are those of the caller, not those of the compilation
        options = {"cpp.dynamic_threads": True, "freezing": self.freezing}
        try:
            module, signature = compile_package(model, context.call, names=names, device=context.device, options=options)
        except BundleError as error:
            raise UnsupportedError(f"the compiled model is refused: {error.message}", help="use compile or onnxruntime in its place") from error
        note_limits(module, signature, context)
        return module

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What compiling leaves alone."""
        return ("compiling fuses the small operations between matrix products and convolutions, and leaves those themselves as they were",)
