"""What each family of operators reaches on the processor attached here, by small probes: also while others have the processor."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ..environment import LoadMeter
from ..formats.measure import torch_threads
from ..units import format_share

PROBE_S = 0.012
"""Seconds spent on each probe, in rounds."""
ROUNDS = 3
"""Of all probes of a family: what takes the processor for some slices of the scheduler does not meet one size in all of them. Fewer where it shows."""
MOST_TRIES, REST_S = 3, 10.0
"""While others have the processor: how often, and how long after the last time at least, which is not within the same verb."""
AWAKE = 0.8
"""Of the probes' time in which the thread that calls has a core, or others take it: threads that compute together wait for each other awake."""

Rate = list[tuple[float, float]]
"""Pairs of a size and the rate reached at that size, sorted by size."""


@dataclass(frozen=True)
class FamilyRate:
    """What one kind of operator reached."""

    best: Rate
    usual: Rate
    """Of the median round, where others disturbed the probes; else the same."""
    disturbed: str = ""
    """What kept the probes from the processor, in words."""


@dataclass(frozen=True)
class _Probe:
    """One call that is timed."""

    size: float
    work: float
    """FLOP or bytes of it."""
    call: Callable[[], Any]


class Awake:
    """Watches how much of the time from its making on the thread that made it had a core."""

    def __init__(self) -> None:
        self._began_s, self._own_s = time.perf_counter(), time.thread_time()

    @property
    def share(self) -> float:
        """Of the time, so far."""
        return (time.thread_time() - self._own_s) / max(1e-9, time.perf_counter() - self._began_s)

    @property
    def starved(self) -> bool:
        """Whether threads that compute together were kept from it; one alone has a clock of its own."""
        return torch.get_num_threads() > 1 and self.share < AWAKE


_known: dict[tuple[str, torch.dtype, int], tuple[FamilyRate, int, float]] = {}
"""How often each was tried, and when last."""


def family_rate(kind: str, dtype: torch.dtype) -> FamilyRate:
    """Rates of one kind of operator by size: probed once per process, dtype and thread count, in about 50 ms.

    While others have the processor it is done again later, three times at most. Threads that compute together wait for the one that lost
    its core, which can take a hundred times as long as the probe: then one thread is timed alone, too, by its own time, which does not pass
    meanwhile, and the better rate counts.
    """
    key = (kind, dtype, torch.get_num_threads())
    known, tries, last_s = _known.get(key, (None, 0, -math.inf))
    if known is None or (known.disturbed and tries < MOST_TRIES and time.monotonic() - last_s > REST_S):
        with torch.inference_mode():
            fresh = _measure(sorted(_PROBES[kind](dtype), key=lambda probe: probe.size))
        known = fresh if known is None or not fresh.disturbed else _better(known, fresh)
        _known[key] = known, tries + 1, time.monotonic()
    return known


def _measure(probes: Sequence[_Probe]) -> FamilyRate:
    threads = torch.get_num_threads()
    # One thread's own time does not run while others have the core.
    clock = time.thread_time if threads == 1 else time.perf_counter
    rounds: list[list[float]] = []
    awake = Awake()
    with LoadMeter() as load:
        for probe in probes:
            probe.call()
        while not rounds or (len(rounds) < ROUNDS and not awake.starved):
            rounds.append([_best(probe.call, PROBE_S / ROUNDS, clock) for probe in probes])
    disturbed = load.reasons or (f"the probes had a core for {format_share(awake.share)} of their time" if awake.starved else "")
    best, usual = ([choose(times) for times in zip(*rounds, strict=True)] for choose in (min, statistics.median))
    if not disturbed:
        return FamilyRate(_rates(probes, best), _rates(probes, best))
    if threads > 1:
        with torch_threads(1):
            best = [min(seconds, _best(probe.call, PROBE_S, time.thread_time)) for seconds, probe in zip(best, probes, strict=True)]
    return FamilyRate(_rates(probes, best), _rates(probes, usual), disturbed)


def _rates(probes: Sequence[_Probe], seconds: Sequence[float]) -> Rate:
    return [(probe.size, probe.work / each) for probe, each in zip(probes, seconds, strict=True)]


def _better(a: FamilyRate, b: FamilyRate) -> FamilyRate:
    def best(one: Rate, other: Rate) -> Rate:
        return [(size, max(x, y)) for (size, x), (_, y) in zip(one, other, strict=True)]

    return FamilyRate(best(a.best, b.best), best(a.usual, b.usual), b.disturbed)


