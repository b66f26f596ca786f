"""The evaluation of promises: does the load of a bundle's own proof come out within the plan's band, and does `verify` say PASS and FAIL rightly?

``python tests/benchmarks/serving/promise.py`` plans, rehearses and plans again for each model and load, so that the promised band holds what the server
itself adds, writes the bundle, proves it with two seeds, and then proves ten copies that something was done to. It goes on where it stopped;
``--minutes N`` stops earlier, ``--again`` begins anew. The record is ``results/promise.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
import zoo
from torch import nn

from aimass_lab import Study
from aimass_lab.bundle import write_bundle
from aimass_lab.bundle.folder import write_json, write_manifest
from aimass_lab.serving.verify import verify
from aimass_lab.workload import Workload

HERE = Path(__file__).parent
RESULTS = "promise"
DURATION_S, REQUESTS = 8.0, 600
"""Of a proof: so long, and at least so many, because a p99 of fewer is luck."""
REHEARSAL_S = 20.0
TRIES = 2
"""Of an honest bundle's proof that other work disturbed by its own word; the last one counts, whatever it is."""
SEEDS = (0, 1)
TARGET_P99_S = 0.05
LOADS = {"mlp": (40, 120, 300, 500), "encoder": (20, 60, 120), "convolution": (20, 50, 100)}
"""Requests per second for which each model is planned."""


class Convolution(nn.Module):
    """Three convolutions on an image of 32 x 32: a model whose time is milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
        self.head = nn.Linear(64, zoo.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Slower(nn.Module):
    """The same outputs after more work: a product that stands for a layer that grew."""

    def __init__(self, model: nn.Module, side: int) -> None:
        super().__init__()
        self.model, self.ballast = model, nn.Linear(side, side, bias=False)
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x)
        z = (y.sum(1, keepdim=True) * 1e-3).unsqueeze(1).expand(-1, self.side, self.side)
        for _ in range(4):
            z = torch.tanh(self.ballast(z))
        return y + 0.0 * z.mean((1, 2)).unsqueeze(1).clamp(0, 0)


def make(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A model and the samples that its bundle stores."""
    torch.manual_seed(seed)
    if name == "convolution":
        return Convolution().eval(), torch.from_numpy(np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32))
    return zoo.ZOO[name].make().eval(), torch.from_numpy(zoo.samples(zoo.ZOO[name])[:16])


# --- honest bundles ------------------------------------------------------------------------------


def honest(work: Path, name: str, rate: int) -> Path:
    """Plan, rehearse, plan again, write the bundle, and put down the plan's prediction beside it, and the one before the rehearsal."""
    folder = work / f"{name}-{rate}"
    if not (folder / "bundle" / "manifest.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        study = Study(*make(name), store=work / "history.db")
        before = study.plan(rate=rate, p99=TARGET_P99_S)
        rehearsed = study.rehearse(rate=rate, p99=TARGET_P99_S, seconds=REHEARSAL_S)
        plan = study.plan(rate=rate, p99=TARGET_P99_S)
        study.bundle(out=str(folder / "bundle"), rate=rate, p99=TARGET_P99_S, name=name)
        latency, first, seen = plan.latency_p99, before.latency_p99, rehearsed.metric("latency p99").measured
        (folder / "plan.json").write_text(json.dumps({
            "p99_s": latency.value, "band_s": list(latency.interval or ()), "source": latency.source, "method": latency.method,
            "replicas": plan.replicas.value, "feasible": plan.feasible, "server_time_s": plan.server_time.typical.value,
            "before_s": first.value, "before_band_s": list(first.interval or ()), "rehearsal": rehearsed.verdict,
            "rehearsed_s": seen.value, "rehearsed_interval_s": list(seen.ends), "reach": list(plan.experience.p99_reach) if plan.experience else None,
            "runs_learnt_from": plan.experience.n if plan.experience else 0,
        }))  # fmt: skip
    return folder


def prove(bundle: Path, *, python: Path | None = None, tries: int = 1) -> dict[str, Any]:
    """The proof's verdict, what it measured, and why it failed; again where the proof itself says that the machine was not quiet."""
    began = time.monotonic()
    rate = json.loads((bundle / "promises.json").read_text())["scenario"]["requests_per_s"]
    tried, noisy = 0, True
    while noisy and tried < tries:
        check = verify(bundle, duration_s=max(DURATION_S, REQUESTS / rate), python=None if python is None else str(python))
        noisy = any(finding["code"] == "W-NOISY" for finding in check["findings"])
        tried += 1
    measured = {promise["name"]: promise["measured"] for promise in check["promises"] if promise["measured"]}
    p99 = measured.get("latency_p99", {})
    return {
        "passed": check["passed"],
        "p99_s": p99.get("value"),
        "p99_interval_s": p99.get("interval"),
        "broken": [promise["name"] for promise in check["promises"] if not promise["passed"]],
        "findings": [f"{finding['code']}: {finding['text']}".replace(str(bundle), bundle.name)[:300] for finding in check["findings"]],
        "tries": tried,
        "wall_s": time.monotonic() - began,
    }


def with_seed(folder: Path, seed: int) -> Path:
    """The same bundle, proved by other arrivals."""
    if seed == 0:
        return folder / "bundle"
    copy = fresh_copy(folder, f"seed-{seed}")
    promises = json.loads((copy / "promises.json").read_text())
    promises["scenario"]["seed"] = seed
    write_json(copy / "promises.json", promises)
    write_manifest(copy)
    return copy


def fresh_copy(folder: Path, name: str) -> Path:
    copy = folder / name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "bundle", copy)
    return copy


