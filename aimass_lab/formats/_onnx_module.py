"""ONNX Runtime behind the interface of a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from ..errors import InputError, UnsupportedError, first_line
from ..workload import Call
from ._interface import Flat, Interface, flat_call
from ._onnxruntime import import_onnxruntime
from ._runtime import RuntimeModule, verify
from .signature import IN_FLOAT32, Signature, read_signature

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

GraphOptimization = Literal["all", "extended", "basic", "none"]
LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
IN_TORCH = "let the model compute it by other operators, or write it in a format that torch runs, such as safetensors"


class OnnxModule(RuntimeModule):
    """An ONNX file in ONNX Runtime; safe to call from several threads."""

    runtime: ClassVar[str] = "ONNX Runtime"

    def __init__(self, file: torch.Tensor, interface: Interface, device: torch.device, graph_optimization: GraphOptimization = "all") -> None:
        super().__init__(file, interface, device)
        self.graph_optimization = graph_optimization

    def _load(self, threads: int) -> _Session:
        data = self.file.cpu().numpy().tobytes()
        session = open_session(data, threads, device=self.device, graph_optimization=self.graph_optimization)
        session._model_bytes = None  # kept by it for a fallback that is switched off: a second copy of all weights
        return _Session(session, self.interface)

    def _run(self, loaded: _Session, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        if self.device.type == "cuda":
            return self._run_on_gpu(loaded, tensors)
        feeds = {name: tensors[i].detach().numpy() for name, i in loaded.feeds}
        return [torch.from_numpy(array) for array in loaded.session.run(loaded.outputs, feeds)]

    def _run_on_gpu(self, loaded: _Session, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Inputs and outputs stay on the GPU; the runtime has a stream of its own, and waits for it before it returns."""
        import numpy as np

        index = self.device.index or 0
        binding = loaded.session.io_binding()
        inputs = [tensor.detach().contiguous() for tensor in tensors]
        for name, i in loaded.feeds:
            if inputs[i].device != torch.device("cuda", index):
                raise InputError(f"the input {name!r} is on {inputs[i].device}, and the exported model runs on cuda:{index}")
            dtype = np.dtype(self.interface.inputs[i].dtype)
            binding.bind_input(name, "cuda", index, dtype, tuple(inputs[i].shape), inputs[i].data_ptr())
        outputs = []
        for spec in self.interface.outputs:
            shape = tuple(inputs[0].shape[0] if size == -1 else size for size in spec.shape)
            outputs.append(torch.empty(shape, dtype=getattr(torch, spec.dtype), device=self.device))
            binding.bind_output(spec.name, "cuda", index, np.dtype(spec.dtype), shape, outputs[-1].data_ptr())
        torch.cuda.current_stream(self.device).synchronize()  # what computes the inputs runs in torch's stream
        loaded.session.run_with_iobinding(binding)
        return outputs


class _Session:
    """An inference session, and which inputs and outputs to name when calling it."""

    def __init__(self, session: onnxruntime.InferenceSession, interface: Interface) -> None:
        self.session = session
        self.outputs = [spec.name for spec in interface.outputs]
        used = {node.name for node in session.get_inputs()}  # an input that the graph does not use is not among its inputs
        self.feeds = [(spec.name, i) for i, spec in enumerate(interface.inputs) if spec.name in used]


def open_session(
    model: str | bytes, threads: int, *, device: torch.device | None = None, graph_optimization: GraphOptimization = "all"
) -> onnxruntime.InferenceSession:
    """Load a file, or the bytes of one, into ONNX Runtime.

    Raises:
        UnsupportedError: ONNX Runtime has no kernel for an operator or a dtype of the file.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[graph_optimization])
    # waiting threads that spin would take the cores from whoever is measured beside
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is not None and device.type == "cuda":
        providers = [("CUDAExecutionProvider", {"device_id": device.index or 0})]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:  # its exceptions have no common base class
        help = f"ONNX Runtime has no bfloat16 kernels for the CPU: {IN_FLOAT32}" if _holds_bfloat16(model) else IN_TORCH
        raise UnsupportedError(f"ONNX Runtime cannot run the exported model: {first_line(error)}", help=help) from error
    if session.get_providers()[0] != (providers[0] if isinstance(providers[0], str) else providers[0][0]):
        raise UnsupportedError("ONNX Runtime did not take the model onto the GPU", help="see whether its CUDA version is the one that is installed")
    return session


def _holds_bfloat16(model: str | bytes) -> bool:
    """Whether weights of the file are kept in bfloat16; ONNX Runtime names the operator that it cannot compute, and not the type."""
    import onnx

    file = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    return any(weight.data_type == onnx.TensorProto.BFLOAT16 for weight in file.graph.initializer)


def export_module(
    model: nn.Module, call: Call, *, names: Sequence[str], device: torch.device, graph_optimization: GraphOptimization = "all"
) -> tuple[OnnxModule, Signature]:
    """Export `model` and return it as a module that ONNX Runtime computes, compared with the one it was made from.

    The caller has put the model into evaluation mode and switched gradients off.

    Args:
        model: What to export.
        call: Example inputs; all sizes but the batch's are fixed to theirs.
        names: Of the input tensors, in order.
        device: Where it will run.
        graph_optimization: How far ONNX Runtime may rewrite the graph as it loads it.

    Raises:
        UnsupportedError: ONNX or its runtime cannot express the model.
        BundleError: the export computes something else than the model, or the model's outputs are not finite.
        ModelError: the model raises on its example inputs, or gives no tensor.
    """
    from .base import check_dtypes
    from .onnx import onnx_bytes

    signature = read_signature(Flat(model, call), flat_call(call), names=names)
    check_dtypes(signature)
    module = OnnxModule(onnx_bytes(model, signature.example(call), signature), Interface.of(model, call, signature), device, graph_optimization)
    verify(module, model, call, signature)
    return module, signature
