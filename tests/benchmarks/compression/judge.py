"""What is true of a variant, found without the package: its accuracy on held-out data, how its outputs differ, and how fast it is.

The speed is measured long: blocks of calls of the original and of the variant, side by side in an order drawn by lot, in one thread, by the
processor time of that thread. The rules are this file's own, so that agreement with the product's verdict means something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import zoo
from torch import nn

BLOCK_S = 0.02
"""Least time of one block of calls: clocks and the start of a loop must not count."""
BAND = 0.02
"""A change of speed up to this is none."""
AT_ONCE = 32
"""Samples of one call when outputs are compared; the last call is filled up, since a compiled variant would compile each new shape anew."""

Model = Callable[..., Any]


def rows(inputs: zoo.Inputs, indices: torch.Tensor) -> zoo.Inputs:
    """The items with these indices."""
    return {key: value[indices] for key, value in inputs.items()} if isinstance(inputs, dict) else inputs[indices]


def num_items(inputs: zoo.Inputs) -> int:
    """How many there are."""
    return len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)


def batch_of(inputs: zoo.Inputs, size: int) -> zoo.Inputs:
    """The first `size` items, repeated in order where there are too few."""
    return rows(inputs, torch.arange(size) % num_items(inputs))


def call(model: Model, inputs: zoo.Inputs) -> torch.Tensor:
    """The first tensor of what the model returns."""
    outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    while not isinstance(outputs, torch.Tensor):
        outputs = next(iter(outputs.values() if hasattr(outputs, "values") else outputs))
    return outputs


def outputs_of(model: Model, inputs: zoo.Inputs, at_once: int = AT_ONCE) -> torch.Tensor:
    """Outputs for all items, in batches of one size."""
    total, found = num_items(inputs), []
    with torch.inference_mode():
        for start in range(0, total, at_once):
            indices = torch.arange(start, start + at_once) % total
            found.append(call(model, rows(inputs, indices))[: total - start].clone())
    return torch.cat(found)


# --- outputs -------------------------------------------------------------------------------------


def judge_outputs(original: Model, variant: Model, parts: zoo.Parts) -> dict[str, Any]:
    """Errors of the outputs, and the metric with the interval of its drop."""
    inputs = parts.data[0] if parts.data else parts.inputs
    at_once = min(AT_ONCE, num_items(inputs))
    a, b = outputs_of(original, inputs, at_once).float(), outputs_of(variant, inputs, at_once).float()
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    found: dict[str, Any] = {
        "num_samples": len(a),
        "relative_error": ((flat_a - flat_b).norm() / flat_a.norm()).item(),
        "cosine": nn.functional.cosine_similarity(flat_a.double(), flat_b.double()).mean().item(),
    }
    if parts.metric and parts.data:
        found["metric"] = metric_of(a, b, parts.data[1], parts.metric)
    if parts.index is not None:
        found["retrieval"] = zoo.retrieval(a, b, parts.index)
    elif parts.data:
        found["agreement"] = (a.argmax(1) == b.argmax(1)).float().mean().item()
    return found


def metric_of(original: torch.Tensor, variant: torch.Tensor, labels: torch.Tensor, metric: Callable[[Any, Any], float]) -> dict[str, Any]:
    """Both metrics, that of the variant with its Wilson interval, and the drop with a bootstrap over the items."""
    n = len(labels)
    before, after = metric(original, labels), metric(variant, labels)
    hits = [np.array([metric(outputs[i : i + 1], labels[i : i + 1]) for i in range(n)]) for outputs in (original, variant)]
    drawn = np.random.default_rng(0).integers(0, n, (4000, n))
    drops = (hits[0] - hits[1])[drawn].mean(1)
    low, high = np.percentile(drops, [2.5, 97.5])
    return {"original": before, "variant": after, "interval": wilson(after, n), "drop": before - after, "drop_interval": [float(low), float(high)], "n": n}


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """The 95 % interval of a share (Wilson 1927)."""
    middle, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


# --- speed ---------------------------------------------------------------------------------------


def long_measurement(original: Model, variant: Model, inputs: zoo.Inputs, *, seconds: float, max_rounds: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Blocks of calls of both, round by round, until the time is up: seconds per call by three clocks."""
    functions = [lambda: call(original, inputs), lambda: call(variant, inputs)]
    with torch.inference_mode():
        counts = [_calls_per_block(function) for function in functions]
        lots, rounds = np.random.default_rng(seed), []
        end = time.perf_counter() + seconds
        while len(rounds) < max_rounds and (time.perf_counter() < end or len(rounds) < 20):
            measured: dict[int, tuple[float, float, float]] = {}
            for i in lots.permutation(2):
                measured[int(i)] = _block(functions[i], counts[i])
            rounds.append((measured[0], measured[1]))
    return summary(np.array(rounds))


def _calls_per_block(function: Callable[[], Any]) -> int:
    function()
    seconds = min(_block(function, 1)[2] for _ in range(3))
    for _ in range(max(0, int(0.3 / seconds))):  # the processor's clock settles
        function()
    return max(1, int(np.ceil(BLOCK_S / seconds)))


def _block(function: Callable[[], Any], count: int) -> tuple[float, float, float]:
    """Seconds per call: of this thread, of all threads of the process, and of the wall clock."""
    begin = time.thread_time(), time.process_time(), time.perf_counter()
    for _ in range(count):
        function()
    end = time.thread_time(), time.process_time(), time.perf_counter()
    thread, process, wall = ((b - a) / count for a, b in zip(begin, end, strict=True))
    return thread, process, wall


def summary(rounds: np.ndarray) -> dict[str, Any]:
    """Ratios of medians by each clock, each with a bootstrap over the rounds; `rounds` is [round, original or variant, clock].

    The thread's own time is the truth, unless a runtime works in other threads too: then it is the time of all of them.
    """
    medians = np.median(rounds, axis=0)
    elsewhere = bool((medians[:, 1] > 1.05 * medians[:, 0] + 2e-6).any())
    clocks = {name: ratio(rounds[:, 0, i], rounds[:, 1, i]) for i, name in enumerate(("thread", "process", "wall"))}
    return {
        "truth": clocks["process" if elsewhere else "thread"], "clock": "process" if elsewhere else "thread", "clocks": clocks,
        "original_s": float(medians[0, 0]), "variant_s": float(medians[1, 0]), "rounds": len(rounds),
    }  # fmt: skip


def ratio(original: np.ndarray, variant: np.ndarray) -> list[float]:
    """How many times as fast the variant is, with a 95 % interval."""
    drawn = np.random.default_rng(1).integers(0, len(original), (2000, len(original)))
    low, high = np.percentile(np.median(original[drawn], axis=1) / np.median(variant[drawn], axis=1), [2.5, 97.5])
    return [float(np.median(original) / np.median(variant)), float(low), float(high)]


def truths(runs: Sequence[dict[str, Any]]) -> tuple[list[float], set[str]]:
    """What several processes found together: the mean ratio, the widest interval, and every verdict that it leaves open."""
    ratios = [run["truth"] for run in runs]
    low, high = min(r[1] for r in ratios), max(r[2] for r in ratios)
    allowed = set()
    if low <= 1 - BAND:
        allowed.add("slower")
    if high >= 1 + BAND:
        allowed.add("faster")
    if high >= 1 - BAND and low <= 1 + BAND:
        allowed.add("no gain")
    return [float(np.mean([r[0] for r in ratios])), low, high], allowed
