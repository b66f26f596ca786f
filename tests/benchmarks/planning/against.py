"""Processor time of a plan beside that of an earlier version of this package, turn by turn, and whether both plan the same.

``python tests/benchmarks/planning/against.py --revision REV`` takes the earlier version out of git and prints the table of RESULTS.md. Each version
runs in a process of its own; they are asked in turn, in an order that changes with every round, so that a busy moment meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[3]
ROUNDS = 9
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CASES: dict[str, list[tuple[float, str]]] = {
    "one replica, little to do": [(100, "100ms")],
    "one replica, busy": [(400, "50ms")],
    "four replicas": [(2000, "50ms")],
    "a tight target": [(100, "20ms")],
    "a target that nothing meets": [(400, "8ms")],
    "the target dragged, per step": [(400, f"{p}ms") for p in (60, 55, 50, 45, 40)],
    "the rate dragged, per step": [(rate, "50ms") for rate in (300, 340, 380, 420, 460)],
}
"""Rates and targets of one model; those of a list are asked one after the other, of one study."""


def answer() -> None:
    """In a process with one version: for each line with the name of a case, its seconds per plan and the plans."""
    from aimass_lab.planning.overhead import Overhead
    from aimass_lab.planning.plan import make_plan
    from aimass_lab.records import BatchPoint, ModelInfo, Number, to_json
    from aimass_lab.targets import make_target

    try:
        from aimass_lab.planning.simulations import Simulations
    except ImportError:  # before there was such a thing
        Simulations = None  # type: ignore[assignment, misc]

    def number(value: float, unit: Any = "s", spread: float = 0.0) -> Number:
        interval = (value * (1 - spread), value * (1 + spread)) if spread else None
        return Number(value=value, unit=unit, source="measured", method="made", interval=interval, interval_kind="made" if spread else None)

    def point(batch: int) -> BatchPoint:
        alone = 0.004 + 0.0012 * batch
        return BatchPoint(
            batch_size=batch, latency_p50=number(alone, spread=0.03), latency_p95=number(1.1 * alone), latency_p99=number(1.2 * alone),
            throughput=number(batch / alone, "item/s"),
        )  # fmt: skip

    model = ModelInfo(name="model", type="Model", num_parameters=1, weight_bytes=4, dtype="float32", digest="0")
    ladder = {"cpu": tuple(map(point, BATCHES))}
    for line in sys.stdin:
        known = {"known": Simulations()} if Simulations else {}
        plans, began = [], time.process_time()
        for rate, p99 in CASES[line.strip()]:
            plans.append(make_plan(model, ladder, make_target(rate, p99), overhead=Overhead.recorded(), **known))
        spent = (time.process_time() - began) / len(plans)
        print(json.dumps([spent, [json.loads(to_json(plan)) for plan in plans]]), flush=True)


def compare(revision: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", revision, "aimass_lab"], cwd=ROOT, capture_output=True, check=True).stdout
        packed = Path(folder) / "package.tar"
        packed.write_bytes(archive)
        with tarfile.open(packed) as tar:
            tar.extractall(folder, filter="data")
        before, after = start(folder), start(ROOT)
        print(f"| per plan, processor time | at {revision} | now | ratio | same plan |\n|---|---:|---:|---:|---|")
        for case in CASES:
            print(row(case, before, after), flush=True)
        for one in (before, after):
            one.stdin.close()  # type: ignore[union-attr]
            one.wait()


def start(folder: Path | str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.Popen([sys.executable, __file__, "--answer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def row(case: str, before: subprocess.Popen[str], after: subprocess.Popen[str]) -> str:
    seconds: dict[subprocess.Popen[str], list[float]] = {before: [], after: []}
    same = True
    for k in range(ROUNDS + 1):
        plans = {}
        for one in (before, after) if k % 2 else (after, before):
            spent, plans[one] = ask(one, case)
            if k:  # the first of each loads what it needs
                seconds[one].append(spent)
        same &= alike(plans[before], plans[after])
    old, new = (statistics.median(seconds[one]) for one in (before, after))
    ratios = sorted(a / b for a, b in zip(seconds[before], seconds[after], strict=True))
    ratio = f"{statistics.median(ratios):.1f} ({ratios[1]:.1f} to {ratios[-2]:.1f})"
    return f"| {case} | {1e3 * old:.0f} ms | {1e3 * new:.0f} ms | {ratio} | {'yes' if same else 'NO'} |"


def ask(process: subprocess.Popen[str], case: str) -> Any:
    stdin: IO[str] = process.stdin  # type: ignore[assignment]
    stdin.write(f"{case}\n")
    stdin.flush()
    return json.loads(process.stdout.readline())  # type: ignore[union-attr]


def alike(a: Any, b: Any) -> bool:
    """Equal but for the rounding of sums in another order."""
    if isinstance(a, float) or isinstance(b, float):
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(alike, a, b)) if isinstance(a, list) else a == b


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revision", default="b1e16dd", help="what to compare with")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    answer() if arguments.answer else compare(arguments.revision)
