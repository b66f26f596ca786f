"""Remembers what operators make of fake tensors: layers repeat, and torch's own rules take most of a pass's time."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

CAPACITY = 50_000
"""Results remembered; all are forgotten when there are more."""


class _Result(NamedTuple):
    """How one result tensor lies in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    origin: str
    """*new*: memory of its own. *view*: the first argument's memory. *same*: the first argument itself."""


_Plan = tuple[type | None, tuple[_Result, ...]]
_plans: dict[Any, _Plan | None] = {}


def replay(mode: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``func(*args, **kwargs)`` gives under the fake mode `mode`, out of memory where these sizes were seen before."""
    if not _is_plain(func) or torch.is_inference_mode_enabled():
        return func(*args, **kwargs)
    key: list[Any] = [func]
    if not _describe(args, key) or not _describe(tuple(kwargs.items()), key):
        return func(*args, **kwargs)
    fixed = tuple(key)
    if fixed in _plans:
        plan = _plans[fixed]
        return func(*args, **kwargs) if plan is None else _make(mode, plan, args)
    result = func(*args, **kwargs)
    if len(_plans) >= CAPACITY:
        _plans.clear()
    _plans[fixed] = _plan(result, args)
    return result


@functools.cache
def _is_plain(func: Any) -> bool:
    """Whether sizes of the arguments decide about sizes of the results, and nothing else happens."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return False
    changing = {torch.Tag.inplace_view, torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.maybe_aliasing_or_mutating}
    writes = [i for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    shapes_change = any(word in func._schema.name for word in ("resize", "set_", "lift"))
    return not changing & set(func.tags) and writes in ([], [0]) and not shapes_change


def _describe(values: Any, key: list[Any]) -> bool:
    """Append what tells these arguments from others of the same operator; False if that cannot be said."""
    for value in values:
        kind = type(value)
        if kind.__name__ == "FakeTensor":
            if value.constant is not None or value.layout is not torch.strided or value.dtype.is_complex or value.fake_device.type != "cpu":
                return False
            key += (kind, value.shape, value.stride(), value.storage_offset(), value.dtype)
        elif kind in _SCALARS:
            key += (kind, value)
        elif kind in (tuple, list):
            key += (kind, len(value))
            if not _describe(value, key):
                return False
        else:
            return False
    return True


_SCALARS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size})


def _plan(result: Any, args: tuple[Any, ...]) -> _Plan | None:
    """How to make the result again; None where it cannot be made from sizes alone."""
    container = type(result) if type(result) in (tuple, list) else None
    tensors = list(result) if container is not None else [result]
    if any(type(t).__name__ != "FakeTensor" or t.constant is not None or t.layout is not torch.strided or t.dtype.is_complex for t in tensors):
        return None
    first = args[0] if args and type(args[0]).__name__ == "FakeTensor" else None
    results = [_result(tensor, first) for tensor in tensors]
    own = [tensor.untyped_storage()._cdata for tensor, r in zip(tensors, results, strict=True) if r is not None and r.origin == "new"]
    if len(set(own)) < len(own):  # results that share memory with each other
        return None
    known = tuple(r for r in results if r is not None)
    return (container, known) if len(known) == len(results) else None


def _result(tensor: Any, first: Any) -> _Result | None:
    origin = "new"
    if first is not None and tensor is first:
        origin = "same"
    elif first is not None and tensor.untyped_storage()._cdata == first.untyped_storage()._cdata:
        origin = "view"
    elif tensor.storage_offset() or tensor.untyped_storage().nbytes() != _dense_bytes(tensor):
        return None
    return _Result(tuple(tensor.shape), tuple(tensor.stride()), tensor.storage_offset(), tensor.dtype, origin)


def _dense_bytes(tensor: Any) -> int:
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int((last + 1) * tensor.element_size())


def _make(mode: Any, plan: _Plan, args: tuple[Any, ...]) -> Any:
    container, results = plan
    made = [args[0] if r.origin == "same" else _tensor(mode, r, args) for r in results]
    return made[0] if container is None else container(made)


def _tensor(mode: Any, result: _Result, args: tuple[Any, ...]) -> Any:
    from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

    if result.origin == "new":
        with torch._C._DisableTorchDispatch():
            shape = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
    else:
        storage = args[0].untyped_storage()
        with in_kernel_invocation_manager(mode):
            shape = torch.empty_strided((0,), (1,), dtype=result.dtype, device="meta")
            shape.set_(storage, result.offset, result.shape, result.stride)
    return FakeTensor(mode, shape, _CPU)


_CPU = torch.device("cpu")
