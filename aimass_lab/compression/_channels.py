"""Which channels belong together: what one layer gives, others take, normalise and add up, and all of them lose it or none.

The groups are found by torch-pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900); which channels go is decided here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import AimassError, UnsupportedError
from ..outputs import output_tensors
from ..preserve import preserved
from ..quiet import import_quietly
from ..workload import Call, call_model
from ._attention import Attention, heads_in_order, keep_columns, keep_rows, write_back
from ._importance import trainable
from .base import weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn


FOLLOWING = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What torch-pruning raises where it cannot follow channels: whatever its index arithmetic runs into."""


@dataclass(frozen=True)
class Group:
    """Channels of one width of the network, wherever it appears."""

    root: str
    """Name of the layer whose outputs the channels are; of an attention, where they are the width of its heads."""
    width: int
    """Channels."""
    parts: int
    """Equal parts of the width that have to stay equal: groups of a convolution, heads of an attention."""
    layers: tuple[str, ...]
    """Names of the layers whose sizes depend on it."""
    score: torch.Tensor
    """Of the channels of one part, summed over the parts: ``[width / parts]``."""
    attention: Attention | None = None
    """Whose heads it is the width of."""
    heads: bool = False
    """Whether heads are made from it or are it, so that it has to shrink with the others of its kind."""

    @property
    def length(self) -> int:
        """Channels that can be chosen apart."""
        return self.width // self.parts


@dataclass(frozen=True)
class Cut:
    """Channels to be removed of one group."""

    group: Group
    channels: tuple[int, ...]
    """Of every part."""


