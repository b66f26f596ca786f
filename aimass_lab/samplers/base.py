"""What every sampler promises: a possible point that was not tried yet, or none when there is none left."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..registry import Registry

Point = dict[str, Any]
Key = tuple[tuple[str, str], ...]

MOST_LISTED = 20_000
"""Points of a space that a sampler lists; of a larger one it draws as many."""


@dataclass(frozen=True)
class Tried:
    """One point of the history."""

    point: Point
    values: tuple[float, ...] | None
    """What was found there, each to be made large; None where the point could not be tried, or is pending."""
    excess: tuple[float, ...] = ()
    """How far beyond each limit, in the limit's own measure: at most 0 is within."""
    pending: bool = False
    """Whether somebody is trying it now, or has tried it on a machine too busy to tell what is there."""

    @property
    def feasible(self) -> bool:
        """Whether there are values, and within every limit."""
        return self.values is not None and all(e <= 0 for e in self.excess)


@dataclass(frozen=True)
class Knowledge:
    """What is known of a problem before anything is tried."""

    possible: Callable[[Point], bool] = lambda point: True
    """Whether a point may be asked for at all."""
    features: Callable[[Point], Mapping[str, Any]] = dict
    """What makes points alike: numbers, or words that are the same or not. The point itself if nothing better is known."""
    cost: Callable[[Point], float] = lambda point: 1.0
    """What it costs to try a point, in any unit: among first points that say as much, cheap ones come first."""
    prior: Callable[[Point], Sequence[float | None]] | None = None
    """Values that are predicted at a point, in the order and the sense of `Tried.values`; None where nothing is."""


def point_key(point: Mapping[str, Any]) -> Key:
    """What tells points apart: 1, True and "1" are three different values."""
    return tuple(sorted((name, repr(value)) for name, value in point.items()))


class Sampler(ABC):
    """Chooses points of a finite space, each at most once.

    What it asks for follows from the space, the seed and the history alone, so that an
    interrupted search can be taken up again by whoever has its history.

    Args:
        space: Name -> the values there are.
        seed: Of samplers that draw lots.
        knowledge: What is known beforehand; every sampler heeds which points are possible, some heed more.

    Raises:
        InputError: the space has no dimension, or one without values.
    """

    def __init__(self, space: Mapping[str, Sequence[Any]], *, seed: int = 0, knowledge: Knowledge | None = None) -> None:
        if not space:
            raise InputError("the search space is empty", help='give at least one dimension, for example {"recipe": ["bf16", "int8_dynamic"]}')
        for name, values in space.items():
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise InputError(f"the dimension {name!r} of the search space is {values!r}, not a list of values")
            if not values:
                raise InputError(f"the dimension {name!r} of the search space has no values")
        self.space = {name: tuple({repr(value): value for value in values}.values()) for name, values in space.items()}
        self.seed = seed
        self.knowledge = knowledge or Knowledge()

    @property
    def size(self) -> int:
        """Points there are, possible or not."""
        return math.prod(len(values) for values in self.space.values())

    def point(self, index: int) -> Point:
        """The point with this number, the last dimension counting fastest."""
        found = {}
        for name, values in reversed(self.space.items()):
            index, place = divmod(index, len(values))
            found[name] = values[place]
        return {name: found[name] for name in self.space}

    def points(self) -> Iterator[Point]:
        """The possible points, in the order of the space."""
        return (point for point in map(self.point, range(self.size)) if self.knowledge.possible(point))

    def shuffled(self) -> Iterator[Point]:
        """The possible points, in an order drawn by lot.

        The permutation is made only as far as it is read, because the space may be huge (Fisher and Yates, swaps kept in a dict).
        """
        draw = random.Random(self.seed).randrange
        moved: dict[int, int] = {}
        for i in range(self.size):
            j = draw(i, self.size)
            chosen = moved.get(j, j)
            moved[j] = moved.get(i, i)
            point = self.point(chosen)
            if self.knowledge.possible(point):
                yield point

    def listed(self) -> tuple[Point, ...]:
        """Every possible point; of a space with more than `MOST_LISTED` points a part drawn by lot, always the same."""
        if not hasattr(self, "_listed"):
            chosen = self.points() if self.size <= MOST_LISTED else itertools.islice(self.shuffled(), MOST_LISTED)
            self._listed = tuple(chosen)
        return self._listed

    def seed_of(self, num_tried: int) -> int:
        """The seed of the lots that are drawn after `num_tried` points."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}:{num_tried}".encode()).digest()[:4], "big")

    @abstractmethod
    def ask(self, history: Sequence[Tried]) -> Point | None:
        """Return a possible point that `history` does not hold, or None when it holds all."""


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "aimass_lab.samplers")
