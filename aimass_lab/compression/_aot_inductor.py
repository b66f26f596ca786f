"""A package compiled ahead of time by Inductor, behind the interface of a torch module."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import UnsupportedError
from ..formats._interface import Flat, Interface, flat_call
from ..formats._runtime import RuntimeModule, verify
from ..formats.signature import Signature, read_signature
from ..quiet import import_quietly, quiet_export
from ..workload import Call

Compiled = Callable[..., dict[str, torch.Tensor]]


class PackageModule(RuntimeModule):
    """A ``.pt2`` package: a shared library with the weights, and nothing of Python in between."""

    runtime: ClassVar[str] = "AOTInductor"

    def _load(self, threads: int) -> Compiled:
        import_quietly("torch._inductor")
        with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
            path = Path(folder) / "model.pt2"
            path.write_bytes(self.file.cpu().numpy().data)
            return torch._inductor.aoti_load_package(str(path), device_index=self.device.index or -1)

    def _run(self, loaded: Compiled, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs = loaded(*tensors)
        return [outputs[spec.name] for spec in self.interface.outputs]


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
    example = call.with_batch(max(2, call.batch_size)) if signature.batched else call
    shapes = {"tensors": tuple({0: torch.export.Dim("batch", min=1)} for _ in signature.inputs)} if signature.batched else None
    inductor = import_quietly("torch._inductor")
    with tempfile.TemporaryDirectory(prefix="aimass-") as folder:
        path = str(Path(folder) / "model.pt2")
        try:
            with quiet_export():
                program = torch.export.export(Flat(_without_subclasses(model), example), tuple(example.tensors()), dynamic_shapes=shapes)
                inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=dict(options))
        except Exception as error:
            raise UnsupportedError(f"{type(model).__name__} cannot be compiled ahead of time: {_cause(error)}") from error
        file = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
    module = PackageModule(file, Interface.of(model, call, signature), device)
    verify(module, model, call, signature)
    return module, signature


def _without_subclasses(model: nn.Module) -> nn.Module:
    """The same model with torchao's tensors taken apart, as the exporter wants them; a copy where there are some."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not any(is_traceable_wrapper_subclass(parameter) for parameter in model.parameters()):
        return model
    import_quietly("torchao")
    return import_quietly("torchao.utils").unwrap_tensor_subclass(copy.deepcopy(model))


def _cause(error: BaseException) -> str:
    """The first line of what lies at the bottom: it names the operator or the line of the model."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
