"""Every point, in an order drawn by lot."""

from __future__ import annotations

from collections.abc import Sequence

from .base import SAMPLERS, Point, Sampler, Tried, point_key


@SAMPLERS.register("random")
class RandomOrder(Sampler):
    """Draw points without replacement, all with the same chance."""

    def ask(self, history: Sequence[Tried]) -> Point | None:
        """The next point of the order that the seed gives, tried ones left out."""
        tried = {point_key(t.point) for t in history}
        return next((point for point in self.shuffled() if point_key(point) not in tried), None)
