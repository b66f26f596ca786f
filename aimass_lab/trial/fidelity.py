"""How far a variant's outputs are from the original's: sample by sample, and by the user's metric."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ModelError, first_line
from ..outputs import opened, output_tensors
from ..records import Number, WorstSample
from ..workload import Call

if TYPE_CHECKING:
    import torch

NUM_WORST = 10
"""Samples that are named."""
MEAN_RESAMPLES = 500
METRIC_RESAMPLES = 200
"""Of the bootstrap of the metric."""
METRIC_BOOTSTRAP_S = 0.5
"""Time for it."""
MIN_METRIC_RESAMPLES = 50
"""Fewer, in that time, give no interval worth showing."""


@dataclass
class OutputComparison:
    """Collects, batch by batch, how two models' outputs for the same samples differ.

    A sample is everything that the outputs hold for one item, flattened. Where the original is
    not finite (masked scores are -inf), both count as 0; so do values that only the variant
    lost, which are counted in `num_lost`.
    """

    indices: list[int] = field(default_factory=list)
    """Of the samples, in the order in which they were compared."""
    cosines: list[float] = field(default_factory=list)
    squared_errors: list[float] = field(default_factory=list)
    squared_norms: list[float] = field(default_factory=list)
    num_lost: int = 0
    """Samples with a value that is finite in the original and not in the variant."""
    same_class: list[bool] = field(default_factory=list)
    """Whether the largest score is the same, of each sample whose outputs look like scores of classes: of all or of none."""
    classes: list[tuple[int, int]] = field(default_factory=list)
    """Where the largest scores are, the original's and the variant's, of the same samples."""
    divergences: list[float] = field(default_factory=list)
    """Kullback-Leibler divergence of the class probabilities, nats, of the same samples."""
    mismatch: str | None = None
    """How the outputs' names or shapes differ, if they do."""

    @property
    def num_samples(self) -> int:
        """Samples compared so far."""
        return len(self.cosines)

    def add(self, original: Any, variant: Any, call: Call, indices: Sequence[int]) -> None:
        """Compare the outputs of one call, whose first items are the samples `indices`; further ones do not count."""
        import torch

        num_items = len(indices)
        self.indices += indices
        pairs = list(zip(output_tensors(original), output_tensors(variant), strict=False))
        self.mismatch = self.mismatch or _mismatch(output_tensors(original), output_tensors(variant))
        if self.mismatch:  # nothing in common
            self.cosines += [0.0] * num_items
            self.squared_errors += [1.0] * num_items
            self.squared_norms += [1.0] * num_items
            return
        if not pairs:
            raise ModelError(f"the model returned {type(original).__name__}, in which there is no tensor", help="nothing can be compared")
        tensors = [(a, b) for (_, a), (_, b) in pairs if call.is_batched(a)]
        if tensors:
            rows = [(_rows(a, call, num_items), _rows(b, call, num_items)) for a, b in tensors]
        else:
            rows = [(_flat(a).reshape(1, -1), _flat(b).reshape(1, -1)) for (_, a), (_, b) in pairs]
        lost = self._add_samples(torch.cat([a for a, _ in rows], 1), torch.cat([b for _, b in rows], 1))
        scores = class_scores(original, call), class_scores(variant, call)
        if scores[0] is not None and scores[1] is not None:
            a, b = scores[0][:num_items], scores[1][:num_items]
            tops = a.argmax(1), b.argmax(1)
            self.same_class += ((tops[0] == tops[1]) & ~lost).tolist()
            self.classes += zip(tops[0].tolist(), tops[1].tolist(), strict=True)
            self.divergences += divergence(a, b).tolist()

    def _add_samples(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Add the rows of `a` (original) and `b`; return which of them lost a value."""
        import torch

        finite = torch.isfinite(a)
        lost = (finite & ~torch.isfinite(b)).any(1)
        a = torch.where(finite, a, 0.0)
        b = torch.where(finite & torch.isfinite(b), b, 0.0)
        norm_a, norm_b = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)
        product = norm_a * norm_b
        cosine = torch.where(product > 0, (a * b).sum(1) / product, ((norm_a == 0) & (norm_b == 0)).double())
        same = (a == b).all(1)
        self.cosines += torch.where(same, 1.0, cosine.clamp(-1, 1)).tolist()
        self.squared_errors += ((a - b) ** 2).sum(1).tolist()
        self.squared_norms += (norm_a**2).tolist()
        self.num_lost += int(lost.sum())
        return lost

    # --- the figures ---------------------------------------------------------------------

    def fidelity(self, environment: str) -> Number:
        """Mean cosine similarity, with the range over the samples."""
        return self._figure(sum(self.cosines) / len(self.cosines), self.cosines, "mean cosine similarity of the outputs", environment)

    def relative_error(self, environment: str) -> Number:
        """L2 norm of the difference over that of the original, with the range over the samples."""
        each = self.relative_errors()
        total = _ratio(math.fsum(self.squared_errors), math.fsum(self.squared_norms))
        return self._figure(total, each, "L2 norm of the outputs' difference over that of the original's outputs", environment)

    def _figure(self, value: float, each: Sequence[float], method: str, environment: str) -> Number:
        lost = f"; values that are not finite in {self.num_lost} of them count as 0" if self.num_lost else ""
        lost += "; outputs of other names or shapes count as wholly different" if self.mismatch else ""
        return Number(
            value=value,
            unit="ratio",
            source="measured",
            method=f"{method}, {len(each)} samples{lost}",
            # the value may leave the range of one sample by a rounding error
            interval=(min(*each, value), max(*each, value)),
            interval_kind="range over the samples",
            n=len(each),
            environment=environment,
        )

    def agreement(self, environment: str) -> Number | None:
        """Share of samples with the same largest score, with its Wilson interval; None without scores of classes."""
        if not self.same_class:
            return None
        num_same, num_scored = sum(self.same_class), len(self.same_class)
        return Number(
            value=num_same / num_scored,
            unit="ratio",
            source="measured",
            method=f"largest score the same in {num_same} of {num_scored} samples",
            interval=wilson_interval(num_same, num_scored),
            interval_kind="95 % Wilson score interval",
            n=num_scored,
            environment=environment,
        )

    def divergence(self, environment: str) -> Number | None:
        """Mean Kullback-Leibler divergence of the class probabilities in nats, with a bootstrap interval; None without scores of classes."""
        if not self.divergences:
            return None
        value = math.fsum(self.divergences) / len(self.divergences)
        low, high = _mean_interval(self.divergences)
        return Number(
            value=value,
            unit="ratio",
            source="measured",
            method=f"mean Kullback-Leibler divergence of the variant's class probabilities from the original's, nats, {len(self.divergences)} samples",
            interval=(min(low, value), max(high, value)),
            interval_kind=f"95 % bootstrap of the mean, {MEAN_RESAMPLES} resamples",
            n=len(self.divergences),
            environment=environment,
        )

    def worst(self) -> tuple[WorstSample, ...]:
        """The samples that differ most, largest relative error first; those that do not differ at all are left out."""
        errors = self.relative_errors()
        order = sorted((i for i, error in enumerate(errors) if error > 0), key=lambda i: (-errors[i], self.indices[i]))
        same: Sequence[bool | None] = self.same_class or [None] * len(errors)
        classes: Sequence[tuple[int | None, int | None]] = self.classes or [(None, None)] * len(errors)
        return tuple(
            WorstSample(
                index=self.indices[i], relative_error=errors[i], cosine=self.cosines[i], same_class=same[i], class_original=classes[i][0],
                class_variant=classes[i][1],
            )
            for i in order[:NUM_WORST]
        )  # fmt: skip

    def relative_errors(self) -> list[float]:
        """Sample by sample: L2 norm of the outputs' difference over that of the original's outputs."""
        return [_ratio(e, n) for e, n in zip(self.squared_errors, self.squared_norms, strict=True)]


def divergence(original: torch.Tensor, variant: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of each row's class probabilities: of scores their softmax, of probabilities themselves.

    A class to which only the variant gives no probability at all would make it infinite; the least probability of float64 stands for none.

    Args:
        original: Scores of shape [items, classes].
        variant: The same of the variant.

    Returns:
        Nats, of shape [items].
    """
    import torch

    least = torch.finfo(torch.float64).tiny
    both = original.double(), variant.double()
    given = all(bool((t >= 0).all()) and torch.allclose(t.sum(1), torch.ones((), dtype=t.dtype, device=t.device), atol=1e-3) for t in both)
    p, q = (t if given else t.softmax(1) for t in both)
    terms = torch.where(p > 0, p * (p.clamp_min(least).log() - q.clamp_min(least).log()), 0.0)
    return terms.nan_to_num(0.0).sum(1).clamp_min(0.0)


def _mean_interval(values: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    kept = np.asarray(values)
    generator = np.random.default_rng(0)
    return _middle([float(kept[generator.integers(0, len(kept), len(kept))].mean()) for _ in range(MEAN_RESAMPLES)])


def _ratio(squared_error: float, squared_norm: float) -> float:
    """Relative error from squared norms; an error on an output of zeros counts as 1."""
    if squared_norm == 0:
        return float(squared_error > 0)
    return math.sqrt(squared_error / squared_norm)


def _mismatch(original: Sequence[tuple[str, torch.Tensor]], variant: Sequence[tuple[str, torch.Tensor]]) -> str | None:
    if [name for name, _ in original] != [name for name, _ in variant]:
        return f"the original returns {', '.join(n for n, _ in original)} and the variant {', '.join(n for n, _ in variant)}"
    for (name, a), (_, b) in zip(original, variant, strict=True):
        if a.shape != b.shape:
            return f"{name!r} has the shape {list(a.shape)} in the original and {list(b.shape)} in the variant"
    return None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).to(torch.float64)


def _rows(tensor: torch.Tensor, call: Call, num_items: int) -> torch.Tensor:
    """One flat row of float64 per item."""
    return _flat(tensor.movedim(call.batch_axis, 0)[:num_items]).reshape(num_items, -1)


def class_scores(outputs: Any, call: Call) -> torch.Tensor | None:
    """The scores of classes among a model's outputs: the one floating [items, classes] tensor, or one that is called ``logits``."""
    tensors = output_tensors(outputs)
    candidate = tensors[0][1] if len(tensors) == 1 else dict(tensors).get("logits")
    if candidate is None or candidate.dim() != 2 or not candidate.is_floating_point():
        return None
    return candidate if candidate.shape[1] >= 2 and call.batch_axis == 0 and call.is_batched(candidate) else None


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson, J. Am. Stat. Assoc. 22 (1927) 209)."""
    z = 1.959963984540054
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


# --- the user's metric -------------------------------------------------------------------


@dataclass(frozen=True)
class MetricComparison:
    """The user's metric of both models on the same items."""

    original: float
    variant: float | None
    """None where the metric of the variant's outputs is not finite."""
    original_interval: tuple[float, float] | None = None
    variant_interval: tuple[float, float] | None = None
    drop_interval: tuple[float, float] | None = None
    """Of original less variant, items resampled as pairs."""
    num_items: int = 0
    num_resamples: int = 0

    def number(self, which: str, environment: str) -> Number | None:
        """The metric of the ``"original"`` or the ``"variant"``."""
        value = self.original if which == "original" else self.variant
        interval = self.original_interval if which == "original" else self.variant_interval
        if value is None:
            return None
        return Number(
            value=value,
            unit="ratio",
            source="measured",
            method=f"the metric given, on {self.num_items} labelled items",
            interval=None if interval is None else (min(interval[0], value), max(interval[1], value)),
            interval_kind=None if interval is None else f"95 % bootstrap, {self.num_resamples} resamples of the items",
            n=self.num_items,
            environment=environment,
        )

    def drop(self, environment: str) -> Number | None:
        """The original's metric less the variant's."""
        if self.variant is None:
            return None
        value = self.original - self.variant
        return Number(
            value=value,
            unit="ratio",
            source="measured",
            method=f"the original's metric less the variant's, on the same {self.num_items} labelled items",
            interval=None if self.drop_interval is None else (min(self.drop_interval[0], value), max(self.drop_interval[1], value)),
            interval_kind=None if self.drop_interval is None else f"95 % bootstrap, {self.num_resamples} resamples of the items as pairs",
            n=self.num_items,
            environment=environment,
        )


