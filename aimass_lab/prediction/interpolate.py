"""A quantity at batch sizes between and beyond the measured ones: what was measured is kept as it is, and every value has its band."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

LEVEL = 0.9
"""Share of the values that a band shall hold."""

PRIOR_SCORES = 9
"""The prior counts as this many residuals: the fewest that a 90 % conformal quantile can be read from."""

GAP_SHARE = 0.5
"""Leaving an anchor out doubles the gap in the logarithm of the batch, and a kink or a bend then misses at least twice as far."""

TAIL_GROWTH = 1.0
"""Each doubling beyond the range adds this many times the half-width at its edge."""

KNEE_GROWTH = 2.0
"""A band is this much wider where the way a call runs changes between what was measured and what is asked for."""

LARGEST_KNOWN_SHARE = 0.9
"""The known part explains at most this share of a measured value: timed alone, operators may seem slower than they are in the call."""


@dataclass(frozen=True)
class Anchor:
    """What was measured at one batch size."""

    batch_size: int
    value: float
    low: float
    """Ends of the interval of the measurement."""
    high: float
    noisy: bool = False


@dataclass(frozen=True)
class Estimate:
    """A value at one batch size, and where it comes from."""

    batch_size: int
    value: float
    low: float
    high: float
    anchors: tuple[int, ...]
    """The measured batch sizes that it was made from; one where it was measured itself."""
    inside: bool
    """Whether it lies within the measured range."""
    knee: bool = False
    noisy: bool = False

    @property
    def measured(self) -> bool:
        """Whether this very batch size was measured."""
        return self.anchors == (self.batch_size,)


Known = Callable[[tuple[int, ...]], Sequence[float]]
"""The part of the quantity that is known by other means, at each of a few batch sizes; 0 where nothing is."""

Doubt = Callable[[int, float], float]
"""Half-width, as a logarithm, that a known cause adds to the band at a batch size and a value."""


class Interpolation:
    """A curve through measured anchors.

    Between two anchors, what is not known by other means runs on a straight line; a ladder that goes up and
    down is followed up and down. Beyond the last anchor the line of the last ones is drawn on, and the band
    widens with the logarithm of the distance. The band is a conformal quantile (Vovk, Gammerman, Shafer 2005)
    of what each anchor is missed by when it is left out, with a stated prior among the residuals, because a
    ladder has few anchors; the spread of the anchors' own measurements is added.

    Args:
        anchors: At least one, with values above 0. Noisy ones are left out where there are quiet ones.
        known: See `Known`.
        prior: Half-width of the band, as a logarithm of a ratio, before any residual was seen.
        knees: Batch sizes from which on a call runs differently.
        doubt: See `Doubt`.

    Raises:
        ValueError: no anchor, or one with a value that is not above 0.
    """

    def __init__(self, anchors: Sequence[Anchor], *, prior: float, known: Known | None = None, knees: Sequence[int] = (), doubt: Doubt | None = None) -> None:
        if not anchors or any(not (a.value > 0 and math.isfinite(a.value)) for a in anchors):
            raise ValueError(f"a curve needs anchors with values above 0, got {list(anchors)}")
        quiet = [a for a in anchors if not a.noisy]
        self.anchors = sorted(quiet or anchors, key=lambda a: a.batch_size)
        self.noisy = not quiet
        """True: there are noisy anchors only, and bands are wider for it."""
        self.left_out = tuple(sorted(a.batch_size for a in anchors if a.noisy)) if quiet else ()
        self.prior = prior
        self._known = known or (lambda sizes: [0.0] * len(sizes))
        self._knees = tuple(knees)
        self._doubt = doubt or (lambda size, value: 0.0)

    @property
    def range(self) -> tuple[int, int]:
        """Smallest and largest batch size that it rests on."""
        return self.anchors[0].batch_size, self.anchors[-1].batch_size

    @cached_property
    def residuals(self) -> dict[int, float]:
        """By batch size: logarithm of measured over predicted when this inner anchor is left out."""
        found = {}
        for before, anchor, after in zip(self.anchors, self.anchors[1:], self.anchors[2:], strict=False):
            found[anchor.batch_size] = math.log(anchor.value / self._between(before, after, anchor.batch_size))
        return found

    @property
    def half_width(self) -> float:
        """Half of the band inside the range as a logarithm, without the measurements' own spread."""
        scores = [GAP_SHARE * abs(r) for r in self.residuals.values()]
        return max(self.prior / 2, pooled_quantile(scores, self.prior)) * (2.0 if self.noisy else 1.0)

    def at(self, batch_size: int) -> Estimate:
        """The value at `batch_size`."""
        sizes = [a.batch_size for a in self.anchors]
        i = bisect_left(sizes, batch_size)
        if i < len(sizes) and sizes[i] == batch_size:
            own = self.anchors[i]
            return Estimate(batch_size, own.value, min(own.low, own.value), max(own.high, own.value), (batch_size,), inside=True, noisy=own.noisy)
        if 0 < i < len(sizes):
            before, after = self.anchors[i - 1], self.anchors[i]
            return self._estimate(batch_size, self._between(before, after, batch_size), (before, after), octaves=0.0)
        edge = self.anchors[0] if i == 0 else self.anchors[-1]
        used = self.anchors[:2] if i == 0 else self._tail()
        return self._estimate(batch_size, self._beyond(batch_size, edge, used), used, octaves=abs(math.log2(batch_size / edge.batch_size)))

    def _estimate(self, batch_size: int, value: float, used: Sequence[Anchor], *, octaves: float) -> Estimate:
        ends = [batch_size, *(a.batch_size for a in used)]
        low_end, high_end = (min(ends), max(ends)) if octaves == 0 else sorted((batch_size, self.range[1] if batch_size > self.range[1] else self.range[0]))
        knee = any(low_end < k <= high_end for k in self._knees)
        growth = 1 + TAIL_GROWTH * octaves
        half = self.half_width * growth * (KNEE_GROWTH if knee else 1.0)
        if len(self.anchors) == 1:
            half = max(half, math.log(1.5) * (1 + octaves))
        half = math.hypot(half, max(_spread(a) for a in used), growth * self._doubt(batch_size, value))
        low, high = value * math.exp(-half), value * math.exp(half)
        return Estimate(batch_size, value, low, high, tuple(a.batch_size for a in used), inside=octaves == 0, knee=knee, noisy=self.noisy)

    def _between(self, before: Anchor, after: Anchor, batch_size: int) -> float:
        first, own, last = self._known((before.batch_size, batch_size, after.batch_size))
        scale = _scale([(before.value, first), (after.value, last)])
        share = (batch_size - before.batch_size) / (after.batch_size - before.batch_size)
        rest = (1 - share) * (before.value - scale * first) + share * (after.value - scale * last)
        return scale * own + rest

    def _tail(self) -> list[Anchor]:
        """The anchors whose line is drawn on: three where they lie on one, for a steadier slope; else two."""
        last = self.anchors[-3:]
        if len(last) == 3 and abs(self.residuals[last[1].batch_size]) > self.prior:
            return last[1:]
        return last

    def _beyond(self, batch_size: int, edge: Anchor, used: Sequence[Anchor]) -> float:
        if len(used) == 1:
            return edge.value * max(1.0, batch_size / edge.batch_size)  # no slope is known: every item costs the same
        sizes = (*(a.batch_size for a in used), batch_size)
        *parts, own = self._known(sizes)
        scale = _scale([(a.value, part) for a, part in zip(used, parts, strict=True)])
        slope = max(0.0, _slope([(a.batch_size, a.value - scale * part, a.value) for a, part in zip(used, parts, strict=True)]))
        at_edge = parts[[a.batch_size for a in used].index(edge.batch_size)]
        value = edge.value + scale * (own - at_edge) + slope * (batch_size - edge.batch_size)
        # No batch costs less than its share of a larger one, nor a larger one less than half of what the edge costs.
        return max(value, edge.value * batch_size / edge.batch_size) if batch_size < edge.batch_size else max(value, edge.value / 2)


