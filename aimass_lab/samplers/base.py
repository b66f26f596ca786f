"""What every sampler promises: a point that was not tried yet, or none when there is none left."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..registry import Registry

Point = dict[str, Any]


@dataclass(frozen=True)
class Tried:
    """One point of the history."""

    point: Point
    values: tuple[float, ...] | None
    """What was found there, each to be made large; None where the point could not be tried."""


def point_key(point: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What tells points apart: 1, True and "1" are three different values."""
    return tuple(sorted((name, repr(value)) for name, value in point.items()))


class Sampler(ABC):
    """Chooses points of a finite space, each at most once.

    It keeps nothing from one call to the next: what it asks for follows from the space, the
    seed and the history alone, so that an interrupted search can be taken up again.

    Args:
        space: Name -> the values there are.
        seed: Of samplers that draw lots.

    Raises:
        InputError: the space has no dimension, or one without values.
    """

    def __init__(self, space: Mapping[str, Sequence[Any]], *, seed: int = 0) -> None:
        if not space:
            raise InputError("the search space is empty", help='give at least one dimension, for example {"technique": ["bf16", "int8_dynamic"]}')
        for name, values in space.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise InputError(f"the dimension {name!r} of the search space is {values!r}, not a list of values")
            if not values:
                raise InputError(f"the dimension {name!r} of the search space has no values")
        self.space = {name: tuple({repr(value): value for value in values}.values()) for name, values in space.items()}
        self.seed = seed

    @property
    def size(self) -> int:
        """Points there are."""
        return math.prod(len(values) for values in self.space.values())

    def point(self, index: int) -> Point:
        """The point with this number, the last dimension counting fastest."""
        found = {}
        for name, values in reversed(self.space.items()):
            index, place = divmod(index, len(values))
            found[name] = values[place]
        return {name: found[name] for name in self.space}

    @abstractmethod
    def ask(self, history: Sequence[Tried]) -> Point | None:
        """Return a point of the space that `history` does not hold, or None when it holds all."""


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "aimass_lab.samplers")
