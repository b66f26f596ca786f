"""Measure every setting of a space and write the grid down. May be stopped and started again at any time.

``python tests/benchmarks/search/record.py digits_cnn`` measures into the user's cache and, at the end, writes ``grids/digits_cnn.json``
beside this file. To be run on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads are a dimension of the space: nothing may start more than it is told to

import torch
from spaces import CORES, SPACES

from aimass_lab.records import Number, TrialResult
from aimass_lab.searching import Search, Space, make_objectives
from aimass_lab.searching.claims import Failure, Row, search_digest
from aimass_lab.searching.engine import Problem
from aimass_lab.searching.possible import make_check, make_prior
from aimass_lab.store import Store
from aimass_lab.trial import TrialSession

GRIDS = Path(__file__).with_name("grids")
QUANTITIES = ("throughput", "latency", "drop", "dissimilarity", "size", "memory")
PREDICTED = ("throughput", "latency")
PACKAGES = ("torch", "torchao", "torch-pruning", "onnxruntime", "scikit-learn")
TRIAL_S = 0.4
"""For comparing at one setting: enough for a median within a few per cent on a quiet machine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(SPACES)}; both if none is named")
    parser.add_argument("--trials", type=int, help="stop after so many settings")
    parser.add_argument("--folder", type=Path, default=GRIDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models or SPACES:
        record(name, options.trials, options.folder)


def record(name: str, trials: int | None, folder: Path) -> None:
    """Measure what is not measured yet, and write the grid once nothing is left."""
    import zoo

    workload = zoo.by_name(name).make("cpu").workload()
    space = Space(SPACES[name], check=make_check(workload), cores=CORES)
    problem = Problem(space=space, objectives=make_objectives(PREDICTED, has_metric=True, priced=False), limits={}, prices={})
    digest = search_digest(grid=name, model=workload.info().digest, dimensions=space.dimensions)
    log = Store(zoo.CACHE / "grids.db").search_log(digest, resume=True)
    began = time.monotonic()

    def progress(share: float, text: str) -> None:
        print(f"{time.monotonic() - began:7.0f} s  {text}", file=sys.stderr)

    with TrialSession(workload) as session:
        search = Search(problem, lambda setting: session.run(setting, budget_s=TRIAL_S), sampler="grid", log=log)
        search.run(budget_s=1e9, max_trials=trials, progress=progress)
    rows = [row for row in search.rows if row.outcome is not None]
    print(f"{name}: {len(rows)} of {space.num_points} settings measured; {search.stopped}", file=sys.stderr)
    if len(rows) < space.num_points:
        return
    prior = make_prior(workload, lambda point: space.setting(point).recipe, problem.objectives)
    folder.mkdir(exist_ok=True)
    write(folder / f"{name}.json", name, problem, rows, prior)


def write(path: Path, name: str, problem: Problem, rows: list[Row], prior: Any) -> None:
    """One line a setting, so that a new recording is a readable difference."""
    import math

    space = problem.space
    lines = []
    for row in rows:
        point = space.point_of(row.setting)
        assert point is not None
        entry: dict[str, Any] = {"point": [space.dimensions[key].index(value) for key, value in point.items()]}
        throughput, latency = prior(point)
        entry["predicted"] = [None if throughput is None else rounded(math.exp(throughput)), None if latency is None else rounded(math.exp(-latency))]
        if isinstance(row.outcome, Failure):
            entry["failed"] = f"{row.outcome.kind}: {row.outcome.cause}"
        else:
            assert isinstance(row.outcome, TrialResult)
            entry["verdict"] = row.outcome.verdict
            entry |= {key: values_of(number) for key, number in problem.numbers(row.outcome).items() if key in QUANTITIES}
        lines.append(json.dumps(entry))
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    results = [row.outcome for row in rows if isinstance(row.outcome, TrialResult)]
    head = {
        "model": name, "date": datetime.date.today().isoformat(), "machine": results[0].environment.device_name, "python": platform.python_version(),
        "packages": versions, "trial_s": TRIAL_S, "dimensions": space.dimensions, "predicted": PREDICTED,
    }  # fmt: skip
    path.write_text(json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(lines) + "\n]}\n")
    print(f"written: {path}", file=sys.stderr)


def values_of(number: Number) -> list[float]:
    """Value, and its interval where there is one."""
    return [rounded(float(number.value)), *(map(rounded, number.interval) if number.interval else ())]


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


if __name__ == "__main__":
    main()
