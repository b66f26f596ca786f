"""The models that every server gets, with the same weights: as a state for torch, as ONNX for ONNX Runtime, and as our bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

NUM_SAMPLES = 64
MAX_BATCH, MAX_WAIT_S = 32, 0.002
"""Of dynamic batching, for every server that has it."""
STATE, SAMPLES, BUNDLE = "state.pt", "samples.npz", "bundle"
FEATURES, VOCABULARY, TOKENS, WIDTH, CLASSES = 784, 1000, 32, 128, 10


class Echo(nn.Module):
    """Gives back what it gets: what a server costs by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


class Mlp(nn.Module):
    """784-1024-10."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 1024), nn.ReLU(), nn.Linear(1024, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """Two transformer layers of width 128 over 32 tokens, and a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(x)).mean(1))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model, and what a request to it holds."""

    name: str
    make: Callable[[], nn.Module]
    row: tuple[int, ...]
    """Shape of one sample."""
    datatype: str
    """As the Open Inference Protocol names it."""


ZOO = {
    entry.name: entry
    for entry in (
        Entry(name="echo", make=Echo, row=(FEATURES,), datatype="FP32"),
        Entry(name="mlp", make=Mlp, row=(FEATURES,), datatype="FP32"),
        Entry(name="encoder", make=Encoder, row=(TOKENS,), datatype="INT64"),
    )
}


def samples(entry: Entry) -> np.ndarray:
    """Rows that requests are made of, the same at every call."""
    generator = np.random.default_rng(0)
    if entry.datatype == "INT64":
        return generator.integers(0, VOCABULARY, (NUM_SAMPLES, *entry.row))
    return generator.standard_normal((NUM_SAMPLES, *entry.row)).astype(np.float32)


def load(entry: Entry, folder: Path) -> nn.Module:
    """The model with the weights that lie in `folder`."""
    model = entry.make().eval()
    model.load_state_dict(torch.load(folder / STATE, weights_only=True))
    return model


def write(entry: Entry, folder: Path) -> None:
    """Put the model below `folder` in every form, unless it is there and the bundle's server is still the one of this checkout."""
    from aimass_lab.bundle import write_bundle
    from aimass_lab.bundle.writer import SERVER
    from aimass_lab.workload import Workload

    copy = folder / BUNDLE / "aimass_serve"
    if copy.exists() and all(path.read_bytes() == (SERVER / path.relative_to(copy)).read_bytes() for path in copy.rglob("*.py")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, rows = entry.make().eval(), samples(entry)
    torch.save(model.state_dict(), folder / STATE)
    with torch.inference_mode():
        np.savez(folder / SAMPLES, inputs=rows, outputs=model(torch.from_numpy(rows)).numpy())
    workload = Workload(model=model, inputs=torch.from_numpy(rows), name=entry.name)
    write_bundle(folder / BUNDLE, workload, max_batch_size=MAX_BATCH, max_wait_s=MAX_WAIT_S, threads=1, name=entry.name, calibrate=False, force=True)
