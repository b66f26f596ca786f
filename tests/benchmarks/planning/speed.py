"""How fast the simulators are, in processor time, with the spread of repeats.

``python tests/benchmarks/planning/speed.py`` prints the section of RESULTS.md. Goals: 2 million requests per second of one replica's queue and 30 000 jobs per
second of a scheduling policy, in plain Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from aimass_lab.planning.pool import Pool, simulate_pool
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes
from aimass_lab.planning.simulate import simulate_fcfs
from aimass_lab.scaling import make_scaler
from aimass_lab.scheduling import POLICIES, Request, SimulatedLane, make_policy, run_jobs

REPEATS = 7
SERVICE = ServiceTimes.from_values({b: 0.004 + 0.0012 * b for b in range(1, 17)})


def rates(work: Callable[[], object], count: int) -> str:
    """Best and median of the repeats, in units per second of processor time."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        found.append(count / (time.process_time() - start))
    return f"{max(found):,.0f} | {sorted(found)[REPEATS // 2]:,.0f} | {min(found):,.0f}"


def main() -> None:
    print("| what | load | best, per s | median | worst |\n|---|---|---:|---:|---:|")
    count, limit = 200_000, SERVICE.stable_rate(16)
    for load in (0.3, 0.7, 0.9):
        for law in (Poisson(load * limit), Bursty(load * limit)):
            times = law.times_s(count, np.random.default_rng(0))
            seen = rates(lambda times=times: simulate_fcfs(times, SERVICE, max_batch_size=16), count)  # type: ignore[misc]
            print(f"| requests, one queue | {type(law).__name__} {load} | {seen} |", flush=True)
    times = Bursty(4 * 0.5 * limit, cycle_s=60).times_s(count, np.random.default_rng(0))
    pool = Pool(service=SERVICE, max_batch_size=16, max_replicas=12, startup_s=(10.0,), scaler=make_scaler("hpa"))
    print(f"| requests, autoscaled pool | bursts | {rates(lambda: simulate_pool(times, pool), count)} |", flush=True)
    jobs, random = 20_000, np.random.default_rng(0)
    sizes = random.choice([0.002, 0.005, 0.046], jobs, p=[0.6, 0.3, 0.1])
    arrivals = np.cumsum(random.exponential(sizes.mean() / 0.7, jobs))
    requests = [Request(k, t, 1, k % 3, t + 1, s, f"t{k % 3}", 1.0) for k, (t, s) in enumerate(zip(arrivals.tolist(), sizes.tolist(), strict=True))]
    segments = [[s / 8] * 8 for s in sizes.tolist()]
    for name in POLICIES:
        seen = rates(lambda name=name: run_jobs(requests, make_policy(name), [SimulatedLane(segments)]), jobs)  # type: ignore[misc]
        print(f"| jobs of 8 segments, {name} | load 0.7 | {seen} |", flush=True)


if __name__ == "__main__":
    main()
