"""Fits the roofline's constants to public measurements and tests them on devices and models that were held out.

    python tests/benchmarks/demand/vidur.py DATA [--gemm CHECKOUT] [--float32 CHECKOUT] [--fit]

DATA (or the variable AIMASS_VIDUR_DATA) is a checkout of https://github.com/microsoft/vidur at 7d47513 (MIT). ``--gemm`` is one of
https://github.com/ai-dynamo/aiconfigurator at 095f58a (Apache-2.0): products and attention in bfloat16 on more GPUs, which make the
constants transfer better. ``--float32`` is one of https://github.com/sitar-lab/NeuSight at 6945927 (MIT). Prints markdown tables;
with ``--fit`` it rewrites ``aimass_lab/prediction/constants.toml``, for which all three are needed. About three minutes on one core.

A device is held out with every device of its chip, from all sources. How strongly constants are drawn to their starting values,
and how wide bands are, comes from holding out the remaining devices in turn: nothing of the held-out device is seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parent)]
import public_data  # noqa: E402

from aimass_lab.prediction import roofline  # noqa: E402
from aimass_lab.prediction.roofline import AttentionConstants, LightConstants, MatrixConstants, Rates  # noqa: E402

CONSTANTS = Path(__file__).parents[3] / "aimass_lab/prediction/constants.toml"
PULLS = (0.3, 1.0, 3.0)
LEAST, MOST = {"smooth": 1.0}, {"compute": 1.0, "memory": 1.0, "floor_s": 5e-5}
"""What no device goes beyond. Where something else binds on every device fitted on, nothing else would keep a share below 1."""
OWN_REACH = 0.1
"""How far a chip's own share of a constant usually lies from 1."""
LEVEL = 0.9
BAG = 8
"""Operators whose sum is scored where the data hold no layers."""
VIDUR = ("a100-80", "a40", "h100-sxm")


@dataclass(frozen=True)
class Family:
    """One set of constants: its formula, where the search starts and how far it may go (on a logarithmic scale)."""

    kind: type
    start: tuple[float, ...]
    reach: tuple[float, ...]
    own: tuple[str, ...]
    """Constants of which each chip has a share of its own, drawn to 1: how it throttles, how its library fits it."""
    most: dict[str, float] = dataclasses.field(default_factory=dict)
    """Bounds of its own."""
    pulls: tuple[float, ...] = (0.3,)
    """How strongly constants are drawn to their starting values, as candidates."""


MATRIX_REACH = (0.15, 0.7, 0.1, 0.4, 0.7, 0.4, 0.5, 1.0, 0.6, 0.6)
MATRIX = (0.85, 8, 0.85, 3, 5e-7, 3e-6, 1.5, 0.3, 10, 4)
LIGHT_REACH = (0.06, 1.2, 0.5, 0.4, 0.4, 0.4)
LIGHT_OWN = ("memory", "elements_per_cycle")
SHIFTED = ("compute", "tile_s", "memory", "floor_s")
"""Constants that differ between sources by a factor: clocks, libraries and data were not the same."""
# Winograd's convolution of 3x3 by tiles of 2x2 needs 2.25 times fewer multiplications (Lavin and Gray 2016).
FAMILIES = {
    "gemm": Family(MatrixConstants, MATRIX, MATRIX_REACH, ("compute", "memory")),
    "gemm32": Family(MatrixConstants, MATRIX, MATRIX_REACH, ("compute", "memory")),
    "conv32": Family(MatrixConstants, (1.0, 8, 0.6, 2, 2e-6, 2e-5, 1.0, 0.3, 10, 4), MATRIX_REACH, ("compute", "memory"), {"compute": 2.25}),
    "attention": Family(AttentionConstants, (0.6, 0.7, 1.5, 6e-6, 1.5), (0.3, 0.3, 0.4, 0.4, 0.6), ("compute", "memory")),
    "elementwise": Family(LightConstants, (0.87, 16, 0.6, 3, 2e-6, 1), LIGHT_REACH, LIGHT_OWN, pulls=PULLS),
    "norm": Family(LightConstants, (0.87, 7, 0.6, 3, 4e-6, 1), LIGHT_REACH, LIGHT_OWN, pulls=PULLS),
    "norm32": Family(LightConstants, (0.8, 7, 0.6, 3, 4e-6, 1), LIGHT_REACH, LIGHT_OWN, pulls=PULLS),
    "fused": Family(LightConstants, (0.87, 5, 0.6, 3, 3e-6, 1), LIGHT_REACH, LIGHT_OWN, pulls=PULLS),
    "gather": Family(LightConstants, (0.87, 3, 0.6, 3, 3e-6, 1), LIGHT_REACH, LIGHT_OWN, pulls=PULLS),
}
LAYER = ("gemm", "norm", "fused", "elementwise")
"""Families of one decoder layer; the embedding is none of its parts."""


