"""Which candidates no other beats, and which are beaten by less than is sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Number, Objective, ObjectiveName
from .objectives import compare, merit

Numbers = Mapping[ObjectiveName, Number]


def pareto_front(candidates: Mapping[int, Numbers], objectives: Sequence[Objective]) -> tuple[int, ...]:
    """Keys of the candidates that no other beats: at least as good in every objective, and better in one.

    Args:
        candidates: Their numbers, each with all objectives.
        objectives: What is compared.
    """
    values = {key: tuple(merit(o.name, float(numbers[o.name].value)) for o in objectives) for key, numbers in candidates.items()}
    return tuple(key for key, own in values.items() if not any(_beats(other, own) for other in values.values()))


def near_front(candidates: Mapping[int, Numbers], objectives: Sequence[Objective], front: Sequence[int]) -> tuple[int, ...]:
    """Keys of those that are beaten only within noise: wherever one of the front is better, the two intervals overlap."""

    def surely_beaten(own: Numbers, other: Numbers) -> bool:
        judged = [compare(o.name, other[o.name], own[o.name]) for o in objectives]
        better = [merit(o.name, float(other[o.name].value)) > merit(o.name, float(own[o.name].value)) for o in objectives]
        return any(j == "better" for j, b in zip(judged, better, strict=True) if b)

    def beats(other: Numbers, own: Numbers) -> bool:
        return _beats(*(tuple(merit(o.name, float(n[o.name].value)) for o in objectives) for n in (other, own)))

    return tuple(
        key for key, own in candidates.items() if key not in front and not any(beats(candidates[f], own) and surely_beaten(own, candidates[f]) for f in front)
    )


def _beats(other: tuple[float, ...], own: tuple[float, ...]) -> bool:
    return other != own and all(a >= b for a, b in zip(other, own, strict=True))
