"""Rotate three real models under six policies and hold the exact replay against the runs.

``python tests/benchmarks/planning/rotation.py [--seconds S] [--repeats N]`` writes ``results/rotation.json`` and prints the table of RESULTS.md. Goals: on the
device's clock the replay's mean and p99 are within 2 % of the run on an idle machine and within 6 % on a busy one. All repeats are shown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from aimass_lab.records import Rotation, from_json, to_json
from aimass_lab.rotation import Stream, rotate
from aimass_lab.scheduling import make_policy
from aimass_lab.workload import Workload

RESULTS = Path(__file__).with_name("results") / "rotation.json"
POLICIES = ("fcfs", "sjf", "srpt", "round_robin", "priority", "weighted_fair")
FIGURES = ("mean latency", "p99 latency")
GOAL_IDLE, GOAL_BUSY = 0.02, 0.06


class Encoder(nn.Module):
    """A small transformer: token ids -> scores."""

    def __init__(self, width: int = 192, layers: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0) for _ in range(layers))
        self.head = nn.Linear(width, 10)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def streams() -> list[Stream]:
    torch.manual_seed(0)
    mlp = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(512, 512), nn.ReLU())])
    cnn = nn.Sequential(*[nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()) for _ in range(16)])
    models = [("mlp", mlp, torch.randn(8, 512)), ("transformer", Encoder(), torch.randint(0, 1000, (1, 64))), ("cnn", cnn, torch.randn(2, 32, 64, 64))]
    return [Stream(workload=Workload(model, x, name=name), priority=k, weight=2.0 ** (2 - k)) for k, (name, model, x) in enumerate(models)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", type=float, default=0.66)
    parser.add_argument("--again", action="store_true", help="only print the table of what was recorded")
    arguments = parser.parse_args()
    if not arguments.again:
        records = []
        for seed in range(arguments.repeats):
            record = rotate(streams(), [make_policy(name) for name in POLICIES], load=arguments.load, seconds=arguments.seconds, seed=seed)
            records.append(json.loads(to_json(record)))
            for run in records[-1]["runs"]:  # charts are large, and nothing here reads them
                for chart in ("real", "replayed", "predicted"):
                    run[chart] = {}
        RESULTS.write_text(json.dumps(records, indent=1) + "\n")
    print(table([from_json(json.dumps(record), Rotation) for record in json.loads(RESULTS.read_text())]))


def table(records: list[Rotation]) -> str:
    """Errors by policy: of each repeat, in percent."""
    first = records[0]
    busy = [record.environment.foreign_cores or 0.0 for record in records]
    models = ", ".join(f"{m.model.name} {1e3 * m.service_time.value:.2f} ms in {m.segments} segments" for m in first.models)
    lines = [
        f"{models}; load {first.load.value:g}, arrivals over {first.span.value:g} s of device time a policy, {len(records)} repeats on one core of "
        f"{first.environment.device_name}; other processes kept {min(busy):.1f} to {max(busy):.1f} cores busy.",
        "",
        "| policy | calls | figure | measured | replay off by, % | prediction off by, % | inside its band |",
        "|---|---:|---|---:|---|---|---:|",
    ]
    worst = 0.0
    for policy in [run.policy for run in first.runs]:
        runs = [next(run for run in record.runs if run.policy == policy) for record in records]
        for figure in FIGURES:
            metrics = [run.metric(figure) for run in runs]
            replay = [m.mechanism_error.value for m in metrics if m.mechanism_error]
            error = [m.error.value for m in metrics if m.error]
            inside = sum(m.predicted.interval[0] <= m.measured.value <= m.predicted.interval[1] for m in metrics if m.predicted.interval)
            worst = max(worst, *map(abs, replay))
            seen = ", ".join(f"{1e3 * m.measured.value:.2f}" for m in metrics)
            shown = (", ".join(f"{100 * value:+.1f}" for value in values) for values in (replay, error))
            lines.append(f"| {policy} | {runs[0].num_jobs} | {figure} | {seen} ms | {' | '.join(shown)} | {inside} of {len(metrics)} |")
    goal = GOAL_BUSY if max(busy) > 0.1 else GOAL_IDLE
    verdict = "met" if worst <= goal else "missed"
    lines += ["", f"Worst replay: {100 * worst:.1f} %; the goal of {100 * goal:g} % on this {'busy' if goal == GOAL_BUSY else 'idle'} machine is {verdict}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
