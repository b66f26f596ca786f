"""Simulates a pool of replicas that an autoscaler grows and shrinks: cold starts, failures, and requests that are turned away.

Every request goes to one of the ready replicas at random, as behind a load balancer without memory; where none is ready it waits for the
first. A replica that is free takes what waits for it, up to a batch, at once. A replica that is to go takes nothing new and ends once it is
empty; one that fails loses its work, which goes to the others, and starts again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import InputError
from ..scaling import Observation, Scaler
from .queueing import ServiceTimes

if TYPE_CHECKING:
    from .queueing import Array

PATIENCE_S = 3600.0
"""Requests that nobody has taken so long after the last arrival are counted as lost."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """How replicas are run."""

    service: ServiceTimes = field(compare=False)
    max_batch_size: int
    min_replicas: int = 1
    max_replicas: int = 100
    start_replicas: int | None = None
    """Ready at the beginning; the fewest if not given."""
    startup_s: Sequence[float] = (0.0,)
    """Times from asking for a replica until it is ready; drawn from."""
    scaler: Scaler | None = None
    """None: a fixed number."""
    max_waiting: int | None = None
    """Most requests that wait at a replica; further ones are turned away."""
    patience_s: float = math.inf
    """A request that has waited longer at a replica is given up when its turn comes."""
    mtbf_s: float = math.inf
    """Mean time between failures of one replica."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch_size <= self.service.max_batch_size:
            raise InputError(f"max_batch_size must lie between 1 and {self.service.max_batch_size} (the table's end), got {self.max_batch_size}")
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise InputError(f"replicas from {self.min_replicas} to {self.max_replicas} are no range", help="the most must be 1 or more")
        if not self.startup_s or not all(math.isfinite(s) and s >= 0 for s in self.startup_s):
            raise InputError(f"start-up times must be finite and at least 0, got {list(self.startup_s)}")
        if not (self.mtbf_s > 0 and self.patience_s > 0):
            raise InputError(f"mean time between failures and patience must be above 0, got {self.mtbf_s} and {self.patience_s}")


@dataclass(frozen=True, eq=False)
class PoolRun:
    """What happened."""

    arrival_s: Array
    finish_s: Array
    """By request; not a number where it was turned away, given up or lost."""
    replica_s: float
    """Replica seconds, from asking for each to its end, within the time in which requests arrive."""
    span_s: float
    time_s: Sequence[float]
    """Of each tick, in the sequences below too."""
    wanted: Sequence[int]
    ready: Sequence[int]
    waiting: Sequence[int]
    """Requests under way, waiting ones included."""
    requests_per_s: Sequence[float]
    failures: int
    requeued: int
    """Requests that a failed replica had, and others took over."""
    most_replicas: int
    """Largest number there was at once, those starting included."""

    @property
    def latency_s(self) -> Array:
        """Arrival to answer, by request."""
        return self.finish_s - self.arrival_s

    @property
    def mean_replicas(self) -> float:
        """Over the time in which requests arrive."""
        return min(self.replica_s / self.span_s, self.most_replicas)  # which a sum of parts may exceed by its rounding

    @property
    def dropped(self) -> int:
        """Requests without an answer."""
        import numpy as np

        return int(np.isnan(self.finish_s).sum())

    def attainment(self, target_s: float) -> float:
        """Share of all requests that were answered within `target_s`."""
        return float((self.latency_s <= target_s).mean())  # not a number is never within


def simulate_pool(arrival_s: Sequence[float] | Array, pool: Pool, *, seed: int | Sequence[int] = 0) -> PoolRun:
    """Serve requests of one item each by a pool.

    Args:
        arrival_s: Sorted arrival times, from 0 on.
        pool: The replicas.
        seed: Of service times, start-up times, failures, and of who goes where.

    Raises:
        InputError: nothing arrives.
    """
    if not len(arrival_s):
        raise InputError("nothing arrives", help="give at least one arrival")
    return _Simulation(arrival_s, pool, seed).run()


class _Replica:
    __slots__ = ("asked_s", "batch", "draining", "ended_s", "free_s", "indices", "position", "ready_s", "times")

    def __init__(self, asked_s: float, ready_s: float) -> None:
        self.asked_s, self.ready_s = asked_s, ready_s
        self.times: list[float] = []
        """When each request came here."""
        self.indices: list[int] = []
        """Which it is."""
        self.position = 0
        self.free_s = ready_s
        self.batch: list[int] = []
        """The requests in work until `free_s`."""
        self.draining = False
        self.ended_s = math.inf

    @property
    def load(self) -> int:
        return len(self.times) - self.position


