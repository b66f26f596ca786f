"""Measures written models in their own runtimes, batch size by batch size: alone, and side by side with torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..environment import LoadMeter, read_environment
from ..preserve import preserved
from ..records import BatchPoint, Note, Number, Quality, SizePoint
from ..timing import interleave, latency_number, ratio_interval, sample_latency
from ..workload import Call, call_model
from .base import FORMATS, FormatFile, Runner, input_arrays
from .signature import Probe

if TYPE_CHECKING:
    from torch import nn

MIN_ROUNDS = 3
MIN_COMPARED_ROUNDS = 5
"""With fewer, the interval of a ratio is that of its extremes, and one pause of the machine decides."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a written model is at one batch size, against torch with as many threads."""

    format: str
    batch_size: int
    ratio: Number
    """Time of torch over time of the format's runtime: above 1, the runtime is faster."""


def measure_format(
    file: FormatFile, call: Call, *, max_batch_size: int, threads: int, budget_s: float = 2.0
) -> tuple[tuple[BatchPoint, ...], tuple[Note, ...]]:
    """Time the file in its runtime at batch sizes 1, 2, 4 ... up to `max_batch_size`.

    The points are timed alone, as the server will run the file: torch's threads go on spinning
    after a call and would slow down the runtime's next one.

    Args:
        file: What `Format.export` wrote.
        call: Example inputs.
        max_batch_size: Largest batch; ignored where the file has no batch axis.
        threads: For the runtime.
        budget_s: Seconds to spend; larger batches that do not fit in are left out, and a note says so.

    Returns:
        A point for each batch size, and a note on what is missing.
    """
    import torch

    sizes = batch_ladder(max_batch_size) if file.batched else [call.batch_size]
    points: list[BatchPoint] = []
    deadline = time.perf_counter() + budget_s
    with torch_threads(threads), LoadMeter() as load:
        runner = file.runner(threads)
        environment = read_environment(torch.device("cpu")).id
        for position, size in enumerate(sizes):
            left = deadline - time.perf_counter()
            if points and left < _expected_s(points[-1].latency_p50.value, points[-1].batch_size, size):
                break
            ours = _bound(runner, input_arrays(file.inputs, call.with_batch(size) if file.batched else call))
            samples = sample_latency(ours, torch.device("cpu"), budget_s=left / (len(sizes) - position), min_samples=MIN_ROUNDS)
            points.append(_point(samples, size, FORMATS[file.format].runtime, threads, environment))
    quality: Quality = "noisy" if load.noisy else "ok"
    return tuple(_with_quality(point, quality) for point in points), (*_missing(sizes, len(points), "measured"), *load.notes())


def measure_sizes(file: FormatFile, *, threads: int, budget_s: float = 1.0) -> tuple[SizePoint, ...]:
    """Time calls with one item at the smallest and the largest of the sizes that requests may choose.

    Args:
        file: What `Format.export` wrote.
        threads: For the runtime.
        budget_s: Seconds to spend; each is called `MIN_ROUNDS` times at least.

    Returns:
        A point for each end; none where no size is open.
    """
    import torch

    points: list[tuple[Probe, Number]] = []
    ends = file.signature.probes[:2]
    if not ends:
        return ()
    with torch_threads(threads), LoadMeter() as load:
        environment = read_environment(torch.device("cpu")).id
        for probe in ends:
            ours = _bound(file.runner(threads), input_arrays(file.inputs, probe.call))
            samples = sample_latency(ours, torch.device("cpu"), budget_s=budget_s / len(ends), min_samples=MIN_ROUNDS)
            points.append((probe, _latency(samples, 50, FORMATS[file.format].runtime, threads, environment)))
    quality: Quality = "noisy" if load.noisy else "ok"
    return tuple(SizePoint(sizes=dict(probe.sizes), latency_p50=_changed(latency, quality=quality)) for probe, latency in points)


