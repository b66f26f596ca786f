"""How fast models are allocated on a fleet, and how far from the best the answers are.

``python tests/benchmarks/planning/allocate.py`` writes ALLOCATION.md. Fleets are made up: four types of nodes, of which two have devices, and for each model up
to a dozen ways to run. Goals: 10, 100 and 1000 models in 0.1, 0.3 and 2 s; a new plan for up to 10 models in 0.3 s.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from aimass_lab.environment import read_environment
from aimass_lab.fleet.allocate import Terms, make_allocation
from aimass_lab.fleet.inventory import Attached, read_fleet
from aimass_lab.fleet.problem import Client, Node, Option, Problem, Solution
from aimass_lab.fleet.solve import solve
from aimass_lab.fleet.ways import Ask, Variant, capacity, unbeaten
from aimass_lab.planning import forms
from aimass_lab.records import BatchPoint, FleetAllocation, ModelInfo, Number

TARGET = Path(__file__).with_name("ALLOCATION.md")
GOALS = {10: 0.1, 100: 0.3, 1000: 2.0}
FLEETS = {10: 3, 100: 3, 1000: 1}
"""How many of each size."""
PATIENCE_S = 600.0
"""By the wall's clock, which other work on the machine stretches; what is reported is processor time."""


def made_up(models: int, seed: int) -> Problem:
    """Models between a tenth and ten replicas large, on processors of two sizes, on whole devices, on quarters and on instances of them."""
    random = np.random.default_rng(seed)
    nodes = (
        Node(name="small", cores=8, memory=32e9, price=0.34),
        Node(name="large", cores=48, memory=192e9, price=1.9),
        Node(name="l4", cores=8, memory=32e9, devices=1, price=0.8, count=max(2, models // 5)),
        Node(name="a100", cores=96, memory=1e12, devices=8, price=24.0, count=max(1, models // 40)),
    )
    options: list[Option] = []
    for i in range(models):
        speed, memory = random.uniform(0.3, 3.0), random.uniform(0.4, 8.0) * 1e9
        mine = []
        for gain, smaller in ((1.0, 1.0), (1.7, 0.4)):
            need = memory * smaller
            for cores in (1, 2, 4):
                mine += [Option(model=i, node=n, cores=cores, memory=need, rate=15 * speed * gain * cores**0.8) for n in (0, 1)]
            device = {"model": i, "cores": 1, "memory": need}
            mine.append(Option(**device, node=2, lot="whole", compute=1.0, device_memory=1.0, rate=240 * speed * gain))
            mine.append(Option(**device, node=2, lot="mps/4", compute=0.25, device_memory=need / 24e9, rate=52 * speed * gain))
            mine.append(Option(**device, node=3, lot="whole", compute=1.0, device_memory=1.0, rate=1000 * speed * gain))
            mine.append(Option(**device, node=3, lot="mig", compute=1 / 7, device_memory=1 / 8, rate=110 * speed * gain))
        options += unbeaten(mine)
    clients = tuple(Client(name=f"m{i}", rate=float(random.lognormal(3.5, 1.0)), tenant=f"t{i % 5}") for i in range(models))
    return Problem(nodes=nodes, clients=clients, options=tuple(options))


def timed(work: Callable[[], Solution]) -> tuple[float, Solution]:
    begun = time.process_time()
    found = work()
    return time.process_time() - begun, found


def sizes() -> list[str]:
    """Rows of the table of sizes."""
    rows = []
    for models, goal in GOALS.items():
        for what in ("all served", "budget of 60 %"):
            taken, gaps, options = [], [], 0
            for seed in range(FLEETS[models]):
                problem = made_up(models, seed)
                options = len(problem.options)
                if what != "all served":
                    problem = replace(problem, budget=0.6 * solve(problem, seconds=PATIENCE_S).cost)
                seconds, found = timed(lambda problem=problem: solve(problem, seconds=PATIENCE_S))  # type: ignore[misc]
                best = found.value(problem) / found.bound if found.elastic else found.bound / found.cost
                taken.append(seconds)
                gaps.append(0.0 if found.exact else 1 - best)
                assert found.elastic == (what != "all served")
            met = "met" if max(taken) <= goal else "met by the median" if statistics.median(taken) <= goal else "missed"
            row = f"| {models} | {options} | {what} | {statistics.median(taken):.3f} | {max(taken):.3f} | {goal} | {met} | {max(gaps):.2%} |"
            print(row, flush=True)
            rows.append(row)
    return rows


def point(size: int, seconds: float) -> BatchPoint:
    """A latency that is known to 2 %."""
    number = Number(value=seconds, unit="s", source="measured", method="made up", interval=(0.98 * seconds, 1.02 * seconds))
    rate = Number(value=size / seconds, unit="item/s", source="measured", method="made up")
    memory = Number(value=1e8 * size, unit="B", source="measured", method="made up")
    return BatchPoint(batch_size=size, latency_p50=number, latency_p95=number, latency_p99=number, throughput=rate, peak_memory_bytes=memory)


def ask(k: int, rate: float) -> Ask:
    """One of ten models, with two variants on two devices."""
    variants = {}
    for device, speed in (("cpu", 1.0), ("l4", 0.2)):
        made = []
        for technique, gain in (("none", 1.0), ("int8_dynamic", 0.7)):
            ladder = tuple(point(size, speed * gain * (0.002 + 0.0004 * k + 0.0011 * size)) for size in (1, 2, 4, 8, 16))
            cores = Number(value=2, unit="core", source="measured", method="made up")
            made.append(Variant(technique=technique, ladder=ladder, cores=cores, weight_bytes=10**8))
        variants[device] = made
    model = ModelInfo(name=f"m{k}", type="made.Up", num_parameters=1, weight_bytes=10**8, dtype="float32", digest=f"{k:012}")
    asked = Number(value=rate, unit="request/s", source="user", method="made up")
    return Ask(model=model, rate=asked, p99=Number(value=0.06, unit="s", source="user", method="made up"), variants=variants)


def replans() -> list[str]:
    """Rows of the table of new plans: everything but the model's own measurement, the joint simulation included; in both forms of the simulator."""
    here = Attached(device="cpu", cores=16, memory=64e9)
    fleet = read_fleet(None, here, nodes=("cpu", "l4"), counts={"l4": 2}, prices={"cpu": 0.7, "l4": 0.8})
    rates = [100.0 * (1 + k % 4) for k in range(10)]

    def allocated(terms: Terms, rates: list[float]) -> FleetAllocation:
        return make_allocation([ask(k, rate) for k, rate in enumerate(rates)], fleet, terms)

    def plan(terms: Terms, rates: list[float]) -> float:
        begun = time.process_time()
        allocated(terms, rates)
        return time.process_time() - begun

    changes: dict[str, Callable[[float], tuple[Terms, list[float]]]] = {
        "another budget": lambda n: (Terms(budget=20.0 + n), rates),
        "a budget of about 60 %": lambda n: (Terms(budget=(0.55 + 0.05 * n) * whole), rates),
        "another limit on replicas": lambda n: (Terms(max_jobs=int(40 + 10 * n)), rates),
        "one model's rate": lambda n: (Terms(), [*rates[:3], rates[3] * (1.1 + 0.1 * n), *rates[4:]]),
        "all rates": lambda n: (Terms(), [rate * (1.1 + 0.1 * n) for rate in rates]),
    }
    found: dict[str, list[list[float]]] = {what: [] for what in ("first plan: what each replica carries is simulated", *changes)}
    for form, pays in enumerate([math.inf, forms.PAYS] if importlib.util.find_spec("numba") else [math.inf]):
        forms.PAYS = pays  # type: ignore[assignment]
        capacity.cache_clear()
        first, *others = found
        found[first].append([plan(Terms(), rates)])
        whole = allocated(Terms(), rates).cost.value  # type: ignore[union-attr]
        for what in others:
            found[what].append([plan(*changes[what](n + form / 2)) for n in range(3)])  # no rate twice: what was simulated is kept
    rows = []
    for what, by_form in found.items():
        cells = [f"{statistics.median(taken):.2f} | {max(taken):.2f}" if what in changes else f"{taken[0]:.2f} |" for taken in by_form]
        mets = ["met" if max(taken) <= 0.3 else "met by the median" if statistics.median(taken) <= 0.3 else "missed" for taken in by_form]
        rows.append(f"| {what} | {' | '.join([*cells, *['not measured |'] * (2 - len(cells))])} | {', '.join(mets) if what in changes else ''} |")
    print(*rows, sep="\n", flush=True)
    return rows


def main() -> None:
    solve(made_up(3, 0))  # loads the solver, once
    environment = read_environment(torch.device("cpu"))
    begin = time.process_time(), time.perf_counter()
    tables = sizes(), replans()
    own = (time.process_time() - begin[0]) / (time.perf_counter() - begin[1])
    rows = {name: "\n".join(table) for name, table in zip(("sizes", "replans"), tables, strict=True)}
    TARGET.write_text(TEXT.format(machine=environment.device_name, cores=environment.cpu_cores, own=own, **rows))


TEXT = """# Allocation on a fleet: how fast, and how far from the best

`python tests/benchmarks/planning/allocate.py`, on {machine}, {cores:g} core(s): processor time of this process, which had {own:.0%} of a core while other work
had the rest; on a quiet machine it is about the wall's. Fleets are made up (four types of nodes, processors, whole devices, quarters and MIG instances; two
variants of each model), three each of 10 and 100, one of 1000. That the answer is the best there is on small cases, by brute force, is a test:
`tests/test_fleet.py`.

## Choice and placement

The gap is the distance to a bound that ignores how replicas are packed on nodes; 0 is proven. A budget of 60 % of what all would need is the elastic answer:
fair by tenants from the least share to the greatest, then the most value, then the least cost.
Up to 200 ways to run, that is settled exactly, one program after another; one is left out where the linear relaxation shows that the answer before it is its
best as well. Beyond, shares are settled as if replicas could be cut up, on whole nodes, and whole replicas then come within half a percent of them: the gap is
that of the last step, to a bound that takes replicas as if they could be. Of large programs only the ways to run are written at first that the prices of the
linear relaxation speak for. Serving fewer than all is where the time goes: it takes five to ten programs instead of one.

| models | ways to run | asked | median, s | slowest, s | goal, s | | largest gap |
|---:|---:|---|---:|---:|---:|---|---:|
{sizes}

## A new plan for ten models

All of it but profiling: ways to run, choice, joint simulation, what binds (each limit that is used up is solved for again). What a replica carries does not
depend on rates or limits, so it is simulated once and kept.

| changed | plain Python: median, s | slowest, s | with the extra `fast`: median, s | slowest, s | goal 0.3 s |
|---|---:|---:|---:|---:|---|
{replans}
"""

if __name__ == "__main__":
    main()
