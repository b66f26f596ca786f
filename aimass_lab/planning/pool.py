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
from .forms import Form, Loop
from .queueing import ServiceTimes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@Loop
def _serve(times, indices, i, batch, begin, free, before, until, since, limit, patience, rows, draws, drawn, finish):  # type: ignore[no-untyped-def]
    """Start every batch of one replica that starts before `before`, and settle those that end by `until`.

    Args:
        times: When each request came here.
        indices: Which it is.
        i: The first that was not taken yet.
        batch: Requests in work, which are those before `i`; 0: none.
        begin: When their batch began.
        free: When it ends, or ended.
        before: End of the time in which batches may start.
        until: Until when batches are settled.
        since: From when on computing counts.
        limit: Most requests of a batch.
        patience: Longest that a request waits.
        rows: Equally likely times of a batch by its size.
        draws: Which of them each batch takes.
        drawn: The first that was not taken yet.
        finish: When each request is answered, to be written.

    Returns:
        `i`, `batch`, `begin`, `free` and `drawn` as they are now; how many requests are done with, the seconds that they were so up to `until`
        altogether, and the seconds that the replica computed for those that were answered.
    """
    done, area, busy, count = 0, 0.0, 0.0, len(times)
    while True:
        if batch and free <= until:
            done += batch
            area += batch * (until - free)
            busy += free - (begin if begin > since else since)
            batch = 0
        if i == count:
            break
        start = came = times[i]
        if free > start:
            start = free
        if start >= before:
            break
        if start - came > patience:
            done += 1
            area += until - start
            i += 1
            continue
        stop, most = i + 1, i + limit
        if most > count:
            most = count
        while stop < most and times[stop] <= start:
            stop += 1
        begin, batch = start, stop - i
        free = start + rows[batch][draws[drawn]]
        drawn += 1
        for index in indices[i:stop]:
            finish[index] = free
        i = stop
    return i, batch, begin, free, drawn, done, area, busy


class _Replica:
    __slots__ = ("asked_s", "batch", "begin_s", "draining", "ended_s", "free_s", "indices", "position", "ready_s", "times")

    def __init__(self, asked_s: float, ready_s: float, form: Form) -> None:
        self.asked_s = asked_s
        self.draining = False
        self.ended_s = math.inf
        self.start(ready_s, form)

    def start(self, ready_s: float, form: Form) -> None:
        """Begin with nothing to do."""
        self.ready_s = self.free_s = self.begin_s = ready_s
        self.times = form.room(0, 0.0)
        """When each request came here."""
        self.indices = form.room(0, 0)
        """Which it is."""
        self.position = 0
        self.batch = 0
        """Requests in work until `free_s`: those before `position`."""

    def take(self, times: Array, indices: NDArray[np.int64], form: Form) -> None:
        """Let requests wait here; what was answered is forgotten."""
        first = self.position - self.batch
        self.times, self.indices = form.joined(self.times[first:], times), form.joined(self.indices[first:], indices)
        self.position = self.batch

    @property
    def load(self) -> int:
        return len(self.times) - self.position


