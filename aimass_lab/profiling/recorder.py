"""One call with torch's profiler on: every operator, allocation and GPU kernel, each with the module it belongs to."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

MARK = "aimass:"
"""Begins the names of the marks that are put around the call and around its modules."""

KERNEL_ACTIVITIES = ("kernel", "gpu_memcpy", "gpu_memset")
"""What Kineto calls work on a GPU; annotations are mirrored there too and are none."""


@dataclass(frozen=True)
class Op:
    """One call of one operator."""

    name: str
    module: str | None
    """Dotted name of the innermost module it ran in; None outside of all."""
    parent: int
    """Position of the operator that called it, -1 for none."""
    duration_ns: int
    self_ns: int
    """Without the operators that it called."""


@dataclass(frozen=True)
class Allocation:
    """Memory taken from torch's allocator, or given back."""

    time_ns: int
    """Since the call began."""
    bytes: int
    """Negative: given back."""
    address: int
    op: int
    """Position of the innermost operator, -1 for none."""
    module: str | None


@dataclass(frozen=True)
class Kernel:
    """One run of a GPU kernel, copy or fill."""

    name: str
    duration_ns: int
    op: int
    """Position of the operator that launched it, -1 for none."""
    module: str | None


@dataclass
class Recording:
    """What happened in one call."""

    call_ns: int = 0
    ops: list[Op] = field(default_factory=list)
    """In the order in which they began; operators that others called among them."""
    allocations: list[Allocation] = field(default_factory=list)
    """On the device of the model, in order of time."""
    kernels: list[Kernel] = field(default_factory=list)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of the first tensor that each module was called with."""

    @property
    def peak_bytes(self) -> int:
        """Most bytes that torch's allocator held at once, beyond what it held before the call."""
        held = peak = 0
        for allocation in self.allocations:
            held += allocation.bytes
            peak = max(peak, held)
        return peak

    @functools.cached_property
    def device_ns(self) -> list[int]:
        """Time of the GPU kernels that each operator launched itself."""
        found = [0] * len(self.ops)
        for kernel in self.kernels:
            if kernel.op >= 0:
                found[kernel.op] += kernel.duration_ns
        return found

    @property
    def weights_ns(self) -> list[int]:
        """What operators are ranked by: their kernels' time where there is a GPU, else their own time."""
        return self.device_ns if self.kernels else [op.self_ns for op in self.ops]

    @property
    def whole_ns(self) -> int:
        """What shares are of: all kernels' time where there is a GPU, else the call."""
        return sum(kernel.duration_ns for kernel in self.kernels) if self.kernels else self.call_ns

    @property
    def outside_ops_ns(self) -> int:
        """Time of the call in no operator: Python, dispatch and the marks themselves."""
        return max(0, self.call_ns - sum(op.duration_ns for op in self.ops if op.parent < 0))


def record_call(function: Callable[[], Any], device: torch.device, model: nn.Module | None = None) -> Recording | None:
    """Call `function` once under torch's profiler.

    Python stacks are not taken: they would cost several times the call itself.

    Args:
        function: One call of the model.
        device: Where it runs.
        model: Whose modules are marked; None marks none, and then named regions of compiled code count as operators.

    Returns:
        What was recorded; None where another profiler is at work, which must not be disturbed.
    """
    if torch._C._autograd._profiler_enabled():
        function()
        return None
    recording = Recording()
    marks = _Marks(model, recording)
    results = profiled(lambda: marks.around(function), device)
    _Reader(recording, marks.names, device, regions=model is None).read(results)
    return recording


def profiled(function: Callable[[], Any], device: torch.device) -> Any:
    """Call `function` once under torch's profiler and return its raw results."""
    from torch.autograd.profiler import profile

    recorder = profile(use_kineto=True, profile_memory=True, use_device="cuda" if device.type == "cuda" else None)
    with quiet_stderr():
        recorder.__enter__()
    try:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    finally:
        with quiet_stderr():
            recorder.__exit__(None, None, None)
    return recorder.kineto_results


