"""The rules by which a trial decides: faster or not, equivalent or not, and when enough was measured.

The rules of speed err towards "no gain". A verdict of faster or slower needs the whole 95 %
interval on one side of a band of ±2 %, so of two equal models fewer than 5 % of all comparisons,
and in practice far fewer, are called different.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from ..timing import ratio_interval

BAND = 0.02
"""A change of speed up to this is no gain, whatever its sign: the drift between two runs is of this size."""
DEFAULT_TOLERANCE = 0.01
"""Of fidelity. Rounding to 8 and 16 bits stays well inside it (relative errors up to 0.05); what
needs retraining, such as half of the weights or channels removed, falls outside (0.2 and more)."""
DEFAULT_MAX_DROP = 0.01
"""Of the user's metric: one point where the metric is an accuracy."""
FIRST_LOOK = 20
"""Rounds after which it is first asked whether the verdict is clear."""
LOOK_LEVEL = 0.99
"""Of the interval at such a look: stricter than at the end, because looking often finds differences by luck."""
PRECISE = 0.2
"""Width of that interval, relative to the ratio, below which the figure itself is good enough."""

Speed = Literal["faster", "no gain", "slower"]


def speed_verdict(low: float, high: float) -> Speed:
    """Decide from the interval of the speed-up."""
    if low > 1 + BAND:
        return "faster"
    return "slower" if high < 1 - BAND else "no gain"


def is_resolved(low: float, high: float) -> bool:
    """Whether the interval lies wholly above, below or inside the band, so that more rounds would not change the verdict."""
    return low > 1 + BAND or high < 1 - BAND or (low >= 1 - BAND and high <= 1 + BAND)


def explain_speed(ratio: float, low: float, high: float, num_rounds: int) -> str:
    """The verdict on speed in a sentence."""
    found = f"speed-up {ratio:.3g} with the 95 % interval [{low:.3g}, {high:.3g}] over {num_rounds} rounds"
    verdict = speed_verdict(low, high)
    if verdict == "faster":
        return f"{found}: wholly above {1 + BAND:g}"
    if verdict == "slower":
        return f"{found}: wholly below {1 - BAND:g}"
    if is_resolved(low, high):
        return f"{found}: within ±{BAND:.0%} of no change"
    return f"{found}: it reaches into ±{BAND:.0%} of no change, so a difference is not shown"


class EnoughRounds:
    """Tells after each round whether the verdict is clear and the figure good enough.

    It looks at 20, 30, 45 ... rounds only: each look is one more chance to be wrong.
    """

    def __init__(self) -> None:
        self._next_look = FIRST_LOOK

    def __call__(self, samples: Sequence[Sequence[float]]) -> bool:
        """`samples` are the seconds of the original and of the variant, one per round."""
        num_rounds = min(len(s) for s in samples)
        if num_rounds < self._next_look:
            return False
        self._next_look = math.ceil(1.5 * num_rounds)
        ratio, low, high = ratio_interval(samples[0], samples[1], level=LOOK_LEVEL, resamples=1000)
        return is_resolved(low, high) and high - low <= PRECISE * ratio


def judge_outputs(cosine: float, relative_error: float, tolerance: float) -> tuple[bool, str]:
    """Decide whether outputs are equivalent, where there is no metric.

    The cosine must reach ``1 - tolerance``. It does not see a change of scale, so the relative
    error is bounded too: by ``sqrt(2 * tolerance)``, which is what a rotation by that cosine
    alone would give.

    Returns:
        Whether they are, and why.
    """
    lowest, largest = 1 - tolerance, math.sqrt(2 * tolerance)
    sides = f"cosine {_near_one(cosine)} (at least {lowest:g} asked), relative error {relative_error:.2g} (at most {largest:.2g})"
    if cosine >= lowest and relative_error <= largest:
        return True, f"the outputs agree: {sides}"
    return False, f"the outputs differ: {sides}"


def _near_one(cosine: float) -> str:
    return f"{cosine:.4f}" if cosine < 0.9999 else ("1" if cosine == 1 else "above 0.9999")


def judge_metric(before: float, after: float | None, drop_interval: tuple[float, float] | None, max_drop: float) -> tuple[bool, str]:
    """Decide by the user's metric, which says more than the distance of the outputs does.

    Returns:
        Whether the metric holds, and why.
    """
    if after is None:
        return False, f"the metric of the variant's outputs is not finite; the original's is {before:.4g}"
    interval = f", 95 % interval [{drop_interval[0]:.3g}, {drop_interval[1]:.3g}]" if drop_interval else ""
    found = f"metric {before:.4g} before and {after:.4g} after: a drop of {before - after:.3g}{interval}"
    # differences of shares such as 0.98 - 0.97 carry rounding errors of 1e-17
    if before - after <= max_drop + 1e-12:
        return True, f"{found}, at most {max_drop:g} allowed"
    return False, f"{found}, more than the {max_drop:g} allowed"