def _best(function: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """The fastest of the calls that fit, and of one at least: other load can only slow a call down. By one clock, so that it costs no call either."""
    best, now = math.inf, clock()
    deadline = now + seconds
    while best == math.inf or now < deadline:
        start = clock()
        function()
        now = clock()
        best = min(best, now - start)
    return max(best, 1e-9)


# --- the probes


def _numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    # Not drawn: the user's random state stays as it is, and arithmetic takes as long on equal numbers.
    return torch.full(shape, 0.5, dtype=dtype)


def _gemm(dtype: torch.dtype) -> Iterator[_Probe]:
    weight = _numbers(dtype, 768, 768)
    for m in (1, 8, 32, 128, 512):
        yield _Probe(float(m), 2 * m * 768 * 768, partial(F.linear, _numbers(dtype, m, 768), weight))


def _int8(dtype: torch.dtype) -> Iterator[_Probe]:
    weight = torch.ones(768, 768, dtype=torch.int8)
    for m in (32, 128, 512):
        yield _Probe(float(m), 2 * m * 768 * 768, partial(torch._int_mm, torch.ones(m, 768, dtype=torch.int8), weight))


def _conv(dtype: torch.dtype) -> Iterator[_Probe]:
    three, one = _numbers(dtype, 64, 64, 3, 3), _numbers(dtype, 128, 64, 1, 1)

    def both(x: torch.Tensor) -> None:
        F.conv2d(x, three, padding=1)
        F.conv2d(x, one)

    for side in (14, 28, 56):
        work = 2 * side * side * (64 * 64 * 9 + 128 * 64)
        yield _Probe(64.0 * side * side, work, partial(both, _numbers(dtype, 1, 64, side, side)))


def _depthwise(dtype: torch.dtype) -> Iterator[_Probe]:
    weight = _numbers(dtype, 96, 1, 3, 3)
    for side in (14, 56):
        x = _numbers(dtype, 1, 96, side, side)
        yield _Probe(96.0 * side * side, 2 * side * side * 96 * 9, partial(F.conv2d, x, weight, padding=1, groups=96))


def _attention(dtype: torch.dtype) -> Iterator[_Probe]:
    for length in (1, 32, 128, 512):
        q, k = _numbers(dtype, 1, 4, length, 64), _numbers(dtype, 1, 4, max(length, 32), 64)
        yield _Probe(float(length), 4 * 4 * length * max(length, 32) * 64, partial(F.scaled_dot_product_attention, q, k, k))


def _recurrent(dtype: torch.dtype) -> Iterator[_Probe]:
    # Its weights are given, because a module would draw them from the random state.
    weights = [_numbers(dtype, *shape).mul_(0.05) for shape in ((1024, 256), (1024, 256), (1024,), (1024,))]
    for batch in (1, 16):
        x, state = _numbers(dtype, 16, batch, 256), torch.zeros(1, batch, 256, dtype=dtype)
        call = partial(torch.lstm, x, (state, state), weights, True, 1, 0.0, False, False, False)
        yield _Probe(float(batch), 2 * 16 * batch * 2 * 1024 * 256, call)


def _by_bytes(function: Callable[[torch.Tensor], Any], sizes: Sequence[int], operands: int) -> Callable[[torch.dtype], Iterator[_Probe]]:
    def probes(dtype: torch.dtype) -> Iterator[_Probe]:
        for size in sizes:
            x = _numbers(dtype, max(1, size // (operands * dtype.itemsize) // 768), 768)
            moved = float(operands * x.numel() * dtype.itemsize)
            yield _Probe(moved, moved, partial(function, x))

    return probes


_SIZES = (2**16, 2**20, 2**23, 2**25)
_PROBES: dict[str, Callable[[torch.dtype], Iterator[_Probe]]] = {
    "gemm": _gemm,
    "int8": _int8,
    "conv": _conv,
    "depthwise": _depthwise,
    "attention": _attention,
    "recurrent": _recurrent,
    "elementwise": _by_bytes(lambda x: x + x, _SIZES, 2),
    "heavy": _by_bytes(F.gelu, _SIZES[:3], 2),
    "norm": _by_bytes(lambda x: F.layer_norm(x, (768,)), _SIZES[:3], 2),
    "softmax": _by_bytes(lambda x: F.softmax(x, -1), _SIZES[:3], 2),
    "copy": _by_bytes(lambda x: x.t().contiguous(), _SIZES[:3], 2),
}
