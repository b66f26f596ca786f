"""Predict → run → compare on real bundles: how near the prediction of a pool comes after some seconds of calibration, and what its errors are made of.

``python tests/benchmarks/planning/pool.py [--minutes N]`` writes a bundle for each model, measures what it can do, and rehearses it at shares of that under
random and bursty arrivals; then it kills workers on the way. It goes on where it stopped; ``--again`` begins anew, ``--report`` only writes POOL.md again.
A run that other work on the machine disturbed is a run that judges nothing: it is repeated up to ``TRIES`` times, and counted.

Goals: in the median Poisson run p50 within 5 %, p99 within 10 % and throughput within 1 %; nominal 90 % bands hold at least 80 % of what is measured; a killed
worker costs no request, and another stands in for it within twice the measured start-up of a worker.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import kept  # noqa: E402  # it lies one folder above

from aimass_lab.bundle import write_bundle  # noqa: E402
from aimass_lab.bundle.writer import SERVER  # noqa: E402
from aimass_lab.records import Number, Rehearsal, from_json, to_json  # noqa: E402
from aimass_lab.rehearsal import Asked, rehearse  # noqa: E402
from aimass_lab.workload import Workload  # noqa: E402

RESULTS = kept.Results(HERE / "results")
NAME = "pool"
LOADS: dict[str, tuple[float, ...]] = {"poisson": (0.3, 0.5, 0.7, 0.8, 0.9), "bursty": (0.5, 0.7)}
"""Shares of what a replica can do."""
REQUESTS, MIN_SECONDS = 2000, 10.0
FIRST_RATE = 10.0
"""Requests per second of the run that shows what a replica can do."""
KILLS = 5
TRIES = 3
MAX_BATCH, MAX_WAIT_S = 8, 0.002
FIGURES = ("latency p50", "latency p99", "throughput")
GOALS = {"latency p50": 0.05, "latency p99": 0.10, "throughput": 0.01}
COVERED = 0.8


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    """Wide enough that a batch takes milliseconds, and so that the server is not the limit."""
    width = 1536
    layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(256, width), *layers, nn.Linear(width, 10)), torch.randn(32, 256)


def convolution() -> tuple[nn.Module, torch.Tensor]:
    body = [layer for _ in range(4) for layer in (nn.Conv2d(48, 48, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 48, 3, stride=2), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)), torch.randn(32, 3, 48, 48)


class Encoder(nn.Module):
    """Transformer layers over tokens, and a head on their mean."""

    def __init__(self, width: int = 192, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(ids)).mean(1))


def encoder() -> tuple[nn.Module, torch.Tensor]:
    return Encoder(), torch.randint(0, 1000, (32, 48))


MODELS = {"perceptron": perceptron, "convolution": convolution, "encoder": encoder}


def bundle(work: Path, name: str, threads: int) -> Path:
    """The model's bundle, written unless it is there with the server of this checkout."""
    folder = work / f"{name}-{threads}"
    copy = folder / "aimass_serve"
    if not (copy.exists() and all(path.read_bytes() == (SERVER / path.relative_to(copy)).read_bytes() for path in copy.rglob("*.py"))):
        torch.manual_seed(0)
        model, x = MODELS[name]()
        workload = Workload(model.eval(), x, name=name)
        write_bundle(folder, workload, max_batch_size=MAX_BATCH, max_wait_s=MAX_WAIT_S, threads=threads, name=name, calibrate=False, force=True)
    return folder


def cases(seeds: int) -> Iterator[tuple[str, str, float, int]]:
    """Model, arrivals, load and seed; the first seed of all before the second of any."""
    for seed in range(seeds):
        for pattern, loads in LOADS.items():
            for load in loads:
                for name in MODELS:
                    yield name, pattern, load, seed


