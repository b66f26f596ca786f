"""Fits the all-reduce constants that ship, and shows how far they are off on message sizes that no constant has seen.

Data: the public all-reduce measurements of microsoft/vidur (MIT), files ``net_<topology>.csv.gz``; they do not ship.
``python tests/benchmarks/demand/network.py FOLDER`` shows the table; with ``--write`` it also writes
``aimass_lab/network/allreduce.toml``. Without FOLDER the variable AIMASS_VIDUR_DATA names it.

Protocol, fixed before the fit: of each topology and number of ranks the sizes are numbered in ascending order;
numbers 0 and 1 modulo 4 are fitted, 2 chooses the number of segments and sets the bands, 3 is held out.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

TOML = Path(__file__).parents[3] / "aimass_lab" / "network" / "allreduce.toml"
TOPOLOGIES = {
    "a100_dgx": ("A100 SXM, 8 to a node (NVSwitch)", ("a100-40", "a100-80"), 300e9),
    "a100_pairwise_nvlink": ("A100 PCIe, 4 to a node, NVLink within pairs", ("a100-80-pcie",), 300e9),
    "h100_dgx": ("H100 SXM, 8 to a node (NVSwitch)", ("h100-sxm",), 450e9),
    "h100_pairwise_nvlink": ("H100, 4 to a node, NVLink within pairs", ("h100-pcie", "h100-nvl"), 300e9),
}
"""Title, names in the device catalogue, bytes/s of one direction of the links: no segment may be faster."""
MAX_SEGMENTS, GRID, MIN_SIZES = 4, 18, 6
SMALL_BYTES = 1e6
LEVEL = 0.9

Segments = list[tuple[float, float, float]]
"""From this many bytes on, seconds of start-up, seconds per byte."""


def weighted_median(values: np.ndarray) -> float:
    """The constant that is the least off, relative to each value, in the mean."""
    ordered = np.sort(values)
    weights = np.cumsum(1 / ordered)
    return float(ordered[np.searchsorted(weights, weights[-1] / 2)])


def affine(size: np.ndarray, time: np.ndarray, least_slope: float) -> tuple[float, float, float]:
    """Start-up and slope with the least mean relative error, by reweighted least squares; and the sum of the errors."""
    design = np.c_[np.ones_like(size), size] / time[:, None]
    residual = np.ones_like(size)
    start = slope = 0.0
    for _ in range(25):
        root = 1 / np.sqrt(np.maximum(residual, 1e-4))
        start, slope = np.linalg.lstsq(design * root[:, None], root, rcond=None)[0]
        if slope < least_slope or start < 0:
            break
        residual = abs(design @ [start, slope] - 1)
    if slope < least_slope:  # no faster than the links; where time does not grow within the noise, the start-up says it all
        slope = least_slope
        start = weighted_median(np.maximum(time - slope * size, 1e-6))
    elif start < 0:
        start, slope = 0.0, max(weighted_median(time / size), least_slope)
    return float(start), float(slope), float(abs((start + slope * size) / time - 1).sum())


def fit_segments(size: np.ndarray, time: np.ndarray, least_slope: float) -> list[Segments]:
    """The best cuts into 1, 2 ... segments, by dynamic programming over a grid of sizes."""
    edges = [0.0, *np.geomspace(6e4, size.max() / 2, GRID), np.inf]
    found = {}
    for i in range(len(edges) - 1):
        for j in range(i + 1, len(edges)):
            inside = (size >= edges[i]) & (size < edges[j])
            if inside.sum() >= MIN_SIZES:
                found[i, j] = affine(size[inside], time[inside], least_slope)
    best: dict[int, tuple[float, Segments]] = {0: (0.0, [])}
    answers = []
    for _ in range(MAX_SEGMENTS):
        longer: dict[int, tuple[float, Segments]] = {}
        for (i, j), (start, slope, error) in found.items():
            if i in best and best[i][0] + error < longer.get(j, (np.inf, []))[0]:
                longer[j] = (best[i][0] + error, [*best[i][1], (edges[i], start, slope)])
        best = longer
        if len(edges) - 1 in best:
            answers.append(best[len(edges) - 1][1])
    return answers


def predict(segments: Segments, size: np.ndarray) -> np.ndarray:
    """Seconds of each message."""
    time = np.zeros_like(size)
    for edge, start, slope in segments:
        time = np.where(size >= edge, start + slope * size, time)
    return time


def bands(segments: Segments, size: np.ndarray, time: np.ndarray) -> list[tuple[float, float]]:
    """Split-conformal factors of each segment: quantiles of measured over predicted; of a segment with few sizes also its neighbours'."""
    ratio = time / predict(segments, size)
    index = np.searchsorted([edge for edge, _, _ in segments], size, side="right") - 1
    factors = []
    for k in range(len(segments)):
        own = ratio[index == k]
        own = own if len(own) >= 20 else ratio[abs(index - k) <= 1]
        tail = (1 - LEVEL) / 2
        rank = (len(own) + 1) / len(own)  # of the conformal quantile
        low, high = np.quantile(own, [max(0.0, 1 - (1 - tail) * rank), min(1.0, (1 - tail) * rank)])
        factors.append((min(1.0, float(low)), max(1.0, float(high))))
    return factors