def compare_speeds(
    files: Sequence[FormatFile], model: nn.Module, call: Call, *, max_batch_size: int, threads: int, budget_s: float = 4.0
) -> tuple[tuple[Speed, ...], tuple[Note, ...]]:
    """Time written models and the torch model that they were written from side by side, in a new random order each round.

    Args:
        files: What `Format.export` wrote, all of one model.
        model: The torch model; left as it was.
        call: Example inputs.
        max_batch_size: Largest batch; ignored where the files have no batch axis.
        threads: For every runtime and for torch alike.
        budget_s: Seconds to spend; larger batches that do not fit in are left out, and a note says so.

    Returns:
        A speed for each file and batch size, and a note on what is missing.
    """
    import torch

    batched = all(file.batched for file in files)
    sizes = batch_ladder(max_batch_size) if batched else [call.batch_size]
    speeds: list[Speed] = []
    deadline = time.perf_counter() + budget_s
    round_s, done = 0.0, 0
    with preserved(model), torch.no_grad(), torch_threads(threads), LoadMeter() as load:
        runners = [file.runner(threads) for file in files]
        for position, size in enumerate(sizes):
            left = deadline - time.perf_counter()
            if done and left < MIN_COMPARED_ROUNDS * round_s * size / sizes[position - 1]:
                break
            batch = call.with_batch(size) if batched else call
            arrays = input_arrays(files[0].inputs, batch)
            functions = [_bound(runner, arrays) for runner in (_eager(model, batch), *runners)]
            *_, samples = interleave(functions, torch.device("cpu"), budget_s=left / (len(sizes) - position), min_rounds=MIN_COMPARED_ROUNDS)
            round_s, done = sum(sum(one) / len(one) for one in samples), done + 1
            speeds += [_speed(file.format, size, samples[0], ours, threads) for file, ours in zip(files, samples[1:], strict=True)]
    quality: Quality = "noisy" if load.noisy else "ok"
    told = tuple(replace(speed, ratio=_changed(speed.ratio, quality=quality)) for speed in speeds)
    return told, (*_missing(sizes, done, "compared with torch"), *load.notes())


def batch_ladder(max_batch_size: int) -> list[int]:
    """1, 2, 4 ... and `max_batch_size` itself."""
    return sorted({2**i for i in range(max_batch_size.bit_length())} | {max_batch_size})


def _bound(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: function(argument)


def _eager(model: nn.Module, call: Call) -> Runner:
    """The torch model as a server would call it: from arrays to arrays, as the runtimes are."""
    from ._interface import named_leaves
    from ._torch_runner import torch_runner
    from .signature import with_tensors

    return torch_runner(lambda *tensors: dict(named_leaves(call_model(model, with_tensors(call, tensors)))))


def _expected_s(last_s: float, last_size: int, size: int) -> float:
    """Seconds that the next size will take at least: linear in the batch, with a warm-up."""
    return (MIN_ROUNDS + 1) * last_s * size / last_size


def _speed(format: str, size: int, theirs: Sequence[float], ours: Sequence[float], threads: int) -> Speed:
    ratio, low, high = ratio_interval(theirs, ours)
    method = f"torch over {FORMATS[format].runtime}, medians of {len(ours)} rounds side by side, {threads} thread{'s' if threads > 1 else ''} each"
    number = Number(value=ratio, unit="ratio", source="measured", method=method, interval=(low, high), interval_kind="95 % bootstrap interval", n=len(ours))
    return Speed(format=format, batch_size=size, ratio=number)


def _point(samples: Sequence[float], size: int, runtime: str, threads: int, environment: str) -> BatchPoint:
    p50, p95, p99 = (_latency(samples, q, runtime, threads, environment) for q in (50, 95, 99))
    low, high = p50.ends
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
    return BatchPoint(batch_size=size, latency_p50=p50, latency_p95=p95, latency_p99=p99, throughput=throughput)


def _latency(samples: Sequence[float], q: float, runtime: str, threads: int, environment: str) -> Number:
    number = latency_number(samples, q, environment=environment)
    return _changed(number, method=f"{runtime}, {threads} thread{'s' if threads > 1 else ''}, {number.method}")


def _with_quality(point: BatchPoint, quality: Quality) -> BatchPoint:
    numbers = ("latency_p50", "latency_p95", "latency_p99", "throughput")
    return _changed(point, **{name: _changed(getattr(point, name), quality=quality) for name in numbers})


def _changed(struct: Any, **fields: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(struct, **fields)


def _missing(sizes: Sequence[int], done: int, what: str) -> tuple[Note, ...]:
    if done == len(sizes):
        return ()
    skipped = ", ".join(str(size) for size in sizes[done:])
    return (Note(code="missing:batch-sizes", text=f"batch sizes {skipped} were not {what}: they did not fit into the time given"),)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads in a block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
