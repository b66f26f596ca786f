"""Every point, in the order of the space."""

from __future__ import annotations

from collections.abc import Sequence

from .base import SAMPLERS, Point, Sampler, Tried, point_key


@SAMPLERS.register("grid")
class Grid(Sampler):
    """Go through all points, the last dimension fastest."""

    def ask(self, history: Sequence[Tried]) -> Point | None:
        """The first point that was not tried."""
        tried = {point_key(t.point) for t in history}
        return next((point for point in self.points() if point_key(point) not in tried), None)
