"""N of every M consecutive weights kept, the pattern that sparse tensor cores can skip over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec

from ..errors import InputError
from ..options import Positive
from ..records import Note
from ._importance import Criterion, importance
from ._masks import ZeroingTechnique, refuse, refuse_unscored, set_zeros
from .base import TECHNIQUES, Context, Form, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


@TECHNIQUES.register("n_m_pruning")
@dataclass(frozen=True, kw_only=True)
class NMPruning(ZeroingTechnique):
    """Keep n of every m consecutive inputs of each output; 2 of 4 is what sparse tensor cores run faster."""

    changes: ClassVar[str] = "linear layers and convolutions whose number of inputs is a multiple of m"
    takes: ClassVar[frozenset[Form]] = frozenset({"weights", "cast"})

    n: Positive = 2
    """Weights that are kept of every m."""
    m: Annotated[int, msgspec.Meta(ge=2)] = 4
    """Consecutive inputs of which n are kept."""
    criterion: Criterion = "magnitude"
    """What makes a weight important: its size, its effect on the loss (gradient), or its size times what flows into it (activation); on your samples."""
    sparse_kernels: bool = False
    """Pack linear layers for the sparse tensor cores of a GPU (compute capability 8.0, 16-bit weights, 2 of 4); they cannot be trained after that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.n < self.m:
            raise InputError(f"n_m_pruning cannot keep {self.n} of every {self.m} weights", help="n is at least 1 and less than m: n=2, m=4")
        if self.sparse_kernels:
            if (self.n, self.m) != (2, 4):
                raise InputError(f"sparse_kernels of n_m_pruning is for n=2, m=4, not for {self.n} of {self.m}", help="leave sparse_kernels out")
            # packed weights are a kind of tensor of their own; of the instance, because without the option they stay plain
            object.__setattr__(self, "gives", "quantized")

    def unavailable(self, context: Context) -> str | None:
        """What sparse kernels lack here."""
        return super().unavailable(context) or (_no_sparse_kernels(context) if self.sparse_kernels else None)

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Linear layers and convolutions that have whole groups of m inputs."""
        return tuple(name for name, layer in weight_layers(model).items() if self._why_left(layer) is None)

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Of another kind, or no whole groups."""
        return self._why_left(layer) or super().why_left(name, layer)

    def _why_left(self, layer: nn.Module) -> str | None:
        from torch import nn

        if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
            size, option = layer.in_channels // layer.groups, "inputs of an output channel,"
        elif isinstance(layer, nn.Linear):
            size, option = layer.in_features, "in_features"
        else:
            return f"a {type(layer).__name__}: no sparse kernel reads this kind of layer"
        return f"{option} {size} is not a multiple of {self.m}" if size % self.m else None

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Zero the least important m - n of every m inputs."""
        scores = importance(model, context, self.criterion)
        zeros = {}
        for name in self.eligible(model):
            if f"{name}.weight" in scores:
                zeros[f"{name}.weight"] = self._zeros(scores[f"{name}.weight"])
            else:
                context.left[name] = "it shares its weight with a layer before, or was not called"
        if not zeros:
            refuse_unscored("n_m_pruning", self.eligible(model), context)
        set_zeros(model, zeros, context)
        for name in context.changed:
            context.changed[name] = f"{self.n} of every {self.m} inputs kept; {context.changed[name]}"
        if self.sparse_kernels:
            self._pack(model, context)
        return model

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """The same shapes, where no sparse kernels run on them."""
        return None if self.sparse_kernels else model

    def _zeros(self, score: torch.Tensor) -> torch.Tensor:
        """True where a weight is among the m - n least important of its m; inputs are the second axis."""
        import torch

        groups = score.movedim(1, -1).unflatten(-1, (-1, self.m))
        least = groups.argsort(dim=-1, stable=True)[..., : self.m - self.n]
        zeros = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, least, True)
        return zeros.flatten(-2).movedim(-1, 1)

    def _pack(self, model: nn.Module, context: Context) -> None:
        """Give linear layers weights that the sparse kernels read."""
        import torch
        from torch import nn

        num_packed, dense = 0, {}
        for name in context.changed:
            layer = model.get_submodule(name)
            if not isinstance(layer, nn.Linear):
                dense[name] = "the sparse kernels are for linear layers"
                continue
            try:
                packed = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            except RuntimeError as error:  # each back end has sizes of its own that it cannot pack
                dense[name] = f"its weight cannot be packed: {(str(error).splitlines() or [''])[0]}"
                continue
            layer.weight = nn.Parameter(packed, requires_grad=False)
            num_packed += 1
        if not num_packed:
            refuse("n_m_pruning(sparse_kernels=true)", next(iter(dense.values()), "no linear layer was pruned"))
        for name in context.changed:
            context.changed[name] += f"; dense: {dense[name]}" if name in dense else "; packed for sparse tensor cores"
        context.notes.append(Note(code="sparse:packed", text=f"{num_packed} layers run on the sparse tensor cores"))

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Without its kernels a pattern costs what other numbers cost; with them, small products gain nothing."""
        if not self.sparse_kernels:
            return super().causes(model, batch_size, device)
        return ("sparse tensor cores gain on large products: few rows (a small batch) or narrow layers take as long to start as to compute",)


def _no_sparse_kernels(context: Context) -> str | None:
    import torch

    if context.device.type != "cuda":
        return f"sparse_kernels=true needs a GPU with sparse tensor cores, and the model is on {context.device}"
    major, minor = torch.cuda.get_device_capability(context.device)
    if (major, minor) < (8, 0):
        return f"sparse_kernels=true needs compute capability 8.0, and {torch.cuda.get_device_name(context.device)} has {major}.{minor}"
    dtypes = {p.dtype for p in context.original.parameters() if p.dim() == 2}
    if not dtypes & {torch.float16, torch.bfloat16}:
        found = ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes)) or "none"
        return f"sparse_kernels=true needs float16 or bfloat16 weights, and those of the linear layers are {found}: load the model in 16 bits"
    return None