def seconds(name: str, constants: Any, x: pd.DataFrame) -> np.ndarray:
    """What the product's own formula says of the rows of `x`."""
    c = {column: x[column].to_numpy(float) for column in (*RATES, "batch", "m", "n", "k", "bytes", "elements", "flops")}
    rates = Rates(*(c[column] for column in RATES))
    kind = FAMILIES[name].kind
    if kind is MatrixConstants:
        return roofline.matrix_seconds(constants, rates, c["batch"], c["m"], c["n"], c["k"], c["bytes"])
    if kind is AttentionConstants:
        return roofline.attention_seconds(constants, rates, c["flops"], c["batch"], c["bytes"])
    return roofline.light_seconds(constants, rates, c["elements"], c["bytes"])


RATES = ("flops_per_s", "bytes_per_s", "num_multiprocessors", "clock_hz", "cache_bytes")


@dataclass(frozen=True)
class Fitted:
    """What a fit found."""

    constants: Any
    """Of a device that nothing is known of."""
    own: dict[str, dict[str, float]]
    """Chip -> constant -> factor, for the chips that were fitted on."""

    def seconds(self, name: str, x: pd.DataFrame) -> np.ndarray:
        """Of the rows of `x`, with a chip's own factors where it has some."""
        factors = {
            field: np.array([self.own.get(chip, {}).get(field, 1.0) for chip in x.chip]) * getattr(self.constants, field) for field in FAMILIES[name].own
        }
        return seconds(name, dataclasses.replace(self.constants, **factors), x)


def fit(name: str, x: pd.DataFrame, pull: float) -> Fitted:
    """Least squares on logarithms, with a soft loss; `pull` draws the constants to their starting values.

    Each chip has factors of its own for some constants, drawn to 1: so one odd chip does not bend the constants of all
    (partial pooling, Gelman and Hill 2007, chapter 12). A device that was not fitted on gets the factor 1.
    """
    family = FAMILIES[name]
    fields = [f.name for f in dataclasses.fields(family.kind)]
    chips, reference = sorted(x.chip.unique()), "vidur" if "vidur" in set(x.source) else x.source.iloc[0]
    shifts = [f for f in SHIFTED if f in fields and x.source.nunique() > 1]
    other = (x.source != reference).to_numpy(float)
    position = x.chip.map({chip: i for i, chip in enumerate(chips)}).to_numpy()
    start = np.r_[np.log(np.array(family.start, dtype=float)), np.zeros(len(shifts) + len(family.own) * len(chips))]
    reach = np.r_[family.reach, np.full(len(shifts), 0.3), np.full(len(family.own) * len(chips), OWN_REACH)]
    draw = np.where(np.arange(len(start)) < len(fields), pull, 0.3) * np.sqrt(len(x) / 200) / reach
    weight, truth = np.sqrt(x.weight.to_numpy()), np.log(x.seconds.to_numpy())

    def constants(theta: np.ndarray) -> Any:
        values = dict(zip(fields, theta[: len(fields)], strict=True))
        own = theta[len(fields) + len(shifts) :].reshape(len(family.own), len(chips))
        for i, field in enumerate(shifts):
            values[field] = values[field] + theta[len(fields) + i] * other
        for field, factors in zip(family.own, own, strict=True):
            values[field] = values[field] + factors[position]
        return family.kind(**{field: np.exp(value) for field, value in values.items()})

    def residuals(theta: np.ndarray) -> np.ndarray:
        off = np.log(seconds(name, constants(theta), x)) - truth
        return np.r_[weight * off / 0.1, draw * (theta - start)]

    least = np.array([LEAST.get(field, 0.0) for field in fields] + [0.0] * (len(start) - len(fields)))
    most = np.array([family.most.get(field, MOST.get(field, np.inf)) for field in fields] + [np.inf] * (len(start) - len(fields)))
    with np.errstate(over="ignore", divide="ignore"):  # the search tries steps that are too long; log(0) is no bound
        found = least_squares(residuals, start, bounds=(np.log(least), np.log(most)), loss="soft_l1", max_nfev=40).x
    own = np.exp(found[len(fields) + len(shifts) :].reshape(len(family.own), len(chips)))
    return Fitted(
        constants=family.kind(*(float(v) for v in np.exp(found[: len(fields)]))),
        own={chip: {field: float(own[j, i]) for j, field in enumerate(family.own)} for i, chip in enumerate(chips)},
    )


