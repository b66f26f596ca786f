"""What a plan is asked for, whether it makes sense, and the numbers that are made from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..records import BatchPoint, Experience, ModelInfo, Number, Target, derived
from ..scheduling import Policy
from .allocation import Allocation, Candidate, Load
from .overhead import Overhead
from .queueing import Arrivals, Bursty, Poisson, ServiceTimes
from .simulate import BAND_KIND, Band, RequestClass, Simulation, WaitPolicy

SIMULATION = Number(value=1, unit="ratio", source="estimated", method="the simulated queue stands for the real one")
"""An input of everything that is planned: however sure the measurements are, what follows from them is a prediction."""


@dataclass(frozen=True)
class Problem:
    """Everything that was asked, and the numbers made from it."""

    model: ModelInfo
    ladders: Mapping[str, Sequence[BatchPoint]]
    target: Target
    prices: Mapping[str, float]
    policy: Policy
    mix: tuple[RequestClass, ...]
    memory_limit: Mapping[str, Number]
    overhead: Overhead | None
    experience: Experience | None
    burstiness: float | None

    @property
    def rate(self) -> float:
        """Requests per second to plan for, headroom included."""
        return self.target.requests_per_s.value * (1 + self.target.headroom)

    @property
    def priced(self) -> bool:
        """Whether every device has a price."""
        return all(device in self.prices for device in self.ladders)

    def most(self, device: str) -> int:
        """Replicas on a device that are allowed: by their greatest number, and by the budget."""
        budget, most = self.target.budget, self.target.max_replicas
        return most if budget is None or not self.prices[device] else min(most, math.floor(budget.value / self.prices[device] + 1e-9))

    def allows(self, allocation: Allocation) -> bool:
        """Whether there may be so many replicas."""
        return allocation.replicas <= self.most(allocation.candidate.device)

    def limit_word(self, device: str) -> str:
        """What limits the replicas on a device."""
        return "the budget" if self.most(device) < self.target.max_replicas else "max_replicas"

    @property
    def overhead_s(self) -> float:
        """Typical time that the server adds to a request, in seconds."""
        return self.overhead.number.value if self.overhead else 0.0

    def arrivals(self, rate: float) -> Arrivals:
        """The law of arrivals at the whole service."""
        return Bursty(rate, burst=self.burstiness) if self.burstiness and self.burstiness > 1 else Poisson(rate)

    @property
    def by_event(self) -> bool:
        """Whether requests must be simulated one by one: they differ, or are not served as they come."""
        return self.policy.name != "fcfs" or bool(self.mix)

    def load(self, seed: int) -> Load:
        """What the replicas are simulated under."""
        return Load(
            arrivals=self.arrivals(self.rate),
            latency_p99_s=self.target.latency_p99.value,
            overhead=self.overhead,
            experience=self.experience,
            policy=self.policy if self.by_event else None,
            mix=self.mix,
            seed=seed,
        )

    def effort(self) -> dict[str, tuple[int, int]]:
        """Requests and replications: bursts need longer runs, the event loop affords shorter ones."""
        if self.by_event:
            return {"quick": (2_000, 5), "thorough": (6_000, 11)}
        if self.burstiness and self.burstiness > 1:
            return {"quick": (16_000, 5), "thorough": (40_000, 21)}
        return {"quick": (8_000, 5), "thorough": (20_000, 21)}

    def candidates(self, max_wait_s: Sequence[float], wait_policy: WaitPolicy) -> list[Candidate]:
        """Every way to run a replica that the memory and the budget allow."""
        smallest = max((kind.num_items for kind in self.mix), default=1)
        return [
            Candidate(
                device=device,
                service=service,
                max_batch_size=size,
                max_wait_s=wait,
                wait_policy=wait_policy,
                price=self.prices[device] if self.priced else None,
            )
            for device, points in self.ladders.items()
            if self.most(device)
            for service in [ServiceTimes.from_points(points)]
            for size in _powers_of_two(service.max_batch_size)
            for wait in (sorted(set(max_wait_s)) if size > 1 else sorted(set(max_wait_s))[:1])
            if self._fits(device, size) and size >= smallest
        ]

    def _fits(self, device: str, batch_size: int) -> bool:
        limit = self.memory_limit.get(device)
        peaks = [p.peak_memory_bytes.value for p in self.ladders[device] if p.peak_memory_bytes and p.batch_size >= batch_size]
        return limit is None or not peaks or min(peaks) <= limit.value

    # --- numbers -------------------------------------------------------------------------

    def inputs(self, device: str) -> list[tuple[str, Number]]:
        """What the simulation of `device` read; the ladder as one number, as sure as its weakest."""
        ladder = ladder_number(self.ladders[device])
        asked = [("requests_per_s", self.target.requests_per_s), ("latency_p99_target", self.target.latency_p99)]
        return [*asked, ("service_time", ladder), *([("overhead", self.overhead.number)] if self.overhead else []), ("simulation", SIMULATION)]

    def replicas(self, device: str, count: int, method: str) -> Number:
        """So many replicas, and what says so."""
        return derived(count, "replica", method, self.inputs(device))

    def latency(self, device: str, band: Band, percentile: str) -> Number | None:
        """The simulated latency; None where it has no bound."""
        if math.isinf(band.value):
            return None
        interval = (band.low, band.high) if math.isfinite(band.high) else None
        runs = f"what {self.experience.n} run{'s' if self.experience.n > 1 else ''} of plans here taught" if self.experience else ""
        learnt = f"; corrected and its band widened by {runs}" if runs else ""
        return derived(
            band.value,
            "s",
            f"{percentile} of the simulated queue{' and the server' if self.overhead else ''}, median of the replications{learnt}",
            self.inputs(device),
            interval=interval,
            interval_kind=BAND_KIND if interval else None,
        )

    def utilization(self, device: str, simulation: Simulation) -> Number:
        """Simulated share of time that a replica computes."""
        busy = 1.0 if simulation.unstable else min(simulation.utilization, 1.0)
        return derived(busy, "ratio", "simulated share of time that a replica computes", self.inputs(device))

    def cost(self, device: str, replicas: int) -> Number | None:
        """USD per hour; None without a price."""
        if device not in self.prices:
            return None
        price = Number(value=self.prices[device], unit="USD/h", source="user", method=f"price of {device}")
        count = self.replicas(device, replicas, "replicas")
        return derived(round(replicas * self.prices[device], 9), "USD/h", "replicas x price", [("price", price), ("replicas", count)])

    def throughput_limit(self, candidate: Candidate, replicas: int) -> Number:
        """Requests per second from which on the queue grows."""
        value = replicas * candidate.stable_rate(self.load(0))
        method = f"replicas x {candidate.max_batch_size} / mean time of a batch of {candidate.max_batch_size}"
        if self.server_binds(candidate):
            method = "replicas x the most that a front end takes on its one core"
        return derived(value, "request/s", method, self.inputs(candidate.device))

    def server_binds(self, candidate: Candidate) -> bool:
        """Whether a replica's server is full before its model is."""
        load = self.load(0)
        return candidate.stable_rate(load) == load.server_requests_per_s


