"""Linear and convolution layers as products of two thinner ones."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from ..errors import InputError, UnsupportedError
from ..options import Positive, Share
from ..records import Note
from ..units import format_share
from .base import TECHNIQUES, Context, Stage, Technique, linear_layers, weight_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._activations import Moments
    from ._factors import Directions
    from ._ranks import Spectrum

DEFAULT_RATIO = 0.5
ROUNDS = 3
"""Times that sensitivities are measured, each at the ranks that the last ones led to."""


@TECHNIQUES.register("low_rank")
@dataclass(frozen=True, kw_only=True)
class LowRank(Technique):
    """Replace linear layers and convolutions by two thinner ones each: fewer parameters and fewer operations."""

    ratio: Share | None = None
    """Share of their parameters that the layers keep together; a half if neither this nor energy is given."""
    energy: Share | None = None
    """Share of each layer's output energy (squared norm) that is kept, in place of a ratio."""
    ranks: Literal["uniform", "energy", "sensitivity"] = "energy"
    """How a ratio is spread: the same share for every layer; by what each layer's own output loses; or by what the model's outputs lose, which is
    measured layer by layer and takes a while."""
    activation_aware: bool = True
    """Keep what the samples show the layers to give, and not what their weights alone would suggest."""
    num_samples: Positive = 256
    """Most samples that are run for that."""
    round_to: Positive = 1
    """Ranks are multiples of this, as some kernels and formats like them: 8, 16 or 32. Layers too thin for one take any rank."""
    min_share: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1
    """Layers with less than this share of the weights of a middling layer are left: a first convolution, a classifier. They save next to nothing, and
    all outputs hang on them."""

    stage: ClassVar[Stage] = Stage.RANK
    changes: ClassVar[str] = "linear layers and ungrouped 2-d convolutions (nn.Linear, nn.Conv2d)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and self.energy is not None:
            raise InputError("low_rank was given both a ratio and an energy", help="give one: ratio says how small, energy how exact")
        if self.energy is not None and self.ranks != "energy":
            raise InputError(
                f"ranks={self.ranks} of low_rank goes with a ratio, and an energy was given", help="an energy fixes the rank of each layer by itself"
            )

    def reasons(self, model: nn.Module) -> dict[str, str]:
        """Layer with weights -> why no product can stand in its place, for those where none can."""
        from ._ties import tied_layers

        layers, linear, ties = weight_layers(model), linear_layers(model), tied_layers(model)
        found = {}
        for name, layer in layers.items():
            reason = _misfit(layer, name in linear)
            if reason is None and name in ties:
                reason = f"it shares a weight with {ties[name][0]!r}: the two would be cut apart"
            if reason is not None:
                found[name] = reason
        sizes = {name: _num_weights(layer) for name, layer in layers.items() if name not in found}
        middling = statistics.median(sizes.values()) if sizes else 0
        for name, size in sizes.items():
            if size < self.min_share * middling:
                found[name] = f"its {size:,} weights are few beside the {middling:,.0f} of a middling layer (min_share {self.min_share:g})"
        return found

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Linear layers and convolutions that a product can replace and make smaller."""
        left = self.reasons(model)
        return tuple(name for name in weight_layers(model) if name not in left)

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Its kind or its shape."""
        return _misfit(layer, name in linear_layers(layer) or "" in linear_layers(layer)) or super().why_left(name, layer)

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Products that keep the ratio, spread evenly: how samples spread it changes the layers' ranks and not their sum; what an energy keeps they decide."""
        if self.energy is not None:
            return None
        from ._factors import hollow_directions, make_pair, replace_layer
        from ._ranks import ranks_uniform

        layers = {name: model.get_submodule(name) for name in self.eligible(model)}
        hollow = {name: hollow_directions(layer) for name, layer in layers.items()}  # type: ignore[arg-type]
        spectra = {name: self._spectrum(layers[name], directions) for name, directions in hollow.items()}  # type: ignore[arg-type]
        for name, rank in ranks_uniform(spectra, DEFAULT_RATIO if self.ratio is None else self.ratio).items():
            if rank is not None:
                model = replace_layer(model, name, make_pair(layers[name], hollow[name], rank))
        return model

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Choose ranks and put products in place of the layers.

        Raises:
            UnsupportedError: no layer would become smaller, or the budget is less than the smallest ranks need.
        """
        from ._factors import make_pair, replace_layer

        context.left.update(self.reasons(model))
        layers = {name: model.get_submodule(name) for name in self.eligible(model)}
        found = self._directions(model, layers, context)  # type: ignore[arg-type]
        spectra = {name: self._spectrum(layers[name], directions) for name, directions in found.items()}  # type: ignore[arg-type]
        ranks = self._ranks(model, spectra, found, context)
        for name, rank in ranks.items():
            if rank is None:
                context.left[name] = self._why_not(spectra[name])
                continue
            context.changed[name] = _describe(spectra[name], rank, found[name])
            model = replace_layer(model, name, make_pair(layers[name], found[name], rank))
        if not context.changed:
            raise UnsupportedError(f"low_rank would leave every layer as it is: {next(iter(context.left.values()))}", help="keep less: a lower energy or ratio")
        self._note_share(spectra, ranks, context)
        return model

    def _directions(self, model: nn.Module, layers: dict[str, nn.Linear | nn.Conv2d], context: Context) -> dict[str, Directions]:
        from ._activations import second_moments
        from ._factors import find_directions, side_of

        moments: dict[str, Moments] = {}
        if self.activation_aware:
            sides = {name: side_of(layer) for name, layer in layers.items()}
            moments = second_moments(model, context, sides, num_samples=self.num_samples)
        found = {}
        plain = []
        for i, (name, layer) in enumerate(layers.items()):
            context.progress(i / len(layers), f"factoring {name}")
            seen = moments.pop(name, None)
            if self.activation_aware and not _is_usable(seen):
                plain.append(name)
                seen = None
            found[name] = find_directions(layer, seen)
        if plain:
            context.notes.append(_plain_note(plain, len(layers)))
        return found

    def _spectrum(self, layer: nn.Linear | nn.Conv2d, directions: Directions) -> Spectrum:
        from ._ranks import Spectrum

        num_outputs, num_inputs = layer.weight.flatten(1).shape
        return Spectrum(num_outputs * num_inputs, num_outputs + num_inputs, directions.energies, self.round_to)

    def _ranks(self, model: nn.Module, spectra: dict[str, Spectrum], found: dict[str, Directions], context: Context) -> dict[str, int | None]:
        from ._ranks import ranks_by_energy, ranks_by_error, ranks_uniform

        if self.energy is not None:
            return ranks_by_energy(spectra, self.energy)
        ratio = DEFAULT_RATIO if self.ratio is None else self.ratio
        if self.ranks == "uniform":
            return ranks_uniform(spectra, ratio)
        ranks = ranks_by_error(spectra, ratio, {name: 1 / (spectrum.tails[0] or 1.0) for name, spectrum in spectra.items()})
        if ranks is None:
            least = sum(s.ranks[0] * s.per_rank for s in spectra.values()) / sum(s.num_weights for s in spectra.values())
            raise UnsupportedError(
                f"the smallest ranks keep {format_share(least)} of the parameters, more than the ratio {ratio:g}", help="a higher ratio, or a smaller round_to"
            )
        if self.ranks == "energy":
            return ranks
        worth = dict.fromkeys(spectra, 0.0)
        for _ in range(ROUNDS):
            self._measure_worth_(worth, model, spectra, found, ranks, context)
            ranks = ranks_by_error(spectra, ratio, worth) or ranks
        return ranks

    def _measure_worth_(
        self,
        worth: dict[str, float],
        model: nn.Module,
        spectra: dict[str, Spectrum],
        found: dict[str, Directions],
        ranks: dict[str, int | None],
        context: Context,
    ) -> None:
        """Raise the factor of each layer, which turns its squared error into the outputs', to what is measured at these ranks.

        It only rises, because behind a softmax or an activation small errors say little of larger ones.
        """
        from ._factors import make_pair
        from ._sensitivity import Change, layer_sensitivity

        tried = {name: rank or spectra[name].ranks[-1] for name, rank in ranks.items()}
        changes: dict[str, Change] = {name: partial(make_pair, directions=found[name], rank=rank) for name, rank in tried.items()}
        for name, error in layer_sensitivity(model, context, changes).items():
            # a layer whose product loses outputs altogether is worth more than all others
            worth[name] = max(worth[name], min(error, 1e6) ** 2 / (spectra[name].tails[tried[name]] or 1.0))

    def _why_not(self, spectrum: Spectrum) -> str:
        if self.energy is not None:
            return f"no rank up to {spectrum.ranks[-1]}, above which a product is larger than the layer, keeps {self.energy:g} of the energy"
        if self.ranks == "uniform":
            return f"its smallest rank, {spectrum.ranks[0]}, keeps {format_share(spectrum.share(spectrum.ranks[0]))} of its parameters"
        return "the budget does more for the outputs when this layer stays whole and others take the cut"

    def _note_share(self, spectra: dict[str, Spectrum], ranks: dict[str, int | None], context: Context) -> None:
        total = sum(spectrum.num_weights for spectrum in spectra.values())
        kept = sum(spectra[name].num_weights if rank is None else rank * spectra[name].per_rank for name, rank in ranks.items())
        context.notes.append(
            Note(code="low-rank:share", text=f"the layers that products may replace keep {format_share(kept / total)} of their parameters together")
        )

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """Two kernels in place of one."""
        return ("two smaller products take the place of each: where starting a kernel costs more than its arithmetic, fewer operations save no time",)


def _num_weights(layer: nn.Module) -> int:
    return sum(parameter.numel() for name, parameter in layer.named_parameters(recurse=False) if name == "weight")


def _misfit(layer: nn.Module, is_linear: bool) -> str | None:
    """Why no product can stand in the place of `layer`, or None."""
    import torch
    from torch import nn

    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention hands this weight straight to a fused kernel"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"a convolution in {layer.groups} groups is thin already"
    if not (is_linear or isinstance(layer, nn.Conv2d)):
        return f"a {type(layer).__name__}: {LowRank.changes} are changed"
    if type(layer).forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return f"a {type(layer).__name__} computes in a way of its own"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "hooks hang on it, which would be lost"
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return "its weight is made from other tensors at each call"
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    num_outputs, num_inputs = weight.flatten(1).shape
    if num_outputs * num_inputs <= num_outputs + num_inputs:
        return f"{num_inputs} inputs x {num_outputs} outputs: even rank 1 takes as many parameters"
    if not weight.isfinite().all():
        return "its weight has values that are not finite"
    return None


def _is_usable(moments: Moments | None) -> bool:
    """Whether samples told enough of a layer: a row for each feature at least, and nothing infinite or all zero."""
    if moments is None or moments.num_rows < len(moments.total):
        return False
    return bool(moments.total.isfinite().all()) and float(moments.total.trace()) > 0


def _plain_note(names: list[str], num_layers: int) -> Note:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Note(
        code="low-rank:plain",
        text=f"{len(names)} of {num_layers} layers are factored by their weights alone: the samples gave fewer rows than features, or none, for {shown}",
    )


def _describe(spectrum: Spectrum, rank: int, directions: Directions) -> str:
    whose = f"its output over {directions.num_rows:,} rows" if directions.num_rows else "its weight"
    return f"rank {rank} of {len(spectrum.energies)}, {format_share(spectrum.share(rank))} of the parameters, {spectrum.error(rank):.2g} of {whose} lost"
