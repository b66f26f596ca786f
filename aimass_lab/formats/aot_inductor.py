"""AOTInductor, a .pt2 archive with a shared library: the model compiled for processors like this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ..errors import UnsupportedError
from ..workload import Call
from .base import FORMATS, Format, Runner
from .signature import Signature

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._runtime import Runtime


@FORMATS.register("aot_inductor")
class AotInductor(Format):
    """Compiled here, for processors with the instructions of this one.

    It is compiled when the bundle is written, not where it starts: what is shipped is then the very code that was compared with the model
    and measured, no image needs a compiler, and a read-only file system will do. The price is that it runs on like processors only; the
    file names the instructions that it was compiled for, and its runner compares them with the processor's before it loads anything.
    """

    name: ClassVar[str] = "aot_inductor"
    file_name: ClassVar[str] = "model.pt2"
    runtime: ClassVar[str] = "AOTInductor"
    runs_on: ClassVar[tuple[str, ...]] = ("torch",)
    safety: ClassVar[str] = (
        "native code: no look at it can tell what it does, so it is worth as much trust as whoever built it; its hash is checked, and that it is "
        "for this processor"
    )
    on_request: ClassVar[str | None] = "compiling takes a minute and more"

    def carries(self, model: Runtime) -> bool:
        """Whether it is such a package already."""
        from ._aot_module import PackageModule

        return isinstance(model, PackageModule)

    def _write(self, model: nn.Module, call: Call, signature: Signature, path: Path) -> None:
        path.write_bytes(self._bytes(model, call, signature).numpy().data)

    def _bytes(self, model: nn.Module, call: Call, signature: Signature) -> torch.Tensor:
        from ._aot_module import PackageModule, has_compiler, package_bytes

        if isinstance(model, PackageModule):
            return model.file
        if not has_compiler():
            raise UnsupportedError("AOTInductor needs a C++ compiler, and there is none", help="install g++, or serve another format, such as onnx")
        return package_bytes(model, call, signature, {"cpp.dynamic_threads": True})

    def open(self, path: Path, *, threads: int = 1) -> Runner:
        """Load the library, which this process made, into it."""
        from ._aot_module import load_package
        from ._torch_runner import torch_runner

        return torch_runner(load_package(path))