class ChannelGraph:
    """The groups of channels of a model, and the way to remove some.

    Args:
        model: Run once, with gradients: they are what the graph is read from.
        call: Example inputs.
        attentions: Attention modules and the layer that mixes the heads of each.
    """

    def __init__(self, model: nn.Module, call: Call, attentions: Mapping[Attention, str]) -> None:
        self._model, self._call, self._attentions = model, call, attentions
        self._projections = {name: attention for attention in attentions for name in attention.projections}
        self._trace()

    def _trace(self) -> None:
        tp = import_quietly("torch_pruning")
        ends: list[Any] = []

        def outputs(found: Any) -> list[torch.Tensor]:
            tensors = [tensor for _, tensor in output_tensors(found) if tensor.grad_fn is not None]
            ends.extend(tensor.grad_fn for tensor in tensors)
            return tensors

        self._names = {module: name for name, module in self._model.named_modules()}
        try:
            with trainable(self._model):
                self._graph = tp.DependencyGraph().build_dependency(
                    self._model, example_inputs=(), forward_fn=lambda model, _: call_model(model, self._call), output_transform=outputs,
                    unwrapped_parameters=_loose_parameters(self._model, tp), verbose=False,
                )  # fmt: skip
        except FOLLOWING as error:
            if isinstance(error, AimassError):
                raise
            unknown = {name: layer for name, layer in weight_layers(self._model).items() if _is_unknown(layer, tp)}
            cause = f"the channels cannot be followed through the model ({type(error).__name__}: {error})"
            help = "layers of a kind of its own are the usual reason"
            if unknown:  # what it raises is then about numbers of channels that it had no way to tell
                name, layer = next(iter(unknown.items()))
                cause = f"{name!r} is a {type(layer).__name__}, and how its weight stands to its channels is not known"
                help = f"layers of such kinds: {len(unknown)}; written as nn.Linear or as convolutions they could be followed"
            raise UnsupportedError(f"channel_pruning is not possible here: {cause}", help=help) from error
        self._ends = {node for node in self._graph.module2node.values() if any(node.grad_fn is end for end in ends)}

    def groups(self, scores: Mapping[str, torch.Tensor]) -> tuple[list[Group], dict[str, str]]:
        """All groups that channels can be removed from, and for layers of the others why not.

        Args:
            scores: Name of a parameter -> score of every element.
        """
        from torch import nn

        groups, left = [], {}
        visited: set[Any] = set()
        for attention, output in self._attentions.items():
            visited |= {self._model.get_submodule(name) for name in attention.projections}
            cause = self._why_not_heads(attention, output)
            if cause is None:
                groups.append(_heads_group(attention, output, scores))
            else:
                left.update(dict.fromkeys((*attention.projections, output), cause))
        for module in list(self._graph.module2node):
            if module in visited or not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)):
                continue
            try:
                raw = self._raw(module)
            except FOLLOWING as error:
                left[self._names[module]] = f"its channels cannot be followed through the model ({type(error).__name__}: {error})"
                continue
            visited |= {dep.target.module for dep, _ in raw if self._graph.is_out_channel_pruning_fn(dep.handler)}
            cause = self._why_not(raw)
            if cause is None:
                groups.append(self._group(raw, scores))
            else:
                left.update(dict.fromkeys(self._layers(raw), cause))
        return groups, left

    def remove(self, cuts: Sequence[Cut]) -> None:
        """Remove channels, in the model as it was traced."""
        for cut in cuts:
            group = cut.group
            if group.attention is not None:
                _narrow_heads(self._model, group.attention, self._attentions[group.attention], cut.channels)
                continue
            module = self._model.get_submodule(group.root)
            channels = [part * group.length + channel for part in range(group.parts) for channel in cut.channels]
            pruner = self._graph.get_pruner_of_module(module)
            self._graph.get_pruning_group(module, pruner.prune_out_channels, channels).prune(record_history=False)

    def _raw(self, module: nn.Module, *, outputs: bool = True) -> Any:
        """torch-pruning's group of all outputs, or inputs, of a layer."""
        pruner = self._graph.get_pruner_of_module(module)
        width = self._graph.get_out_channels(module) if outputs else self._graph.get_in_channels(module)
        return self._graph.get_pruning_group(module, pruner.prune_out_channels if outputs else pruner.prune_in_channels, list(range(width)))

    def _layers(self, raw: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._names[dep.target.module] for dep, _ in raw if dep.target.module in self._names))

    def _why_not(self, raw: Any) -> str | None:
        from torch import nn

        width = len(raw[0].idxs)
        for dep, channels in raw:
            module = dep.target.module
            if dep.target in self._ends and (self._graph.is_out_channel_pruning_fn(dep.handler) or not self._graph.is_in_channel_pruning_fn(dep.handler)):
                return "its channels are an output of the model, whose shape stays"
            if isinstance(module, nn.RNNBase):
                return f"its channels are tied to the states of a {type(module).__name__}, which are not cut"
            if isinstance(module, nn.Parameter) and module.shape[dep.target.pruning_dim] != width:
                return f"its channels are tied to the parameter {self._graph._param_to_name[module]} of another size, {list(module.shape)}"
            if isinstance(module, nn.modules.conv._ConvNd) and module.transposed and module.groups > 1:
                return "its channels are tied to a transposed convolution with groups"
            if self._names.get(module) in self._projections and self._graph.is_out_channel_pruning_fn(dep.handler):
                return "its channels are tied to those inside the heads of an attention"
            size = self._size(dep)
            if size is not None and max(channels) >= size:
                return f"its channels cannot be followed to {self._names.get(module, 'an operation')}, which has {size}"
        return None

    def _size(self, dep: Any) -> int | None:
        """Channels that an operation has where the dependency arrives."""
        if dep.target.module not in self._names:
            return None
        outputs = self._graph.is_out_channel_pruning_fn(dep.handler)
        found: int | None = self._graph.get_out_channels(dep.target.module) if outputs else self._graph.get_in_channels(dep.target.module)
        return found

    def _why_not_heads(self, attention: Attention, output: str) -> str | None:
        if any("rotary" in type(m).__name__.lower() or "inv_freq" in m._buffers for m in self._model.modules()):
            return "the model turns positions into the channels of its heads (rotary embedding), which can therefore not be fewer"
        inside = {*attention.projections, output}
        try:
            through = [name for name in self._layers(self._raw(self._model.get_submodule(output), outputs=False)) if name not in inside]
        except FOLLOWING as error:
            return f"the heads' channels cannot be followed through the model ({type(error).__name__}: {error})"
        if through:
            return f"the heads' channels go through {through[0]} as well"
        with preserved(self._model):
            told = heads_in_order(self._model, attention, output, self._call)
        return None if told else "which of its outputs make which head cannot be told"

    def _group(self, raw: Any, scores: Mapping[str, torch.Tensor]) -> Group:
        from torch import nn

        width, parts, heads = len(raw[0].idxs), 1, False
        for dep, _ in raw:
            module = dep.target.module
            if isinstance(module, nn.modules.conv._ConvNd) and not (module.groups == module.out_channels > 1):
                parts = math.lcm(parts, module.groups)
            if isinstance(module, nn.GroupNorm):
                parts = math.lcm(parts, module.num_groups)
            attention = self._projections.get(self._names.get(module, ""))
            num_heads = module.num_heads if isinstance(module, nn.MultiheadAttention) else attention.num_heads if attention else 0
            # models take the width of a head to be their own width over the number of heads: both shrink by the same share
            if num_heads and width % math.lcm(parts, num_heads) == 0:
                parts, heads = math.lcm(parts, num_heads), True
        score = self._score(raw, scores, width).view(parts, -1).sum(0)
        return Group(root=self._names[raw[0].dep.target.module], width=width, parts=parts, layers=self._layers(raw), score=score, heads=heads)

    def _score(self, raw: Any, scores: Mapping[str, torch.Tensor], width: int) -> torch.Tensor:
        """Sum over the layers of what each channel's weights matter in each."""
        import torch

        names = {id(p): name for name, p in self._model.named_parameters()}
        total = torch.zeros(width)
        for item in raw:
            weight = getattr(item.dep.target.module, "weight", None)
            if weight is None or names.get(id(weight)) not in scores or any(root is None for root in item.root_idxs):
                continue
            per_channel = _per_channel(item.dep.target.module, scores[names[id(weight)]].float(), self._graph.is_in_channel_pruning_fn(item.dep.handler))
            if per_channel is not None:
                total.index_add_(0, torch.tensor(item.root_idxs), per_channel[torch.tensor(item.idxs)].cpu())
        return total


