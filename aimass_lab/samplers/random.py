"""Every point, in an order drawn by lot."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from .base import SAMPLERS, Point, Sampler, Tried, point_key


@SAMPLERS.register("random")
class RandomOrder(Sampler):
    """Draw points without replacement, all with the same chance."""

    def ask(self, history: Sequence[Tried]) -> Point | None:
        """The next point of the order that the seed gives, tried ones left out."""
        tried = {point_key(t.point) for t in history}
        points = (self.point(index) for index in self._order())
        return next((point for point in points if point_key(point) not in tried), None)

    def _order(self) -> Iterator[int]:
        """A random permutation, made only as far as it is read: the space may be huge (Fisher and Yates, swaps kept in a dict)."""
        draw = random.Random(self.seed).randrange
        moved: dict[int, int] = {}
        for i in range(self.size):
            j = draw(i, self.size)
            chosen = moved.get(j, j)
            moved[j] = moved.get(i, i)
            yield chosen
