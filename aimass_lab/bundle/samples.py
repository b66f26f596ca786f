"""Vectors that a bundle carries: the user's own inputs, and what the original model answers to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BundleError
from ..formats.base import Arrays, FormatFile, Runner
from ..formats.signature import as_numpy, check_finite, relative_error, run, with_tensors
from ..preserve import preserved
from ..records import Number
from ..workload import Call, Workload

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

MAX_SAMPLES = 32
MAX_BYTES = 64 * 2**20
"""Of inputs and outputs together."""
_CHUNK = 8


def stored_call(workload: Workload, file: FormatFile) -> Call:
    """The inputs to store: distinct items of the example inputs, then of the labelled data where they have the same form.

    A model without batch axis gets its example inputs as they are.
    """
    import torch

    if not file.batched:
        return workload.call
    limit = max(1, min(MAX_SAMPLES, MAX_BYTES // max(1, _item_bytes(workload.call, file))))
    seen: dict[bytes, list[torch.Tensor]] = {}
    for call in _sources(workload):
        for row in _rows(call):
            seen.setdefault(b"".join(as_numpy(t).tobytes() for t in row), row)
            if len(seen) == limit:
                break
    columns = zip(*seen.values(), strict=True)
    return with_tensors(workload.call, [torch.cat(column) for column in columns])


def _sources(workload: Workload) -> Iterator[Call]:
    yield workload.call
    if workload.data is not None and _form(workload.data[0], workload) == _form(workload.call, workload):
        yield workload.data[0]


def _form(call: Call, workload: Workload) -> list[tuple[str, torch.dtype, torch.Size]]:
    return [(name, tensor.dtype, tensor.shape[1:]) for name, tensor in call.named_tensors(workload.model)]


def _rows(call: Call) -> Iterator[list[torch.Tensor]]:
    for i in range(call.batch_size):
        yield call.rows(i, i + 1).tensors()


def _item_bytes(call: Call, file: FormatFile) -> int:
    """At the example's sizes, at most."""
    answers = () if file.signature.answers is None else file.signature.answers.values()
    shapes = [spec.shape for spec in (*file.inputs, *file.outputs)] + [(1, *array.shape[1:]) for array in (*call.tensors(), *answers)]
    return sum(math.prod(abs(size) for size in shape) * 8 for shape in shapes)


def reference_outputs(workload: Workload, call: Call, file: FormatFile, *, served: nn.Module) -> Arrays:
    """What the original model answers, by output name; the model is left as it was, and not asked again what it was asked as `file` was made of it.

    Args:
        workload: The original model.
        call: Inputs to store.
        file: What is served.
        served: What it was made from.

    Raises:
        BundleError: an output is not finite, or is not one that the file has.
        ModelError: the model raised.
    """
    import numpy as np
    import torch

    known = file.signature.answers
    if known is not None and served is workload.model and all(map(torch.equal, call.tensors(), workload.call.tensors())):
        return dict(known)
    parts: list[list[tuple[str, torch.Tensor]]] = []
    with preserved(workload.model), torch.no_grad():
        chunks = [call.rows(i, min(i + _CHUNK, call.batch_size)) for i in range(0, call.batch_size, _CHUNK)] if file.batched else [call]
        parts = [run(workload.model, chunk) for chunk in chunks]
    names = [name for name, _ in parts[0]]
    expected = [spec.name for spec in file.outputs]
    if names != expected:
        raise BundleError(f"the model to serve has the outputs {', '.join(expected)}, the original has {', '.join(names)}")
    arrays = {name: [as_numpy(part[i][1]) for part in parts] for i, name in enumerate(names)}
    outputs = {name: np.concatenate(pieces) if file.batched else pieces[0] for name, pieces in arrays.items()}
    for name, array in outputs.items():
        check_finite(name, array, file.batched)
    return outputs


def measure_fidelity(runner: Runner, file: FormatFile, inputs: Arrays, outputs: Arrays, *, max_batch_size: int) -> Number:
    """Run the stored inputs through the file's own runtime and compare with the stored outputs.

    Returns:
        The largest relative L2 error of any output of any sample.
    """
    count = len(next(iter(inputs.values()))) if file.batched else 1
    step = max_batch_size if file.batched else 1
    worst = 0.0
    for start in range(0, count, step):
        rows = slice(start, start + step)
        got = runner({name: array[rows] for name, array in inputs.items()} if file.batched else inputs)
        for name, expected in outputs.items():
            worst = max(worst, _worst(expected[rows] if file.batched else expected, got[name], file.batched))
    return Number(value=worst, unit="ratio", source="measured", method="largest relative L2 error of an output against the original model in torch", n=count)


def _worst(expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any], batched: bool) -> float:
    if not batched or expected.shape != got.shape:
        return relative_error(expected, got)
    errors: Sequence[float] = [relative_error(a, b) for a, b in zip(expected, got, strict=True)]
    return max(errors, default=0.0)
