"""What binds a call here: its demand held against rates measured on the attached device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import torch

from ..environment import LoadMeter, read_environment
from ..formats.measure import torch_threads
from ..records import Number, Quality, Unit
from ..timing import timed
from ..tracing.trace import Trace
from ..units import format_bytes, format_decimal, format_seconds, format_share

PROBE_S = 0.08
"""Seconds spent on each of the three rates."""

MOST_TRIES = 5
"""Measurements of the rates while the machine stays busy: a verb should not pay for them each time."""

_Clock = Callable[[Callable[[], Any], torch.device], float]
"""Seconds of one call."""
CHAIN = 50
"""Small layers in a row, timed together."""


@dataclass(frozen=True)
class Rates:
    """What the attached device was seen to reach in this process."""

    flops_per_s: Number
    """Of a matrix product in the model's dtype."""
    memory_bytes_per_s: Number
    """Of a copy, read and write counted."""
    overhead: Number
    """Seconds that one layer takes before it computes: Python, dispatcher, launch."""


@dataclass(frozen=True)
class Split:
    """Where the time of a call would go if every operator reached the device's rates."""

    compute_s: float
    """Operators whose arithmetic takes longer than their memory traffic."""
    memory_s: float
    """The other operators."""
    overhead_s: float
    """Of starting every operator."""


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure the device's rates: about a quarter of a second, once per process.

    While other processes load the machine the rates come out low: then they are marked noisy and measured
    again the next times, a few times at most, and the best of all is kept.

    Args:
        device: The attached device.
        dtype: What the model computes in; float32 stands in for types without a matrix product.
    """
    floating = dtype if dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16) else torch.float32
    key = (str(device), floating, torch.get_num_threads())
    known = _known_rates.get(key)
    tries = _tries.get(key, 0)
    if known is None or (known.flops_per_s.quality == "noisy" and tries < MOST_TRIES):
        with LoadMeter() as load, torch.inference_mode():
            seconds = _probe(device, floating)
        quality: Quality = "noisy" if load.noisy else "ok"
        if quality == "noisy" and device.type == "cpu" and torch.get_num_threads() > 1:
            seconds = seconds.or_better(_one_thread(device, floating))
        fresh = _rates(seconds, device, floating, quality)
        known = _known_rates[key] = fresh if known is None else _better(known, fresh)
        _tries[key] = tries + 1
    return known


_known_rates: dict[tuple[str, torch.dtype, int], Rates] = {}
_tries: dict[tuple[str, torch.dtype, int], int] = {}


@dataclass(frozen=True)
class _Probe:
    """Best seconds of each probe."""

    product_s: float
    copy_s: float
    start_s: float

    def or_better(self, other: _Probe) -> _Probe:
        """The shorter of each."""
        return _Probe(min(self.product_s, other.product_s), min(self.copy_s, other.copy_s), min(self.start_s, other.start_s))


def _one_thread(device: torch.device, dtype: torch.dtype) -> _Probe:
    """What one thread does in its own time, which does not pass while others have its core: threads that compute together wait for the one that lost it."""
    with torch_threads(1), torch.inference_mode():
        return _probe(device, dtype, _own_s)


def _probe(device: torch.device, dtype: torch.dtype, clock: _Clock = timed) -> _Probe:
    # float32 first, then cast: the random generators lack some dtypes on some devices
    generator, size = torch.Generator().manual_seed(0), _product_size(device)
    x = torch.rand((size // 2, size), generator=generator).to(device, dtype)
    weight = torch.rand((size, size), generator=generator).to(device, dtype)
    linear = torch.nn.functional.linear
    product_s = _best(lambda: linear(x, weight), device, clock)
    source, target = (torch.zeros(_copy_bytes(device), dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = _best(lambda: target.copy_(source), device, clock)
    # without its initialisation, which would draw from the random state of the user
    small_x, layer = x[:1, :8].contiguous(), torch.nn.utils.skip_init(torch.nn.Linear, 8, 8, device=device, dtype=dtype)
    for parameter in layer.parameters():
        parameter.fill_(0.5)
    chain_s = _best(lambda: [layer(small_x) for _ in range(CHAIN)], device, clock)
    return _Probe(product_s, copy_s, chain_s / CHAIN)


def _product_size(device: torch.device) -> int:
    return 4096 if device.type == "cuda" else 1024


def _copy_bytes(device: torch.device) -> int:
    return 2**29 if device.type == "cuda" else 2**25


def _rates(seconds: _Probe, device: torch.device, dtype: torch.dtype, quality: Quality) -> Rates:
    environment, size, copied = read_environment(device).id, _product_size(device), _copy_bytes(device)

    def number(value: float, unit: Unit, method: str) -> Number:
        return Number(value=value, unit=unit, source="measured", method=method, environment=environment, quality=quality)

    name = str(dtype).removeprefix("torch.")
    return Rates(
        flops_per_s=number(size**3 / seconds.product_s, "FLOP/s", f"best {name} matrix product of {size // 2}x{size}x{size}"),
        memory_bytes_per_s=number(2 * copied / seconds.copy_s, "B/s", f"best copy of {format_bytes(copied)}, read and write counted"),
        overhead=number(seconds.start_s, "s", f"best mean of {CHAIN} layers with next to nothing to compute"),
    )


def _better(a: Rates, b: Rates) -> Rates:
    """The best of two measurements of each rate; a quiet one settles the quality."""
    quality: Quality = "noisy" if a.flops_per_s.quality == b.flops_per_s.quality == "noisy" else "ok"
    best = (
        max(a.flops_per_s, b.flops_per_s, key=lambda n: n.value),
        max(a.memory_bytes_per_s, b.memory_bytes_per_s, key=lambda n: n.value),
        min(a.overhead, b.overhead, key=lambda n: n.value),
    )
    return Rates(*(msgspec.structs.replace(number, quality=quality) for number in best))


def _best(function: Callable[[], Any], device: torch.device, clock: _Clock) -> float:
    """The fastest of the calls that fit `PROBE_S`: other load can only slow a call down."""
    deadline = time.perf_counter() + PROBE_S
    function()
    best = clock(function, device)
    while time.perf_counter() < deadline:
        best = min(best, clock(function, device))
    return best


def _own_s(function: Callable[[], Any], _: torch.device) -> float:
    begin = time.thread_time()
    function()
    return max(time.thread_time() - begin, 1e-9)


def split_time(trace: Trace, flops_per_s: float, bytes_per_s: float, overhead_s: float) -> Split:
    """Roofline of each operator, added up (Williams, Waterman, Patterson 2009).

    Args:
        trace: The call's operators.
        flops_per_s: The device's rate of arithmetic.
        bytes_per_s: The device's rate of memory traffic.
        overhead_s: Of starting one operator.
    """
    compute_s = memory_s = 0.0
    for row in trace.rows:
        arithmetic, traffic = row.flops / flops_per_s, (row.bytes_read + row.bytes_written) / bytes_per_s
        if arithmetic >= traffic:
            compute_s += arithmetic
        else:
            memory_s += traffic
    return Split(compute_s, memory_s, overhead_s * len(trace.rows))


def share_compute_bound(trace: Trace, rates: Rates) -> float:
    """Of the roofline time of matrix products and their like: the share of those that arithmetic binds, and not memory traffic."""
    bound = {True: 0.0, False: 0.0}
    for row in trace.rows:
        if row.flops:
            arithmetic, traffic = row.flops / rates.flops_per_s.value, (row.bytes_read + row.bytes_written) / rates.memory_bytes_per_s.value
            bound[arithmetic >= traffic] += max(arithmetic, traffic)
    whole = sum(bound.values())
    return bound[True] / whole if whole else 1.0


def say_what_binds(trace: Trace, rates: Rates, latency_s: float, *, compiled: bool = False) -> str:
    """One sentence on what the call spends its time on.

    Args:
        trace: The call's operators.
        rates: Of the device that ran it.
        latency_s: Measured time of the call.
        compiled: Whether fewer operators than these were started, because torch.compile joined some.
    """
    split = split_time(trace, rates.flops_per_s.value, rates.memory_bytes_per_s.value, rates.overhead.value)
    explained = {"compute": split.compute_s, "memory": split.memory_s, "overhead": 0.0 if compiled else split.overhead_s}
    largest = max(explained, key=lambda name: explained[name])
    sentence = _SENTENCES[largest](trace, rates, latency_s)
    share = sum(explained.values()) / latency_s
    if share < 0.3:
        return (
            f"no single limit found: at the rates reached here the work needs {format_share(share)} of the {format_seconds(latency_s)}; nearest is {sentence}"
        )
    return sentence


def _compute(trace: Trace, rates: Rates, latency_s: float) -> str:
    rate = trace.flops / latency_s
    peak = rates.flops_per_s.value
    return (
        f"compute-bound: {format_decimal(trace.flops, 'FLOP')} in {format_seconds(latency_s)} is {format_decimal(rate, 'FLOP/s')}, "
        f"{_against(rate / peak)} {format_decimal(peak, 'FLOP/s')} that matrix products reach here{_doubt(rates)}"
    )


def _memory(trace: Trace, rates: Rates, latency_s: float) -> str:
    rate = trace.bytes_moved / latency_s
    peak = rates.memory_bytes_per_s.value
    return (
        f"memory-bound: operators move {format_bytes(trace.bytes_moved)} in {format_seconds(latency_s)}, which is {format_bytes(rate)}/s, "
        f"{_against(rate / peak)} {format_bytes(peak)}/s that a copy reaches here{_doubt(rates)}"
    )


def _against(share: float) -> str:
    # Above 1 is possible: caches beat a copy of large buffers, and no probe finds the best shape.
    return f"{format_share(share)} of the" if share <= 1 else "more than the"


def _doubt(rates: Rates) -> str:
    return " (rates measured on a busy machine)" if rates.flops_per_s.quality == "noisy" else ""


def _overhead(trace: Trace, rates: Rates, latency_s: float) -> str:
    start, count = rates.overhead.value, len(trace.rows)
    return (
        f"overhead-bound: starting {count} operator{'' if count == 1 else 's'} at {format_seconds(start)} each takes {format_seconds(start * count)} "
        f"of the {format_seconds(latency_s)}; larger batches or torch.compile spread that cost"
    )


_SENTENCES: dict[str, Callable[[Trace, Rates, float], str]] = {"compute": _compute, "memory": _memory, "overhead": _overhead}
