"""How long the first results take on a BERT-base, and what a profile costs over the calls it reports on.

Run with ``make benchmark``. Times are wall seconds on this machine; ratios are from one interleaved run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from aimass_lab import Study
from aimass_lab.environment import LoadMeter, read_environment
from aimass_lab.profiling.modules import ModuleTimer
from aimass_lab.timing import interleave, ratio_interval

ROUNDS = 3


def main() -> None:
    """Print a table."""
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    inputs = {"input_ids": torch.randint(0, 30_000, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.long)}
    study = Study(model, inputs, store=Path(tempfile.mkdtemp()) / "history.db")
    verbs = {
        "demand": lambda: study.demand(),
        "profile": lambda: study.profile(),
        "trial int8_dynamic": lambda: study.trial("int8_dynamic"),
        "plan 12/s under 1 s": lambda: study.plan(rate=12, p99="1s"),
    }
    with LoadMeter() as load:
        seconds = {name: [_seconds(verb) for _ in range(ROUNDS)] for name, verb in verbs.items()}
        overhead = _hook_overhead(study)
    environment = read_environment(torch.device("cpu"))
    print(f"{environment.device_name}, {environment.threads} threads, torch {environment.torch}, {environment.taken_at}; other load {load.foreign_cores} cores")
    for name, values in seconds.items():
        print(f"{name:<22} first {values[0]:6.2f} s   then {statistics.median(values[1:]):6.2f} s")
    print(f"calls with hooks over calls without: {overhead[0]:.3f} [{overhead[1]:.3f}, {overhead[2]:.3f}]")


def _seconds(verb: object) -> float:
    start = time.perf_counter()
    verb()  # type: ignore[operator]
    return time.perf_counter() - start


def _hook_overhead(study: Study) -> tuple[float, float, float]:
    """Ratio of a call that is timed by module to one that is not, with its interval."""
    kwargs = dict(study.workload.call.kwargs)

    def plain() -> None:
        with torch.inference_mode():
            study.model(**kwargs)

    def hooked() -> None:
        with ModuleTimer(torch.device("cpu")):
            plain()

    *_, samples = interleave([hooked, plain], torch.device("cpu"), budget_s=8)
    return ratio_interval(samples[0], samples[1])


if __name__ == "__main__":
    main()
