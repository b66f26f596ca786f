"""Batch sizes from which on a call runs differently, as far as its trace tells: page faults, caches, other operators."""

from __future__ import annotations

import functools
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from ..records import Note
from ..tracing.trace import Trace
from ..units import format_bytes

MMAP_BYTES = 32 * 2**20
"""glibc takes every block of this size or more from the system and gives it back when it is freed (mallopt(3),
``M_MMAP_THRESHOLD``, upper end of its dynamic range): its pages are fresh, and faulted in, at every call."""

LEAST_TRIM_BYTES = 128 * 2**10
"""glibc never gives back less than this (mallopt(3), default of ``M_TRIM_THRESHOLD``)."""

PROBE_BYTES = 2 * MMAP_BYTES


@dataclass(frozen=True)
class Knee:
    """One change."""

    batch_size: int
    """The first that runs the new way."""
    note: Note


def mmap_threshold_bytes(device: torch.device) -> int | None:
    """Size from which on blocks are faulted in afresh by every call; None where the allocator is another one."""
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or "malloc" in os.environ.get("LD_PRELOAD", ""):
        return None
    given = os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
    return int(given) if given.isdigit() else MMAP_BYTES


def fresh_bytes(trace: Trace, threshold: int | None) -> int:
    """Bytes of the results that are faulted in afresh."""
    return 0 if threshold is None else sum(row.allocated_bytes for row in trace.rows if row.allocated_bytes >= threshold)


@functools.cache
def page_fault_seconds_per_byte() -> float:
    """What the first touch of a page costs here, measured on one block."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    filled = torch.full((PROBE_BYTES,), 1, dtype=torch.uint8)
    fresh = again = float("inf")
    for _ in range(4):
        start = clock()
        block = torch.empty(PROBE_BYTES, dtype=torch.uint8)
        block.fill_(1)
        del block
        fresh = min(fresh, clock() - start)
        start = clock()
        filled.fill_(1)
        again = min(again, clock() - start)
    return max(0.0, fresh - again) / PROBE_BYTES


def page_fault_doubt(trace: Trace, seconds: float, threshold: int | None) -> float:
    """Logarithm of what a call's time may change by when the allocator gives its freed memory back between calls.

    glibc does so when more lies free at the end of the heap than twice the largest block that was freed so far
    (mallopt(3), ``M_TRIM_THRESHOLD``): that depends on what the process did before, and so does whether the pages
    of a call's results are fresh. Half of them are taken for a likely difference.

    Args:
        trace: The call.
        seconds: Its time.
        threshold: Of `mmap_threshold_bytes`.
    """
    if threshold is None or "MALLOC_TRIM_THRESHOLD_" in os.environ or trace.activation_peak_bytes < LEAST_TRIM_BYTES:
        return 0.0
    return math.log1p(0.5 * page_fault_seconds_per_byte() * trace.activation_peak_bytes / seconds)


@functools.cache
def last_level_cache_bytes() -> int | None:
    """Size of the largest cache that the first core uses; None where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        scale = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * scale)
    return max(sizes, default=None)


def find_knees(traces: Sequence[Trace], device: torch.device) -> tuple[Knee, ...]:
    """The changes between one trace and the next.

    Args:
        traces: Of one model at growing batch sizes.
        device: Where it runs.
    """
    threshold = mmap_threshold_bytes(device)
    cache = last_level_cache_bytes() if device.type == "cpu" else None
    found = [knee for a, b in pairwise(traces) for knee in (_operators(a, b), _fresh_pages(a, b, threshold), _cache(a, b, cache))]
    return tuple(knee for knee in found if knee is not None)


def _operators(before: Trace, after: Trace) -> Knee | None:
    if [row.op for row in before.rows] == [row.op for row in after.rows]:
        return None
    text = f"other operators run at batch {after.batch_size} than at batch {before.batch_size}: a value between or beyond them is less certain"
    return Knee(after.batch_size, Note(code="knee:operators", text=text))


def _fresh_pages(before: Trace, after: Trace, threshold: int | None) -> Knee | None:
    if threshold is None or fresh_bytes(after, threshold) <= fresh_bytes(before, threshold) * after.batch_size / before.batch_size:
        return None
    largest = max(row.allocated_bytes for row in after.rows)
    text = (
        f"at batch {after.batch_size} blocks of {format_bytes(threshold)} and more are allocated (the largest {format_bytes(largest)}), and fewer at batch "
        f"{before.batch_size}: the system clears their pages anew at every call; MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set higher avoid that"
    )
    return Knee(after.batch_size, Note(code="knee:page-faults", text=text))


def _cache(before: Trace, after: Trace, cache: int | None) -> Knee | None:
    if cache is None or not working_set_bytes(before) < cache <= working_set_bytes(after):
        return None
    text = f"from batch {after.batch_size} on weights and activations together exceed the last-level cache of {format_bytes(cache)}"
    return Knee(after.batch_size, Note(code="knee:cache", text=text))


def working_set_bytes(trace: Trace) -> int:
    """What one call touches: weights, inputs and the activations that are alive at once."""
    return trace.weight_bytes + trace.input_bytes + trace.activation_peak_bytes
