"""Linear weights kept in 4 bits in small groups, arithmetic in 16 or 32 bits."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..quiet import import_quietly
from ._linear_weights import LinearWeights, device_name
from .base import TECHNIQUES, Context, linear_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

GROUP_SIZES = (32, 64, 128, 256)
CPU_GROUP_SIZES = (32, 64, 128)
"""Those that torch's CPU kernel takes."""
CPU_MULTIPLE = 16
"""Of outputs that torch's CPU kernel packs together."""
TILE_INPUTS = 1024
"""Inputs of which the tensor cores' packing makes a multiple, by padding with zeros."""
TILE_CAPABILITY, MSLK_CAPABILITY = (8, 0), (9, 0)
"""Compute capabilities from which the two GPU kernels run."""

Packing = Literal["auto", "cpu", "tiles", "mslk", "bytes"]


@TECHNIQUES.register("int4_weight_only")
@dataclass(frozen=True, kw_only=True)
class Int4WeightOnly(LinearWeights):
    """Round linear weights to 4 bits, each group with a scale and an offset of its own: about a sixth of the bytes of float32."""

    group_size: int = 64
    """Weights that share one scale and offset: 32, 64, 128 or (not on a CPU) 256. Fewer are more accurate and take more bytes."""
    scales: Literal["range", "hqq"] = "range"
    """How scales are chosen: by the range of each group, or by half-quadratic quantisation (HQQ), which takes longer and is often closer."""
    packing: Packing = "auto"
    """Layout in memory, and so the kernel: cpu (torch's own), tiles (tensor cores), mslk (the package of that name), bytes (one value a byte:
    runs and exports anywhere, and saves no more than int8); auto takes cpu on a CPU and tiles on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size not in GROUP_SIZES:
            raise InputError(f"group_size {self.group_size} is not one of {', '.join(map(str, GROUP_SIZES))}")
        if self.scales == "hqq" and self.packing in ("mslk", "bytes"):
            raise InputError(f"scales=hqq is not possible with packing={self.packing}", help="leave packing at auto, or scales at range")

    def unavailable(self, context: Context) -> str | None:
        """Not where the packing has no kernel, or its package is not installed."""
        return super().unavailable(context) or self._no_kernel(context.device)

    def _no_kernel(self, device: torch.device) -> str | None:
        import torch

        packing = self._packing(device)
        if packing == "bytes":
            return None
        if packing == "cpu":
            if device.type != "cpu":
                return f"packing=cpu is for CPUs, and the model is on {device_name(device)}"
            if self.group_size not in CPU_GROUP_SIZES:
                return f"torch's 4-bit kernel for CPUs takes groups of {', '.join(map(str, CPU_GROUP_SIZES))} weights, not {self.group_size}"
            return None
        needed = TILE_CAPABILITY if packing == "tiles" else MSLK_CAPABILITY
        if device.type != "cuda":
            return f"packing={packing} is for GPUs, and the model is on {device_name(device)}"
        capability = torch.cuda.get_device_capability(device)
        if capability < needed:
            return (
                f"packing={packing} needs compute capability {needed[0]}.{needed[1]}, and {device_name(device)} has {capability[0]}.{capability[1]}; "
                "packing=bytes runs there, without being smaller than int8"
            )
        if packing == "mslk" and importlib.util.find_spec("mslk") is None:
            return "packing=mslk needs the package 'mslk', which is not installed: pip install mslk, or use packing=tiles"
        return None

    def _packing(self, device: torch.device) -> str:
        return self.packing if self.packing != "auto" else "tiles" if device.type == "cuda" else "cpu"

    def misfit(self, layer: nn.Linear) -> str | None:
        """Rows must be cut into whole groups; the CPU packs outputs by 16; mslk multiplies bfloat16 only."""
        import torch

        packing = self._packing(layer.weight.device)
        if layer.in_features % self.group_size:
            return f"in_features {layer.in_features} is not a multiple of group_size {self.group_size}"
        if packing == "cpu" and layer.out_features % CPU_MULTIPLE:
            return f"out_features {layer.out_features} is not a multiple of {CPU_MULTIPLE}, by which the CPU's kernel packs them"
        if packing == "mslk" and layer.weight.dtype != torch.bfloat16:
            return "mslk multiplies bfloat16 only, and its weight is of another type: put bf16 before it"
        return super().misfit(layer)

    def detail(self, layer: nn.Linear) -> str:
        """The weight's new form and packing."""
        text = f"int4 weight in groups of {self.group_size}"
        packing = self._packing(layer.weight.device)
        if packing == "tiles":
            padded = -layer.in_features % TILE_INPUTS
            text += ", packed for tensor cores, arithmetic in bfloat16"
            return text + (f", {layer.in_features} inputs padded to {layer.in_features + padded}" if padded else "")
        return text + {"cpu": ", packed for the CPU's kernel", "mslk": ", packed for mslk", "bytes": ", one value a byte"}[packing]

    def config(self, torchao: ModuleType, layer: nn.Linear) -> Any:
        """Make torchao's configuration for the packing."""
        import torch

        packing = self._packing(layer.weight.device)
        if packing == "bytes":
            return torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(self.group_size))  # type: ignore[attr-defined]
        formats = import_quietly("torchao.quantization.quantize_.workflows")
        algorithm = formats.Int4ChooseQParamsAlgorithm.HQQ if self.scales == "hqq" else formats.Int4ChooseQParamsAlgorithm.TINYGEMM
        options = {"group_size": self.group_size, "int4_choose_qparams_algorithm": algorithm, "set_inductor_config": False}
        if packing == "cpu":
            return import_quietly("torchao.prototype.quantization.int4.inference_workflow").PrototypeInt4WeightOnlyConfig(**options)
        kind = import_quietly("torchao.quantization.quantize_.workflows.int4.int4_packing_format").Int4PackingFormat
        if packing == "mslk":
            return torchao.Int4WeightOnlyConfig(int4_packing_format=kind.PLAIN, **options)
        return torchao.Int4WeightOnlyConfig(
            int4_packing_format=kind.TILE_PACKED_TO_4D, int4_tile_packed_ntile=16 if torch.version.hip else 8, **options
        )  # fmt: skip

    def change_layer_(self, layer: nn.Linear) -> None:
        """Replace the weight; the tensor cores' packing starts from bfloat16."""
        import torch
        from torch import nn

        if self._packing(layer.weight.device) == "tiles":
            layer.weight = nn.Parameter(layer.weight.to(torch.bfloat16), requires_grad=False)
        super().change_layer_(layer)

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """4-bit kernels save reading, not arithmetic; padding; values that only stand for 4 bits."""
        packing = self._packing(device)
        if packing == "bytes":
            return ("4 bits are simulated: values take a byte each and are widened at every call, so it is neither smaller than int8 nor faster",)
        found = ["4-bit weights are widened inside the product: that pays where reading weights binds (large layers, few rows), not where arithmetic does"]
        if batch_size >= 8:
            found.append(f"at batch {batch_size} a weight that was read is used often, so arithmetic binds rather than reading")
        layers = [layer for name, layer in linear_layers(model).items() if name in self.eligible(model)]
        padded = [layer for layer in layers if layer.in_features % TILE_INPUTS] if packing == "tiles" else []
        if padded:
            found.append(f"{len(padded)} of {len(layers)} linear layers are padded to a multiple of {TILE_INPUTS} inputs, and the padding is multiplied too")
        return tuple(found)