# --- sabotage ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sabotage:
    """What is done to a copy of an honest bundle, after which it must not pass."""

    kind: str
    text: str
    model: str
    rate: int
    change: Callable[[Path, str], None] = lambda bundle, model: None
    machine: str = ""
    """Source of a program that stands before the server's interpreter."""


def _model_file(bundle: Path) -> Path:
    return bundle / json.loads((bundle / "serving.json").read_text())["model_file"]


def _exported(model: nn.Module, x: torch.Tensor, name: str) -> tuple[tempfile.TemporaryDirectory, Path]:
    place = tempfile.TemporaryDirectory()
    out = Path(place.name) / "bundle"
    write_bundle(out, Workload(model, x, name=name), name=name, max_batch_size=8, threads=1, calibrate=False)
    return place, _model_file(out)


def _replace(bundle: Path, model: nn.Module, name: str, *, sign: bool = True) -> None:
    """Put another model's file in its place; with `sign`, under a manifest that fits, so that only what it does can tell."""
    place, path = _exported(model, make(name)[1], name)
    shutil.copy(path, _model_file(bundle))
    place.cleanup()
    if sign:
        write_manifest(bundle)


def slower(side: int) -> Callable[[Path, str], None]:
    def change(bundle: Path, name: str) -> None:
        model, _ = make(name)
        torch.manual_seed(1)
        _replace(bundle, Slower(model, side).eval(), name)

    return change


def retrained(bundle: Path, name: str) -> None:
    _replace(bundle, make(name, seed=1)[0], name)


def one_layer_off(bundle: Path, name: str) -> None:
    """The last layer's weights are 1 % larger than they should be."""
    model, _ = make(name)
    with torch.no_grad():
        list(model.parameters())[-2].mul_(1.01)
    _replace(bundle, model, name)


def unsigned(bundle: Path, name: str) -> None:
    _replace(bundle, make(name, seed=2)[0], name, sign=False)


def renamed_version(bundle: Path, name: str) -> None:
    """`serving.json` of version 2 beside the files of version 1."""
    serving = json.loads((bundle / "serving.json").read_text())
    serving["version"] = "2"
    write_json(bundle / "serving.json", serving)


