"""The rules by which a trial decides: faster or not, equivalent or not, and when enough was measured.

The rules of speed err towards "no gain". Rounds are looked at no more than `LOOKS` times, each time with an interval of level
``1 - ERROR / LOOKS``; so all intervals of a trial hold together with at least ``1 - ERROR`` (Bonferroni), whenever it stops. A trial whose time is up
before the first look is looked at once, at its end, and that interval has the level ``1 - ERROR``. A verdict of
faster or slower needs the whole interval beyond a band of ±`BAND`: of copies that differ by no more than the band, fewer than `ERROR` are
called different, and of identical ones far fewer.

None is given by a clock that others disturbed: see `decide_speed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..records import Clock, Speed
from ..timing import paired_ratio
from ..units import format_share

BAND = 0.02
"""A change of speed up to this is no gain, whatever its sign: where two copies lie in memory alone can make one."""
ERROR = 0.05
"""Share of copies of equal speed that may be called faster or slower."""
LOOKS = 10
"""Times that the rounds are looked at, the last one included."""
FIRST_LOOK = 10
"""Rounds after which it is first asked whether the verdict is clear."""
LOOK_FACTOR = 1.6
"""From one look to the next; nine looks reach 500 rounds."""
PRECISE = 0.2
"""Width of the interval, relative to the ratio, below which the figure itself is good enough."""
ROUGH = 0.5
"""The same where the variant is slower: it is refused, by how much matters less, and who asked waits for the next try."""
DEFAULT_TOLERANCE = 0.01
"""Of fidelity. Rounding to 8 and 16 bits stays well inside it (relative errors up to 0.05); what
needs retraining, such as half of the weights or channels removed, falls outside (0.2 and more)."""
DEFAULT_MAX_DROP = 0.01
"""Of the user's metric: one point where the metric is an accuracy."""


def num_looks(num_rounds: int) -> int:
    """How often the rounds may have been looked at, the last time included: it is the clock that ends a trial before the first look, not what it found."""
    return 1 if num_rounds < FIRST_LOOK else LOOKS


@dataclass(frozen=True)
class Ratio:
    """Speed of the variant over that of the original by one clock."""

    value: float
    low: float
    high: float
    num_rounds: int

    @classmethod
    def of(cls, original: Sequence[float], variant: Sequence[float]) -> Ratio:
        """From seconds per call of both, round by round."""
        value, low, high = paired_ratio(original, variant, level=1 - ERROR / num_looks(len(original)))
        return cls(value, min(low, value), max(high, value), len(original))

    @property
    def verdict(self) -> Speed:
        """Faster or slower only where the whole interval is."""
        if self.low > 1 + BAND:
            return "faster"
        return "slower" if self.high < 1 - BAND else "no gain"

    @property
    def resolved(self) -> bool:
        """Whether the interval lies wholly above, below or inside the band, so that more rounds would not change the verdict."""
        return self.verdict != "no gain" or (self.low >= 1 - BAND and self.high <= 1 + BAND)

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Decision:
    """What the rounds say about speed, and by which clock."""

    clock: Clock
    wall: Ratio
    processor: Ratio | None
    verdict: Speed
    resolved: bool
    why_clock: str
    """In words that follow 'by'."""
    doubt: str | None = None
    """Why the clock cannot be trusted, so that no verdict is given, however clear its interval is."""
    alone_would_tell: bool = False
    """Whether one thread by itself could be judged."""
    one_thread: Ratio | None = None
    """By processor time with a single thread, measured where other work disturbs several: it is told, and decides nothing."""

    @property
    def ratio(self) -> Ratio:
        """By the clock that decides."""
        return self.processor if self.clock == "processor" and self.processor else self.wall

    @property
    def remedy(self) -> str:
        """What to do where it cannot be told."""
        return "repeat it on a quiet machine" + (", or with one thread: threads=1" if self.alone_would_tell else "")

    def explain(self) -> str:
        """The verdict on speed in a sentence."""
        found = f"speed-up {self.ratio} over {self.ratio.num_rounds} rounds by {self.why_clock}"
        if self.doubt:
            alone = f"; the processor time of one thread says {self.one_thread}" if self.one_thread else ""
            return f"{found}: it cannot be told, because {self.doubt}{alone}"
        if self.verdict == "faster":
            return f"{found}: wholly above {1 + BAND:g}"
        if self.verdict == "slower":
            return f"{found}: wholly below {1 - BAND:g}"
        if self.resolved:
            return f"{found}: within ±{format_share(BAND, decimals=0)} of no change"
        return f"{found}: it reaches into ±{format_share(BAND, decimals=0)} of no change, so a difference is not shown"


def decide_speed(wall: Ratio, processor: Ratio | None, *, noisy: bool, threads: int, robbed: bool = False) -> Decision:
    """Decide which clock counts, and what it says.

    Wall time is what a user gets, and decides on a quiet machine. Where other work takes the cores away, calls of one thread are compared by
    processor time, which does not count the waiting. With several threads it does: those that wait for a descheduled one spin, and the model
    with more operators waits more often. Int8 that is 1.5 times as fast on a quiet machine came out at 0.34 by both clocks beside other work,
    and at a nine hundredth beside more of it. Nor does it help where the host of a virtual machine takes the processor away, which many count
    as the work of whoever had it. There no clock is left, and no verdict is given.

    Args:
        wall: Speed-up by wall time.
        processor: By processor time of all threads; None where the work is not done by the processor.
        noisy: Whether others took the cores away.
        threads: That a call may use.
        robbed: Whether it was the host that took them.
    """
    if not noisy:
        return Decision("wall", wall, processor, wall.verdict, wall.resolved, "wall time")
    if processor is not None and threads == 1 and not robbed:
        return Decision("processor", wall, processor, processor.verdict, processor.resolved, "processor time, because other work takes the cores away")
    several = processor is not None and threads > 1
    doubt = "threads that wait for each other suffer more from other work than one alone" if several else "there is no clock here that leaves other work out"
    if robbed:
        doubt = "the host took the processor away, which may count as time of whoever had it"
    return Decision("wall", wall, processor, "cannot tell", False, "wall time, beside other work", doubt, several and not robbed)


def is_enough(decision: Decision) -> bool:
    """Whether the rounds are clear, whatever may be doubted about them, and the figure itself is good enough."""
    ratio = decision.ratio
    width = ROUGH if decision.verdict == "slower" else PRECISE
    return (decision.resolved or decision.doubt is not None) and ratio.high - ratio.low <= width * ratio.value


class Looks:
    """Tells after which rounds to look; every look is one more chance to be wrong, so there are few."""

    def __init__(self) -> None:
        self._next = FIRST_LOOK
        self._left = LOOKS - 1  # one for the end

    def due(self, num_rounds: int) -> bool:
        """Whether to look now."""
        if num_rounds < self._next or self._left == 0:
            return False
        self._next = math.ceil(LOOK_FACTOR * num_rounds)
        self._left -= 1
        return True


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
