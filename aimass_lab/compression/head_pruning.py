"""Whole attention heads taken out, the least important first."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..options import Share
from ..preserve import preserved
from ._attention import Attention, find_attention, find_outputs, keep_columns, keep_rows, write_back
from ._importance import Criterion, importance
from ._masks import refuse
from ._structured import Probe, Undo, settle
from .base import TECHNIQUES, Context, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

Layout = Literal["qkv first", "heads first"]
"""Order of the rows of a layer that makes queries, keys and values: all queries first, or all of a head first."""
TOLERANCE = 1e-3
"""Of the largest output: more than rounding in another order of sums, less than one head; 16-bit models have a wider one of their own."""


@dataclass(frozen=True)
class _Removal:
    """Heads to be taken out of one attention module."""

    attention: Attention
    output: str
    """The layer that mixes the heads."""
    heads: tuple[int, ...]
    """Of keys, each with the queries that share it."""
    layout: Layout = "qkv first"
    width: bool = False
    """Whether the module calls the width of all heads by a name that is the model's width elsewhere."""


@TECHNIQUES.register("head_pruning")
@dataclass(frozen=True, kw_only=True)
class HeadPruning(Technique):
    """Take the least important attention heads out: narrower projections, less attention to compute."""

    changes: ClassVar[str] = "attention whose heads can be told apart"
    stage: ClassVar[Stage] = Stage.CHANNELS

    ratio: Share = 0.5
    """Share of each attention's heads that is taken out; at least one head stays."""
    criterion: Criterion = "magnitude"
    """What makes a head important: its weights' size, their effect on the loss (gradient), or their size times what flows into them (activation)."""

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers that make queries, keys and values, and torch's attention modules."""
        from torch import nn

        found = {name for attention in find_attention(model) for name in attention.projections}
        found |= {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
        return tuple(name for name in weight_layers(model) if name in found)

    def why_left(self, name: str, layer: nn.Module) -> str:
        """No part of an attention."""
        return f"this {type(layer).__name__} makes no queries, keys or values of an attention that is recognised"

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Every attention loses its share of heads, whatever makes one important."""
        return dataclasses.replace(self, criterion="magnitude").apply(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Take heads out and compare with the same heads' outputs set to zero."""
        probe = Probe(model, context.call)
        torchs = _write_out(model, context, probe)
        attentions = find_attention(model)
        with preserved(model):
            outputs = find_outputs(model, attentions, probe.call)
        scores = importance(model, context, self.criterion)
        removals = [r for a in attentions if (r := self._removal(model, a, outputs.get(a.name), scores, context)) is not None]
        made = self._remove(model, removals, probe, context)
        for removal in made:
            _tell(removal, torchs, context)
        for name, module in torchs.items():
            if all(removal.attention.name != name for removal in made):
                _put(model, name, module)
        if not made:
            refuse("head_pruning", next(iter(context.left.values()), "no attention is recognised in this model"))
        return model

    def _removal(self, model: nn.Module, attention: Attention, output: str | None, scores: Mapping[str, torch.Tensor], context: Context) -> _Removal | None:
        """The least important heads of one attention, or why there are none."""
        num_removed = min(int(self.ratio * attention.num_key_heads + 0.5), attention.num_key_heads - 1)
        cause = None
        if output is None:
            cause = f"no linear layer is called next that takes all {attention.num_heads} heads"
        elif num_removed == 0:
            cause = f"ratio {self.ratio:g} of {attention.num_key_heads} heads is none"
        elif f"{output}.weight" not in scores:
            cause = f"{output}, which mixes the heads, cannot be scored by {self.criterion}"
        if cause is not None or output is None:
            context.left.update(dict.fromkeys(attention.projections, cause or ""))
            return None
        per_head = scores[f"{output}.weight"].sum(0).view(attention.num_key_heads, -1).sum(1)
        if not attention.fused and attention.values is not None and f"{attention.values}.weight" in scores and self.criterion != "activation":
            per_head = per_head + scores[f"{attention.values}.weight"].sum(1).view(attention.num_key_heads, -1).sum(1)
        heads = tuple(sorted(per_head.argsort(stable=True)[:num_removed].tolist()))
        return _Removal(attention, output, heads)

    def _remove(self, model: nn.Module, removals: Sequence[_Removal], probe: Probe, context: Context) -> list[_Removal]:
        undo = Undo(model)

        def works(chosen: Sequence[_Removal]) -> str | None:
            undo.restore()
            for removal in chosen:
                _mask(model, removal)
            expected = probe.outputs(model)
            undo.restore()
            for removal in chosen:
                _cut(model, removal)
            return probe.failure(model) or _difference(expected, probe.outputs(model))

        known: dict[type, _Removal] = {}
        fitted = []
        for removal in removals:
            kind = type(model.get_submodule(removal.attention.name))
            if kind not in known:
                known[kind] = next((way for way in _ways(removal) if works([way]) is None), removal)
            fitted.append(dataclasses.replace(removal, layout=known[kind].layout, width=known[kind].width))
        made, refused = settle([[removal] for removal in fitted], works)
        for removal, cause in refused:
            context.left.update(dict.fromkeys(removal.attention.projections, cause))
        return made

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Attention is a small part of short sequences; torch's fused encoder is lost."""
        from torch import nn

        found = ["heads make the projections narrower and leave the feed-forward layers, which are most of a transformer, as they were"]
        if any(isinstance(module, nn.TransformerEncoderLayer) for module in model.modules()):
            found.append("torch runs an untouched nn.TransformerEncoderLayer as one fused operation, and one with fewer heads layer by layer")
        return tuple(found)


def _ways(removal: _Removal) -> list[_Removal]:
    layouts: tuple[Layout, ...] = ("qkv first", "heads first") if removal.attention.fused else ("qkv first",)
    return [dataclasses.replace(removal, layout=layout, width=width) for layout in layouts for width in (False, True)]


def _write_out(model: nn.Module, context: Context, probe: Probe) -> dict[str, nn.Module]:
    """Replace torch's attention modules by ones that may lose heads.

    Returns:
        Name -> the module that was replaced.
    """
    from torch import nn

    from ._torch_attention import WrittenOutAttention, why_not

    before = probe.outputs(model)
    replaced: dict[str, nn.Module] = {}
    for name, attention in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]:
        cause = why_not(attention)
        if cause is None:
            replaced[name] = attention
            _put(model, name, WrittenOutAttention(attention))
        else:
            context.left.update({name: cause, f"{name}.out_proj": cause})
    if not replaced:
        return {}
    cause = probe.failure(model) or _difference(before, probe.outputs(model))
    if cause is None:
        return replaced
    for name, module in replaced.items():
        _put(model, name, module)
        context.left.update(dict.fromkeys((name, f"{name}.out_proj"), f"written out, torch's attention does not do the same: {cause}"))
    return {}


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _columns(removal: _Removal, *, kept: bool) -> torch.Tensor:
    """Of the layer that mixes the heads: those that belong to heads that are kept, or to those that are not."""
    import torch

    attention = removal.attention
    columns = torch.arange(attention.total).view(attention.num_key_heads, -1)
    return columns[_heads(removal, kept=kept)].flatten()


