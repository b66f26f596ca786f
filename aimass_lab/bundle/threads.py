"""How many threads a server's worker gets: all cores only where a call takes long, and several only where they pay."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from ..environment import read_environment
from ..errors import InputError, ModelError
from ..formats.measure import torch_threads
from ..preserve import preserved
from ..records import Number
from ..timing import latency_number, sample_latency
from ..units import format_seconds
from ..workload import Call, Workload, call_model

if TYPE_CHECKING:
    from torch import nn

LONG_S = 0.01
"""From here on a call is long. Threads meet at every operator, and one that lost its core, to the server itself or to a neighbour, lets all others wait for
some slices of the scheduler, which are milliseconds: much for a short call, little for a long one."""
GAIN = 1.25
"""By how much threads must be faster than one alone to be worth their cores."""
BUDGET_S = 0.3
FEWEST = 3


class ThreadTrial(msgspec.Struct, frozen=True, kw_only=True):
    """What a call with one item takes torch with so many threads."""

    threads: int
    latency_p50: Number


class ThreadChoice(msgspec.Struct, frozen=True, kw_only=True):
    """How many threads a worker gets."""

    count: int
    because: str
    """Follows the number in a sentence."""
    trials: tuple[ThreadTrial, ...] = ()
    """What was measured for it."""


def settle_threads(workload: Workload, served: nn.Module, most: int) -> ThreadChoice:
    """Threads for one worker on this machine, by the time of a call with one item.

    A call that is not long leaves one core to the processes that take the requests.

    Args:
        workload: The model and its inputs.
        served: What is served in the model's place, or the model itself; left as it was.
        most: Cores that there are.

    Raises:
        ModelError: the model raises.
    """
    import torch

    if most == 1:
        return ThreadChoice(count=1, because="there is one core for it")
    if any(tensor.device.type != "cpu" for tensor in workload.call.tensors()):
        return ThreadChoice(count=most, because="so many cores are there for it; nothing was measured, since the model's inputs are not on the processor")
    with preserved(served), torch.no_grad():
        call = _smallest(workload, served)
        found = {most: _time(served, call, most)}
        long = found[most].value >= LONG_S
        several = most if long else most - 1
        for threads in sorted({several, 1} - {most}, reverse=True) if several > 1 else ():
            found[threads] = _time(served, call, threads)
    trials = tuple(ThreadTrial(threads=threads, latency_p50=number) for threads, number in sorted(found.items()))
    limit = format_seconds(LONG_S)
    if several == 1:
        return ThreadChoice(count=1, because=f"a call takes less than {limit}, so that one core is left to what takes the requests", trials=trials)
    gain = found[1].value / found[several].value
    times = f"{several} threads are {gain:.2f} times as fast as one"
    if gain < GAIN:
        return ThreadChoice(count=1, because=f"{times}, and {GAIN:g} would be worth their cores", trials=trials)
    rest = f"a call takes {limit} or more" if long else f"a call takes less than {limit}, so that one core is left to what takes the requests"
    return ThreadChoice(count=several, because=f"{times}, and {rest}", trials=trials)


def _smallest(workload: Workload, served: nn.Module) -> Call:
    """A call with one item, or the example's where the model takes no other number; it is made once."""
    with contextlib.suppress(InputError, ModelError):
        one = workload.call.with_batch(1)
        call_model(served, one)
        return one
    call_model(served, workload.call)
    return workload.call


def _time(served: nn.Module, call: Call, threads: int) -> Number:
    """Median of calls of a model that was called before."""
    import torch

    device = torch.device("cpu")
    with torch_threads(threads):
        samples = sample_latency(lambda: call_model(served, call), device, budget_s=BUDGET_S, warmup=0, min_samples=FEWEST)
        return latency_number(samples, 50, environment=read_environment(device).id)
