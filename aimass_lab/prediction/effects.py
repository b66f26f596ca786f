"""What a recipe or a dtype would change, before it is tried: the same call with the operators it would leave, priced anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..compiled import uncompiled
from ..compression.base import Context, Stage, Technique, make_technique
from ..errors import AimassError, DoesNotFitError, UnsupportedError, first_line
from ..preserve import preserved, private_copy
from ..recipe import check_recipe, check_step, read_recipe
from ..records import ORIGINAL, Note, Number, Step
from ..tracing.trace import Row, Trace, trace_call
from ..workload import Workload, is_out_of_memory
from .calibration import ITEM_BYTES
from .target import TargetDevice, find_target, predict_on_device

DTYPES = {"bfloat16": "bf16", "float16": "fp16"}
"""dtypes that may be asked for by torch's own word."""

HALF_WIDTHS = {"bf16": 0.4, "fp16": 0.4, "int8_dynamic": 0.7, "int8_weight_only": 0.5, "compile": 0.5, "channels_last": 0.3}
"""Half of the band of each ratio on a logarithmic scale: set by hand from a few trials, not fitted."""
SAME_SHAPES, OTHER_SHAPES, BY_CHANGE = 0.1, 0.35, 0.4
"""The same of steps that are made on a copy: where they leave all shapes, where they do not, and what is added for each e-fold that is predicted. Set by
hand, beside recorded trials of a small CNN and a ViT, predicted on a busy machine: one of fourteen lay outside, a CNN's channels at batch 32."""
SLOW_KERNELS = 0.4
"""What is added where the attached device has no instructions for the type."""

ROUNDING_PASSES = 10
"""Eager operators that go over the activations to round them to 8 bits: extremes, scale, quotient, round, clamp, store ..."""
RESCALING_PASSES = 3
"""Those that go over the product to give it back its scale."""
DISPATCHES = {"int8_dynamic": 10, "int8_weight_only": 3}
"""Calls a layer that only unwrap a quantised weight, each worth the start of an operator."""
CASTS = 12
"""Operators a call that cast inputs and outputs, whatever their size."""
SCALE_BYTES = 5
"""Of each row of a matrix in 8 bits: a scale in 32 bits and a zero point."""
_UNKNOWN = {
    Stage.PRECISION: "which layers {name} changes, and by which kernels they run then, shows when it is applied",
    Stage.RUNTIME: "{name} leaves the model to another runtime, whose kernels nothing here is fitted to",
}
"""Why the effect of techniques of a stage is not predicted."""
LIGHT = ("elementwise", "norm", "copy", "reduction")
"""Families that a compiler joins into one kernel where they follow one another."""


@dataclass(frozen=True)
class Effect:
    """What a recipe is predicted to change; nothing of it was measured."""

    technique: str
    device: str
    batch_size: int
    weight_bytes: Number
    """Of the changed model."""
    peak_memory_bytes: Number
    """Weights, inputs and live activations of the changed model."""
    latency: Number
    """Of one call of the changed model."""
    latency_ratio: Number
    """Latency changed over latency as it is: below 1 is faster."""
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class _Changed:
    """The model after the technique, as far as a trace tells."""

    trace: Trace
    dtype: str
    weight_bytes: int
    extra_bytes: int = 0
    """Of tensors that live for one operator only."""


