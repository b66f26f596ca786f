"""What a search of one model may choose from, and what is predicted of it: the room's only file that looks at a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..compiled import is_compiled
from ..compression.base import TECHNIQUES, Context, Stage, Technique, make_technique
from ..errors import AimassError
from ..recipe import check_recipe, check_step, read_recipe
from ..records import ORIGINAL, Candidate, Number, Objective, ObjectiveName, Recipe, Step
from ..samplers.base import Point
from .objectives import merit
from .space import EAGER, Check

if TYPE_CHECKING:
    from ..workload import Workload

SHRINKING = (Stage.ARCHITECTURE, Stage.CHANNELS, Stage.RANK)
"""Stages that leave fewer operations to do."""
RUNTIMES = ("compile", "aot_inductor", "onnxruntime", "onnxruntime(quantize=dynamic)", "onnxruntime(quantize=static)")
CASTING = ("bf16", "fp16")
BATCH_SIZES = (1, 8, 32)
RECOVERY = "recover"


def make_check(workload: Workload) -> Check:
    """Ask of a recipe what can be known before anything is copied: order, forms, device, packages, samples, and whether the first step finds a layer."""
    context = Context.of(workload)
    asked: dict[str, str | None] = {}

    def ask(key: str, question: Callable[[], object]) -> str | None:
        if key not in asked:
            try:
                question()
                asked[key] = None
            except AimassError as error:
                asked[key] = error.message
        return asked[key]

    def check(recipe: Recipe) -> str | None:
        if not recipe.steps:
            return None
        first = recipe.steps[0]
        why_not = ask(recipe.name, lambda: check_recipe(recipe, context))
        if why_not is not None:
            return why_not
        member = make_technique(first.technique, first.options)
        # Asked once of many recipes that begin alike: some techniques follow the whole model to answer.
        return ask(f"{first.name} ...", lambda: check_step(first, member, context.original, context))

    return check


def default_space(workload: Workload, *, check: Check, cores: int) -> dict[str, Sequence[Any]]:
    """A space that is worth a look for any model: what shrinks it, what rounds it, what runs it, and how it is called.

    Each technique with its own defaults, and only where it is possible here; what shrinks is followed by a short training where there are
    samples to train on.

    Args:
        workload: The model and what it is called with.
        check: Of the same model.
        cores: There are.
    """
    alone = {name: member for name, member in TECHNIQUES.items() if _possible_alone(name, check)}
    recovery = f" + {RECOVERY}" if RECOVERY in alone else ""
    shrunk = [f"{name}{'' if member.learns else recovery}" for name, member in alone.items() if member.stage in SHRINKING]
    rounded = [name for name, member in alone.items() if member.stage is Stage.PRECISION and name not in CASTING]
    recipes = [ORIGINAL, *shrunk, *rounded, *(f"{first} + {then}" for first in shrunk for then in rounded)]
    dtypes = [workload.info().dtype, *(word for word, cast in (("bfloat16", "bf16"), ("float16", "fp16")) if _sensible_cast(cast, workload, alone))]
    counts = sorted({1, cores})
    runtimes = [text for text in RUNTIMES if text.partition("(")[0] in alone and _possible_alone(text, check)]
    if is_compiled(workload.model):  # alone that is what the model has already; of what was changed it is another
        runtimes.insert(0, "compile")
    space: dict[str, Sequence[Any]] = {
        "recipe": recipes,
        "runtime": [EAGER, *runtimes],
    }
    if workload.info().dtype == "float32":
        space["dtype"] = dtypes
    space["batch_size"] = sorted({*BATCH_SIZES, workload.call.batch_size})
    if workload.torch_device.type == "cpu":
        space |= {"threads": counts, "instances": counts}
    return space


def _possible_alone(text: str, check: Check) -> bool:
    try:
        return check(read_recipe(text)) is None
    except AimassError:  # a package that is not installed
        return False


def _sensible_cast(cast: str, workload: Workload, alone: Mapping[str, type[Technique]]) -> bool:
    """float16 is worth nothing on processors: their kernels convert value by value."""
    return cast in alone and (cast == "bf16" or workload.torch_device.type != "cpu")


# --- what is predicted


def make_prior(workload: Workload, recipe_of: Callable[[Point], Recipe], objectives: Sequence[Objective]) -> Callable[[Point], tuple[float | None, ...]]:
    """Values that are expected at a point before anything is measured, for samplers that are guided by them.

    Latency comes from the rates measured on this device and from what techniques are predicted to change; of steps whose effect is not known
    beforehand nothing is said. Instances are taken to run side by side.

    Args:
        workload: The model and what it is called with.
        recipe_of: The recipe of a point.
        objectives: In whose order and sense values are given.
    """
    base: dict[int, float | None] = {}
    ratios: dict[tuple[str, int], float] = {}

    def latency(batch_size: int, recipe: Recipe) -> float | None:
        if batch_size not in base:
            base[batch_size] = _latency_s(workload, batch_size)
        known = base[batch_size]
        if known is None:
            return None
        for step in recipe.steps:
            key = step.name, batch_size
            if key not in ratios:
                ratios[key] = _ratio(workload, step, batch_size)
            known *= ratios[key]
        return known

    def prior(point: Point) -> tuple[float | None, ...]:
        batch_size = int(point.get("batch_size") or workload.call.batch_size)
        seconds = latency(batch_size, recipe_of(point))
        if seconds is None:
            return (None,) * len(objectives)
        per_s = batch_size * int(point.get("instances", 1)) / seconds
        found: dict[ObjectiveName, float] = {"throughput": per_s, "latency": seconds, "latency_p99": seconds, "cost": 1 / per_s}
        return tuple(merit(o.name, found[o.name]) if o.name in found else None for o in objectives)

    return prior


def _latency_s(workload: Workload, batch_size: int) -> float | None:
    from ..prediction.target import find_target, predict_on_device
    from ..tracing.trace import trace_call

    try:
        trace = trace_call(workload.model, workload.call, batch_size=batch_size)
        return float(predict_on_device(trace, find_target(None, workload), workload.info().dtype).value)
    except AimassError:
        return None


def _ratio(workload: Workload, step: Step, batch_size: int) -> float:
    from ..prediction.effects import Effects

    try:  # without copies: a search that has seconds would spend them on these
        return float(Effects(workload, step.name, copies=False).at(batch_size=batch_size).latency_ratio.value)
    except AimassError:
        return 1.0


def make_elsewhere(workload: Workload) -> Callable[[Candidate, str], dict[ObjectiveName, Number] | str]:
    """Predict a measured candidate on a device that is not here: latency with its band, and throughput from it."""
    known: dict[tuple[str, int, str], dict[ObjectiveName, Number] | str] = {}

    def predict(candidate: Candidate, device: str) -> dict[ObjectiveName, Number] | str:
        batch_size = candidate.setting.batch_size or workload.call.batch_size
        key = candidate.setting.recipe.name, batch_size, device
        if key not in known:
            known[key] = _on_device(workload, candidate.setting.recipe, batch_size, device)
        return known[key]

    return predict


def _on_device(workload: Workload, recipe: Recipe, batch_size: int, device: str) -> dict[ObjectiveName, Number] | str:
    from ..prediction.bookkeeping import throughput_of
    from ..prediction.effects import Effects

    try:
        effect = Effects(workload, recipe.name, copies=False).at(device, batch_size=batch_size)
    except AimassError as error:
        return error.message
    return {"latency": effect.latency, "throughput": throughput_of(batch_size, effect.latency)}
