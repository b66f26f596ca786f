"""A package compiled ahead of time by Inductor, behind the interface of a torch module."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedError
from ..quiet import import_quietly, quiet_export
from ..workload import Call
from ._export import cause_of, export_program, repack, without_subclasses
from ._interface import Flat, Interface, flat_call
from ._runtime import RuntimeModule, verify
from .signature import Signature, read_signature

SOURCES = (".cpp", ".kernel_metadata.json")
"""Ends of the names of members that the library was made from; the loader does not need them."""
INSTRUCTIONS = "AIMASS_INSTRUCTIONS"
"""Key of the package's metadata under which it names the instruction sets that it was compiled for, in the words of /proc/cpuinfo."""
TORCH = "AIMASS_TORCH"
"""The same for the version of torch, whose inner workings the library calls."""
Compiled = Callable[..., dict[str, torch.Tensor]]


class PackageModule(RuntimeModule):
    """A ``.pt2`` package: a shared library with the weights, and nothing of Python in between."""

    runtime: ClassVar[str] = "AOTInductor"

    def _load(self, threads: int) -> Compiled:
        with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
            path = Path(folder) / "model.pt2"
            path.write_bytes(self.file.cpu().numpy().data)
            return load_package(path, self.device.index or -1)

    def _run(self, loaded: Compiled, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = loaded(*tensors)
        return [outputs[spec.name] for spec in self.interface.outputs]


def load_package(path: Path, device_index: int = -1) -> Compiled:
    """The library of a package that this process made."""
    return import_quietly("torch._inductor").aoti_load_package(str(path), device_index=device_index)


def has_compiler() -> bool:
    """Whether there is the C++ compiler that Inductor needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def compile_package(model: nn.Module, call: Call, *, names: Sequence[str], device: torch.device, options: dict[str, Any]) -> tuple[PackageModule, Signature]:
    """Export and compile `model`, and compare what comes out with it.

    The caller has put the model into evaluation mode and switched gradients off.

    Args:
        model: What to compile.
        call: Example inputs; all sizes but the batch's are fixed to theirs.
        names: Of the input tensors, in order.
        device: Where it will run.
        options: Of Inductor.

    Raises:
        UnsupportedError: the model cannot be exported or compiled.
        BundleError: the package computes something else than the model, or the model's outputs are not finite.
    """
    signature = read_signature(Flat(model, call), flat_call(call), names=names)
    file = package_bytes(model, signature.example(call), signature, options)
    module = PackageModule(file, Interface.of(model, call, signature), device)
    verify(module, model, call, signature)
    return module, signature


def package_bytes(model: nn.Module, call: Call, signature: Signature, options: dict[str, Any]) -> torch.Tensor:
    """What a package of `model` consists of, uint8[n]: the shared library and what describes it, without the sources that it was made from.

    Args:
        model: What to compile.
        call: Example inputs, of two items or more where there is a batch axis.
        signature: Whether the batch size is left open.
        options: Of Inductor.

    Raises:
        UnsupportedError: the model cannot be exported or compiled.
    """
    inductor = import_quietly("torch._inductor")
    program = export_program(without_subclasses(model), call, signature)
    with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
        compiled, packed = Path(folder) / "compiled.pt2", Path(folder) / "model.pt2"
        try:
            with quiet_export():
                inductor.aoti_compile_and_package(program, package_path=str(compiled), inductor_configs={**_portable(), **options})
        except Exception as error:
            raise UnsupportedError(f"{type(model).__name__} cannot be compiled ahead of time: {cause_of(error)}") from error
        repack(compiled, packed, lambda name: not name.endswith(SOURCES))
        return torch.frombuffer(bytearray(packed.read_bytes()), dtype=torch.uint8)


def _portable() -> dict[str, Any]:
    """Options of Inductor for a library that needs what Inductor asks for, and not all that this very processor has; and that says what it needs."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    isa: Any = pick_vec_isa()
    words = [word.removeprefix("-m").replace("-", "_") for word in isa.build_arch_flags().split() if word.startswith("-m") and "=" not in word]
    words = [word.replace("avx512vnni", "avx512_vnni").replace("avx512bf16", "avx512_bf16") for word in words]
    return {"cpp.march": "", "aot_inductor.metadata": {INSTRUCTIONS: " ".join(dict.fromkeys(words)), TORCH: torch.__version__}}