def _heads(removal: _Removal, *, kept: bool) -> list[int]:
    return [head for head in range(removal.attention.num_key_heads) if (head not in removal.heads) == kept]


def _mask(model: nn.Module, removal: _Removal) -> None:
    """Set these heads' outputs to zero, where they enter the layer that mixes them: what taking them out has to be equal to."""
    from torch import nn

    layer: Any = model.get_submodule(removal.output)
    weight = layer.weight.detach().clone()
    weight[:, _columns(removal, kept=False).to(weight.device)] = 0
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _cut(model: nn.Module, removal: _Removal) -> None:
    import torch

    attention, kept = removal.attention, _heads(removal, kept=True)
    output: Any = model.get_submodule(removal.output)
    device = output.weight.device
    for layer in map(model.get_submodule, attention.projections):
        assert isinstance(layer, torch.nn.Linear)
        rows = torch.arange(layer.out_features, device=device)
        if not attention.fused:
            rows = rows.view(attention.num_key_heads, -1)[kept]
        elif removal.layout == "qkv first":
            rows = rows.view(3, attention.num_heads, -1)[:, kept]
        else:
            rows = rows.view(attention.num_heads, -1)[kept]
        keep_rows(layer, rows.flatten())
    keep_columns(output, _columns(removal, kept=True).to(device))
    per_key = attention.num_heads // attention.num_key_heads
    new = dataclasses.replace(attention, num_heads=len(kept) * per_key, num_key_heads=len(kept))
    write_back(model.get_submodule(attention.name), attention, new, width=removal.width)


def _difference(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> str | None:
    """Say that outputs differ by more than rounding, or None."""
    import torch

    for before, after in zip(expected, found, strict=True):
        if not before.is_floating_point() or not before.numel():
            continue
        scale = float(before.float().abs().max())
        worst = float((before.float() - after.float()).abs().max())
        if not worst <= max(TOLERANCE, 8 * torch.finfo(before.dtype).eps) * max(scale, 1e-6):
            return f"outputs would differ by {worst:.2g} of {scale:.2g} from those with these heads' outputs set to zero"
    return None


def _tell(removal: _Removal, torchs: Mapping[str, nn.Module], context: Context) -> None:
    attention = removal.attention
    per_key = attention.num_heads // attention.num_key_heads
    kept = (attention.num_key_heads - len(removal.heads)) * per_key
    text = f"{kept} heads instead of {attention.num_heads}"
    names = (attention.name,) if attention.name in torchs else attention.projections
    context.changed.update(dict.fromkeys((*names, removal.output), text))