class _Simulation:
    def __init__(self, arrival_s: Sequence[float] | Array, pool: Pool, seed: int | Sequence[int]) -> None:
        import numpy as np

        self.pool = pool
        self.arrivals = np.asarray(arrival_s, dtype=float)
        self.finish = np.full(len(self.arrivals), math.nan)
        self.random = np.random.default_rng(seed)
        self.rows: list[list[float]] = pool.service.quantiles[: pool.max_batch_size + 1].tolist()
        self.levels = len(self.rows[0])
        self.draws: list[int] = []
        self.replicas: list[_Replica] = []
        self.gone: list[_Replica] = []
        self.door: list[int] = []
        """Requests that wait for any replica to be ready."""
        self.failing: list[tuple[float, int, _Replica]] = []
        self.spans: list[tuple[float, float]] = []
        """Beginning and end of batches since the last tick."""
        self.ends: list[tuple[float, int]] = []
        """Ends of batches that lie ahead, and how many requests each answers."""
        self.inside = 0
        self.area = 0.0
        """Requests under way times seconds, since the last tick."""
        self.failures = self.requeued = self.most = self.asked = 0
        self.now = self.until = 0.0

    def run(self) -> PoolRun:
        pool = self.pool
        controller = pool.scaler.start() if pool.scaler else None
        period = pool.scaler.period_s if pool.scaler else max(1.0, float(self.arrivals[-1]) / 500)
        first = min(max(pool.start_replicas or pool.min_replicas, pool.min_replicas, 0), pool.max_replicas)
        for _ in range(first):
            self._ask(0.0, 0.0)
        span = float(self.arrivals[-1])
        seen_at: list[tuple[float, int, int, int, float]] = []
        tick, wanted, taken = period, first, 0
        while taken < len(self.arrivals) or self.inside:
            taken_before = taken
            while (until := min(tick, self._next_event())) < tick:
                taken = self._advance(taken, until)
                self._happen(until)
            taken = self._advance(taken, tick)
            ready = [r for r in self.replicas if r.ready_s <= tick and not r.draining]
            busy = min(1.0, self._busy_s(tick - period, tick) / period / len(ready)) if ready else 0.0
            seen = Observation(tick, len(ready), wanted, busy, (taken - taken_before) / period, self.area / period)
            self.area = 0.0
            if controller is not None:
                wanted = min(max(controller.wanted(seen), pool.min_replicas), pool.max_replicas)
                if not wanted and self.door:
                    wanted = 1  # somebody waits at the door of an empty pool: the activator asks for one
                self._resize(wanted, tick)
            seen_at.append((tick, wanted, len(ready), self.inside, seen.requests_per_s))
            if tick > span + PATIENCE_S:
                break
            tick += period
        span = max(span, period)
        replica_s = sum(max(0.0, min(r.ended_s, span) - r.asked_s) for r in [*self.gone, *self.replicas])
        times, wanteds, readies, insides, rates = zip(*seen_at, strict=True)
        return PoolRun(self.arrivals, self.finish, replica_s, span, times, wanteds, readies, insides, rates, self.failures, self.requeued, self.most)

    # --- time ----------------------------------------------------------------------------

    def _next_event(self) -> float:
        """When a replica gets ready or fails."""
        starting = min((r.ready_s for r in self.replicas if r.ready_s > self.now), default=math.inf)
        return min(starting, self.failing[0][0] if self.failing else math.inf)

    def _advance(self, taken: int, until: float) -> int:
        """Let requests arrive and be served up to `until`; return how many have arrived."""
        import numpy as np

        self.until = until
        ready = [r for r in self.replicas if r.ready_s <= self.now and not r.draining]
        if ready and self.door:
            waiting, self.door = self.door, []
            for index, k in zip(waiting, self.random.integers(0, len(ready), len(waiting)).tolist(), strict=True):
                self._enqueue(ready[k], index, self.now)
        upto = int(np.searchsorted(self.arrivals, until, side="left"))
        self.area += self.inside * (until - self.now)
        if upto > taken:
            new = self.arrivals[taken:upto]
            self.area += float((until - new).sum())
            self.inside += upto - taken
            if ready:
                self._spread(ready, taken, new)
            else:
                self.door += range(taken, upto)
        for replica in tuple(self.replicas):
            if replica.ready_s <= self.now:
                self._serve(replica, until)
        self._answer(until)
        self.now = until
        return upto

    def _spread(self, ready: Sequence[_Replica], first: int, times: Array) -> None:
        """Let requests go to replicas at random."""
        import numpy as np

        chosen = self.random.integers(0, len(ready), len(times))
        if self.pool.max_waiting is not None:
            for index, time, k in zip(range(first, first + len(times)), times.tolist(), chosen.tolist(), strict=True):
                self._enqueue(ready[k], index, time)
            return
        order = np.argsort(chosen, kind="stable")
        bounds = np.searchsorted(chosen[order], np.arange(len(ready) + 1)).tolist()
        for replica, start, stop in zip(ready, bounds, bounds[1:], strict=False):
            mine = order[start:stop]
            replica.times += times[mine].tolist()
            replica.indices += (first + mine).tolist()

    def _serve(self, replica: _Replica, until: float) -> None:
        """Start every batch that starts before `until`."""
        times, i, free = replica.times, replica.position, replica.free_s
        begin, last = i, i
        ends: list[float] = []
        count, limit, patience = len(times), self.pool.max_batch_size, self.pool.patience_s
        while i < count:
            start = times[i]
            if free > start:
                start = free
            if start >= until:
                break
            if start - times[i] > patience:
                self._drop(start)
                ends.append(math.nan)
                i += 1
                continue
            stop = i + 1
            while stop < count and stop - i < limit and times[stop] <= start:
                stop += 1
            free = start + self._draw(stop - i)
            heapq.heappush(self.ends, (free, stop - i))
            self.spans.append((start, free))
            ends += [free] * (stop - i)
            last, i = i, stop
        if i > begin:
            self.finish[replica.indices[begin:i]] = ends
            replica.batch = replica.indices[last:i]
        if i > 1024:
            del times[:i], replica.indices[:i]
            i = 0
        replica.position, replica.free_s = i, free
        if replica.draining and i == len(times) and free <= until:
            self._end(replica, max(free, self.now))

    def _answer(self, until: float) -> None:
        while self.ends and self.ends[0][0] <= until:
            end, size = heapq.heappop(self.ends)
            self.inside -= size
            self.area -= size * (until - end)

    def _busy_s(self, since: float, until: float) -> float:
        """Seconds that replicas computed; batches that ended by then are forgotten."""
        busy = sum(min(end, until) - max(start, since) for start, end in self.spans)
        self.spans = [span for span in self.spans if span[1] > until]
        return busy

    def _draw(self, size: int) -> float:
        if not self.draws:
            self.draws = self.random.integers(0, self.levels, 4096).tolist()
        return self.rows[size][self.draws.pop()]

    # --- requests ------------------------------------------------------------------------

    def _enqueue(self, replica: _Replica, index: int, time: float) -> None:
        if self.pool.max_waiting is not None:
            self._serve(replica, time)  # so that its line is as long as it is then
            if replica.load >= self.pool.max_waiting:
                self._drop(time)
                return
        replica.times.append(time)
        replica.indices.append(index)

    def _drop(self, time: float) -> None:
        self.inside -= 1
        self.area -= self.until - time

    # --- replicas ------------------------------------------------------------------------

    def _ask(self, now: float, startup: float | None = None) -> None:
        took = startup if startup is not None else float(self.random.choice(self.pool.startup_s))
        replica = _Replica(now, now + took)
        self.replicas.append(replica)
        self.most = max(self.most, len(self.replicas))
        self._doom(replica)

    def _doom(self, replica: _Replica) -> None:
        if math.isfinite(self.pool.mtbf_s):
            self.asked += 1
            heapq.heappush(self.failing, (replica.ready_s + float(self.random.exponential(self.pool.mtbf_s)), self.asked, replica))

    def _happen(self, now: float) -> None:
        """A replica that got ready needs nothing done; one that fails does."""
        while self.failing and self.failing[0][0] <= now:
            replica = heapq.heappop(self.failing)[2]
            if replica.ended_s > now:
                self._fail(replica, now)

    def _fail(self, replica: _Replica, now: float) -> None:
        self.failures += 1
        back = replica.indices[replica.position :]
        if replica.free_s > now and replica.batch:
            self.finish[replica.batch] = math.nan
            self.ends.remove((replica.free_s, len(replica.batch)))
            heapq.heapify(self.ends)
            start = next(start for start, end in self.spans if end == replica.free_s)
            self.spans.remove((start, replica.free_s))
            self.spans.append((start, now))
            back = replica.batch + back
        self.requeued += len(back)
        self.door += back
        if replica.draining:
            self._end(replica, now)
            return
        replica.times, replica.indices, replica.position, replica.batch = [], [], 0, []
        replica.ready_s = replica.free_s = now + float(self.random.choice(self.pool.startup_s))
        self._doom(replica)

    def _resize(self, wanted: int, now: float) -> None:
        staying = [r for r in self.replicas if not r.draining]
        for _ in range(wanted - len(staying)):
            if len(self.replicas) >= self.pool.max_replicas:
                break  # one that is still draining holds its place
            self._ask(now)
        # Those still starting go first, then the least busy.
        for replica in sorted(staying, key=lambda r: (-r.ready_s, r.load))[: max(0, len(staying) - wanted)]:
            replica.draining = True
            if replica.ready_s > now or (replica.load == 0 and replica.free_s <= now):
                self._end(replica, now)

    def _end(self, replica: _Replica, now: float) -> None:
        replica.ended_s = now
        self.replicas.remove(replica)
        self.gone.append(replica)
