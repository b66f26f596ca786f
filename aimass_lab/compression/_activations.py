"""Moments of what goes into layers and comes out of them, measured on samples in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..fast_path import without_fast_path
from ..preserve import preserved
from ..workload import call_model

if TYPE_CHECKING:
    from .base import Context

Side = Literal["input", "output"]
BATCH_SIZE = 32
NUM_SAMPLES = 256
ENOUGH_ROWS = 4096
"""Rows (tokens, pixels, items) after which a layer's moments are good enough; or four per feature, where that is more."""
_MOST_ROWS = 8192
"""Rows taken from one call, by lot: neighbouring pixels say much the same."""
_UNFOLDED_BYTES = 2**26
_WIDE = 512
"""Features above which products are made in single precision."""


@dataclass
class Moments:
    """First and second moments over the rows x of one layer, in double precision."""

    total: torch.Tensor
    """Sum of x xᵀ: (features, features), on the layer's device."""
    sum: torch.Tensor
    """Sum of x."""
    num_rows: int = 0

    @property
    def second(self) -> torch.Tensor:
        """Mean of x xᵀ."""
        return self.total / max(1, self.num_rows)

    @property
    def mean(self) -> torch.Tensor:
        """Mean of x."""
        return self.sum / max(1, self.num_rows)

    @property
    def covariance(self) -> torch.Tensor:
        """Mean of x xᵀ for x less its mean."""
        return self.second - torch.outer(self.mean, self.mean)

    @property
    def is_enough(self) -> bool:
        """Whether more rows would change little."""
        return self.num_rows >= max(ENOUGH_ROWS, 4 * len(self.total))


def second_moments(
    model: nn.Module, context: Context, sides: Mapping[str, Side], *, num_samples: int = NUM_SAMPLES, batch_size: int = BATCH_SIZE
) -> dict[str, Moments]:
    """Measure second moments at `nn.Linear` and ungrouped `nn.Conv2d` layers; the model is left as it was.

    Stops before `num_samples` when nine layers in ten have seen enough.

    Args:
        model: Run in eval mode.
        context: Gives the samples and is told the progress.
        sides: Layer -> its input (features, or the patches that a convolution reads: channels x kernel), or its output less the bias.
        num_samples: Most samples to run.
        batch_size: Samples per call; with it goes the memory that this takes.

    Returns:
        Layer -> moments; a layer that was never called has none.

    Raises:
        ModelError: the model raised.
    """
    found: dict[str, Moments] = {}
    generator = torch.Generator().manual_seed(context.seed)
    with preserved(model), torch.no_grad(), without_fast_path(), _hooked(model, sides, partial(_add, found, generator)):
        for i, call in enumerate(context.batches(num_samples, batch_size)):
            context.progress(min(1.0, i * batch_size / num_samples), "measuring what the layers see")
            call_model(model, call)
            if sum(moments.is_enough for moments in found.values()) >= 0.9 * len(sides):
                break
    return found


@contextmanager
def _hooked(model: nn.Module, sides: Mapping[str, Side], add: Any) -> Iterator[None]:
    def before(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        add(name, _inputs(layer, args[0] if args else kwargs["input"]))

    def after(name: str, layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        add(name, _outputs(layer, output))

    handles = []
    try:
        for name, side in sides.items():
            layer = model.get_submodule(name)
            if side == "input":
                handles.append(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True))
            else:
                handles.append(layer.register_forward_hook(partial(after, name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(found: dict[str, Moments], generator: torch.Generator, name: str, parts: Iterable[torch.Tensor]) -> None:
    for rows in parts:
        if name not in found:
            empty = torch.zeros(rows.shape[1] + 1, rows.shape[1], dtype=torch.float64, device=rows.device)
            found[name] = Moments(empty[1:], empty[0])
        if len(rows) > _MOST_ROWS:
            rows = rows[torch.randint(len(rows), (_MOST_ROWS,), generator=generator).to(rows.device)]
        # twice the bytes take three times as long on a CPU; sums of calls are in double precision in any case
        wide = rows.float() if rows.device.type == "cpu" and rows.shape[1] > _WIDE and rows.dtype is not torch.float64 else rows.double()
        found[name].total += wide.T @ wide
        found[name].sum += wide.sum(0, dtype=torch.float64)
        found[name].num_rows += len(rows)


def _inputs(layer: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the layer multiplies its weight with, one row per product, in parts that fit into memory."""
    if not isinstance(layer, nn.Conv2d):
        yield x.reshape(-1, x.shape[-1])
        return
    x = x if x.dim() == 4 else x[None]
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    height, width = layer.kernel_size
    per_item = x[0].numel() * x.element_size() * height * width // (layer.stride[0] * layer.stride[1])
    for part in x.split(max(1, _UNFOLDED_BYTES // max(1, per_item))):
        patches = F.unfold(part, (height, width), dilation=layer.dilation, stride=layer.stride)
        yield patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _outputs(layer: nn.Linear | nn.Conv2d, y: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the layer gives, less its bias, one row per product."""
    rows = y.movedim(-3, -1) if isinstance(layer, nn.Conv2d) else y
    rows = rows.reshape(-1, rows.shape[-1])
    yield rows if layer.bias is None else rows - layer.bias