Metric = Callable[[Any, "torch.Tensor"], float]


def compare_metric(metric: Metric, original: Any, variant: Any, labels: torch.Tensor, call: Call, *, seed: int = 0) -> MetricComparison:
    """Evaluate `metric` on the outputs of both models, and bootstrap its drop.

    Args:
        metric: ``metric(outputs, labels) -> float``, higher is better.
        original: The original's outputs for all items.
        variant: The variant's.
        labels: One per item.
        call: What gave the outputs: tells which tensors hold one entry per item.
        seed: Of the bootstrap.

    Raises:
        InputError: the metric raised on the original's outputs, or gave no finite number.
    """
    num_items = len(labels)
    before = _evaluate(metric, original, labels)
    if not math.isfinite(before):
        raise InputError(f"the metric of the original's outputs is {before}", help="a metric must give a finite number, higher is better")
    after = _evaluate(metric, variant, labels)
    if not math.isfinite(after):
        return MetricComparison(original=before, variant=None, num_items=num_items)
    pairs = _resampled(metric, original, variant, labels, call, seed) if num_items > 1 else []
    if len(pairs) < MIN_METRIC_RESAMPLES:
        return MetricComparison(original=before, variant=after, num_items=num_items)
    return MetricComparison(
        original=before,
        variant=after,
        original_interval=_middle([a for a, _ in pairs]),
        variant_interval=_middle([b for _, b in pairs]),
        drop_interval=_middle([a - b for a, b in pairs]),
        num_items=num_items,
        num_resamples=len(pairs),
    )


