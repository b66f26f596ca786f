"""Original and variant called in turns, by two clocks, from one caller or from several at once."""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..environment import LoadMeter
from ..timing import interleave, percentile, timed
from .verdict import Decision, Looks, Ratio, decide_speed, is_enough

if TYPE_CHECKING:
    import torch

LEAST_ROUNDS = 3
"""That a comparison has, however long a call takes."""
MAX_ROUNDS = 500
BURST_S = 1e-3
"""Short calls are made several times in a row for this long: one after the other, as in a service, and long enough for the clocks."""
MOST_CALLS = 20
"""In a burst."""
MANY_CALLS = 100
"""Calls from which a 99th percentile is more than the longest of them."""
WARM_BELOW_S = 5e-3
"""Calls shorter than this are preceded by one that does not count: what the other model left in the caches is not theirs to clear."""
WINDOW_S = 0.05
"""Several callers call for at least this long before it is the other model's turn."""
WINDOW_CALLS = 3
"""That one caller makes in a window at least."""

Model = Callable[[], Any]


@dataclass(frozen=True)
class Burst:
    """Some calls of one model, in a row or from several callers at once."""

    seconds: float
    """Wall time over calls made: of several callers together, the inverse of their rate."""
    processor_s: float
    """Processor time of all threads of this process over calls made."""
    page_faults: float
    """Pages of memory that were touched for the first time, over calls made."""
    calls_s: tuple[float, ...]
    """Wall time of each call."""


@dataclass(frozen=True)
class Speeds:
    """What the comparison gave."""

    original: Sequence[Burst]
    variant: Sequence[Burst]
    decision: Decision
    noisy: bool
    meter: LoadMeter
    num_callers: int
    """At once."""
    interrupted: bool

    @property
    def num_rounds(self) -> int:
        """Rounds in which both were called."""
        return len(self.variant)

    def beside(self, one_thread: Ratio) -> Speeds:
        """With what one thread alone says."""
        return replace(self, decision=replace(self.decision, one_thread=one_thread))

    def calls_s(self, which: str) -> list[float]:
        """Seconds of every single call of the ``"original"`` or the ``"variant"``."""
        return [seconds for burst in getattr(self, which) for seconds in burst.calls_s]


def compare_speed(
    original: Model,
    variant: Model,
    device: torch.device,
    *,
    budget_s: float,
    tail_s: float = 0.0,
    instances: int = 1,
    max_rounds: int | None = None,
    report: Callable[[float, float, int], None] = lambda share, ratio, rounds: None,
) -> Speeds:
    """Call both in turns until the verdict is clear or the time is up.

    A keyboard interrupt ends the comparison and keeps what was measured, if that is at least 3 rounds. Called under the grad mode that the
    calls are to have; callers on threads of their own get the same.

    Args:
        original: One call of the original.
        variant: One call of the variant.
        device: Where they run.
        budget_s: Seconds to spend; 3 rounds are made even if that takes longer.
        tail_s: Seconds that may be spent until each has had the `MANY_CALLS` calls that a 99th percentile needs, however clear the verdict is.
        instances: Callers at once.
        max_rounds: Most rounds; `MAX_ROUNDS` if not given.
        report: Called now and then with the share of the time that is gone, the speed-up so far, and the rounds.
    """
    looks, samples = Looks(), [[], []]  # type: tuple[Looks, list[list[Burst]]]
    begin, told, interrupted = time.perf_counter(), 0.0, False
    with LoadMeter() as meter, _callers(instances) as pool:

        def enough(samples: Sequence[Sequence[Burst]]) -> bool:
            passed_s = time.perf_counter() - begin
            if passed_s < tail_s and min(sum(len(burst.calls_s) for burst in side) for side in samples) < MANY_CALLS:
                return False
            if passed_s > budget_s:
                return True
            if not looks.due(len(samples[1])):
                return False
            meter.update()
            return is_enough(_decide(samples[0], samples[1], device, instances, meter))

        try:
            sample = _sampler((original, variant), device, instances, pool)
            rounds = interleave(
                (original, variant), device, budget_s=max(budget_s, tail_s), min_rounds=LEAST_ROUNDS, max_rounds=max_rounds or MAX_ROUNDS,
                seed=secrets.randbits(32), stop=enough, sample=sample,
            )  # fmt: skip
            for samples in rounds:
                if (now := time.perf_counter()) - told > 0.2:
                    told = now
                    so_far = percentile([b.seconds for b in samples[0]], 50) / percentile([b.seconds for b in samples[1]], 50)
                    report(min(1.0, (now - begin) / max(budget_s, tail_s)), so_far, len(samples[1]))
        except KeyboardInterrupt:
            if min(len(s) for s in samples) < LEAST_ROUNDS:
                raise
            interrupted = True
    num_rounds = min(len(s) for s in samples)
    before, after = samples[0][:num_rounds], samples[1][:num_rounds]
    return Speeds(before, after, _decide(before, after, device, instances, meter), is_noisy(meter, instances), meter, instances, interrupted)