@dataclass
class Result:
    """One row of the table."""

    topology: str
    ranks: int
    per_node: int
    segments: Segments
    factors: list[tuple[float, float]]
    largest: float
    error: float
    p90: float
    error_small: float
    error_large: float
    one_segment: float
    floor: float
    coverage: float
    sizes: int


def evaluate(topology: str, ranks: int, per_node: int, table: pd.DataFrame) -> Result:
    """Fit, choose and score one topology and number of ranks."""
    table = table.drop_duplicates("size").sort_values("size")
    size = table["size"].to_numpy(float)
    time = table["time_stats.all_reduce.median"].to_numpy(float) / 1e3
    part = np.arange(len(size)) % 4
    least_slope = 2 * (ranks - 1) / ranks / TOPOLOGIES[topology][2]
    fitted, choose, held = part < 2, part == 2, part == 3
    candidates = fit_segments(size[fitted], time[fitted], least_slope)
    off = [float(np.mean(abs(predict(c, size[choose]) / time[choose] - 1))) for c in candidates]
    segments = next(c for c, error in zip(candidates, off, strict=True) if error <= 1.05 * min(off))  # the fewest that are as good
    factors = bands(segments, size[choose], time[choose])
    predicted = predict(segments, size[held])
    error = abs(predicted / time[held] - 1)
    index = np.searchsorted([edge for edge, _, _ in segments], size[held], side="right") - 1
    low, high = (np.array([f[k] for f in factors])[index] * predicted for k in (0, 1))
    small = size[held] < SMALL_BYTES
    neighbours = [np.median(np.r_[time[max(0, i - 4) : i], time[i + 1 : i + 5]]) for i in np.flatnonzero(held)]
    return Result(
        topology, ranks, per_node, segments, factors, float(size.max()), float(error.mean()), float(np.quantile(error, 0.9)), float(error[small].mean()),
        float(error[~small].mean()), float(np.mean(abs(predict(candidates[0], size[held]) / time[held] - 1))),
        float(np.mean(abs(np.array(neighbours) / time[held] - 1))), float(np.mean((time[held] >= low) & (time[held] <= high))), int(held.sum()),
    )  # fmt: skip


def toml(results: list[Result]) -> str:
    """The file that ships."""
    lines = [
        "# Constants of the all-reduce model, written by tests/benchmarks/demand/network.py; do not edit by hand.",
        'source = "measurements of all-reduce in microsoft/vidur at commit 7d47513, https://github.com/microsoft/vidur"',
        'licence = "MIT, Copyright (c) Microsoft Corporation; constants fitted from the data, the data does not ship"',
        'method = "alpha + 2(n-1)/n S / busbw by segments of S; half of the sizes fitted, a quarter for the bands, a quarter held out"',
    ]
    for name, (title, devices, _) in TOPOLOGIES.items():
        lines += ["", f"[topology.{name}]", f'title = "{title}"', f"devices = {list(devices)}".replace("'", '"')]
    for r in results:
        lines += ["", "[[fit]]", f'topology = "{r.topology}"', f"ranks = {r.ranks}", f"ranks_per_node = {r.per_node}", f"largest_bytes = {r.largest:.0f}"]
        lines += [f"held_out_error = {r.error:.4f}", f"held_out_coverage = {r.coverage:.3f}", f"held_out_sizes = {r.sizes}", "segments = ["]
        for (edge, start, slope), (low, high) in zip(r.segments, r.factors, strict=True):
            bus = 2 * (r.ranks - 1) / r.ranks / slope
            lines.append(f"  [{edge:.0f}, {start:.4g}, {bus:.4g}, [{low:.3f}, {high:.3f}]],".replace("e+", "e"))
        lines.append("]")
    return "\n".join(lines) + "\n"


def run(folder: Path) -> list[Result]:
    """All topologies and numbers of ranks."""
    results = []
    for name in TOPOLOGIES:
        data = pd.read_csv(folder / f"net_{name}.csv.gz")
        results += [evaluate(name, int(n), int(per_node), table) for (n, per_node), table in data.groupby(["num_workers", "devices_per_node"])]
    return results


def main() -> None:
    """Print the table, and write the constants when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("AIMASS_VIDUR_DATA"))
    parser.add_argument("--write", action="store_true", help="write the constants that ship")
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.error("give the folder of the data, or set AIMASS_VIDUR_DATA")
    results = run(Path(arguments.folder))
    print("mean error on held-out sizes; 'noise' is that of the median of the 8 measured neighbours, which no model of the size beats by much")
    columns = ("ranks", "a node", "segments", "error", "p90", "< 1 MB", "≥ 1 MB", "1 segment", "noise", "in band")
    print(f"{'topology':<22}" + "".join(f"{column:>10}" for column in columns))
    for r in results:
        shares = (r.error, r.p90, r.error_small, r.error_large, r.one_segment, r.floor, r.coverage)
        print(f"{r.topology:<22}{r.ranks:>10}{r.per_node:>10}{len(r.segments):>10}" + "".join(f"{100 * share:>9.1f}%" for share in shares))
    if arguments.write:
        TOML.write_text(toml(results), encoding="utf-8")
        print(f"wrote {TOML}")


if __name__ == "__main__":
    main()
