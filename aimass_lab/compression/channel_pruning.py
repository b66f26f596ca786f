"""Whole channels taken out: the same network, narrower, with smaller weights and less to compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from ..options import Positive, Share
from ..preserve import preserved
from ._attention import find_attention, find_outputs
from ._channels import FOLLOWING, ChannelGraph, Cut, Group
from ._importance import Criterion, importance
from ._masks import Scope, refuse
from ._structured import Probe, Undo, describe_change, layer_sizes, settle, tie_again, tied_parameters
from .base import TECHNIQUES, Context, Stage, Technique, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._attention import Attention

GLOBAL_LIMIT = 0.9
"""Share of its channels that one width may lose at most when widths compete: a layer that is left with next to none stops the network."""
ALIGNMENT = 8
"""Channels that the kernels of processors and GPUs take at once, at least."""


@TECHNIQUES.register("channel_pruning")
@dataclass(frozen=True, kw_only=True)
class ChannelPruning(Technique):
    """Take the least important channels out of convolutions and linear layers; train a few epochs after it (recover)."""

    requires: ClassVar[tuple[str, ...]] = ("torch-pruning",)
    changes: ClassVar[str] = "convolutions, linear layers, embeddings and torch's attention"
    stage: ClassVar[Stage] = Stage.CHANNELS

    ratio: Share = 0.5
    """Share of the channels that is taken out; weights and arithmetic fall by about its square."""
    scope: Scope = "local"
    """The same share of each width (local), or the least important channels wherever they are (global); widths that heads are made from keep to the share."""
    criterion: Criterion = "magnitude"
    """What makes a channel important: its weights' size, their effect on the loss (gradient), or their size times what flows into them (activation)."""
    round_to: Positive | None = None
    """Keep a multiple of so many channels, rounded up; 8 or 16 is what kernels like; none: as many as the share says."""

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers that have channels; which of them can lose some shows when the model is traced."""
        from torch import nn

        kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.MultiheadAttention)
        return tuple(name for name, layer in weight_layers(model).items() if isinstance(layer, kinds))

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """What it makes of it; where every width loses its share, whatever makes a channel important, by what is quickest to know."""
        return (replace(self, criterion="magnitude") if self.scope == "local" else self).apply(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Find which channels belong together, take the least important out, and run what is left."""
        probe, undo, before, tied = Probe(model, context.call), Undo(model), layer_sizes(model), tied_parameters(model)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        with preserved(model):
            outputs = find_outputs(model, found := find_attention(model), probe.call)
        attentions = {attention: outputs[attention.name] for attention in found if attention.name in outputs}
        scores = importance(model, context, self.criterion)
        left = self._remove(model, probe, undo, attentions, scores)
        tie_again(model, tied)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        after = layer_sizes(model)
        for name, sizes in before.items():
            change = describe_change(sizes, after[name])
            if change is None:
                context.left[name] = left.get(name, "it reads and writes widths that stay")
            else:
                context.changed[name] = change
        return model

    def _remove(self, model: nn.Module, probe: Probe, undo: Undo, attentions: Mapping[Attention, str], scores: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Take channels out.

        Returns:
            Layer -> why some of its channels stay.

        Raises:
            UnsupportedError: all of them have to.
        """
        graph = ChannelGraph(model, probe.call, attentions)
        groups, left = graph.groups(scores)
        cuts = self._cuts(groups, left)
        traced = [graph]

        def works(chosen: Sequence[Cut]) -> str | None:
            if not traced:
                undo.restore()
                traced.append(ChannelGraph(model, probe.call, attentions))
            try:
                traced.pop().remove(chosen)
            except FOLLOWING as error:
                return f"its channels cannot be followed through the model ({type(error).__name__}: {error})"
            return probe.failure(model)

        together = [cut for cut in cuts if cut.group.heads]
        made, refused = settle([*([together] if together else []), *([cut] for cut in cuts if not cut.group.heads)], works)
        for cut, cause in refused:
            left.update({name: cause for name in cut.group.layers if name not in left})
        if not made:
            refuse("channel_pruning", next(iter(left.values()), "the model has no channels that could be taken out"))
        return left

    def _cuts(self, groups: Sequence[Group], left: dict[str, str]) -> list[Cut]:
        """Which channels of each group go; for groups that lose none, why not, into `left`."""
        kept = self._kept_globally([group for group in groups if not group.heads]) if self.scope == "global" else {}
        cuts = []
        for group in groups:
            number = kept.get(group.root) if group.root in kept and not group.heads else None
            number = self._kept(group) if number is None else number
            step = self.round_to // math.gcd(self.round_to, group.parts) if self.round_to else 1
            number = min(group.length, math.ceil(number / step) * step)
            if number == group.length:
                cause = "it is one channel wide" if group.length == 1 else f"ratio {self.ratio:g} of its {group.width} channels, rounded, is none"
                left.update({name: cause for name in group.layers if name not in left})
                continue
            cuts.append(Cut(group, tuple(sorted(group.score.argsort(stable=True)[: group.length - number].tolist()))))
        return cuts

    def _kept(self, group: Group) -> int:
        """Channels of each part that stay, by the ratio.

        Raises:
            UnsupportedError: none would.
        """
        kept = int(group.length * (1 - self.ratio) + 0.5)
        if kept == 0 and group.length > 1:
            each = f" in each of {group.parts} parts" if group.parts > 1 else ""
            refuse("channel_pruning", f"ratio {self.ratio:g} of the {group.length} channels{each} of {group.root} leaves none", help="choose a smaller ratio")
        return max(kept, 1)

    def _kept_globally(self, groups: Sequence[Group]) -> dict[str, int]:
        """Channels of each part that stay when all widths compete.

        Scores are compared by what they are worth beside the mean of their own width: sums over wider layers are larger for no other reason.
        """
        import torch

        if not groups:
            return {}
        worth = [g.score / g.score.mean().clamp_min(torch.finfo(g.score.dtype).tiny) for g in groups]
        order = torch.cat(worth).argsort(stable=True).tolist()
        owner = [number for number, group in enumerate(groups) for _ in range(group.length)]
        kept, to_remove = [group.length for group in groups], self.ratio * sum(group.width for group in groups)
        for position in order:
            group = groups[owner[position]]
            if to_remove < group.parts / 2:
                break
            if kept[owner[position]] > max(1, math.ceil(group.length * (1 - GLOBAL_LIMIT))):
                kept[owner[position]] -= 1
                to_remove -= group.parts
        return {group.root: number for group, number in zip(groups, kept, strict=True)}

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Widths that kernels fill up with padding."""
        from torch import nn

        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))]
        widths = [layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers]
        odd = sum(round(width * (1 - self.ratio)) % ALIGNMENT != 0 for width in widths)
        if odd and (self.round_to or 1) % ALIGNMENT:
            filled = f"may be left with a width that is no multiple of {ALIGNMENT}, which kernels fill up"
            return (f"{odd} of {len(widths)} layers {filled}: round_to={ALIGNMENT} avoids it",)
        return ()