class _Simulation:
    def __init__(self, arrival_s: Sequence[float] | Array, pool: Pool, seed: int | Sequence[int]) -> None:
        import numpy as np

        self.pool = pool
        self.arrivals = np.asarray(arrival_s, dtype=float)
        # Requests that look at the line when they come are served one by one, in lists: nothing for compiled code to gain.
        self.form = _serve.form(len(self.arrivals)) if pool.max_waiting is None else _serve.python
        self.finish = self.form.room(len(self.arrivals), math.nan)
        self.random = np.random.default_rng(seed)
        self.rows = self.form.numbers(pool.service.quantiles[: pool.max_batch_size + 1])
        self.levels = pool.service.quantiles.shape[1]
        self.draws = self.form.room(0, 0)
        self.drawn = 0
        self.replicas: list[_Replica] = []
        self.gone: list[_Replica] = []
        self.door: list[int] = []
        """Requests that wait for any replica to be ready."""
        self.failing: list[tuple[float, int, _Replica]] = []
        self.inside = 0
        self.area = 0.0
        """Requests under way times seconds, since the last tick."""
        self.busy = 0.0
        """Seconds that replicas computed since the last tick for what was answered."""
        self.failures = self.requeued = self.most = self.asked = 0
        self.now = self.until = self.ticked = 0.0

    def run(self) -> PoolRun:
        import numpy as np

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
            busy_s = self._busy_s(tick)
            busy = min(1.0, busy_s / period / len(ready)) if ready else 0.0
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
        return PoolRun(
            self.arrivals, np.asarray(self.finish), replica_s, span, times, wanteds, readies, insides, rates, self.failures, self.requeued, self.most
        )

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
            waiting, self.door = np.array(self.door), []
            self._spread(ready, waiting, np.full(len(waiting), self.now))
        upto = int(np.searchsorted(self.arrivals, until, side="left"))
        self.area += self.inside * (until - self.now)
        if upto > taken:
            new = self.arrivals[taken:upto]
            self.area += float((until - new).sum())
            self.inside += upto - taken
            if ready:
                self._spread(ready, np.arange(taken, upto), new)
            else:
                self.door += range(taken, upto)
        for replica in tuple(self.replicas):
            if replica.ready_s <= self.now:
                self._serve(replica, until)
                if replica.draining and not replica.load and not replica.batch:
                    self._end(replica, max(replica.free_s, self.now))
        self.now = until
        return upto

    def _spread(self, ready: Sequence[_Replica], indices: NDArray[np.int64], times: Array) -> None:
        """Let requests go to replicas at random."""
        import numpy as np

        chosen = self.random.integers(0, len(ready), len(times))
        if self.pool.max_waiting is not None:
            for k, index, time in zip(chosen.tolist(), indices.tolist(), times.tolist(), strict=True):
                self._enqueue(ready[k], index, time)
            return
        order = np.argsort(chosen.astype(np.min_scalar_type(len(ready))), kind="stable")  # small integers are sorted in linear time
        bounds = np.searchsorted(chosen[order], np.arange(len(ready) + 1)).tolist()
        for replica, start, stop in zip(ready, bounds, bounds[1:], strict=False):
            mine = order[start:stop]
            replica.take(times[mine], indices[mine], self.form)

    def _enqueue(self, replica: _Replica, index: int, time: float) -> None:
        self._serve(replica, time)  # so that its line is as long as it is then
        if replica.load >= (self.pool.max_waiting or 0):
            self.inside -= 1
            self.area -= self.until - time
        else:
            replica.times.append(time)
            replica.indices.append(index)

    def _serve(self, replica: _Replica, before: float) -> None:
        """Start every batch that starts before `before`."""
        r, pool = replica, self.pool
        self._draw(r.load)
        r.position, r.batch, r.begin_s, r.free_s, self.drawn, done, area, busy = self.form.run(
            r.times, r.indices, r.position, r.batch, r.begin_s, r.free_s, before, self.until, self.ticked,
            pool.max_batch_size, pool.patience_s, self.rows, self.draws, self.drawn, self.finish,
        )  # fmt: skip
        self.inside -= done
        self.area -= area
        self.busy += busy

    def _draw(self, batches: int) -> None:
        """Have enough draws at hand."""
        if len(self.draws) - self.drawn < batches:
            more = self.random.integers(0, self.levels, max(4096, batches))
            self.draws, self.drawn = self.form.joined(self.draws[self.drawn :], more), 0

    def _busy_s(self, tick: float) -> float:
        """Seconds that replicas computed since the last tick."""
        busy = self.busy + sum(tick - max(r.begin_s, self.ticked) for r in self.replicas if r.batch)
        self.busy, self.ticked = 0.0, tick
        return busy

    # --- replicas ------------------------------------------------------------------------

    def _ask(self, now: float, startup: float | None = None) -> None:
        took = startup if startup is not None else float(self.random.choice(self.pool.startup_s))
        replica = _Replica(now, now + took, self.form)
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
        first = replica.position - replica.batch
        back = [int(index) for index in replica.indices[first:]]
        if replica.batch:
            for index in back[: replica.batch]:
                self.finish[index] = math.nan
            self.busy += now - max(replica.begin_s, self.ticked)
        self.requeued += len(back)
        self.door += back
        if replica.draining:
            self._end(replica, now)
            return
        replica.start(now + float(self.random.choice(self.pool.startup_s)), self.form)
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
            if replica.ready_s > now or not (replica.load or replica.batch):
                self._end(replica, now)

    def _end(self, replica: _Replica, now: float) -> None:
        replica.ended_s = now
        self.replicas.remove(replica)
        self.gone.append(replica)
