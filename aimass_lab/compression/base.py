"""What every technique promises: how it fits into a recipe, where it works, and what it did.

A technique is a frozen dataclass: its fields are its options, and so the form that a user sees.
torch is imported inside the methods, so that listing the techniques does not load it.
"""

from __future__ import annotations

import enum
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..compiled import is_compiled, uncompiled
from ..errors import MissingPackageError
from ..options import check_bounds, read_options
from ..records import Note, OptionValue
from ..registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..workload import Call, Workload

Progress = Callable[[float, str], None]
Constraint = Callable[["nn.Module"], None]
"""Puts a model that was trained on back to what an earlier step made of it: pruned weights to zero, clustered ones to their centroids."""

Form = Literal["weights", "cast", "quantized", "graph", "compiled"]
"""What a model consists of, and so what may still be done to it.

``weights``: floating-point parameters that can be trained and cut. ``cast``: the same in 16 bits. ``quantized``: parameters that are a kind of
tensor of their own. ``graph``: an exported graph with quantised operators. ``compiled``: the business of a runtime; nothing more can be done.
"""


class Stage(enum.IntEnum):
    """Where a step stands in a recipe: a later stage works on what an earlier one left, not the other way round."""

    ARCHITECTURE = 0
    """Another, smaller network: a student, layers left out."""
    CHANNELS = 1
    """The same network, narrower."""
    RANK = 2
    """Matrices as products of thinner ones."""
    VALUES = 3
    """The same shapes with fewer different values: zeros, shared weights."""
    PRECISION = 4
    """Fewer bits."""
    LAYOUT = 5
    """The same values in another order in memory."""
    RUNTIME = 6
    """What runs it."""
    ANY = 7
    """Training: after any step that leaves weights to be trained."""