def ladder_number(points: Sequence[BatchPoint]) -> Number:
    """A batch ladder as one input, as sure as its weakest point."""
    return derived(points[0].latency_p50.value, "s", "batch ladder", [(f"batch {point.batch_size}", point.latency_p50) for point in points])


def _powers_of_two(largest: int) -> list[int]:
    return [2**k for k in range(largest.bit_length())]


def check_problem(
    service_time: Mapping[str, Sequence[BatchPoint]],
    target: Target,
    prices: Mapping[str, float] | None,
    max_wait_s: Sequence[float],
    burstiness: float | None,
) -> None:
    """Refuse what cannot be planned for.

    Raises:
        InputError: no device, no ladder, or a value out of range.
    """
    if not service_time:
        raise InputError("no device to plan for", help="give a batch ladder for one device at least")
    for device, points in service_time.items():
        if not points:
            raise InputError(f"the batch ladder of {device!r} is empty", help="profile the model on it, or estimate it")
    for name, number, unit in (("rate", target.requests_per_s, "request/s"), ("p99 target", target.latency_p99, "s")):
        if number.value <= 0 or number.unit != unit:
            raise InputError(f"the {name} must be above 0 and in {unit}, got {number.value} {number.unit}")
    if target.max_replicas < 1 or not target.headroom >= 0:
        raise InputError(f"max_replicas must be at least 1 and headroom at least 0, got {target.max_replicas} and {target.headroom}")
    if not max_wait_s or not all(math.isfinite(wait) and wait >= 0 for wait in max_wait_s):
        raise InputError(f"waiting times must be finite and at least 0, got {tuple(max_wait_s)}")
    for device, price in (prices or {}).items():
        if device not in service_time:
            raise InputError(f"there is a price for {device!r}, which is not planned for", help=f"devices: {', '.join(service_time)}")
        if not (math.isfinite(price) and price >= 0):
            raise InputError(f"the price of {device!r} must be at least 0, got {price}")
    if target.budget is not None:
        _check_budget(target.budget.value, service_time, prices or {})
    if burstiness is not None and not (math.isfinite(burstiness) and burstiness >= 1):
        raise InputError(f"burstiness must be at least 1, got {burstiness}", help="1 is a Poisson stream; 4 has bursts of four times the rate")


def _check_budget(budget: float, devices: Iterable[str], prices: Mapping[str, float]) -> None:
    unpriced = [device for device in devices if device not in prices]
    if unpriced:
        text = f"a budget of {budget:g} USD per hour says nothing without a price of {', '.join(unpriced)}"
        raise InputError(text, help=f"give the price of a replica: --price {unpriced[0]}=0.5")
    cheapest = min(prices[device] for device in devices)
    if not (math.isfinite(budget) and budget > 0) or cheapest > budget:
        raise InputError(f"a budget of {budget:g} USD per hour does not pay for one replica at {cheapest:g}", help="raise the budget")