def thin(x: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Few enough rows for a fit in seconds: every eighth token count, and no more than 500 of a family and device."""
    own = x[x.source == "vidur"]
    counts = np.unique(own.tokens)
    own = own[own.tokens.isin({*counts[::8], *counts[:6]})]
    pool = pd.concat([own, x[x.source != "vidur"]])
    return pd.concat([g.sample(min(500, len(g)), random_state=seed) for _, g in pool.groupby(["family", "device", "source"])])


def weigh(x: pd.DataFrame) -> pd.DataFrame:
    """An operator counts by its share of its layer, so that rare giants do not drown in many small ones."""
    total = x.groupby(["source", "device", "model", "tp", "tokens", "family"]).seconds.transform("sum")
    share = (x.seconds / total * 4).clip(0.05, 4)
    return x.assign(weight=np.where((x.source == "vidur") & (x.family == "gemm"), share, 0.5))


def scores(x: pd.DataFrame, predicted: np.ndarray) -> pd.Series:
    """Logarithm of predicted over measured seconds: of layers, or of bags of operators where there are none."""
    x = x.assign(predicted=predicted)
    in_layer = (x.source == "vidur") & x.family.isin(LAYER)
    layers = x[in_layer].groupby(["device", "source", "model", "tp", "tokens"])[["seconds", "predicted"]].sum()
    found = [pd.Series(np.log(layers.predicted / layers.seconds).to_numpy(), layers.index.get_level_values("device"))]
    shuffled = x[~in_layer].sample(frac=1, random_state=0)
    if len(shuffled):
        # Each operator of a bag counts the same: a sum would be decided by the longest one.
        bag = shuffled.groupby(["device", "source"]).cumcount() // BAG
        ratio = (shuffled.predicted / shuffled.seconds).groupby([shuffled.device, shuffled.source, bag]).mean()
        found.append(pd.Series(np.log(ratio.to_numpy()), ratio.index.get_level_values("device")))
    return pd.concat([s for s in found if len(s)])


def hold_out(name: str, small: pd.DataFrame, full: pd.DataFrame, chips: Iterable[str], pull: float) -> dict[str, pd.Series]:
    """Scores of each chip by constants fitted on the others."""
    found = {}
    for chip in chips:
        rest = small[small.chip != chip]
        here = full[full.chip == chip]
        found[chip] = scores(here, fit(name, rest, pull).seconds(name, here))
    return found


def choose(name: str, small: pd.DataFrame) -> tuple[float, dict[str, pd.Series]]:
    """The pull that does best when each of the given chips is held out in turn, and its scores."""
    chips, pulls = sorted(small.chip.unique()), FAMILIES[name].pulls
    if len(chips) < 2:
        return pulls[0], {}
    tried = {pull: hold_out(name, small, small, chips, pull) for pull in pulls}
    best = min(pulls, key=lambda pull: float(np.mean([s.abs().mean() for s in tried[pull].values()])))
    return best, tried[best]


def half_width(held: dict[str, pd.Series]) -> float:
    """Half the band on a logarithmic scale: split-conformal over held-out chips, wider the fewer there are."""
    pooled = float(np.quantile(np.concatenate([s.abs() for s in held.values()]), LEVEL))
    return pooled * (1 + 1 / len(held))


def worst_width(held: dict[str, pd.Series]) -> float:
    """The same of the chip that was predicted worst."""
    return max(float(np.quantile(s.abs(), LEVEL)) for s in held.values())


# --- the baselines


def datasheet(x: pd.DataFrame) -> np.ndarray:
    """The larger of arithmetic and traffic at the printed peaks."""
    return np.maximum(x.flops / x.flops_per_s, x.bytes / x.bytes_per_s).to_numpy()


def runtime_estimator(x: pd.DataFrame) -> np.ndarray:
    """torch's `RuntimeEstimator`: multiply-adds over three quarters of the FLOP peak, or traffic at the printed rate."""
    return np.maximum(x.flops / 2 / (0.75 * x.flops_per_s), x.bytes / x.bytes_per_s).to_numpy()


def shares(x: pd.DataFrame) -> np.ndarray:
    """Constant shares of both peaks and a constant start of 5 microseconds."""
    return np.maximum(x.flops / (0.7 * x.flops_per_s), x.bytes / (0.8 * x.bytes_per_s)).to_numpy() + 5e-6


BASELINES: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "datasheet roofline": datasheet, "torch RuntimeEstimator": runtime_estimator, "0.7 / 0.8 / 5 µs": shares,
}  # fmt: skip