def _evaluate(metric: Metric, outputs: Any, labels: torch.Tensor) -> float:
    try:
        return float(metric(outputs, labels))
    except Exception as error:
        raise InputError(
            f"the metric raised {type(error).__name__} on {len(labels)} labelled items: {first_line(error)}",
            help="it is called as metric(outputs, labels) with the model's own outputs, and must return one number",
        ) from error


def _resampled(metric: Metric, original: Any, variant: Any, labels: torch.Tensor, call: Call, seed: int) -> list[tuple[float, float]]:
    """The metric of both on items drawn with replacement; none where the metric cannot take such a draw."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    deadline = time.perf_counter() + METRIC_BOOTSTRAP_S
    pairs: list[tuple[float, float]] = []
    while len(pairs) < METRIC_RESAMPLES and time.perf_counter() < deadline:
        rows = torch.randint(len(labels), (len(labels),), generator=generator)
        drawn = labels[rows.to(labels.device)]
        try:
            pair = float(metric(take_items(original, rows, call), drawn)), float(metric(take_items(variant, rows, call), drawn))
        except Exception:  # a draw may miss a class, say, and the interval is an extra
            return []
        if not (math.isfinite(pair[0]) and math.isfinite(pair[1])):
            return []
        pairs.append(pair)
    return pairs


def _middle(values: Sequence[float]) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def take_items(outputs: Any, rows: torch.Tensor, call: Call) -> Any:
    """The same structure with the items `rows` of every tensor that holds one entry per item of `call`."""
    import torch
    from torch.utils import _pytree

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not call.is_batched(leaf):
            return leaf
        return leaf.index_select(call.batch_axis, rows.to(leaf.device))

    return _pytree.tree_map(take, opened(outputs))


def join_batches(batches: Sequence[Any], calls: Sequence[Call]) -> Any:
    """Put the outputs of several batches together along the batch axis.

    Raises:
        InputError: tensors of different batches do not fit together.
    """
    import torch
    from torch.utils import _pytree

    def join(*leaves: Any) -> Any:
        if isinstance(leaves[0], torch.Tensor) and all(c.is_batched(leaf) for c, leaf in zip(calls, leaves, strict=True)):
            return torch.cat(leaves, calls[0].batch_axis)
        return leaves[0]

    try:
        return _pytree.tree_map(join, *map(opened, batches))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the outputs of several batches do not fit together for the metric: {error}", help="give data of one batch") from error
