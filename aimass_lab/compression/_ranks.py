"""How a budget of parameters is spread as ranks over layers, each with the errors that its ranks leave."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spectrum:
    """What a layer loses at each rank."""

    num_weights: int
    """Elements of its weight."""
    per_rank: int
    """Elements that one more rank costs: inputs + outputs."""
    energies: tuple[float, ...]
    """Squared error that leaving out each direction costs, largest first."""
    round_to: int = 1
    """Ranks are multiples of this, where the layer has such."""

    @property
    def ranks(self) -> Sequence[int]:
        """Ranks with fewer parameters than the layer, smallest first."""
        most = min(len(self.energies), (self.num_weights - 1) // self.per_rank)
        return range(self.round_to, most + 1, self.round_to) or range(1, most + 1)

    @property
    def tails(self) -> list[float]:
        """Squared error at each rank from 0 on."""
        return [*itertools.accumulate(reversed(self.energies), initial=0.0)][::-1]

    def share(self, rank: int) -> float:
        """Parameters at `rank` over those of the layer."""
        return rank * self.per_rank / self.num_weights

    def error(self, rank: int) -> float:
        """Norm of what is lost at `rank` over the whole."""
        tails = self.tails
        return (tails[rank] / tails[0]) ** 0.5 if tails[0] else 0.0


def ranks_by_energy(spectra: Mapping[str, Spectrum], energy: float) -> dict[str, int | None]:
    """Layer -> smallest rank that keeps `energy`, a share of the whole; None where that saves nothing."""
    found: dict[str, int | None] = {}
    for name, spectrum in spectra.items():
        tails = spectrum.tails
        allowed = (1 - energy) * tails[0] * (1 + 1e-9)  # 1 - 0.8 is a little less than 0.2
        found[name] = next((rank for rank in spectrum.ranks if tails[rank] <= allowed), None)
    return found


def ranks_uniform(spectra: Mapping[str, Spectrum], ratio: float) -> dict[str, int | None]:
    """Layer -> largest rank with at most `ratio` of its own parameters; None where there is none."""
    found: dict[str, int | None] = {}
    for name, spectrum in spectra.items():
        place = bisect.bisect_right(spectrum.ranks, ratio * spectrum.num_weights / spectrum.per_rank)
        found[name] = spectrum.ranks[place - 1] if place else None
    return found


def ranks_by_error(spectra: Mapping[str, Spectrum], ratio: float, worth: Mapping[str, float]) -> dict[str, int | None] | None:
    """Spread `ratio` of all parameters so that the sum of squared errors is least: greedily, by error removed per parameter.

    The choices of a layer, its ranks and itself as it is, are first cut down to those on the lower convex hull of error over
    parameters; on hulls the greedy choice is the best one, but for what the last step leaves over (as in rate-distortion allocation,
    Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988).

    Args:
        spectra: Layer -> its errors.
        ratio: Share of parameters over all of them to be kept.
        worth: Layer -> factor that makes squared errors of different layers comparable.

    Returns:
        Layer -> rank, None where it is best left as it is; None where even the smallest ranks take more.
    """
    hulls = {name: list(_hull(spectrum, worth[name])) for name, spectrum in spectra.items()}
    left = ratio * sum(spectrum.num_weights for spectrum in spectra.values()) - sum(hull[0].cost for hull in hulls.values())
    if left < 0:
        return None
    steps = [(before, after, name) for name, hull in hulls.items() for before, after in itertools.pairwise(hull)]
    steps.sort(key=lambda step: step[0].slope(step[1]))  # stable: layers in their order where slopes agree
    chosen = {name: hull[0] for name, hull in hulls.items()}
    for before, after, name in steps:
        if chosen[name] is before and after.cost - before.cost <= left:
            left -= after.cost - before.cost
            chosen[name] = after
    return {name: point.rank for name, point in chosen.items()}


@dataclass(frozen=True)
class _Point:
    cost: int
    error: float
    rank: int | None

    def slope(self, other: _Point) -> float:
        """Change of error per parameter, negative where it falls."""
        return (other.error - self.error) / (other.cost - self.cost)


def _hull(spectrum: Spectrum, worth: float) -> Iterable[_Point]:
    hull: list[_Point] = []
    for point in _points(spectrum, worth):
        while len(hull) >= 2 and hull[-2].slope(hull[-1]) >= hull[-1].slope(point):
            hull.pop()
        hull.append(point)
    return hull


def _points(spectrum: Spectrum, worth: float) -> Iterator[_Point]:
    tails = spectrum.tails
    for rank in spectrum.ranks:
        yield _Point(rank * spectrum.per_rank, worth * tails[rank], rank)
    yield _Point(spectrum.num_weights, 0.0, None)
