"""Stand-ins for tensors: shapes, strides and dtypes without data, and bounds for sizes that only data can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Fakes:
    """One stand-in per tensor, so that tied weights stay tied; all of them as if on the CPU.

    Tensors faked on a GPU that is not there would abort the process.
    """

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._memo: dict[int, tuple[torch.Tensor, Any]] = {}

    def of(self, tensor: torch.Tensor) -> Any:
        """The stand-in of `tensor`."""
        if id(tensor) not in self._memo:  # the tensor is held too, so that its id stays its own
            self._memo[id(tensor)] = (tensor, self._make(tensor))
        return self._memo[id(tensor)][1]

    def _make(self, tensor: torch.Tensor) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor

        if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
            return self.mode.from_tensor(tensor)
        shape = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.mode, shape, torch.device("cpu"))


def bounded(operator: str, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator whose size depends on data, with that size at its upper bound; None without a rule for it."""
    rule = _BOUNDS.get(operator)
    return None if rule is None else rule(func, *args, **kwargs)


def grouped_product(a: torch.Tensor, b: torch.Tensor, offsets: torch.Tensor | None = None, bias: Any = None, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The result of `_grouped_mm` without data, of every dtype; torch's own rule knows bfloat16 only."""
    sizes = {(2, 3): (a.shape[0], b.shape[-1]), (3, 2): (a.shape[1], b.shape[-1])}
    groups = len(offsets) if offsets is not None and a.dim() == b.dim() == 2 else len(a)
    return a.new_empty(sizes.get((a.dim(), b.dim()), (groups, a.shape[-2], b.shape[-1])), dtype=dtype or a.dtype)


def _indices(x: torch.Tensor, *size: int) -> torch.Tensor:
    return x.new_empty(size, dtype=torch.int64)


def _nonzero(func: Any, x: torch.Tensor) -> torch.Tensor:
    return _indices(x, x.numel(), x.dim())


def _masked_select(func: Any, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel())


def _index(func: Any, x: torch.Tensor, indices: Any, *rest: Any) -> Any:
    # A mask stands for the positions it selects: at most all of them.
    plain: list[Any] = []
    for index in indices:
        is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        plain += [_indices(index, index.numel()) for _ in range(index.dim())] if is_mask else [index]
    return func(x, plain, *rest)


def _unique(func: Any, x: torch.Tensor, _sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> tuple[torch.Tensor, ...]:
    return x.new_empty(x.numel()), _indices(x, *(x.shape if return_inverse else (0,))), _indices(x, x.numel() if return_counts else 0)


def _unique_consecutive(
    func: Any, x: torch.Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> tuple[torch.Tensor, ...]:
    return _unique(func, x, True, return_inverse, return_counts) if dim is None else _unique_dim(func, x, dim, True, return_inverse, return_counts)


def _unique_dim(
    func: Any, x: torch.Tensor, dim: int, _sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[torch.Tensor, ...]:
    length = int(x.shape[dim])
    return torch.empty_like(x), _indices(x, length if return_inverse else 0), _indices(x, length if return_counts else 0)


def _unique_dim_consecutive(func: Any, x: torch.Tensor, dim: int, return_inverse: bool = False, return_counts: bool = False) -> tuple[torch.Tensor, ...]:
    return _unique_dim(func, x, dim, True, return_inverse, return_counts)


def _nms(func: Any, boxes: torch.Tensor, *rest: Any) -> torch.Tensor:
    return _indices(boxes, len(boxes))


_BOUNDS: dict[str, Callable[..., Any]] = {
    "aten::nonzero": _nonzero,
    "aten::masked_select": _masked_select,
    "aten::index": _index,
    "aten::_unique2": _unique,
    "aten::unique_consecutive": _unique_consecutive,
    "aten::unique_dim": _unique_dim,
    "aten::unique_dim_consecutive": _unique_dim_consecutive,
    "torchvision::nms": _nms,
}