def is_noisy(meter: LoadMeter, instances: int) -> bool:
    """Whether others took cores away; that several callers wait for each other's is their own doing."""
    return meter.noisy if instances == 1 else meter.crowded


def _decide(original: Sequence[Burst], variant: Sequence[Burst], device: torch.device, instances: int, meter: LoadMeter) -> Decision:
    import torch

    noisy = is_noisy(meter, instances)
    wall = Ratio.of([b.seconds for b in original], [b.seconds for b in variant])
    if device.type == "cuda" or min(b.processor_s for b in (*original, *variant)) <= 0:  # a clock too coarse for the calls
        return decide_speed(wall, None, noisy=noisy, threads=1, robbed=meter.robbed)
    processor = Ratio.of([b.processor_s for b in original], [b.processor_s for b in variant])
    # a runtime may have threads of its own
    cores = max(percentile([b.processor_s / b.seconds for b in side], 50) for side in (original, variant)) / instances
    return decide_speed(wall, processor, noisy=noisy, threads=max(torch.get_num_threads(), round(cores)), robbed=meter.robbed)


# --- taking one sample ----------------------------------------------------------------------


def _sampler(models: Sequence[Model], device: torch.device, instances: int, pool: ThreadPoolExecutor | None) -> Callable[[Model, torch.device], Burst]:
    """How a sample is taken, by how long the faster model takes."""
    seconds = min(min(timed(model, device) for _ in range(2)) for model in models)
    if pool is not None:
        slowest = max(timed(model, device) for model in models)
        return partial(window, pool=pool, instances=instances, seconds=max(WINDOW_S, WINDOW_CALLS * slowest))
    num_calls = max(1, min(MOST_CALLS, math.ceil(BURST_S / max(seconds, 1e-9))))
    return partial(burst, num_calls=num_calls, warm=seconds < WARM_BELOW_S)


def burst(model: Model, device: torch.device, *, num_calls: int = 1, warm: bool = False) -> Burst:
    """Call `model` some times in a row."""
    if warm:
        model()
    faults, processor = _page_faults(), time.process_time()
    calls = tuple(timed(model, device) for _ in range(num_calls))
    processor, faults = time.process_time() - processor, _page_faults() - faults
    return Burst(math.fsum(calls) / num_calls, processor / num_calls, faults / num_calls, calls)


def window(model: Model, device: torch.device, *, pool: ThreadPoolExecutor, instances: int, seconds: float) -> Burst:
    """Let several callers call `model` over and over for some seconds."""
    stop, start = threading.Event(), threading.Barrier(instances)
    faults, processor = _page_faults(), time.process_time()
    tasks = [pool.submit(_call_for, model, device, seconds, start, stop) for _ in range(instances)]
    try:
        results = [task.result() for task in tasks]
    except BaseException:
        stop.set()
        start.abort()
        raise
    processor, faults = time.process_time() - processor, _page_faults() - faults
    num_calls = sum(len(calls) for calls, _ in results)
    rate = math.fsum(len(calls) / elapsed for calls, elapsed in results)
    return Burst(1 / rate, processor / num_calls, faults / num_calls, tuple(s for calls, _ in results for s in calls))


def _call_for(model: Model, device: torch.device, seconds: float, start: threading.Barrier, stop: threading.Event) -> tuple[list[float], float]:
    import torch

    calls: list[float] = []
    with torch.inference_mode():  # which is a matter of the thread
        start.wait()
        begin = time.perf_counter()
        while not stop.is_set() and time.perf_counter() - begin < seconds:
            calls.append(timed(model, device))
        return calls, time.perf_counter() - begin


@contextlib.contextmanager
def _callers(instances: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads to call from; none for a single caller."""
    if instances == 1:
        yield None
        return
    with ThreadPoolExecutor(instances, thread_name_prefix="caller") as pool:
        yield pool


def _page_faults() -> int:
    """Of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads in a call, and as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if threads is None or threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