class Effects:
    """What a recipe is predicted to change in one model.

    Steps that change shapes are made on a copy, without any training: what is left of the operators is then followed as the original's are. Steps
    that change how operators run change the rows of that trace. Both traces are priced alike; what errs in both cancels in the ratio, the rest is
    in its band.

    Args:
        workload: Model and example inputs; the model may lie on the meta device where no step changes shapes.
        technique: A recipe, at most one of whose steps changes the precision: ``"bf16"``, ``"channel_pruning(ratio=0.5) + int8_dynamic"``; or a dtype
            by torch's word: ``"bfloat16"``, ``"float16"``.
        copies: Whether a copy of the model may be made; that, and what is done to it, may take seconds.

    Raises:
        UnknownNameError: no such technique.
        UnsupportedError: a step changes nothing in this model, or what it changes is not known before it is applied.
        ModelError: the model cannot be copied, or raises on these inputs.
        DoesNotFitError: there is no memory for a copy.
    """

    def __init__(self, workload: Workload, technique: str, *, copies: bool = True) -> None:
        self.workload = workload
        self.original = uncompiled(workload.model)
        self.recipe = read_recipe(DTYPES.get(technique, technique))
        self.members = {step.technique: make_technique(step.technique, step.options) for step in self.recipe.steps}
        why_not = why_not_predicted(self.members, workload, copies=copies)
        if why_not is not None:
            raise UnsupportedError(why_not, help="trial applies it to a copy and measures; a copy that was tried is predicted from what it has become")
        self.model = self._reshaped()
        """Of the shapes that the recipe leaves."""
        for name, member in self.members.items():
            if name in _CHANGES and not member.eligible(self.model):
                why = member.check(self.model, Context.of(workload)) or f"it changes {member.changes} only"
                raise UnsupportedError(f"{name} would change nothing in {workload.name}: {why}")

    def _reshaped(self) -> nn.Module:
        shaping = [step for step in self.recipe.steps if step.technique not in _CHANGES]
        model = self.original
        if not shaping:
            return model
        context = Context.of(self.workload, seed=self.recipe.seed)
        check_recipe(self.recipe, context)
        with preserved(model, values=False), torch.no_grad():
            model = private_copy(model)
            for step in shaping:
                context.begin_step()
                check_step(step, self.members[step.technique], model, context)
                found = _reshape(step, self.members[step.technique], model, context)
                if found is None:
                    raise UnsupportedError(f"what {step.name} makes of {self.workload.name} is not known before it is applied", help="trial measures it")
                model = found
        return model

    def at(self, device: str | None = None, *, batch_size: int | None = None) -> Effect:
        """Predict them on a device.

        Args:
            device: As for `estimate_demand`.
            batch_size: Items per call; those of the inputs if not given.

        Raises:
            UnknownNameError: no such device.
            UnsupportedError: a rate of the device is unknown.
            ModelError: the model raises on these inputs.
        """
        workload, names = self.workload, tuple(self.members)
        target = find_target(device, workload)
        trace = trace_call(self.original, workload.call, batch_size=batch_size)
        dtype = workload.info().dtype
        before = predict_on_device(trace, target, dtype)
        left = trace if self.model is self.original else trace_call(self.model, workload.call, batch_size=batch_size)
        changed = _Changed(left, dtype, left.weight_bytes)
        for name, member in self.members.items():
            if name in _CHANGES:
                changed = _CHANGES[name](changed, self.model, set(member.eligible(self.model)))
        after = predict_on_device(changed.trace, target, changed.dtype)
        notes, doubt = self._notes(target, trace.batch_size)
        half = sum(HALF_WIDTHS[name] for name in names if name in _CHANGES) + doubt
        if left is not trace:
            shaped = abs(math.log(predict_on_device(left, target, dtype).value / before.value))
            half += OTHER_SHAPES + BY_CHANGE * shaped if shaped else SAME_SHAPES
        ratio = _ratio(self.recipe.name, before, after, half)
        return Effect(
            technique=self.recipe.name, device=target.name, batch_size=trace.batch_size, weight_bytes=_weights(changed),
            peak_memory_bytes=_peak(changed, target), latency=_latency(before, ratio), latency_ratio=ratio, notes=notes,
        )  # fmt: skip

    def _notes(self, target: TargetDevice, batch_size: int) -> tuple[tuple[Note, ...], float]:
        """What speaks against the effect, and what that adds to the band."""
        notes = [Note(code="effect:untrained", text=f"{name} is followed without its training") for name, m in self.members.items() if m.learns]
        if "low_rank" in self.members:
            notes.append(Note(code="effect:even-ranks", text="ranks are spread evenly here; low_rank spreads the same sum of parameters by what it measures"))
        if target.attached is None:
            return tuple(notes), 0.0
        context = replace(Context.of(self.workload), device=target.attached)
        doubt = 0.0
        for name, member in self.members.items():
            if name in _CHANGES and (why_not := member.check(self.model, context)):
                notes.append(Note(code="effect:not-possible", text=why_not))
            notes += [Note(code="effect:cause", text=cause) for cause in member.causes(self.original, batch_size, target.attached)]
            if not fast_kernels(name, target.attached):
                text = f"{target.name} has no instructions for what {name} computes in: it may well be slower, and the band is wider"
                notes.append(Note(code="effect:slow-kernels", text=text))
                doubt = SLOW_KERNELS
        return tuple(notes), doubt


