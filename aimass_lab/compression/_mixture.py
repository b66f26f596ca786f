"""Chooses a format for each of many layers: the most bytes saved for the least error. Plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One layer in one format."""

    layer: str
    format: str
    error: float
    """Of the outputs when only this layer is changed, relative; infinite where it does not run."""
    saved_bytes: int


@dataclass(frozen=True, kw_only=True)
class Increment:
    """A layer going from one of its formats to its next smaller one."""

    choice: Choice
    """Where it goes."""
    saved_bytes: int
    """More than before."""
    squared_error: float
    """More than before. Squares are what adds up where the errors of layers are independent."""

    @property
    def price(self) -> float:
        """Squared error for each byte saved."""
        return self.squared_error / self.saved_bytes


def order_increments(choices: Iterable[Choice]) -> list[Increment]:
    """Order the increments of all layers by price, the cheapest first; those of one layer never overtake each other.

    Of each layer only the formats on its lower convex hull of squared error over bytes saved are used: any other costs more than a
    mixture of two that are. That is the greedy method for the multiple-choice knapsack problem (Sinha and Zoltners, Operations
    Research 27 (1979) 503), whose choice is within one increment of the best for errors that add up.
    """
    layers: dict[str, list[Choice]] = {}
    for choice in choices:
        if math.isfinite(choice.error) and choice.saved_bytes > 0:
            layers.setdefault(choice.layer, []).append(choice)
    increments = [step for group in layers.values() for step in _hull(group)]
    # sorting is stable, and along a hull the price rises
    return sorted(increments, key=lambda step: step.price)


def _hull(choices: Sequence[Choice]) -> list[Increment]:
    steps: list[Increment] = []
    for choice in sorted(choices, key=lambda c: (c.saved_bytes, -c.error)):
        step = _from(steps, choice)
        while steps and (step.saved_bytes <= 0 or step.price <= steps[-1].price):
            steps.pop()  # what is beneath the line to the new one is not worth a stop
            step = _from(steps, choice)
        steps.append(step)
    return steps


def _from(steps: Sequence[Increment], choice: Choice) -> Increment:
    last = steps[-1].choice if steps else None
    return Increment(
        choice=choice,
        saved_bytes=choice.saved_bytes - (last.saved_bytes if last else 0),
        squared_error=choice.error**2 - (last.error**2 if last else 0.0),
    )


def largest_passing(count: int, passes: Callable[[int], bool]) -> int:
    """The largest number up to `count` that passes, found by halving; 0 passes by definition.

    Where passing is not monotone, the result still passes, and its successor was seen to fail unless the result is `count`.
    """
    if count == 0 or passes(count):
        return count
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low
