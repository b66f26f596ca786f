"""Measures a written model in its own runtime, batch size by batch size, side by side with torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment import LoadMeter, read_environment
from ..preserve import preserved
from ..records import BatchPoint, Note, Number, Quality
from ..timing import interleave, latency_number, ratio_interval, sample_latency
from ..workload import Call, call_model
from .base import FORMATS, FormatFile, input_arrays

if TYPE_CHECKING:
    from torch import nn

MIN_ROUNDS = 3
SLOWER_LIMIT = 0.98
"""The format is called slower where the whole interval of its speed-up lies below this."""


def measure_format(
    file: FormatFile, model: nn.Module, call: Call, *, max_batch_size: int, threads: int, budget_s: float = 4.0
) -> tuple[tuple[BatchPoint, ...], tuple[Note, ...]]:
    """Time the file in its runtime at batch sizes 1, 2, 4 ... up to `max_batch_size`, and compare it with the model in torch.

    The points are timed alone, as the server will run the file: torch's threads go on spinning
    after a call and would slow down the runtime's next one. The comparison is interleaved.

    Args:
        file: What `Format.export` wrote.
        model: The torch model to compare with; left as it was.
        call: Example inputs.
        max_batch_size: Largest batch; ignored where the file has no batch axis.
        threads: For the runtime and for torch alike.
        budget_s: Seconds to spend; larger batches that do not fit in are left out, and a note says so.

    Returns:
        A point for each batch size, and notes on where the format is slower than torch and on what is missing.
    """
    import torch

    runner = FORMATS[file.format]().open(file.path, threads=threads)
    sizes = batch_ladder(max_batch_size) if file.batched else [call.batch_size]
    points: list[BatchPoint] = []
    slower: list[str] = []
    deadline = time.perf_counter() + budget_s
    with preserved(model), torch.no_grad(), _torch_threads(threads), LoadMeter() as load:
        environment = read_environment(torch.device("cpu")).id
        for position, size in enumerate(sizes):
            left = deadline - time.perf_counter()
            if points and left < _expected_s(points[-1], size):
                break
            batch = call.with_batch(size) if file.batched else call
            share = left / (len(sizes) - position)
            ours = _bound(runner, input_arrays(file.inputs, batch))
            samples = sample_latency(ours, torch.device("cpu"), budget_s=share / 2, min_samples=MIN_ROUNDS)
            points.append(_point(samples, size, FORMATS[file.format].runtime, threads, environment))
            slower += _slower(ours, _bound(partial(call_model, model), batch), size, share / 2)
    quality: Quality = "noisy" if load.noisy else "ok"
    return tuple(_with_quality(point, quality) for point in points), (*_notes(points, sizes, slower, file.format, threads), *load.notes())


def batch_ladder(max_batch_size: int) -> list[int]:
    """1, 2, 4 ... and `max_batch_size` itself."""
    return sorted({2**i for i in range(max_batch_size.bit_length())} | {max_batch_size})


def _bound(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: function(argument)


def _expected_s(last: BatchPoint, size: int) -> float:
    """Seconds that the next size will take at least: linear in the batch; alone, then interleaved with torch, each with a warm-up."""
    return 3 * (MIN_ROUNDS + 1) * last.latency_p50.value * size / last.batch_size


def _point(samples: Sequence[float], size: int, runtime: str, threads: int, environment: str) -> BatchPoint:
    def latency(q: float) -> Number:
        number = latency_number(samples, q, environment=environment)
        return _changed(number, method=f"{runtime}, {threads} thread{'s' if threads > 1 else ''}, {number.method}")

    p50 = latency(50)
    low, high = p50.interval or (p50.value, p50.value)
    throughput = Number(
        value=size / p50.value,
        unit="item/s",
        source="measured",
        method=f"{size} / p50, {p50.method}",
        interval=(size / high, size / low),
        interval_kind=p50.interval_kind,
        n=p50.n,
        environment=environment,
    )
    return BatchPoint(batch_size=size, latency_p50=p50, latency_p95=latency(95), latency_p99=latency(99), throughput=throughput)


def _with_quality(point: BatchPoint, quality: Quality) -> BatchPoint:
    numbers = ("latency_p50", "latency_p95", "latency_p99", "throughput")
    return _changed(point, **{name: _changed(getattr(point, name), quality=quality) for name in numbers})


def _changed(struct: Any, **fields: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(struct, **fields)


def _slower(ours: Callable[[], Any], theirs: Callable[[], Any], size: int, budget_s: float) -> list[str]:
    """One phrase where torch is surely faster."""
    import torch

    *_, samples = interleave([ours, theirs], torch.device("cpu"), budget_s=budget_s, min_rounds=MIN_ROUNDS)
    ratio, _low, high = ratio_interval(samples[1], samples[0])
    return [f"{1 / ratio:.2g} times the time at batch size {size}"] if high < SLOWER_LIMIT else []


def _notes(points: Sequence[BatchPoint], sizes: Sequence[int], slower: Sequence[str], name: str, threads: int) -> tuple[Note, ...]:
    notes = []
    if slower:
        runtime = FORMATS[name].runtime
        notes.append(Note(code="W-FORMAT-SLOWER", text=f"{runtime} is slower here than torch with as many threads ({threads}): {', '.join(slower)}"))
    if len(points) < len(sizes):
        skipped = ", ".join(str(size) for size in sizes[len(points) :])
        notes.append(Note(code="missing:batch-sizes", text=f"batch sizes {skipped} were not measured: they did not fit into the time given"))
    return tuple(notes)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
