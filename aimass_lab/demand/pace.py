"""How long a generation takes by what its phases ask for: to the first token, per token, in all; and what is in flight at a rate."""

from __future__ import annotations

from collections.abc import Callable

from ..prediction.target import TargetDevice, estimate_latency
from ..records import Note, Number, derived
from .positions import Decode


class Pace:
    """Times of one generation on one device, each phase predicted once.

    Args:
        decode: The generation.
        target: The device.
        dtype: Of the weights, torch's word.
        batch_size: Sequences side by side.
        new_tokens: Of each sequence.
        cached: There is a cache, which could also be kept in place.
    """

    def __init__(self, decode: Decode, target: TargetDevice, dtype: str, *, batch_size: int, new_tokens: int, cached: bool) -> None:
        self.decode, self.target, self.dtype = decode, target, dtype
        self.batch_size, self.new_tokens, self.cached = batch_size, new_tokens, cached
        self.notes: list[Note] = []
        self._times: dict[tuple[int | None, bool], Number | None] = {}
        self.first_token = self.of_step(None)
        self.per_token = self._mean_step(paged=False)
        self.per_token_paged = self._mean_step(paged=True)
        self.whole = self._whole()
        self.tokens_per_s = _rate(batch_size * new_tokens, self.whole, "new tokens of the batch over the time of the whole generation")
        self.decode_tokens_per_s = _rate(batch_size, self.per_token, "one token of each sequence over the mean time of a step")

    def of_step(self, position: int | None, *, paged: bool = False) -> Number | None:
        """Time of the step at a position, of the prefill where there is none; None where a rate of the device is unknown.

        Args:
            position: Tokens that went before.
            paged: With a cache that is kept in place.
        """
        if paged and not self.cached:
            return None
        if (position, paged) not in self._times:
            phase = self.decode.phases.prefill if position is None else self.decode.phases.steps[position]
            time, notes = estimate_latency(phase.in_place if paged else phase.trace, self.target, self.dtype)
            self.notes += [note for note in notes if note not in self.notes]
            self._times[position, paged] = time
        return self._times[position, paged]

    def _mean_step(self, *, paged: bool) -> Number | None:
        """Mean over the steps, by the same weights as the sums of their demand."""
        weights = self.decode.weights
        known = {q: time for q in weights if (time := self.of_step(q, paged=paged)) is not None}
        if not weights or len(known) < len(weights):
            return None
        count = sum(weights.values())

        def mean(read: Callable[[Number], float]) -> float:
            return sum(float(weight / count) * read(known[q]) for q, weight in weights.items())

        cache = "a cache kept in place" if paged else "as the model runs"
        return derived(
            mean(lambda n: n.value), "s", f"mean over the decode steps, {cache}", [(f"step {q}", n) for q, n in known.items()],
            interval=(mean(_low), mean(_high)), interval_kind=next(iter(known.values())).interval_kind,
        )  # fmt: skip

    def _whole(self) -> Number | None:
        prefill, step, steps = self.first_token, self.per_token, self.new_tokens - 1
        if prefill is None or (steps and step is None):
            return None

        def whole(read: Callable[[Number], float]) -> float:
            return read(prefill) + (steps * read(step) if step else 0.0)

        parts = [("time_to_first_token", prefill), *([("time_per_output_token", step)] if step else [])]
        return derived(
            whole(lambda n: n.value), "s", f"prefill and {steps} steps", parts, interval=(whole(_low), whole(_high)), interval_kind=prefill.interval_kind
        )

    def in_flight(self, rate: Number) -> Number | None:
        """Sequences that are being generated at any moment, by Little's law."""
        if self.whole is None:
            return None
        return derived(
            rate.value * self.whole.value, "request", "Little's law: rate x time of a generation at this batch, waiting left out",
            [("requests_per_s", rate), ("generation_time", self.whole)],
            interval=(rate.value * _low(self.whole), rate.value * _high(self.whole)), interval_kind=self.whole.interval_kind,
        )  # fmt: skip


def _rate(count: int, time: Number | None, method: str) -> Number | None:
    if time is None or not time.value:
        return None
    ends = (count / _high(time), count / _low(time)) if _low(time) > 0 else None
    return derived(count / time.value, "token/s", method, [("time", time)], interval=ends, interval_kind=time.interval_kind if ends else None)


def _low(number: Number) -> float:
    return number.interval[0] if number.interval else number.value


def _high(number: Number) -> float:
    return number.interval[1] if number.interval else number.value