@dataclass
class Context:
    """What a technique may use besides the copy that it changes, and where it tells what it did.

    The model is read only: a technique may run it, under `preserve.preserved`, and change nothing.
    """

    original: nn.Module
    """What is behind `torch.compile`, where the user compiled the model."""
    call: Call
    """Example inputs, with as many items as the trial will call with."""
    device: torch.device
    compiled: bool = False
    """Whether the user's model runs through `torch.compile`."""
    train: tuple[Call, torch.Tensor | None] | None = None
    """Samples to learn from, with their labels where there are some."""
    loss: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    """``loss(outputs, labels)``, the user's own."""
    students: Mapping[str, nn.Module] = field(default_factory=dict)
    """Smaller networks that the user gave, to be copied and trained."""
    seed: int = 0
    progress: Progress = lambda share, text: None
    constraints: list[Constraint] = field(default_factory=list)
    """What training has to hold to: added by steps that prune or share weights."""
    changed: dict[str, str] = field(default_factory=dict)
    """Layer -> what this step made of it."""
    left: dict[str, str] = field(default_factory=dict)
    """Layer -> why this step left it as it was."""
    notes: list[Note] = field(default_factory=list)
    """What this step has to say besides."""

    @classmethod
    def of(cls, workload: Workload, *, call: Call | None = None, seed: int = 0, progress: Progress | None = None) -> Context:
        """What `workload` gives to a technique."""
        return cls(
            original=uncompiled(workload.model), call=call or workload.call, device=workload.torch_device, compiled=is_compiled(workload.model),
            train=workload.train, loss=workload.loss, students=workload.students, seed=seed, progress=progress or (lambda share, text: None),
        )  # fmt: skip

    @property
    def samples(self) -> Call:
        """Inputs to calibrate with: those to learn from where there are some, else the example inputs."""
        return self.train[0] if self.train else self.call

    def batches(self, num_samples: int, batch_size: int) -> Iterator[Call]:
        """`samples` in batches, at most `num_samples` of them, drawn by lot where there are more; the last batch may be smaller."""
        import torch

        samples = self.samples
        rows = torch.randperm(samples.batch_size, generator=torch.Generator().manual_seed(self.seed))[:num_samples].sort().values
        for part in rows.split(batch_size):
            yield samples.take(part)

    def begin_step(self) -> None:
        """Forget what the last step told; what training has to hold to stays."""
        self.changed, self.left, self.notes = {}, {}, []


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One way to make a model smaller or faster.

    A member sets `changes` and `stage`, and writes `apply`; it narrows `eligible` and adds to
    `unavailable` and `check` where it does not work on every layer or on every device.

    Raises:
        InputError: an option is not within the bounds that its type says.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Distributions that must be installed."""
    changes: ClassVar[str] = "layers with weights"
    """What it changes, in words that follow 'it changes'."""
    stage: ClassVar[Stage]
    """Where it stands in a recipe."""
    takes: ClassVar[frozenset[Form]] = frozenset({"weights"})
    """What it can be applied to."""
    gives: ClassVar[Form | None] = None
    """What it makes of it; None: the same form."""
    learns: ClassVar[bool] = False
    """Whether it needs samples to learn from."""
    compiles: ClassVar[bool] = False
    """Whether the first call of the result includes a compilation."""
    effort: ClassVar[float] = 0.5
    """What applying it costs, roughly, in comparisons of speed, of which each costs 1: for a search that weighs what to try."""

    def __post_init__(self) -> None:
        check_bounds(self, lambda: _name_of(type(self)))

    def why_not_after(self, form: Form) -> str:
        """Why it cannot be applied to a model of `form`, which is not among those it takes."""
        return f"it changes {self.changes}, and after {_MADE[form]}"

    def unavailable(self, context: Context) -> str | None:
        """Say what the device, the samples or an installation lacks for it, or None; asked of every step before anything is copied."""
        if self.learns and context.train is None:
            return "it learns, and there is nothing to learn from: give training samples, Study(model, x, train=(inputs, labels)) or train=inputs"
        return None

    def eligible(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the layers in `model` that `apply` would change."""
        return tuple(weight_layers(model))

    def check(self, model: nn.Module, context: Context) -> str | None:
        """Say why the technique is not possible on `model`, as earlier steps leave it, or None."""
        lacking = self.unavailable(context)
        if lacking is not None or self.eligible(model):
            return lacking
        num_layers = len(weight_layers(model))
        if num_layers == 0:
            return f"it changes {self.changes}, and the model has no layer with weights"
        computed = computed_layers(model)
        others = f"; {COMPUTED}: {', '.join(map(repr, computed[:3]))}{' ...' if len(computed) > 3 else ''}" if computed else ""
        return f"0 of {num_layers} layers would be changed: it changes {self.changes} only{others}"

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Change `model`, a private copy in eval mode, and return it or what is to be called in its place.

        Called under `torch.no_grad`. What it did to single layers it writes into `context`; layers it does not name count as
        changed where they are `eligible`.
        """
        raise NotImplementedError

    def reshape(self, model: nn.Module, context: Context) -> nn.Module | None:
        """Give `model`, a private copy, the shapes that `apply` would leave, whatever becomes of its values, and return it.

        For a prediction, which needs the shapes only: no training, nothing that takes minutes. None: they show when it is applied.
        """
        return None

    def why_left(self, name: str, layer: nn.Module) -> str:
        """Why a layer with weights is not eligible."""
        return f"a {type(layer).__name__}: {self.changes} are changed"

    def causes(self, model: nn.Module, batch_size: int, device: torch.device) -> tuple[str, ...]:
        """What is known to keep this technique from being faster here: one sentence each. `model` is the one it was applied to."""
        return ()


_MADE: dict[Form, str] = {
    "weights": "the steps before there are plain weights",
    "cast": "a cast to 16 bits there are no full-precision weights left to work on",
    "quantized": "quantisation the weights are no plain numbers any more",
    "graph": "an exported quantised graph there are no layers any more",
    "compiled": "a runtime took the model over there is nothing left that could be changed",
}

TECHNIQUES: Registry[type[Technique]] = Registry("technique", "aimass_lab.compression")


def make_technique(name: str, options: Mapping[str, OptionValue] | None = None) -> Technique:
    """Make the technique called `name`.

    Args:
        name: Of a member of `TECHNIQUES`.
        options: Field -> value; text is read by the field's type, ``"none"`` is None where a field allows it.

    Raises:
        UnknownNameError: there is no such technique.
        InputError: there is no such option, or a value that it cannot have.
        MissingPackageError: the technique needs a package that is not installed.
    """
    member = TECHNIQUES[name]
    technique = member(**read_options(member, name, options or {}))
    for package in technique.requires:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingPackageError(package, f"technique {name!r}")
    return technique


def _name_of(member: type[Technique]) -> str:
    return next((name for name, other in TECHNIQUES.items() if other is member), member.__name__)


def weight_shares(layers: Mapping[str, nn.Module]) -> dict[str, float]:
    """Share of the elements of all weights that lies in each layer."""
    sizes = {name: sum(p.numel() for p in layer.parameters(recurse=False)) for name, layer in layers.items()}
    total = sum(sizes.values())
    return {name: size / total if total else 0.0 for name, size in sizes.items()}


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of every module that itself holds a floating-point parameter of two or more dimensions."""

    def holds_weight(module: nn.Module) -> bool:
        return any(p.dim() >= 2 and p.is_floating_point() for p in module.parameters(recurse=False))

    return {name: module for name, module in model.named_modules() if holds_weight(module)}


COMPUTED = "layers that compute their weight anew at each call have none to change; fold it first, as torch.nn.utils.parametrize.remove_parametrizations does"


def computed_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of layers whose weight is no parameter: weight and spectral norm, and torch's parametrizations in general, compute it from others."""
    return tuple(name for name, layer in model.named_modules() if _is_computed(layer))


def _is_computed(layer: nn.Module) -> bool:
    import torch
    from torch.nn.utils.parametrize import is_parametrized

    return is_parametrized(layer, "weight") or ("weight" not in layer._parameters and isinstance(vars(layer).get("weight"), torch.Tensor))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Name -> module of the `nn.Linear` layers whose weight may be replaced by another kind of tensor.

    Left out: `nn.MultiheadAttention`'s output projection, whose weight the attention hands
    straight to a fused kernel, weights that are already a special kind of tensor, and those that are computed at each call.
    """
    import torch
    from torch import nn

    return {
        name: layer
        for name, layer in weight_layers(model).items()
        if isinstance(layer, nn.Linear)
        and not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)
        and type(layer.weight) in (nn.Parameter, torch.Tensor)
        and not _is_computed(layer)
    }
