"""Latency at batch sizes that were kept from the fit: predicted from a measured ladder, held against the measurement.

Run with ``python tests/benchmarks/demand/latency.py``; prints a Markdown table. The product's own profile times anchors
and held-out batch sizes in one go; the held-out ones are then taken from its record before anything is predicted.
A round during which other work kept the machine busy is marked and left out of the summary; with ``--clock cpu`` the
process's CPU time is taken instead of wall time (one thread), which other load disturbs far less, and every round counts.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
import zoo
from torch import nn

from aimass_lab import Workload, timing
from aimass_lab.environment import LoadMeter, read_environment
from aimass_lab.prediction.predict import predict_from_profile
from aimass_lab.profiling import profile_model
from aimass_lab.records import Number, Profile

ANCHORS = (1, 2, 4, 8, 16, 32)
INSIDE = (3, 6, 12, 24)
BEYOND = (64,)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = 1 if channels == out else 2
        self.first, self.norm = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out)
        self.second, self.last = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(self.second(torch.relu(self.norm(self.first(x)))))
        return torch.relu(y + self.shortcut(x))


class Pooled(nn.Module):
    """Features, their mean over the image, scores."""

    def __init__(self, features: nn.Module, channels: int) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(channels, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def _cnn() -> nn.Module:
    stem = (nn.Conv2d(3, 32, 7, stride=2, padding=3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
    return Pooled(nn.Sequential(*stem, Residual(32, 32), Residual(32, 64), Residual(64, 128), Residual(128, 256)), 256)


def _depthwise() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU6()]
    for channels, out, stride in ((32, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1)):
        layers += [nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False), nn.BatchNorm2d(channels), nn.ReLU6()]
        layers += [nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU6()]
    return Pooled(nn.Sequential(*layers), 512)


class Recurrent(nn.Module):
    """Two LSTM layers, scores of the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(128, 256, num_layers=2, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Encoder(nn.Module):
    """Four transformer layers over 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 256)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True) for _ in range(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10))


def _small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


MODELS = {
    "MLP 512-2048-2048-10": (_mlp, lambda: torch.randn(1, 512)),
    "MLP 16-64-64-10": (_small_mlp, lambda: torch.randn(1, 16)),
    "CNN, residual, 112 px": (_cnn, lambda: torch.randn(1, 3, 112, 112)),
    "CNN, depthwise, 112 px": (_depthwise, lambda: torch.randn(1, 3, 112, 112)),
    "LSTM 2x256, 32 steps": (Recurrent, lambda: torch.randn(1, 32, 128)),
    "transformer 4x256, 64 tokens": (Encoder, lambda: torch.randint(0, 1000, (1, 64))),
}


def _vit() -> nn.Module:
    return zoo.from_config("ViTForImageClassification", "ViTConfig", hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768)()


FRESH = {
    "MobileNetV2, 96 px": (zoo.by_name("MobileNetV2").make, lambda: torch.randn(1, 3, 96, 96)),
    "ViT 6x192, 224 px": (_vit, lambda: torch.randn(1, 3, 224, 224)),
    "GRU 2x512, both directions": (zoo.by_name("GRU, both directions").make, lambda: torch.randn(1, 16, 512)),
    "torch's TransformerEncoder": (zoo.FusedEncoder, lambda: torch.randn(1, 64, 256)),
    "Fourier mixer": (zoo.FourierMixer, lambda: torch.randn(1, 128, 256)),
}
"""Not looked at while the rules were made: the models above were."""


@dataclass(frozen=True)
class Row:
    """One held-out batch size of one round."""

    model: str
    batch_size: int
    predicted: Number
    measured: Number
    memory_error: float | None
    knee: bool
    busy: bool

    @property
    def error(self) -> float:
        return self.predicted.value / self.measured.value - 1

    @property
    def band(self) -> tuple[float, float]:
        return self.predicted.interval or (self.predicted.value, self.predicted.value)

    @property
    def covered(self) -> bool:
        return self.band[0] <= self.measured.value <= self.band[1]


def rows_of(name: str, *, seconds: float, clock: str) -> Iterator[Row]:
    """One round of one model."""
    torch.manual_seed(0)
    make, inputs = {**MODELS, **FRESH}[name]
    workload = Workload(make().eval(), inputs(), name=name)
    with LoadMeter() as load:
        profile = profile_model(workload, batch_size=1, ladder=sorted({*ANCHORS, *INSIDE, *BEYOND}), budget_s=seconds)
    if clock == "cpu":  # what makes the wall time noisy does not make the CPU time so
        quiet = [msgspec.structs.replace(p, latency_p50=msgspec.structs.replace(p.latency_p50, quality="ok")) for p in profile.ladder]
        profile = msgspec.structs.replace(profile, ladder=tuple(quiet))
    yield from held_out(name, workload, profile, busy=load.noisy and clock == "wall")


def held_out(name: str, workload: Workload, profile: Profile, *, busy: bool) -> Iterator[Row]:
    """Predict what is kept from the fit."""
    anchors = msgspec.structs.replace(profile, ladder=tuple(p for p in profile.ladder if p.batch_size in ANCHORS))
    measured = {p.batch_size: p for p in profile.ladder}
    prediction = predict_from_profile(workload, anchors, batch_sizes=tuple(b for b in (*INSIDE, *BEYOND) if b in measured))
    for point in prediction.points:
        own, memory = measured[point.batch_size], point.peak_memory_bytes
        error = memory.value / own.peak_memory_bytes.value - 1 if memory is not None and own.peak_memory_bytes is not None else None
        knee = "runs differently" in point.latency.method or "freed memory" in point.latency.method
        yield Row(name, point.batch_size, point.latency, own.latency_p50, error, knee, busy)


def _cpu_time(function: object, device: torch.device) -> float:
    start = time.process_time()
    function()  # type: ignore[operator]
    return time.process_time() - start


def _report(rows: list[Row]) -> None:
    print("| model | held-out batch | predicted, ms | 90 % band, ms | measured, ms | error | memory error | |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        memory = "–" if r.memory_error is None else f"{100 * r.memory_error:+.2f} %"
        remarks = ", ".join(filter(None, ("flagged" if r.knee else "", "" if r.covered else "outside the band", "busy: not counted" if r.busy else "")))
        band = f"{1e3 * r.band[0]:.3f} to {1e3 * r.band[1]:.3f}"
        error = f"{100 * r.error:+.1f} %"
        print(f"| {r.model} | {r.batch_size} | {1e3 * r.predicted.value:.3f} | {band} | {1e3 * r.measured.value:.3f} | {error} | {memory} | {remarks} |")
    print()
    quiet = [r for r in rows if not r.busy]
    for whose, names in (("models that the rules were made on", MODELS), ("models that they were not made on", FRESH)):
        for title, sizes in (("within the range", INSIDE), ("twice the range", BEYOND)):
            chosen = [r for r in quiet if r.batch_size in sizes and r.model in names]
            if chosen:
                _summary(f"- {whose}, {title}", chosen)


def _summary(title: str, rows: list[Row]) -> None:
    errors = [abs(r.error) for r in rows]
    width = float(np.median([math.sqrt(r.band[1] / r.band[0]) for r in rows]))
    plain = [abs(r.error) for r in rows if not r.knee]
    memory = [abs(r.memory_error) for r in rows if r.memory_error is not None]
    print(
        f"{title}: n {len(rows)}, mean error {100 * np.mean(errors):.1f} %, p90 {100 * np.percentile(errors, 90):.1f} %, "
        f"where nothing is flagged mean {100 * np.mean(plain) if plain else float('nan'):.1f} % and largest {100 * max(plain, default=float('nan')):.1f} %, "
        f"bands cover {100 * np.mean([r.covered for r in rows]):.0f} %, median width x/÷ {width:.3f}; "
        f"memory: mean {100 * np.mean(memory):.2f} %, largest {100 * max(memory):.2f} %"
    )


def main() -> None:
    """Measure, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="profiles of each model")
    parser.add_argument("--seconds", type=float, default=8.0, help="for one profile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--model", action="append", help="part of a model's name; all if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.clock == "cpu":
        timing.timed = _cpu_time  # the product's own protocol, on another clock
    rows = []
    with LoadMeter() as load:
        for _ in range(arguments.rounds):
            for name in {**MODELS, **FRESH}:
                if not arguments.model or any(part in name for part in arguments.model):
                    rows += rows_of(name, seconds=arguments.seconds, clock=arguments.clock)
    environment = read_environment(torch.device("cpu"))
    pressure = Path("/proc/pressure/cpu")
    print(
        f"{environment.device_name}, {environment.threads} threads of {environment.cpu_cores:g} cores, torch {environment.torch}, {environment.taken_at}; "
        f"{arguments.clock} time, {arguments.rounds} round(s) of {arguments.seconds:g} s; other work kept {load.foreign_cores} cores busy"
    )
    print(f"anchors {ANCHORS}, held out {INSIDE} and {BEYOND}; pressure now: {pressure.read_text().splitlines()[0] if pressure.exists() else 'not told'}\n")
    _report(rows)


if __name__ == "__main__":
    main()
