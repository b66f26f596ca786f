"""One model of the evaluation in a process of its own: what we predict, what is true, what the peers say. Prints JSON.

``python measure.py NAME`` is called by ``run.py``; a process a model, so that none pays for another's imports or leftovers.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings
from typing import Any

import peers
import torch
import zoo
from torch import nn

from aimass_lab import Workload, estimate_demand
from aimass_lab.demand.estimate import CALIBRATION_BATCHES
from aimass_lab.profiling.memory import peak_of_call
from aimass_lab.recipe import read_recipe
from aimass_lab.trial import apply_recipe

REPEATS = 5


def build(entry: zoo.Entry) -> nn.Module:
    torch.manual_seed(0)
    if entry.only_meta:
        with torch.device("meta"):
            return entry.make().eval()
    return entry.make().eval()


def inputs_of(entry: zoo.Entry, model: nn.Module, batch: int) -> Any:
    weights = next((p for p in model.parameters()), None)
    dtype = weights.dtype if weights is not None and weights.dtype.is_floating_point else torch.float32

    def fit(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to("meta") if entry.only_meta else tensor
        return tensor.to(dtype) if tensor.is_floating_point() and entry.technique in (None, "bf16", "fp16") else tensor

    return zoo.move(entry.inputs(batch), fit)


def evaluate(entry: zoo.Entry) -> dict[str, Any]:
    """Everything about one model."""
    original = build(entry)
    batch = entry.batches[min(1, len(entry.batches) - 1)]
    found: dict[str, Any] = {"name": entry.name, "batch": batch, "technique": entry.technique, "only_meta": entry.only_meta}
    found["hand_count"] = zoo.hand_count(entry, original, batch)
    model = original
    if entry.technique:
        model = apply_recipe(Workload(original, entry.inputs(batch)), read_recipe(entry.technique)).model
    inputs = inputs_of(entry, model, batch)
    workload = Workload(model, inputs)
    found["cold_cpu_s"], demand = timed(lambda: estimate_demand(workload, batch_size=batch))
    warm = [timed(lambda: estimate_demand(workload, batch_size=batch))[0] for _ in range(REPEATS)]
    found["warm_cpu_s"] = sorted(warm)[len(warm) // 2]
    found["flops"] = demand.flops.value
    found["unknown"] = [f"{o.name} x{o.calls}" for o in demand.operators if not o.has_formula]
    found["notes"] = [note.code for note in demand.notes]
    found["peers_flops"] = {} if entry.only_meta else {name: peers.ask(tool, model, inputs) for name, tool in peers.FLOPS.items()}
    found["memory"] = [] if entry.only_meta else [memory(entry, model, size) for size in entry.batches]
    if entry.only_meta:
        found["peak_bytes"] = demand.peak_memory_bytes.value
    found["peers_memory"] = {} if entry.only_meta else {name: peers.ask(tool, model, inputs) for name, tool in peers.MEMORY.items()}
    if entry.train:
        del demand, workload
        found["training"] = training(entry, model)
    return found


def timed(function: Any) -> tuple[float, Any]:
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def memory(entry: zoo.Entry, model: nn.Module, batch: int) -> dict[str, Any]:
    """Predicted without a run, and held by the allocator during a real call: both with weights and inputs."""
    inputs = inputs_of(entry, model, batch)
    workload = Workload(model, inputs)
    demand = estimate_demand(workload, batch_size=batch)
    zoo_call = lambda: zoo.call(model, inputs)  # noqa: E731
    with torch.inference_mode():
        zoo_call()
        peak = peak_of_call(zoo_call, torch.device("cpu"))
    given = sum(t.numel() * t.element_size() for t in (inputs.values() if isinstance(inputs, dict) else inputs))
    real = demand.weight_bytes.value + given + (peak or 0)
    found = {"batch": batch, "predicted": demand.peak_memory_bytes.value, "band": demand.peak_memory_bytes.interval, "measured": real}
    if batch > 1 and batch not in CALIBRATION_BATCHES:
        found["calibrated"] = estimate_demand(workload, batch_size=batch, calibrate=True).peak_memory_bytes.value
    return found


def training(entry: zoo.Entry, model: nn.Module) -> dict[str, Any]:
    """The second of two steps: FLOPs and peak, predicted and real."""
    batch = 2
    model = model.train()
    inputs = inputs_of(entry, model, batch)
    cpu_s, demand = timed(lambda: estimate_demand(Workload(model, inputs), batch_size=batch, training=True))
    step = demand.training
    flops = step.forward_flops.value + step.backward_flops.value
    found: dict[str, Any] = {"batch": batch, "cpu_s": cpu_s, "flops": flops, "peak_predicted": step.peak_memory_bytes.value}
    if entry.only_meta:
        return found
    found["hand_count"] = zoo.hand_count_training(entry, model, batch)
    optimizer = torch.optim.AdamW(model.parameters())

    def real_step() -> None:
        optimizer.zero_grad()
        output = zoo.call(model, inputs)
        loss_of(output).backward()
        optimizer.step()

    real_step()
    optimizer.zero_grad()
    given = sum(t.numel() * t.element_size() for t in (inputs.values() if isinstance(inputs, dict) else inputs))
    state = sum(v.numel() * v.element_size() for entries in optimizer.state.values() for v in entries.values() if isinstance(v, torch.Tensor))
    peak = peak_of_call(real_step, torch.device("cpu"))
    found["peak_measured"] = demand.weight_bytes.value + given + state + (peak or 0)
    found["counter"] = peers.ask(lambda m, i: counted(real_step), model, inputs).get("value")
    return found


def loss_of(output: Any) -> torch.Tensor:
    tensors = [t for t in (output.values() if isinstance(output, dict) else [output]) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return sum((t.float().mean() for t in tensors), start=torch.zeros(()))


def counted(step: Any) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    peers.available()
    with peers.silent():
        result = evaluate(zoo.by_name(sys.argv[1]))
    print(json.dumps(result))