def layer_scores(x: pd.DataFrame, predicted: np.ndarray) -> pd.Series:
    """Of whole decoder layers."""
    return scores(x[x.family.isin(LAYER)], predicted[x.family.isin(LAYER).to_numpy()])


def line(label: str, found: pd.Series, half: float | None = None) -> str:
    """One row of the table."""
    error = np.abs(np.exp(found) - 1)
    band = "" if half is None else f" {np.mean(found.abs() <= half):.0%} | ×/÷{np.exp(half):.2f}"
    return f"| {label} | {error.mean():.1%} | {np.quantile(error, 0.9):.1%} | {np.expm1(found.mean()):+.1%} |{band or ' | '} |"


def predict_layers(x: pd.DataFrame, constants: dict[str, Fitted]) -> np.ndarray:
    """Seconds of every row by its family's constants."""
    out = np.zeros(len(x))
    for name, group in x.reset_index(drop=True).groupby("family"):
        if name in constants:
            out[group.index.to_numpy()] = constants[name].seconds(name, group)
    return out


def held_out_device(chip: str, x: pd.DataFrame, small: pd.DataFrame) -> tuple[dict[str, Fitted], float]:
    """Constants and band for a chip that nothing is known of but its datasheet."""
    rest = small[small.chip != chip]
    pulls = {name: choose(name, rest[rest.family == name])[0] if len(FAMILIES[name].pulls) > 1 else FAMILIES[name].pulls[0] for name in LAYER}
    constants = {name: fit(name, rest[rest.family == name], pulls[name]) for name in LAYER}
    inner = {}
    own = rest[rest.source == "vidur"]
    for other in sorted(own.chip.unique()):
        others = rest[rest.chip != other]
        fitted = {name: fit(name, others[others.family == name], pulls[name]) for name in LAYER}
        here = x[(x.chip == other) & (x.source == "vidur")]
        inner[other] = layer_scores(here, predict_layers(here, fitted))
    return constants, max(half_width(inner), worst_width(inner))


def evaluate_devices(x: pd.DataFrame, small: pd.DataFrame) -> None:
    """Leave one device out."""
    print("\n## Leave one device out: time of one decoder layer without attention\n")
    print("| held out, by | mean error | p90 | bias | 90 % band covers | band |\n| --- | --- | --- | --- | --- | --- |")
    own = x[x.source == "vidur"]
    models = {}
    for chip in VIDUR:
        constants, half = models[chip] = held_out_device(chip, x, small)
        here = own[own.chip == chip]
        print(line(f"**{chip}**, calibrated roofline", layer_scores(here, predict_layers(here, constants)), half))
        for label, rule in BASELINES.items():
            print(line(f"{chip}, {label}", layer_scores(here, rule(here))))
        sys.stdout.flush()
    attached(own, models)


def attached(own: pd.DataFrame, models: dict[str, tuple[dict[str, Fitted], float]]) -> None:
    """With another GPU attached whose operators were measured: its residual carries over by a share."""
    print("\n## The same with another GPU attached: times (measured / predicted there) to the power w\n")
    print("| attached → target | w = 0 | 0.25 | 0.5 | 0.75 | 1 |\n| --- | --- | --- | --- | --- | --- |")
    keys = ["model", "tp", "tokens", "op"]
    for source, target in itertools.permutations(VIDUR, 2):
        constants = models[target][0]
        there, here = own[(own.chip == source) & own.family.isin(LAYER)], own[(own.chip == target) & own.family.isin(LAYER)]
        residual = there.assign(residual=np.log(there.seconds / predict_layers(there, constants)))[[*keys, "residual"]]
        here = here.merge(residual, on=keys)
        predicted = predict_layers(here, constants)
        errors = [np.abs(np.exp(layer_scores(here, predicted * np.exp(w * here.residual.to_numpy()))) - 1).mean() for w in (0, 0.25, 0.5, 0.75, 1)]
        print(f"| {source} → {target} | " + " | ".join(f"{e:.1%}" for e in errors) + " |")


def evaluate_models(x: pd.DataFrame, small: pd.DataFrame) -> None:
    """Leave one model out, on every device; its band is that of the other models."""
    print("\n## Leave one model out: the device is known, the model is not\n")
    print("| held out | device | mean error | p90 | bias | 90 % band covers | band |\n| --- | --- | --- | --- | --- | --- | --- |")
    own = x[x.source == "vidur"]
    found = {}
    for model in sorted(own.model.unique()):
        rest = small[small.model != model]
        constants = {name: fit(name, rest[rest.family == name], FAMILIES[name].pulls[0]) for name in LAYER}
        here = own[own.model == model]
        found[model] = layer_scores(here, predict_layers(here, constants))
    for model, device in itertools.product(found, VIDUR):
        others = {m: s[s.index == device] for m, s in found.items() if m != model}
        half = max(half_width(others), worst_width(others))
        print(line(f"{model} | {device}", found[model][found[model].index == device], half))
    print(line("all | all", pd.concat(found.values())))


