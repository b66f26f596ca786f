"""Whole blocks left out: the same network, less deep."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..options import Positive, Share
from ..preserve import preserved
from ..records import Note
from ._blocks import Block, containers, drop, find_blocks
from ._importance import BATCH_SIZE, NUM_SAMPLES, importance
from ._masks import refuse
from ._structured import Probe, Undo, settle
from .base import TECHNIQUES, Context, Stage, Technique, weight_layers

if TYPE_CHECKING:
    from torch import nn

Order = Literal["similarity", "gradient", "last", "first", "alternate"]


@TECHNIQUES.register("layer_dropping")
@dataclass(frozen=True, kw_only=True)
class LayerDropping(Technique):
    """Leave the least important blocks out; time falls with the depth."""

    changes: ClassVar[str] = "blocks in an nn.ModuleList or nn.Sequential that give a tensor of the shape they take"
    stage: ClassVar[Stage] = Stage.ARCHITECTURE

    ratio: Share = 0.5
    """Share of the blocks that is left out, where no count is given."""
    count: Positive | None = None
    """How many blocks are left out."""
    criterion: Order = "similarity"
    """Which blocks: those whose outputs are most like their inputs on your samples, those of least effect on the loss, the last, the first, every other one."""

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Layers in blocks of lists; whether a block can be left out shows when it runs."""
        inside = [f"{name}.{key}." if name else f"{key}." for name, blocks in containers(model).items() for key, _ in blocks]
        return tuple(name for name in weight_layers(model) if name.startswith(tuple(inside)))

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Outside of any list of blocks."""
        return "it is in no block of an nn.ModuleList or nn.Sequential that could be left out"

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """What it makes of it: which blocks go is found in a few calls, and blocks may differ in size."""
        return self.apply(model, context)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Leave blocks out and run what is left."""
        with preserved(model):
            blocks, others = find_blocks(model, context.batches(NUM_SAMPLES, BATCH_SIZE))
        ranked = self._ranked(model, blocks, context)
        chosen = self._chosen(model, ranked, others)
        layers = list(weight_layers(model))
        refused = self._drop(model, chosen, context)
        dropped = [block for block in chosen if block.name not in refused]
        if not dropped:
            refuse("layer_dropping", f"without {next(iter(refused))}, {next(iter(refused.values()))}")
        for block in blocks:
            inside = [name for name in layers if name.startswith(f"{block.name}.")]
            if block in dropped:
                context.changed.update(dict.fromkeys(inside, f"left out with its block {block.name}"))
            else:
                context.left.update(dict.fromkeys(inside, refused.get(block.name, f"its block {block.name} stays: {self._of(block)}")))
        for other, cause in others.items():
            for name in layers:
                if name.startswith(f"{other}.") and name not in context.changed:
                    context.left.setdefault(name, cause)
        names = ", ".join(block.name for block in dropped)
        context.notes.append(Note(code="layer_dropping:blocks", text=f"{len(dropped)} of {len(blocks)} blocks are left out: {names}"))
        return model

    def _of(self, block: Block) -> str:
        return f"similarity {block.similarity:.3f} of output and input" if self.criterion == "similarity" else f"criterion {self.criterion}"

    def _ranked(self, model: nn.Module, blocks: Sequence[Block], context: Context) -> list[Block]:
        """Blocks in the order in which they would be left out."""
        if self.criterion == "similarity":
            return sorted(blocks, key=lambda block: -block.similarity)
        if self.criterion == "gradient":
            scores = {name: float(score.sum()) for name, score in importance(model, context, "gradient").items()}
            return sorted(blocks, key=lambda block: sum(value for name, value in scores.items() if name.startswith(f"{block.name}.")))
        if self.criterion == "alternate":
            return [*blocks[1::2], *blocks[::2]]
        return list(blocks) if self.criterion == "first" else list(blocks)[::-1]

    def _chosen(self, model: nn.Module, ranked: Sequence[Block], others: dict[str, str]) -> list[Block]:
        """As many as asked for, so that no list is left empty."""
        if not ranked:
            example = next((f": {name}, for example: {cause}" for name, cause in others.items()), "")
            refuse("layer_dropping", f"the model has no block that could be left out{example}")
        wanted = self.count if self.count is not None else int(self.ratio * len(ranked) + 0.5)
        if wanted == 0:
            refuse("layer_dropping", f"ratio {self.ratio:g} of {len(ranked)} blocks is none", help="give a count, or a larger ratio")
        sizes = Counter({name: len(list(model.get_submodule(name).children())) for name in containers(model)})
        chosen: list[Block] = []
        for block in ranked:
            if len(chosen) < wanted and sizes[block.container] > 1:
                sizes[block.container] -= 1
                chosen.append(block)
        if len(chosen) < wanted:
            refuse("layer_dropping", f"{wanted} of {len(ranked)} blocks would leave a list of blocks empty", help=f"leave out {len(chosen)} at most")
        return chosen

    def _drop(self, model: nn.Module, chosen: Sequence[Block], context: Context) -> dict[str, str]:
        """Leave blocks out.

        Returns:
            Name of a block that cannot be left out -> why.
        """
        probe, undo = Probe(model, context.call), Undo(model)
        configs = {id(c): (c, copy.deepcopy(vars(c))) for m in model.modules() if (c := getattr(m, "config", None)) is not None and hasattr(c, "__dict__")}

        def works(blocks: Sequence[Block]) -> str | None:
            undo.restore()
            _restore_configs(configs.values())
            drop(model, blocks)
            return probe.failure(model)

        _, refused = settle([[block] for block in chosen], works)
        return {block.name: cause for block, cause in refused}


def _restore_configs(kept: Any) -> None:
    for config, attributes in kept:
        vars(config).clear()
        vars(config).update(copy.deepcopy(attributes))
