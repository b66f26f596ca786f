"""Runs a model under torch's profiler with its modules marked, and writes the trace that Perfetto and TensorBoard show."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import InputError, UnsupportedError
from ..preserve import preserved
from ..workload import Call, Workload, call_model
from .recorder import quiet_stderr
from .traces_file import MODULE_MARK, PLUGIN_SUFFIX, THE_MODEL, check_new, load_trace, modules_to_calls_, translate_, write_trace

WARMUP_CALLS = 1
"""Calls with the profiler in its own warm-up, so that its start is in no step."""


class ModuleMarks:
    """While active, puts a named range around every module that this thread calls.

    The hooks belong to no module, and leave inputs and outputs alone. Inside compiled code there are no modules to mark.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(m): f"{MODULE_MARK}{name or THE_MODEL} [{type(m).__name__}]" for name, m in model.named_modules()}
        self._open: list[Any] = []
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    def __enter__(self) -> ModuleMarks:
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        self._handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        while self._open:
            self._open.pop().__exit__(None, None, None)

    def _enter(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread:
            return
        mark = torch.profiler.record_function(self._names.get(id(module), f"{MODULE_MARK}? [{type(module).__name__}]"))
        mark.__enter__()
        self._open.append(mark)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must return None: a hook's return value would replace the module's output.
        if not torch.compiler.is_compiling() and threading.get_ident() == self._thread and self._open:
            self._open.pop().__exit__(None, None, None)


def record_trace(
    workload: Workload, path: Path, *, calls: int = 3, batch_size: int | None = None, shapes: bool = True, memory: bool = True, stacks: bool = False
) -> Path:
    """Trace some calls of a model; the model is left as it was.

    Args:
        workload: Model and example inputs.
        path: A folder, where the trace gets a name of its own, or a new file that ends in ``.json`` or ``.json.gz``.
        calls: Calls in the trace.
        batch_size: Items per call; those of the inputs if not given.
        shapes: Whether to note the shapes of operators' inputs.
        memory: Whether to note every allocation.
        stacks: Whether to note every Python function with its file and line: several times slower and larger.

    Returns:
        The file.

    Raises:
        InputError: an argument that cannot be used, or a file that is there already.
        ModelError: the model raised.
        DoesNotFitError: the device's memory did not suffice.
        UnsupportedError: the model is on the meta device, or another profiler is at work.
    """
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
        raise InputError(f"{calls!r} calls cannot be traced", help="give a whole number above 0")
    workload.require_weights("load its weights first")
    if torch._C._autograd._profiler_enabled():
        raise UnsupportedError("torch's profiler is already at work in this process, and cannot trace twice", help="leave its block first")
    target = _target(workload, path)
    call = workload.call.with_batch(batch_size or workload.call.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "trace.json"
        _profile(workload, call, raw, calls=calls, shapes=shapes, memory=memory, stacks=stacks)
        trace = load_trace(raw)
    translate_(trace)
    if not stacks:  # with stacks, torch has written the calls of modules itself
        modules_to_calls_(trace)
    write_trace(target, trace)
    return target


def _profile(workload: Workload, call: Call, raw: Path, *, calls: int, shapes: bool, memory: bool, stacks: bool) -> None:
    device, model = workload.torch_device, workload.model
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else [])
    schedule = torch.profiler.schedule(wait=0, warmup=WARMUP_CALLS, active=calls, repeat=1)
    with preserved(model), torch.inference_mode(), _quiet_hooks():
        call_model(model, call)
        _synchronize(device)
        profiler = torch.profiler.profile(
            activities=activities, schedule=schedule, acc_events=True, record_shapes=shapes, profile_memory=memory, with_stack=stacks
        )
        # With stacks, torch's own tracer notes the modules.
        marks = contextlib.nullcontext() if stacks else ModuleMarks(model)
        try:
            with quiet_stderr():
                profiler.start()
            for _ in range(WARMUP_CALLS + calls):
                with marks:
                    call_model(model, call)
                if profiler.step_num in (WARMUP_CALLS - 1, WARMUP_CALLS + calls - 1):
                    _synchronize(device)  # no kernel of the warm-up in the first step, and none of the last one after the profiler's end
                with quiet_stderr():
                    profiler.step()
        finally:
            with quiet_stderr():
                profiler.stop()
        profiler.export_chrome_trace(str(raw))


@contextlib.contextmanager
def _quiet_hooks() -> Iterator[None]:
    """Keep torch from warning of hooks on every module: a compiled model is marked as a whole, once more for its wrapper."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks", category=UserWarning)
        yield


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _target(workload: Workload, path: Path) -> Path:
    if path.is_file() and not path.name.endswith((".json", ".json.gz")):
        raise InputError(f"{str(path)!r} is a file and no folder", help="a trace's name ends in .pt.trace.json.gz")
    worker = "".join(c if c.isalnum() or c in "-_" else "_" for c in workload.name) or "model"
    target = path if path.name.endswith((".json", ".json.gz")) else path / f"{worker}.{time.time_ns() // 1_000_000}{PLUGIN_SUFFIX}"
    check_new(target)
    return target