def _loose_parameters(model: nn.Module, tp: Any) -> list[Any]:
    """Parameters of no layer that torch-pruning knows, and the axis that counts channels: the second of images, the last of all else."""
    known = {id(p) for m in model.modules() if not _is_unknown(m, tp) for p in m.parameters()}
    loose = [p for p in model.parameters() if id(p) not in known and p.dim() and max(p.shape) > 1]
    return [tp._helpers.UnwrappedParameters(parameters=p, pruning_dim=1 if p.dim() == 4 else p.dim() - 1) for p in loose]


def _is_unknown(module: nn.Module, tp: Any) -> bool:
    """Whether torch-pruning takes the module for one that gives as many channels as it takes, as it does where it has no rule."""
    return bool(tp.ops.module2type(module) == tp.ops.OPTYPE.ELEMENTWISE)


def _per_channel(module: nn.Module, score: torch.Tensor, inputs: bool) -> torch.Tensor | None:
    """Scores of a layer's input or output channels, from those of its weight; None for a layer whose weight is no matrix of them."""
    from torch import nn

    if isinstance(module, nn.Embedding):
        return score.sum(0)
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.out_channels > 1:
            return score.flatten(1).sum(1)
        if module.transposed:
            score = score.transpose(0, 1)
        if inputs:  # [out, in / groups, ...]: the inputs of every group of outputs, one after the other
            return score.unflatten(0, (module.groups, -1)).flatten(3).sum((1, 3) if score.dim() > 2 else 1).flatten()
        return score.flatten(1).sum(1)
    if isinstance(module, nn.Linear):
        return score.sum(0 if inputs else 1)
    return None


def _heads_group(attention: Attention, output: str, scores: Mapping[str, torch.Tensor]) -> Group:
    """Channels inside the heads: the same positions of every head."""
    import torch

    score = torch.zeros(attention.head_dim)
    for name in (*attention.projections, output):
        found = scores.get(f"{name}.weight")
        if found is None:
            continue
        if name == output:
            score += found.float().sum(0).view(-1, attention.head_dim).sum(0).cpu()
        else:
            score += found.float().sum(1).view(-1, attention.head_dim).sum(0).cpu()
    return Group(
        root=attention.name, width=attention.total, parts=attention.num_heads, layers=(*attention.projections, output), score=score,
        attention=attention, heads=True,
    )  # fmt: skip


def _narrow_heads(model: nn.Module, attention: Attention, output: str, channels: Sequence[int]) -> None:
    """Remove the same positions from every head, in either layout of a layer that makes all three: heads are its innermost axis."""
    import torch

    kept = [channel for channel in range(attention.head_dim) if channel not in set(channels)]
    for name in (*attention.projections, output):
        layer: Any = model.get_submodule(name)
        size = layer.in_features if name == output else layer.out_features
        positions = torch.arange(size, device=layer.weight.device).view(-1, attention.head_dim)[:, kept].flatten()
        (keep_columns if name == output else keep_rows)(layer, positions)
    write_back(model.get_submodule(attention.name), attention, dataclasses.replace(attention, head_dim=len(kept)))
