"""What is measured for the sake of advice: only where the recorded call gives a reason to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .kernels import share_of_families
from .probes import Range, channels_last_speedup, fault_cost, product_speedup
from .recorder import Recording

PRODUCTS = ("gemm", "conv", "attention")
"""Families that are made of matrix products."""
WORTH_A_LOOK = 0.2
"""Least share of a call that a family must take for a probe of it."""
MANY_FAULTS = 2048
"""Least page faults a call, 8 MiB of fresh memory, for a look at what they cost."""


@dataclass
class Evidence:
    """None where there was no reason to look, or nothing to be seen."""

    faults_per_call: float | None = None
    """Pages that the operating system mapped during one call."""
    fault_cost_s: Range | None = None
    bf16_speedup: Range | None = None
    """Of a matrix product over the same in float32."""
    tf32_speedup: Range | None = None
    channels_last: tuple[str, Range] | None = None
    """The convolution that takes the most time, and how many times faster it is with its channels innermost."""


def gather_evidence(model: nn.Module, device: torch.device, dtype: torch.dtype, recording: Recording | None, faults_per_call: float | None) -> Evidence:
    """Look at what the recorded call gives a reason to look at; a tenth of a second each.

    Args:
        model: The model.
        device: Where it runs.
        dtype: Of most of its weights.
        recording: One call of it.
        faults_per_call: Page faults counted over calls with the profiler off.
    """
    evidence = Evidence(faults_per_call=faults_per_call)
    if device.type == "cpu" and faults_per_call is not None and faults_per_call >= MANY_FAULTS:
        evidence.fault_cost_s = fault_cost()
    if recording is None:
        return evidence
    if dtype == torch.float32 and share_of_families(recording, *PRODUCTS) >= WORTH_A_LOOK:
        evidence.bf16_speedup = product_speedup(device, torch.bfloat16)
        if device.type == "cuda" and _tf32_is_off(device):
            evidence.tf32_speedup = product_speedup(device, torch.float32, tf32=True)
    if share_of_families(recording, "conv") >= WORTH_A_LOOK:
        evidence.channels_last = _slowest_convolution(model, recording)
    return evidence


def _tf32_is_off(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0) and torch.backends.cuda.matmul.fp32_precision != "tf32"


def _slowest_convolution(model: nn.Module, recording: Recording) -> tuple[str, Range] | None:
    times: dict[str, int] = {}
    for op, weight in zip(recording.ops, recording.weights_ns, strict=True):
        times[op.module or ""] = times.get(op.module or "", 0) + weight
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Conv2d and m.padding_mode == "zeros" and name in recording.input_shapes}
    layers = {name: m for name, m in layers.items() if m.weight.is_contiguous() and len(recording.input_shapes[name]) == 4}
    slowest = max(layers, key=lambda name: times.get(name, 0), default=None)
    if slowest is None or layers[slowest].weight[0, 0].numel() == 1:  # a 1x1 kernel reads both orders alike
        return None
    return slowest, channels_last_speedup(layers[slowest], recording.input_shapes[slowest])
