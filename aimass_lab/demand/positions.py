"""Sums over every step of a generation from a few steps that were followed: each step's demand is a polynomial in its position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from .generation import Generation, Phase, Phases

SAME = 1e-9
"""Relative difference up to which two sums are the same number."""


@dataclass(frozen=True)
class Decode:
    """All decode steps of a generation, by the few that were followed."""

    phases: Phases
    weights: Mapping[int, Fraction]
    """How often the step at each position counts in a sum over all positions."""
    exact: bool
    """The polynomial met every step that was followed beyond those it was drawn through."""

    def total(self, read: Callable[[Phase], float]) -> float:
        """Sum of what `read` finds, over every step."""
        values = sum((weight * Fraction(read(self.phases.steps[q])) for q, weight in self.weights.items()), Fraction(0))
        return int(values) if values.denominator == 1 else float(values)

    @property
    def shown(self) -> tuple[int, ...]:
        """Positions worth showing: both ends, and where the growth changes."""
        return tuple(sorted(self.weights))


def linear_weights(knots: Iterable[int]) -> dict[int, Fraction]:
    """Weights of the knots in the sum over all whole positions of the broken line through them, both ends included."""
    ordered = sorted(set(knots))
    weights = {q: Fraction(0) for q in ordered}
    for a, b in pairwise(ordered):
        # a, a+1 ... b-1: on the chord, b-a+1 halves of the value at a and b-a-1 halves of that at b
        weights[a] += Fraction(b - a + 1, 2)
        weights[b] += Fraction(b - a - 1, 2)
    if ordered:
        weights[ordered[-1]] += 1
    return weights


def quadratic_weights(knots: tuple[int, int, int]) -> dict[int, Fraction]:
    """Weights of three knots in the sum over all whole positions from the first to the last of the parabola through them."""
    first, last = knots[0], knots[-1]
    length = last - first
    sums = (length + 1, Fraction(length * (length + 1), 2), Fraction(length * (length + 1) * (2 * length + 1), 6))
    weights = {}
    for i in range(3):
        here, (j, k) = knots[i] - first, [knots[n] - first for n in range(3) if n != i]
        weights[knots[i]] = (sums[2] - (j + k) * sums[1] + j * k * sums[0]) / ((here - j) * (here - k))
    return weights


def follow_steps(generation: Generation, batch_size: int, new_tokens: int) -> Decode:
    """Follow the prompt and as many steps as a sum over all of them needs.

    The first new token comes out of the prefill, so `new_tokens` tokens take one step less. With a cache, a
    step's demand is a straight line in its position, or a broken one where a window of attention fills up;
    without one, a parabola.

    Args:
        generation: The model.
        batch_size: Sequences made side by side.
        new_tokens: Tokens made of each.

    Raises:
        ModelError: the model raised.
        InputError: it is no sequence model.
    """
    first, last = generation.start, generation.start + new_tokens - 2
    if last - first < 4:
        every = range(first, last + 1)
        return Decode(generation.follow(batch_size, every), {q: Fraction(1) for q in every}, exact=True)
    if generation.kind == "recompute":
        return _parabola(generation, batch_size, first, last)
    phases = generation.follow(batch_size, (first, first + 1, last))
    if all(_same(read(phases.steps[last]), _beyond(phases, read, first, last)) for read in READINGS):
        return Decode(phases, linear_weights((first, last)), exact=True)
    return _broken_line(generation, batch_size, phases, first, last)


def _parabola(generation: Generation, batch_size: int, first: int, last: int) -> Decode:
    knots = (first, (first + last) // 2, last)
    phases = generation.follow(batch_size, {*knots, first + 1})
    weights = quadratic_weights(knots)
    exact = all(_same(read(phases.steps[first + 1]), _parabola_at(phases, knots, read, first + 1)) for read in READINGS)
    return Decode(phases, weights, exact)


def _broken_line(generation: Generation, batch_size: int, start: Phases, first: int, last: int) -> Decode:
    """One bend, where the lines from both ends meet; followed there to see whether it is so."""
    end = generation.follow(batch_size, (last - 1, last))
    bends = {_meeting(start, end, read, first, last) for read in READINGS} - {None}
    knots = sorted({first, last, *(q for x in bends if x is not None for q in (math.floor(x), math.ceil(x)) if first < q < last)})
    inner = [q for q in knots if q not in (first, last)]
    phases = generation.follow(batch_size, (first, first + 1, *inner, last - 1, last))
    weights = linear_weights(knots)
    return Decode(phases, weights, exact=bool(inner) and all(_bends_there(phases, knots, read) for read in READINGS))


def _meeting(start: Phases, end: Phases, read: Callable[[Phase], float], first: int, last: int) -> float | None:
    a, b = read(start.steps[first]), read(end.steps[last])
    rise, fall = read(start.steps[first + 1]) - a, b - read(end.steps[last - 1])
    if rise == fall:
        return None
    x = (b - a + rise * first - fall * last) / (rise - fall)
    return x if first < x < last else None


def _bends_there(phases: Phases, knots: list[int], read: Callable[[Phase], float]) -> bool:
    """Whether the first and the last piece have the slope that was seen at the ends, so that nothing bends in between."""
    first, last = knots[0], knots[-1]
    before = read(phases.steps[knots[1]]), _beyond(phases, read, first, knots[1])
    slope = read(phases.steps[last]) - read(phases.steps[last - 1])
    after = read(phases.steps[knots[-2]]), read(phases.steps[last]) - slope * (last - knots[-2])
    return _same(*before) and _same(*after)


def _beyond(phases: Phases, read: Callable[[Phase], float], first: int, position: int) -> float:
    a, b = read(phases.steps[first]), read(phases.steps[first + 1])
    return a + (b - a) * (position - first)


def _parabola_at(phases: Phases, knots: tuple[int, int, int], read: Callable[[Phase], float], position: int) -> float:
    value = Fraction(0)
    for i, q in enumerate(knots):
        j, k = (knots[n] for n in range(3) if n != i)
        value += Fraction((position - j) * (position - k), (q - j) * (q - k)) * Fraction(read(phases.steps[q]))
    return float(value)


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=SAME)


def read_flops(phase: Phase) -> float:
    """Model FLOPs of one call."""
    return phase.trace.flops


def read_bytes(phase: Phase) -> float:
    """Bytes that its operators move."""
    return phase.trace.bytes_moved


READINGS = (read_flops, read_bytes)