THROTTLE = """\
import os, signal, subprocess, sys, threading, time
import psutil
child = subprocess.Popen([{python!r}, *sys.argv[1:]])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
def tree(number):
    for process in (root, *root.children(recursive=True)):
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            pass
root = psutil.Process(child.pid)
while child.poll() is None:  # as a quota of the processor does it: some milliseconds of every tenth of a second
    time.sleep({share} * 0.1)
    try:
        tree(signal.SIGSTOP)
        time.sleep((1 - {share}) * 0.1)
        tree(signal.SIGCONT)
    except psutil.NoSuchProcess:
        break
sys.exit(child.wait())
"""
LITTLE_MEMORY = """\
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


def _machine(bundle: Path, source: str) -> Path:
    """An interpreter that is this one on a smaller machine."""
    script, launcher = bundle.parent / "machine.py", bundle.parent / "machine"
    script.write_text(source.replace("{python!r}", repr(sys.executable)))
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    launcher.chmod(0o755)
    return launcher


def _quota(share: float) -> str:
    return THROTTLE.replace("{share}", str(share))


SABOTAGES = (
    Sabotage(kind="slower model", text="grown by 4 x 384² products", model="mlp", rate=300, change=slower(384)),
    Sabotage(kind="slower model", text="grown by 4 x 512² products", model="encoder", rate=60, change=slower(512)),
    Sabotage(kind="slower model", text="grown by 4 x 512² products", model="convolution", rate=100, change=slower(512)),
    Sabotage(kind="smaller machine", text="15 % of a processor", model="mlp", rate=120, machine=_quota(0.15)),
    Sabotage(kind="smaller machine", text="30 % of a processor", model="encoder", rate=60, machine=_quota(0.3)),
    Sabotage(kind="smaller machine", text="96 MiB of address space", model="mlp", rate=40, machine=LITTLE_MEMORY.replace("{limit}", str(96 * 2**20))),
    Sabotage(kind="wrong weights", text="of another training, under a manifest that fits", model="mlp", rate=40, change=retrained),
    Sabotage(kind="wrong weights", text="the last layer 1 % off, under a manifest that fits", model="encoder", rate=20, change=one_layer_off),
    Sabotage(kind="wrong version", text="another version's file, without its manifest", model="convolution", rate=20, change=unsigned),
    Sabotage(kind="wrong version", text="serving.json of version 2 beside the files of version 1", model="mlp", rate=120, change=renamed_version),
)


# --- all of them ---------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "aimass-promise-benchmark", help="where bundles are written")
    parser.add_argument("--minutes", type=float, help="stop after so many")
    parser.add_argument("--results", default=RESULTS, help="name of the file below results/")
    parser.add_argument("--again", action="store_true", help="forget what was measured before, bundles included")
    options = parser.parse_args()
    work, clock = options.work.resolve(), results.kept.Clock(options.minutes)
    if options.again:
        results.keep(options.results, {})
        shutil.rmtree(work, ignore_errors=True)
    os.environ.setdefault("AIMASS_STORE", str(work / "store"))
    results.add(options.results, "facts", found=results.facts())
    for name, rate, seed in [(name, rate, seed) for name, rates in LOADS.items() for rate in rates for seed in SEEDS]:
        key = f"{name}, {rate}/s, seed {seed}"
        if key not in results.load(options.results).get("honest", {}) and not clock.up:
            folder = honest(work, name, rate)
            found = prove(with_seed(folder, seed), tries=TRIES) | {"plan": json.loads((folder / "plan.json").read_text())}
            results.add(options.results, "honest", key, found=found)
            tell(key, found)
    for sabotage in SABOTAGES:
        key = f"{sabotage.kind}: {sabotage.model}, {sabotage.text}"
        if key not in results.load(options.results).get("sabotaged", {}) and not clock.up:
            copy = fresh_copy(honest(work, sabotage.model, sabotage.rate), "sabotaged")
            sabotage.change(copy, sabotage.model)
            found = prove(copy, python=_machine(copy, sabotage.machine) if sabotage.machine else None)
            results.add(options.results, "sabotaged", key, found=found | {"kind": sabotage.kind})
            tell(key, found)
    import report

    report.write()


def tell(key: str, found: dict[str, Any]) -> None:
    verdict = {True: "PASS", False: "FAIL", None: "CANNOT TELL"}[found["passed"]]
    print(f"{key}: {verdict}, p99 {found['p99_s']}, broken {found['broken']}, {found['findings']}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