def why_not_predicted(members: Mapping[str, Technique], workload: Workload, *, copies: bool = True) -> str | None:
    """Why a recipe's effect is not predicted, as far as that is known without looking at the model's layers; None where it is.

    Args:
        members: The techniques of its steps, by name.
        workload: Model and example inputs.
        copies: Whether a copy of the model may be made.
    """
    for name, member in members.items():
        if name in _CHANGES:
            continue
        if type(member).reshape is Technique.reshape:
            return _UNKNOWN.get(member.stage, "what {name} makes of a model is not known before it is applied").format(name=name)
        if not copies:
            return f"what {name} makes of {workload.name} shows on a copy"
        if workload.torch_device.type == "meta":
            return f"what {name} makes of {workload.name} shows on its weights, and the model is on the meta device"
    precisions = [name for name in members if name in PRECISIONS]
    if len(precisions) > 1:
        return f"{' and '.join(precisions)} one upon the other are not predicted"
    return None


def _reshape(step: Step, member: Technique, model: nn.Module, context: Context) -> nn.Module | None:
    try:
        return member.reshape(model, context)
    except AimassError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise DoesNotFitError(f"there was not enough memory to look at what {step.name} leaves") from error
        raise UnsupportedError(f"{step.name} cannot be applied to this model: {first_line(error)}") from error


def _ratio(recipe: str, before: Number, after: Number, half: float) -> Number:
    value = 1.0 if recipe == ORIGINAL else after.value / before.value
    return Number(
        value=value, unit="ratio", source="estimated", method=f"predicted effect of {recipe}: operators priced anew; {after.method}",
        interval=(value * math.exp(-half), value * math.exp(half)), interval_kind="band of techniques' effects, set by hand",
        environment=after.environment, quality=after.quality,
    )  # fmt: skip


def _latency(before: Number, ratio: Number) -> Number:
    low, high = before.ends
    least, most = ratio.ends
    return Number(
        value=before.value * ratio.value, unit="s", source="estimated", method=ratio.method, interval=(low * least, high * most),
        interval_kind="the original's band times the effect's", environment=ratio.environment, quality=ratio.quality,
    )  # fmt: skip


def _weights(changed: _Changed) -> Number:
    method = "predicted effect: elements of changed and unchanged weights times their sizes, with scales"
    return Number(value=changed.weight_bytes, unit="B", source="estimated", method=method, interval=(0.98 * changed.weight_bytes, 1.02 * changed.weight_bytes))


def _peak(changed: _Changed, target: TargetDevice) -> Number:
    trace = changed.trace
    fixed = changed.weight_bytes + trace.input_bytes
    value = fixed + trace.activation_peak_bytes + changed.extra_bytes
    return Number(
        value=value, unit="B", source="estimated", method="predicted effect: weights, inputs and live activations by shapes",
        interval=(fixed + 0.4 * trace.activation_peak_bytes, max(value, fixed + trace.activation_bound_bytes + changed.extra_bytes + target.context_bytes)),
        interval_kind="band: operators' own workspaces, from none to their bound by operator",
    )  # fmt: skip


def fast_kernels(technique: str, device: torch.device) -> bool:
    """Whether the attached device has instructions for the type that `technique` computes in."""
    if device.type != "cpu":
        return technique != "bf16" or torch.cuda.get_device_capability(device) >= (8, 0)
    flags = _processor_flags()
    if flags is None or technique not in _FLAGS:
        return True
    return bool(flags & _FLAGS[technique])