# --- the constants that ship


def evaluate_families(small: pd.DataFrame) -> tuple[dict[str, Fitted], dict[str, tuple[float, float]], dict[str, tuple[str, ...]]]:
    """Constants of each family on all devices, and its band with each chip held out in turn."""
    print("\n## Families: each chip held out in turn, sums of operators\n")
    print("| family | chips | pull | mean error | p90 | bias | 90 % band | of the worst chip |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    constants, halves, devices = {}, {}, {}
    for name in [n for n in FAMILIES if n in set(small.family)]:
        rows = small[small.family == name]
        pull, held = choose(name, rows)
        constants[name], halves[name] = fit(name, rows, pull), (half_width(held), worst_width(held))
        devices[name] = tuple(sorted(rows.device.unique()))
        found = pd.concat(held.values())
        error = np.abs(np.exp(found) - 1)
        band = " | ".join(f"×/÷{np.exp(half):.2f}" for half in halves[name])
        print(f"| {name} | {', '.join(held)} | {pull} | {error.mean():.1%} | {np.quantile(error, 0.9):.1%} | {np.expm1(found.mean()):+.1%} | {band} |")
        sys.stdout.flush()
    return constants, halves, devices


HEADER = """\
# Constants of the calibrated roofline (roofline.py), written by tests/benchmarks/demand/vidur.py --fit. Do not edit.
# Fitted on public measurements, none of which is part of this package:
#   microsoft/vidur 7d47513 (MIT): float16 decoder layers without attention on A100, A40, H100
#   ai-dynamo/aiconfigurator 095f58a (Apache-2.0): bfloat16 matrix products and attention on six GPUs
#   sitar-lab/NeuSight 6945927 (MIT): float32 operators of torch 2.1 on five GPUs
# `devices`: what a family was fitted on. `half_width`: half of its 90 % band on a logarithmic scale, from holding out
# each chip in turn (split-conformal on sums of operators, inflated for few chips); `worst`: the same of the chip predicted worst.
# `own`: factors of the devices fitted on; those of one chip share them.
"""


def write(constants: dict[str, Fitted], halves: dict[str, tuple[float, float]], devices: dict[str, tuple[str, ...]]) -> None:
    """Rewrite the file that ships."""
    lines = [HEADER]
    for name, values in constants.items():
        lines += [f"[{name}]", f"devices = {list(devices[name])!r}".replace("'", '"'), f"half_width = {halves[name][0]:.3f}", f"worst = {halves[name][1]:.3f}"]
        lines += [f"{field} = {value:.4g}" for field, value in dataclasses.asdict(values.constants).items()]
        for device in devices[name]:
            factors = values.own[public_data.CHIP.get(device, device)]
            lines.append(f"own.{device} = {{ " + ", ".join(f"{field} = {value:.3f}" for field, value in factors.items()) + " }")
        lines.append("")
    CONSTANTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    """Read, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("AIMASS_VIDUR_DATA"), help="checkout of microsoft/vidur")
    parser.add_argument("--gemm", type=Path, help="checkout of ai-dynamo/aiconfigurator")
    parser.add_argument("--float32", type=Path, help="checkout of sitar-lab/NeuSight")
    parser.add_argument("--fit", action="store_true", help="rewrite the constants that ship")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the measurements: git clone https://github.com/microsoft/vidur && git -C vidur checkout 7d47513")
    if options.fit and not (options.gemm and options.float32):
        parser.error("--fit needs --gemm and --float32")
    parts = [public_data.vidur(Path(options.data))]
    if options.gemm:
        parts.append(public_data.aiconfigurator(options.gemm, 800))
    if options.float32:
        parts.append(public_data.neusight(options.float32, 500))
    x = weigh(public_data.with_rates(pd.concat(parts, ignore_index=True)))
    small = thin(x)
    print(f"{len(x)} operators on {x.device.nunique()} devices from {', '.join(x.source.unique())}")
    constants, halves, devices = evaluate_families(small)
    if options.fit:
        write(constants, halves, devices)
    evaluate_devices(x, small)
    evaluate_models(x, small)


if __name__ == "__main__":
    main()
