"""One pass of a call under torch's dispatcher, over tensors without data: operators, FLOPs, bytes and live memory."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..compiled import is_compiled, uncompiled
from ..errors import ModelError
from ..fast_path import has_fast_path, without_fast_path
from ..inputs import copied
from ..outputs import output_tensors
from ..preserve import preserved
from ..quiet import quiet_fakes
from ..workload import Call, call_model, check_initialised, weight_bytes
from .fakes import Fakes
from .formulas import tensor_bytes
from .one_pass import OnePass
from .rows import OutputShape, Row, Trace

__all__ = ["OnePass", "OutputShape", "Row", "Trace", "trace_call"]


def trace_call(model: nn.Module, call: Call, *, batch_size: int | None = None, may_run: bool = True, may_assume: bool | None = None) -> Trace:
    """Follow one call of `model`, without weights and without running it where that is possible.

    The pass runs over fake tensors: shapes without data, so a model on the meta device is as welcome as
    one in memory, and neither is touched. Where shapes depend on data the same pass is made over one
    real call, and `Trace.ran` says so. Without data to run on, sizes such as those of ``x[mask]`` are taken
    at their upper bound, and `Trace.assumptions` says which.

    Args:
        model: The model, in the mode it should be traced in.
        call: Its arguments.
        batch_size: Items per call; those of `call` if not given.
        may_run: Allow the real call.
        may_assume: Allow upper bounds; if not given, only for a model or inputs on the meta device.

    Raises:
        InputError: the inputs have no batch axis, so that `batch_size` cannot be set.
        ModelError: the model raised on these inputs, it has lazy modules that saw no input yet, or it
            cannot be traced and may not be run.
    """
    check_initialised(model)
    model = uncompiled(model)  # whose names are the user's
    size = call.batch_size if batch_size is None else batch_size
    shapes = call.sized(size)
    on_meta = any(t.device.type == "meta" for t in [*model.parameters(), *model.buffers(), *call.tensors()])
    try:
        return _trace_fake(model, shapes, assume=on_meta if may_assume is None else may_assume)
    except Exception as error:  # whatever the model does that shapes alone cannot answer
        cause = error
    reason = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"[:200]
    if on_meta or not may_run:
        raise ModelError(
            f"{type(model).__name__} cannot be followed on {shapes.describe()} without running it ({reason})", help=_advice(cause, on_meta)
        ) from cause
    return _trace_real(model, call.with_batch(size), reason)


def decides_by_values(model: nn.Module, call: Call) -> bool:
    """Whether the forward pass reads values out of a tensor, to branch or to size something by them: another input may take another way."""
    from torch._subclasses.fake_tensor import DataDependentOutputException

    try:
        trace_call(model, call, may_run=False)
    except ModelError as error:
        return isinstance(error.__cause__, DataDependentOutputException)
    return False


def _advice(cause: BaseException, on_meta: bool) -> str:
    frame = cause.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_name == "generate":
            return "generation stops when the data says so: give the model itself, not its generate(), and ask for the demand of a sequence"
        frame = frame.tb_next
    return "check the inputs, or pass a model and inputs that hold data" if on_meta else "call it with real inputs"


def _trace_fake(model: nn.Module, call: Call, *, assume: bool) -> Trace:
    fakes = Fakes()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    state = {name: fakes.of(tensor) for name, tensor in named}
    fake_call = call.map(fakes.of)
    one_pass = OnePass(model, [*state.values(), *fake_call.tensors()], _trace_fake.__code__, fake_mode=fakes.mode, assume=assume)
    with preserved(model, values=False), eager(model), one_pass.watching_modules(), quiet_fakes(), torch.no_grad(), fakes.mode, one_pass:
        outputs = torch.func.functional_call(model, state, fake_call.args, dict(fake_call.kwargs), tie_weights=False)
    return Trace(**summary(one_pass, model, call, outputs), ran=False)


def _trace_real(model: nn.Module, call: Call, reason: str) -> Trace:
    call = copied(call)  # the model may write into it, and a copy within the pass would count as an operator
    one_pass = OnePass(model, [*model.parameters(), *model.buffers(), *call.tensors()], _trace_real.__code__)
    with preserved(model), eager(model), one_pass.watching_modules(), torch.no_grad(), one_pass:
        outputs = call_model(model, call)
    return Trace(**summary(one_pass, model, call, outputs), ran=True, why_ran=reason)


def summary(one_pass: OnePass, model: nn.Module, call: Call, outputs: Any) -> dict[str, Any]:
    """The fields that every kind of trace has."""
    return {
        "rows": tuple(one_pass.rows),
        "batch_size": call.batch_size,
        "weight_bytes": weight_bytes(model),
        "input_bytes": sum(tensor_bytes(t) for t in call.tensors()),
        "outputs": tuple(OutputShape(name, t.dtype, tuple(int(s) for s in t.shape)) for name, t in output_tensors(outputs)),
        "slow_path": has_fast_path(model),
        "modules": dict(model.named_modules()),
        "events": tuple(one_pass.memory.events),
        "event_rows": tuple(one_pass.memory.event_rows),
        "assumptions": tuple(f"{name}: as many as its inputs allow" for name in one_pass.assumptions),
    }


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Take fused and compiled modules and functions apart, so that each operator is seen."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_fast_path())
        if "torch._dynamo.eval_frame" in sys.modules:  # without it nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if is_compiled(model):
            stack.enter_context(warnings.catch_warnings())
            # Our hooks fire for the wrapper as well; it has no name of its own that a row could get.
            warnings.filterwarnings("ignore", message="Using `torch.compile")
        if flex is not None:
            # It compiles itself when it is called, and nothing compiles under a mode.
            stack.enter_context(_replaced(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True))
            if any(p.device.type != "cpu" for p in model.parameters()):
                # The stand-ins are on the CPU, where torch refuses its backward pass.
                stack.enter_context(_replaced(flex, "_validate_device", lambda *tensors: None))
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
