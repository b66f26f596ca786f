"""How fast the simulators are, in processor time, with the spread of repeats.

``python tests/benchmarks/planning/speed.py`` prints the section of RESULTS.md. Goals: 2 million requests per second in plain Python and 20 million compiled
(the extra ``fast``), and 30 000 jobs per second of a scheduling policy, in plain Python. The two forms take turns, so that a machine whose pace changes is as
slow for one as for the other; without numba there is one.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from aimass_lab.planning import forms
from aimass_lab.planning.pool import Pool, simulate_pool
from aimass_lab.planning.queueing import Bursty, Poisson, ServiceTimes
from aimass_lab.planning.simulate import simulate_fcfs
from aimass_lab.scaling import make_scaler
from aimass_lab.scheduling import POLICIES, Request, SimulatedLane, make_policy, run_jobs

REPEATS = 7
SERVICE = ServiceTimes.from_values({b: 0.004 + 0.0012 * b for b in range(1, 17)})


def rate(work: Callable[[], object], count: int) -> float:
    """Units per second of processor time."""
    start = time.process_time()
    work()
    return count / (time.process_time() - start)


def three(values: list[float], digits: int = 0) -> str:
    """Best, median and worst."""
    return " | ".join(f"{value:,.{digits}f}" for value in (max(values), statistics.median(values), min(values)))


def in_both_forms(what: str, work: Callable[[], object], count: int) -> None:
    """Rows of the table: each form, and how many times as fast the compiled one was in the same repeat."""
    pays = {"Python": math.inf} | ({"compiled": 0} if importlib.util.find_spec("numba") else {})
    found: dict[str, list[float]] = {form: [] for form in pays}
    for repeat in range(REPEATS + 1):
        for form, steps in pays.items():
            forms.PAYS = steps  # type: ignore[assignment]
            seen = rate(work, count)
            if repeat:  # the first compiles
                found[form].append(seen)
    for form, seen_rates in found.items():
        print(f"| {what} | {form} | {three(seen_rates)} |", flush=True)
    if "compiled" in found:
        ratios = [fast / slow for fast, slow in zip(found["compiled"], found["Python"], strict=True)]
        print(f"| | times as fast | {three(ratios, 1)} |", flush=True)


FIRST = """
import time
from aimass_lab.planning import forms, queueing, simulate
service = queueing.ServiceTimes.from_values({1: 0.01})
simulate.simulate_fcfs([0.0], service, max_batch_size=1)
forms.PAYS, begun = 0, time.process_time()
simulate.simulate_fcfs([0.0], service, max_batch_size=1)
print(time.process_time() - begun)
"""


def first_compiled() -> None:
    """What it costs to run a loop compiled for the first time in a process: where nothing is compiled yet, and afterwards."""
    with tempfile.TemporaryDirectory() as kept:
        given = {**os.environ, "NUMBA_CACHE_DIR": kept, "PYTHONPATH": os.pathsep.join(sys.path)}
        runs = [subprocess.run([sys.executable, "-c", FIRST], env=given, capture_output=True, text=True, check=True) for _ in range(REPEATS)]
    first, *later = (float(run.stdout) for run in runs)
    print(f"\nThe first compiled call of a process, processor time: {min(later):.2f} to {max(later):.2f} s; {first:.2f} s where it was never compiled before.")


def main() -> None:
    print("| what | form | best, per s | median | worst |\n|---|---|---:|---:|---:|")
    count, limit = 200_000, SERVICE.stable_rate(16)
    for load in (0.3, 0.7, 0.9):
        for law in (Poisson(load * limit), Bursty(load * limit)):
            times = law.times_s(count, np.random.default_rng(0))
            what = f"requests, one queue, {type(law).__name__} {load}"
            in_both_forms(what, lambda times=times: simulate_fcfs(times, SERVICE, max_batch_size=16), count)  # type: ignore[misc]
    times = Bursty(4 * 0.5 * limit, cycle_s=60).times_s(count, np.random.default_rng(0))
    pool = Pool(service=SERVICE, max_batch_size=16, max_replicas=12, startup_s=(10.0,), scaler=make_scaler("hpa"))
    in_both_forms("requests, autoscaled pool, bursts", lambda: simulate_pool(times, pool), count)
    jobs, random = 20_000, np.random.default_rng(0)
    sizes = random.choice([0.002, 0.005, 0.046], jobs, p=[0.6, 0.3, 0.1])
    arrivals = np.cumsum(random.exponential(sizes.mean() / 0.7, jobs))
    requests = [Request(k, t, 1, k % 3, t + 1, s, f"t{k % 3}", 1.0) for k, (t, s) in enumerate(zip(arrivals.tolist(), sizes.tolist(), strict=True))]
    segments = [[s / 8] * 8 for s in sizes.tolist()]
    for name in POLICIES:
        seen = [rate(lambda name=name: run_jobs(requests, make_policy(name), [SimulatedLane(segments)]), jobs) for _ in range(REPEATS)]  # type: ignore[misc]
        print(f"| jobs of 8 segments at load 0.7, {name} | Python | {three(seen)} |", flush=True)
    if importlib.util.find_spec("numba"):
        first_compiled()


if __name__ == "__main__":
    main()