class _Marks:
    """Puts a named mark around the call and around every module that this thread calls."""

    def __init__(self, model: nn.Module | None, recording: Recording) -> None:
        self.names: list[str] = []
        self._index: dict[int, int] = {}
        self._recording = recording
        self._open: list[Any] = []
        self._thread = threading.get_ident()
        for name, module in model.named_modules() if model is not None else ():
            self._index[id(module)] = len(self.names)
            self.names.append(name)

    def around(self, function: Callable[[], Any]) -> None:
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        handles = []
        if self.names:
            handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        try:
            with torch._C._profiler._RecordFunctionFast(MARK):
                function()
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        index = self._index.get(id(module))
        mark = None
        if index is not None:
            # a nested tensor, as torch's encoder makes of padded sequences, has a length for each item and no sizes
            shape = next((tuple(int(n) for n in a.shape) for a in args if isinstance(a, torch.Tensor) and not a.is_nested), None)
            if shape is not None:
                self._recording.input_shapes.setdefault(self.names[index], shape)
            mark = torch._C._profiler._RecordFunctionFast(f"{MARK}{index}")
            mark.__enter__()
        self._open.append(mark)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must return None: a hook's return value would replace the module's output.
        if threading.get_ident() == self._thread and self._open:
            mark = self._open.pop()
            if mark is not None:
                mark.__exit__(None, None, None)


class _Reader:
    """Flattens the profiler's tree of events."""

    def __init__(self, recording: Recording, names: list[str], device: torch.device, *, regions: bool) -> None:
        self._recording, self._names, self._device, self._regions = recording, names, device, regions
        self._launched_by: dict[int, tuple[int, str | None]] = {}
        """Operator and module by the profiler's number of the event that launched a kernel."""
        self._began_ns = 0

    def read(self, results: Any) -> None:
        roots = results.experimental_event_tree()
        call = next((event for event in _descendants(roots) if event.name == MARK), None)
        if call is None:
            return
        self._began_ns = call.start_time_ns
        self._recording.call_ns = call.duration_time_ns
        for root in roots:
            self._visit(root, parent=-1, module=None, inside=False)
        self._recording.allocations.sort(key=lambda a: a.time_ns)
        if self._device.type == "cuda":
            self._read_kernels(results)

    def _visit(self, event: Any, *, parent: int, module: str | None, inside: bool) -> int:
        """Walk one event and what it contains; return the time of the operators that it adds to its parent's."""
        kind = event.tag.name
        if kind == "Allocation":
            self._allocation(event, parent, module)
            return 0
        name = event.name
        is_op = inside and kind == "TorchOp" and ("::" in name or (self._regions and not name.startswith(MARK)))
        if kind == "TorchOp" and name.startswith(MARK):
            inside = True
            module = self._names[int(name[len(MARK) :])] if len(name) > len(MARK) else None
        if not is_op:
            if kind == "TorchOp":  # the driver's own events are numbered apart
                self._launched_by[event.correlation_id] = (parent, module)
            return sum(self._visit(child, parent=parent, module=module, inside=inside) for child in event.children)
        ops, here = self._recording.ops, len(self._recording.ops)
        duration_ns = int(event.duration_time_ns)
        ops.append(Op(name, module, parent, duration_ns, duration_ns))
        self._launched_by[event.correlation_id] = (here, module)
        within_ns = sum(self._visit(child, parent=here, module=module, inside=True) for child in event.children)
        ops[here] = Op(name, module, parent, duration_ns, max(0, duration_ns - within_ns))
        return duration_ns

    def _allocation(self, event: Any, op: int, module: str | None) -> None:
        found = event.extra_fields
        if found.device.type == self._device.type and (self._device.index is None or found.device.index in (None, self._device.index)):
            time_ns = int(event.start_time_ns) - self._began_ns
            self._recording.allocations.append(Allocation(time_ns, int(found.alloc_size), int(found.ptr), op, module))

    def _read_kernels(self, results: Any) -> None:
        for event in results.events():
            if event.activity_type() in KERNEL_ACTIVITIES:
                op, module = self._launched_by.get(event.linked_correlation_id(), (-1, None))
                self._recording.kernels.append(Kernel(event.name(), int(event.duration_ns()), op, module))


def _descendants(events: Any) -> Iterator[Any]:
    waiting = list(events)
    while waiting:
        event = waiting.pop()
        yield event
        waiting.extend(event.children)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Drop what C++ writes to stderr: the profiler announces its start and stop there, and a notebook would show it."""
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (OSError, ValueError, AttributeError):  # no stderr: nothing to keep quiet
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)
