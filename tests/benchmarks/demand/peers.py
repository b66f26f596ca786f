"""What other tools say of the same model: each asked as its own documentation shows, each failure kept with its words.

They live in a folder of their own, because one of them changes how transformers loads models by merely being there:
``pip install --no-deps --target FOLDER -r tests/benchmarks/demand/peers.txt``, named by ``AIMASS_PEERS``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


def available() -> bool:
    """Put the folder that ``AIMASS_PEERS`` names on the path."""
    folder = os.environ.get("AIMASS_PEERS", "")
    if folder and folder not in sys.path:
        sys.path.append(folder)
    return bool(folder)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def ask(tool: Callable[[nn.Module, Any], float], model: nn.Module, inputs: Any) -> dict[str, Any]:
    """What the tool says, in CPU seconds of this process; or why it said nothing."""
    start = time.process_time()
    try:
        with silent():
            value = float(tool(model, inputs))
    except BaseException as error:  # SystemExit and the like included: a peer's failure is an answer
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"error": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:120]}
    return {"value": value, "cpu_s": time.process_time() - start}


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})


def torch_counter(model: nn.Module, inputs: Any) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = _arguments(inputs)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*args, **kwargs)
    return counter.get_total_flops()


def torchinfo(model: nn.Module, inputs: Any) -> float:
    import torchinfo as tool

    # It counts multiply-adds.
    return 2 * tool.summary(model, input_data=inputs if isinstance(inputs, dict) else list(inputs), verbose=0, device="cpu").total_mult_adds


def torchinfo_memory(model: nn.Module, inputs: Any) -> float:
    import torchinfo as tool

    said = tool.summary(model, input_data=inputs if isinstance(inputs, dict) else list(inputs), verbose=0, device="cpu")
    return said.total_input + said.total_output_bytes + said.total_param_bytes


def fvcore(model: nn.Module, inputs: Any) -> float:
    from fvcore.nn import FlopCountAnalysis

    # It traces, and takes positional arguments only; what it calls a flop is a multiply-add.
    given = tuple(inputs.values()) if isinstance(inputs, dict) else inputs
    with torch.no_grad():
        return 2 * FlopCountAnalysis(model, given).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()


def calflops(model: nn.Module, inputs: Any) -> float:
    from calflops import calculate_flops

    args, kwargs = _arguments(inputs)
    flops, _, _ = calculate_flops(model, args=list(args), kwargs=dict(kwargs), print_results=False, print_detailed=False, output_as_string=False)
    return flops


def deepspeed(model: nn.Module, inputs: Any) -> float:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    args, kwargs = _arguments(inputs)
    profiler = FlopsProfiler(model)
    profiler.start_profile()
    with torch.no_grad():
        model(*args, **kwargs)
    flops = profiler.get_total_flops()
    profiler.end_profile()
    return flops


def accelerate_memory(model: nn.Module, inputs: Any) -> float:
    from accelerate.utils import calculate_maximum_sizes

    # ``accelerate estimate-memory`` shows the weights and advises a fifth more for inference.
    total, _ = calculate_maximum_sizes(model)
    return 1.2 * total


def memory_tracker(model: nn.Module, inputs: Any) -> float:
    """torch's MemTracker over fake tensors: its own way to a peak without running."""
    import copy

    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        shadow = copy.deepcopy(model)
    args, kwargs = _arguments(inputs)
    with fake:
        args, kwargs = tuple(map(fake.from_tensor, args)), {k: fake.from_tensor(v) for k, v in kwargs.items()}
        tracker = MemTracker()
        tracker.track_external(shadow)
        with tracker, torch.no_grad():
            shadow(*args, **kwargs)
    peak = tracker.get_tracker_snapshot("peak")
    return max(sum(v for k, v in by_kind.items() if str(k) == "Total" or getattr(k, "name", "") == "TOTAL") for by_kind in peak.values())


FLOPS: dict[str, Callable[[nn.Module, Any], float]] = {
    "torch FlopCounterMode": torch_counter, "torchinfo": torchinfo, "fvcore": fvcore, "calflops": calflops, "DeepSpeed": deepspeed,
}  # fmt: skip
MEMORY: dict[str, Callable[[nn.Module, Any], float]] = {
    "torchinfo": torchinfo_memory, "accelerate": accelerate_memory, "torch MemTracker": memory_tracker,
}  # fmt: skip
