"""Predict → run → compare on real bundles: how near the prediction of a pool comes after some seconds of calibration, and what its errors are made of.

``python tests/benchmarks/planning/pool.py [--minutes N]`` writes a bundle for each model, measures what it can do, and rehearses it at shares of that under
random and bursty arrivals; then it kills workers on the way. It goes on where it stopped; ``--again`` begins anew, ``--report`` only writes POOL.md again.
A run that other work on the machine disturbed is a run that judges nothing: it is repeated up to ``TRIES`` times, and counted. The models take ten
milliseconds and more, as what is served on processors does; of models of one millisecond, the pauses of a shared host were most of what was measured.

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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import kept  # noqa: E402  # it lies one folder above

from aimass_lab.bundle import write_bundle  # noqa: E402
from aimass_lab.bundle.writer import SERVER  # noqa: E402
from aimass_lab.prediction.bookkeeping import learnt_by_kind  # noqa: E402
from aimass_lab.prediction.ledger import NO_CORRECTION, apply_correction, outcomes_of, rehearsal_kind  # noqa: E402
from aimass_lab.records import LedgerEntry, Number, Rehearsal, RehearsalQuantity, from_json, to_json  # noqa: E402
from aimass_lab.rehearsal import Asked, rehearse  # noqa: E402
from aimass_lab.rehearsal.measure import CALIBRATION_S  # noqa: E402
from aimass_lab.serving.load import quantile  # noqa: E402
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
DRIFT_WINDOWS, PAUSE_S = 12, 0.01
MAX_BATCH, MAX_WAIT_S = 8, 0.002
FIGURES: tuple[RehearsalQuantity, ...] = ("latency p50", "latency p99", "throughput")
GOALS = {"latency p50": 0.05, "latency p99": 0.10, "throughput": 0.01}
COVERED = 0.8
PARTS = {"mechanism": "the mechanism's own", "service": "what batches and server took otherwise", "arrivals": "what these arrivals did otherwise"}


def perceptron() -> tuple[nn.Module, torch.Tensor]:
    """Bound by its weights: a batch of eight takes little longer than one."""
    width = 3072
    layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(256, width), *layers, nn.Linear(width, 10)), torch.randn(32, 256)


def convolution() -> tuple[nn.Module, torch.Tensor]:
    """Bound by its arithmetic: a batch of eight takes nearly eight times as long as one."""
    body = [layer for _ in range(5) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)), torch.randn(32, 3, 48, 48)


class Encoder(nn.Module):
    """Transformer layers over tokens, and a head on their mean; of the size of the smallest sentence encoders."""

    def __init__(self, width: int = 384, layers: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 12, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(ids)).mean(1))


def encoder() -> tuple[nn.Module, torch.Tensor]:
    return Encoder(), torch.randint(0, 1000, (32, 32))


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
    if "drift" not in RESULTS.load(NAME) and not clock.up:
        RESULTS.add(NAME, "drift", found=drift())
    for name in MODELS:
        known = RESULTS.load(NAME)
        if name not in known.get("capacity", {}) and not clock.up:
            first = from_json(run(bundle(work, name, threads), FIRST_RATE, "poisson", 0, requests=0)["record"], Rehearsal)
            RESULTS.add(NAME, "capacity", name, found=first.capacity.value)
    for name, pattern, load, seed in cases(seeds):
        keep(f"{name}, {pattern} {load:g}, seed {seed}", "runs", bundle(work, name, threads), (name, load), pattern, seed, clock)
    for name in MODELS:
        keep(f"{name}, {KILLS} kills", "kills", bundle(work, name, threads), (name, 0.5), "poisson", 0, clock, kill=KILLS)


def drift() -> dict[str, list[float]]:
    """Of one model called again and again with nothing beside it: median and p99 of windows as long as a calibration, in seconds.

    No prediction from such a window can be nearer than they are to each other.
    """
    model, x = convolution()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    windows: dict[str, list[float]] = {"median": [], "p99": []}
    try:
        with torch.inference_mode():
            for _ in range(DRIFT_WINDOWS):
                ended, took = time.perf_counter() + CALIBRATION_S, []
                while time.perf_counter() < ended:
                    begun = time.perf_counter()
                    model(x[:1])
                    took.append(time.perf_counter() - begun)
                    time.sleep(PAUSE_S)
                windows["median"].append(quantile(np.array(took), 0.5))
                windows["p99"].append(quantile(np.array(took), 0.99))
    finally:
        torch.set_num_threads(threads)
    return windows


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
    everything = dict(sorted(everything.items(), key=lambda run: run[1].environment.taken_at))  # as they were measured
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
    if "drift" in found:
        median, p99 = ([1e3 * seconds for seconds in found["drift"][name]] for name in ("median", "p99"))
        lines += [
            f"How even the machine is: one call, alone, again and again on one thread, in {len(median)} windows of {CALIBRATION_S:g} s, like a calibration: "
            f"median {min(median):.1f} to {max(median):.1f} ms, p99 {min(p99):.1f} to {max(p99):.1f} ms. "
            "What a calibration saw cannot foretell the next minute better than that.",
            "",
        ]
    return "\n".join([*lines, *goals(runs), *(line for figure in FIGURES for line in table(figure, runs)), *kills(found.get("kills", {}))]) + "\n"


Outcome = tuple[float, bool]
"""Error of a prediction, and whether the measured figure was in its band."""


def goals(runs: dict[str, Rehearsal]) -> list[str]:
    poisson = [key for key, record in runs.items() if record.pattern == "poisson"]
    if not poisson:
        return []
    alone = {figure: {key: by_itself(record, figure) for key, record in runs.items()} for figure in FIGURES}
    both = (alone, taught(runs))
    lines = [
        "*Each by itself*: as the table below has it. *With the ledger*: what the verb shows, which corrects and widens a prediction by what the runs before "
        "it on this machine taught, from the third on; here in the order in which they were measured.",
        "",
        "| goal | each by itself | with the ledger |",
        "| --- | --- | --- |",
    ]
    for figure, goal in GOALS.items():
        middles = [statistics.median(abs(outcomes[figure][key][0]) for key in poisson) for outcomes in both]
        cells = " | ".join(shown(f"{middle:.1%}", middle <= goal) for middle in middles)
        lines.append(f"| {figure} within {goal:.0%} in the median of {len(poisson)} Poisson runs | {cells} |")
    for figure in FIGURES:
        shares = [statistics.fmean(inside for _, inside in outcomes[figure].values()) for outcomes in both]
        cells = " | ".join(shown(f"{share:.0%}", share >= COVERED) for share in shares)
        lines.append(f"| the 90 % band of {figure} holds at least {COVERED:.0%} of {len(runs)} runs | {cells} |")
    for part in ("mechanism", "service", "arrivals"):
        middle = statistics.median(abs(getattr(record.metric("latency p99"), f"{part}_error").value) for record in runs.values())
        lines.append(f"| (no goal) of p99's error, {PARTS[part]}, median | {middle:.1%} | |")
    return [*lines, ""]


def by_itself(record: Rehearsal, figure: RehearsalQuantity) -> Outcome:
    metric = record.metric(figure)
    return metric.error.value, metric.inside


def taught(runs: dict[str, Rehearsal]) -> dict[str, dict[str, Outcome]]:
    """Of each figure and run, what a prediction corrected by the runs before it would have been worth."""
    known: list[LedgerEntry] = []
    found: dict[str, dict[str, Outcome]] = {figure: {} for figure in FIGURES}
    for key, record in runs.items():
        learnt = learnt_by_kind(known)
        for figure in FIGURES:
            metric = record.metric(figure)
            said = apply_correction(metric.predicted, learnt.get(rehearsal_kind(figure), NO_CORRECTION))
            low, high = said.interval or (said.value, said.value)
            found[figure][key] = (said.value / metric.measured.value - 1, low <= metric.measured.value <= high)
        known = [*outcomes_of(record, digest="", corrections={}), *known]
    return found


def table(figure: RehearsalQuantity, runs: dict[str, Rehearsal]) -> list[str]:
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
