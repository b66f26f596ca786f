"""A mode of torch's dispatcher that writes one row per operator, over tensors without data or with it."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .fakes import bounded, grouped_product
from .formulas import Operator, describe, tensor_bytes, workspace_bound
from .formulas.registry import is_users
from .live import Memory, is_wrapper, leaves
from .origins import Origins
from .replay import replay
from .rows import Phase, Row
from .sources import source_line
from .workspace import expected_workspace, with_kept_states

_DEVICE = torch.ops.prim.device.default


class OnePass(TorchDispatchMode):
    """Writes one `Row` per operator that reaches the dispatcher while it is active, on fake tensors and on real ones.

    Args:
        model: Whose modules the rows are attributed to.
        external: Tensors that were there before: weights, buffers and inputs are no activations.
        root: The code of the function that calls the model; lines outside of it are not the model's.
        fake_mode: The mode of the tensors without data, if it is over such.
        assume: Take sizes that depend on data at their upper bound instead of raising.
        training: Remember where each operator ran, for the backward pass.
    """

    supports_higher_order_operators = True

    def __init__(
        self, model: nn.Module, external: list[torch.Tensor], root: CodeType, *, fake_mode: Any = None, assume: bool = False, training: bool = False
    ) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.memory = Memory(external)
        self.phase: Phase = "forward"
        self.assumptions: dict[str, None] = {}
        self._assume = assume
        self._fake_mode = fake_mode
        self._root = root
        self._scope: list[tuple[str, ...]] = [()]
        self._names = {id(module): name for name, module in model.named_modules()}
        self._origins = Origins() if training else None

    @contextlib.contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Keep the stack of running modules, through hooks that belong to no module."""
        from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

        handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        outer = self._scope[-1]
        name = self._names.get(id(module))
        self._scope.append(outer if name is None else (*outer, name))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must return None: a hook's return value would replace the module's output.
        self._scope.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and type(args[0]).__name__ == "FakeTensor":  # asked for several times per operator
            return args[0].fake_device
        kwargs = kwargs or {}
        if _holds_wrapper(types):
            return NotImplemented  # a quantised tensor: let it unfold into the operators that really run
        operator = describe(func)
        if operator.composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self._call(operator, func, args, kwargs)
        if operator.family == "recurrent":
            result = with_kept_states(operator.name, args, result)
        if operator.kind != "view":
            self._record(operator, func, args, kwargs, result)
        elif self._origins is not None:
            self._where()
        return result

    def _call(self, operator: Operator, func: Any, args: Any, kwargs: Any) -> Any:
        if operator.name == "aten::_grouped_mm" and type(args[0]).__name__ == "FakeTensor" and args[0].dtype != torch.bfloat16:
            return grouped_product(*args, **kwargs)
        if not self._assume:
            return func(*args, **kwargs) if self._fake_mode is None else replay(self._fake_mode, func, args, kwargs)
        from torch._subclasses.fake_tensor import DynamicOutputShapeException

        try:
            return replay(self._fake_mode, func, args, kwargs)
        except DynamicOutputShapeException:
            result = bounded(operator.name, func, args, kwargs)
            if result is None:
                raise
            self.assumptions[operator.name] = None
            return result

    def _record(self, operator: Operator, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        inputs, outputs = leaves((*args, *kwargs.values())), leaves(result)
        allocated = self.memory.take(outputs, len(self.rows))
        written = sum(map(tensor_bytes, outputs)) if outputs else sum(tensor_bytes(t) for i in operator.writes if i < len(args) for t in leaves(args[i]))
        if operator.gathers:
            read = written + sum(tensor_bytes(t) for t in inputs if not t.is_floating_point())
        else:
            read = sum(tensor_bytes(t) for t in {id(t): t for t in inputs}.values())
        kind, flops = operator.kind, 0
        if operator.formula is not None:
            counted = _flops(operator, args, kwargs, result)
            kind, flops = (kind, counted) if counted is not None else ("unknown", 0)
        floating = next((t.dtype for t in (*inputs, *outputs) if t.is_floating_point()), None)
        scope, source = self._where()
        self.rows.append(
            Row(
                op=operator.name,
                scope=scope,
                kind=kind,
                flops=flops,
                bytes_read=read,
                bytes_written=written,
                live_bytes=self.memory.live_bytes,
                workspace_bytes=workspace_bound(operator, args, read, written),
                light_flops=max((int(t.numel()) for t in (*inputs, *outputs)), default=0) if operator.computes else 0,
                family=operator.family,
                dtype=_dtype_name(floating),
                shape=tuple(map(int, outputs[0].shape)) if outputs else (),
                allocated_bytes=allocated,
                source=source,
                phase=self.phase,
                expected_workspace_bytes=_expected(func, args, outputs),
            )
        )

    def _where(self) -> tuple[tuple[str, ...], str]:
        scope = self._scope[-1]
        if self.phase == "optimizer":
            return scope, ""
        if self._origins is None:
            return scope, source_line(sys._getframe(2), self._root)
        node = torch._C._current_autograd_node() if self.phase == "backward" else None
        if node is not None and not scope:
            return self._origins.of(node)
        source = source_line(sys._getframe(2), self._root)
        self._origins.note(scope, source)
        return scope, source

    def own(self, name: str, parameter: torch.Tensor) -> None:
        """Say whose parameter it is, so that the sum of its gradients belongs to that module."""
        if self._origins is not None:
            self._origins.own(name, parameter)


def _flops(operator: Operator, args: Any, kwargs: Any, result: Any) -> int | None:
    assert operator.formula is not None
    try:
        return int(operator.formula(*args, **kwargs, out_val=result))
    except Exception as error:  # a formula met arguments it was not written for: that is an operator without a formula
        if is_users(operator.name):
            warnings.warn(f"the formula registered for {operator.name} raised {type(error).__name__}: {error}; its FLOPs are unknown", stacklevel=2)
        return None


def _expected(func: Any, args: Any, outputs: list[torch.Tensor]) -> int | None:
    try:
        return expected_workspace(func, args, outputs)
    except Exception:  # arguments that the rule was not written for
        return None


@functools.cache
def _dtype_name(dtype: torch.dtype | None) -> str:
    return str(dtype or "").removeprefix("torch.")


def _holds_wrapper(types: Any) -> bool:
    return any(is_wrapper(kind) for kind in types)