def pooled_quantile(scores: Sequence[float], prior: float, level: float = LEVEL, prior_scores: int = PRIOR_SCORES) -> float:
    """Conformal quantile of `scores` and of a prior that is worth `prior_scores` of them.

    The prior's scores are the quantiles ``i / (prior_scores + 1)`` of a half-normal distribution with `level` of it
    below `prior`, so that without any other score the result is `prior`. With `n` scores in all, the quantile is
    the ``ceil((n + 1) * level)``-th smallest, at most the largest.

    Args:
        scores: Sizes of residuals, 0 or more.
        prior: Half-width that is expected to hold `level` of them.
        level: Share that the result shall hold.
        prior_scores: What the prior counts; 0 leaves it out.
    """
    normal = NormalDist()
    unit = prior / normal.inv_cdf(0.5 + level / 2)
    expected = [unit * normal.inv_cdf(0.5 + 0.5 * (i + 1) / (prior_scores + 1)) for i in range(prior_scores)]
    pool = sorted([*scores, *expected])
    return pool[min(len(pool), math.ceil((len(pool) + 1) * level)) - 1]


def _spread(anchor: Anchor) -> float:
    """Half of the measurement's interval as a logarithm."""
    low, high = min(anchor.low, anchor.value), max(anchor.high, anchor.value)
    return 0.5 * math.log(high / low) if low > 0 else math.log(2)


def _scale(pairs: Sequence[tuple[float, float]]) -> float:
    """What the known part is multiplied by, so that it explains no more than was measured."""
    return min([1.0, *(LARGEST_KNOWN_SHARE * value / part for value, part in pairs if part > 0)])


def _slope(points: Sequence[tuple[float, float, float]]) -> float:
    """Slope of the least-squares line through (x, y), each weighted by 1 / scale², as errors grow with what is measured."""
    weights = [1 / scale**2 for _, _, scale in points]
    total = sum(weights)
    mean_x = sum(w * x for w, (x, _, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(w * y for w, (_, y, _) in zip(weights, points, strict=True)) / total
    return sum(w * (x - mean_x) * (y - mean_y) for w, (x, y, _) in zip(weights, points, strict=True)) / sum(
        w * (x - mean_x) ** 2 for w, (x, _, _) in zip(weights, points, strict=True)
    )