_FLAGS = {
    "bf16": {"amx_bf16", "avx512_bf16", "bf16"},
    "fp16": {"amx_fp16", "avx512_fp16", "asimdhp"},
    "int8_dynamic": {"amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "i8mm"},
}


def _processor_flags() -> frozenset[str] | None:
    from ..compression._processor import processor_flags

    return processor_flags()


# --- what each technique makes of the rows


def _unchanged(found: _Changed, model: nn.Module, layers: set[str]) -> _Changed:
    return found


def _sixteen(word: str) -> Callable[[_Changed, nn.Module, set[str]], _Changed]:
    def change(found: _Changed, model: nn.Module, layers: set[str]) -> _Changed:
        trace = found.trace
        weights = sum(t.numel() * (2 if t.is_floating_point() else t.element_size()) for t in _state(model))
        rows = tuple(_resized(row, 2 / ITEM_BYTES.get(row.dtype, 4))._replace(dtype=word) if row.dtype else row for row in trace.rows)
        casts = tuple(_light(row, 0, 0) for row in trace.rows[:1] * CASTS)
        return _Changed(replace(trace, rows=casts + rows, weight_bytes=weights), word, weights)

    return change


def _resized(row: Row, factor: float) -> Row:
    names = ("bytes_read", "bytes_written", "live_bytes", "workspace_bytes", "allocated_bytes")
    return row._replace(**{name: round(getattr(row, name) * factor) for name in names})


def _int8_dynamic(found: _Changed, model: nn.Module, layers: set[str]) -> _Changed:
    trace, dtype = found.trace, found.dtype
    weights, sizes = _eight_bit_weights(model, layers)
    rows: list[Row] = []
    for row in trace.rows:
        layer = _layer_of(row, layers)
        if layer is None:
            rows.append(row)
            continue
        item, numel = ITEM_BYTES.get(row.dtype, 4), math.prod(row.shape)
        activation = max(0, row.bytes_read - sizes[layer] * item)
        rows += [_light(row, 0, 0)] * DISPATCHES["int8_dynamic"] + [_light(row, activation, activation)] * ROUNDING_PASSES
        rows.append(row._replace(dtype="int8", bytes_read=activation // item + sizes[layer], bytes_written=4 * numel))
        rows += [_light(row, 4 * numel, 4 * numel)] * RESCALING_PASSES
    return _Changed(replace(trace, rows=tuple(rows), weight_bytes=weights), dtype, weights)


def _int8_weight_only(found: _Changed, model: nn.Module, layers: set[str]) -> _Changed:
    trace, dtype = found.trace, found.dtype
    weights, sizes = _eight_bit_weights(model, layers)
    rows: list[Row] = []
    largest = 0
    for row in trace.rows:
        layer = _layer_of(row, layers)
        if layer is not None:
            widened = sizes[layer] * ITEM_BYTES.get(row.dtype, 4)
            largest = max(largest, widened)
            rows += [_light(row, 0, 0)] * DISPATCHES["int8_weight_only"] + [_light(row, sizes[layer], widened)]
        rows.append(row)
    return _Changed(replace(trace, rows=tuple(rows), weight_bytes=weights), dtype, weights, largest)


def _compiled(found: _Changed, model: nn.Module, layers: set[str]) -> _Changed:
    rows: list[Row] = []
    for row in found.trace.rows:
        if row.family in LIGHT and rows and rows[-1].family in LIGHT:
            # One kernel for a run of light operators: what passes from one to the next stays in registers.
            last = rows[-1]
            rows[-1] = last._replace(bytes_read=last.bytes_read + max(0, row.bytes_read - last.bytes_written), bytes_written=row.bytes_written)
        else:
            rows.append(row)
    return replace(found, trace=replace(found.trace, rows=tuple(rows)))


def _light(row: Row, bytes_read: float, bytes_written: float) -> Row:
    return row._replace(op="aten::mul", kind="light", family="elementwise", flops=0, bytes_read=round(bytes_read), bytes_written=round(bytes_written))


def _layer_of(row: Row, layers: set[str]) -> str | None:
    """The changed layer whose product the row is."""
    inner = row.scope[-1] if row.scope else ""
    return inner if row.family == "gemm" and inner in layers else None


def _eight_bit_weights(model: nn.Module, layers: set[str]) -> tuple[int, dict[str, int]]:
    """Bytes of all weights with those of `layers` in 8 bits and a scale a row, and the number of elements of each."""
    named = dict(model.named_modules())
    matrices = {name: named[name].weight for name in layers}
    sizes = {name: int(weight.numel()) for name, weight in matrices.items()}
    changed = {id(weight): weight for weight in matrices.values()}
    saved = sum(w.numel() * (w.element_size() - 1) - SCALE_BYTES * w.shape[0] for w in changed.values())
    return sum(t.numel() * t.element_size() for t in _state(model)) - saved, sizes


def _state(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, tied ones once."""
    return list({id(t): t for t in [*model.parameters(), *model.buffers()]}.values())


_CHANGES: dict[str, Callable[[_Changed, nn.Module, set[str]], _Changed]] = {
    "bf16": _sixteen("bfloat16"),
    "fp16": _sixteen("float16"),
    "int8_dynamic": _int8_dynamic,
    "int8_weight_only": _int8_weight_only,
    "compile": _compiled,
    "channels_last": _unchanged,
}
PRECISIONS = ("bf16", "fp16", "int8_dynamic", "int8_weight_only")
