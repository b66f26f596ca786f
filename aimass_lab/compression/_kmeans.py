"""Exact Lloyd iterations for numbers on a line: sorted once, each step costs clusters x log(numbers)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Init = Literal["linear", "density", "k-means++"]
MOST_FITTED = 2**18
"""Numbers that centres are fitted to; of more, so many are drawn by lot."""
_STARTS = 4
_MOST_STEPS = 300
_TOLERANCE = 1e-6
"""Relative fall of the inertia below which a step is the last."""


@dataclass(frozen=True)
class Clusters:
    """Centres of clusters."""

    centres: torch.Tensor
    """In order, in double precision."""
    inertia: float
    """Sum of squared distances to the nearest centre, over the numbers that were fitted."""


class _Line:
    """Sorted numbers with their running sums: sums over any stretch of them in one subtraction."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values.sort().values
        zero = self.values.new_zeros(1)
        self.sums = torch.cat([zero, self.values.cumsum(0)])
        self.squares = torch.cat([zero, self.values.square().cumsum(0)])

    def step(self, centres: torch.Tensor, pinned: int | None) -> tuple[torch.Tensor, float]:
        """Centres moved to the means of what lies nearest to them, and the inertia before that; `pinned` does not move."""
        ends = torch.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), len(self.values))])
        counts = edges.diff()
        sums, squares = self.sums[edges].diff(), self.squares[edges].diff()
        inertia = squares - 2 * centres * sums + counts * centres.square()
        means = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        if pinned is not None:
            means[pinned] = centres[pinned]
        return means, float(inertia.sum().clamp_min(0))


def cluster(values: torch.Tensor, num_clusters: int, *, init: Init = "k-means++", zero: bool = False, seed: int = 0) -> Clusters:
    """Find the centres that numbers are nearest to in the sense of least squares.

    Args:
        values: Finite numbers, in any shape, at least one.
        num_clusters: Centres; fewer come back where there are fewer different numbers.
        init: Where the search starts: evenly over the range, evenly over the numbers, or drawn with probability by squared distance (Arthur and
            Vassilvitskii, 2007), the best of a few. All three are what "Deep Compression" (Han et al., 2016) compares, the last with its Forgy.
        zero: Keep one centre at exactly 0; numbers that are 0 are not fitted.
        seed: Of what is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    flat = values.detach().flatten().double()
    flat = flat[flat != 0] if zero else flat
    if flat.numel() > MOST_FITTED:
        flat = flat[torch.randint(flat.numel(), (MOST_FITTED,), generator=generator).to(flat.device)]
    line = _Line(flat)
    different = line.values.unique_consecutive()
    num_free = num_clusters - zero
    if len(different) <= num_free:
        return Clusters(_with_zero(different, zero), 0.0)
    starts = _STARTS if init == "k-means++" else 1
    found = [_lloyd(line, _start(line, num_free, init, generator), zero) for _ in range(starts)]
    return min(found, key=lambda clusters: clusters.inertia)


def assign(values: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """The nearest centre of each number, as an index of the same shape."""
    borders = ((centres[1:] + centres[:-1]) / 2).to(values.dtype)
    return torch.bucketize(values, borders, out_int32=True)


def _with_zero(centres: torch.Tensor, zero: bool) -> torch.Tensor:
    return torch.cat([centres, centres.new_zeros(1)]).sort().values if zero else centres


def _lloyd(line: _Line, centres: torch.Tensor, zero: bool) -> Clusters:
    centres = _with_zero(centres, zero)
    inertia = float("inf")
    for _ in range(_MOST_STEPS):
        pinned = int((centres == 0).nonzero()[0]) if zero else None
        moved, now = line.step(centres, pinned)
        if not now < inertia * (1 - _TOLERANCE):
            break
        inertia, centres = now, moved.sort().values
    return Clusters(centres, inertia)


def _start(line: _Line, count: int, init: Init, generator: torch.Generator) -> torch.Tensor:
    values = line.values
    if init == "linear":
        return torch.linspace(float(values[0]), float(values[-1]), count, dtype=values.dtype, device=values.device)
    if init == "density":
        places = (torch.arange(count, device=values.device) + 0.5) / count * len(values)
        return values[places.long()]
    chosen = values[torch.randint(len(values), (1,), generator=generator).to(values.device)]
    # distances to thousands of the numbers, evenly drawn from the sorted ones, are as good as those to all
    some = values[:: max(1, len(values) // 2**14)]
    nearest = (some - chosen).square()
    trials = 2 + int(math.log(count))
    for _ in range(count - 1):
        running = nearest.cumsum(0)
        lots = torch.rand(trials, generator=generator, dtype=torch.float64).to(values.device) * running[-1]
        fresh = some[torch.searchsorted(running, lots).clamp_max_(len(some) - 1)]
        distances = torch.minimum(nearest, (some - fresh[:, None]).square())
        best = distances.sum(1).argmin()
        chosen, nearest = torch.cat([chosen, fresh[best][None]]), distances[best]
    return chosen.sort().values


@dataclass
class SharedValues:
    """Puts parameters that training moved back to one value a cluster, the mean of its members: so the centres are what is trained."""

    clusters: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
    """(layer, parameter) -> the cluster of each element in 8 bits, and the centres that may move."""

    def __call__(self, model: nn.Module) -> None:
        """Change the parameters that are there still, in their old shape."""
        modules = dict(model.named_modules())
        for (layer, name), (members, may_move) in self.clusters.items():
            parameter = getattr(modules.get(layer), name, None)
            if parameter is None or parameter.shape != members.shape:
                continue
            with torch.no_grad():
                parameter.copy_(_mean_of_members(parameter, members.to(parameter.device), may_move.to(parameter.device)))


def _mean_of_members(values: torch.Tensor, members: torch.Tensor, may_move: torch.Tensor) -> torch.Tensor:
    places = members.flatten().int()
    sums = torch.zeros(len(may_move), dtype=torch.float64, device=values.device).index_add_(0, places, values.flatten().double())
    counts = torch.zeros_like(sums).index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
    means = torch.where(may_move, sums / counts.clamp_min(1), 0.0)
    return means.to(values.dtype)[places].view_as(values)