def run(folder: Path, rate: float, pattern: str, seed: int, *, requests: int = REQUESTS, kill: int = 0) -> dict[str, Any]:
    """One rehearsal; again where the machine was busy. The last is what counts."""
    tries = []
    for _ in range(TRIES):
        seconds = max(MIN_SECONDS, requests / rate)
        number = Number(value=rate, unit="request/s", source="user", method="of the benchmark")
        record = rehearse(folder, Asked(rate=number, seconds=seconds, pattern=pattern, seed=seed, kill=kill))  # type: ignore[arg-type]
        if record.verdict == "interrupted":
            raise KeyboardInterrupt  # the rehearsal kept what it had, and this is to end
        tries.append(record.verdict)
        if record.verdict == "measured":
            break
    return {"tries": tries, "record": to_json(record, indent=None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aimass-pool-benchmark", help="where bundles are written")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model and load")
    parser.add_argument("--threads", type=int, default=1, help="of a worker; the load and the front end need a core, too")
    parser.add_argument("--again", action="store_true", help="forget what was measured before, bundles included")
    parser.add_argument("--report", action="store_true", help="only write POOL.md again")
    options = parser.parse_args()
    clock = kept.Clock(options.minutes)
    if options.again:
        RESULTS.keep(NAME, {})
        shutil.rmtree(options.work, ignore_errors=True)
    os.environ.setdefault("AIMASS_STORE", str(options.work / "store"))
    if not options.report:
        options.work.mkdir(parents=True, exist_ok=True)
        RESULTS.add(NAME, "facts", found=kept.facts(("torch", "onnxruntime", "numpy", "uvicorn")))
        measure(options.work.resolve(), options.seeds, options.threads, clock)
    (HERE / "POOL.md").write_text(report(RESULTS.load(NAME)))


def measure(work: Path, seeds: int, threads: int, clock: kept.Clock) -> None:
    """Everything that is not there yet, as long as there is time."""
    for name in MODELS:
        known = RESULTS.load(NAME)
        if name not in known.get("capacity", {}) and not clock.up:
            first = from_json(run(bundle(work, name, threads), FIRST_RATE, "poisson", 0, requests=0)["record"], Rehearsal)
            RESULTS.add(NAME, "capacity", name, found=first.capacity.value)
    for name, pattern, load, seed in cases(seeds):
        keep(f"{name}, {pattern} {load:g}, seed {seed}", "runs", bundle(work, name, threads), (name, load), pattern, seed, clock)
    for name in MODELS:
        keep(f"{name}, {KILLS} kills", "kills", bundle(work, name, threads), (name, 0.5), "poisson", 0, clock, kill=KILLS)


def keep(key: str, part: str, folder: Path, at: tuple[str, float], pattern: str, seed: int, clock: kept.Clock, *, kill: int = 0) -> None:
    known = RESULTS.load(NAME)
    if key in known.get(part, {}) or clock.up or at[0] not in known.get("capacity", {}):
        return
    found = run(folder, at[1] * known["capacity"][at[0]], pattern, seed, kill=kill)
    RESULTS.add(NAME, part, key, found=found)
    print(key, found["tries"], from_json(found["record"], Rehearsal).metric("latency p99").error.value, file=sys.stderr, flush=True)


# --- the report ----------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """POOL.md; what misses its goal in bold."""
    everything = {key: from_json(entry["record"], Rehearsal) for key, entry in found.get("runs", {}).items()}
    runs = {key: record for key, record in everything.items() if record.verdict == "measured"}
    facts = found.get("facts", {})
    machine = f"{facts.get('processor')}, {facts.get('cores')} cores, {facts.get('date')}"
    lines = [
        "# A pool: predicted, run, compared",
        "",
        f"Command: `python tests/benchmarks/planning/pool.py --minutes N`, which goes on where it stopped. {machine}.",
        "",
        "Each run starts a bundle's server, measures it for some seconds at 35 % and 70 % of what it can do, predicts what the load will come to, and sends "
        "the load. The prediction knows the law of the arrivals, not the arrivals. One worker of one thread, a front end and the sender of the load share the "
        "machine. *Mechanism* is what is left when the simulation is given the arrivals and the batch times of the run; *times* what batches and server took "
        "otherwise than in the calibration; *arrivals* what these very ones did otherwise than their law does on average.",
        "",
        f"{len(everything)} runs; of these other work disturbed {len(everything) - len(runs)} at every try: they judge nothing and are left out.",
        "",
    ]
    return "\n".join([*lines, *goals(runs), *(line for figure in FIGURES for line in table(figure, runs)), *kills(found.get("kills", {}))]) + "\n"


def goals(runs: dict[str, Rehearsal]) -> list[str]:
    poisson = [record for record in runs.values() if record.pattern == "poisson"]
    if not poisson:
        return []
    lines = ["| goal | came out |", "| --- | --- |"]
    for figure, goal in GOALS.items():
        middle = statistics.median(abs(record.metric(figure).error.value) for record in poisson)  # type: ignore[arg-type]
        lines.append(f"| {figure} within {goal:.0%} in the median of {len(poisson)} Poisson runs | {shown(f'{middle:.1%}', middle <= goal)} |")
    for figure in FIGURES:
        inside = [record.metric(figure).inside for record in runs.values()]
        share = sum(inside) / len(inside)
        lines.append(f"| the 90 % band of {figure} holds at least {COVERED:.0%} of {len(inside)} runs | {shown(f'{share:.0%}', share >= COVERED)} |")
    worst = statistics.median(abs(record.metric("latency p99").mechanism_error.value) for record in runs.values())
    lines.append(f"| (no goal) the mechanism's own error of p99, median | {worst:.1%} |")
    return [*lines, ""]


def table(figure: str, runs: dict[str, Rehearsal]) -> list[str]:
    rows = []
    for key, record in runs.items():
        m = record.metric(figure)
        low, high = m.predicted.interval or (m.predicted.value, m.predicted.value)
        scale = 1e3 if m.measured.unit == "s" else 1.0
        error = f"{m.error.value:+.1%}"
        rows.append([
            key, f"{record.num_requests}", f"{scale * m.measured.value:.4g}", f"{scale * m.predicted.value:.4g}",
            shown(f"{scale * low:.4g} to {scale * high:.4g}", m.inside), shown(error, record.pattern != "poisson" or abs(m.error.value) <= GOALS[figure]),
            *(f"{number.value:+.1%}" for number in (m.mechanism_error, m.service_error, m.arrivals_error)),
        ])  # fmt: skip
    unit = "ms" if figure.startswith("latency") else "requests/s"
    header = ["run", "requests", "measured", "predicted", "band", "error", "mechanism", "times", "arrivals"]
    return [f"## {figure}, {unit}", "", kept.table(header, rows), ""] if rows else []


def kills(found: dict[str, Any]) -> list[str]:
    records = {key: from_json(entry["record"], Rehearsal) for key, entry in found.items()}
    if not records:
        return []
    rows = []
    for key, record in records.items():
        limit = 2 * record.worker_startup.value
        back = [recovery.ready_after.value for recovery in record.recoveries if recovery.ready_after is not None]
        late = sum(seconds > limit for seconds in back) + len(record.recoveries) - len(back)
        handed = sum(recovery.handed_on for recovery in record.recoveries)
        rows.append([
            key, f"{record.num_requests}", shown(f"{record.num_failed}", record.num_failed == 0), f"{len(record.recoveries)}", f"{handed}",
            f"{statistics.median(back):.2f} s, at most {max(back):.2f} s" if back else "–", f"{limit:.2f} s", shown(f"{late}", late == 0),
        ])  # fmt: skip
    header = ["run", "requests", "lost", "workers ended", "requests handed on", "capacity back after", "twice the start-up", "later than that"]
    text = "Workers are killed (`kill -9`) at even times; what became of them and of their requests is read off the server's journal."
    return ["## Killed workers", "", text, "", kept.table(header, rows), ""]


def shown(text: str, good: bool) -> str:
    return text if good else f"**{text}**"


if __name__ == "__main__":
    main()
